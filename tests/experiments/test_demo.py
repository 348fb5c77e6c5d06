"""What `make demo` says of its runs (the runs themselves are `make demo`'s own)."""

import json

import evidence as made_up
import pytest

from configs import polydigits
from experiments import demo
from experiments.drawing import gallery, page_pictures
from experiments.judging import paper
from experiments.plans import plan

_, SCALE = plan.load_scale(demo.SCALE)
SPECS = plan.sweep(SCALE.columns, plan.MODELS)


def write(directory, value=made_up.as_in_the_paper):
    """Runs of the demo with made-up metrics, trained and drawn for `demo.make`."""
    return made_up.write(directory, value, scale=demo.SCALE, specs=SPECS)


@pytest.fixture
def make(monkeypatch):
    """(directory) -> the exit code of a demo that has nothing left to train."""
    monkeypatch.setattr(gallery, "draw", lambda evidence, names: None)
    return lambda directory: demo.make(directory, demo.SCALE)


@pytest.mark.parametrize("model", plan.MODELS)
def test_its_runs_are_those_of_the_config(model):
    (column,) = SCALE.columns
    config = plan.run_config(SCALE, plan.Spec(column, model), {})
    assert config.to_dict() == polydigits.get_config(model).to_dict()


def paper_with_elbos(spec, beta, tag):
    """A value with which every claim of the demo holds."""
    if tag == "eval/elbo":
        return -1400.0 if spec.model in paper.MIXTURES else -1300.0
    return made_up.as_in_the_paper(spec, beta, tag)


def test_what_it_leaves(tmp_path, make, capsys):
    directory = tmp_path / "demo"
    found = write(directory, paper_with_elbos)
    assert make(directory) == 0
    results = json.loads((directory / "results.json").read_text())
    means = results["mean_and_std_over_seeds"]
    assert list(means) == list(plan.MODELS)
    members = found.runs[SPECS[0]].summary["members"]
    values = [m["metrics"]["eval/swd"] for m in members if m["beta"] == 1.0]
    mean, std = means[SPECS[0].model]["1.0"]["eval/swd"]
    assert mean == pytest.approx(sum(values) / len(values)) and std > 0
    num = sum(len(claim.models) * len(claim.tags) for claim in paper.TRADEOFF)
    assert [claim["holds"] for claim in results["claims"]] == [True] * num
    out = capsys.readouterr().out
    for claim in paper.TRADEOFF:
        assert claim.text in out
    page = (directory / "report.html").read_text()
    assert paper.TRADEOFF[0].text in page


def test_a_claim_that_fails_is_its_exit_code(tmp_path, make, capsys):
    # The ELBOs of all models are equal.
    write(tmp_path / "demo")
    assert make(tmp_path / "demo") == 1
    assert "FAILS" in capsys.readouterr().out


@pytest.mark.slow
def test_its_figures_are_drawn_by_the_figures_command(tmp_path):
    found = write(tmp_path / "demo")
    gallery.draw(found, demo.FIGURES)
    captions = [figure.caption for figure in page_pictures.figures(tmp_path / "demo")]
    assert captions == ["Figure tradeoff", "Figure 9", "Figure 10"]
