"""One modality of test examples, generated from a subset of their modalities.

The conditions of the metrics of conditional generation are all modalities
(reconstruction), all others (leave one out), and subsets of others of a given size.
"""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.metric import Undefined, mean
from mmvae_jax.types import PRNGKey

RECONSTRUCTION, LEAVE_ONE_OUT = "reconstruction", "leave_one_out"


class Condition(NamedTuple):
    """Modalities of test examples from which one modality is generated.

    Attributes:
      name: RECONSTRUCTION, LEAVE_ONE_OUT, or "size_1", ...
      target: the generated modality.
      rows: int [n], test examples that have the target, in random order, so that the
        first ones are a random sample.
      given: bool [n, M], the given modalities of each example.
    """

    name: str
    target: str
    rows: np.ndarray
    given: np.ndarray


def conditions(test: Split, target: str) -> list[Condition]:
    """The conditions for generating a modality.

    Each example has one random subset of each size, the same for every model, so that a
    size needs one draw per example.

    Args:
      test: N examples of M modalities.
      target: name of the modality.

    Returns:
      RECONSTRUCTION from all observed modalities; and for M > 1 size_1, ...,
      size_(M - 2), from observed other modalities, and LEAVE_ONE_OUT, from all others.
    """
    num_others = len(test.modalities) - 1
    sizes = range(1, num_others + 1)
    return [
        reconstruction(test, target),
        *(given_others(test, target, size) for size in sizes),
    ]


def reconstruction(test: Split, target: str) -> Condition:
    """All examples with a modality, given all their observed modalities."""
    is_there = test.is_observed(target)
    return _condition(RECONSTRUCTION, target, is_there, _observed(test))


def given_others(test: Split, target: str, size: int) -> Condition:
    """Examples with a modality, given `size` random other modalities."""
    others = _observed(test)
    others[:, list(test.modalities).index(target)] = False
    has_enough = others.sum(axis=1) >= size
    # Rank in a random order, with modalities that may not be given at the end.
    rng = np.random.default_rng([zlib.crc32(target.encode()), size])
    order = np.where(others, rng.random(others.shape), 2.0).argsort(axis=1)
    given = others & (order.argsort(axis=1) < size)
    is_all = size == len(test.modalities) - 1
    name = LEAVE_ONE_OUT if is_all else f"size_{size}"
    return _condition(name, target, test.is_observed(target) & has_enough, given)


def leave_one_out(test: Split, target: str) -> Condition:
    """Complete examples, given all modalities except the target."""
    return given_others(test, target, len(test.modalities) - 1)


def order_of(num: int) -> np.ndarray:
    """A fixed random order of examples."""
    return np.random.default_rng(0).permutation(num)


def _condition(
    name: str, target: str, is_fit: np.ndarray, given: np.ndarray
) -> Condition:
    """A condition for the examples in `is_fit`, bool [N]."""
    rows = order_of(len(is_fit))
    rows = rows[is_fit[rows]]
    return Condition(name, target, rows, given[rows])


def _observed(test: Split) -> np.ndarray:
    """The observed modalities of each example, bool [N, M], a copy."""
    return np.stack([test.is_observed(m) for m in test.modalities], axis=1)


def numpy_rng(key: PRNGKey) -> np.random.Generator:
    """A NumPy generator, seeded by a key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def no_example(condition: Condition) -> Undefined:
    """The value if no test example fits a condition."""
    needed = "itself" if condition.name == RECONSTRUCTION else "what it is given"
    return Undefined(
        f"{condition.target} ({condition.name}): too few test examples have it and "
        f"{needed}"
    )


def summarise(
    tag: str, values: Mapping[tuple[str, str], float], num_modalities: int
) -> dict[str, float]:
    """The tags and values of a metric of conditional generation.

    Args:
      tag: tag of the metric.
      values: (name of a condition, target) -> value.
      num_modalities: M, of the model.

    Returns:
      tag/condition, means over targets; tag/condition/m, except for sizes; and with
      several conditions tag/size_(M - 1), equal to LEAVE_ONE_OUT.
    """
    tags: dict[str, float] = {}
    names = dict.fromkeys(name for name, _ in values)
    for name in names:
        own = {m: x for (other, m), x in values.items() if other == name}
        tags[f"{tag}/{name}"] = mean(own.values())
        if name in (RECONSTRUCTION, LEAVE_ONE_OUT):
            tags |= {f"{tag}/{name}/{m}": value for m, value in own.items()}
        if name == LEAVE_ONE_OUT and len(names) > 1:
            tags[f"{tag}/size_{num_modalities - 1}"] = tags[f"{tag}/{name}"]
    return tags
