"""The plan of `make bench-gpu`: limits, what a cut leaves, how many steps are asked."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from experiments.judging.paper import PUBLISHED_COHERENCE
from mmvae_jax.errors import UsageError

pytest_plugins = ("run_fixtures",)

SLEEP = "import time; time.sleep(60)"
# Answers SIGTERM by some code, and says by a file that it is ready.
ANSWERS = (
    "import pathlib, signal, sys, time; signal.signal(15, lambda *_: {answer}); "
    "pathlib.Path({path!r}).touch(); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Seconds of fake commands, not of trainings."""
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "LEAST", 0.2)


@pytest.fixture
def make_plan(tmp_path):
    """(seconds, options) -> a plan in an empty folder."""

    def build(seconds=20.0, **changes):
        arguments = ["--out", str(tmp_path / "out"), "--limit", str(seconds)]
        options = gpu.parse(arguments)
        for name, value in changes.items():
            setattr(options, name, value)
        folder = tmp_path / "out"
        (folder / "logs").mkdir(parents=True)
        return gpu.Plan(folder, options, time.monotonic() + seconds, {"stages": []})

    return build


def stage(name, limit, *codes, **fields):
    """A stage of commands `python -c CODE`."""
    names = [name, *(f"{name}_{i}" for i in range(1, len(codes)))]
    commands = {x: ["-c", code] for x, code in zip(names, codes, strict=True)}
    return gpu.Stage("smoke", name, limit, lambda plan, limit: commands, **fields)


def written(plan):
    return json.loads((plan.folder / "gpu.json").read_text())


def test_a_stage_leaves_its_rows_its_log_and_its_end(make_plan):
    plan = make_plan()
    path = plan.folder / "first.json"
    code = f"open({str(path)!r}, 'w').write('{{\"rows\": [1]}}'); print('said')"
    gpu.run(plan, stage("first", 10, code, "import sys; print('why'); sys.exit(3)"))
    first, second = written(plan)["stages"]
    assert first["outcome"] == "finished" and first["exit_code"] == 0
    assert first["result"] == "first.json" and first["found"] == {"rows": [1]}
    assert str(plan.folder) not in first["command"]
    assert (plan.folder / "logs" / "first.log").read_text() == "said\n"
    assert second["outcome"] == "failed" and second["exit_code"] == 3
    assert second["end of the log"] == ["why"]


def test_no_limit_exceeds_what_is_left(make_plan):
    plan = make_plan(4.0)
    start = time.monotonic()
    gpu.run(plan, stage("long", 100, SLEEP, "pass"))
    gpu.run(plan, stage("later", 100, SLEEP))
    assert time.monotonic() - start < 4.0
    long, beside, later = written(plan)["stages"]
    assert long["outcome"] == "cut" and long["exit_code"] == -signal.SIGTERM
    assert 3.0 < long["limit"] <= 3.5 and beside["outcome"] == "finished"
    # What is left is less than the seconds between both signals.
    assert later == {"name": "later", "left out": "no time left"}


def test_sigkill_follows_sigterm(make_plan, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 2.0)
    plan = make_plan()
    path = plan.folder / "ready"
    code = ANSWERS.format(answer="print('no', flush=True)", path=str(path))
    gpu.run(plan, stage("stubborn", 15, code, until=path))
    (found,) = written(plan)["stages"]
    assert found["outcome"] == "cut" and found["exit_code"] == -signal.SIGKILL
    assert found["end of the log"] == ["no"]


def test_seconds_are_reserved_for_the_next_stage(make_plan):
    plan = make_plan(5.0)
    gpu.run(plan, stage("first", 100, "pass", reserve=3.0))
    (found,) = written(plan)["stages"]
    assert found["limit"] <= 1.5


def test_a_command_is_stopped_when_its_file_appears(make_plan):
    plan = make_plan()
    path = plan.folder / "saved"
    code = ANSWERS.format(answer="sys.exit(143)", path=str(path))
    gpu.run(plan, stage("saved", 10, code, until=path))
    gpu.run(plan, stage("ended", 10, "pass", until=plan.folder / "never"))
    stopped, ended = written(plan)["stages"]
    assert stopped["outcome"] == "finished" and stopped["exit_code"] == 143
    assert ended["outcome"] == "failed"  # it was not stopped


def test_a_cut_call_leaves_its_json_and_no_process(tmp_path):
    out, mark = tmp_path / "out", tmp_path / "pid"
    sleeping = f"import os; open({str(mark)!r}, 'w').write(str(os.getpid())); {SLEEP}"
    code = f"""
import sys
from benchmarks import gpu
def only(name, code):
    return gpu.Stage("smoke", name, 60, lambda plan, limit: {{name: ["-c", code]}})
gpu.stages = lambda *_: [only("first", "pass"), only("second", {sleeping!r})]
gpu.name_device = lambda plan: None
gpu.command.call(gpu.main)
"""
    call = [sys.executable, "-c", code, "--out", str(out), "--stages", "smoke"]
    process = subprocess.Popen(call, cwd=gpu.ROOT, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (mark.exists() and mark.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()
    found = json.loads((out / "gpu.json").read_text())
    assert [x["name"] for x in found["stages"]] == ["first"]
    assert found["running"] == ["second"]
    assert "what was measured is in" in process.stdout.read()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


# Published runs.


@pytest.mark.parametrize(
    ("seconds", "limit", "expected"),
    [
        (0.001, 190, 70_200),  # all of them
        (0.002, 175, 50_000),
        (0.5, 75, 0),
        (0.5, 10, 0),
        (None, 190, 70_200),  # not measured: a cut ends it
    ],
)
def test_steps_follow_from_the_time_of_one(seconds, limit, expected):
    assert gpu.num_steps(70_200, seconds, limit, 75.0) == expected


def test_published_runs_ask_for_what_the_stage_step_allows(make_plan):
    plan = make_plan()

    def asked(model, limit):
        ((name, arguments),) = gpu.train_published(plan, model, limit).items()
        assert name == f"published_{model}"
        (steps,) = [x for x in arguments if "num_steps" in x and "train" in x]
        return int(steps.partition("=")[2])

    assert asked("mopoe", 190) == 70_200
    rows = [{"model": "mopoe", "seconds": 0.01}, {"model": "mvtcae", "seconds": 0.02}]
    (plan.folder / "step.json").write_text(json.dumps({"rows": rows}))
    assert asked("mopoe", 175) == 10_000
    assert asked("mvtcae", 175) == asked("mmvae", 175) == 5_000
    assert "no time" in gpu.train_published(plan, "mopoe", 60)


def finish(plan, array_run, model, values):
    """A published run that has ended with these coherences."""
    workdir = plan.folder / "runs" / f"published_{model}"
    shutil.copytree(array_run, workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    for k, value in enumerate(values, 1):
        summary["members"][0]["metrics"][f"eval/coherence/size_{k}"] = value
    summary["step_seconds"] = 0.5
    (workdir / "summary.json").write_text(json.dumps(summary))
    return workdir


def test_a_finished_run_is_reported_and_loses_its_checkpoints(make_plan, array_run):
    plan = make_plan()
    workdir = finish(plan, array_run, "mopoe", (0.1, 0.2, 0.3, 0.4))
    gpu.run(plan, stage("published_mopoe", 10, "pass"))
    found = written(plan)["published"]["mopoe"]
    assert found["coherence given 1 to 4"] == [0.1, 0.2, 0.3, 0.4]
    assert tuple(found["published, 300 epochs"]) == PUBLISHED_COHERENCE["mopoe"]
    assert found["num_steps"] == 20 and found["epochs"] == round(20 / 234, 1)
    assert not (workdir / "checkpoints").exists()
    assert gpu.evaluate_published(plan, "mopoe") == ""
    (record,) = plan.report["stages"]
    record["seconds"] = 40.0
    assert gpu.overhead(plan) == pytest.approx(30.0)


def test_a_cut_run_keeps_its_checkpoint_and_is_evaluated(make_plan, array_run):
    plan = make_plan()
    assert gpu.evaluate_published(plan, "mvtcae") == ""  # nothing is saved
    workdir = finish(plan, array_run, "mvtcae", ())
    (workdir / "summary.json").unlink()
    gpu.run(plan, stage("published_mvtcae", 10, "raise SystemExit(143)"))
    assert written(plan)["published"] == {}
    assert (workdir / "checkpoints").exists()
    ((_, arguments),) = gpu.evaluate_published(plan, "mvtcae").items()
    assert f"--workdir={workdir}" in arguments and "experiments.evaluate" in arguments
    line = {"step": 20, "date": "2026-11-28"}
    line |= {f"eval/coherence/size_{k}": k / 10 for k in range(1, 5)}
    with open(workdir / "metrics.jsonl", "a") as lines:
        lines.write(json.dumps(line) + "\n")
    gpu.write(plan)
    found = written(plan)["published"]["mvtcae"]
    assert found["coherence given 1 to 4"] == [0.1, 0.2, 0.3, 0.4]


# The smoke stage compares the ends of two runs.


def test_the_same_end_is_of_the_same_bits(array_run, array_config, run_here, tmp_path):
    shutil.copytree(array_run, tmp_path / "copy")
    assert gpu.same_end(array_run, tmp_path / "copy")
    run_here(array_config({"train.data_seed": 1}), tmp_path / "other")
    assert not gpu.same_end(array_run, tmp_path / "other")


# Flags.


def test_every_stage_has_a_command_that_exists(make_plan):
    plan = make_plan()
    groups = set()
    for tiny in (False, True):
        for own in gpu.stages(plan.folder, gpu.MODELS, tiny):
            groups.add(own.group)
            for arguments in (own.commands(plan, 100) or {}).values():
                if arguments[0] == "-m":
                    path = Path(*arguments[1].split(".")).with_suffix(".py")
                    assert (gpu.ROOT / path).exists()
                    assert "bench" not in shlex.join(arguments[2:])
    assert groups == set(plan.options.stages)


def test_wrong_flags_end_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    for flags in (["--stages", "steps"], ["--models", "mvaes"], ["--limit", "x"]):
        with pytest.raises(SystemExit) as ended:
            gpu.parse(["--out", str(tmp_path / "out"), *flags])
        assert ended.value.code == 2
    assert "unknown 'steps'; choose of smoke" in capsys.readouterr().err
    monkeypatch.setattr(gpu, "name_device", lambda plan: pytest.fail("measured"))
    for flags, reason in (
        (["--out", str(tmp_path)], "exists"),
        (["--out", str(tmp_path / "out"), "--digits_dir", "none"], "not a folder"),
    ):
        monkeypatch.setattr("sys.argv", ["gpu", *flags])
        with pytest.raises(UsageError, match=reason):
            gpu.main()
    assert not (tmp_path / "out").exists()


def test_a_machine_without_a_gpu_is_told_so(make_plan):
    plan = make_plan(60.0)
    with pytest.raises(UsageError, match="no GPU here"):
        gpu.name_device(plan)
    assert written(plan)["machine"].startswith("1 x cpu")
