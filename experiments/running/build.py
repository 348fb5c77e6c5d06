"""Loads the data of a run, builds its sweep, and prints a description."""

from collections.abc import Callable
from typing import Any

import jax
from clu import parameter_overview

from experiments.running import datasets, processes, terminal
from mmvae_jax.evaluation import needs
from mmvae_jax.interface import checks, sweeps
from mmvae_jax.models import parts
from mmvae_jax.training import examples, stages

ALL = ("all",)  # value of config.eval.metrics for all computable metrics


def build(config: Any) -> sweeps.Sweep:
    """Loads (and if necessary prepares) the data and builds the model.

    Raises:
      UsageError: from `datasets.load_of` or `sweeps.build`.
    """
    complete = processes.run_first_then_others(lambda: datasets.load_of(config))
    dataset = datasets.keep_modalities(complete, config.data)
    sweep, notes = sweeps.build(config, dataset, complete)
    own = () if sweep.model.schedule is None else (sweep.model.schedule.words,)
    if words := (*checks.factors_of(config).words, *own):
        notes.append(f"schedule: {'; '.join(words)}")
    if sweep.task.stages:
        notes.append(f"stages, by their steps: {stages.words(sweep.task)}")
        if line := stages.untrained(sweep.task, config.train.eval_every_steps):
            notes.append(line)
    for line in (_described(sweep), *notes):
        terminal.say(line)
    names = sweep.model.supports
    likelihoods = {m: parts.options_of(config, m)["likelihood"] for m in names}
    terminal.print_modalities(dataset, likelihoods)
    return sweep


def takes_all_metrics(config: Any) -> bool:
    """Whether a config requests all metrics; if so, sets its metrics to ().

    `choose_metrics` sets them after the data are loaded.
    """
    if tuple(config.eval.metrics) != ALL:
        return False
    config.eval.metrics = ()
    return True


def choose_metrics(sweep: sweeps.Sweep) -> dict[str, Callable]:
    """Chooses all metrics that the data allow, and sets them in the sweep's config.

    It prints why other metrics are left out.

    Returns:
      As `evaluate.select_metrics`.
    """
    test = sweeps.evaluated(sweep.dataset, sweep.config.eval)
    setting = needs.Setting(sweep.config, sweep.dataset, sweep.complete, test)
    found, lines = checks.applicable(
        checks.Run(setting, sweep.model, sweep.task, len(sweep.members))
    )
    for line in lines:
        terminal.say(line)
    sweep.config.eval.metrics = tuple(found)
    return found


def num_parameters(sweep: sweeps.Sweep) -> int:
    """The number of parameters of a member."""
    shapes = jax.eval_shape(sweep.model.init, jax.random.key(0))
    # int, because NumPy's product of the shape () is a float.
    return int(parameter_overview.count_parameters(shapes))


def _described(sweep: sweeps.Sweep) -> str:
    """One line on a sweep: model, data, size and execution."""
    size = num_parameters(sweep)
    execution = sweep.execution
    where = ""
    if execution.window:
        num = examples.num_bytes(sweep.dataset.train.leaves())
        where = (
            f", {num / 2**30:.1f} GiB of training data in host memory, sent "
            f"{execution.window} steps at a time"
        )
    return (
        f"{sweep.config.model.name} on {sweep.dataset.name}: "
        f"{sweep.dataset.train.num_examples} examples, "
        f"{len(sweep.model.modalities)} modalities, {size:,} parameters, "
        f"{len(sweep.members)} members on {sweeps.device_name(execution.layout)}, "
        f"mapped by {execution.mapping}, up to {execution.steps_per_call} steps a call"
        + where
    )
