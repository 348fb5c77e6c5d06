"""Likelihoods with learned scales and of counts, and the table of all of them."""

import math
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions
from mmvae_jax.mathematics.distributions import ARRAYS, LIKELIHOODS, make_likelihood

RNG = np.random.default_rng(0)
B, SHAPE = 5, (3, 2)
OUTPUT = RNG.normal(size=(B, *SHAPE)).astype(np.float32)
X = RNG.normal(size=(B, *SHAPE)).astype(np.float32)
COUNTS = RNG.poisson(3.0, (B, *SHAPE))
COUNTS[1] = 0  # an example without any
PARAMETER = RNG.normal(size=SHAPE).astype(np.float32)


def output_of(name, parameter=None):
    """An output of the decoder, with the parameter where the likelihood has one."""
    shape = make_likelihood(name).parameter_shape
    if shape is None:
        return OUTPUT
    return OUTPUT, np.zeros(shape(SHAPE)) if parameter is None else parameter


def means(library_size, x=None):
    """Means of counts in float64: exp, or shares of the library."""
    logits = np.float64(OUTPUT).reshape(B, -1)
    if not library_size:
        return np.exp(logits).reshape(OUTPUT.shape)
    total = np.full(B, library_size) if x is None else x.sum((1, 2))
    shares = scipy.special.softmax(logits, axis=1)
    return (shares * total[:, None]).reshape(OUTPUT.shape)


@pytest.mark.parametrize("library_size", [0.0, 50.0])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_counts_against_scipy(library_size, dtype):
    x, jx = COUNTS, jnp.asarray(COUNTS.astype(dtype))
    r = np.exp(10 * np.tanh(np.float64(PARAMETER) / 10))
    own, fixed = means(library_size, x), means(library_size)

    def law(mean):
        return scipy.stats.nbinom(r, r / (r + mean))

    for name, output, of in (
        ("poisson", OUTPUT, scipy.stats.poisson),
        ("negative_binomial", (OUTPUT, PARAMETER), law),
    ):
        likelihood = make_likelihood(name, library_size=library_size)
        found = likelihood.log_prob(output, jx)
        np.testing.assert_allclose(found, of(own).logpmf(x).sum((1, 2)), rtol=2e-5)
        np.testing.assert_allclose(likelihood.mean(output), fixed, rtol=1e-5)
        np.testing.assert_allclose(
            likelihood.deviation(output), of(fixed).std(), rtol=1e-5
        )
        gradient = jax.grad(lambda out, f=likelihood: f.log_prob(out, jx).sum())(output)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["gaussian_learned", "gaussian_optimal"])
def test_learned_scales_against_scipy(name):
    likelihood = make_likelihood(name, 0.3)
    assert likelihood.parameter_shape(SHAPE) == ()
    factor = {"gaussian_learned": 1.0, "gaussian_optimal": 10.0}[name]
    for parameter in (0.0, 0.2):
        scale = 0.3 * np.exp(10 * np.tanh(factor * parameter / 10))
        output = (OUTPUT, jnp.float32(parameter))
        law = scipy.stats.norm(np.float64(OUTPUT), scale)
        expected = law.logpdf(X).sum((1, 2))
        np.testing.assert_allclose(likelihood.log_prob(output, X), expected, rtol=1e-5)
        np.testing.assert_array_equal(likelihood.mean(output), OUTPUT)
        np.testing.assert_allclose(likelihood.deviation(output), law.std(), rtol=1e-5)


def test_deviations_of_the_others_against_scipy():
    found = {
        "laplace": scipy.stats.laplace(np.float64(OUTPUT), 0.3).std(),
        "gaussian": scipy.stats.norm(np.float64(OUTPUT), 0.3).std(),
        "bernoulli": scipy.stats.bernoulli(scipy.special.expit(OUTPUT)).std(),
    }
    for name, expected in found.items():
        deviation = make_likelihood(name, 0.3).deviation(OUTPUT)
        assert deviation.shape == OUTPUT.shape
        np.testing.assert_allclose(deviation, expected, rtol=1e-5)
    assert make_likelihood("categorical").deviation is None


NUM = 20_000
CONTINUOUS = {
    "laplace": scipy.stats.laplace(scale=math.sqrt(0.5)),
    **dict.fromkeys(
        ("gaussian", "gaussian_learned", "gaussian_optimal"), scipy.stats.norm
    ),
}
COUNTED = ("poisson", "negative_binomial")  # which compile for seconds


@pytest.mark.parametrize("name", CONTINUOUS)
def test_samples_of_reals_have_their_law(name):
    likelihood = make_likelihood(name, 0.3)
    output = np.tile(OUTPUT, (NUM // B, 1, 1))
    if likelihood.parameter_shape is not None:
        output = output, np.float32(0.2)
    found = likelihood.sample(output, jax.random.key(0))
    errors = (found - likelihood.mean(output)) / likelihood.deviation(output)
    distance = scipy.stats.kstest(np.ravel(errors), CONTINUOUS[name].cdf).statistic
    assert found.dtype == np.float32 and distance < 1.95 / math.sqrt(found.size)


@pytest.mark.parametrize(
    "name",
    [
        "bernoulli",
        "categorical",
        *(pytest.param(name, marks=pytest.mark.slow) for name in COUNTED),
    ],
)
def test_samples_of_whole_numbers_have_their_frequencies(name):
    likelihood = make_likelihood(name)
    shape = (B, 1, 4) if name == "categorical" else (B, 1)
    output = RNG.normal(size=shape).astype(np.float32)
    draw = partial(np.tile, reps=(NUM, *[1] * (len(shape) - 1)))
    parameter = (np.float32([0.5]),) if name == "negative_binomial" else ()
    several = (draw(output), *parameter) if parameter else draw(output)
    found = np.reshape(likelihood.sample(several, jax.random.key(0)), (NUM, B))
    assert np.issubdtype(found.dtype, np.integer) == (name == "categorical")
    one = (output, *parameter) if parameter else output
    for value in range(2 if name == "bernoulli" else 4):
        x = np.full((B, 1), value, found.dtype)
        shares = np.exp(likelihood.log_prob(one, x))
        np.testing.assert_allclose((found == value).mean(axis=0), shares, atol=0.015)


@pytest.mark.slow
def test_samples_of_large_rates():
    """Of a library too; exact ones, and normal ones."""
    rate = np.float32([2.0, 1e3, 9.9e3, 1.1e4, 1e7])
    logits = np.tile(3 + np.log(rate), (4_001, 1))
    logits[-1, 0] = math.nan
    likelihood = make_likelihood("poisson", library_size=float(rate.sum()))
    found = np.asarray(likelihood.sample(logits, jax.random.key(0)))
    errors = (found[:-1] - rate) / np.sqrt(rate)
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=0.07)
    np.testing.assert_allclose(errors.std(axis=0), 1, atol=0.06)
    assert np.isnan(found[-1]).all()
    np.testing.assert_array_equal(found[:-1], np.round(found[:-1]))


WEIGHTS = np.float32([-0.5, -0.25, 0.0, -1.0, -0.125])


def optimal_gradients(loc, parameter, weights):
    """Gradients of a weighted sum of log-densities, by the "optimal" likelihood."""
    likelihood = make_likelihood("gaussian_optimal", 0.75)

    def loss(loc, parameter):
        return jnp.sum(weights * likelihood.log_prob((loc, parameter), X))

    return jax.grad(loss, argnums=(0, 1))(loc, jnp.float32(parameter))


def test_the_optimal_scale_is_that_of_the_weighted_batch():
    """The gradient is that of the objective, the scale maximised out in closed form."""
    num = math.prod(SHAPE)

    def maximised(loc):
        squares = jnp.sum(WEIGHTS * jnp.sum(jnp.square(X - loc), axis=(1, 2)))
        total = num * WEIGHTS.sum()
        return -0.5 * total * jnp.log(squares / total)

    expected = jax.grad(maximised)(jnp.asarray(OUTPUT))
    for parameter in (-0.1, 0.3):  # whatever the parameter is
        found, _ = optimal_gradients(OUTPUT, parameter, WEIGHTS)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    # What has no weight, as what is missing, has no influence.
    np.testing.assert_array_equal(found[2], 0)
    # Nothing is there: no gradient, and no NaN.
    for gradient in optimal_gradients(OUTPUT, 0.3, 0 * WEIGHTS):
        np.testing.assert_array_equal(gradient, 0)


def test_the_optimal_scale_is_where_its_parameter_goes():
    squares = np.sum(WEIGHTS * np.square(X - OUTPUT).sum((1, 2)))
    optimum = np.sqrt(squares / (math.prod(SHAPE) * WEIGHTS.sum()))
    parameter = np.arctanh(np.log(optimum / 0.75) / 10)
    for shift in (-0.05, 0.05):  # of a loss: descent leads back
        _, gradient = optimal_gradients(OUTPUT, parameter + shift, WEIGHTS)
        assert np.sign(gradient) == np.sign(shift)
    _, at_optimum = optimal_gradients(OUTPUT, parameter, WEIGHTS)
    assert abs(at_optimum) < 1e-4 * abs(gradient)


def test_a_perfect_reconstruction_has_finite_gradients():
    for gradient in optimal_gradients(X, 0.0, WEIGHTS):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_library_sizes_are_positive_or_zero(bad):
    message = f"library_size must be >= 0 and finite, got {bad}"
    with pytest.raises(UsageError, match=message):
        make_likelihood("poisson", library_size=bad)


def test_every_likelihood_fits_some_array_and_says_so():
    for name, kind in LIKELIHOODS.items():
        for array in ARRAYS:
            line = distributions.misfit(name, "m", (array,))
            assert (line is None) == (array in kind.arrays)
            if line is not None:
                assert "config.modalities.m.likelihood" in line
                (own,) = re.findall(rf"m is {array}, for ([\w, ]+):", line)
                fitting = [x for x, k in LIKELIHOODS.items() if array in k.arrays]
                assert own.split(", ") == fitting


def test_the_document_has_the_table():
    text = (Path(__file__).parents[2] / "docs/models.md").read_text()
    table, *_ = text.partition("| likelihood | fits")[2].split("\n\n")
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
    found = {name: tuple(re.findall(r"`(\w+)`", arrays)) for name, arrays in rows}
    assert found == {name: kind.arrays for name, kind in LIKELIHOODS.items()}
