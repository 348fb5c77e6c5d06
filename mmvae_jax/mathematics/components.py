"""Choice of the component that an example of a mixture is decoded from.

Components are drawn stratified over the batch or independently, and only the chosen
ones are computed where a mixture has many.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmvae_jax.mathematics import posteriors
from mmvae_jax.mathematics.subsets import SubsetMixture
from mmvae_jax.types import AnyArray, Array, Family, Gaussian, PRNGKey


def keep_whole(x: Array) -> Array:
    """The array, computed whole by every device that needs a part of it.

    For arrays that are cheap to compute, but cannot be taken apart along their axis of
    examples without communication (a sort, say). Without a mesh nothing is done.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def _stratified_positions(key: PRNGKey, num: int) -> Array:
    """`num` positions in [0, 1), one in each interval of length 1 / num, shuffled."""
    offset_key, order_key = jax.random.split(key)
    positions = (jnp.arange(num) + jax.random.uniform(offset_key)) / num
    # Rounding may lift the last position to 1, past the end of all weights.
    positions = jnp.minimum(positions, 1 - jnp.finfo(positions.dtype).epsneg)
    # A shuffle is a sort, which devices would share by sending its numbers around.
    return keep_whole(jax.random.permutation(order_key, positions))


def _components_at(weights: AnyArray, positions: Array) -> Array:
    """The components at positions of the unit interval, cut in parts of the weights.

    Args:
      weights: float [S], or [S, B] for weights of each example; not all 0.
      positions: float [B], in [0, 1).

    Returns:
      int32 [B], components, none of them with weight 0.
    """
    weights = posteriors.append_axes(jnp.asarray(weights), 2)
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


def stratified_components(key: PRNGKey, weights: AnyArray, num: int) -> Array:
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


def random_components(key: PRNGKey, weights: AnyArray, num: int) -> Array:
    """Draws a component for each of `num` examples independently; int32 [num]."""
    return _components_at(weights, jax.random.uniform(key, (num,)))


def gather_components(components: Family, indices: Array) -> Family:
    """Component indices[b] of example b: fields [S, B, D], [B] -> [B, D]."""
    rows = indices[None, :, None]
    # Taken along an axis, so that examples stay on their devices.
    return jax.tree.map(
        lambda field: jnp.take_along_axis(field, rows, axis=0)[0], components
    )


def expert_component(key: PRNGKey, experts: Family, observed: AnyArray) -> Family:
    """One observed expert per example, stratified: a draw of their even mixture.

    Args:
      key: random key.
      experts: fields [M, B, D].
      observed: bool [M], or [M, B] for each example; not empty; may be traced.

    Returns:
      A distribution with fields [B, D].
    """
    weights = posteriors.uniform_weights(jnp.asarray(observed))
    num = experts.mean.shape[1]
    return gather_components(experts, stratified_components(key, weights, num))


def posterior_component(
    key: PRNGKey, experts: Gaussian, mixture: SubsetMixture
) -> Gaussian:
    """One component of the mixture per example, stratified over the batch.

    Only the chosen one is computed for each example.

    Args:
      key: random key.
      experts: fields [M, B, D].
      mixture: result of `available_subsets`.

    Returns:
      Gaussian with fields [B, D].
    """
    num = experts.mean.shape[1]
    indices = stratified_components(key, mixture.weights, num)
    return chosen_posteriors(experts, mixture, indices)


def chosen_posteriors(
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
    return posteriors.pool(experts, masks, prior_expert, mixture.pooling)
