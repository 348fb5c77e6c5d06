"""The table of a run: what is nan stays in it, with the reason."""

import json

import pytest

from experiments.running import evaluator, terminal, workdirs
from mmvae_jax.evaluation import pictures
from mmvae_jax.evaluation.metrics import COLUMNS
from mmvae_jax.training import log


def member(seed, metrics, **others):
    head = {"beta": 1.0, "learning_rate": 1e-3, "seed": seed, "finite": True}
    return {**head, "metrics": metrics, **others}


def summary_of(*members):
    head = {"model": "mvae", "dataset": "toy", "num_steps": 3, "device": "cpu"}
    return {**head, "members": list(members)}


@pytest.mark.parametrize("is_read", [False, True])
def test_nan_keeps_its_column_and_has_a_reason(is_read, tmp_path, capsys):
    tag, why = "eval/matching/leave_one_out", "the networks tell nothing"
    values = {"eval/elbo": -1.5, tag: float("nan")}
    written = summary_of(
        member(0, values, undefined={tag: why}),
        member(1, values | {tag: 0.25}, undefined={}),
        member(2, values, undefined={tag: why}),
    )
    if is_read:  # as the run that is finished shows it
        log.write_json(tmp_path / "summary.json", written)
        text = (tmp_path / "summary.json").read_text()
        assert json.loads(text)["members"][0]["metrics"][tag] is None
        written = workdirs.read_summary(tmp_path)
    terminal.print_table(written)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[3:] == ["matching", "ELBO"]
    assert [line.split()[3] for line in lines[3:6]] == ["nan", "0.25", "nan"]
    assert lines[6:] == [f"matching is nan: {why}"]


def test_many_results_are_rows(capsys):
    tags = list(COLUMNS)[: terminal._MAX_COLUMNS + 1]
    values = [{tag: i + x for i, tag in enumerate(tags)} for x in (1.0, 2.12345)]
    terminal.print_table(summary_of(*(member(k, own) for k, own in enumerate(values))))
    lines = capsys.readouterr().out.splitlines()
    names = [COLUMNS[tag].short or COLUMNS[tag].heading for tag in tags]
    rows = [line.split() for line in lines if line.strip("- ")][1:]
    assert rows[1] == ["seed", "0", "1"] and len(rows) == 3 + len(tags)
    assert rows[3] == [*names[0].split(), "1", "2.123"]
    assert rows[-1][-2:] == ["15", "16.12"]


def test_a_summary_without_reasons_is_one_and_others_are_not():
    assert workdirs.is_summary(summary_of(member(0, {"eval/elbo": None})))
    assert workdirs.undefined([member(0, {"eval/elbo": None})]) == {}
    for wrong in ([], {"eval/elbo": 3}, "text"):
        assert not workdirs.is_summary(summary_of(member(0, {}, undefined=wrong)))


@pytest.mark.parametrize("failing", ["draws", "grids"])
def test_pictures_that_cannot_be_drawn_take_no_metric_with_them(failing, monkeypatch):
    def fail(*shown):
        raise TypeError("no picture of this\nand more")

    monkeypatch.setattr(pictures, "draw_grids", fail)
    draw = fail if failing == "draws" else lambda: pictures.Samples({}, ())
    data = type("Data", (), {"test": None, "words": {}})
    one = evaluator.Evaluated({"eval/elbo": -1.5}, {}, {}, ())
    one = evaluator._with_samples(one, draw, data)
    calls = []

    class Writer:
        def write_scalars(self, step, scalars):
            calls.append(("scalars", step, scalars))

        def write_images(self, step, k, images):
            calls.append(("images", step, k, images))

    evaluator._write_evaluation(Writer(), 7, [one, one])
    assert calls == [
        ("scalars", 7, [{"eval/elbo": -1.5}] * 2),
        ("images", 7, 0, {}),
        ("images", 7, 1, {}),
    ]
    assert one.faults == (
        "samples cannot be drawn and are left out (TypeError: no picture of this)",
    )
