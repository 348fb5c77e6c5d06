"""Log-densities, KL divergences and sampling: the distributions models use.

All values are in nats. Densities of images are densities of pixel values in
[0, 1]. Sums run over every axis but the first (the batch), so that one function
serves vectors, images and token sequences.
"""

import math
from collections.abc import Callable
from functools import partial, singledispatch
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from mmvae_jax import tokens
from mmvae_jax.errors import UsageError
from mmvae_jax.types import (
    Array,
    Distribution,
    Gaussian,
    Laplace,
    PRNGKey,
    Shape,
    Support,
)

# Latent vectors or their distribution, which can be divided along D.
_Latent = TypeVar("_Latent", bound=Array | Distribution)


class Likelihood(NamedTuple):
    """The distribution of one modality given its decoder's output.

    Attributes:
      log_prob: (output [B, ...], x [B, ...]) -> [B], nats; from `make_likelihood` it
        is -inf where a value of x is outside of the support.
      mean: output [B, ...] -> the distribution's mean [B, ...] (for tokens: the
        probabilities of every word).
      support: the values of x that have a probability.
    """

    log_prob: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    support: Support


_REALS = Support("finite numbers")
_UNIT_INTERVAL = Support("numbers in [0, 1]", least=0, largest=1)
_TOKENS = Support("tokens 0, 1, 2, ...", least=0, is_whole=True)


@singledispatch
def log_prob(q: Distribution, z: Array) -> Array:
    """Log-density of a diagonal distribution, summed over D.

    Args:
      q: Gaussian or Laplace, fields [..., D].
      z: float [..., D], broadcast against `q`.

    Returns:
      float [...], nats.
    """
    raise TypeError(f"not a distribution: {type(q)}")


@log_prob.register
def _(q: Gaussian, z: Array) -> Array:
    squares = _squares(z, q)
    return -0.5 * jnp.sum(squares + q.log_variance + math.log(2 * math.pi), axis=-1)


@log_prob.register
def _(q: Laplace, z: Array) -> Array:
    distances = jnp.abs(z - q.mean) * jnp.exp(-q.log_scale)
    return -jnp.sum(distances + q.log_scale + math.log(2), axis=-1)


@singledispatch
def sample(q: Distribution, key: PRNGKey, shape: Shape = ()) -> Array:
    """Reparameterised samples of a diagonal distribution.

    Args:
      q: Gaussian or Laplace, fields [..., D].
      key: random key.
      shape: shape of the independent samples; () is one sample.

    Returns:
      float [*shape, ..., D].
    """
    raise TypeError(f"not a distribution: {type(q)}")


@sample.register
def _(q: Gaussian, key: PRNGKey, shape: Shape = ()) -> Array:
    noise = jax.random.normal(key, (*shape, *q.mean.shape), q.mean.dtype)
    return q.mean + jnp.exp(0.5 * q.log_variance) * noise


@sample.register
def _(q: Laplace, key: PRNGKey, shape: Shape = ()) -> Array:
    noise = jax.random.laplace(key, (*shape, *q.mean.shape), q.mean.dtype)
    return q.mean + jnp.exp(q.log_scale) * noise


def split(q: _Latent, size: int) -> tuple[_Latent, _Latent]:
    """The first `size` dimensions of a distribution, and the others.

    Args:
      q: Gaussian or Laplace, fields [..., D], or an array [..., D].
      size: dimensions of the first part, in [0, D].
    """
    first = jax.tree.map(lambda field: field[..., :size], q)
    return first, jax.tree.map(lambda field: field[..., size:], q)


def join(*parts: _Latent) -> _Latent:
    """Distributions of one family (or arrays), fields [..., D_i], end to end."""
    return jax.tree.map(lambda *fields: jnp.concatenate(fields, axis=-1), *parts)


def kl_to_standard_gaussian(q: Gaussian) -> Array:
    """KL(q || N(0, I)), summed over D; nats [...].

    Kingma & Welling (2014), App. B. Written with expm1, so that the terms which
    cancel near the prior cancel exactly.
    """
    excess = jnp.expm1(q.log_variance) - q.log_variance
    return 0.5 * jnp.sum(jnp.square(q.mean) + excess, axis=-1)


def gaussian_kl(q: Gaussian, p: Gaussian) -> Array:
    """KL(q || p) of two diagonal Gaussians, summed over D; nats [...]."""
    log_ratio = q.log_variance - p.log_variance
    squares = _squares(q.mean, p)
    return 0.5 * jnp.sum(squares + jnp.expm1(log_ratio) - log_ratio, axis=-1)


def _laplace_log_prob(loc: Array, x: Array, scale: float) -> Array:
    """Log-density of a Laplace distribution with a fixed scale; nats [B]."""
    return _sum_event(-jnp.abs(x - loc) / scale - math.log(2 * scale))


def _normal_log_prob(loc: Array, x: Array, scale: float) -> Array:
    """Log-density of a normal distribution with a fixed scale; nats [B]."""
    constant = math.log(scale) + 0.5 * math.log(2 * math.pi)
    return _sum_event(-0.5 * jnp.square((x - loc) / scale) - constant)


def _bernoulli_log_prob(logits: Array, x: Array) -> Array:
    """Log-probability of x in {0, 1} (or a grey value in between); nats [B]."""
    return _sum_event(
        x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits)
    )


def _categorical_log_prob(logits: Array, x: Array, count_padding: bool = True) -> Array:
    """Log-probability of tokens under independent distributions of the words; nats.

    Args:
      logits: [B, ..., V].
      x: int [B, ...].
      count_padding: whether the positions after the first `<eos>` count, as in the
        published code of MMVAE+; else they are 0, and it is the log-probability of
        the words (x is then [B, T]).

    Returns:
      [B].
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    taken = jnp.take_along_axis(log_probs, x[..., None].astype(jnp.int32), axis=-1)
    if not count_padding:
        taken = jnp.where(tokens.until_eos(x)[..., None], taken, 0.0)
    return _sum_event(taken)


def make_likelihood(
    name: str, scale: float = 1.0, count_padding: bool = True
) -> Likelihood:
    """The likelihood called `name`.

    Args:
      name: laplace, gaussian, bernoulli or categorical.
      scale: scale of laplace and gaussian.
      count_padding: whether padding counts, for categorical.

    Raises:
      UsageError: the name is unknown, or the scale is not positive.
    """
    if not scale > 0:
        raise UsageError(f"likelihood scale must be > 0, got {scale}")
    identity = partial(jnp.asarray)
    likelihoods = {
        "laplace": Likelihood(
            partial(_laplace_log_prob, scale=scale), identity, _REALS
        ),
        "gaussian": Likelihood(
            partial(_normal_log_prob, scale=scale), identity, _REALS
        ),
        "bernoulli": Likelihood(_bernoulli_log_prob, jax.nn.sigmoid, _UNIT_INTERVAL),
        "categorical": Likelihood(
            partial(_categorical_log_prob, count_padding=count_padding),
            jax.nn.softmax,
            _TOKENS,
        ),
    }
    if name not in likelihoods:
        raise UsageError(
            f"unknown likelihood {name!r}; choose one of {', '.join(likelihoods)}"
        )
    return _within_support(likelihoods[name])


def _within_support(own: Likelihood) -> Likelihood:
    """The likelihood, its log-probability -inf outside of the support.

    The formulas go on there: a Bernoulli's exceeds 0, and token -1 is the last word.
    """
    if own.support == _REALS:  # all that floats hold; NaN stays NaN
        return own

    def log_prob(output: Array, x: Array) -> Array:
        is_inside = own.support.holds(jnp.asarray(x))
        is_inside = is_inside.all(axis=tuple(range(1, is_inside.ndim)))
        return jnp.where(is_inside, own.log_prob(output, x), -jnp.inf)

    return own._replace(log_prob=log_prob)


def _squares(z: Array, q: Gaussian) -> Array:
    """Squared distances in units of the variance, [..., D].

    Divided by the standard deviation before they are squared: a precision of exp(100)
    leaves float32, and of no distance at all would make 0 * inf.
    """
    return jnp.square((z - q.mean) * jnp.exp(-0.5 * q.log_variance))


def _sum_event(values: Array) -> Array:
    """Sums over every axis but the first."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
