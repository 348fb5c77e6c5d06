"""The family of mixture-based multimodal VAEs as data (Definition 2).

A model of the family is a set S of subsets A of the modalities with mixture weights
omega_A; MVAE, MMVAE and MoPoE-VAE differ only in S and the weights. A third array says
whether the prior is one more expert, which the paper's definition leaves open.
`Pooling` says how the experts of a subset are combined; in these models, by their
product.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.types import AnyArray

PRIOR_EXPERT_CHOICES = ("paper", "released", "always", "never")
POOLINGS = ("product", "barycentre", "dependent", "hoelder")
POOLED_OVER = ("vector", "dimensions")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Pooling:
    """How the experts of a subset are combined to its posterior (`posteriors.pool`).

    Attributes:
      name: one of POOLINGS.
      correlation: for "dependent", the correlation rho of the errors of two experts, in
        [0, 1).
      pooled_over: for "hoelder", one of POOLED_OVER: pools the density of the latent
        vector, or of each dimension separately.

    Raises:
      ArgumentError: a value is invalid.
    """

    name: str = "product"
    correlation: float = 0.5
    pooled_over: str = "vector"

    def __post_init__(self) -> None:
        """Checks the values."""
        for field, choices in (("name", POOLINGS), ("pooled_over", POOLED_OVER)):
            if getattr(self, field) not in choices:
                words = f"unknown {{{field}}} {{!r}}; choose one of {{}}"
                raise ArgumentError(words, getattr(self, field), ", ".join(choices))
        if not 0 <= self.correlation < 1:
            words = "{correlation} must be in [0, 1), got {}"
            raise ArgumentError(words, self.correlation)


PRODUCT = Pooling()


class SubsetMixture(NamedTuple):
    """S = {(A, omega_A)} of Definition 2, and the pooling of the experts of A.

    Attributes:
      masks: bool [S, M], the modalities of each subset; no row is all False.
      weights: float32 [S], omega_A, in [0, 1], summing to 1.
      prior_expert: bool [S], whether N(0, I) is an expert of the subset.
      pooling: how the experts are combined.

    A model's mixture has NumPy arrays, which are constants in tracing, except for
    learned weights. A mixture of the observed subsets (`posteriors`) may have traced
    arrays with an axis of examples.
    """

    masks: AnyArray
    weights: AnyArray
    prior_expert: AnyArray
    pooling: Pooling = PRODUCT


def subset_mixture(
    masks: ArrayLike, weights: ArrayLike, prior_expert: ArrayLike
) -> SubsetMixture:
    """Builds a SubsetMixture after checks.

    Args:
      masks: bool [S, M].
      weights: float [S].
      prior_expert: bool [S].

    Returns:
      The mixture, its weights as float32.

    Raises:
      UsageError: a subset is empty or repeated, weights are negative or do not sum to
        1, or shapes do not match.
    """
    masks = np.asarray(masks, bool)
    weights = np.asarray(weights, np.float64)
    prior_expert = np.asarray(prior_expert, bool)
    if masks.ndim != 2 or weights.shape != masks.shape[:1]:
        raise UsageError(
            f"a subset mixture needs one weight a subset: {masks.shape[0]} subsets, "
            f"{weights.size} weights"
        )
    if prior_expert.shape != weights.shape:
        raise UsageError("prior_expert needs one entry a subset")
    if not masks.any(axis=1).all():
        raise UsageError(f"subset {int(np.argmin(masks.any(axis=1)))} is empty")
    if len(np.unique(masks, axis=0)) != len(masks):
        raise UsageError("a subset is listed twice; add its weights up instead")
    if (weights < 0).any() or not np.isclose(weights.sum(), 1.0, atol=1e-6):
        raise UsageError(
            f"subset weights must be >= 0 and sum to 1, got {weights.tolist()} "
            f"(sum {weights.sum():.6g})"
        )
    return SubsetMixture(masks, weights.astype(np.float32), prior_expert)


def pooled(mixture: SubsetMixture, pooling: Pooling) -> SubsetMixture:
    """The mixture with another pooling.

    Raises:
      UsageError: the prior is an expert, which only products allow.
    """
    if pooling.name != "product" and np.any(mixture.prior_expert):
        raise UsageError(
            f"the prior can be an expert only in products, not with the pooling "
            f"{pooling.name!r}; choose prior_expert = 'never'"
        )
    return mixture._replace(pooling=pooling)


def all_subsets(num_modalities: int) -> np.ndarray:
    """The 2^M - 1 non-empty subsets as bool [2^M - 1, M], by size, full set last."""
    rows = [
        [m in chosen for m in range(num_modalities)]
        for size in range(1, num_modalities + 1)
        for chosen in itertools.combinations(range(num_modalities), size)
    ]
    return np.array(rows, bool)


def full_set(num_modalities: int, prior_expert: str = "paper") -> SubsetMixture:
    """MVAE without ELBO sub-sampling: the full set alone (Wu & Goodman, 2018).

    Here and below, `prior_expert` is one of PRIOR_EXPERT_CHOICES: "paper" (as defined
    by the model's authors; for MVAE, the prior is an expert), "released" (as in the
    code of Sutter et al., 2021), "always" or "never".
    """
    masks = np.ones((1, num_modalities), bool)
    return _uniform(masks, prior_expert, {"paper": [True], "released": [True]})


def unimodal_subsets(num_modalities: int, prior_expert: str = "paper") -> SubsetMixture:
    """MMVAE: the M unimodal subsets, uniformly weighted (Shi et al., 2019)."""
    masks = np.eye(num_modalities, dtype=bool)
    no_prior = np.zeros(num_modalities, bool)
    return _uniform(masks, prior_expert, {"paper": no_prior, "released": no_prior})


def powerset(num_modalities: int, prior_expert: str = "paper") -> SubsetMixture:
    """MoPoE-VAE: all non-empty subsets, uniformly weighted (Sutter et al., 2021).

    With ``prior_expert="released"`` only the full set has the prior as an expert, as in
    the released code; in the paper no subset has it.
    """
    masks = all_subsets(num_modalities)
    return _uniform(
        masks,
        prior_expert,
        {"paper": np.zeros(len(masks), bool), "released": masks.all(axis=1)},
    )


def custom_subsets(
    num_modalities: int,
    subsets: Sequence[Sequence[int]],
    weights: Sequence[float] = (),
    prior_expert: str = "paper",
) -> SubsetMixture:
    """Any set of subsets, given as modality indices; uniform without `weights`.

    Raises:
      UsageError: no subset, an index outside 0..M-1, or an error of `subset_mixture`.
    """
    if not len(subsets):
        raise UsageError(
            "no subsets are given; name the modalities of each, for instance "
            "((0,), (0, 1))"
        )
    masks = np.zeros((len(subsets), num_modalities), bool)
    for row, subset in zip(masks, subsets, strict=True):
        indices = [subset] if isinstance(subset, (int, np.integer)) else list(subset)
        for index in indices:
            if not 0 <= index < num_modalities:
                raise UsageError(
                    f"no modality {index} for subset {tuple(indices)}; there are "
                    f"{num_modalities}, counted from 0"
                )
            row[index] = True
    flags = {"paper": np.zeros(len(masks), bool), "released": masks.all(axis=1)}
    if not len(weights):
        return _uniform(masks, prior_expert, flags)
    return subset_mixture(masks, weights, _prior_flags(masks, prior_expert, flags))


def _uniform(
    masks: np.ndarray, prior_expert: str, flags: Mapping[str, ArrayLike]
) -> SubsetMixture:
    """A uniform mixture over the rows of `masks`."""
    weights = np.full(len(masks), 1 / len(masks))
    return subset_mixture(masks, weights, _prior_flags(masks, prior_expert, flags))


def _prior_flags(
    masks: np.ndarray, choice: str, flags: Mapping[str, ArrayLike]
) -> np.ndarray:
    """Whether the prior is an expert of each subset, bool [S].

    Args:
      masks: bool [S, M].
      choice: one of PRIOR_EXPERT_CHOICES.
      flags: choice -> bool [S], for "paper" and "released".

    Raises:
      UsageError: the choice is unknown.
    """
    if choice not in PRIOR_EXPERT_CHOICES:
        raise UsageError(
            f"unknown prior_expert {choice!r}; choose one of "
            f"{', '.join(PRIOR_EXPERT_CHOICES)}"
        )
    if choice in flags:
        return np.asarray(flags[choice], bool)
    return np.full(len(masks), choice == "always")
