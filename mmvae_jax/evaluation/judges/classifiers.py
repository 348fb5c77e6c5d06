"""Classifiers for coherence: one per modality, trained on real data.

`judges.training` trains them, with one sweep member per modality, and stores them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmvae_jax import networks
from mmvae_jax.data.dataset import Dataset, Split, is_image, to_unit_interval
from mmvae_jax.evaluation.judges import training
from mmvae_jax.evaluation.metric import Reader, require_labels
from mmvae_jax.training import loop, step, sweep
from mmvae_jax.training.execution import jit_precisely
from mmvae_jax.types import OBSERVED, Array, Batch, Params, PRNGKey, Shape

_EVAL_BATCH = 1_000


class ClassifierHyper(NamedTuple):
    """Hyper-parameters of a group of G classifiers.

    Attributes:
      learning_rate: learning rate of Adam; float32 [G].
      modality: index of the modality in its group; int32 [G].
    """

    learning_rate: Array
    modality: Array


def get_classifiers(
    config: Any,
    dataset: Dataset,
    directory: str,
    events: loop.Events = loop.Events(),  # noqa: B008 (a NamedTuple is immutable)
) -> dict[str, Reader] | None:
    """Loads the classifiers of all modalities from `directory`, or trains them.

    Args:
      config: with the section `classifier` of configs/base.py.
      dataset: the real data; its fingerprint names the cached file.
      directory: folder of the classifiers.
      events: callbacks of the train loop.

    Returns:
      modality -> Reader of the label, without dropout, `accuracy` on the whole test
      split; None if `events.is_stopping` ended the training.

    Raises:
      UsageError: the data have no labels, or the training diverged.
    """
    groups = make_networks(config, dataset)

    def train_all() -> dict | None:
        trained: dict[str, Any] = {}
        for network, group in groups:
            trained |= _train_group(network, config.classifier, dataset, group, events)
            if events.is_stopping():
                return None
        return trained

    trained = training.load_or_train(directory, dataset, config.classifier, train_all)
    if trained is None:
        return None
    found = {}
    for network, group in groups:
        apply = jit_precisely(network.apply)
        for modality in group:
            stored = trained[modality]
            own = jax.device_put(stored["params"])  # once
            bound = jax.tree_util.Partial(apply, own)
            found[modality] = Reader(bound, float(stored["accuracy"]))
    return found


def check(config: Any, dataset: Dataset, metric: str = "coherence") -> None:
    """Checks that classifiers can be built and trained.

    Raises:
      UsageError: the data have no labels, or examples do not fit the network.
    """
    make_networks(config, dataset, metric)


def get_second(
    config: Any,
    dataset: Dataset,
    directory: str,
    events: loop.Events = loop.Events(),  # noqa: B008 (a NamedTuple is immutable)
) -> dict[str, Reader] | None:
    """`get_classifiers` with another architecture and seed."""
    return get_classifiers(_of_second(config), dataset, directory, events)


def check_second(config: Any, dataset: Dataset, metric: str = "second_judge") -> None:
    """`check` for `get_second`."""
    check(_of_second(config), dataset, metric)


def _of_second(config: Any) -> Any:
    """The config of second classifiers: MLPs if the first are not, and vice versa.

    Classifiers of vectors and tokens are MLPs in both, with different seeds.
    """
    second = config.copy_and_resolve_references()
    is_mlp = config.classifier.network == "mlp"
    second.classifier.network = "conv" if is_mlp else "mlp"
    second.classifier.seed += 1
    return second


def make_networks(
    config: Any, dataset: Dataset, metric: str = "coherence"
) -> list[tuple[Any, list[str]]]:
    """The Linen modules of the classifiers, with one output per class.

    Args:
      config: with the section `classifier` of configs/base.py.
      dataset: the real data.
      metric: name of the metric that needs them.

    Returns:
      Pairs of a module and its modalities, which have one shape.

    Raises:
      UsageError: the network is unknown, or the data have no labels.
    """
    num_classes = int(require_labels(dataset.train, metric).max()) + 1
    shapes = dataset.shapes()
    return [
        (
            networks.make_classifier(
                network_for(config, dataset, group[0], "classifier"),
                shapes[group[0]],
                num_classes,
            ),
            group,
        )
        for group in groups_of_one_shape(dataset)
    ]


def network_for(config: Any, dataset: Dataset, modality: str, section: str) -> str:
    """The name of a modality's network: that of the config for images, else "mlp"."""
    is_picture = is_image(dataset.train.modalities[modality])
    return config[section].network if is_picture else "mlp"


def classifier_task(network: Any, modalities: list[str], shape: Shape) -> step.Task:
    """Training of one classifier, for the modality `hyper.modality`."""

    def init(key: PRNGKey) -> Params:
        return network.init(key, networks.blank(shape))

    def loss(
        params: Params, hyper: ClassifierHyper, key: PRNGKey, batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        examples = jnp.stack([batch[m] for m in modalities])[hyper.modality]
        _, logits = network.apply(
            params, to_unit_interval(examples), is_training=True, rngs={"dropout": key}
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["labels"]
        )
        if OBSERVED in batch:
            is_there = batch[OBSERVED][:, hyper.modality]
            losses = jnp.where(is_there, losses, 0.0)
            value = jnp.sum(losses) / jnp.maximum(jnp.sum(is_there), 1)
        else:
            value = jnp.mean(losses)
        return value, {"train/loss": value}

    forms = networks.convolution_forms(network)
    return step.Task(init, loss, convolutions=forms)


def groups_of_one_shape(dataset: Dataset) -> list[list[str]]:
    """Groups of modalities with equal shapes, which can share a compiled program."""
    groups: dict[tuple, list[str]] = {}
    shapes = dataset.shapes()
    for modality, x in dataset.train.modalities.items():
        groups.setdefault((x.dtype, shapes[modality]), []).append(modality)
    return list(groups.values())


def _train_group(
    network: Any, settings: Any, dataset: Dataset, group: list[str], events: loop.Events
) -> dict:
    """Trains one classifier per modality; returns modality -> content of its file."""
    data = {m: dataset.train.modalities[m] for m in group}
    data["labels"] = require_labels(dataset.train, "coherence")
    if dataset.train.observed is not None:
        observed = [dataset.train.is_observed(m) for m in group]
        data[OBSERVED] = np.stack(observed, axis=1)
    task = classifier_task(network, group, dataset.shapes()[group[0]])
    num = len(group)
    hyper = ClassifierHyper(
        jnp.full(num, settings.learning_rate, jnp.float32), jnp.arange(num)
    )
    params, finite = training.fit_members(task, hyper, data, settings, events)
    diverged = [m for m, is_finite in zip(group, finite, strict=True) if not is_finite]
    training.require_converged(diverged, "classifier", settings)
    apply = jit_precisely(network.apply)
    stored = {}
    for k, modality in enumerate(group):
        own = sweep.member(params, k)
        accuracy = _accuracy(apply, own, dataset.test, modality)
        stored[modality] = {"params": own, "accuracy": accuracy}
    return stored


def _accuracy(apply: Callable, params: Params, split: Split, modality: str) -> float:
    """The fraction of a modality's examples that are classified correctly."""
    split = split.take(np.flatnonzero(split.is_observed(modality)))
    labels = require_labels(split, "coherence")
    correct = 0
    for start in range(0, split.num_examples, _EVAL_BATCH):
        part = slice(start, start + _EVAL_BATCH)
        _, logits = apply(params, to_unit_interval(split.modalities[modality][part]))
        correct += int(np.sum(np.argmax(logits, -1) == labels[part]))
    return correct / split.num_examples if split.num_examples else float("nan")
