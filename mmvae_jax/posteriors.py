"""Products and mixtures of experts.

The experts of M modalities are one Gaussian with fields [M, B, D]. Mixtures take
Laplace experts too; products do not, since no product of them is a Laplace
distribution. Masks are arrays and everything is safe under vmap and jit, so that the
2^M - 1 subsets of MoPoE are one call and not a loop.

`observed` is a bool [M] for all examples alike, or [M, B] for each. An example of
which modalities are missing is treated as one of a model that never had them: a subset
of the mixture counts if all of it is observed.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax import distributions, meshes
from mmvae_jax.subsets import SubsetMixture
from mmvae_jax.types import Array, Distribution, Gaussian, PRNGKey

# Cache of one CPU core, in bytes: all subsets' arrays of a block fit into it.
CACHE_BYTES = 2**20


def product_of_experts(
    experts: Gaussian, mask: Array, prior_expert: Array | bool
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


def share_of_each(observed: Array) -> Array:
    """One over the number of observed modalities: bool [M, ...] to float [...]."""
    # A table rather than a division, which XLA rounds otherwise for a constant.
    shares = np.append(0.0, 1 / np.arange(1, len(observed) + 1)).astype(np.float32)
    return jnp.asarray(shares)[jnp.sum(observed, axis=0)]


def uniform_weights(observed: Array) -> Array:
    """Equal weights for what is observed, 0 for the rest: bool to float [M, ...]."""
    return jnp.where(observed, share_of_each(observed), 0.0)


def available_subsets(
    mixture: SubsetMixture, observed: Array, *, is_exact_preferred: bool = False
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
    experts: Gaussian, mixture: SubsetMixture, observed: Array
) -> tuple[Gaussian, Array]:
    """The components of a mixture, and their weights where modalities are missing.

    Args:
      experts: fields [M, B, D].
      mixture: S subsets of M modalities, not traced.
      observed: bool [M], [M, 1] or [M, B]; an array of numpy is known while tracing.

    Returns:
      Gaussian with fields [S, B, D], and weights [S, 1 or B] that sum to 1, of the
      `available_subsets`; like those, S + 1 if all may be unavailable.
    """
    given = available_subsets(mixture, observed)
    components = subset_posteriors(experts, mixture)
    if len(given.masks) > len(mixture.masks):
        rest = product_of_experts(experts, given.masks[-1], given.prior_expert[-1])
        components = jax.tree.map(
            lambda field, own: jnp.concatenate([field, own[None]]), components, rest
        )
    return components, given.weights


def subset_posteriors(experts: Gaussian, mixture: SubsetMixture) -> Gaussian:
    """The posteriors of all S subsets, fields [S, B, D], in one product of matrices.

    The values are those of `product_of_experts` for every row of masks. Each expert's
    precision is exponentiated once instead of once a subset (`_scaled_precisions`);
    the mask matrix sums the precisions of each subset.

    Args:
      experts: fields [M, B, D].
      mixture: S subsets of M modalities, not traced.
    """
    masks, prior = _experts_of(mixture, experts.mean.dtype)
    centre, precision, prior_precision = _scaled_precisions(experts)
    total = _subset_sums(masks, precision) + prior * prior_precision
    mean = _subset_sums(masks, precision * experts.mean) / total
    return Gaussian(mean, -(centre + jnp.log(total)))


def plain_mixture_kl(
    experts: Gaussian, mixture: SubsetMixture, weights: Array
) -> Array:
    """The KL terms of Eq. 2 as the paper writes them: the reference of `mixture_kl`.

    sum_A omega_A KL(q(z|x_A) || N(0, I)) of Daunhawer et al. (2022); arguments and
    result are those of `mixture_kl`. The posteriors of all subsets are in memory.
    """
    terms = distributions.kl_to_standard_gaussian(subset_posteriors(experts, mixture))
    return jnp.sum(weights * terms, axis=0)


def mixture_kl(experts: Gaussian, mixture: SubsetMixture, weights: Array) -> Array:
    """The KL terms of Eq. 2, sum_A omega_A KL(q(z|x_A) || N(0, I)), in fast form.

    The value and gradient of `plain_mixture_kl`. There the posteriors of all subsets,
    and a dozen arrays of their size in the gradient, go through memory: for the 31
    subsets of 5 modalities that takes a fifth of the time of the networks. Two things
    avoid it. The latent dimensions, which need nothing of one another, are taken in
    blocks that are so small that the arrays of all subsets stay in a cache (on CPUs).
    And the gradient, written by hand, is computed in the same pass as the value, so
    that all that is kept between the two is of the experts' size.

    Args:
      experts: fields [M, B, D].
      mixture: S subsets of M modalities, not traced.
      weights: [S, 1] or [S, B]; constants, which have no gradient here.

    Returns:
      float [B], nats.
    """
    centre, precision, prior_precision = _scaled_precisions(experts)
    sums = _kl_sums(
        precision,
        precision * experts.mean,
        centre,
        prior_precision,
        weights,
        *_experts_of(mixture, experts.mean.dtype),
    )
    return 0.5 * jnp.sum(sums, axis=-1)


@jax.custom_vjp
def _kl_sums(precision: Array, product: Array, *constants: Array) -> Array:
    """Twice the weighted KL terms of each dimension, [B, D]; see `_kl_and_gradient`."""
    return _kl_and_gradient(precision, product, *constants)[0]


def _kl_sums_forward(*args: Array) -> tuple[Array, tuple[Array, Array]]:
    value, *gradient = _kl_and_gradient(*args)
    return value, tuple(gradient)


def _kl_sums_backward(gradient: tuple[Array, Array], cotangent: Array) -> tuple:
    # Masks, weights and the scale of the precisions are constants.
    return (*(cotangent * part for part in gradient), *(None,) * 5)


_kl_sums.defvjp(_kl_sums_forward, _kl_sums_backward)


def _kl_and_gradient(
    precision: Array,
    product: Array,
    centre: Array,
    prior_precision: Array,
    weights: Array,
    masks: Array,
    prior: Array,
) -> tuple[Array, Array, Array]:
    """sum_A omega_A (mean^2 + variance - 1 - log variance) of each dimension.

    Args:
      precision: scaled precisions of the experts, [M, B, D].
      product: precision times mean, [M, B, D].
      centre: log of the scale, [B, D].
      prior_precision: scaled precision of the prior, [B, D].
      weights: [S, 1] or [S, B].
      masks: 1 for the experts of a subset, 0 for others, [S, M].
      prior: 1 where the prior is an expert, [S, 1, 1].

    Returns:
      The sums [B, D], and their gradients with respect to the first two arguments.
    """
    weights = weights[:, :, None]

    def block(fields: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        precision, product, centre, prior_precision = fields
        total = _subset_sums(masks, precision) + prior * prior_precision
        scale = 1 / total
        mean = _subset_sums(masks, product) * scale
        variance = jnp.exp(-centre) * scale
        squares = jnp.square(mean)
        sums = weights * (squares + variance - 1 + centre + jnp.log(total))
        weighted = weights * scale
        by_total = weighted * (1 - variance - 2 * squares)
        return (
            jnp.sum(sums, axis=0),
            _subset_sums(masks.T, by_total),
            _subset_sums(masks.T, 2 * weighted * mean),
        )

    *_, dim = fields_shape = (len(masks), *centre.shape)
    num_blocks = _num_blocks(math.prod(fields_shape) * centre.dtype.itemsize, dim)
    fields = (precision, product, centre, prior_precision)
    if num_blocks == 1:
        return block(fields)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], num_blocks, -1), -2, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], dim)

    return jax.tree.map(join, jax.lax.map(block, jax.tree.map(split, fields)))


def _num_blocks(num_bytes: int, dim: int) -> int:
    """Number of blocks of the dimensions for an array to fit a cache; divides dim.

    1 if no divisor is near the number needed (dim is a prime, say), and on
    accelerators, where blocks one after the other cost more than memory does.
    """
    if jax.default_backend() != "cpu":
        return 1
    least = -(-num_bytes // CACHE_BYTES)
    fitting = [n for n in range(least, 4 * least + 1) if dim % n == 0]
    return fitting[0] if fitting else 1


def _scaled_precisions(experts: Gaussian) -> tuple[Array, Array, Array]:
    """Precisions around the middle of their log-range, in which they can be added.

    Log-precisions further than 40 from the middle are taken as at 40, so that no
    gradient leaves float32; encoders stay within 20.

    Args:
      experts: fields [M, B, D].

    Returns:
      (the middle of each dimension, a log-precision, [B, D]; the precisions of the
      experts [M, B, D] and of the prior [B, D], divided by its exponential).
    """
    log_precision = -experts.log_variance
    low = jnp.minimum(jnp.min(log_precision, axis=0), 0.0)
    high = jnp.maximum(jnp.max(log_precision, axis=0), 0.0)
    centre = jax.lax.stop_gradient((low + high) / 2)
    precision = jnp.exp(jnp.clip(log_precision - centre, -40.0, 40.0))
    return centre, precision, jnp.exp(jnp.clip(-centre, -40.0, 40.0))


def _subset_sums(masks: Array, values: Array) -> Array:
    """Sums over the members of each subset: [S, M], [M, ...] -> [S, ...]."""
    # Full float32 even if the device rounds the factors of products by default.
    return jnp.tensordot(masks, values, axes=1, precision="highest")


def _experts_of(mixture: SubsetMixture, dtype: Any) -> tuple[Array, Array]:
    """The experts of each subset as 0 or 1: modalities [S, M], the prior [S, 1, 1]."""
    prior = jnp.asarray(mixture.prior_expert, dtype)[:, None, None]
    return jnp.asarray(mixture.masks, dtype), prior


def _stratified_positions(key: PRNGKey, num: int) -> Array:
    """`num` positions in [0, 1), one in each interval of length 1 / num, shuffled."""
    offset_key, order_key = jax.random.split(key)
    positions = (jnp.arange(num) + jax.random.uniform(offset_key)) / num
    # Rounding may lift the last position to 1, past the end of all weights.
    positions = jnp.minimum(positions, 1 - jnp.finfo(positions.dtype).epsneg)
    # A shuffle is a sort, which devices would share by sending its numbers around.
    return meshes.keep_whole(jax.random.permutation(order_key, positions))


def _components_at(weights: Array, positions: Array) -> Array:
    """The components at positions of the unit interval, cut in parts of the weights.

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
    # Taken along an axis, so that examples stay on their devices.
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
      weights: float [S], summing to 1, or [S, num] for each example.
      num: number of examples.

    Returns:
      int32 [num], components.
    """
    return _components_at(weights, _stratified_positions(key, num))


def random_components(key: PRNGKey, weights: Array, num: int) -> Array:
    """Draws a component for each of `num` examples independently; int32 [num]."""
    return _components_at(weights, jax.random.uniform(key, (num,)))


def gather_components(components: Distribution, indices: Array) -> Distribution:
    """Component indices[b] of example b: fields [S, B, D], [B] -> [B, D]."""
    rows = indices[None, :, None]
    # Taken along an axis, so that examples stay on their devices.
    return jax.tree.map(
        lambda field: jnp.take_along_axis(field, rows, axis=0)[0], components
    )


def expert_component(
    key: PRNGKey, experts: Distribution, observed: Array
) -> Distribution:
    """One observed expert per example, stratified: a draw of their even mixture.

    Args:
      key: random key.
      experts: fields [M, B, D].
      observed: bool [M], or [M, B] for each example; not empty; may be traced.

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
      mixture: result of `available_subsets`.

    Returns:
      Gaussian with fields [B, D].
    """
    num = experts.mean.shape[1]
    indices = stratified_components(key, mixture.weights, num)
    return chosen_products(experts, mixture, indices)


def chosen_products(
    experts: Gaussian, mixture: SubsetMixture, indices: Array
) -> Gaussian:
    """The posterior of subset indices[b] of example b, and of no other.

    Args:
      experts: fields [M, B, D].
      mixture: as `available_subsets` returns it, masks
        [S, M, 1 or B].
      indices: int32 [B].

    Returns:
      Gaussian with fields [B, D].
    """
    num = len(indices)
    masks = jnp.broadcast_to(mixture.masks, (*mixture.masks.shape[:2], num))
    masks = jnp.take_along_axis(masks, indices[None, None, :], axis=0)[0]
    prior_expert = jnp.asarray(mixture.prior_expert)[indices]
    return product_of_experts(experts, masks, prior_expert)
