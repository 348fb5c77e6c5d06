"""Builds a sweep from its config and its data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from mmvae_jax import models
from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.evaluation import evaluate, needs
from mmvae_jax.interface import checks
from mmvae_jax.training import devices, mapping, step, sweep
from mmvae_jax.training.execution import Execution
from mmvae_jax.types import Batch, Hyper, MultimodalVAE, PRNGKey


class Sweep(NamedTuple):
    """A sweep before its first step.

    Attributes:
      config: as `settings.get_config`.
      members: members of the sweep.
      dataset: data of the used modalities, in host memory.
      complete: data of all modalities, for the classifiers, so that runs on different
        numbers of modalities share them.
      model: the model of every member.
      task: the training of one member.
      hyper: fields [K].
      keys: PRNG keys [K].
      execution: how members and steps are executed.
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


def build(
    config: Any, dataset: Dataset, complete: Dataset | None = None
) -> tuple[Sweep, list[str]]:
    """Builds the model, checks the config against the data, chooses the execution.

    Args:
      config: as `settings.get_config`, checked by `checks.check`.
      dataset: data of the used modalities.
      complete: data of all modalities; default: `dataset`.

    Returns:
      (Sweep, lines to print).

    Raises:
      UsageError: from `models.make_model` or `checks.check_with_data`.
    """
    complete = dataset if complete is None else complete
    members = sweep.grid(config.sweep)
    model = models.make_model(config, dataset.shapes())
    settings = config.train
    task = step.vae_task(
        model, settings.clip_norm, checks.factors_of(config), settings.num_steps
    )
    setting = needs.Setting(config, dataset, complete, evaluated(dataset, config.eval))
    notes = checks.check_with_data(checks.Run(setting, model, task, len(members)))
    return (
        Sweep(
            config=config,
            members=members,
            dataset=dataset,
            complete=complete,
            model=model,
            task=task,
            hyper=sweep.stack_hyper(members),
            keys=sweep.stack_keys(members),
            execution=_execution(config, task, len(members), dataset.train.leaves()),
        ),
        notes,
    )


def _execution(
    config: Any, task: step.Task, num_members: int, data: Batch
) -> Execution:
    """How members and steps are executed; the config is already checked."""
    settings = config.train
    execution = mapping.choose_execution(
        settings.mapping,
        settings.steps_per_call,
        task.convolutions,
        jax.default_backend(),
    )
    execution = mapping.place_data(
        execution, settings.data_on, data, settings.batch_size
    )
    return execution._replace(
        precision=settings.precision,
        layout=checks.layout_of(config, num_members),
        members_at_once=settings.members_at_once,
    )


def device_name(layout: devices.Layout) -> str:
    """Devices of a sweep in words: "cpu", or "4 devices: 4 x 1 (cpu)"."""
    kind = jax.devices()[0].device_kind
    if jax.device_count() == 1:
        return kind
    return f"{devices.describe(layout, jax.device_count())} ({kind})"


def evaluated(dataset: Dataset, config: Any) -> Split:
    """The test examples to evaluate; `config` is the section `eval`."""
    return evaluate.random_examples(dataset.test, config.num_examples, config.seed)
