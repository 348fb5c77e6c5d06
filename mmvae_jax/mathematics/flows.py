"""Rectified flows: the loss, guidance, the two solvers of the ODE, the density.

And the density of a flow whose map is known, without an ODE (`log_pushed`).

A flow turns noise eps ~ N(0, I) at time 0 into data r at time 1 along dx/dt = v(x, t).
Its velocity v is learned on straight lines between the two (Liu et al., 2023; Lipman et
al., 2023),

    x_t = (1 - t) eps + t r,   v(x, t) = E[r - eps | x_t = x].

A velocity is a function (x [B, ...], t [B]) -> [B, ...] that sees each example alone.
What else it depends on (parameters, a condition, which modalities are given) is closed
over. `given` is bool and broadcast to x: the entries that are known and are not moved.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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

    The logit-normal density of Esser et al. (2024): most of training is spent between
    noise and data, where the velocity is hardest to tell.
    """
    return jax.nn.sigmoid(mean + scale * jax.random.normal(key, (num,)))


def random_subsets(key: PRNGKey, observed: AnyArray, empty_share: float) -> Array:
    """Draws the modalities that each example is given, of those it has.

    None with probability `empty_share`, else a subset of a size that is uniform in
    1..n - 1, n being how many modalities the example has; all subsets of a size are
    equally likely. With fewer than two modalities nothing is given.

    Args:
      key: random key.
      observed: bool [M, B].
      empty_share: in [0, 1].

    Returns:
      bool [M, B]; `observed & ~given` are those to be learned.
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
    """The entries of [B, D] that belong to the modalities of a subset.

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

    Zeros stand for no condition (Ho & Salimans, 2022). No condition may itself be
    zeros, which a code of length one never is.
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
    """The squared error of the velocity at x_t, a mean over what is learned.

    The velocity sees r where it is given, x_t where it is learned, and noise elsewhere.

    Args:
      velocity: as in the module's docstring.
      r: data [B, ...]; anything where it is neither given nor learned.
      noise: eps ~ N(0, I) [B, ...].
      t: float [B], in [0, 1]; or of each entry, in r's shape.
      given: bool, broadcast to r, as learned is; None: nothing.
      learned: entries that count, none of them given; None: all that are not given.

    Returns:
      float [B], of no unit; 0 where an example has nothing to learn.
    """
    given = jnp.broadcast_to(False if given is None else given, r.shape)
    learned = jnp.broadcast_to(~given if learned is None else learned, r.shape)
    times = append_axes(jnp.asarray(t), r.ndim)
    x = jnp.where(learned, (1 - times) * noise + times * r, noise)
    # Chosen by `where`, so that values that do not count may be NaN.
    errors = velocity(jnp.where(given, r, x), jnp.asarray(t)) - (r - noise)
    axes = tuple(range(1, r.ndim))
    total = jnp.sum(jnp.square(jnp.where(learned, errors, 0.0)), axis=axes)
    return total / jnp.maximum(jnp.sum(learned, axis=axes), 1)


def guided(
    conditional: Velocity, unconditional: Velocity, strength: AnyArray | float
) -> Velocity:
    """The velocity v_u + g (v_c - v_u): guidance without a classifier.

    Ho & Salimans (2022). At g = 1 it is the conditional velocity, bit for bit. Above,
    it moves to what the condition makes more likely, at the price of diversity.

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
      velocity: as in the module's docstring; without convolutions, whose steps in a
        loop are slow on CPUs.
      x: [B, ...] at time `start`; data where it is given.
      num_steps: steps of equal length; static.
      method: a key of SOLVERS, "euler" (one evaluation a step, error of order 1) or
        "heun" (two, of order 2).
      given: bool, broadcast to x; returned as it is.
      start: time of x.
      end: time of the result.

    Returns:
      [B, ...].

    Raises:
      ArgumentError: there is no such method, or no step.
    """
    velocity = _at_rest(velocity, given)

    def derivative(x: Array, t: Array) -> Array:
        return velocity(x, jnp.full(x.shape[:1], t, x.dtype))

    return _solve(derivative, x, num_steps, method, start, end)


def log_density(
    velocity: Velocity,
    r: Array,
    num_steps: int,
    method: str = "heun",
    given: AnyArray | None = None,
    key: PRNGKey | None = None,
    num_probes: int = 1,
) -> Array:
    """The log-density of the flow at r, along the ODE from data back to noise.

        log p(r) = log N(x_0; 0, I) - int_0^1 div v(x_t, t) dt

    (Chen et al., 2018). The divergence is exact, for D evaluations of the velocity's
    derivative a step, all at once in memory, or with a `key` an unbiased estimate
    (Hutchinson; Grathwohl et al., 2019), with the same random signs at all times. The
    steps of the solver are an error in both.

    Args:
      velocity: as in the module's docstring.
      r: [B, ...].
      num_steps: as for `integrate`.
      method: likewise.
      given: bool, broadcast to r: the density is that of all other entries given these.
      key: random key of the estimate; None: the exact divergence.
      num_probes: vectors of signs that the estimate is a mean over.

    Returns:
      float [B], nats, of r as it is (`log_whitening` leads to the data before it).

    Raises:
      ArgumentError: as for `integrate`, or there is no probe.
    """
    if num_probes < 1:
        raise ArgumentError("{num_probes} must be >= 1, got {}", num_probes)
    velocity = _at_rest(velocity, given)
    axes = tuple(range(1, r.ndim))
    if key is None:
        size = math.prod(r.shape[1:])
        basis = jnp.eye(size, dtype=r.dtype).reshape(size, 1, *r.shape[1:])
        tangents, share = jnp.broadcast_to(basis, (size, *r.shape)), 1.0
    else:
        shape = (num_probes, *r.shape)
        tangents, share = jax.random.rademacher(key, shape, r.dtype), 1 / num_probes

    def derivative(state: tuple[Array, Array], t: Array) -> tuple[Array, Array]:
        times = jnp.full(r.shape[:1], t, r.dtype)
        v, push = jax.linearize(lambda x: velocity(x, times), state[0])
        products = tangents * jax.vmap(push)(tangents)
        return v, share * jnp.sum(products, axis=(0, *(axis + 1 for axis in axes)))

    state = (r, jnp.zeros(r.shape[:1], r.dtype))
    noise, log_determinant = _solve(derivative, state, num_steps, method, 1.0, 0.0)
    log_prob = -0.5 * (jnp.square(noise) + math.log(2 * math.pi))
    if given is not None:
        log_prob = jnp.where(given, 0.0, log_prob)
    return jnp.sum(log_prob, axis=axes) + log_determinant


def _at_rest(velocity: Velocity, given: AnyArray | None) -> Velocity:
    """The velocity, 0 for what is given."""
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
    """The state at time `end` of the ODE that has this one at time `start`."""
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
    """log p(f(z)) + log |det df/dz|: the density of z, where f(z) has density p; nats.

    Args:
      bijection: f.
      base: p, fields [B, D] or [D].
      z: [B, D].

    Returns:
      float [B].
    """
    x, log_volume = bijection(z)
    return distributions.log_prob(base, x) + log_volume


class Moments(NamedTuple):
    """Number, mean and spread of each entry of the examples, which can be merged.

    Attributes:
      num: float [...], examples that have the entry.
      mean: float [...]; 0 where there are none.
      squares: float [...], sum of the squared distances from the mean.
    """

    num: Array
    mean: Array
    squares: Array


def moments(x: AnyArray, counted: AnyArray | bool = True) -> Moments:
    """The moments of examples x [B, ...], of the entries that are counted.

    Args:
      x: [B, ...]; anything where it is not counted.
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
    """The moments of all examples of two disjoint sets (Chan et al., 1983)."""
    num = a.num + b.num
    share = b.num / jnp.maximum(num, 1)
    distance = b.mean - a.mean
    squares = a.squares + b.squares + jnp.square(distance) * a.num * share
    return Moments(num, a.mean + distance * share, squares)


def deviation(of: Moments) -> Array:
    """Standard deviation [...]; 1 where all examples are equal, which stay so."""
    variance = of.squares / jnp.maximum(of.num, 1)
    # The root of 0 has no gradient, which `where` outside of it would not hide.
    return jnp.sqrt(jnp.where(variance > 0, variance, 1.0))


def whiten(of: Moments, z: Array) -> Array:
    """r = (z - mean) / deviation of each entry; [B, ...] -> [B, ...].

    An entry without deviation is divided by 1.
    """
    return (z - of.mean) / deviation(of)


def unwhiten(of: Moments, r: Array) -> Array:
    """The inverse of `whiten`."""
    return of.mean + deviation(of) * r


def log_whitening(of: Moments) -> Array:
    """log |dr/dz|, a float [], in nats: log p(z) = log p(r) + log |dr/dz|."""
    return -jnp.sum(jnp.log(deviation(of)))
