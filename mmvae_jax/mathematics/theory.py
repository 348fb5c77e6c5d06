"""The theorem on sub-sampling of modalities, exactly, for a known joint pmf.

Daunhawer et al. (2022), Sec. 4 and App. B. A joint distribution of M discrete
modalities is an array `pmf`, float64 [n_1, ..., n_M], summing to 1; axis m is
modality m. Entropies are in nats.

The tests confirm Lemma 2: for all encoders and decoders, the reconstruction term of L_S
is at most -Delta(X, S) (Eqs. 51 and 52). A mixture cannot reconstruct information that
its subsets lack, at any rate; without sub-sampling the bound is 0.

The bound of Theorem 1, L_S <= E[log p(x)] - Delta(X, S) (Eq. 4), does not follow.
Eq. 55 leaves sum_A omega_A {H(X_A|Z_A) + I_psi(X_A; Z_A)}, I_psi >= I. Its least value
is sum_A omega_A H(X_A), but the step to Eq. 56 needs H(X). With the true least value,
the chain rule gives only L_S <= E[log p(x)]. `tests/mathematics/test_theory.py` has two
counterexamples: two independent fair bits and encoders that ignore them, for which
L_S = E[log p(x)] while Delta = log 2; and lossless codes of two bits per modality. The
equations were read in a text converted from the paper's PDF.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from mmvae_jax.mathematics.subsets import SubsetMixture

# Indices of modalities, in any order.
_Axes = Collection[int] | np.ndarray


def entropy(pmf: np.ndarray) -> float:
    """H(X) of a probability table of any shape; nats."""
    p = np.asarray(pmf, np.float64).ravel()
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)))


def marginal(pmf: np.ndarray, axes: _Axes) -> np.ndarray:
    """The pmf of the modalities in `axes`, in the order of `pmf`."""
    dropped = tuple(m for m in range(pmf.ndim) if m not in set(axes))
    return pmf.sum(axis=dropped)


def conditional_entropy(pmf: np.ndarray, targets: _Axes, given: _Axes) -> float:
    """H(X_targets | X_given); nats. The sets may be empty and may overlap."""
    both = set(targets) | set(given)
    return entropy(marginal(pmf, both)) - entropy(marginal(pmf, given))


def conditional_information(
    pmf: np.ndarray, first: _Axes, second: _Axes, given: _Axes
) -> float:
    """I(X_first; X_second | X_given); nats."""
    return conditional_entropy(pmf, first, given) - conditional_entropy(
        pmf, first, set(second) | set(given)
    )


def generative_discrepancy(pmf: np.ndarray, mixture: SubsetMixture) -> float:
    """Delta(X, S) of Eq. 5, the information lost by sub-sampling; nats.

    Delta(X, S) = sum_A omega_A H(X_rest | X_A), rest = all modalities not in A.
    """
    losses = [
        conditional_entropy(pmf, np.flatnonzero(~mask), np.flatnonzero(mask))
        for mask in mixture.masks
    ]
    return sum(float(w) * loss for w, loss in zip(mixture.weights, losses, strict=True))


def reconstruction_ceiling(pmf: np.ndarray, mixture: SubsetMixture) -> float:
    """-Delta(X, S): the upper bound on E[log q(x|z)] (Eqs. 51 and 52); nats."""
    return -generative_discrepancy(pmf, mixture)


class _BestTerms(NamedTuple):
    """The terms of L_S for given encoders and the best decoder and prior; nats.

    Attributes:
      reconstruction: sum_A omega_A E[log q(x|z)].
      rate: sum_A omega_A E[KL(p(z|x_A) || q(z))].
    """

    reconstruction: float
    rate: float

    @property
    def objective(self) -> float:
        """L_S, Eq. 2."""
        return self.reconstruction - self.rate


def best_terms(
    pmf: np.ndarray, mixture: SubsetMixture, encoders: Sequence[np.ndarray]
) -> _BestTerms:
    """L_S of discrete encoders p(z|x_A) with the decoder and prior that maximise it.

    For a discrete code both are known in closed form (App. B.3): the decoder is p(x|z)
    under the mixture's joint distribution of x and z, and the prior is its p(z). The
    result is the maximum of L_S over all models with these encoders.

    Args:
      pmf: float [n_1, ..., n_M].
      mixture: S subsets.
      encoders: one per subset, float [*(n_m for m in A), Z], summing to 1 over Z.
    """
    num_codes = encoders[0].shape[-1]
    joint = np.zeros((*pmf.shape, num_codes))
    for mask, weight, encoder in zip(
        mixture.masks, mixture.weights, encoders, strict=True
    ):
        shape = [n if inside else 1 for n, inside in zip(pmf.shape, mask, strict=True)]
        joint += float(weight) * pmf[..., None] * encoder.reshape(*shape, num_codes)
    prior = joint.sum(axis=tuple(range(pmf.ndim)))
    rate = 0.0
    for mask, weight, encoder in zip(
        mixture.masks, mixture.weights, encoders, strict=True
    ):
        observed = marginal(pmf, np.flatnonzero(mask))[..., None] * encoder
        rate += float(weight) * float(np.sum(observed * _log_ratio(encoder, prior)))
    return _BestTerms(float(np.sum(joint * _log_ratio(joint, prior))), rate)


def _log_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """log(numerator / denominator), 0 if the numerator is 0."""
    positive = numerator > 0
    log_denominator = np.log(np.where(denominator > 0, denominator, 1.0))
    return np.where(
        positive, np.log(np.where(positive, numerator, 1.0)) - log_denominator, 0.0
    )


class _DiscrepancyChange(NamedTuple):
    """The change of Delta(X, S) by an added modality (Corollary 2), in nats.

    Attributes:
      shared: Eq. 81, <= 0: information that X shares with the new modality.
      specific: Eq. 82, >= 0: information specific to X or to the new modality.
    """

    shared: float
    specific: float

    @property
    def total(self) -> float:
        """Delta(X+, S+) - Delta(X, S)."""
        return self.shared + self.specific

    @property
    def is_sufficiently_diverse(self) -> bool:
        """Whether the new modality is diverse enough for Delta to increase.

        -shared < specific, which follows from Eqs. 81 and 82. The statement (Eq. 57)
        and the last sentence of its proof lack the minus sign; as printed the
        condition fails only where both sides are 0.
        """
        return -self.shared < self.specific


def discrepancy_change(
    pmf: np.ndarray, mixture: SubsetMixture, extended: SubsetMixture
) -> _DiscrepancyChange:
    """The change of Delta(X, S) when the last axis of `pmf` is added (App. B.6).

    Valid for MMVAE and MoPoE, with uniform weights over their subsets.

    Args:
      pmf: float [n_1, ..., n_{M+1}], the new modality last.
      mixture: the mixture of the first M modalities.
      extended: the mixture of all M + 1.
    """
    num, num_extended = len(mixture.weights), len(extended.weights)
    new = pmf.ndim - 1
    before = range(new)
    shared = specific = 0.0
    for mask in mixture.masks:
        inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
        shared += conditional_information(pmf, outside, [new], inside)
        specific += conditional_entropy(pmf, inside, [new]) / (num_extended * num)
        specific += conditional_entropy(pmf, [new], before) / num_extended
    return _DiscrepancyChange((1 / num_extended - 1 / num) * shared, specific)


def polymnist_discrepancy(
    mixture: SubsetMixture, class_counts: np.ndarray, crop_counts: Sequence[int]
) -> float:
    """Delta(X, S) of the generating process of PolyMNIST; nats.

    Given the class, which every image shows, the digit and the crop position are drawn
    independently and uniformly in every modality. Then H(X_rest | X_A) is the sum over
    the rest of E[log n_class] + log n_crops, where n_class is the number of digit
    images of the class and n_crops the number of crop positions. This assumes that all
    resulting images differ.

    Args:
      mixture: the mixture of M modalities.
      class_counts: int [num_classes], digit images of each class.
      crop_counts: M numbers of crop positions.
    """
    counts = np.asarray(class_counts, np.float64)
    handwriting = float(np.sum(counts / counts.sum() * np.log(counts)))
    specific = np.array([handwriting + math.log(crops) for crops in crop_counts])
    return float(np.sum(np.asarray(mixture.weights) @ (~mixture.masks * specific)))
