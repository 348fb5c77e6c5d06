"""Log-densities, KL divergences and samples of distributions.

All values are in nats. Densities of images are densities of pixel values in
[0, 1]. Sums are over all axes except the first (the batch), so that one function
serves vectors, images and token sequences.
"""

import math
from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any, NamedTuple, TypeVar

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

# Latent vectors or their distribution, which can be split along D.
_Latent = TypeVar("_Latent", bound=Array | Distribution)


class Likelihood(NamedTuple):
    """The distribution of one modality given its decoder's output.

    Attributes:
      log_prob: (output [B, ...], x [B, ...]) -> [B], nats; `make_likelihood` makes it
        -inf if a value of x is outside of the support.
      mean: output [B, ...] -> the distribution's mean [B, ...] (for tokens: the
        probabilities of all words).
      deviation: output [B, ...] -> the distribution's standard deviation [B, ...], in
        the units of the mean; None for tokens.
      sample: (output [B, ...], key) -> one draw of x [B, ...] per example, float; for
        tokens int.
      parameter_shape: shape of an example -> shape of a learned parameter that all
        examples share, initially 0. The output is then the pair (output [B, ...],
        parameter). None: no parameter.
      support: the values of x for which the likelihood is defined.
    """

    log_prob: Callable[[Any, Array], Array]
    mean: Callable[[Any], Array]
    deviation: Callable[[Any], Array] | None
    sample: Callable[[Any, PRNGKey], Array]
    parameter_shape: Callable[[Shape], Shape] | None = None
    support: Support = Support("finite numbers")


_REALS = Support("finite numbers")
_UNIT_INTERVAL = Support("numbers in [0, 1]", least=0, largest=1)
_TOKENS = Support("tokens 0, 1, 2, ...", least=0, is_whole=True)
_COUNTS = Support("counts 0, 1, 2, ...", least=0, is_whole=True)


class Settings(NamedTuple):
    """The settings of a likelihood, documented in `make_likelihood`."""

    scale: float
    count_padding: bool
    library_size: float


class LikelihoodKind(NamedTuple):
    """A row of the table of likelihoods.

    Attributes:
      arrays: allowed types of arrays, keys of ARRAYS.
      make: `Settings` -> Likelihood.
      is_of_counts: whether int arrays are counts instead of tokens.
    """

    arrays: tuple[str, ...]
    make: Callable[[Settings], Likelihood]
    is_of_counts: bool = False


# Type of an array -> kinds of data. The likelihood decides between two kinds.
ARRAYS = {
    "uint8": "images [N, H, W, C]",
    "float": "vectors [N, ...]",
    "int": "tokens [N, T] or counts [N, F]",
}
# Learned scales stay within a factor of exp(10) of their initial value, and encoders'
# variances within the square of that, so that they do not leave float32.
_LOG_SCALE_BOUND = 10.0
# Largest distance of the log-scale to its optimum in a gradient; larger ones are cut.
_FARTHEST = 10.0
# Poisson draws of larger rates are normal: float32 is too coarse for the exact sampler,
# and the skewness is below 0.01.
_LARGE_RATE = 1e4


@singledispatch
def log_prob(q: Distribution, z: Array) -> Array:
    """Log-density of a diagonal distribution, summed over D.

    Args:
      q: Gaussian or Laplace, fields [..., D].
      z: float [..., D], broadcast with `q`.

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
    """Concatenates distributions of one family (or arrays), fields [..., D_i]."""
    return jax.tree.map(lambda *fields: jnp.concatenate(fields, axis=-1), *parts)


def kl_to_standard_gaussian(q: Gaussian) -> Array:
    """KL(q || N(0, I)), summed over D; nats [...].

    Kingma & Welling (2014), App. B. Uses expm1, so that terms cancel exactly near the
    prior.
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
    """Log-probability of tokens, independent over positions; nats.

    Args:
      logits: [B, ..., V].
      x: int [B, ...].
      count_padding: whether positions after the first `<eos>` count, as in the
        published code of MMVAE+. Without them the result is the log-probability of the
        words (x must be [B, T]).

    Returns:
      [B].
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    taken = jnp.take_along_axis(log_probs, x[..., None].astype(jnp.int32), axis=-1)
    if not count_padding:
        taken = jnp.where(tokens.until_eos(x)[..., None], taken, 0.0)
    return _sum_event(taken)


def _laplace(settings: Settings) -> Likelihood:
    """Laplace with a fixed scale b; its standard deviation is sqrt(2) b."""
    scale = settings.scale
    return Likelihood(
        partial(_laplace_log_prob, scale=scale),
        jnp.asarray,
        lambda loc: jnp.full_like(loc, math.sqrt(2) * scale),
        lambda loc, key: sample(Laplace(loc, jnp.log(scale)), key),
    )


def _gaussian(settings: Settings) -> Likelihood:
    """Normal with a fixed standard deviation."""
    scale = settings.scale
    return Likelihood(
        partial(_normal_log_prob, scale=scale),
        jnp.asarray,
        lambda loc: jnp.full_like(loc, scale),
        lambda loc, key: sample(Gaussian(loc, 2 * jnp.log(scale)), key),
    )


def _learned_gaussian(settings: Settings, is_optimal: bool) -> Likelihood:
    """Normal with one learned standard deviation for all values.

    Args:
      settings: `scale` is the initial standard deviation.
      is_optimal: whether the standard deviation follows its analytic optimum
        (`_optimal_log_prob`) instead of the plain gradient.
    """
    first = math.log(settings.scale)
    # Adam's steps have the size of the learning rate; `is_optimal` is ten times faster.
    factor = 1.0 if is_optimal else 1 / _LOG_SCALE_BOUND

    def log_scale(parameter: Array) -> Array:
        return first + _LOG_SCALE_BOUND * jnp.tanh(factor * parameter)

    def log_prob(output: tuple[Array, Array], x: Array) -> Array:
        loc, parameter = output
        function = _optimal_log_prob if is_optimal else _scaled_log_prob
        return function(loc, log_scale(parameter), x)

    def deviation(output: tuple[Array, Array]) -> Array:
        loc, parameter = output
        return jnp.broadcast_to(jnp.exp(log_scale(parameter)), loc.shape)

    def draw(output: tuple[Array, Array], key: PRNGKey) -> Array:
        loc, parameter = output
        return sample(Gaussian(loc, 2 * log_scale(parameter)), key)

    mean = lambda output: output[0]  # noqa: E731
    return Likelihood(log_prob, mean, deviation, draw, lambda shape: ())


def _scaled_log_prob(loc: Array, log_scale: Array, x: Array) -> Array:
    """Log-density of a normal distribution, log_scale []; nats [B]."""
    squares = jnp.square((x - loc) * jnp.exp(-log_scale))
    return _sum_event(-0.5 * squares - log_scale - 0.5 * math.log(2 * math.pi))


@jax.custom_vjp
def _optimal_log_prob(loc: Array, log_scale: Array, x: Array) -> Array:
    """`_scaled_log_prob` with the gradient of the optimal sigma-VAE.

    Rybkin et al. (2021), Sec. 3.3. The gradient is taken at the optimal standard
    deviation of the batch, the root mean square of x - loc, weighted as in the
    objective (missing values have weight 0). The gradient of log_scale points to the
    logarithm of this optimum. The value uses the learned log_scale, in training and
    evaluation; the published code uses the optimum of each batch.
    """
    return _scaled_log_prob(loc, log_scale, x)


def _optimal_forward(
    loc: Array, log_scale: Array, x: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _scaled_log_prob(loc, log_scale, x), (x - loc, log_scale)


def _optimal_backward(
    kept: tuple[Array, Array], weights: Array
) -> tuple[Array, Array, Array]:
    distances, log_scale = kept
    num_values = math.prod(distances.shape[1:])
    # All weights have one sign: an objective adds log-densities, a loss subtracts them.
    total = num_values * jnp.sum(weights)
    is_there = total != 0
    squares = jnp.sum(weights * _sum_event(jnp.square(distances)))
    optimum = 0.5 * jnp.log(squares / jnp.where(is_there, total, 1.0))
    near = jnp.clip(optimum, log_scale - _FARTHEST, log_scale + _FARTHEST)
    target = jnp.where(is_there, near, log_scale)
    rows = weights.reshape(-1, *[1] * (distances.ndim - 1))
    gradient = rows * distances * jnp.exp(-2 * target)
    # The true gradient, total * (exp(2 (target - log_scale)) - 1), to first order.
    return gradient, 2 * total * (target - log_scale), -gradient


_optimal_log_prob.defvjp(_optimal_forward, _optimal_backward)


def _bernoulli(settings: Settings) -> Likelihood:
    """Bernoulli; the output is logits."""
    del settings
    return Likelihood(
        _bernoulli_log_prob,
        jax.nn.sigmoid,
        # sqrt(p (1 - p)) in log space, which does not round to 0 before p does.
        lambda logits: jnp.exp(
            0.5 * (jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits))
        ),
        lambda logits, key: jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(
            jnp.float32
        ),
        support=_UNIT_INTERVAL,
    )


def _categorical(settings: Settings) -> Likelihood:
    """Categorical, independent over positions; the output is logits."""
    function = partial(_categorical_log_prob, count_padding=settings.count_padding)
    draw = lambda logits, key: jax.random.categorical(key, logits)  # noqa: E731
    return Likelihood(function, jax.nn.softmax, None, draw, support=_TOKENS)


def _poisson(settings: Settings) -> Likelihood:
    """Poisson; the output is log-rates (`_log_rates`)."""

    def log_prob(output: Array, x: Array) -> Array:
        x = x.astype(jnp.float32)
        log_rate, is_there = _log_rates_of(output, x, settings)
        value = x * log_rate - jnp.exp(log_rate) - jax.lax.lgamma(x + 1)
        return _sum_event(jnp.where(is_there, value, 0.0))

    def mean(output: Array) -> Array:
        return jnp.exp(_log_rates(output, settings.library_size))

    deviation = lambda output: jnp.sqrt(mean(output))  # noqa: E731
    draw = lambda output, key: _poisson_sample(mean(output), key)  # noqa: E731
    return Likelihood(log_prob, mean, deviation, draw, support=_COUNTS)


def _negative_binomial(settings: Settings) -> Likelihood:
    """Negative binomial with a decoded mean and a learned inverse dispersion r.

    The variance is mean + mean^2 / r. As in the default of scVI (Lopez et al., 2018),
    each value of an example has its own r, initially 1.
    """

    def log_r(parameter: Array) -> Array:
        return _LOG_SCALE_BOUND * jnp.tanh(parameter / _LOG_SCALE_BOUND)

    def log_prob(output: tuple[Array, Array], x: Array) -> Array:
        x = x.astype(jnp.float32)
        log_mean, is_there = _log_rates_of(output[0], x, settings)
        r, log_ratio = jnp.exp(log_r(output[1])), log_mean - log_r(output[1])
        choices = jax.lax.lgamma(x + r) - jax.lax.lgamma(r) - jax.lax.lgamma(x + 1)
        value = (
            choices - r * jax.nn.softplus(log_ratio) - x * jax.nn.softplus(-log_ratio)
        )
        return _sum_event(jnp.where(is_there, value, 0.0))

    def mean(output: tuple[Array, Array]) -> Array:
        return jnp.exp(_log_rates(output[0], settings.library_size))

    def deviation(output: tuple[Array, Array]) -> Array:
        own = mean(output)
        return jnp.sqrt(own * (1 + own * jnp.exp(-log_r(output[1]))))

    def draw(output: tuple[Array, Array], key: PRNGKey) -> Array:
        # A Poisson whose rate is a gamma of shape r with this mean; in log space,
        # because gammas of small r are below float32.
        rate_key, count_key = jax.random.split(key)
        log_mean = _log_rates(output[0], settings.library_size)
        own = log_r(output[1])
        gamma = jax.random.loggamma(rate_key, jnp.exp(own), log_mean.shape)
        return _poisson_sample(jnp.exp(gamma - own + log_mean), count_key)

    return Likelihood(log_prob, mean, deviation, draw, lambda shape: shape, _COUNTS)


def _poisson_sample(rate: Array, key: PRNGKey) -> Array:
    """Poisson draws as floats; NaN where the rate is."""
    count_key, normal_key = jax.random.split(key)
    small = jnp.minimum(rate, _LARGE_RATE)
    noise = jax.random.normal(normal_key, rate.shape)
    large = jnp.round(rate + jnp.sqrt(rate) * noise)
    return jnp.where(rate <= _LARGE_RATE, jax.random.poisson(count_key, small), large)


def _log_rates(output: Array, library: float | Array) -> Array:
    """Logarithms of the means of counts, [B, ...].

    Args:
      output: output of the decoder, [B, ...]: the logarithms themselves; or, with a
        library, the logits of the fraction of each value.
      library: total count, one number or [B]; 0: no library.
    """
    if isinstance(library, float) and library == 0:
        return output
    shares = jax.nn.log_softmax(output.reshape(len(output), -1)).reshape(output.shape)
    sizes = jnp.broadcast_to(jnp.asarray(library), len(output))
    return shares + jnp.log(sizes).reshape(-1, *[1] * (output.ndim - 1))


def _log_rates_of(
    output: Array, x: Array, settings: Settings
) -> tuple[Array, bool | Array]:
    """`_log_rates` [B, ...] for the total count of each example, and whether it is > 0.

    An example without counts is certain to be 0; its rates are those of a total count
    of 1, for finite gradients.
    """
    if settings.library_size == 0:
        return output, True
    library = _sum_event(x)
    rows = (library > 0).reshape(-1, *[1] * (x.ndim - 1))
    return _log_rates(output, jnp.maximum(library, 1.0)), rows


# The table of likelihoods.
LIKELIHOODS = {
    "laplace": LikelihoodKind(("uint8", "float"), _laplace),
    "gaussian": LikelihoodKind(("uint8", "float"), _gaussian),
    "gaussian_learned": LikelihoodKind(
        ("uint8", "float"), partial(_learned_gaussian, is_optimal=False)
    ),
    "gaussian_optimal": LikelihoodKind(
        ("uint8", "float"), partial(_learned_gaussian, is_optimal=True)
    ),
    "bernoulli": LikelihoodKind(("uint8", "float"), _bernoulli),
    "categorical": LikelihoodKind(("int",), _categorical),
    "poisson": LikelihoodKind(("int", "float"), _poisson, is_of_counts=True),
    "negative_binomial": LikelihoodKind(
        ("int", "float"), _negative_binomial, is_of_counts=True
    ),
}


def make_likelihood(
    name: str,
    scale: float = 1.0,
    count_padding: bool = True,
    library_size: float = 0.0,
) -> Likelihood:
    """Builds a likelihood.

    Args:
      name: a key of LIKELIHOODS.
      scale: scale of laplace and gaussian; the initial one if it is learned.
      count_padding: for categorical, whether padding counts.
      library_size: for poisson and negative_binomial. 0: the decoder gives the
        log-means. Else, as in scVI (Lopez et al., 2018), the decoder gives the fraction
        of each value in the total count: log_prob uses the observed total, mean,
        deviation and sample use `library_size`.

    Raises:
      UsageError: the name is unknown, the scale is not positive, or the library size
        is negative or not finite.
    """
    if not scale > 0:
        raise UsageError(f"likelihood scale must be > 0, got {scale}")
    if not 0 <= library_size < math.inf:
        raise UsageError(f"library_size must be >= 0 and finite, got {library_size}")
    if name not in LIKELIHOODS:
        raise UsageError(
            f"unknown likelihood {name!r}; choose one of {', '.join(LIKELIHOODS)}"
        )
    settings = Settings(scale, count_padding, float(library_size))
    return _within_support(LIKELIHOODS[name].make(settings))


def _within_support(own: Likelihood) -> Likelihood:
    """Sets the log-probability to -inf outside of the support.

    The formulas are wrong there: a Bernoulli's exceeds 0, and token -1 is the last
    word.
    """
    if own.support == _REALS:  # every float is valid; NaN stays NaN
        return own

    def log_prob(output: Any, x: Array) -> Array:
        is_inside = own.support.holds(jnp.asarray(x))
        is_inside = is_inside.all(axis=tuple(range(1, is_inside.ndim)))
        return jnp.where(is_inside, own.log_prob(output, x), -jnp.inf)

    return own._replace(log_prob=log_prob)


def misfit(name: str, modality: str, types: tuple[str, ...]) -> str | None:
    """The error message if a likelihood does not fit an array, else None.

    Args:
      name: a key of LIKELIHOODS.
      modality: name of the modality.
      types: the possible types of the array, keys of ARRAYS.
    """
    if set(types) & set(LIKELIHOODS[name].arrays):
        return None
    own = " or ".join(f"{x} ({ARRAYS[x]})" for x in LIKELIHOODS[name].arrays)
    fitting = [x for x, kind in LIKELIHOODS.items() if set(types) & set(kind.arrays)]
    return (
        f"likelihood {name!r} of {modality} is for {own}; {modality} is "
        f"{' or '.join(types)}, for {', '.join(fitting)}: set "
        f"config.modalities.{modality}.likelihood"
    )


def _squares(z: Array, q: Gaussian) -> Array:
    """Squared distances in units of the variance, [..., D].

    Distances are divided by the standard deviation before they are squared: a precision
    of exp(100) is inf in float32, and 0 * inf is NaN.
    """
    return jnp.square((z - q.mean) * jnp.exp(-0.5 * q.log_variance))


def _sum_event(values: Array) -> Array:
    """Sums over all axes except the first."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
