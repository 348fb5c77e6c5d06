"""Products and mixtures of experts.

The experts of M modalities are one Gaussian with fields [M, B, D]; mixtures take
Laplace experts too, of which no product is a Laplace distribution. Everything
here takes masks as arrays and is safe under vmap and jit, so that the 2^M - 1
subsets of MoPoE are one call and not a loop.

What is observed is a bool [M], the same for all examples, or [M, B], of each. An
example of which some modalities are missing is treated as one of a model that never
had them: a subset of the mixture counts if all of it is observed.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax import distributions
from mmvae_jax.subsets import SubsetMixture
from mmvae_jax.types import Array, Distribution, Gaussian, PRNGKey


def product_of_experts(
    experts: Gaussian, mask: Array, prior_expert: Array | bool
) -> Gaussian:
    """Posterior of a subset: the product of its Gaussian experts.

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


def subset_posteriors(experts: Gaussian, mixture: SubsetMixture) -> Gaussian:
    """The posteriors of all S subsets, fields [S, B, D], in one product of matrices.

    The values of `product_of_experts` for every row of masks. Every expert's
    precision is exponentiated once, around the middle of their log-range, and
    summed over the subsets by the mask matrix, instead of S M times: MoPoE's 31
    subsets of 5 would otherwise cost more than half as much as its networks.
    Log-precisions further than 40 from the middle of an example's dimension are
    taken as at 40, so that no gradient leaves float32; encoders stay within 20.
    """
    masks = jnp.asarray(mixture.masks, experts.mean.dtype)
    prior = jnp.asarray(mixture.prior_expert, experts.mean.dtype)[:, None, None]
    log_precision = -experts.log_variance
    low = jnp.minimum(jnp.min(log_precision, axis=0), 0.0)
    high = jnp.maximum(jnp.max(log_precision, axis=0), 0.0)
    centre = jax.lax.stop_gradient((low + high) / 2)
    precision = jnp.exp(jnp.clip(log_precision - centre, -40.0, 40.0))
    prior_precision = jnp.exp(jnp.clip(-centre, -40.0, 40.0))
    # Full float32 also where a device would round the factors of a product.
    subset_sum = partial(jnp.tensordot, masks, axes=1, precision="highest")
    total = subset_sum(precision) + prior * prior_precision
    mean = subset_sum(precision * experts.mean) / total
    return Gaussian(mean, -(centre + jnp.log(total)))


def stratified_positions(key: PRNGKey, num: int) -> Array:
    """`num` positions in [0, 1), one in each interval of length 1 / num, shuffled."""
    offset_key, order_key = jax.random.split(key)
    positions = (jnp.arange(num) + jax.random.uniform(offset_key)) / num
    # Rounding may lift the last position to 1, past the end of all weights.
    positions = jnp.minimum(positions, 1 - jnp.finfo(positions.dtype).epsneg)
    return jax.random.permutation(order_key, positions)


def random_positions(key: PRNGKey, num: int) -> Array:
    """`num` independent positions in [0, 1)."""
    return jax.random.uniform(key, (num,))


def components_at(weights: Array, positions: Array) -> Array:
    """The component at a position of the unit interval, divided by the weights.

    Args:
      weights: float [S], or [S, B] for weights of each example; not all 0.
      positions: float [B], in [0, 1).

    Returns:
      int32 [B], components, none of them with weight 0.
    """
    weights = append_axes(jnp.asarray(weights), 2)
    edges = jnp.cumsum(weights, axis=0)
    passed = edges / edges[-1] <= positions
    components = jnp.minimum(jnp.sum(passed, axis=0), len(weights) - 1)
    # A parallel cumulative sum need not be monotonic to the last bit, which may
    # open an interval for a component of weight 0.
    largest = jnp.argmax(weights, axis=0)
    weights = jnp.broadcast_to(weights, (len(weights), len(positions)))
    # Along axes, so that examples on several devices stay where they are.
    chosen = jnp.take_along_axis(weights, components[None], axis=0)[0]
    is_possible = chosen > 0
    return jnp.where(is_possible, components, largest).astype(jnp.int32)


def stratified_components(key: PRNGKey, weights: Array, num: int) -> Array:
    """Draws a component for each of `num` examples, balanced over the batch.

    Systematic sampling: component k is drawn floor(num * w_k) or ceil(num * w_k)
    times, and num * w_k times on average, whereas the published code gives the
    whole remainder of the division to the last component. Which example gets
    which component is random, so the order of the data does not matter.

    Args:
      key: random key.
      weights: float [S], summing to 1, or [S, num], of each example.
      num: number of examples.

    Returns:
      int32 [num], components.
    """
    return components_at(weights, stratified_positions(key, num))


def random_components(key: PRNGKey, weights: Array, num: int) -> Array:
    """Draws a component for each of `num` examples independently; int32 [num]."""
    return components_at(weights, random_positions(key, num))


def gather_components(components: Distribution, indices: Array) -> Distribution:
    """Component indices[b] of example b: fields [S, B, D], [B] -> [B, D]."""
    rows = indices[None, :, None]
    # Along axes, so that examples on several devices stay where they are.
    return jax.tree.map(
        lambda field: jnp.take_along_axis(field, rows, axis=0)[0], components
    )


def mixture_log_prob(components: Distribution, weights: Array, z: Array) -> Array:
    """Log-density of a mixture of diagonal distributions.

    Args:
      components: fields [S, B, D].
      weights: float [S], summing to 1, or [S, B], of each example.
      z: float [..., B, D].

    Returns:
      float [..., B], nats.
    """
    # The component axis is put last, behind any leading axes of z.
    by_component = jax.vmap(distributions.log_prob, (0, None), -1)
    log_probs = by_component(components, z)
    return jax.nn.logsumexp(log_probs, axis=-1, b=jnp.asarray(weights).T)


def share_of_each(observed: Array) -> Array:
    """One over how many modalities are observed: bool [M, ...] -> float [...]."""
    # A table rather than a division, which XLA rounds otherwise for a constant.
    shares = np.append(0.0, 1 / np.arange(1, len(observed) + 1)).astype(np.float32)
    return jnp.asarray(shares)[jnp.sum(observed, axis=0)]


def uniform_weights(observed: Array) -> Array:
    """Equal weights of what is observed, 0 for the rest: bool [M, ...] -> float."""
    return jnp.where(observed, share_of_each(observed), 0.0)


def observed_mixture(
    experts: Gaussian, mixture: SubsetMixture, observed: Array
) -> tuple[Gaussian, Array]:
    """The components of a mixture, and their weights by what is observed.

    Weights are renormalised over the subsets of which everything is observed.
    Where there is none, the posterior is the product of what is observed, with the
    prior as an expert if the mixture has it anywhere (MVAE).

    Args:
      experts: fields [M, B, D].
      mixture: S subsets of M modalities, not traced.
      observed: bool [M], [M, 1] or [M, B]; an array of numpy is known while tracing.

    Returns:
      Gaussian with fields [S, B, D], and weights [S, 1 or B] that sum to 1. There
      is one component more, of what is observed, if subsets of the mixture may
      all be unavailable.
    """
    if isinstance(observed, np.ndarray) and observed.all():
        components = subset_posteriors(experts, mixture)
        return components, jnp.asarray(mixture.weights)[:, None]
    masks = jnp.asarray(mixture.masks)
    weights = jnp.asarray(mixture.weights)[:, None]
    components = subset_posteriors(experts, mixture)
    observed = append_axes(observed, 2)
    is_available = jnp.all(masks[:, :, None] <= observed, axis=1)
    kept = jnp.where(is_available, weights, 0.0)
    total = jnp.sum(kept, axis=0)
    is_any = total > 0
    renormalised = kept / jnp.where(is_any, total, 1.0)
    # Where all are available, the weights have the bits that they are given with.
    weights = jnp.where(jnp.all(is_available, axis=0), weights, renormalised)
    has_singles = (mixture.masks.sum(axis=1) == 1) & (mixture.weights > 0)
    if mixture.masks[has_singles].any(axis=0).all():
        return components, weights
    rest = product_of_experts(experts, observed, bool(mixture.prior_expert.any()))
    components = jax.tree.map(
        lambda field, own: jnp.concatenate([field, own[None]]), components, rest
    )
    rest_weight = jnp.where(is_any, 0.0, 1.0)
    return components, jnp.concatenate([weights, rest_weight[None]])


def conditional_mixture(mixture: SubsetMixture, observed: Array) -> SubsetMixture:
    """The mixture a trained model uses when only some modalities are observed.

    The papers define the posterior of any subset A of the inputs for every
    model; one rule covers them: if A is a subset of the mixture, its product
    (MoPoE-VAE); otherwise the mixture over the components inside A, their
    weights renormalised (MMVAE); otherwise, if there is none, the product over
    A, with the prior as an expert if the mixture has it anywhere (MVAE).

    Args:
      mixture: S subsets of M modalities.
      observed: A, bool [M], or [M, B], of each example; not empty; may be traced.

    Returns:
      A mixture of S + 1 subsets (the last one is A), as traced arrays; its masks
      are [S + 1, M, B or 1], its weights [S + 1, B or 1].
    """
    observed = append_axes(jnp.asarray(observed, bool), 2)
    masks = jnp.asarray(mixture.masks)[:, :, None]
    weights = jnp.asarray(mixture.weights)[:, None]
    is_observed = jnp.all(masks == observed, axis=1) & (weights > 0)
    is_inside = jnp.all(masks <= observed, axis=1)
    chosen = jnp.where(jnp.any(is_observed, axis=0), is_observed, is_inside)
    kept = jnp.where(chosen, weights, 0.0)
    total = jnp.sum(kept, axis=0)
    any_kept = total > 0
    kept = kept / jnp.where(any_kept, total, 1.0)
    rest = jnp.where(any_kept, 0.0, 1.0)
    masks = jnp.broadcast_to(masks, (*masks.shape[:2], observed.shape[1]))
    return SubsetMixture(
        masks=jnp.concatenate([masks, observed[None]]),
        weights=jnp.concatenate([kept, rest[None]]),
        prior_expert=jnp.append(
            jnp.asarray(mixture.prior_expert), bool(mixture.prior_expert.any())
        ),
    )


def expert_component(
    key: PRNGKey, experts: Distribution, observed: Array
) -> Distribution:
    """One observed expert per example, stratified: the mixture of those observed.

    Args:
      key: random key.
      experts: fields [M, B, D].
      observed: bool [M], or [M, B], of each example; not empty; may be traced.

    Returns:
      A distribution with fields [B, D].
    """
    weights = uniform_weights(jnp.asarray(observed))
    num = experts.mean.shape[1]
    return gather_components(experts, stratified_components(key, weights, num))


def posterior_component(
    key: PRNGKey, experts: Gaussian, mixture: SubsetMixture
) -> Gaussian:
    """One component of the mixture per example, stratified over the batch.

    Only the chosen product is computed for each example.

    Args:
      key: random key.
      experts: fields [M, B, D].
      mixture: from `conditional_mixture`.

    Returns:
      Gaussian with fields [B, D].
    """
    num = experts.mean.shape[1]
    indices = stratified_components(key, mixture.weights, num)
    masks = jnp.broadcast_to(mixture.masks, (*mixture.masks.shape[:2], num))
    masks = masks[indices, :, jnp.arange(num)].T
    return product_of_experts(experts, masks, mixture.prior_expert[indices])


def append_axes(x: Array, rank: int) -> Array:
    """Appends axes of length 1 until x has `rank` axes: masks next to their fields."""
    return x.reshape(x.shape + (1,) * (rank - x.ndim))
