import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from toy_models import LinearGaussian

from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metrics import log_likelihood
from mmvae_jax.types import Gaussian, Laplace

DRAWS = {"joint": log_likelihood.joint_draws, "mixture": log_likelihood.mixture_draws}
PERTURBED = {"shifts": (0.2, -0.1), "scales": (1.5, 0.8)}


def estimates(toy, num, num_samples, proposal, seed=0):
    """Estimate minus exact log p(X), per example."""
    data = toy.data(num, num)
    batch = {m: np.float32(x) / 255 for m, x in data.test.modalities.items()}
    experts = toy.model.encode(0.0, batch)
    draws = DRAWS[proposal](
        toy.model, 0.0, experts, np.ones(2, bool), jax.random.key(seed), num_samples
    )
    values = log_likelihood.importance_estimate(toy.model, 0.0, batch, draws)
    return values - toy.exact(data.test)


@pytest.mark.parametrize("proposal", DRAWS)
@pytest.mark.parametrize("num_samples", [1, 12])
def test_exact_posterior_gives_the_exact_value_per_example(proposal, num_samples):
    # Also with L = 12: weights of different examples are never mixed.
    toy = LinearGaussian()
    difference = estimates(toy, 10, num_samples, proposal)
    np.testing.assert_allclose(difference, np.zeros(10), atol=1e-4)
    assert np.ptp(toy.exact(toy.data(10, 10).test)) > 5


@pytest.mark.parametrize("proposal", DRAWS)
def test_metric_averages_the_test_split(proposal):
    toy = LinearGaussian()
    data = toy.data(num=10, batch_size=4)
    tags = log_likelihood.log_likelihood(
        toy.model, 0.0, data, jax.random.key(0), proposal=proposal
    )
    exact = toy.exact(data.test)
    assert tags["log_likelihood"] == pytest.approx(exact.mean(), abs=1e-4)
    error = scipy.stats.sem(exact)
    assert tags["log_likelihood/standard_error"] == pytest.approx(error, rel=1e-4)


def test_one_sample_is_below_by_the_divergence_of_the_proposal():
    # E log w = log p(X) - KL(q || p(z|X)), here averaged over two components.
    toy = LinearGaussian(**PERTURBED)
    difference = estimates(toy, 4000, 1, "joint")
    expected = -(toy.kl_to_exact(0) + toy.kl_to_exact(1)) / 2
    assert expected < -0.2
    assert difference.mean() == pytest.approx(
        expected, abs=4 * scipy.stats.sem(difference)
    )


@pytest.mark.parametrize("proposal", DRAWS)
def test_weights_are_unbiased_and_the_bound_tightens(proposal):
    toy = LinearGaussian(**PERTURBED)
    one = estimates(toy, 4000, 1, proposal)
    weights = np.exp(one)
    assert weights.mean() == pytest.approx(1.0, abs=4 * scipy.stats.sem(weights))
    many = estimates(toy, 400, 30, proposal)
    assert one.mean() < many.mean() - 0.01
    assert many.mean() < 3 * scipy.stats.sem(many)
    assert abs(estimates(toy, 400, 300, proposal).mean()) < 0.02


def test_mixture_density_is_in_the_denominator():
    # Overlapping components: the mixture's weights vary less than a component's.
    toy = LinearGaussian(shifts=(0.15, -0.15))
    joint = estimates(toy, 2000, 1, "joint")
    mixture = estimates(toy, 2000, 1, "mixture")
    assert mixture.std() < 0.7 * joint.std()


LAWS = {  # family -> (z, mean, second field) -> log-densities
    Gaussian: lambda z, mean, v: scipy.stats.norm.logpdf(z, mean, np.exp(v / 2)),
    Laplace: lambda z, mean, s: scipy.stats.laplace.logpdf(z, mean, np.exp(s)),
}


@pytest.mark.parametrize("family", LAWS)
def test_mixture_draws_are_stratified_and_give_their_density(family):
    rng = np.random.default_rng(0)
    mean = np.float32([-50, 7, 50])[:, None, None] + rng.random((3, 5, 2), np.float32)
    components = family(mean, np.log(0.5 + rng.random((3, 5, 2), np.float32)))
    weights = np.array([0.25, 0.0, 0.75])
    toy = LinearGaussian()
    model = toy.model._replace(
        mixture_posterior=lambda params, experts, observed: (
            experts,
            jnp.asarray(weights)[:, None],
        )
    )
    key = jax.random.key(0)
    everything = np.ones(3, bool)
    draws = list(
        log_likelihood.mixture_draws(model, 0.0, components, everything, key, 8)
    )
    z = np.stack([z for z, _ in draws])
    # Of 8 samples of every example, 2 and 6 are at -50 and 50, none at 7.
    np.testing.assert_array_equal((z < -40).all(-1).sum(0), np.full(5, 2))
    np.testing.assert_array_equal((z > 40).all(-1).sum(0), np.full(5, 6))
    assert len(np.unique(z)) == z.size
    for sample, log_density in draws:
        each = LAWS[family](sample, *components).sum(-1)
        expected = scipy.special.logsumexp(each, axis=0, b=weights[:, None])
        np.testing.assert_allclose(log_density, expected, rtol=1e-4)


def test_log_densities_are_taken_in_float64():
    # Their difference is 2^-10 nats; a sum of this size has no such digits in float32.
    mean, field = np.zeros((1, 400), np.float32), np.full((1, 400), 9.0, np.float32)
    for family in LAWS:
        z = np.zeros((2, 400), np.float32)
        z[1, 0] = 2.0 ** (-10 if family is Laplace else -4.5) * np.exp(
            9.0 if family is Laplace else 4.5
        )
        values = log_likelihood.log_density(family(mean, field), z)
        expected = LAWS[family](np.float64(z), 0.0, 9.0).sum(-1)
        np.testing.assert_allclose(values, expected, rtol=1e-13)
        assert values.dtype == np.float64 and 2e-4 < values[0] - values[1] < 2e-3


def test_component_never_drawn_does_not_matter():
    toy = LinearGaussian(shifts=(0.0, 90.0), weights=(1.0, 0.0))
    difference = estimates(toy, 10, 3, "mixture")
    np.testing.assert_allclose(difference, np.zeros(10), atol=1e-4)


def test_a_diverged_model_has_no_likelihood():
    toy = LinearGaussian()
    data = toy.data(num=5, batch_size=4)
    for proposal in DRAWS:
        tags = log_likelihood.log_likelihood(
            toy.model, np.float32(np.nan), data, jax.random.key(0), proposal=proposal
        )
        assert np.isnan(tags["log_likelihood"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"proposal": "prior"}, "joint, mixture"), ({"num_samples": 0}, "not 0")],
)
def test_wrong_options_are_explained(options, message):
    toy = LinearGaussian()
    with pytest.raises(UsageError, match=message):
        log_likelihood.log_likelihood(
            toy.model, 0.0, toy.data(4, 4), jax.random.key(0), **options
        )
