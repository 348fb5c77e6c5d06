"""A sweep, built from its config before the first step."""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from clu import parameter_overview

from experiments.running import checks, datasets, processes, signals, terminal
from mmvae_jax import models
from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.evaluation import evaluate, needs
from mmvae_jax.training import devices, mapping, step, sweep
from mmvae_jax.training.execution import Execution
from mmvae_jax.types import Hyper, MultimodalVAE, PRNGKey


class Sweep(NamedTuple):
    """Everything a run is made of, before its first step.

    Attributes:
      config: as of configs/base.py.
      members: of the sweep.
      dataset: real data, in host memory, of the modalities that are used.
      complete: the same with all modalities: what classifiers are trained on, so
        that runs on different numbers of modalities share them.
      model: of every member.
      task: its training.
      hyper: fields [K].
      keys: key [K].
      execution: how members and steps are executed.
      stop: the signals received so far; not empty means stop.
      is_over: set once all members have diverged: nothing is left to train.
    """

    config: Any
    members: Sequence[sweep.Member]
    dataset: Dataset
    complete: Dataset
    model: MultimodalVAE
    task: step.Task
    hyper: Hyper
    keys: PRNGKey
    execution: Execution
    stop: signals.Signals
    is_over: threading.Event


def build(config: Any, members: Sequence[sweep.Member], stop: signals.Signals) -> Sweep:
    """Loads (and if need be prepares) the data and builds the model.

    Raises:
      UsageError: as `datasets.load_of`, `models.make_model`, `checks.check_with_data`.
    """
    complete = processes.run_first_then_others(lambda: datasets.load_of(config))
    dataset = datasets.keep_modalities(complete, config.data)
    model = models.make_model(config, dataset.shapes())
    factors = checks.factors_of(config)
    task = step.vae_task(model, config.train.clip_norm, factors)
    setting = needs.Setting(config, dataset, complete, evaluated(dataset, config.eval))
    for line in checks.check_with_data(checks.Run(setting, task, len(members))):
        terminal.say(line)
    found = Sweep(
        config=config,
        members=members,
        dataset=dataset,
        complete=complete,
        model=model,
        task=task,
        hyper=sweep.stack_hyper(members),
        keys=sweep.stack_keys(members),
        execution=_execution(config, task, len(members)),
        stop=stop,
        is_over=threading.Event(),
    )
    terminal.say(_described(found))
    own = () if model.schedule is None else (model.schedule.words,)
    if words := (*factors.words, *own):
        terminal.say(f"schedule: {'; '.join(words)}")
    return found


def _execution(config: Any, task: step.Task, num_members: int) -> Execution:
    """How members and steps are executed here; the config has been checked."""
    settings = config.train
    execution = mapping.choose_execution(
        settings.mapping,
        settings.steps_per_call,
        task.convolutions,
        jax.default_backend(),
    )
    return execution._replace(
        precision=settings.precision,
        layout=checks.layout_of(config, num_members),
        members_at_once=settings.members_at_once,
    )


def _described(found: Sweep) -> str:
    """One line on a sweep: model, data, size and execution."""
    size = int(  # NumPy's product of the shape () is a float
        parameter_overview.count_parameters(
            jax.eval_shape(found.model.init, jax.random.key(0))
        )
    )
    execution = found.execution
    return (
        f"{found.config.model.name} on {found.dataset.name}: "
        f"{found.dataset.train.num_examples} examples, "
        f"{len(found.model.modalities)} modalities, {size:,} parameters, "
        f"{len(found.members)} members on {_device_name(execution.layout)}, mapped by "
        f"{execution.mapping}, up to {execution.steps_per_call} steps a call"
    )


def _device_name(layout: devices.Layout) -> str:
    """Devices of a run in words: "cpu", or "4 devices: 4 x 1 (cpu)"."""
    kind = jax.devices()[0].device_kind
    if jax.device_count() == 1:
        return kind
    return f"{devices.describe(layout, jax.device_count())} ({kind})"


def evaluated(dataset: Dataset, config: Any) -> Split:
    """The test examples that are evaluated; `config` is the field `eval`."""
    return evaluate.random_examples(dataset.test, config.num_examples, config.seed)
