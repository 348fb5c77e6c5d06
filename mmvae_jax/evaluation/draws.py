"""Generated examples of one member, drawn once for all metrics.

Encoding, flows and decoding take most of the time of an evaluation.
`evaluate.evaluate_member` therefore gives all metrics the same `Draws`; a metric that
is called alone makes its own. Images are stored as bytes: 120 MB for 10,000 prior
samples of PolyMNIST, 590 MB more for all conditions of `conditionals`, and 200 MB for
experts of 512 dimensions. Coherence of all subsets makes its own draws, because 2^M - 1
subsets are too many to store.
"""

import zlib
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from mmvae_jax.data.dataset import is_image, to_unit_interval
from mmvae_jax.evaluation.conditionals import Condition, order_of
from mmvae_jax.evaluation.generate import (
    is_finite,
    latents_given,
    prior_means,
    to_bytes,
    to_examples,
)
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.training.execution import jit_precisely
from mmvae_jax.types import (
    Array,
    Distribution,
    MultimodalVAE,
    Params,
    PRNGKey,
)


class Generated(NamedTuple):
    """Generated examples of one modality, in the types of real examples.

    Attributes:
      examples: [n, ...]: images uint8, vectors float, tokens int.
      is_finite: bool [n], whether the likelihood's mean is finite, which bytes and
        tokens do not show.
    """

    examples: np.ndarray
    is_finite: np.ndarray

    def values(self) -> np.ndarray:
        """The examples, images in [0, 1]; NaN if not finite."""
        values = np.asarray(to_unit_interval(self.examples))
        if self.is_finite.all() or not np.issubdtype(values.dtype, np.floating):
            return values
        shape = (-1, *[1] * (values.ndim - 1))
        return np.where(self.is_finite.reshape(shape), values, np.nan)


class Draws:
    """Unconditional and conditional examples of one member.

    Draws do not depend on the metrics that use them, nor on the number of examples: the
    first n of more draws are the same.

    Attributes:
      model: for one sweep member.
      params: parameters.
      data: test split, and the batch size B of every call to the model.
      key: random key of all draws.
    """

    def __init__(
        self, model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
    ) -> None:
        """Starts without draws."""
        self.model, self.params, self.data, self.key = model, params, data, key
        self._prior: dict[str, Generated] = {}
        self._conditional: dict[tuple[str, str], list[Generated]] = {}
        self._experts: dict[int, Distribution] = {}

    def prior(self, modality: str, num: int) -> Generated:
        """The examples of a modality from `num` prior samples."""
        if not self._prior or len(self._prior[modality].examples) < num:
            self._prior = self._from_prior(num)
        return _first(self._prior[modality], num)

    def conditional(self, condition: Condition, num: int | None = None) -> Generated:
        """One draw per example: z ~ q(z|x_A), and the mean of p(x_m|z) of the target.

        Args:
          condition: from `conditionals`, with at least one example.
          num: number of its examples, the first ones; None: all.

        Returns:
          Generated, in the order of the condition's rows.
        """
        parts = self._conditional.setdefault((condition.name, condition.target), [])
        return self._drawn(condition, num, self._key_of(condition), parts)

    def again(
        self,
        condition: Condition,
        turn: int,
        num: int | None = None,
        *,
        has_noise: bool = False,
    ) -> Generated:
        """One of several draws for the same examples, which is not stored.

        Args:
          condition: as in `conditional`.
          turn: number of the draw, >= 0.
          num: as in `conditional`.
          has_noise: whether the example is a draw of the likelihood p(x_m|z) instead
            of its mean (of tokens: instead of the most probable).
        """
        key = jax.random.fold_in(self._key_of(condition), 1 + turn)
        return self._drawn(condition, num, key, [], has_noise)

    def _drawn(
        self,
        condition: Condition,
        num: int | None,
        key: PRNGKey,
        parts: list[Generated],
        has_noise: bool = False,
    ) -> Generated:
        """The first `num` draws; adds missing batches to `parts`."""
        total = len(condition.rows)
        num = total if num is None else min(num, total)
        while sum(len(x.examples) for x in parts) < num:
            parts.append(self._batch(condition, len(parts), key, has_noise))
        joined = Generated(*(np.concatenate(x) for x in zip(*parts, strict=True)))
        return _first(joined, num)

    @cached_property
    def _order(self) -> np.ndarray:
        """The rows of the test split in the order of use."""
        return order_of(self.data.test.num_examples)

    def _key_of(self, condition: Condition) -> PRNGKey:
        """The key of a condition's draws."""
        name = f"{condition.name} {condition.target}"
        return jax.random.fold_in(self.key, zlib.crc32(name.encode()))

    def _from_prior(self, num: int) -> dict[str, Generated]:
        """Modality -> examples of the first `num` prior samples."""
        parts: dict[str, list[Generated]] = {m: [] for m in self.model.modalities}
        size = self.data.batch_size
        for means, count in prior_means(
            self.model, self.params, size, jax.random.fold_in(self.key, 0), num
        ):
            for m, mean in means.items():
                rows = np.arange(size) < count
                parts[m].append(self._kept(m, mean, rows))
        return {
            m: Generated(*(np.concatenate(x) for x in zip(*own, strict=True)))
            for m, own in parts.items()
        }

    def _batch(
        self, condition: Condition, index: int, key: PRNGKey, has_noise: bool
    ) -> Generated:
        """The draws for the examples of a condition in one batch."""
        size, total = self.data.batch_size, len(self._order)
        places = np.arange(index * size, (index + 1) * size)
        rows = self._order[places % total]
        given = np.zeros((total, len(self.model.modalities)), bool)
        given[condition.rows] = condition.given
        is_asked = np.isin(rows, condition.rows) & (places < total)
        experts = self._encoded(index, rows)
        keys = jax.random.split(jax.random.fold_in(key, index), 3)
        subset = given[rows].T
        z = latents_given(self.model, self.params, experts, subset, keys)
        target = condition.target
        mean = _of_one(self.model.decode, target, self.params, z)
        drawn = None
        if has_noise:
            function = self.model.sample_likelihood
            drawn = _of_one(function, target, self.params, z, keys[2])
        return self._kept(target, mean, is_asked, drawn)

    def _encoded(self, index: int, rows: np.ndarray) -> Distribution:
        """The experts of one batch, encoded once."""
        if index not in self._experts:
            leaves = self.data.test.leaves().items()
            batch = {name: to_unit_interval(x[rows]) for name, x in leaves}
            self._experts[index] = self.model.encode(self.params, batch)
        return self._experts[index]

    def _kept(
        self, modality: str, mean: Array, rows: np.ndarray, drawn: Array | None = None
    ) -> Generated:
        """Converts some rows of likelihood means [B, ...], or draws, to examples."""
        drawn = mean if drawn is None else drawn
        example = to_examples(self.data.test, {modality: drawn}, self.data.words)
        x = example[modality]
        if is_image(self.data.test.modalities[modality]):
            x = to_bytes(x)
        examples, finite = jax.device_get((x, is_finite(mean)))
        return Generated(examples[rows], finite[rows])


def draws_of(
    model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
) -> Draws:
    """The shared draws of all metrics, or new ones for a metric that is called alone.

    Args:
      model: for one sweep member.
      params: parameters.
      data: the data of the metric.
      key: random key of new draws.
    """
    return data.draws or Draws(model, params, data, key)


@partial(jit_precisely, static_argnums=(0, 1))
def _of_one(
    function: Callable, target: str, params: Params, z: Array, *key: PRNGKey
) -> Any:
    """Output of a function of latent vectors for one modality."""
    return function(params, z, *key)[target]


def _first(generated: Generated, num: int) -> Generated:
    """The first of some examples."""
    return Generated(*(x[:num] for x in generated))
