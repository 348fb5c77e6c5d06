"""Products and mixtures of experts, and other ways to pool them.

The experts of M modalities are one Gaussian with fields [M, B, D]. Mixtures also take
Laplace experts; products do not, because a product of Laplace densities is not a
Laplace density. Masks are arrays, and all functions work under vmap and jit, so that
the 2^M - 1 subsets of MoPoE need one call.

`observed` is a bool [M] for all examples, or [M, B] for each. A mixture uses only the
subsets whose modalities are all observed. This equals the mixture of a model of the
observed modalities alone, except for prior_expert = "released", where only the full set
of all M modalities has the prior as an expert.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.mathematics import distributions, subset_kl
from mmvae_jax.mathematics.subsets import Pooling, SubsetMixture
from mmvae_jax.types import AnyArray, Array, Distribution, Gaussian, Laplace


def product_of_experts(
    experts: Gaussian, mask: AnyArray, prior_expert: AnyArray | bool
) -> Gaussian:
    """The posterior of a subset: the product of its Gaussian experts.

    Wu & Goodman (2018), Sec. 2.2: precisions add, means are weighted by precision. It
    is computed in log space (log-sum-exp of the log-precisions, softmax weights for the
    means), because precisions leave float32 at log-variances beyond +-88: exp(lv)
    overflows, 1/exp(lv) is 0, and 0 * inf is the NaN that stops the published MVAE at
    large beta.

    Args:
      experts: fields [M, B, D] (or [M, D]).
      mask: bool [M], or [M, B] for a subset per example; True for the modalities of the
        subset. An empty subset needs the prior expert.
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
    # Masked, not only weighted by 0: a mean outside the subset may be NaN.
    means = jnp.where(mask, experts.mean, 0.0)
    mean = jnp.sum(weights * means, axis=0) / total
    return Gaussian(mean, -(top + jnp.log(total)))


def wasserstein_barycentre(experts: Gaussian, mask: AnyArray) -> Gaussian:
    """The barycentre of a subset's experts under the 2-Wasserstein distance.

    The barycentre minimises the sum of squared distances to the experts, as in Qiu et
    al. (2025). For diagonal Gaussians the squared distance is that of the means plus
    that of the standard deviations, so that both are averaged.

    Args:
      experts: fields [M, B, D].
      mask: bool [M] or [M, B], the members of the subset; not empty.

    Returns:
      Gaussian with fields [B, D]. Its gradient with respect to experts outside of
      the subset is exactly zero.
    """
    mask = append_axes(jnp.asarray(mask), experts.mean.ndim)
    count = jnp.sum(mask, axis=0)
    mean = jnp.sum(jnp.where(mask, experts.mean, 0.0), axis=0) / count
    log_deviations = jnp.where(mask, 0.5 * experts.log_variance, -jnp.inf)
    log_deviation = jax.nn.logsumexp(log_deviations, axis=0) - jnp.log(count)
    return Gaussian(mean, 2 * log_deviation)


def dependent_experts(
    experts: Gaussian, mask: AnyArray, correlation: float
) -> Gaussian:
    """The consensus of a subset's experts with correlated errors.

    Mancisidor et al. (2025): in each dimension, the means are estimates of one z; their
    errors have the covariance Sigma_ij = rho s_i s_j, Sigma_ii = s_i^2. The result has
    the mean of generalised least squares, 1' Sigma^-1 mu / 1' Sigma^-1 1, and the
    variance 1 / 1' Sigma^-1 1. With rho = 0 it is the product of experts. A mean may
    have a negative weight if another expert is far more certain.

    With p_i = 1 / s_i, their mean p and number n, Sigma^-1 has a closed form, whose
    sums have no cancellation:

        1' Sigma^-1 1 = sum_i (p_i - p)^2 / (1 - rho) + n p^2 / (1 + (n - 1) rho).

    Args:
      experts: fields [M, B, D].
      mask: bool [M] or [M, B], the members of the subset; not empty.
      correlation: rho, in [0, 1).

    Returns:
      Gaussian with fields [B, D]. Its gradient with respect to experts outside of
      the subset is exactly zero.
    """
    mask = append_axes(jnp.asarray(mask), experts.mean.ndim)
    logs = jnp.where(mask, -0.5 * experts.log_variance, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(logs, axis=0))
    inverse = jnp.exp(logs - top)
    count = jnp.sum(mask, axis=0)
    centre = jnp.sum(inverse, axis=0) / count
    offset = jnp.where(mask, inverse - centre, 0.0) / (1 - correlation)
    weights = inverse * (offset + centre / (1 + (count - 1) * correlation))
    total = (1 - correlation) * jnp.sum(jnp.square(offset), axis=0)
    total += count * jnp.square(centre) / (1 + (count - 1) * correlation)
    means = jnp.where(mask, experts.mean, 0.0)
    mean = jnp.sum(weights * means, axis=0) / total
    return Gaussian(mean, -(2 * top + jnp.log(total)))


def hoelder_pool(experts: Gaussian, mask: AnyArray, pooled_over: str) -> Gaussian:
    """The moments of the Hoelder pool, with exponent 1/2, of a subset's experts.

    The pool is proportional to (sum_i q_i^(1/2))^2 = sum_i q_i + 2 sum_{i<j}
    (q_i q_j)^(1/2) (Vo & Valera, 2026). The root of a product of two Gaussians is
    S_ij times a Gaussian, where S_ij is their Bhattacharyya coefficient. The pool is
    therefore a mixture with weights proportional to 1 and 2 S_ij; the result has its
    mean and variance. S_ij is a product over the dimensions of z: if many dimensions
    differ, it vanishes and the pool is the mixture of the q_i. Pooling each dimension
    separately avoids this.

    Args:
      experts: fields [M, B, D].
      mask: bool [M] or [M, B], the members of the subset; not empty.
      pooled_over: one of `subsets.POOLED_OVER`: pools the densities of the "vector" z,
        or of each of its "dimensions" separately.

    Returns:
      Gaussian with fields [B, D]. Its gradient with respect to experts outside of
      the subset is exactly zero.
    """
    mask = append_axes(jnp.asarray(mask), experts.mean.ndim)
    experts = jax.tree.map(lambda field: jnp.where(mask, field, 0.0), experts)
    one, other = np.triu_indices(len(mask))
    means, others = experts.mean[one], experts.mean[other]
    log_variance, log_others = experts.log_variance[one], experts.log_variance[other]
    log_total = jnp.logaddexp(log_variance, log_others)
    # Bounded, so that gradients stay finite in float32.
    squares = jnp.square(means - others) * jnp.exp(-jnp.maximum(log_total, -40.0))
    log_overlap = 0.5 * (math.log(2) + 0.5 * (log_variance + log_others) - log_total)
    log_overlap -= squares / 4
    if pooled_over == "vector":
        log_overlap = jnp.sum(log_overlap, axis=-1, keepdims=True)
    is_pair = (one != other)[:, None, None]
    log_weights = jnp.where(is_pair, math.log(2) + log_overlap, 0.0)
    log_weights = jnp.where(mask[one] & mask[other], log_weights, -jnp.inf)
    share = jax.nn.sigmoid(log_others - log_variance)
    components = Gaussian(
        share * means + (1 - share) * others,
        math.log(2) + log_variance + log_others - log_total,
    )
    return mixture_moments(components, jax.nn.softmax(log_weights, axis=0))


def pool(
    experts: Gaussian, mask: AnyArray, prior_expert: AnyArray | bool, pooling: Pooling
) -> Gaussian:
    """The posterior of a subset, with the given pooling of its experts.

    Args:
      experts: fields [M, B, D].
      mask: bool [M], or [M, B] for a subset per example; not empty.
      prior_expert: bool [] or [B], whether the prior is an expert; only for products
        (`subsets.pooled`).
      pooling: as in `SubsetMixture`.

    Returns:
      Gaussian with fields [B, D].
    """
    match pooling.name:
        case "product":
            return product_of_experts(experts, mask, prior_expert)
        case "barycentre":
            return wasserstein_barycentre(experts, mask)
        case "dependent":
            return dependent_experts(experts, mask, pooling.correlation)
    return hoelder_pool(experts, mask, pooling.pooled_over)


def subset_posteriors(experts: Gaussian, mixture: SubsetMixture) -> Gaussian:
    """The posteriors of all S subsets, fields [S, B, D], of experts [M, B, D].

    Products of experts need one product of matrices (`subset_kl.subset_posteriors`).
    The mixture's masks must not be traced.
    """
    if mixture.pooling.name == "product":
        return subset_kl.subset_posteriors(experts, mixture)
    masks = jnp.asarray(mixture.masks)
    return jax.vmap(lambda mask: pool(experts, mask, False, mixture.pooling))(masks)


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
    """Appends axes of length 1 to x until it has `rank` axes."""
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
    # The component axis comes last, after any leading axes of z.
    by_component = jax.vmap(distributions.log_prob, (0, None), -1)
    log_probs = by_component(components, z)
    return jax.nn.logsumexp(log_probs, axis=-1, b=jnp.asarray(weights).T)


def share_of_each(observed: AnyArray) -> Array:
    """One over the number of observed modalities: bool [M, ...] to float [...]."""
    # A table instead of a division, which XLA rounds differently for a constant.
    shares = np.append(0.0, 1 / np.arange(1, len(observed) + 1)).astype(np.float32)
    return jnp.asarray(shares)[jnp.sum(observed, axis=0)]


def uniform_weights(observed: AnyArray) -> Array:
    """Equal weights of observed modalities, 0 for others: bool to float [M, ...]."""
    return jnp.where(observed, share_of_each(observed), 0.0)


def available_subsets(
    mixture: SubsetMixture, observed: AnyArray, *, is_exact_preferred: bool = False
) -> SubsetMixture:
    """The mixture over the subsets whose modalities are all observed.

    Their weights are renormalised. If there is no such subset, the posterior is the
    product (or `mixture.pooling`) of all observed experts, with the prior as an expert
    if any subset of the mixture has it (MVAE).

    With `is_exact_preferred`, one rule gives the posterior of observed modalities A in
    all papers: if A is a subset of the mixture, its product (MoPoE-VAE); else the
    mixture over the subsets of A (MMVAE); else the product over A (MVAE).

    Args:
      mixture: S subsets of M modalities, not traced, except for learned weights, which
        are positive.
      observed: bool [M], [M, 1] or [M, B], not empty; a NumPy array is a constant in
        tracing.
      is_exact_preferred: whether a subset that equals the observed set is used alone.

    Returns:
      A mixture with masks [S, M, 1 or B], and weights [S, 1 or B] that sum to 1. If all
      subsets may be unavailable, the observed set is one more subset.
    """
    masks = mixture.masks[:, :, None]
    weights = jnp.asarray(mixture.weights)[:, None]
    is_complete = isinstance(observed, np.ndarray) and observed.all()
    if is_complete and not is_exact_preferred:
        return mixture._replace(masks=masks, weights=weights)
    observed = append_axes(jnp.asarray(observed), 2)
    is_available = jnp.all(masks <= observed, axis=1)
    if is_exact_preferred:
        is_exact = jnp.all(masks == observed, axis=1) & (weights > 0)
        is_available = jnp.where(jnp.any(is_exact, axis=0), is_exact, is_available)
    kept = jnp.where(is_available, weights, 0.0)
    total = jnp.sum(kept, axis=0)
    is_any = total > 0
    renormalised = kept / jnp.where(is_any, total, 1.0)
    # If all are available, the weights keep their exact bits.
    weights = jnp.where(jnp.all(is_available, axis=0), weights, renormalised)
    is_single = np.sum(mixture.masks, axis=1) == 1
    if isinstance(mixture.weights, np.ndarray):
        is_single &= mixture.weights > 0
    if mixture.masks[is_single].any(axis=0).all():
        return mixture._replace(masks=masks, weights=weights)
    masks = jnp.broadcast_to(masks, (*masks.shape[:2], observed.shape[1]))
    rest = jnp.where(is_any, 0.0, 1.0)
    return mixture._replace(
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
    """The components of a mixture and their weights, given the observed modalities.

    Args:
      experts: fields [M, B, D].
      mixture: S subsets of M modalities, not traced.
      observed: bool [M], [M, 1] or [M, B]; a NumPy array is a constant in tracing.
      is_exact_preferred: as for `available_subsets`.

    Returns:
      Gaussian with fields [S, B, D], and weights [S, 1 or B] that sum to 1, for
      `available_subsets` (S + 1 if all may be unavailable).
    """
    given = available_subsets(mixture, observed, is_exact_preferred=is_exact_preferred)
    components = subset_posteriors(experts, mixture)
    if len(given.masks) > len(mixture.masks):
        rest = pool(experts, given.masks[-1], given.prior_expert[-1], mixture.pooling)
        components = jax.tree.map(
            lambda field, own: jnp.concatenate([field, own[None]]), components, rest
        )
    return components, given.weights


def mixture_moments(components: Distribution, weights: AnyArray) -> Gaussian:
    """Mean and log-variance of each dimension of a mixture.

    mean = sum_s w_s m_s and variance = sum_s w_s (v_s + (m_s - mean)^2), of the means
    m_s and variances v_s of the components; of a Laplace, v = 2 b^2.

    Args:
      components: fields [S, B, D].
      weights: float [S, 1 or B], summing to 1; or [S, B, D], of each dimension.

    Returns:
      Gaussian, fields [B, D].
    """
    shares = append_axes(jnp.asarray(weights), components.mean.ndim)
    mean = jnp.sum(shares * components.mean, axis=0)
    if isinstance(components, Laplace):
        log_variance = math.log(2) + 2 * components.log_scale
    else:
        log_variance = components.log_variance
    # In log space: a variance of exp(-100) is 0 in float32.
    terms = jnp.logaddexp(log_variance, _log(jnp.square(components.mean - mean)))
    return Gaussian(mean, jax.nn.logsumexp(_log(shares) + terms, axis=0))


def _log(x: Array) -> Array:
    """The logarithm, -inf at 0, with a finite gradient."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)
