"""Products and mixtures of experts.

The experts of M modalities are one Gaussian with fields [M, B, D]. Mixtures take
Laplace experts too; products do not, since no product of them is a Laplace
distribution. Masks are arrays and everything is safe under vmap and jit, so that the
2^M - 1 subsets of MoPoE are one call and not a loop.

`observed` is a bool [M] for all examples alike, or [M, B] for each. A subset of the
mixture counts if all of it is observed. That is the mixture of a model that never had
the other modalities, but for prior_expert = "released": the full set of all M
modalities has the prior as an expert, and what is left of it has not.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.mathematics import distributions, subset_kl
from mmvae_jax.mathematics.subsets import SubsetMixture
from mmvae_jax.types import AnyArray, Array, Distribution, Gaussian, Laplace


def product_of_experts(
    experts: Gaussian, mask: AnyArray, prior_expert: AnyArray | bool
) -> Gaussian:
    """The posterior of a subset: the product of its Gaussian experts.

    Wu & Goodman (2018), Sec. 2.2: precisions add, means are weighted by
    precision. Computed in log space (log-sum-exp of the log-precisions, softmax
    weights for the means), because a precision itself leaves float32 at
    log-variances beyond +-88: exp(lv) overflows, 1/exp(lv) is 0, and 0 * inf is
    the NaN that stops the published MVAE at large beta.

    Args:
      experts: fields [M, B, D] (or [M, D]).
      mask: bool [M], or [M, B] for a subset per example; True where the modality
        belongs to the subset. An empty subset needs the prior expert.
      prior_expert: bool [] or [B], whether N(0, I) is one more expert.

    Returns:
      Gaussian with fields [B, D] (or [D]). Its gradient with respect to experts
      outside the subset is exactly zero.
    """
    rank = experts.mean.ndim
    mask = append_axes(jnp.asarray(mask), rank)
    log_precision = jnp.where(mask, -experts.log_variance, -jnp.inf)
    prior = jnp.where(jnp.asarray(prior_expert), 0.0, -jnp.inf)
    prior = append_axes(prior, rank - 1 if prior.ndim else 0)
    top = jnp.maximum(jnp.max(log_precision, axis=0), prior)
    top = jax.lax.stop_gradient(top)
    weights = jnp.exp(log_precision - top)
    total = jnp.sum(weights, axis=0) + jnp.exp(prior - top)
    # Masked, not only weighted by 0: a mean outside the subset may be anything.
    means = jnp.where(mask, experts.mean, 0.0)
    mean = jnp.sum(weights * means, axis=0) / total
    return Gaussian(mean, -(top + jnp.log(total)))


def geometric_mean(components: Gaussian, weights: Array) -> Gaussian:
    """The normalised weighted geometric mean, proportional to prod_k q_k^{w_k}.

    The dynamic prior of Sutter et al. (2020): a product of experts whose precisions
    are weighted. Fields [S, B, D] and weights [S] or [S, B] -> fields [B, D].
    """
    is_used = weights > 0
    log_weights = jnp.log(jnp.where(is_used, weights, 1.0))
    log_weights = append_axes(log_weights, components.mean.ndim)
    weighted = components._replace(log_variance=components.log_variance - log_weights)
    return product_of_experts(weighted, is_used, False)


def append_axes(x: Array, rank: int) -> Array:
    """Appends axes of length 1 until x has `rank` axes: masks next to their fields."""
    return x.reshape(x.shape + (1,) * (rank - x.ndim))


def mixture_log_prob(components: Distribution, weights: Array, z: Array) -> Array:
    """Log-density of a mixture of diagonal distributions.

    Args:
      components: fields [S, B, D].
      weights: float [S], summing to 1, or [S, B] for each example.
      z: float [..., B, D].

    Returns:
      float [..., B], nats.
    """
    # The component axis is put last, behind any leading axes of z.
    by_component = jax.vmap(distributions.log_prob, (0, None), -1)
    log_probs = by_component(components, z)
    return jax.nn.logsumexp(log_probs, axis=-1, b=jnp.asarray(weights).T)


def share_of_each(observed: AnyArray) -> Array:
    """One over the number of observed modalities: bool [M, ...] to float [...]."""
    # A table rather than a division, which XLA rounds otherwise for a constant.
    shares = np.append(0.0, 1 / np.arange(1, len(observed) + 1)).astype(np.float32)
    return jnp.asarray(shares)[jnp.sum(observed, axis=0)]


def uniform_weights(observed: AnyArray) -> Array:
    """Equal weights of the observed modalities, else 0: bool to float [M, ...]."""
    return jnp.where(observed, share_of_each(observed), 0.0)


def available_subsets(
    mixture: SubsetMixture, observed: AnyArray, *, is_exact_preferred: bool = False
) -> SubsetMixture:
    """The mixture over the subsets of which everything is observed.

    Weights are renormalised over them. Where there is none, the posterior is the
    product of what is observed, with the prior as an expert if the mixture has it
    anywhere (MVAE).

    The papers define the posterior of any subset A of the inputs for every model. With
    `is_exact_preferred` one rule covers them: if A is a subset of the mixture, its
    product (MoPoE-VAE); otherwise the mixture over the subsets inside A (MMVAE);
    otherwise, if there is none, the product over A (MVAE).

    Args:
      mixture: S subsets of M modalities, not traced.
      observed: bool [M], [M, 1] or [M, B], not empty; an array of numpy is known while
        tracing.
      is_exact_preferred: whether a subset that is all that is observed is alone.

    Returns:
      A mixture with masks [S, M, 1 or B], and weights [S, 1 or B] that sum to 1. There
      is one subset more, of what is observed, if those of the mixture may all be
      unavailable.
    """
    masks = mixture.masks[:, :, None]
    weights = jnp.asarray(mixture.weights)[:, None]
    is_complete = isinstance(observed, np.ndarray) and observed.all()
    if is_complete and not is_exact_preferred:
        return SubsetMixture(masks, weights, mixture.prior_expert)
    observed = append_axes(jnp.asarray(observed), 2)
    is_available = jnp.all(masks <= observed, axis=1)
    if is_exact_preferred:
        is_exact = jnp.all(masks == observed, axis=1) & (weights > 0)
        is_available = jnp.where(jnp.any(is_exact, axis=0), is_exact, is_available)
    kept = jnp.where(is_available, weights, 0.0)
    total = jnp.sum(kept, axis=0)
    is_any = total > 0
    renormalised = kept / jnp.where(is_any, total, 1.0)
    # Where all are available, the weights have the bits that they are given with.
    weights = jnp.where(jnp.all(is_available, axis=0), weights, renormalised)
    has_singles = (mixture.masks.sum(axis=1) == 1) & (mixture.weights > 0)
    if mixture.masks[has_singles].any(axis=0).all():
        return SubsetMixture(masks, weights, mixture.prior_expert)
    masks = jnp.broadcast_to(masks, (*masks.shape[:2], observed.shape[1]))
    rest = jnp.where(is_any, 0.0, 1.0)
    return SubsetMixture(
        masks=jnp.concatenate([masks, observed[None]]),
        weights=jnp.concatenate([weights, rest[None]]),
        prior_expert=np.append(mixture.prior_expert, mixture.prior_expert.any()),
    )


def observed_mixture(
    experts: Gaussian,
    mixture: SubsetMixture,
    observed: AnyArray,
    *,
    is_exact_preferred: bool = False,
) -> tuple[Gaussian, AnyArray]:
    """The components of a mixture, and their weights where modalities are missing.

    Args:
      experts: fields [M, B, D].
      mixture: S subsets of M modalities, not traced.
      observed: bool [M], [M, 1] or [M, B]; an array of numpy is known while tracing.
      is_exact_preferred: as for `available_subsets`.

    Returns:
      Gaussian with fields [S, B, D], and weights [S, 1 or B] that sum to 1, of the
      `available_subsets`; like those, S + 1 if all may be unavailable.
    """
    given = available_subsets(mixture, observed, is_exact_preferred=is_exact_preferred)
    components = subset_kl.subset_posteriors(experts, mixture)
    if len(given.masks) > len(mixture.masks):
        rest = product_of_experts(experts, given.masks[-1], given.prior_expert[-1])
        components = jax.tree.map(
            lambda field, own: jnp.concatenate([field, own[None]]), components, rest
        )
    return components, given.weights


def mixture_moments(components: Distribution, weights: AnyArray) -> Gaussian:
    """Mean and log-variance of a mixture, a dimension at a time.

    mean = sum_s w_s m_s and variance = sum_s w_s (v_s + (m_s - mean)^2), of the means
    m_s and variances v_s of the components; of a Laplace, v = 2 b^2.

    Args:
      components: fields [S, B, D].
      weights: float [S, 1 or B], summing to 1.

    Returns:
      Gaussian, fields [B, D].
    """
    shares = jnp.asarray(weights)[:, :, None]
    mean = jnp.sum(shares * components.mean, axis=0)
    if isinstance(components, Laplace):
        log_variance = math.log(2) + 2 * components.log_scale
    else:
        log_variance = components.log_variance
    # In log space: a variance of exp(-100) is no float32.
    terms = jnp.logaddexp(log_variance, _log(jnp.square(components.mean - mean)))
    return Gaussian(mean, jax.nn.logsumexp(_log(shares) + terms, axis=0))


def _log(x: Array) -> Array:
    """The logarithm, -inf at 0 without a division by it."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)
