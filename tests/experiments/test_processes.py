"""Several processes that make up one run: two of two devices each, on this machine."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.running.processes import (
    connect,
    end_after_a_loss,
    exchange,
    is_first,
    run_first_then_others,
    run_on_first,
    silence_others,
)
from mmvae_jax.errors import UsageError

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).resolve().parents[2]
NUM_PROCESSES, DEVICES_EACH = 2, 2
START = """
import runpy, sys
{first}
sys.argv = ["experiments.run", *sys.argv[1:]]
runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)
"""
# After the log of this step, the process gets a signal.
SIGNALLED = """
import os, signal
from mmvae_jax.interface import progress
update = progress.ProgressBar.update
def update_and_stop(self, step, seconds, is_first):
    update(self, step, seconds, is_first)
    if step >= 8 and not getattr(self, "is_stopped", False):
        self.is_stopped = True
        os.kill(os.getpid(), signal.{name})
progress.ProgressBar.update = update_and_stop
"""
# The same while a member is evaluated, or classifiers are trained; says when.
EVALUATED = """
import os, signal, sys, threading, time
from mmvae_jax.evaluation import evaluate
from mmvae_jax.evaluation.judges import training
once = threading.Lock()
def stopping(do):
    def stop_and_do(*arguments, **options):
        if once.acquire(blocking=False):
            print("signalled", time.monotonic(), file=sys.__stderr__, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
        return do(*arguments, **options)
    return stop_and_do
{place} = stopping({place})
"""
PLACES = {
    "evaluation": "evaluate.evaluate_member",
    "classifiers": "training.fit_members",
}

# A disk that fails for one process, after both have read their parts.
UNREADABLE = """
from mmvae_jax.training import checkpoints
require = checkpoints._require_digest
def require_or_fail(content):
    require(content)
    if int(content["state"].step.addressable_shards[0].data[0]) == {step}:
        raise ValueError("the disk has failed")
checkpoints._require_digest = require_or_fail
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((False, "", 2, -1), "--num_processes and --process_id need --coordinator"),
        ((True, "", 0, 0), "--num_processes and --process_id need --coordinator"),
        ((False, "localhost:1", 0, -1), "--coordinator needs --num_processes >= 1"),
        ((False, "localhost:1", 2, 2), r"0\.\.num_processes - 1, got 2 and 2"),
    ],
)
def test_contradictory_flags(arguments, message):
    with pytest.raises(UsageError, match=message):
        connect(*arguments)


def test_no_cluster_is_one_line(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match="did not find one another .* --coordinator"):
        connect(True, "", 0, -1)


def test_one_process_does_everything_itself(capsys):
    connect(False, "", 0, -1)
    assert is_first()
    assert exchange({"a": 1}) == [{"a": 1}]
    assert run_on_first(lambda: 5) == 5
    calls = []
    assert run_first_then_others(lambda: calls.append(None) or len(calls)) == 1
    with pytest.raises(UsageError, match="^mine$"):
        run_on_first(lambda: (_ for _ in ()).throw(UsageError("mine")))
    with silence_others():
        print("heard")
    assert capsys.readouterr().out == "heard\n"
    error = jax.errors.JaxRuntimeError("INTERNAL: mine")
    with pytest.raises(jax.errors.JaxRuntimeError, match="mine"):
        end_after_a_loss(error)


# Of which JAX takes one for each number of a SLURM job.
SLURM_PORTS = range(2**16 - 2**12, 2**16)


def free_port(candidates):
    """The first of some ports that is free; 0 is any."""
    for port in candidates:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return free.getsockname()[1]
    raise OSError("no port is free")


def slurm(port, num, i):
    """What `srun --ntasks=NUM` on this machine tells its task `i`."""
    return {
        "SLURM_JOB_ID": str(SLURM_PORTS.index(port)),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(num),
        "SLURM_PROCID": str(i),
        "SLURM_LOCALID": str(i),
    }


@pytest.fixture(scope="module")
def start(data_dir, cache, tmp_path_factory):
    """(flags, code of process 0, of process 1, ...) -> their outcomes, seconds."""
    folder = tmp_path_factory.mktemp("processes")

    def run_all(flags, *firsts, devices=DEVICES_EACH, limit=400, is_slurm=False):
        num, port = len(firsts), free_port(SLURM_PORTS if is_slurm else [0])
        processes = []
        with contextlib.ExitStack() as stack:
            for i, first in enumerate(firsts):
                streams = [folder / f"{port}.{i}.{name}" for name in ("out", "err")]
                out, err = (stack.enter_context(open(path, "w")) for path in streams)
                told, environment = [], {}
                if is_slurm:
                    told, environment = ["--distributed"], slurm(port, num, i)
                elif num > 1:
                    told = [f"--coordinator=localhost:{port}", f"--process_id={i}"]
                    told.append(f"--num_processes={num}")
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        START.format(first=first),
                        "--config=configs/smoke.py",
                        f"--config.data.data_dir={data_dir}",
                        "--config.train.steps_per_call=2",
                        "--config.eval.metrics=('elbo', 'coherence')",
                        *flags,
                        *told,
                    ],
                    stdout=out,
                    stderr=err,
                    cwd=ROOT,
                    env={
                        **os.environ,
                        "PYTHONPATH": str(ROOT),
                        "JAX_NUM_CPU_DEVICES": str(devices),
                        **cache,
                        **environment,
                    },
                )
                processes.append((process, streams))
                stack.callback(process.kill)
            ends = {}
            deadline = time.monotonic() + limit
            while len(ends) < len(processes) and time.monotonic() < deadline:
                for i, (process, _) in enumerate(processes):
                    if i not in ends and process.poll() is not None:
                        ends[i] = time.monotonic()
                time.sleep(0.1)
        outcomes = [
            (process.returncode, *(path.read_text() for path in streams))
            for process, streams in processes
        ]
        return outcomes, ends

    return run_all


# Divided over all four devices: each process has two members.
MEMBERS = "--config.sweep.beta=(0.0, 1.0, 3.0, 9.0)"
# Not divided: all four devices have a part of each batch.
BATCHES = "--config.sweep.beta=(0.0, 1.0, 9.0)"


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """Flags of the sweep -> the workdir of one process on one device."""
    root, workdirs = tmp_path_factory.mktemp("alone"), {}

    def run_alone(*members):
        if members not in workdirs:
            workdirs[members] = root / str(len(workdirs))
            flags = (f"--workdir={workdirs[members]}", *members)
            ((code, _, err),), _ = start(flags, "", devices=1)
            assert code == 0, err
        return workdirs[members]

    return run_alone


def lines_of(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def said(text):
    """What a process wrote itself, without what its libraries do."""
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


@pytest.mark.slow
def test_two_processes_leave_the_bits_of_one(start, alone, tmp_path, last_state):
    workdir, one = tmp_path / "run", alone(MEMBERS)
    outcomes, _ = start((f"--workdir={workdir}", MEMBERS), "", "")
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert "4 members on 4 devices: 4 x 1 (cpu)" in outcomes[0][1]
    # One set of logs, one checkpoint of both, one voice.
    assert not said(outcomes[1][1])
    assert (workdir / "metrics.jsonl").read_text() == (
        one / "metrics.jsonl"
    ).read_text()
    for folder in (workdir / "tensorboard").iterdir():
        assert len(list(folder.iterdir())) == 1
    (step, state), (expected_step, expected) = last_state(workdir), last_state(one)
    assert step == expected_step == 24
    jax.tree.map(np.testing.assert_array_equal, state["state"], expected["state"])
    found, wanted = (
        json.loads((folder / "summary.json").read_text()) for folder in (workdir, one)
    )
    assert found["members"] == wanted["members"]
    for path in (one / "samples").iterdir():
        assert (workdir / "samples" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_processes_find_one_another_as_slurm_tells_them(start, alone, tmp_path):
    workdir, one = tmp_path / "run", alone(MEMBERS)
    outcomes, _ = start((f"--workdir={workdir}", MEMBERS), "", "", is_slurm=True)
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert "4 members on 4 devices: 4 x 1 (cpu)" in outcomes[0][1]
    assert lines_of(workdir) == lines_of(one)


@pytest.mark.slow
def test_a_member_that_diverges_does_so_alone(start, alone, tmp_path):
    """One of the members of each process; the first one says so."""
    members = "--config.sweep.beta=(0.0, 1.0)", "--config.sweep.learning_rate=({})"
    rates = [members[1].format(rates) for rates in ("1e-3, 1e30", "1e-3,")]
    workdir, one = tmp_path / "run", alone(members[0], rates[0])
    outcomes, _ = start((f"--workdir={workdir}", members[0], rates[0]), "", "")
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    said_by = [out.count("has diverged by step") for _, out, _ in outcomes]
    assert said_by == [2, 0]
    text = (workdir / "metrics.jsonl").read_text()
    assert text == (one / "metrics.jsonl").read_text()
    # Without those that diverge, the others have the same numbers.
    healthy = {}
    for line in lines_of(alone(members[0], rates[1])):
        healthy.setdefault((line["step"], line["beta"]), {}).update(line)
    found = [line for line in lines_of(workdir) if line["learning_rate"] == 1e-3]
    assert len(found) > 4
    for line in found:
        expected = healthy[line["step"], line["beta"]]
        assert {**expected, **line, "member": 0} == {**expected, "member": 0}


@pytest.mark.slow
def test_two_processes_share_batches(start, alone, tmp_path):
    workdir, one = tmp_path / "run", alone(BATCHES)
    outcomes, _ = start((f"--workdir={workdir}", BATCHES), "", "")
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert "3 members on 4 devices: 1 x 4 (cpu)" in outcomes[0][1]
    for line, expected in zip(lines_of(workdir), lines_of(one), strict=True):
        assert line.keys() == expected.keys()
        for tag in ("step", "member", "train/loss", "eval/elbo"):
            if tag in line:
                assert line[tag] == pytest.approx(expected[tag], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_all_stop_when_one_is_told_to(stopped, start, alone, tmp_path):
    workdir, one = tmp_path / "run", alone(MEMBERS)
    flags = (f"--workdir={workdir}", MEMBERS)
    firsts = ["", ""]
    firsts[stopped] = SIGNALLED.format(name="SIGTERM")
    outcomes, _ = start(flags, *firsts)
    assert [code for code, _, _ in outcomes] == [128 + signal.SIGTERM] * 2, outcomes
    assert said(outcomes[0][1])[-1] == (
        "SIGTERM: saved; the same command continues this run"
    )
    assert not any("Traceback" in err for _, _, err in outcomes)
    # What two processes have saved, one continues, and two do.
    firsts, devices = (("", ""), DEVICES_EACH) if stopped else (("",), 1)
    resumed, _ = start(flags, *firsts, devices=devices)
    assert all(code == 0 for code, _, _ in resumed), resumed
    assert "resuming" in resumed[0][1]
    assert (workdir / "metrics.jsonl").read_text() == (
        one / "metrics.jsonl"
    ).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "stopped"), [("evaluation", 0), ("evaluation", 1), ("classifiers", 0)]
)
def test_all_stop_within_an_evaluation(place, stopped, start, tmp_path):
    flags = (f"--workdir={tmp_path / 'run'}", MEMBERS)
    flags += (f"--config.classifier.num_steps={70 + stopped}",)  # none is there yet
    firsts = ["", ""]
    firsts[stopped] = EVALUATED.format(place=PLACES[place])
    outcomes, ends = start(flags, *firsts)
    assert [code for code, _, _ in outcomes] == [128 + signal.SIGTERM] * 2, outcomes
    (moment,) = re.findall(r"signalled (\S+)\n", outcomes[stopped][2])
    assert max(ends.values()) - float(moment) < 30
    assert not any("Traceback" in err for _, _, err in outcomes)
    resumed, _ = start(flags, "", "")
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    assert "resuming" in resumed[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["both", "one"])
def test_a_damaged_checkpoint_is_passed_over_by_all(who, start, tmp_path):
    """Also where the disk fails for one of them alone: the other must not wait."""
    workdir = tmp_path / "run"
    flags = (f"--workdir={workdir}", MEMBERS, "--config.train.checkpoint_every_steps=4")
    stopped, _ = start(flags, SIGNALLED.format(name="SIGTERM"), "")
    assert [code for code, _, _ in stopped] == [128 + signal.SIGTERM] * 2, stopped
    folder = workdir / "checkpoints"
    steps = sorted(int(path.name) for path in folder.iterdir())
    newest = folder / str(steps[-1])
    if who == "both":
        for path in newest.rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    firsts = ["", UNREADABLE.format(step=newest.name) if who == "one" else ""]
    outcomes, _ = start(flags, *firsts)
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert f"resuming {workdir} at step {steps[-2]}\n" in outcomes[0][1]
    assert (folder / f"{newest.name}.damaged").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_dies_the_other_ends(killed, start, tmp_path):
    flags = (f"--workdir={tmp_path / 'run'}", MEMBERS, "--config.train.num_steps=9999")
    firsts = ["", ""]
    firsts[killed] = SIGNALLED.format(name="SIGKILL")
    outcomes, ends = start(flags, *firsts)
    assert outcomes[killed][0] == -signal.SIGKILL
    code, _, err = outcomes[1 - killed]
    assert code not in (0, None), err
    assert abs(ends[0] - ends[1]) < 60
    assert "a process of this run is gone" in err or "another task died" in err


@pytest.mark.slow
def test_a_mistake_ends_all_processes(start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("mine")
    outcomes, _ = start((f"--workdir={tmp_path / 'run'}", MEMBERS), "", "")
    for code, _, err in outcomes:
        assert code == 2, err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert line.endswith("holds files, but no run; choose another --workdir")
