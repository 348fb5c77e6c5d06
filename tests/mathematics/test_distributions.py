import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions
from mmvae_jax.types import Gaussian, Laplace

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(4, 3, 3, 2)).astype(np.float32)
OUTPUTS = RNG.normal(size=(4, 3, 3, 2)).astype(np.float32)


def gaussian(seed, shape=(5, 3)):
    rng = np.random.default_rng(seed)
    return Gaussian(
        rng.normal(size=shape).astype(np.float32),
        rng.normal(size=shape).astype(np.float32),
    )


def scale(q):
    return np.exp(0.5 * np.float64(q.log_variance))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("laplace", lambda out, x: scipy.stats.laplace.logpdf(x, out, 0.75)),
        ("gaussian", lambda out, x: scipy.stats.norm.logpdf(x, out, 0.75)),
    ],
)
def test_densities_of_pixels_sum_over_all_axes_but_the_batch(name, reference):
    likelihood = distributions.make_likelihood(name, 0.75)
    values = likelihood.log_prob(OUTPUTS, IMAGES)
    expected = reference(np.float64(OUTPUTS), np.float64(IMAGES)).sum((1, 2, 3))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_array_equal(likelihood.mean(OUTPUTS), OUTPUTS)


def test_the_laplace_constant_of_the_papers_setting():
    image = jnp.zeros((1, 28, 28, 3))
    value = distributions.make_likelihood("laplace", 0.75).log_prob(image, image)
    assert value[0] == pytest.approx(-953.65, abs=0.01)


def test_bernoulli_against_scipy():
    likelihood = distributions.make_likelihood("bernoulli", 1.0)
    x = (IMAGES > 0.5).astype(np.float32)
    probability = scipy.special.expit(np.float64(OUTPUTS))
    expected = scipy.stats.bernoulli.logpmf(x, probability).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.log_prob(OUTPUTS, x), expected, rtol=1e-5)
    np.testing.assert_allclose(likelihood.mean(OUTPUTS), probability, rtol=1e-5)


def test_categorical_against_scipy():
    likelihood = distributions.make_likelihood("categorical", 1.0)
    logits = RNG.normal(size=(4, 6, 5)).astype(np.float32)
    tokens = RNG.integers(0, 5, (4, 6))
    probability = scipy.special.softmax(np.float64(logits), axis=-1)
    np.testing.assert_allclose(likelihood.mean(logits), probability, rtol=1e-5)
    one_hot = np.eye(5)[tokens]
    expected = scipy.stats.multinomial.logpmf(one_hot, 1, probability).sum(-1)
    for x in (tokens, tokens.astype(np.float32)):
        np.testing.assert_allclose(
            likelihood.log_prob(logits, jnp.asarray(x)), expected, rtol=1e-5
        )


def test_gaussian_densities_against_scipy():
    q, z = gaussian(0), gaussian(1).mean
    expected = scipy.stats.norm.logpdf(z, q.mean, scale(q)).sum(-1)
    np.testing.assert_allclose(distributions.log_prob(q, z), expected, rtol=1e-5)


def test_laplace_densities_against_scipy():
    q, z = Laplace(*gaussian(0)), gaussian(1).mean
    scales = np.exp(np.float64(q.log_scale))
    expected = scipy.stats.laplace.logpdf(z, q.mean, scales).sum(-1)
    np.testing.assert_allclose(distributions.log_prob(q, z), expected, rtol=1e-5)
    # Samples and parameters are broadcast against each other.
    many = distributions.log_prob(q, np.stack([z, z, z]))
    np.testing.assert_allclose(many, np.stack([expected] * 3), rtol=1e-5)


@pytest.mark.parametrize("function", [distributions.log_prob, distributions.sample])
def test_what_is_no_distribution_is_refused(function):
    with pytest.raises(TypeError, match="not a distribution: .*tuple"):
        function(tuple(gaussian(0)), jax.random.key(0))


def test_kl_divergences_against_monte_carlo():
    q, p = gaussian(2), gaussian(3)
    noise = np.random.default_rng(4).normal(size=(100_000, *q.mean.shape))
    z = q.mean + scale(q) * noise
    log_q = scipy.stats.norm.logpdf(z, q.mean, scale(q)).sum(-1)
    for value, log_p in (
        (
            distributions.gaussian_kl(q, p),
            scipy.stats.norm.logpdf(z, p.mean, scale(p)).sum(-1),
        ),
        (
            distributions.kl_to_standard_gaussian(q),
            scipy.stats.norm.logpdf(z).sum(-1),
        ),
    ):
        samples = log_q - log_p
        error = 5 * samples.std(0) / np.sqrt(len(samples))
        assert (np.abs(value - samples.mean(0)) < error).all()


def test_kl_divergences_against_closed_form():
    q, p = gaussian(5), gaussian(6)
    lq, lp = np.float64(q.log_variance), np.float64(p.log_variance)
    squares = np.square(np.float64(q.mean) - p.mean)
    expected = 0.5 * (lp - lq + (np.exp(lq) + squares) / np.exp(lp) - 1).sum(-1)
    np.testing.assert_allclose(distributions.gaussian_kl(q, p), expected, rtol=1e-5)
    standard = 0.5 * (np.exp(lq) + np.square(np.float64(q.mean)) - 1 - lq).sum(-1)
    np.testing.assert_allclose(
        distributions.kl_to_standard_gaussian(q), standard, rtol=1e-5
    )


def test_kl_divergences_are_exactly_zero_at_equality():
    q = gaussian(7)
    assert (distributions.gaussian_kl(q, q) == 0).all()
    prior = Gaussian(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    assert (distributions.kl_to_standard_gaussian(prior) == 0).all()


def test_kl_divergences_keep_their_digits_near_the_prior():
    q = Gaussian(jnp.zeros((1, 4)), jnp.full((1, 4), 1e-4))
    expected = 4 * 0.25e-8  # 0.5 (e^v - 1 - v) = v^2 / 4 + ...
    prior = Gaussian(jnp.zeros((1, 4)), jnp.zeros((1, 4)))
    for value in (
        distributions.kl_to_standard_gaussian(q),
        distributions.gaussian_kl(q, prior),
    ):
        np.testing.assert_allclose(value, expected, rtol=5e-3)


def finite_with_gradient(function, *args):
    value, gradient = jax.value_and_grad(function, argnums=tuple(range(len(args))))(
        *args
    )
    leaves = jax.tree.leaves((value, gradient))
    return all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)


@pytest.mark.parametrize("log_variance", [-80.0, 80.0])
def test_values_and_gradients_are_finite_at_extreme_variances(log_variance):
    mean = jnp.array([[0.5, -1.0]])
    extreme = Gaussian(mean, jnp.full((1, 2), log_variance))
    unit = Gaussian(-mean, jnp.zeros((1, 2)))
    for function, args in (
        (distributions.kl_to_standard_gaussian, (extreme,)),
        (distributions.gaussian_kl, (extreme, unit)),
        (distributions.gaussian_kl, (unit, extreme)),
        (distributions.gaussian_kl, (extreme, extreme)),
        (distributions.log_prob, (extreme, jnp.ones((1, 2)))),
    ):
        assert finite_with_gradient(lambda *a, f=function: f(*a).sum(), *args)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_probabilities_are_finite_at_extreme_logits(logit):
    bernoulli, categorical = map(
        distributions.make_likelihood, ("bernoulli", "categorical")
    )
    for x in (0.0, 0.3, 1.0):
        assert finite_with_gradient(
            lambda out, x=x: bernoulli.log_prob(out, x).sum(), jnp.full((1, 2), logit)
        )
    logits = jnp.array([[[logit, 0.0, 1.0]]])
    for token in range(3):
        assert finite_with_gradient(
            lambda out, t=token: categorical.log_prob(out, jnp.array([[t]])).sum(),
            logits,
        )


def test_samples_have_the_moments_and_the_reparameterised_gradient():
    num = 40_000
    mean, log_variance = np.array([1.0, -2.0]), np.array([-1.0, 1.5])
    q = Gaussian(
        jnp.broadcast_to(jnp.float32(mean), (num, 2)),
        jnp.broadcast_to(jnp.float32(log_variance), (num, 2)),
    )
    key = jax.random.key(0)
    z = np.float64(distributions.sample(q, key))
    variance = np.exp(log_variance)
    assert (np.abs(z.mean(0) - mean) < 5 * np.sqrt(variance / num)).all()
    assert (np.abs(z.var(0) / variance - 1) < 5 * np.sqrt(2 / num)).all()
    assert abs(np.corrcoef(z.T)[0, 1]) < 5 / np.sqrt(num)

    gradient = jax.grad(lambda q: distributions.sample(q, key).sum())(q)
    np.testing.assert_array_equal(gradient.mean, 1.0)
    # d (mean + exp(v / 2) noise) / d v = (z - mean) / 2
    np.testing.assert_allclose(gradient.log_variance, (z - mean) / 2, atol=1e-5)
    other = distributions.sample(q, jax.random.key(1))
    assert not np.array_equal(z, other)


def test_laplace_samples_are_of_that_distribution():
    q = Laplace(jnp.array([1.0, -2.0]), jnp.array([-1.0, 1.5]))
    key = jax.random.key(0)
    z = np.float64(distributions.sample(q, key, (100, 200)))
    assert z.shape == (100, 200, 2)
    for d in range(2):
        law = scipy.stats.laplace(q.mean[d], np.exp(q.log_scale[d]))
        assert scipy.stats.kstest(z[..., d].ravel(), law.cdf).pvalue > 1e-3
    gradient = jax.grad(lambda q: distributions.sample(q, key, (7,)).sum())(q)
    np.testing.assert_array_equal(gradient.mean, 7.0)
    # d (mean + exp(s) noise) / d s = z - mean
    few = np.float64(distributions.sample(q, key, (7,)))
    np.testing.assert_allclose(gradient.log_scale, (few - q.mean).sum(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("laplace", (-3.5, 0, 1e30), (np.inf, np.nan)),
        ("gaussian", (-3.5, 0, 1e30), (-np.inf, np.nan)),
        ("bernoulli", (0, 0.5, 1), (-0.1, 1.001, 255, np.nan)),
        ("categorical", (0, 1, 4), (-1, 0.5, np.inf)),
    ],
)
def test_a_likelihood_says_which_values_have_a_probability(name, inside, outside):
    support = distributions.make_likelihood(name).support
    for holds in (support.holds, jax.jit(support.holds)):
        assert holds(np.float32(inside)).all()
        assert not holds(np.float32(outside)).any()


@pytest.mark.parametrize(
    ("name", "outside"), [("bernoulli", (-0.9, 2, np.nan)), ("categorical", (-1, 7))]
)
def test_values_outside_of_the_support_have_no_probability(name, outside):
    # Bernoulli's formula exceeds 0 there, and index -1 is the last word.
    outputs = RNG.normal(size=(1, 2, 5)).astype(np.float32)
    likelihood = distributions.make_likelihood(name)
    outputs = outputs[..., 0] if name == "bernoulli" else outputs
    for value in outside:
        x = np.array([[1, value]], np.float32)
        assert not np.isfinite(likelihood.log_prob(outputs, jnp.asarray(x))).any()


def test_unknown_likelihood():
    known = ", ".join(distributions.LIKELIHOODS)
    message = f"unknown likelihood 'cauchy'; choose one of {known}"
    with pytest.raises(UsageError, match=message):
        distributions.make_likelihood("cauchy", 1.0)


@pytest.mark.parametrize("bad", [0.0, -0.75, float("nan")])
def test_scales_are_positive(bad):
    with pytest.raises(UsageError, match=f"likelihood scale must be > 0, got {bad}"):
        distributions.make_likelihood("laplace", bad)
