"""Rectified flows: the loss, guidance, two solvers of the ODE, and the density.

`log_pushed` is the density under a known bijection, without an ODE.

A flow moves noise eps ~ N(0, I) at time 0 to data r at time 1 along dx/dt = v(x, t).
Its velocity v is learned on straight lines between them (Liu et al., 2023; Lipman et
al., 2023),

    x_t = (1 - t) eps + t r,   v(x, t) = E[r - eps | x_t = x].

A velocity is a function (x [B, ...], t [B]) -> [B, ...] of each example separately. It
closes over its other arguments (parameters, a condition, the given modalities).
`given`, bool and broadcast to x, marks known entries, which are not moved.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmvae_jax.errors import ArgumentError
from mmvae_jax.mathematics import distributions
from mmvae_jax.mathematics.posteriors import append_axes
from mmvae_jax.types import AnyArray, Array, Gaussian, PRNGKey

Velocity = Callable[[Array, Array], Array]
# x [B, D] -> (y [B, D], log |det dy/dx| [B]).
Bijection = Callable[[Array], tuple[Array, Array]]
# The state of an ODE: any tree of arrays.
_State = Any
# (state, t float []) -> derivative of the state.
_Derivative = Callable[[_State, Array], _State]


def sample_times(
    key: PRNGKey, num: int, mean: float = 0.0, scale: float = 1.0
) -> Array:
    """Times float [num] in (0, 1) whose logits are N(mean, scale^2).

    The logit-normal density of Esser et al. (2024). Most times are far from 0 and 1,
    where the velocity is hardest to predict.
    """
    return jax.nn.sigmoid(mean + scale * jax.random.normal(key, (num,)))


def random_subsets(key: PRNGKey, observed: AnyArray, empty_share: float) -> Array:
    """Draws the modalities on which each example is conditioned.

    The subset is empty with probability `empty_share`. Else its size is uniform in
    1..n - 1, for an example with n modalities, and all subsets of a size are equally
    likely. With n < 2 the subset is empty.

    Args:
      key: random key.
      observed: bool [M, B].
      empty_share: in [0, 1].

    Returns:
      given, bool [M, B]; `observed & ~given` are the modalities to learn.
    """
    empty_key, size_key, order_key = jax.random.split(key, 3)
    observed = jnp.asarray(observed)
    num = jnp.sum(observed, axis=0)
    is_empty = jax.random.uniform(empty_key, num.shape) < empty_share
    sizes = jax.random.randint(size_key, num.shape, 1, jnp.maximum(num, 2))
    sizes = jnp.where(is_empty | (num < 2), 0, sizes)
    scores = jax.random.uniform(order_key, observed.shape)
    order = jnp.argsort(jnp.where(observed, scores, jnp.inf), axis=0)
    return jnp.argsort(order, axis=0) < sizes


def dimensions_of(subset: AnyArray, sizes: tuple[int, ...]) -> Array:
    """Mask of the latent dimensions of the modalities of a subset.

    Args:
      subset: bool [M, B], or [M] for all examples.
      sizes: M dimensions, which add up to D.

    Returns:
      bool [B, D], or [D].
    """
    rows = jnp.repeat(jnp.asarray(subset), np.array(sizes), axis=0)
    return jnp.moveaxis(rows, 0, -1)


def drop_condition(key: PRNGKey, condition: Array, share: float) -> Array:
    """Sets the conditions [B, E] of a random share of the examples to zeros.

    Zeros mean no condition (Ho & Salimans, 2022), so that a true condition must not be
    zeros; a code of length one never is.
    """
    is_dropped = jax.random.bernoulli(key, share, condition.shape[:1])
    return jnp.where(is_dropped[:, None], 0.0, condition)


def flow_matching_loss(
    velocity: Velocity,
    r: AnyArray,
    noise: AnyArray,
    t: AnyArray,
    given: AnyArray | None = None,
    learned: AnyArray | None = None,
) -> Array:
    """The squared error of the velocity at x_t, averaged over the learned entries.

    The input of the velocity is r in given entries, x_t in learned entries, and noise
    in all others.

    Args:
      velocity: see the module's docstring.
      r: data [B, ...]; any value in entries that are neither given nor learned.
      noise: eps ~ N(0, I) [B, ...].
      t: float in [0, 1], [B] or in the shape of r.
      given: bool, broadcast to r; None: no entry.
      learned: bool, broadcast to r, disjoint from given; None: all that are not given.

    Returns:
      float [B], without unit; 0 for an example without learned entries.
    """
    given = jnp.broadcast_to(False if given is None else given, r.shape)
    learned = jnp.broadcast_to(~given if learned is None else learned, r.shape)
    times = append_axes(jnp.asarray(t), r.ndim)
    x = jnp.where(learned, (1 - times) * noise + times * r, noise)
    # `where` instead of products, so that ignored values may be NaN.
    errors = velocity(jnp.where(given, r, x), jnp.asarray(t)) - (r - noise)
    axes = tuple(range(1, r.ndim))
    total = jnp.sum(jnp.square(jnp.where(learned, errors, 0.0)), axis=axes)
    return total / jnp.maximum(jnp.sum(learned, axis=axes), 1)


def guided(
    conditional: Velocity, unconditional: Velocity, strength: AnyArray | float
) -> Velocity:
    """The velocity v_u + g (v_c - v_u) of classifier-free guidance.

    Ho & Salimans (2022). g = 1 is the conditional velocity, bit for bit. g > 1 follows
    the condition more closely and has less diversity.

    Args:
      conditional: v_c.
      unconditional: v_u.
      strength: g, float [], or [B] for each example; may be traced.
    """

    def velocity(x: Array, t: Array) -> Array:
        v_c, v_u = conditional(x, t), unconditional(x, t)
        return v_c + append_axes(jnp.asarray(strength) - 1.0, x.ndim) * (v_c - v_u)

    return velocity


def integrate(
    velocity: Velocity,
    x: Array,
    num_steps: int,
    method: str = "euler",
    given: AnyArray | None = None,
    start: float = 0.0,
    end: float = 1.0,
) -> Array:
    """Moves x along the flow: from noise at time 0 to data at time 1, or back.

    Args:
      velocity: see the module's docstring; without convolutions, which are slow in
        loops on CPUs.
      x: [B, ...] at time `start`; data in given entries.
      num_steps: number of steps of equal length; static.
      method: a key of SOLVERS, "euler" (one evaluation per step, error of order 1) or
        "heun" (two evaluations, order 2).
      given: bool, broadcast to x; these entries are returned unchanged.
      start: time of x.
      end: time of the result.

    Returns:
      [B, ...].

    Raises:
      ArgumentError: the method is unknown, or num_steps < 1.
    """
    velocity = _at_rest(velocity, given)

    def derivative(x: Array, t: Array) -> Array:
        return velocity(x, jnp.full(x.shape[:1], t, x.dtype))

    return _solve(derivative, x, num_steps, method, start, end)


def log_density(
    velocity: Velocity,
    r: Array,
    num_steps: int,
    given: AnyArray | None = None,
    key: PRNGKey | None = None,
    num_probes: int = 1,
    blocks: tuple[int, ...] = (),
) -> Array:
    """The log-density of the flow at r, by the ODE from data to noise.

        log p(r) = log N(x_0; 0, I) - int_0^1 div v(x_t, t) dt

    (Chen et al., 2018). Without `key` the divergence is exact and needs D derivatives
    of the velocity per step, all in memory; if the derivative is block-diagonal, only
    as many as the largest block has entries, each in the direction of the k-th entries
    of all blocks. With `key` it is an unbiased estimate (Hutchinson; Grathwohl et al.,
    2019), with the same random signs at all times. Both have the error of Heun's
    method. Euler's would make the density too high: its step h changes volumes by
    log |1 - h a| for each eigenvalue a of dv/dx, which is less than the -h a that the
    integral adds.

    Args:
      velocity: see the module's docstring.
      r: [B, ...].
      num_steps: as for `integrate`.
      given: bool, broadcast to r: the density is that of all other entries given these.
      key: random key of the estimate; None: the exact divergence. Each example has its
        own signs, a function of the key and of its r.
      num_probes: number of random sign vectors of the estimate.
      blocks: sizes of consecutive blocks of the entries, in the order of the flattened
        r, whose velocities do not depend on each other; (): one block. The estimate
        does not need them.

    Returns:
      float [B], nats, the density of r (for data before whitening, add
      `log_whitening`).

    Raises:
      ArgumentError: as for `integrate`, num_probes < 1, or blocks without all entries.
    """
    size = math.prod(r.shape[1:])
    if blocks and sum(blocks) != size:
        raise ArgumentError("{blocks}={} must add up to {} entries", blocks, size)
    if num_probes < 1:
        raise ArgumentError("{num_probes} must be >= 1, got {}", num_probes)
    velocity = _at_rest(velocity, given)
    axes = tuple(range(1, r.ndim))
    if key is None:
        places = np.concatenate([np.arange(num) for num in blocks or (size,)])
        basis = places == np.arange(max(places) + 1)[:, None]
        basis = basis.astype(r.dtype).reshape(-1, 1, *r.shape[1:])
        tangents, share = jnp.broadcast_to(basis, (len(basis), *r.shape)), 1.0
    else:
        shape, share = (num_probes, *r.shape[1:]), 1 / num_probes
        tangents = jax.vmap(
            lambda key: jax.random.rademacher(key, shape, r.dtype), out_axes=1
        )(keys_of_rows(key, r))

    def derivative(state: tuple[Array, Array], t: Array) -> tuple[Array, Array]:
        times = jnp.full(r.shape[:1], t, r.dtype)
        v, push = jax.linearize(lambda x: velocity(x, times), state[0])
        products = tangents * jax.vmap(push)(tangents)
        return v, share * jnp.sum(products, axis=(0, *(axis + 1 for axis in axes)))

    state = (r, jnp.zeros(r.shape[:1], r.dtype))
    noise, log_determinant = _solve(derivative, state, num_steps, "heun", 1.0, 0.0)
    log_prob = -0.5 * (jnp.square(noise) + math.log(2 * math.pi))
    if given is not None:
        log_prob = jnp.where(given, 0.0, log_prob)
    return jnp.sum(log_prob, axis=axes) + log_determinant


def keys_of_rows(key: PRNGKey, x: Array) -> PRNGKey:
    """A random key for each row of x [B, ...], a function of `key` and of the row.

    The row's bits are hashed to 32 bits and folded into the key. Errors of estimates
    with these keys are independent between rows, in one batch or in two, while the
    estimate of a row is always the same.

    Args:
      key: random key.
      x: float32.

    Returns:
      keys [B].
    """
    own_key, factor_key = jax.random.split(key)
    bits = jax.lax.bitcast_convert_type(x.reshape(len(x), -1), jnp.uint32)
    # Odd factors: every bit of a row changes the hash.
    factors = jax.random.bits(factor_key, bits.shape[1:], bits.dtype) | 1
    hashed = jnp.sum(bits * factors, axis=1, dtype=jnp.uint32)
    return jax.vmap(partial(jax.random.fold_in, own_key))(hashed)


def _at_rest(velocity: Velocity, given: AnyArray | None) -> Velocity:
    """The velocity, with 0 for given entries."""
    if given is None:
        return velocity
    return lambda x, t: jnp.where(given, 0.0, velocity(x, t))


def _euler(f: _Derivative, state: _State, t: Array, next_t: Array) -> _State:
    return _moved(state, next_t - t, f(state, t))


def _heun(f: _Derivative, state: _State, t: Array, next_t: Array) -> _State:
    step, slope = next_t - t, f(state, t)
    next_slope = f(_moved(state, step, slope), next_t)
    return _moved(_moved(state, step / 2, slope), step / 2, next_slope)


def _moved(state: _State, step: Array, slope: _State) -> _State:
    return jax.tree.map(lambda x, v: x + step * v, state, slope)


SOLVERS = {"euler": _euler, "heun": _heun}


def _solve(
    f: _Derivative,
    state: _State,
    num_steps: int,
    method: str,
    start: float,
    end: float,
) -> _State:
    """Integrates a state from time `start` to time `end`."""
    if method not in SOLVERS:
        known = ", ".join(SOLVERS)
        raise ArgumentError("unknown {method} {!r}; choose one of {}", method, known)
    if num_steps < 1:
        raise ArgumentError("{num_steps} must be >= 1, got {}", num_steps)
    times = jnp.linspace(start, end, num_steps + 1)

    def step(state: _State, interval: tuple[Array, Array]) -> tuple[_State, None]:
        return SOLVERS[method](f, state, *interval), None

    return jax.lax.scan(step, state, (times[:-1], times[1:]))[0]


def log_pushed(bijection: Bijection, base: Gaussian, z: Array) -> Array:
    """log p(f(z)) + log |det df/dz|: the log-density of z if f(z) ~ p; nats.

    Args:
      bijection: f.
      base: p, fields [B, D] or [D].
      z: [B, D].

    Returns:
      float [B].
    """
    x, log_volume = bijection(z)
    return distributions.log_prob(base, x) + log_volume


def moving_average(new: Any, old: Any, decay: float, step: AnyArray | int) -> Any:
    """The moving average of the parameters of a velocity, after one more step.

        average + (1 - d) (new - average),   d = min(decay, (1 + n) / (10 + n))

    with n earlier steps, as tf.train.ExponentialMovingAverage has it. With a constant
    decay, 0.998^625 = 29 % of an average of 625 steps would be the initial value. Here
    it is below 1e-18, the product of all d.

    Args:
      new: tree of parameters after the step.
      old: the average before the step, likewise; any finite value before the first.
      decay: the largest d, in [0, 1).
      step: n, int [].
    """
    ramp = (1 + step) / (10 + step)
    return optax.incremental_update(new, old, 1 - jnp.minimum(decay, ramp))


class Moments(NamedTuple):
    """Count, mean and sum of squares of each entry; `merge_moments` merges two.

    Attributes:
      num: float [...], number of examples with the entry.
      mean: float [...]; 0 without examples.
      squares: float [...], sum of the squared distances from the mean.
    """

    num: Array
    mean: Array
    squares: Array


def moments(x: AnyArray, counted: AnyArray | bool = True) -> Moments:
    """The moments of the counted entries of examples x [B, ...].

    Args:
      x: [B, ...]; entries that are not counted may have any value.
      counted: bool, broadcast to x.

    Returns:
      Moments with fields [...].
    """
    counted = jnp.broadcast_to(counted, x.shape)
    num = jnp.sum(counted, axis=0, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(counted, x, 0.0), axis=0) / jnp.maximum(num, 1)
    squares = jnp.sum(jnp.where(counted, jnp.square(x - mean), 0.0), axis=0)
    return Moments(num, mean, squares)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two disjoint sets (Chan et al., 1983)."""
    num = a.num + b.num
    share = b.num / jnp.maximum(num, 1)
    distance = b.mean - a.mean
    squares = a.squares + b.squares + jnp.square(distance) * a.num * share
    return Moments(num, a.mean + distance * share, squares)


def deviation(of: Moments) -> Array:
    """Standard deviation [...]; 1 instead of 0, so that it can be divided by."""
    variance = of.squares / jnp.maximum(of.num, 1)
    # `where` inside the root: the gradient of the root at 0 is not finite.
    return jnp.sqrt(jnp.where(variance > 0, variance, 1.0))


def whiten(of: Moments, z: Array) -> Array:
    """r = (z - mean) / deviation of each entry; [B, ...] -> [B, ...]."""
    return (z - of.mean) / deviation(of)


def unwhiten(of: Moments, r: Array) -> Array:
    """The inverse of `whiten`."""
    return of.mean + deviation(of) * r


def log_whitening(of: Moments) -> Array:
    """log |dr/dz|, a float [], in nats: log p(z) = log p(r) + log |dr/dz|."""
    return -jnp.sum(jnp.log(deviation(of)))
