"""Evaluates an existing run and adds the values to its results."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.running import build, datasets, signals, terminal, workdirs
from experiments.running.command import Stopped
from experiments.running.evaluator import make_evaluator
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.evaluate import measured
from mmvae_jax.evaluation.metric import Failed, reasons
from mmvae_jax.interface import checks, description, trained
from mmvae_jax.interface.sweeps import Sweep
from mmvae_jax.training import checkpoints
from mmvae_jax.training.log import RunWriter, write_json
from mmvae_jax.training.step import TrainState
from mmvae_jax.types import PRIOR


def evaluate(
    workdir: Path, changes: Mapping[str, Any], step: int | None, date: str
) -> int:
    """Computes the metrics of a run at one of its checkpoints.

    Args:
      workdir: folder of the run.
      changes: "section.field" -> value, changes to the settings in config.json.
      step: step of the checkpoint; None: the last.
      date: date to write with the values.

    Returns:
      The exit code: 0, or 128 + n after signal n.

    Raises:
      UsageError: the run or checkpoint does not exist, or a metric cannot be computed.
    """
    config = config_of(workdir)
    config.update_from_flattened_dict(changes)
    try:
        with opened(workdir, config, step) as run:
            metrics = run.metrics
            # The run already has the values of the prior; add those of the sampler.
            is_beside = changes.get("eval.sampler", PRIOR) != PRIOR
            if is_beside:
                names = measured(metrics, config.eval.sampler)
                metrics = {name: metrics[name] for name in names}
            writer = RunWriter(workdir, run.sweep.members, None, date)
            with contextlib.closing(writer):
                own = (run.sweep, metrics, run.stop, writer, is_beside)
                values = make_evaluator(*own)(run.step, run.state)
            made = {
                "date": date,
                "step": run.step,
                "metrics": list(metrics),
                "settings": {
                    name: workdirs.resolved(config[name])
                    for name in workdirs.EVALUATION
                },
            }
            _add(workdir, run.step, values, made)
    except Stopped as stopped:
        (number,) = stopped.args
        terminal.say(f"{signal.Signals(number).name}: nothing was added")
        return 128 + number
    return 0


def config_of(workdir: Path) -> ConfigDict:
    """The config of a run, for an evaluation.

    Raises:
      UsageError: the folder holds no run, or one of another version.
    """
    path = workdir / trained.CONFIG
    if not path.exists():
        raise UsageError(f"{workdir} holds no run (no {trained.CONFIG})")
    config = trained.config_of(trained.read_json(path), workdir)
    config.data.update(datasets.unread(config.data))  # which changed nothing
    config.log.update(wandb="", mlflow="")  # only the run itself writes to trackers
    config.train.mesh = (1, 1)  # independent of the devices of the training
    return config


class Opened(NamedTuple):
    """A run at one of its checkpoints, with the settings of an evaluation.

    Attributes:
      sweep: the run.
      metrics: name -> function, as `evaluate.select_metrics`.
      step: step of the checkpoint.
      state: state of all members.
      stop: the signals received so far.
    """

    sweep: Sweep
    metrics: dict[str, Callable]
    step: int
    state: TrainState
    stop: signals.Signals


@contextlib.contextmanager
def opened(
    workdir: Path, config: ConfigDict, step: int | None = None
) -> Iterator[Opened]:
    """Context in which a run is locked, and signals are collected.

    Args:
      workdir: folder of the run.
      config: from `config_of`, with changes that leave the parameters as they are.
      step: step of the checkpoint; None: the last.

    Raises:
      UsageError: another process uses the run, its data have changed, it has no such
        checkpoint, or a metric cannot be computed.
      Stopped: a signal arrived while the data or the checkpoint were read.
    """
    is_all = build.takes_all_metrics(config)
    metrics = checks.check(config)
    with (
        workdirs.locked(workdir, config_of(workdir)),
        signals.caught_signals() as stop,
    ):
        with stop.at_once():
            sweep = build.build(config)
            workdirs.describe(workdir, sweep.dataset)
            shown = description.describe(sweep.dataset)
            like = trained.like_state(config, shown, sweep.model)
            found = checkpoints.read(workdir / "checkpoints", like, step)
            if found is None:
                raise UsageError(f"{workdir} holds no checkpoint yet")
            if is_all:
                metrics = build.choose_metrics(sweep)
        yield Opened(sweep, metrics, *found, stop)


def _add(workdir: Path, step: int, values: list[dict], made: dict[str, Any]) -> None:
    """Adds values to the summary of a finished run, and prints its table."""
    summary = workdirs.read_summary(workdir)
    is_last = summary is not None and summary["num_steps"] == step
    if is_last:  # a metric that failed leaves the value that the run has
        former = [member["metrics"] for member in summary["members"]]
        values = [
            {
                tag: x
                for tag, x in own.items()
                if not isinstance(x, Failed) or have.get(tag) is None
            }
            for own, have in zip(values, former, strict=True)
        ]
    made["tags"] = list(dict.fromkeys(tag for own in values for tag in own))
    if not is_last:
        for k, own in enumerate(values):
            shown = ", ".join(f"{tag}={x:.4g}" for tag, x in own.items())
            terminal.say(f"member {k} at step {step}: {shown}")
        made |= {"members": values, "undefined": [reasons(own) for own in values]}
        for tag, why in workdirs.joined_reasons(made["undefined"]).items():
            terminal.say(f"{tag} is nan: {'; '.join(why)}")
    if summary is None:
        terminal.say(f"added to {workdir}/metrics.jsonl")
        return
    if is_last:
        for member, own in zip(summary["members"], values, strict=True):
            member["metrics"] |= own
            earlier = member.get("undefined", {}).items()
            kept = {tag: reason for tag, reason in earlier if tag not in own}
            member["undefined"] = kept | reasons(own)
    summary.setdefault("evaluations", []).append(made)
    write_json(workdir / "summary.json", summary)
    if is_last:
        terminal.print_table(workdirs.read_summary(workdir))
    terminal.say(f"added to {workdir}/summary.json and metrics.jsonl")
