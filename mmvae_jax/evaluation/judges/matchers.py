"""Matchers: networks that tell which examples belong together, without labels.

One network per modality maps examples to features. The logits of a pair of modalities
are the inner products of features times a scale. All networks are trained together on
the real training tuples to find the partner of an example in the batch, in both
directions (InfoNCE; van den Oord et al., 2018). They learn the information that
modalities share; on PolyMNIST that is the digit.
"""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmvae_jax import networks
from mmvae_jax.data.dataset import Dataset, is_image, to_unit_interval
from mmvae_jax.errors import ArgumentError
from mmvae_jax.evaluation.judges import classifiers, training
from mmvae_jax.evaluation.metric import Matchers
from mmvae_jax.training import loop, step, sweep
from mmvae_jax.training.execution import jit_precisely
from mmvae_jax.types import Array, Batch, Params, PRNGKey

# Initial logit scale (inverse temperature) of a pair of modalities; cosines are in
# [-1, 1].
_INITIAL_SCALE = 5.0


class _Group(NamedTuple):
    """Modalities of one kind and shape, and the module of their networks.

    Attributes:
      network: Linen module, x [B, ...] -> (hidden features, features [B, F]).
      modalities: names.
      shape: shape of one example.
      is_image: whether examples are images, which are centred at 0.
    """

    network: Any
    modalities: tuple[str, ...]
    shape: tuple[int, ...]
    is_image: bool


class _MatcherHyper(NamedTuple):
    """Hyper-parameters of the one member.

    Attributes:
      learning_rate: learning rate of Adam; float32 [1].
    """

    learning_rate: Array


def get_matchers(
    config: Any,
    dataset: Dataset,
    directory: str,
    events: loop.Events = loop.Events(),  # noqa: B008 (a NamedTuple is immutable)
) -> Matchers | None:
    """Loads the matching networks from `directory`, or trains them.

    Args:
      config: with the section `matcher` of configs/base.py.
      dataset: the real data, two modalities or more; its fingerprint names the cached
        file. Labels are not used.
      directory: folder of the matching networks.
      events: callbacks of the train loop.

    Returns:
      Matchers; None if `events.is_stopping` ended the training.

    Raises:
      UsageError: the network is unknown, no examples have all modalities, or the
        training diverged.
    """
    check(config, dataset)
    groups = make_networks(config, dataset)
    train_split = dataset.train.complete()

    def train_all() -> dict | None:
        params, finite = training.fit_members(
            _matching_task(groups),
            _MatcherHyper(jnp.full(1, config.matcher.learning_rate, jnp.float32)),
            dict(train_split.modalities),
            config.matcher,
            events,
        )
        diverged = [] if finite.all() else list(train_split.modalities)
        training.require_converged(diverged, "matcher", config.matcher)
        return None if events.is_stopping() else sweep.member(params, 0)

    params = training.load_or_train(directory, dataset, config.matcher, train_all)
    if params is None:
        return None
    scale = {}
    for pair, value in zip(_pairs(groups), np.exp(params["log_scales"]), strict=True):
        scale[pair] = scale[pair[::-1]] = float(value)
    embed = {}
    for group in groups:
        apply = jit_precisely(partial(_embed, group))
        for m in group.modalities:
            own = jax.device_put(params["networks"][m])  # once
            embed[m] = jax.tree_util.Partial(apply, own)
    return Matchers({m: embed[m] for m in dataset.train.modalities}, scale)


def check(config: Any, dataset: Dataset, metric: str = "matching") -> None:
    """Checks that matching networks can be built and trained.

    Raises:
      UsageError: the network is unknown, or no examples have all modalities.
    """
    make_networks(config, dataset)
    num = dataset.train.complete().num_examples
    if num < 2:
        raise ArgumentError(
            "metric {!r} needs training examples with all modalities, got {}: leave "
            "it out of {metrics}",
            metric,
            num,
        )


def make_networks(config: Any, dataset: Dataset) -> list[_Group]:
    """The networks of the matchers: classifiers, whose outputs are the features.

    Raises:
      UsageError: the network is unknown.
    """
    settings, shapes = config.matcher, dataset.shapes()
    groups = []
    for modalities in classifiers.groups_of_one_shape(dataset):
        name = classifiers.network_for(config, dataset, modalities[0], "matcher")
        shape = shapes[modalities[0]]
        network = networks.make_classifier(name, shape, settings.feature_dim)
        is_images = is_image(dataset.train.modalities[modalities[0]])
        groups.append(_Group(network, tuple(modalities), shape, is_images))
    return groups


def _matching_task(groups: list[_Group]) -> step.Task:
    """Training of all modalities' networks on all pairs.

    Args:
      groups: from `make_networks`. The networks of a group are mapped, which compiles
        much faster.

    Returns:
      The task; its loss is the sum over pairs of `info_nce`, in nats.
    """
    modalities = [m for group in groups for m in group.modalities]
    pairs = np.array([[modalities.index(m) for m in pair] for pair in _pairs(groups)])
    first, second = pairs.T

    def init(key: PRNGKey) -> Params:
        params: dict[str, Params] = {}
        for i, group in enumerate(groups):
            names = group.modalities
            keys = jax.random.split(jax.random.fold_in(key, i), len(names))
            example = networks.blank(group.shape)
            own = jax.vmap(lambda key, x=example, g=group: g.network.init(key, x))(keys)
            params |= {m: sweep.member(own, k) for k, m in enumerate(names)}
        scales = jnp.full(len(pairs), jnp.log(_INITIAL_SCALE))
        return {"networks": params, "log_scales": scales}

    def loss(
        params: Params, hyper: _MatcherHyper, key: PRNGKey, batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        del hyper, key
        by_group = []
        for group in groups:
            own = [params["networks"][m] for m in group.modalities]
            by_group.append(
                jax.vmap(partial(_embed, group))(
                    jax.tree.map(lambda *leaves: jnp.stack(leaves), *own),
                    to_unit_interval(jnp.stack([batch[m] for m in group.modalities])),
                )
            )
        features = jnp.concatenate(by_group)
        logits = jnp.einsum("pbf,pcf->pbc", features[first], features[second])
        scales = jnp.exp(params["log_scales"])
        value = jnp.sum(jax.vmap(info_nce)(scales[:, None, None] * logits))
        return value, {"train/loss": value}

    forms = networks.convolution_forms(*(group.network for group in groups))
    return step.Task(init, loss, convolutions=forms)


def _pairs(groups: list[_Group]) -> list[tuple[str, str]]:
    """All M (M - 1) / 2 pairs of modalities, in the order of their scales."""
    names = [m for group in groups for m in group.modalities]
    return list(itertools.combinations(names, 2))


def info_nce(logits: Array) -> Array:
    """The contrastive loss of a batch of pairs (van den Oord et al., 2018, Eq. 4).

    Args:
      logits: [B, B], of x_i with y_j; real pairs on the diagonal.

    Returns:
      [], nats: the mean of the cross-entropies of choosing y_i for x_i, and x_i for
      y_i. In expectation, log B minus this is a lower bound on the mutual information.
    """
    rows = jnp.arange(logits.shape[0])
    both = [
        optax.softmax_cross_entropy_with_integer_labels(direction, rows)
        for direction in (logits, logits.T)
    ]
    return jnp.mean(jnp.stack(both))


def _embed(group: _Group, params: Params, x: Array) -> Array:
    """Features [B, F] of length one.

    Training has no dropout and centres images at 0; otherwise it may not leave the
    initial plateau, where the features of all images are equal.
    """
    centred = 2.0 * x - 1.0 if group.is_image else x
    _, features = group.network.apply(params, centred)
    squared = jnp.sum(features**2, axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(squared + 1e-12)
