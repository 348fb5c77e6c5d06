"""Examples of one modality, each generated given some modalities of a test example.

The conditions are those of the metrics of conditional generation: everything
(reconstruction), all but the modality itself (leave one out), and a number of others.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.generate import (
    as_coarse,
    batches,
    is_finite,
    latents_given,
    observed_subset,
    to_examples,
)
from mmvae_jax.evaluation.metric import EvaluationData, Undefined, mean
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

RECONSTRUCTION, LEAVE_ONE_OUT = "reconstruction", "leave_one_out"


class Condition(NamedTuple):
    """Modalities of test examples from which one modality is generated.

    Attributes:
      name: RECONSTRUCTION, LEAVE_ONE_OUT, or "size_1", ...
      target: the modality that is generated.
      rows: int [n], the test examples, of which all have the target.
      given: bool [n, M], the modalities that are given of each.
    """

    name: str
    target: str
    rows: np.ndarray
    given: np.ndarray


class Generated(NamedTuple):
    """Examples of one modality.

    Attributes:
      examples: [n, ...] as of `generate.to_examples`, images rounded to 8 bits.
      is_finite: bool [n], of the likelihood's means; tokens do not show it.
    """

    examples: np.ndarray
    is_finite: np.ndarray


def conditions(
    test: Split, target: str, rng: np.random.Generator, num: int | None = None
) -> list[Condition]:
    """The conditions that a modality is generated under.

    Of a size with several subsets, each example is given one of them, drawn at random:
    a size costs one draw an example, however many subsets it has.

    Args:
      test: N examples of M modalities.
      target: name of the modality.
      rng: of the subsets, and of the examples if there are more than `num`.
      num: examples of each condition at most; None: all that have what is needed.

    Returns:
      RECONSTRUCTION from all that is observed; and of more than one modality size_1,
      ..., size_(M - 2), of others that are observed, and LEAVE_ONE_OUT, of all.
    """
    found = [reconstruction(test, target)]
    num_others = len(test.modalities) - 1
    found += [given_others(test, target, k, rng) for k in range(1, num_others + 1)]
    return [at_most(one, rng, num) for one in found]


def reconstruction(test: Split, target: str) -> Condition:
    """All examples that have a modality, given all that is observed of them."""
    rows = np.flatnonzero(test.is_observed(target))
    return Condition(RECONSTRUCTION, target, rows, _observed(test)[rows])


def given_others(
    test: Split, target: str, size: int, rng: np.random.Generator
) -> Condition:
    """Examples that have a modality and `size` others, given so many, at random."""
    others = _observed(test)
    others[:, list(test.modalities).index(target)] = False
    has_enough = others.sum(axis=1) >= size
    rows = np.flatnonzero(test.is_observed(target) & has_enough)
    others = others[rows]
    # Rank of each in a random order in which what may not be given comes last.
    order = np.where(others, rng.random(others.shape), 2.0).argsort(axis=1)
    given = others & (order.argsort(axis=1) < size)
    is_all = size == len(test.modalities) - 1
    return Condition(LEAVE_ONE_OUT if is_all else f"size_{size}", target, rows, given)


def leave_one_out(test: Split, target: str) -> Condition:
    """Examples that have all modalities, given all but one."""
    num_others = len(test.modalities) - 1
    return given_others(test, target, num_others, np.random.default_rng(0))


def _observed(test: Split) -> np.ndarray:
    """Modalities that are observed of each example, bool [N, M], a copy."""
    return np.stack([test.is_observed(m) for m in test.modalities], axis=1)


def at_most(
    condition: Condition, rng: np.random.Generator, num: int | None
) -> Condition:
    """A condition on `num` random ones of its examples, or all if there are fewer."""
    if num is None or len(condition.rows) <= num:
        return condition
    kept = np.sort(rng.permutation(len(condition.rows))[:num])
    rows, given = condition.rows[kept], condition.given[kept]
    return condition._replace(rows=rows, given=given)


def draw(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    condition: Condition,
    key: PRNGKey,
    *,
    has_noise: bool = False,
) -> Generated:
    """One draw an example: z ~ q(z|x_A), and the mean of p(x_m|z) of the target.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: test split.
      condition: on at least one example.
      key: of the posteriors' components and samples.
      has_noise: whether normal noise of the likelihood's standard deviation is added
        to its mean; of tokens there is none.

    Returns:
      Generated, in the order of the condition's rows.
    """
    target = condition.target
    real = data.test.modalities[target]
    # What is not given is missing: encoders do not see it either.
    split = data.test.take(condition.rows)._replace(observed=condition.given)
    parts = []
    for index, (batch, num) in enumerate(batches(split, data.batch_size)):
        keys = jax.random.split(jax.random.fold_in(key, index), 3)
        experts = model.encode(params, batch)
        subset = observed_subset(model, batch)
        z = latents_given(model, params, experts, subset, keys)
        own = {target: model.decode(params, z)[target]}
        if has_noise:
            deviation = model.deviation(params, z)[target]
            own[target] += deviation * jax.random.normal(keys[2], deviation.shape)
        examples = to_examples(data.test, own, data.words)[target]
        found = jax.device_get((as_coarse(real, examples), is_finite(own[target])))
        parts.append([x[:num] for x in found])
    return Generated(*(np.concatenate(x) for x in zip(*parts, strict=True)))


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
