"""Hamiltonian Monte Carlo: samples of a density that is known up to a constant.

Neal (2011). A state z has a momentum p ~ N(0, I). Leapfrog steps of size e follow the
energy -log pi(z) + |p|^2 / 2, in units of `scale` for each entry. The end point is
accepted with probability min(1, exp(-change of the energy)), which leaves pi invariant.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics.posteriors import append_axes
from mmvae_jax.types import AnyArray, Array, PRNGKey

# Target acceptance rate (Neal, 2011, Sec. 4.4: 0.65 is best for long chains; short
# chains lose less by small steps).
_ACCEPTED = 0.8
_FIRST_SIZE = 0.3  # in units of `scale`
_JITTER = (0.8, 1.2)  # prevents trajectories that return to their start


def hamiltonian(
    log_density: Callable[[Array], Array],
    z: Array,
    key: PRNGKey,
    num_steps: int,
    num_leapfrogs: int = 5,
    scale: AnyArray | float = 1.0,
) -> Array:
    """The states of one chain per example after some steps.

    Each chain adapts its step size in the first half of the steps, which does not leave
    pi invariant. In the second half the step size is fixed up to a random factor, and
    pi is invariant. End points without finite energy are rejected.

    Args:
      log_density: z [B, D] -> log pi [B], up to a constant, for each example
        separately.
      z: initial states [B, D].
      key: random key.
      num_steps: number of steps, each with a new momentum; 0: z is returned.
      num_leapfrogs: gradients of log pi per step.
      scale: broadcast to z, approximate standard deviation of each entry.

    Returns:
      [B, D].
    """

    def energies(z: Array) -> tuple[Array, Array]:
        """log pi of each example, and its gradient, by one evaluation of both."""
        values, pull = jax.vjp(log_density, z)
        return values, pull(jnp.ones_like(values))[0]

    def step(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        z, value, gradient, log_size = state
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        momentum_key, accept_key, size_key = keys
        momentum = jax.random.normal(momentum_key, z.shape, z.dtype)
        jitter = jax.random.uniform(size_key, log_size.shape, z.dtype, *_JITTER)
        size = append_axes(jitter * jnp.exp(log_size), z.ndim) * scale

        def leapfrog(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            z, half, _, slope = state
            half = half + 0.5 * size * slope
            z = z + size * half
            value, slope = energies(z)
            return z, half + 0.5 * size * slope, value, slope

        start = z, momentum, value, gradient
        end, moved, new_value, slope = jax.lax.fori_loop(
            0, num_leapfrogs, leapfrog, start
        )
        gain = new_value - value
        gain += 0.5 * jnp.sum(jnp.square(momentum) - jnp.square(moved), axis=-1)
        chance = jnp.where(jnp.isfinite(gain), jnp.exp(jnp.minimum(gain, 0.0)), 0.0)
        is_taken = jax.random.uniform(accept_key, chance.shape) < chance
        change = (chance - _ACCEPTED) / jnp.sqrt(i + 1.0)
        return (
            jnp.where(is_taken[:, None], end, z),
            jnp.where(is_taken, new_value, value),
            jnp.where(is_taken[:, None], slope, gradient),
            log_size + jnp.where(i < num_steps // 2, change, 0.0),
        )

    log_size = jnp.full(z.shape[:1], jnp.log(_FIRST_SIZE), z.dtype)
    return jax.lax.fori_loop(0, num_steps, step, (z, *energies(z), log_size))[0]
