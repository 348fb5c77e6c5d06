"""Draws of the mixture component from which an example is decoded.

Components are drawn stratified over the batch or independently. Only the drawn ones are
computed.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmvae_jax.mathematics import posteriors
from mmvae_jax.mathematics.subsets import SubsetMixture
from mmvae_jax.types import AnyArray, Array, Family, Gaussian, PRNGKey


def keep_whole(x: Array) -> Array:
    """Replicates an array: every device computes all of it.

    For arrays that are cheap to compute, but need communication if their axis of
    examples is sharded, for instance a sort. No effect without a mesh.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def _stratified_positions(key: PRNGKey, num: int) -> Array:
    """`num` positions in [0, 1), one in each interval of length 1 / num, shuffled."""
    offset_key, order_key = jax.random.split(key)
    positions = (jnp.arange(num) + jax.random.uniform(offset_key)) / num
    # Rounding may lift the last position to 1, beyond the sum of the weights.
    positions = jnp.minimum(positions, 1 - jnp.finfo(positions.dtype).epsneg)
    # A shuffle is a sort, which would need communication between devices.
    return keep_whole(jax.random.permutation(order_key, positions))


def _components_at(weights: AnyArray, positions: Array) -> Array:
    """Inverse of the cumulative distribution of components, at some positions.

    Args:
      weights: float [S], or [S, B] for weights of each example; not all 0.
      positions: float [B], in [0, 1).

    Returns:
      int32 [B], components with a weight above 0.
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

    Systematic sampling: component k is drawn floor(num * w_k) or ceil(num * w_k) times,
    and num * w_k times on average, in random order. The published code instead gives
    the whole remainder of the division to the last component.

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
    """Selects component indices[b] of example b: fields [S, B, D], [B] -> [B, D]."""
    rows = indices[None, :, None]
    # Taken along an axis, so that examples stay on their devices.
    return jax.tree.map(
        lambda field: jnp.take_along_axis(field, rows, axis=0)[0], components
    )


def expert_component(key: PRNGKey, experts: Family, observed: AnyArray) -> Family:
    """Draws one observed expert per example from a uniform mixture, stratified.

    Args:
      key: random key.
      experts: fields [M, B, D].
      observed: bool [M] or [M, B], at least one per example; may be traced.

    Returns:
      A distribution with fields [B, D].
    """
    weights = posteriors.uniform_weights(jnp.asarray(observed))
    num = experts.mean.shape[1]
    return gather_components(experts, stratified_components(key, weights, num))


def posterior_component(
    key: PRNGKey, experts: Gaussian, mixture: SubsetMixture
) -> Gaussian:
    """Draws one component of the mixture per example, stratified over the batch.

    Only the drawn components are computed.

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
    """The posterior of subset indices[b] for example b.

    Args:
      experts: fields [M, B, D].
      mixture: result of `available_subsets`, masks [S, M, 1 or B].
      indices: int32 [B].

    Returns:
      Gaussian with fields [B, D].
    """
    num = len(indices)
    masks = jnp.broadcast_to(mixture.masks, (*mixture.masks.shape[:2], num))
    masks = jnp.take_along_axis(masks, indices[None, None, :], axis=0)[0]
    prior_expert = jnp.asarray(mixture.prior_expert)[indices]
    return posteriors.pool(experts, masks, prior_expert, mixture.pooling)
