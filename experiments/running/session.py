"""One run from data to summary: training, evaluation, checkpoints, resume."""

import contextlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.running import build, processes, signals, terminal, workdirs
from experiments.running.command import Stopped
from experiments.running.evaluator import make_evaluator
from mmvae_jax.evaluation.metric import reasons
from mmvae_jax.interface import checks, sweeps
from mmvae_jax.interface.progress import ProgressBar
from mmvae_jax.training import checkpoints, devices, loop, stages
from mmvae_jax.training.log import RunWriter, member_name, write_json
from mmvae_jax.training.mapping import Prepared, prepare
from mmvae_jax.training.step import TrainState

# Seconds of saving, and its share of the training time, from which there is advice; and
# the share that is advised.
_LEAST_SAVING, _MUCH_SAVING, _LITTLE_SAVING = 10.0, 0.2, 0.05


def train_and_evaluate(config: Any, workdir: Path) -> int:
    """Executes one run: data, training, evaluation, and the files in `workdir`.

    Args:
      config: as in configs/base.py.
      workdir: folder of the run; created, or resumed.

    Returns:
      The exit code: 0, or 1 if all members diverged, or 128 + n after signal n.

    Raises:
      UsageError: a mistake in the config, the data or the working directory.
    """
    is_all = build.takes_all_metrics(config)
    metrics = checks.check(config)
    with contextlib.ExitStack() as stack:
        processes.run_on_first(
            lambda: stack.enter_context(workdirs.locked(workdir, config))
        )
        summary = processes.run_on_first(lambda: workdirs.read_summary(workdir))
        if summary is not None and summary["num_steps"] < config.train.num_steps:
            terminal.say(
                f"{workdir} was trained for {summary['num_steps']} steps; training "
                f"continues to {config.train.num_steps}"
            )
            summary = None
        if summary is not None:
            terminal.say(f"{workdir} is finished; its results:")
            if not is_all and workdirs.is_evaluated_otherwise(workdir, config):
                terminal.say(
                    "it was evaluated with other settings; to evaluate it again: "
                    f"python -m experiments.evaluate --workdir={workdir}"
                )
        else:
            start = time.perf_counter()
            with signals.caught_signals() as stop:
                try:
                    with stop.at_once():
                        sweep = build.build(config)
                        if is_all:
                            metrics = build.choose_metrics(sweep)
                        processes.run_on_first(
                            partial(workdirs.require_length, workdir, sweep)
                        )
                        record = partial(
                            workdirs.record, workdir, config, sweep.dataset
                        )
                        processes.run_on_first(record)
                        prepared = prepare_program(sweep, workdir)
                        sweep = sweep._replace(execution=prepared.execution)
                    found = run(sweep, prepared, metrics, workdir, stop)
                    seconds = time.perf_counter() - start
                    summary = _summarise(sweep, found, seconds)
                    write = partial(write_json, workdir / "summary.json", summary)
                    processes.run_on_first(write)
                    for number in stop[:1]:  # a signal during writing
                        raise Stopped(number)
                except Stopped as stopped:
                    (number,) = stopped.args
                    name = signal.Signals(number).name
                    terminal.say(f"{name}: saved; the same command continues this run")
                    return 128 + number
        terminal.print_table(summary)
        terminal.say(f"metrics, samples and checkpoints are in {workdir}")
        return 0 if any(member["finite"] for member in summary["members"]) else 1


def prepare_program(sweep: sweeps.Sweep, workdir: Path) -> Prepared:
    """The program of a run and its initial states; prints deviations from the rule.

    Raises:
      UsageError: the members do not fit the memory of a device.
    """
    execution = sweep.execution
    device = jax.devices()[0].device_kind
    mapping = workdirs.earlier_mapping(workdir, device, execution.layout)
    if mapping not in (None, execution.mapping):
        execution = execution._replace(mapping=mapping)
        terminal.say(f"mapped by {mapping}, as execution.json of this run says")
    prepared = prepare(
        sweep.task,
        execution,
        sweep.hyper,
        sweep.keys,
        sweep.dataset.train.leaves(),
        batch_size=sweep.config.train.batch_size,
    )
    if prepared.execution.members_at_once != execution.members_at_once:
        terminal.say(
            "members are trained in chunks of "
            f"{prepared.execution.members_at_once}: the device's memory holds no more"
        )
    return prepared


class Times(NamedTuple):
    """The time of the steps that led to a state, also of those before a resume.

    Left out are the first call of each stage and start, which compiles, and steps that
    were taken again, because they were after the checkpoint of a killed run.

    Attributes:
      training_seconds: seconds of all members.
      timed_steps: the number of steps that took them.
    """

    training_seconds: float
    timed_steps: int


def times_of(notes: Mapping[str, Any]) -> Times | None:
    """The times in the notes of a checkpoint; None if an older version wrote them."""
    seconds, steps = (notes.get(name) for name in Times._fields)
    are_numbers = isinstance(seconds, (int, float)) and isinstance(steps, int)
    return Times(seconds, steps) if are_numbers else None


class Finished(NamedTuple):
    """Results of a run.

    Attributes:
      values: tag -> value at the last step, for each member.
      finite: bool [K].
      step_seconds: mean seconds per step of all members since this start, without the
        first call of each stage, which compiles; None if there were no other calls.
      times: times of all steps that led to the result, in all starts.
    """

    values: list[dict[str, float]]
    finite: np.ndarray
    step_seconds: float | None
    times: Times | None


def run(
    sweep: sweeps.Sweep,
    prepared: Prepared,
    metrics: dict[str, Callable],
    workdir: Path,
    stop: signals.Signals,
) -> Finished:
    """Trains from the last checkpoint, or from the beginning, and evaluates.

    Raises:
      Stopped: a signal arrived.
    """
    settings, layout = sweep.config.train, sweep.execution.layout
    state = prepared.state
    with contextlib.ExitStack() as stack:
        num_kept = settings.checkpoints_kept
        saved = checkpoints.open_checkpoints(workdir / "checkpoints", num_kept)
        stack.callback(checkpoints.close, saved)
        step, earlier = 0, Times(0.0, 0)
        restored = checkpoints.restore(saved, state, num_kept)
        if restored is not None:
            step, state = restored
            earlier = times_of(checkpoints.notes(saved, step))
            terminal.say(f"resuming {workdir} at step {step}")
        writer = None
        if processes.is_first():
            is_last = step == settings.num_steps
            is_logged = is_last or step % settings.log_every_steps == 0
            writer = RunWriter(
                workdir,
                sweep.members,
                step,
                is_logged=is_logged,
                trackers=sweep.config.log,
            )
            stack.callback(writer.close)
            if step == 0:
                writer.write_hparams(sweep.config.to_dict())
        evaluator = make_evaluator(sweep, metrics, stop, writer)
        finite = np.array(devices.gather(state.finite, layout))
        is_due = settings.eval_every_steps and step % settings.eval_every_steps == 0
        if 0 < step < settings.num_steps and is_due:
            evaluator(step, state)
        bar = stack.enter_context(
            ProgressBar(
                step, settings.num_steps, settings.batch_size * len(sweep.members)
            )
        )
        save_seconds: list[float] = []

        def times() -> Times | None:
            if earlier is None:
                return None
            seconds, steps = earlier
            return Times(seconds + bar.timed_seconds, steps + bar.timed_steps)

        def save(step: int, state: TrainState) -> None:
            found = times()
            checkpoints.save(saved, step, state, found and found._asdict())

        events = make_events(
            sweep, stop, writer, bar, save, save_seconds, evaluator, finite
        )
        state = stages.fit(
            sweep.task,
            prepared,
            state,
            sweep.hyper,
            sweep.keys,
            num_steps=settings.num_steps,
            batch_size=settings.batch_size,
            data_seed=settings.data_seed,
            events=events,
        )
        bar.close()
        every = settings.checkpoint_every_steps
        if advice := saving_advice(save_seconds, every, bar.step_seconds):
            terminal.say(advice)
        step = int(devices.first(state.step))
        save(step, state)
        for number in itertools.chain(*processes.exchange(stop[:1])):
            raise Stopped(number)
        results = evaluator(step, state)
        finite = np.asarray(devices.gather(state.finite, layout))
        return Finished(results, finite, bar.step_seconds, times())


def saving_advice(
    seconds: Sequence[float], every: int, step_seconds: float | None
) -> str:
    """A line of advice if checkpoints take much of the training time, else "".

    Args:
      seconds: for which each checkpoint stopped the training.
      every: steps between checkpoints.
      step_seconds: seconds of a step; None: not known.
    """
    if not step_seconds or sum(seconds) < _LEAST_SAVING:
        return ""
    each = sum(seconds) / len(seconds)
    share = each / (each + every * step_seconds)
    if share < _MUCH_SAVING:
        return ""
    better = math.ceil(each / (_LITTLE_SAVING * step_seconds))
    return (
        f"saving checkpoints took {share:.0%} of the training time; with "
        f"--config.train.checkpoint_every_steps={better} it is {_LITTLE_SAVING:.0%}"
    )


def make_events(
    sweep: sweeps.Sweep,
    stop: signals.Signals,
    writer: Any,
    bar: ProgressBar,
    save: Callable[[int, TrainState], None],
    save_seconds: list[float],
    evaluator: Callable,
    finite: np.ndarray,
) -> loop.Events:
    """Callbacks of the train loop: log, progress bar, checkpoints, metrics.

    `writer` is None in all processes except the first. `save` writes a checkpoint, and
    `save_seconds` gets the seconds of each. `finite`, bool [K], is False for members
    whose divergence is already reported.
    """
    reported = set(np.flatnonzero(~finite).tolist())
    is_over = threading.Event()  # set if all members have diverged
    if not finite.any():
        is_over.set()

    def log(step: int, metrics: dict, finite: np.ndarray) -> None:
        scalars = [
            {tag: float(values[k]) for tag, values in metrics.items()}
            | {"train/finite": bool(finite[k])}
            for k in range(len(sweep.members))
        ]
        if writer is not None:
            writer.write_scalars(step, scalars)
        bar.losses = [values["train/loss"] for values in scalars]
        for k in np.flatnonzero(~finite):
            if k not in reported:
                reported.add(int(k))
                name = member_name(sweep.members[k], sweep.members)
                terminal.say(
                    f"member {k} ({name}) has diverged by step {step}: its last finite "
                    "parameters are kept, and the other members continue"
                )
        if not finite.any() and not is_over.is_set():
            is_over.set()
            terminal.say(f"all members have diverged by step {step}: training ends")

    settings = sweep.config.train

    def evaluate_between(step: int, state: TrainState) -> None:
        # After a signal in an evaluation, the loop ends by itself with a saved state.
        # The resumed run repeats the evaluation.
        if step < settings.num_steps:
            save(step, state)  # an evaluation may take long
            with contextlib.suppress(Stopped):
                evaluator(step, state)

    def timed_save(step: int, state: TrainState) -> None:
        start = time.perf_counter()
        save(step, state)
        save_seconds.append(time.perf_counter() - start)

    return loop.Events(
        log_every_steps=settings.log_every_steps,
        log=log,
        eval_every_steps=settings.eval_every_steps,
        evaluate=evaluate_between,
        save_every_steps=settings.checkpoint_every_steps,
        save=timed_save,
        progress=bar.update,
        is_stopping=lambda: bool(stop) or is_over.is_set(),
    )


def _summarise(sweep: sweeps.Sweep, found: Finished, seconds: float) -> dict:
    """The content of summary.json."""
    why = ""
    if found.times is None:
        why = "the run continues from a checkpoint of an older version, without times"
    elif found.times.timed_steps == 0:
        why = "no step was timed: the first call of a program compiles it"
    times = dict.fromkeys(Times._fields) if why else found.times._asdict()
    return {
        "model": sweep.config.model.name,
        "dataset": sweep.dataset.name,
        "num_steps": sweep.config.train.num_steps,
        "num_parameters": build.num_parameters(sweep),
        "wall_seconds": round(seconds, 1),
        "step_seconds": found.step_seconds,
        **times,
        "undefined": {"training_seconds": why} if why else {},
        "device": jax.devices()[0].device_kind,
        "cpu_cores": os.cpu_count(),
        "execution": sweep.execution._asdict(),
        "members": [
            {
                **member._asdict(),
                "finite": bool(is_finite),
                "metrics": values,
                "undefined": reasons(values),
            }
            for member, is_finite, values in zip(
                sweep.members, found.finite, found.values, strict=True
            )
        ],
    }
