"""A run that was stopped and started again ends in the bits of an unbroken one.

The chains of stops are slow tests. Fast ones resume in the process: a loop
(tests/training/test_loop.py), schedules and stages (test_schedules.py, test_stages.py),
and a run that is continued (test_continue.py).
"""

import functools
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from kill_points import AFTER_A_CHECKPOINT

from experiments.running import session, signals

pytest_plugins = ("run_fixtures",)

# Each piece of code stops the process at one point, deterministically.
# The log of step 16 is on the disk, half of the next line too, the checkpoint is of
# step 12.
IN_A_LINE = """
import os, signal
from mmvae_jax.training import log
write = log.RunWriter.write_scalars
def write_and_die(self, step, scalars):
    write(self, step, scalars)
    if step == 16:
        self._file.write('{"step": 20, "member": 0, "be')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
log.RunWriter.write_scalars = write_and_die
"""
IN_AN_EVALUATION = """
import os, signal
from mmvae_jax.evaluation import evaluate
evaluate_member, calls = evaluate.evaluate_member, []
def evaluate_and_die(*arguments):
    calls.append(None)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.{signal})
    return evaluate_member(*arguments)
evaluate.evaluate_member = evaluate_and_die
"""
# The results of the last evaluation are on the disk, but no summary.
BEFORE_THE_SUMMARY = """
import os, signal
from mmvae_jax.training import log
def die(path, value, write=log.write_json):
    if path.name == "summary.json":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, value)
log.write_json = die
"""
TERMINATED_AT_STEP = """
import os, signal
from mmvae_jax.interface import progress
update = progress.ProgressBar.update
def update_and_stop(self, step, seconds, is_first):
    update(self, step, seconds, is_first)
    if step >= {step} and not getattr(self, "is_stopped", False):
        self.is_stopped = True
        os.kill(os.getpid(), signal.{signal})
progress.ProgressBar.update = update_and_stop
"""
# Name -> (code, signal, the steps at which the next start may resume). All stops of
# a chain happen to one run, each to the process that resumed it after the last.
KILLED = {
    "after the first checkpoint": (AFTER_A_CHECKPOINT.format(step=6), 9, (6,)),
    "in a line": (IN_A_LINE, 9, (12,)),
    # The last checkpoint may still have been on its way to the disk.
    "in the last evaluation": (
        IN_AN_EVALUATION.format(call=5, signal="SIGKILL"),
        9,
        (18, 24),
    ),
}
KILLED_ELSEWHERE = {
    "in an evaluation between": (
        IN_AN_EVALUATION.format(call=2, signal="SIGKILL"),
        9,
        (12,),
    ),
    "before the summary": (BEFORE_THE_SUMMARY, 9, (18, 24)),
}
STOPPED = {
    # Neither a log (every 4) nor a checkpoint (every 6) falls on these by itself.
    "between two logged steps": (
        TERMINATED_AT_STEP.format(step=9, signal="SIGTERM"),
        15,
        (9, 10),
    ),
    "in an evaluation between": (
        IN_AN_EVALUATION.format(call=2, signal="SIGTERM"),
        15,
        (12,),
    ),
    "from the keyboard": (
        TERMINATED_AT_STEP.format(step=21, signal="SIGINT"),
        2,
        (21, 22),
    ),
    "in the last evaluation": (
        IN_AN_EVALUATION.format(call=2, signal="SIGTERM"),
        15,
        (24,),
    ),
}
CHAINS = {"killed": KILLED, "elsewhere": KILLED_ELSEWHERE, "stopped": STOPPED}
# What signals do is also tested at drawn moments, by test_kills.py.
EVERY_CHAIN = [pytest.param(chain, marks=pytest.mark.slow) for chain in CHAINS]
EVERY_STOP = [
    pytest.param(*chain.values, name, marks=chain.marks)
    for chain in EVERY_CHAIN
    for name in CHAINS[chain.values[0]]
]


class Runs(NamedTuple):
    unbroken: Path
    workdir: Path
    outcomes: list  # of the chain's stops, and of its last start


@pytest.fixture(scope="module")
def runs(commands, tmp_path_factory):
    """chain -> a run without interruption, and that chain; made when first asked."""

    @functools.cache
    def make(chain):
        root = tmp_path_factory.mktemp("resume")

        def flags(name):
            # Few steps a call, so that a signal comes between two logged steps.
            return [
                f"--workdir={root / name}",
                "--config.train.steps_per_call=2",
                "--config.eval.metrics=('elbo', 'coherence')",
            ]

        jobs = [(flags("unbroken"), "")]
        jobs += [(flags(chain), first) for first, _, _ in CHAINS[chain].values()]
        jobs.append((flags(chain), ""))
        first, *others = commands(jobs)
        assert first.code == 0, first.stderr
        return Runs(root / "unbroken", root / chain, others)

    return make


@pytest.mark.parametrize(("chain", "name"), EVERY_STOP)
def test_stops_and_resumes(chain, name, runs):
    index = list(CHAINS[chain]).index(name)
    _, number, steps = CHAINS[chain][name]
    workdir, outcomes = runs(chain)[1:]
    stopped, resumed = outcomes[index : index + 2]
    assert stopped.code == (-9 if number == 9 else 128 + number), stopped.stderr
    words = resumed.stdout.partition("resuming ")[2].split()
    assert words[:3] == [str(workdir), "at", "step"], resumed.stderr
    assert int(words[3]) in steps
    if number != 9:
        signal_name = signal.Signals(number).name
        assert f"{signal_name}: saving, then stopping\n" in stopped.stdout
        assert stopped.stdout.splitlines()[-1] == (
            f"{signal_name}: saved; the same command continues this run"
        )
        assert "Traceback" not in stopped.stderr


@pytest.mark.parametrize("chain", EVERY_CHAIN)
def test_resumed_bits(chain, runs, assert_same_end):
    unbroken, workdir, outcomes = runs(chain)
    assert outcomes[-1].code == 0, outcomes[-1].stderr
    assert_same_end(workdir, unbroken)


def test_what_is_evaluated_has_been_saved():
    """An evaluation may take long, and the process may be killed in it."""
    calls = []
    settings = SimpleNamespace(
        log_every_steps=4, eval_every_steps=3, checkpoint_every_steps=2, num_steps=9
    )
    sweep = SimpleNamespace(config=SimpleNamespace(train=settings))
    bar = SimpleNamespace(update=None)
    stop, finite = signals.Signals(), np.array([True])
    events = session.make_events(
        *(sweep, stop, None, bar, lambda *x: calls.append(("save", *x)), []),
        *(lambda *x: calls.append(x), finite),
    )
    events.evaluate(3, "state")
    assert calls == [("save", 3, "state"), (3, "state")]
    events.evaluate(9, "last")  # of which the run takes care
    assert len(calls) == 2
