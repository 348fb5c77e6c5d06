"""Classifiers behind the coherences: one a modality, trained on real data.

They are trained by the same loop as the models, one sweep member a modality, and
kept beside the data under a name made of the data's and the settings' hash.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmvae_jax import networks
from mmvae_jax.data.dataset import Dataset, Split, is_image, to_unit_interval
from mmvae_jax.evaluation.metric import Reader, is_writable, keep, require_labels
from mmvae_jax.training import examples, loop, mapping, step, sweep
from mmvae_jax.training.execution import compile_steps, init_states
from mmvae_jax.types import OBSERVED, Array, Batch, Params, PRNGKey, Shape

_EVAL_BATCH = 1_000
_DIGEST_BYTES = hashlib.sha256().digest_size


class ClassifierHyper(NamedTuple):
    """Hyper-parameters of a group of G classifiers.

    Attributes:
      learning_rate: of Adam; float32 [G].
      modality: index of the modality within its group; int32 [G].
    """

    learning_rate: Array
    modality: Array


def get_classifiers(
    config: Any,
    dataset: Dataset,
    directory: str,
    events: loop.Events = loop.Events(),  # noqa: B008 (a NamedTuple is immutable)
) -> dict[str, Reader] | None:
    """The classifiers of all modalities, from `directory` or trained and put there.

    Args:
      config: with the fields `classifier` of configs/base.py.
      dataset: the real data; its fingerprint names the cached file.
      directory: where classifiers are kept.
      events: what the train loop calls.

    Returns:
      modality -> Reader of the label, dropout off, `accuracy` on the whole test split;
      None if `events.is_stopping` ended the training.

    Raises:
      UsageError: the data have no labels.
    """
    groups = make_networks(config, dataset)

    def train_all() -> dict | None:
        trained: dict[str, Any] = {}
        for network, group in groups:
            trained |= _train_group(network, config.classifier, dataset, group, events)
            if events.is_stopping():
                return None
        return trained

    trained = load_or_train(directory, dataset, config.classifier, train_all)
    if trained is None:
        return None
    found = {}
    for network, group in groups:
        apply = jax.jit(network.apply)
        for modality in group:
            stored = trained[modality]
            bound = jax.tree_util.Partial(apply, stored["params"])
            found[modality] = Reader(bound, float(stored["accuracy"]))
    return found


def check(config: Any, dataset: Dataset, metric: str = "coherence") -> None:
    """Checks, before training, that classifiers can be made and trained.

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
    """Classifiers of another architecture and seed; otherwise as `get_classifiers`."""
    return get_classifiers(_of_second(config), dataset, directory, events)


def check_second(config: Any, dataset: Dataset, metric: str = "second_judge") -> None:
    """`check` of what `get_second` trains."""
    check(_of_second(config), dataset, metric)


def _of_second(config: Any) -> Any:
    """The config of second classifiers: MLPs where the first are not, and conversely.

    Classifiers of vectors and tokens are MLPs in both, from different seeds.
    """
    second = config.copy_and_resolve_references()
    is_mlp = config.classifier.network == "mlp"
    second.classifier.network = "conv" if is_mlp else "mlp"
    second.classifier.seed += 1
    return second


def make_networks(
    config: Any, dataset: Dataset, metric: str = "coherence"
) -> list[tuple[Any, list[str]]]:
    """The Linen modules of the classifiers: one output a class of the labels.

    Args:
      config: with the fields `classifier` of configs/base.py.
      dataset: the real data.
      metric: name of the metric that needs them.

    Returns:
      Pairs of a module and the modalities of one shape that it is for.

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
    """The name of a modality's network: that of the config, but only for images."""
    is_picture = is_image(dataset.train.modalities[modality])
    return config[section].network if is_picture else "mlp"


def classifier_task(network: Any, modalities: list[str], shape: Shape) -> step.Task:
    """Training of one classifier, `hyper.modality` says of which modality."""

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
    """Modalities that can share a compiled program, because their shapes agree."""
    groups: dict[tuple, list[str]] = {}
    shapes = dataset.shapes()
    for modality, x in dataset.train.modalities.items():
        groups.setdefault((x.dtype, shapes[modality]), []).append(modality)
    return list(groups.values())


def _train_group(
    network: Any, settings: Any, dataset: Dataset, group: list[str], events: loop.Events
) -> dict:
    """Trains one classifier a modality of a group; modality -> its file's content."""
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
    params = fit_members(task, hyper, data, settings, events)
    apply = jax.jit(network.apply)
    stored = {}
    for k, modality in enumerate(group):
        own = sweep.member(params, k)
        accuracy = _accuracy(apply, own, dataset.test, modality)
        stored[modality] = {"params": own, "accuracy": accuracy}
    return stored


def fit_members(
    task: step.Task,
    hyper: Any,
    data: Mapping[str, np.ndarray],
    settings: Any,
    events: loop.Events,
) -> Params:
    """Trains the networks of an evaluation, one a member.

    Args:
      task: of one member.
      hyper: fields [K].
      data: modality -> uint8 [N, ...], and what else the task asks for, [N].
      settings: with num_steps, batch_size (larger than N: N) and seed.
      events: what the train loop calls.

    Returns:
      The parameters of all members, [K, ...], in host memory.
    """
    keys = jax.random.split(jax.random.key(settings.seed), len(hyper.learning_rate))
    batch_size = min([settings.batch_size, *(len(leaf) for leaf in data.values())])
    batch = {name: leaf[:batch_size] for name, leaf in data.items()}
    execution = mapping.choose_execution(
        "auto", 0, task.convolutions, jax.default_backend()
    )
    execution = mapping.place_data(execution, examples.AUTO, data, batch_size)
    state = loop.fit(
        compile_steps(task, execution),
        init_states(task, hyper, keys, batch),
        hyper,
        keys,
        data,
        num_steps=settings.num_steps,
        batch_size=batch_size,
        data_seed=settings.seed,
        execution=execution,
        events=events,
    )
    return jax.device_get(state.params)


def load_or_train(
    directory: str, dataset: Dataset, settings: Any, train_all: Callable
) -> dict | None:
    """Parameters trained on these data with these settings, kept in a file.

    Args:
      directory: where such files are kept; where it cannot be written, none is.
      dataset: its fingerprint is one half of the file's name.
      settings: a section of a config, the other half.
      train_all: () -> a tree of dicts and arrays, or None if it was stopped; called
        where there is no file, or one that cannot be read.

    Returns:
      The content of the file, or what has been trained; None if that was stopped.
    """
    described = json.dumps(settings.to_dict(), sort_keys=True)
    source = f"{dataset.fingerprint} {described}"
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = Path(directory) / f"{name}.msgpack"
    trained = _load(path)
    if trained is None:
        trained = train_all()
        if trained is not None and is_writable(path.parent):
            _save(path, trained)
    return trained


def _accuracy(apply: Callable, params: Params, split: Split, modality: str) -> float:
    """The share of a modality's examples that are classified correctly, in [0, 1]."""
    split = split.take(np.flatnonzero(split.is_observed(modality)))
    labels = require_labels(split, "coherence")
    correct = 0
    for start in range(0, split.num_examples, _EVAL_BATCH):
        part = slice(start, start + _EVAL_BATCH)
        _, logits = apply(params, to_unit_interval(split.modalities[modality][part]))
        correct += int(np.sum(np.argmax(logits, -1) == labels[part]))
    return correct / split.num_examples if split.num_examples else float("nan")


def _save(path: Path, trained: Mapping[str, Any]) -> None:
    """Writes a file whose first bytes are the sha256 of the others."""
    body = flax.serialization.msgpack_serialize(dict(trained))
    keep(path, hashlib.sha256(body).digest() + body)


def _load(path: Path) -> dict | None:
    """The content of a file; None if there is none or it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None  # truncated, damaged or foreign: train again and overwrite it
    return flax.serialization.msgpack_restore(body)
