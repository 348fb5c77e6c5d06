"""Examples of one modality, each generated given some modalities of a test example.

The conditions are those of the metrics of conditional generation: everything
(reconstruction), all but the modality itself (leave one out), and a number of others.
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
      target: the modality that is generated.
      rows: int [n], the test examples, of which all have the target, in a random
        order: the first ones are a random part.
      given: bool [n, M], the modalities that are given of each.
    """

    name: str
    target: str
    rows: np.ndarray
    given: np.ndarray


def conditions(test: Split, target: str) -> list[Condition]:
    """The conditions that a modality is generated under.

    Of a size with several subsets, each example is given one of them, drawn at random,
    the same for every model: a size costs one draw an example, however many subsets it
    has.

    Args:
      test: N examples of M modalities.
      target: name of the modality.

    Returns:
      RECONSTRUCTION from all that is observed; and of more than one modality size_1,
      ..., size_(M - 2), of others that are observed, and LEAVE_ONE_OUT, of all.
    """
    num_others = len(test.modalities) - 1
    sizes = range(1, num_others + 1)
    return [
        reconstruction(test, target),
        *(given_others(test, target, size) for size in sizes),
    ]


def reconstruction(test: Split, target: str) -> Condition:
    """All examples that have a modality, given all that is observed of them."""
    is_there = test.is_observed(target)
    return _condition(RECONSTRUCTION, target, is_there, _observed(test))


def given_others(test: Split, target: str, size: int) -> Condition:
    """Examples that have a modality and `size` others, given so many, at random."""
    others = _observed(test)
    others[:, list(test.modalities).index(target)] = False
    has_enough = others.sum(axis=1) >= size
    # Rank of each in a random order in which what may not be given comes last.
    rng = np.random.default_rng([zlib.crc32(target.encode()), size])
    order = np.where(others, rng.random(others.shape), 2.0).argsort(axis=1)
    given = others & (order.argsort(axis=1) < size)
    is_all = size == len(test.modalities) - 1
    name = LEAVE_ONE_OUT if is_all else f"size_{size}"
    return _condition(name, target, test.is_observed(target) & has_enough, given)


def leave_one_out(test: Split, target: str) -> Condition:
    """Examples that have all modalities, given all but one."""
    return given_others(test, target, len(test.modalities) - 1)


def order_of(num: int) -> np.ndarray:
    """The order in which examples are taken: a random one, the same for every model."""
    return np.random.default_rng(0).permutation(num)


def _condition(
    name: str, target: str, is_fit: np.ndarray, given: np.ndarray
) -> Condition:
    """A condition on those examples that are fit for it, bool [N]."""
    rows = order_of(len(is_fit))
    rows = rows[is_fit[rows]]
    return Condition(name, target, rows, given[rows])


def _observed(test: Split) -> np.ndarray:
    """Modalities that are observed of each example, bool [N, M], a copy."""
    return np.stack([test.is_observed(m) for m in test.modalities], axis=1)


def numpy_rng(key: PRNGKey) -> np.random.Generator:
    """A generator of NumPy, seeded by a key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def no_example(condition: Condition) -> Undefined:
    """The value where no test example has what a condition needs."""
    needed = "itself" if condition.name == RECONSTRUCTION else "what it is given"
    return Undefined(
        f"{condition.target} ({condition.name}): too few test examples have it and "
        f"{needed}"
    )


def summarise(
    tag: str, values: Mapping[tuple[str, str], float], num_modalities: int
) -> dict[str, float]:
    """The tags of a metric of conditional generation.

    Args:
      tag: of the metric.
      values: (name of a condition, target) -> value.
      num_modalities: M, of the model.

    Returns:
      tag/condition, means over targets; tag/condition/m of all but sizes; and where
      there are several conditions tag/size_(M - 1), which is to leave one out.
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
