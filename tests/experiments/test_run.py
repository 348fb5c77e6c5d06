"""A run of the smoke config from end to end: what it leaves and prints."""

import json
import math
import os
from unittest.mock import MagicMock

import numpy as np
import pytest
import tensorboardX.proto.event_pb2 as events
from PIL import Image

from experiments import run
from experiments.running import session
from mmvae_jax.training import log

pytest_plugins = ("run_fixtures",)

MEMBER_NAMES = [f"beta={beta},seed=0" for beta in (0, 1, 9)]
TAGS = {
    "eval/coherence/leave_one_out",
    "eval/coherence/leave_one_out/m0",
    "eval/coherence/leave_one_out/m1",
    "eval/coherence/size_1",
    "eval/coherence/joint",
    "eval/frechet_classifier",
    "eval/frechet_classifier/m0",
    "eval/frechet_classifier/m1",
    "eval/swd",
    "eval/swd/m0",
    "eval/swd/m1",
    "eval/log_likelihood",
    "eval/linear_probe",
    "eval/elbo",
    "eval/kl",
    "eval/classifier_accuracy/m0",
    "eval/classifier_accuracy/m1",
}


def strictly(text):
    """JSON as the standard has it: no NaN, no Infinity, no repeated name."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    def unique(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def read_events(path):
    """(step, tag, is an image) of every value in a TensorBoard file."""
    content, found = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        event = events.Event.FromString(content[12 : 12 + size])
        for value in event.summary.value:
            is_image = value.WhichOneof("value") == "image"
            found.append((event.step, value.tag, is_image))
        content = content[16 + size :]
    return found


def test_files(finished):
    assert sorted(path.name for path in finished.workdir.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "description.json",
        "metrics.jsonl",
        "samples",
        "summary.json",
        "tensorboard",
    ]


def test_config_is_resolved(finished):
    found = strictly((finished.workdir / "config.json").read_text())
    assert found["model"]["name"] == "mopoe"
    assert found["sweep"]["beta"] == [0.0, 1.0, 9.0]
    assert found["modality"]["network_options"] == {"widths": [16]}
    assert found == json.loads(json.dumps(finished.config.to_dict()))


def test_metrics_lines(finished):
    text = (finished.workdir / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    lines = [strictly(line) for line in text.splitlines()]
    betas = (0.0, 1.0, 9.0)
    for line in lines:
        assert line["beta"] == betas[line["member"]] and line["seed"] == 0
        assert math.isfinite(line["learning_rate"])
    trained = [(x["step"], x["member"]) for x in lines if "train/loss" in x]
    assert trained == [(step, k) for step in range(4, 25, 4) for k in range(3)]
    evaluated = [(x["step"], x["member"]) for x in lines if "eval/elbo" in x]
    assert evaluated == [(step, k) for step in (12, 24) for k in range(3)]
    assert len(lines) == len(trained) + len(evaluated)
    for line in lines:
        if "train/loss" in line:
            terms = line["train/elbo"], line["train/kl"]
            loss = -(terms[0] + terms[1]) + line["beta"] * terms[1]
            assert line["train/loss"] == pytest.approx(loss, rel=1e-4)
            assert line["train/finite"] is True
            likelihoods = [line[f"train/log_likelihood/m{m}"] for m in (0, 1)]
            total = sum(likelihoods) - line["train/kl"]
            assert line["train/elbo"] == pytest.approx(total, rel=1e-4)


def test_summary(finished):
    summary = strictly((finished.workdir / "summary.json").read_text())
    assert summary["model"] == "mopoe"
    assert summary["dataset"] == "polymnist/sklearn-m2-8px-seed0"
    assert summary["num_steps"] == 24
    assert summary["wall_seconds"] > 0
    assert 0 < summary["step_seconds"] < summary["wall_seconds"]
    # The first call, of one step, compiles.
    assert summary["timed_steps"] == 23 and summary["undefined"] == {}
    mean = summary["training_seconds"] / 23
    assert mean == pytest.approx(summary["step_seconds"], rel=1e-6)
    assert f"{summary['num_parameters']:,} parameters" in finished.stdout
    assert isinstance(summary["device"], str) and summary["device"]
    assert [m["beta"] for m in summary["members"]] == [0.0, 1.0, 9.0]
    lines = log.read_metrics(finished.workdir / "metrics.jsonl")
    for k, member in enumerate(summary["members"]):
        assert member["seed"] == 0 and member["finite"] is True
        values = member["metrics"]
        assert values.keys() >= TAGS
        assert all(tag.startswith("eval/") for tag in values)
        assert all(isinstance(value, float) for value in values.values())
        last = [x for x in lines if x["member"] == k and "eval/elbo" in x][-1]
        assert last["step"] == 24
        assert {tag: last[tag] for tag in values} == values
        assert values["eval/classifier_accuracy/m0"] > 0.2


def test_members_differ_as_beta_says(finished):
    summary = json.loads((finished.workdir / "summary.json").read_text())
    kl = [member["metrics"]["eval/kl"] for member in summary["members"]]
    assert kl[0] > kl[1] > kl[2]


def test_samples(finished):
    folder = finished.workdir / "samples"
    names = {path.name for path in folder.iterdir()}
    kinds = ("prior", "m0_given_m1", "m1_given_m0", "traversal")
    assert names == {f"{m}_{kind}.png" for m in MEMBER_NAMES for kind in kinds}
    for name in MEMBER_NAMES:
        with Image.open(folder / f"{name}_prior.png") as image:
            assert image.mode == "RGB" and image.size == (20 * 8, 2 * 8)
            assert len(np.unique(np.asarray(image))) > 10
        for kind in kinds[1:3]:
            with Image.open(folder / f"{name}_{kind}.png") as image:
                assert image.mode == "RGB" and image.size == (10 * 8, 11 * 8)


def test_tensorboard(finished):
    folders = sorted((finished.workdir / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == MEMBER_NAMES
    for folder in folders:
        found = [entry for path in folder.iterdir() for entry in read_events(path)]
        assert {tag for step, tag, _ in found if step == 24} >= TAGS | {"train/loss"}
        assert {step for step, tag, _ in found if tag == "train/loss"} == set(
            range(4, 25, 4)
        )
        assert {tag for _, tag, is_image in found if is_image} == {
            "prior",
            "m0_given_m1",
            "m1_given_m0",
            "traversal",
        }


@pytest.mark.parametrize(("code", "is_named"), [(0, True), (1, True), (130, False)])
def test_the_command_of_its_page_is_named(
    code, is_named, tmp_path, monkeypatch, capsys
):
    given = MagicMock(workdir=str(tmp_path / "a run"))
    monkeypatch.setattr(run, "flags", MagicMock(FLAGS=given))
    for name in ("command", "config_flags", "processes"):
        monkeypatch.setattr(run, name, MagicMock())
    run.config_flags.get_config_filename.return_value = "c.py"
    monkeypatch.setattr(run.session, "train_and_evaluate", lambda *_: code)
    assert run.main() == code
    line = f"python -m experiments.report --directory='{tmp_path}/a run'"
    assert (line in capsys.readouterr().out) == is_named


def test_table(finished):
    lines = finished.stdout.splitlines()
    assert "mapped by map" in lines[0] and "3 members" in lines[0]
    header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["beta"])
    for word in ("coherence", "Frechet (clf)", "SWD", "ELBO", "log-lik.", "probe"):
        assert word in lines[header]
    assert [row.split()[0] for row in lines[header + 2 : header + 5]] == ["0", "1", "9"]
    assert str(finished.workdir) in lines[-1]


def test_one_program_is_compiled(finished):
    # The first is the run's; that of the classifiers follows, unless they were
    # found. Both serve calls of different lengths.
    assert finished.compiled and all(size == 1 for size in finished.compiled)


def test_a_finished_run_is_only_shown(finished, run_here, contents):
    before = contents(finished.workdir)
    times = {p: os.stat(finished.workdir / p).st_mtime_ns for p in before}
    code, stdout = run_here(finished.config, finished.workdir)
    assert code == 0
    assert contents(finished.workdir) == before
    assert {p: os.stat(finished.workdir / p).st_mtime_ns for p in before} == times
    table = finished.stdout.splitlines()[-7:]
    assert stdout.splitlines()[-7:] == table
    assert "is finished" in stdout.splitlines()[0]


@pytest.mark.slow
def test_all_members_diverged(smoke_config, run_here, tmp_path):
    changes = {
        "sweep.beta": (1e37, 1e38, 3e38),
        "train.num_steps": 10_000,
        "train.eval_every_steps": 0,
    }
    code, stdout = run_here(smoke_config("mopoe", changes), tmp_path / "run")
    assert code == 1
    assert stdout.count("has diverged") == 3
    # Nobody waits for 10,000 steps that change nothing.
    assert stdout.count("all members have diverged by step 4: training ends") == 1
    summary = strictly((tmp_path / "run" / "summary.json").read_text())
    assert [member["finite"] for member in summary["members"]] == [False] * 3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    trained = [strictly(line) for line in lines]
    assert not any(x["train/finite"] for x in trained if "train/loss" in x)
    assert max(x["step"] for x in trained) < 100
    assert any(x.get("train/loss", 0) is None for x in trained)


@pytest.mark.slow
def test_a_diverged_member_touches_no_other(smoke_config, finished, run_here, tmp_path):
    config = smoke_config("mopoe", {"sweep.beta": (0.0, 1e38, 9.0)})
    code, stdout = run_here(config, tmp_path / "run")
    assert code == 0
    assert stdout.count("has diverged") == 1 and "beta=1e+38" in stdout
    mixed = strictly((tmp_path / "run" / "summary.json").read_text())["members"]
    alone = strictly((finished.workdir / "summary.json").read_text())["members"]
    assert [member["finite"] for member in mixed] == [True, False, True]
    assert mixed[0] == alone[0] and mixed[2] == alone[2]


def test_checkpoints_that_take_much_of_the_time_bring_advice():
    """A second for each of 2,340 steps of 0.6 ms: 1 of 2.4 seconds."""
    line = session.saving_advice([1.0] * 20, 2_340, 0.0006)
    assert line.startswith("saving checkpoints took 42% of the training time; with ")
    assert line.endswith("--config.train.checkpoint_every_steps=33334 it is 5%")
    assert not session.saving_advice([1.0] * 20, 33_334, 0.0006)
    assert not session.saving_advice([1.0] * 9, 2_340, 0.0006)  # seconds in all
    assert not session.saving_advice([1.0] * 20, 2_340, None)
    assert not session.saving_advice([], 2_340, 0.0006)
