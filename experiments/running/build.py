"""A sweep, built from its config before the first step."""

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from clu import parameter_overview

from experiments.running import datasets, processes, signals, terminal
from mmvae_jax import models
from mmvae_jax.data import batches
from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation import evaluate, needs
from mmvae_jax.training import devices, mapping, step, sweep
from mmvae_jax.training.execution import Execution, matmul_precision
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


def check(config: Any) -> None:
    """Checks what the types of the fields do not say, before data are prepared.

    Raises:
      UsageError: an unknown model, or a number out of its range.
    """
    models.check(config)
    least = {
        "train": {
            "num_steps": 1,
            "batch_size": 1,
            "data_seed": 0,
            "log_every_steps": 1,
            "eval_every_steps": 0,
            "checkpoint_every_steps": 1,
            "checkpoints_kept": 1,
            "steps_per_call": 0,
            "members_at_once": 0,
        },
        "classifier": {"num_steps": 1, "batch_size": 1, "seed": 0},
        "matcher": {"feature_dim": 1, "num_steps": 1, "batch_size": 2, "seed": 0},
        "eval": {
            "batch_size": 1,
            "num_examples": 0,
            "importance_samples": 1,
            "seed": 0,
        },
    }
    matmul_precision(config.train.precision, jax.default_backend())
    if config.data.get("seed", 0) < 0:
        raise UsageError(f"config.data.seed must be >= 0, got {config.data.seed}")
    clip_norm = config.train.clip_norm
    if not 0 <= clip_norm < math.inf:
        raise UsageError(f"config.train.clip_norm must be >= 0, got {clip_norm}")
    for section, fields in least.items():
        for field, bound in fields.items():
            if config[section][field] < bound:
                raise UsageError(
                    f"config.{section}.{field} must be >= {bound}, "
                    f"got {config[section][field]}"
                )


def build(config: Any, members: Sequence[sweep.Member], stop: signals.Signals) -> Sweep:
    """Loads (and if need be prepares) the data and builds the model."""
    complete = processes.in_turn(lambda: datasets.load(config.data))
    dataset = datasets.reduce(complete, config.data)
    for line in needs.check(
        needs.Setting(config, dataset, complete, evaluated(dataset, config.eval))
    ):
        terminal.say(line)
    batches.batch_indices(0, 0, 1, dataset.train.num_examples, config.train.batch_size)
    model = models.make_model(config, dataset.shapes())
    task = step.vae_task(model, config.train.clip_norm)
    hyper = sweep.stack_hyper(members)
    execution = mapping.choose_execution(
        config.train.mapping,
        config.train.steps_per_call,
        task.convolutions,
        jax.default_backend(),
    )
    mapping.require_precision(
        config.train.precision, task.convolutions, jax.default_backend()
    )
    num_devices = jax.device_count()
    layout = devices.choose_layout(
        tuple(config.train.mesh),
        len(members),
        config.train.batch_size,
        num_devices,
        jax.process_count(),
    )
    at_once, on_device = config.train.members_at_once, len(members) // layout[0]
    if at_once and on_device % at_once:
        raise UsageError(
            f"config.train.members_at_once={at_once} must divide the {on_device} "
            "members of a device evenly"
        )
    execution = execution._replace(
        precision=config.train.precision, layout=layout, members_at_once=at_once
    )
    size = parameter_overview.count_parameters(
        jax.eval_shape(model.init, jax.random.key(0))
    )
    terminal.say(
        f"{config.model.name} on {dataset.name}: {dataset.train.num_examples} "
        f"examples, {len(model.modalities)} modalities, {size:,} parameters, "
        f"{len(members)} members on {device_name(layout)}, mapped by "
        f"{execution.mapping}, up to {execution.steps_per_call} steps a call"
    )
    return Sweep(
        config=config,
        members=members,
        dataset=dataset,
        complete=complete,
        model=model,
        task=task,
        hyper=hyper,
        keys=sweep.stack_keys(members),
        execution=execution,
        stop=stop,
        is_over=threading.Event(),
    )


def device_name(layout: devices.Layout) -> str:
    """What a run runs on: "cpu", or "4 devices: 4 x 1 (cpu)"."""
    kind = jax.devices()[0].device_kind
    if jax.device_count() == 1:
        return kind
    return f"{devices.describe(layout, jax.device_count())} ({kind})"


def evaluated(dataset: Dataset, config: Any) -> Split:
    """The test examples that are evaluated; `config` is the field `eval`."""
    return evaluate.random_examples(dataset.test, config.num_examples, config.seed)
