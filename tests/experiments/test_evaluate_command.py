"""Metrics that are computed later: added, with date and settings; nothing is lost."""

import json
import os
import shutil
import signal

import pytest

from experiments.drawing import page
from experiments.running import build, evaluation, evaluator, workdirs
from experiments.studies import guidance
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import Undefined
from mmvae_jax.evaluation.metrics import METRICS
from mmvae_jax.interface import progress
from mmvae_jax.training.log import read_metrics

pytest_plugins = ("run_fixtures",)

DATE = "2031-05-06"
SWD = {"eval.metrics": ("swd",)}


@pytest.fixture
def workdir(array_run, tmp_path):
    return shutil.copytree(array_run, tmp_path / "runs" / "run")


def read(path):
    return json.loads(path.read_text())


def add(workdir, changes, step=None):
    assert evaluation.evaluate(workdir, changes, step, DATE) == 0


def test_values_are_added_with_date_and_settings(workdir, contents, capsys):
    before = read(workdir / "summary.json")
    lines = (workdir / "metrics.jsonl").read_text()
    samples = contents(workdir / "samples")
    config = (workdir / "config.json").read_bytes()
    add(workdir, SWD | {"eval.num_examples": 5})
    assert "added to" in capsys.readouterr().out
    summary = read(workdir / "summary.json")
    for member, former in zip(summary["members"], before["members"], strict=True):
        assert member["metrics"].items() > former["metrics"].items()
        assert member["metrics"]["eval/swd"] > 0
    (made,) = summary["evaluations"]
    assert (made["date"], made["step"], made["metrics"]) == (DATE, 20, ["swd"])
    assert made["settings"]["eval"]["num_examples"] == 5
    text = (workdir / "metrics.jsonl").read_text()
    assert text.startswith(lines)
    added = [json.loads(line) for line in text.removeprefix(lines).splitlines()]
    assert [line["date"] for line in added] == [DATE, DATE]
    assert "eval/swd" in added[0] and "eval/elbo" not in added[0]
    # The run is what it was: its config and the samples of its own evaluation.
    assert (workdir / "config.json").read_bytes() == config
    assert contents(workdir / "samples") == samples
    report = page.render(workdir.parent)
    assert f"swd, swd/image: added on {DATE} with config.eval.num_examples = 5." in (
        report
    )
    assert f"{summary['members'][0]['metrics']['eval/swd']:.1f}" in report
    # Computed once more, the latest settings count.
    add(workdir, SWD)
    assert len(read(workdir / "summary.json")["evaluations"]) == 2
    report = page.render(workdir.parent)
    assert f"swd, swd/image: added on {DATE} with the settings of the run." in report
    assert "num_examples = 5" not in report


def test_a_metric_again_is_the_same_number(workdir):
    before = read(workdir / "summary.json")["members"]
    add(workdir, {})
    assert read(workdir / "summary.json")["members"] == before


GMM = {"eval.sampler": "gmm", "eval.sampler_components": (2, 3)}


def test_what_a_sampler_draws_stands_beside_what_the_prior_draws(
    workdir, contents, capsys
):
    add(workdir, SWD)
    before = read(workdir / "summary.json")["members"]
    samples = contents(workdir / "samples")
    chosen = GMM | {"eval.metrics": ("elbo", "swd")}
    add(workdir, chosen)
    assert "SWD, GMM" in capsys.readouterr().out
    summary = read(workdir / "summary.json")
    for member, former in zip(summary["members"], before, strict=True):
        # The numbers of the prior have the same bits, and nothing else was computed.
        new = member["metrics"].items() - former["metrics"].items()
        assert {tag for tag, _ in new} == {"eval/gmm/swd", "eval/gmm/swd/image"}
        assert member["metrics"].items() > former["metrics"].items()
        assert member["metrics"]["eval/gmm/swd"] != member["metrics"]["eval/swd"]
    made = summary["evaluations"][-1]
    assert made["metrics"] == ["swd"] and made["settings"]["eval"]["sampler"] == "gmm"
    # Its pictures are added, and those of the run stay.
    pictures = contents(workdir / "samples")
    assert {name.rpartition("_")[2] for name in pictures.keys() - samples.keys()} == {
        "gmm.png"
    }
    assert pictures.items() > samples.items()
    report = page.render(workdir.parent)
    for words in ("SWD, GMM\N{NO-BREAK SPACE}↓", "unconditional, GMM", "sampler gmm"):
        assert words in report
    assert "gmm/swd, gmm/swd/image: added on" in report
    # Once more, they are the same numbers, whatever else is computed.
    add(workdir, GMM | SWD)
    assert read(workdir / "summary.json")["members"] == summary["members"]
    assert contents(workdir / "samples") == pictures


def test_a_run_of_old_with_a_field_that_nothing_read(workdir, array_config, run_here):
    path = workdir / "config.json"
    content = read(path)
    content["data"]["quadrant"] = "shared"
    path.write_text(json.dumps(content))
    add(workdir, SWD)
    # The command that made it is refused, and without the field continues it.
    with pytest.raises(
        UsageError, match="config.data.quadrant is not read by .*arrays"
    ):
        run_here(
            array_config({"data.quadrant": "shared", "train.num_steps": 21}), workdir
        )
    assert run_here(array_config(), workdir)[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval.metrics": ("elbo",)},
            "='gmm' changes none of config.eval.metrics: add",
        ),
        (SWD | {"eval.sampler_components": (99,)}, "fitted to 43 training examples"),
    ],
)
def test_a_sampler_that_is_of_no_use_is_refused(changes, message, workdir, contents):
    before = contents(workdir)
    with pytest.raises(UsageError, match=f"config.eval.sampler.*{message}"):
        add(workdir, GMM | changes)
    assert contents(workdir) == before


@pytest.mark.slow
def test_a_run_has_both_and_an_evaluation_the_same(array_config, run_here, tmp_path):
    changes = {"eval.sampler": "flow", "eval.sampler_steps": 20, **SWD}
    workdir = tmp_path / "run"
    assert run_here(array_config(changes), workdir)[0] == 0
    before = read(workdir / "summary.json")["members"]
    for member in before:
        assert {"eval/swd", "eval/flow/swd"} < member["metrics"].keys()
    assert {path.stem.rpartition("_")[2] for path in workdir.glob("samples/*.png")} > {
        "prior",
        "flow",
    }
    add(workdir, {})
    add(workdir, {"eval.sampler": "flow"})
    assert read(workdir / "summary.json")["members"] == before


def test_any_checkpoint_that_is_kept(workdir, capsys):
    before = read(workdir / "summary.json")
    add(workdir, SWD, step=10)
    assert "member 1 at step 10: eval/swd=" in capsys.readouterr().out
    summary = read(workdir / "summary.json")
    (made,) = summary.pop("evaluations")
    assert summary == before, "its results are those of the last step"
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    assert (last["step"], last["date"]) == (10, DATE)
    assert last["eval/swd"] == made["members"][1]["eval/swd"]
    report = page.render(workdir.parent)
    assert f"At step 10, added on {DATE} with the settings of the run" in report
    assert f"{last['eval/swd']:.1f}" in report
    with pytest.raises(UsageError, match="has no checkpoint 7, it keeps 10, 20"):
        add(workdir, SWD, step=7)


def test_nan_at_another_step_keeps_its_reason(workdir, capsys, monkeypatch):
    why = "no test example has image"
    monkeypatch.setattr(
        evaluation,
        "make_evaluator",
        lambda *given: (
            lambda step, state: [
                {"eval/swd": Undefined(why), "eval/elbo": -1.0},
                {"eval/swd": 2.0, "eval/elbo": -1.0},
            ]
        ),
    )
    add(workdir, SWD, step=10)
    said = capsys.readouterr().out
    assert said.count("eval/swd=nan") == said.count(f"eval/swd is nan: {why}") == 1
    (made,) = read(workdir / "summary.json")["evaluations"]
    assert made["undefined"] == [{"eval/swd": why}, {}]
    report = page.render(workdir.parent)
    assert f"<li>{why} (MoPoE-VAE: swd at step 10)</li>" in report
    # At the last step it is the member's own.
    add(workdir, SWD)
    report = page.render(workdir.parent)
    assert f"<li>{why} (MoPoE-VAE: swd, swd at step 10)</li>" in report


def failing(error):
    def fail(*given, **options):
        raise error

    return fail


def test_a_metric_that_fails_takes_no_other_with_it(workdir, monkeypatch, capsys):
    row = METRICS["swd"]
    error = RuntimeError("RESOURCE_EXHAUSTED: no memory\nfor this and that")
    both = {"eval.metrics": ("swd", "elbo")}
    line = "metric 'swd' failed (RuntimeError: RESOURCE_EXHAUSTED: no memory)"
    with monkeypatch.context() as patch:
        patch.setitem(METRICS, "swd", row._replace(compute=failing(error)))
        add(workdir, both)
        said = capsys.readouterr().out
        assert said.splitlines().count(f"{line}: its values are nan") == 1
        summary = read(workdir / "summary.json")
        for member in summary["members"]:
            assert member["metrics"]["eval/swd"] is None
            assert member["undefined"]["eval/swd"] == line
        assert {"eval/swd", "eval/elbo"} < set(summary["evaluations"][-1]["tags"])
    # Repeated, it has a value, which a later failure leaves.
    add(workdir, SWD)
    members = read(workdir / "summary.json")["members"]
    for member in members:
        assert member["metrics"]["eval/swd"] > 0
        assert "eval/swd" not in member["undefined"]
    monkeypatch.setitem(METRICS, "swd", row._replace(compute=failing(error)))
    add(workdir, SWD)
    summary = read(workdir / "summary.json")
    assert summary["members"] == members and summary["evaluations"][-1]["tags"] == []
    # A mistake of the user is one.
    mistake = failing(UsageError("no images"))
    monkeypatch.setitem(METRICS, "swd", row._replace(compute=mistake))
    with pytest.raises(UsageError, match="no images"):
        add(workdir, both)


def test_a_sampler_whose_fit_fails_takes_no_metric_with_it(
    workdir, monkeypatch, capsys
):
    monkeypatch.setattr(evaluator.samplers, "fit", failing(MemoryError()))
    add(workdir, GMM | SWD)
    line = "the fit of gmm failed (MemoryError)"
    assert f"{line}: the values of its examples are nan\n" in capsys.readouterr().out
    for member in read(workdir / "summary.json")["members"]:
        assert member["undefined"]["eval/gmm/swd"] == line
        assert member["metrics"]["eval/elbo"] is not None


def test_all_metrics_that_the_data_allow(workdir, capsys, monkeypatch):
    chosen = ("captions", "attributes", "swd", "elbo")
    table = evaluation.checks.METRICS
    monkeypatch.setattr(
        evaluation.checks, "METRICS", {name: table[name] for name in chosen}
    )
    add(workdir, {"eval.metrics": ("all",)})
    said = capsys.readouterr().out
    assert "captions cannot be computed: " in said
    assert "attributes cannot be computed: " in said
    (made,) = read(workdir / "summary.json")["evaluations"]
    assert made["metrics"] == ["swd", "elbo"]


@pytest.fixture
def few_metrics(monkeypatch):
    """A table without what takes weights from the web."""
    table = evaluation.checks.METRICS
    few = {name: table[name] for name in ("captions", "swd", "elbo")}
    monkeypatch.setattr(evaluation.checks, "METRICS", few)


def test_a_config_may_ask_for_all_metrics(array_config, few_metrics, capsys):
    config = array_config({"eval.metrics": ("all",)})
    assert build.takes_all_metrics(config)
    assert evaluation.checks.check(config) == {}
    found = build.choose_metrics(build.build(config))
    assert list(found) == ["swd", "elbo"]
    assert config.eval.metrics == ("swd", "elbo"), "the run is recorded with these"
    assert "captions cannot be computed: " in capsys.readouterr().out
    assert not build.takes_all_metrics(config)


@pytest.mark.slow
def test_a_run_of_all_metrics(array_config, few_metrics, run_here, tmp_path):
    config = array_config({"eval.metrics": ("all",)})
    code, stdout = run_here(config, tmp_path / "run")
    assert code == 0 and "captions cannot be computed: " in stdout
    assert read(tmp_path / "run" / "config.json")["eval"]["metrics"] == ["swd", "elbo"]
    (member, _) = read(tmp_path / "run" / "summary.json")["members"]
    assert {"eval/swd", "eval/elbo"} <= member["metrics"].keys()
    # A finished run is not asked for other metrics than it has.
    config.eval.metrics = ("all",)
    code, stdout = run_here(config, tmp_path / "run")
    assert code == 0 and "evaluated with other settings" not in stdout


def test_other_data_under_the_same_name_are_refused(workdir, contents):
    path = workdir / "description.json"
    path.write_text(json.dumps(read(path) | {"fingerprint": "another"}))
    before = contents(workdir)
    with pytest.raises(UsageError, match="have changed since it was trained"):
        add(workdir, SWD)
    assert contents(workdir) == before


def test_a_study_of_a_run_reads_it_as_an_evaluation_does(
    workdir, contents, monkeypatch
):
    def as_it_is(folder, strength, num_examples):
        config = evaluation.config_of(folder)
        config.eval.metrics = ("swd",)
        return config

    monkeypatch.setattr(guidance, "guided_config", as_it_is)
    monkeypatch.setattr(guidance, "COLUMNS", ("swd",))
    before = contents(workdir)
    found = guidance.values_at(workdir, 2.0, 0)
    assert found["guidance"] == 2.0 and found["swd mean"] > 0
    assert contents(workdir) == before
    with (
        workdirs.locked(workdir, evaluation.config_of(workdir)),
        pytest.raises(UsageError, match="another process is running in"),
    ):
        guidance.values_at(workdir, 2.0, 0)
    path = workdir / "description.json"
    path.write_text(json.dumps(read(path) | {"fingerprint": "another"}))
    with pytest.raises(UsageError, match="have changed since it was trained"):
        guidance.values_at(workdir, 2.0, 0)


def test_a_line_that_a_kill_has_torn_is_not_written_on(workdir):
    path = workdir / "metrics.jsonl"
    whole = read_metrics(path)
    with open(path, "a") as file:
        file.write('{"step": 20, "member": 0, "be')
    add(workdir, SWD)
    lines = read_metrics(path)
    assert lines[:-2] == whole
    assert [line["date"] for line in lines[-2:]] == [DATE, DATE]


@pytest.mark.parametrize(
    "change",
    [
        {"step": "20"},
        {"date": 3},
        {"tags": None},
        {"settings": []},
        {"step": 10},
        {"undefined": [{"eval/swd": 3}]},
        {"undefined": ["text"]},
    ],
)
def test_evaluations_of_others_are_no_summary(workdir, change):
    path = workdir / "summary.json"
    made = {"date": DATE, "step": 20, "tags": [], "settings": {"eval": {}}}
    summary = read(path) | {"evaluations": [made]}
    path.write_text(json.dumps(summary))
    page.render(workdir.parent)
    made |= change
    path.write_text(json.dumps(summary | {"evaluations": [made]}))
    with pytest.raises(UsageError, match="not a readable run"):
        page.render(workdir.parent)


@pytest.mark.slow
def test_an_interrupted_run_is_evaluated_and_goes_on(
    array_config, array_run, run_here, tmp_path, monkeypatch, assert_same_end
):
    workdir = tmp_path / "run"
    update = progress.ProgressBar.update

    def update_and_stop(self, step, seconds, is_first):
        update(self, step, seconds, is_first)
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(progress.ProgressBar, "update", update_and_stop)
        code, _ = run_here(array_config(), workdir)
    assert code == 128 + signal.SIGTERM
    add(workdir, SWD)
    assert run_here(array_config(), workdir)[0] == 0
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    added = [line for line in lines if DATE in line]
    assert len(added) == 2
    assert json.loads(added[0])["step"] == json.loads(added[1])["step"] < 20
    path.write_text("".join(line for line in lines if line not in added))
    assert_same_end(workdir, array_run)


@pytest.mark.slow
def test_the_command_for_one_run_and_for_a_folder(workdir, commands):
    shutil.copytree(workdir, workdir.with_name("second"))
    shutil.copytree(workdir, workdir.with_name("broken"))
    shutil.rmtree(workdir.with_name("broken") / "checkpoints")
    flags = ["experiments.evaluate", "--config.eval.metrics=('swd',)"]
    one, several = commands(
        [
            ([*flags, f"--workdir={workdir}"], ""),
            ([*flags, f"--all={workdir.parent}"], ""),
        ]
    )
    assert one.code == 0, one.stderr
    assert "SWD" in one.stdout
    assert several.code == 2
    assert "error: 1 of 3 runs could not be evaluated: " in several.stderr
    assert f"{workdir.with_name('broken')}" in several.stderr.splitlines()[-1]
    for name, num in (("run", 2), ("second", 1)):
        summary = read(workdir.with_name(name) / "summary.json")
        assert len(summary["evaluations"]) == num
