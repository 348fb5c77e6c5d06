"""A run that is killed again and again ends in the bits of an unbroken one.

Every start is a process of its own, forked from one that has imported everything, and
killed by SIGKILL: at a moment of its processor time, at an operation on the files of
its working directory or of its data, or shortly after. All moments are drawn from
seeds.
"""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from kill_points import AFTER_A_CHECKPOINT

pytest_plugins = ("run_fixtures",)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a clock of another process"),
]

# Kills the process at one of its operations on the files of a folder, or so many
# seconds later, when other threads have gone on; and notes each operation in a file.
AT_AN_OPERATION = """
import os, signal, sys, threading
left = {number}
notes = os.open({notes!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def count(event, arguments):
    global left
    if event == "open":
        if not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event not in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        return
    if not any(str(path).startswith({folder!r} + "/") for path in arguments[:2]):
        return
    os.write(notes, b".")
    left -= 1
    if left == 0:
        threading.Timer({delay}, kill).start() if {delay} else kill()
sys.addaudithook(count)
"""
ROOT = Path(__file__).resolve().parents[2]
KILLED = -signal.SIGKILL
# Seconds of processor time before which a process may not have begun to catch signals.
FIRST_SECONDS = 0.5
KILLS_A_CHAIN = 10
# Where the moments are drawn from, and the seeds of the chains.
CHAINS = [
    ("time", 0),
    ("time", 1),
    ("workdir", 0),
    ("workdir", 1),
    ("data", 0),
]


def flags_of(workdir, data_dir):
    """A run with many checkpoints, and evaluations between."""
    return [
        "--config=configs/smoke.py",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        "--config.train.num_steps=48",
        "--config.train.checkpoint_every_steps=5",
        "--config.train.steps_per_call=2",
        "--config.eval.metrics=('elbo',)",
    ]


@pytest.fixture(scope="module")
def server(make_server):
    return make_server()


class Unbroken(NamedTuple):
    workdir: Path
    data_dir: Path
    seconds: float  # of processor time, when everything has been compiled before
    num_operations: dict  # folder -> operations on its files


@pytest.fixture(scope="module")
def unbroken(server, tmp_path_factory, assert_same_end):
    """Two runs that nothing interrupts, which differ in nothing."""
    root = tmp_path_factory.mktemp("unbroken")
    workdirs, num_operations = [], {}
    for name in ("data", "workdir"):  # the second run finds the data
        workdirs.append(root / f"{name}_run")
        folder = {"data": root / "data", "workdir": workdirs[-1]}[name]
        notes = root / f"{name}.notes"
        first = AT_AN_OPERATION.format(
            number=0, notes=str(notes), folder=str(folder), delay=0
        )
        outcome, seconds = server.start(flags_of(workdirs[-1], root / "data"), first)
        assert outcome.code == 0, outcome.stderr
        num_operations[name] = notes.stat().st_size
    assert_same_end(*workdirs)
    return Unbroken(workdirs[0], root / "data", seconds, num_operations)


def draw(kind, rng, unbroken, workdir, data_dir, notes):
    """(code to execute first, (signal, seconds)) of a process that will be killed."""
    if kind == "time":
        seconds = rng.uniform(0.1, 1.0) * unbroken.seconds
        return "", (signal.SIGKILL, seconds)
    first = AT_AN_OPERATION.format(
        number=rng.randint(1, unbroken.num_operations[kind]),
        notes=str(notes),
        folder=str({"workdir": workdir, "data": data_dir}[kind]),
        delay=rng.choice([0, rng.uniform(0, 0.05)]),
    )
    return first, ()


def what_is_half_done(workdir, data_dir):
    """Where a kill has struck, by what it has left."""
    if any(workdir.glob("checkpoints/*tmp*")):
        return "in a save"
    if list(workdir.glob("*.partial")):
        return "in a file of the run"
    if list(data_dir.rglob("incomplete.*")):
        return "in the preparation of the data"
    return "elsewhere"


@pytest.mark.parametrize(("kind", "seed"), CHAINS)
def test_killed_runs(kind, seed, server, unbroken, assert_same_end, tmp_path):
    rng = random.Random(f"{kind} {seed}")
    kills, num_starts, finished = [], 0, 0
    while len(kills) < KILLS_A_CHAIN:
        workdir = tmp_path / f"run{finished}"
        data_dir = tmp_path / f"data{finished}" if kind == "data" else unbroken.data_dir
        while True:
            first, at = "", ()
            if len(kills) < KILLS_A_CHAIN:
                first, at = draw(
                    kind, rng, unbroken, workdir, data_dir, tmp_path / "notes"
                )
            outcome, _ = server.start(flags_of(workdir, data_dir), first, at)
            num_starts += 1
            assert num_starts <= 4 * KILLS_A_CHAIN
            if outcome.code == 0:
                break
            assert outcome.code == KILLED, outcome.stderr
            kills.append(what_is_half_done(workdir, data_dir))
        finished += 1
        assert_same_end(workdir, unbroken.workdir)
        # Nothing is left of what was cut off, and nothing was taken for damaged.
        left = sorted(path.name for path in (workdir / "checkpoints").iterdir())
        assert left == ["45", "48"]
        assert {path.name for path in workdir.iterdir()} == {
            path.name for path in unbroken.workdir.iterdir()
        }
        assert not list(data_dir.rglob("incomplete.*"))
    print(kind, seed, "kills", kills, "starts", num_starts, "finished", finished)
    assert kind != "data" or "in the preparation of the data" in kills
    assert kind != "workdir" or "in a save" in kills


# Signals that ask for an end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_answered_in_time(
    number, server, unbroken, assert_same_end, tmp_path
):
    """Within ten seconds of processor time, that is on a machine with nothing else."""
    rng = random.Random(number)
    flags = flags_of(tmp_path / "run", unbroken.data_dir)
    num_answered = 0
    for _ in range(4):
        at = (number, rng.uniform(FIRST_SECONDS, 0.6 * unbroken.seconds))
        outcome, seconds = server.start(flags, "", at)
        if (tmp_path / "run" / "summary.json").exists():
            break
        num_answered += 1
        assert outcome.code == 128 + number, outcome.stderr
        assert seconds < 10
        name = signal.Signals(number).name
        assert f"{name}: saving, then stopping\n" in outcome.stdout
        assert outcome.stdout.splitlines()[-1] == (
            f"{name}: saved; the same command continues this run"
        )
        assert "Traceback" not in outcome.stderr
    assert num_answered > 0
    assert server.start(flags)[0].code == 0
    assert_same_end(tmp_path / "run", unbroken.workdir)


# What takes long while there is nothing to save: it must not be waited for.
LONG = {
    "an evaluation": """
import time
from mmvae_jax.evaluation import evaluate
evaluate.evaluate_member = lambda *arguments: print("done", time.sleep(60))
""",
    "the preparation of the data": """
import time
from experiments.running import datasets
datasets._build = lambda *arguments: print("done", time.sleep(60))
""",
}
SIGNAL_SOON = """
import os, signal, threading, time
sleep = time.sleep
def sleep_and_be_stopped(seconds):
    if seconds == 60:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    sleep(seconds)
time.sleep = sleep_and_be_stopped
"""


@pytest.mark.parametrize("name", LONG)
def test_a_signal_ends_what_takes_long(
    name, server, unbroken, assert_same_end, tmp_path
):
    data_dir = unbroken.data_dir if name == "an evaluation" else tmp_path / "data"
    flags = flags_of(tmp_path / "run", data_dir)
    outcome, _ = server.start(flags, SIGNAL_SOON + LONG[name])
    assert outcome.code == 128 + signal.SIGTERM, outcome.stderr
    assert "done" not in outcome.stdout and "Traceback" not in outcome.stderr
    outcome, _ = server.start(flags)
    assert outcome.code == 0, outcome.stderr
    # The state of the evaluated step had been saved.
    assert ("at step 12" in outcome.stdout) == (name == "an evaluation")
    assert_same_end(tmp_path / "run", unbroken.workdir)


# A full disk.


ROOM = "import os, sys\nassert not os.system('mount -o remount,size=64m {disk}')\n"
COPY = """
import atexit, os, shutil
leave = os._exit
def copy_and_leave(code):
    shutil.copytree({disk!r}, {copy!r}, dirs_exist_ok=True)
    leave(code)
os._exit = copy_and_leave
"""


def test_a_full_disk_ends_in_one_line(make_server, unbroken, assert_same_end, tmp_path):
    """A disk of 1.3 MB, on which there is room for two checkpoints."""
    disk, copies = tmp_path / "disk", [tmp_path / "full", tmp_path / "room"]
    mount = f"mount -t tmpfs -o size=1300k none {disk}"
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mount} && "$@"']
    disk.mkdir()
    if subprocess.run([*prefix, "sh", "true"], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    server = make_server([*prefix, "sh"])
    flags = flags_of(disk / "run", unbroken.data_dir)
    outcomes = [
        server.start(flags, first + COPY.format(disk=str(disk), copy=str(copy)))[0]
        for copy, first in zip(copies, ("", ROOM.format(disk=disk)), strict=True)
    ]
    full, room = outcomes
    assert full.code == 1, full.stderr
    assert "Traceback" not in full.stderr
    lines = full.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    # A thread, TensorBoard's, that finds no room does not know of which file.
    line = (
        r"error: No space left on device( \(.+\))?: make room, then repeat the command"
    )
    assert re.fullmatch(line, lines[-1])
    kept = {path.name for path in (copies[0] / "run" / "checkpoints").iterdir()}
    step = max(int(name) for name in kept if name.isdigit())
    assert room.code == 0, room.stderr
    assert f"resuming {disk / 'run'} at step {step}\n" in room.stdout
    assert "cannot be read" not in room.stderr
    assert_same_end(copies[1] / "run", unbroken.workdir)


# Two processes.

WAITS = """
import os, time
from mmvae_jax.evaluation import evaluate
evaluate_member = evaluate.evaluate_member
def wait_and_evaluate(*arguments):
    while not os.path.exists({release!r}):
        time.sleep(0.05)
    return evaluate_member(*arguments)
evaluate.evaluate_member = wait_and_evaluate
"""


def test_a_second_process_refuses(server, unbroken, assert_same_end, tmp_path):
    release, workdir = tmp_path / "release", tmp_path / "run"
    flags = flags_of(workdir, unbroken.data_dir)
    server.begin(flags, WAITS.format(release=str(release)))
    while not (workdir / "metrics.jsonl").exists():
        time.sleep(0.05)
    second = subprocess.run(
        [sys.executable, "-m", "experiments.run", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    release.touch()
    outcome, _ = server.end()
    assert second.returncode == 2 and not second.stdout
    (line,) = second.stderr.splitlines()
    assert line.startswith(f"error: another process is running in {workdir}")
    assert outcome.code == 0, outcome.stderr
    assert_same_end(workdir, unbroken.workdir)


# A run of which a member, or all, have diverged.


def test_a_killed_run_with_a_diverged_member(
    server, unbroken, assert_same_end, last_state, tmp_path
):
    def flags(name, betas):
        given = flags_of(tmp_path / name, unbroken.data_dir)
        return [*given, f"--config.sweep.beta={betas}"]

    one, none = "(0.0, 1e38, 9.0)", "(1e37, 1e38)"
    assert server.start(flags("whole", one))[0].code == 0
    first = AFTER_A_CHECKPOINT.format(step=24)
    killed, _ = server.start(flags("run", one), first)
    assert killed.code == KILLED and killed.stdout.count("has diverged") == 1
    resumed, _ = server.start(flags("run", one))
    assert resumed.code == 0, resumed.stderr
    assert "resuming" in resumed.stdout and "has diverged" not in resumed.stdout
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    # Of all others every bit is as without it, and of it the last finite state is kept.
    found, healthy = (
        json.loads((folder / "summary.json").read_text())["members"]
        for folder in (tmp_path / "run", unbroken.workdir)
    )
    assert [member["finite"] for member in found] == [True, False, True]
    assert found[0] == healthy[0] and found[2] == healthy[2]
    step, content = last_state(tmp_path / "run")
    state = content["state"]
    assert step == 48
    assert state["finite"].tolist() == [True, False, True]
    for leaf in jax.tree.leaves((state["params"], state["optimizer"])):
        assert np.isfinite(leaf).all()
    outcome, _ = server.start(flags("none", none))
    assert outcome.code == 1 and outcome.stdout.count("has diverged") == 2
    assert outcome.stdout.count("training ends") == 1
    logged = (tmp_path / "none" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in logged) < 48
    (tmp_path / "none" / "summary.json").unlink()
    again, _ = server.start(flags("none", none))
    assert again.code == 1 and "has diverged" not in again.stdout
