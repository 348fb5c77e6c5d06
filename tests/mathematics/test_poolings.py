"""Poolings of experts beside their product: by brute force, in limits, at extremes."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, posteriors, subset_kl, subsets
from mmvae_jax.mathematics.components import chosen_posteriors
from mmvae_jax.mathematics.subsets import PRODUCT, Pooling
from mmvae_jax.types import Gaussian

M, B, D = 3, 2, 2
BARYCENTRE = Pooling("barycentre")
DEPENDENT = Pooling("dependent", correlation=0.7)
HOELDER = Pooling("hoelder")
BY_DIMENSION = Pooling("hoelder", pooled_over="dimensions")
POOLINGS = (BARYCENTRE, DEPENDENT, HOELDER, BY_DIMENSION)
SUBSETS = [
    np.isin(np.arange(M), subset)
    for size in range(1, M + 1)
    for subset in itertools.combinations(range(M), size)
]
each_pooling = pytest.mark.parametrize("pooling", POOLINGS, ids=lambda x: str(x.name))


def random_experts(seed=0, shape=(M, B, D), spread=1.0):
    rng = np.random.default_rng(seed)
    return Gaussian(*(jnp.float32(spread * rng.normal(size=(2, *shape)))))


def pool(experts, mask, pooling):
    return posteriors.pool(experts, jnp.asarray(mask), False, pooling)


jitted_pool = jax.jit(pool, static_argnums=2)


def assert_close(found, expected, rtol=2e-5, atol=2e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def members(experts, mask, example, dim):
    """Means and standard deviations of a subset in one dimension, float64."""
    mean, log_variance = (np.float64(x)[mask, example, dim] for x in experts)
    return mean, np.exp(0.5 * log_variance)


def wasserstein(mean, deviation, other_mean, other_deviation):
    """The distance between two Gaussians, from their quantiles."""
    levels = (np.arange(20_000) + 0.5) / 20_000
    quantiles = scipy.stats.norm.ppf(levels)
    differences = (mean - other_mean) + (deviation - other_deviation) * quantiles
    return np.sqrt(np.mean(differences**2))


@pytest.mark.parametrize("mask", SUBSETS)
def test_the_barycentre_is_the_least_sum_of_squared_distances(mask):
    experts = random_experts(1)
    q = jitted_pool(experts, mask, BARYCENTRE)
    for b, d in itertools.product(range(B), range(D)):
        mean, deviation = members(experts, mask, b, d)

        def cost(x, mean=mean, deviation=deviation):
            pairs = zip(mean, deviation, strict=True)
            return sum(wasserstein(x[0], np.exp(x[1]), *pair) ** 2 for pair in pairs)

        best = scipy.optimize.minimize(cost, [0.0, 0.0], tol=1e-9).x
        found = [q.mean[b, d], q.log_variance[b, d] / 2]
        np.testing.assert_allclose(found, best, atol=1e-3)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("mask", SUBSETS)
def test_dependent_experts_are_generalised_least_squares(mask, correlation):
    experts = random_experts(2)
    q = jitted_pool(experts, mask, Pooling("dependent", correlation))
    for b, d in itertools.product(range(B), range(D)):
        mean, deviation = members(experts, mask, b, d)
        correlations = np.where(np.eye(len(mean)), 1.0, correlation)
        inverse = np.linalg.inv(np.outer(deviation, deviation) * correlations)
        precision = inverse.sum()
        assert q.mean[b, d] == pytest.approx(inverse.sum(0) @ mean / precision, 2e-4)
        assert q.log_variance[b, d] == pytest.approx(-np.log(precision), 1e-4, 1e-4)


def test_independent_experts_are_multiplied():
    for mask in SUBSETS:
        experts = random_experts(3)
        q = jitted_pool(experts, mask, Pooling("dependent", 0.0))
        assert_close(q, posteriors.product_of_experts(experts, mask, False))


def test_equal_experts_that_agree_fully_are_one():
    one = random_experts(4, (1, B, D))
    experts = Gaussian(*(jnp.tile(x, (M, 1, 1)) for x in one))
    for pooling in (BARYCENTRE, HOELDER, BY_DIMENSION, Pooling("dependent", 0.9999)):
        q = jitted_pool(experts, np.ones(M, bool), pooling)
        assert_close(q, (x[0] for x in one), rtol=1e-3, atol=1e-3)
    # n experts that are correlated in part are worth n / (1 + (n - 1) rho) of them.
    q = jitted_pool(experts, np.ones(M, bool), DEPENDENT)
    gain = np.log(M / (1 + (M - 1) * 0.7))
    np.testing.assert_allclose(q.log_variance, one.log_variance[0] - gain, rtol=1e-4)


def hoelder_density(z, experts, mask):
    """The unnormalised pool of one example at z [..., D']; float64."""
    root = 0.0
    for m in np.flatnonzero(mask):
        scale = np.exp(0.5 * np.float64(experts.log_variance[m]))
        density = scipy.stats.norm.pdf(z, np.float64(experts.mean[m]), scale)
        root = root + np.sqrt(density.prod(-1))
    return root**2


@pytest.mark.parametrize("mask", SUBSETS)
def test_the_moments_of_the_hoelder_pool_of_a_dimension(mask):
    experts = random_experts(5)
    q = jitted_pool(experts, mask, BY_DIMENSION)
    z = np.linspace(-30, 30, 200_001)
    for b, d in itertools.product(range(B), range(D)):
        own = jax.tree.map(lambda x, b=b, d=d: x[:, b, d, None], experts)
        density = hoelder_density(z[:, None], own, mask)
        density /= scipy.integrate.trapezoid(density, z)
        mean = scipy.integrate.trapezoid(density * z, z)
        variance = scipy.integrate.trapezoid(density * (z - mean) ** 2, z)
        assert q.mean[b, d] == pytest.approx(mean, abs=1e-5)
        assert q.log_variance[b, d] == pytest.approx(np.log(variance), abs=1e-5)


def test_the_moments_of_the_hoelder_pool_of_a_vector():
    experts = random_experts(6)
    axis = np.linspace(-16, 16, 401)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    for mask, b in itertools.product(SUBSETS, range(B)):
        q = jitted_pool(experts, mask, HOELDER)
        own = jax.tree.map(lambda x, b=b: x[:, b], experts)
        weights = hoelder_density(z, own, mask)[..., None]
        weights /= weights.sum()
        mean = (weights * z).sum((0, 1))
        variance = (weights * (z - mean) ** 2).sum((0, 1))
        np.testing.assert_allclose(q.mean[b], mean, atol=1e-4)
        np.testing.assert_allclose(q.log_variance[b], np.log(variance), atol=1e-4)


def test_a_hoelder_pool_of_many_dimensions_is_a_mixture_of_its_experts():
    """Their overlaps are a product over the dimensions; by itself, each is pooled."""
    experts = random_experts(7, (M, B, 400), spread=0.5)
    uniform = np.full((M, 1), 1 / M, np.float32)
    moments = posteriors.mixture_moments(experts, uniform)
    everything = np.ones(M, bool)
    assert_close(jitted_pool(experts, everything, HOELDER), moments, atol=1e-5)
    own = jitted_pool(experts, everything, BY_DIMENSION)
    assert (own.log_variance < moments.log_variance - 0.02).mean() > 0.8


@each_pooling
def test_a_single_expert_is_itself(pooling):
    experts = random_experts(8)
    for m in range(M):
        q = jitted_pool(experts, np.arange(M) == m, pooling)
        assert_close(q, (x[m] for x in experts), rtol=1e-5, atol=1e-6)


@each_pooling
def test_the_order_of_experts_does_not_matter(pooling):
    experts, order = random_experts(9), np.array([2, 0, 1])
    for mask in SUBSETS:
        shuffled = jax.tree.map(lambda x: x[order], experts)
        q = jitted_pool(shuffled, mask[order], pooling)
        assert_close(q, jitted_pool(experts, mask, pooling))


@each_pooling
def test_masks_are_of_each_example_or_of_all(pooling):
    experts = random_experts(10)
    masks = np.array([[1, 0], [1, 1], [0, 1]], bool)
    q = jitted_pool(experts, masks, pooling)
    for b in range(B):
        alone = jitted_pool(experts, masks[:, b], pooling)
        assert_close((x[b] for x in q), (x[b] for x in alone))


@each_pooling
def test_all_subsets_are_those_one_by_one(pooling):
    experts = random_experts(11)
    mixture = subsets.pooled(subsets.powerset(M), pooling)
    together = jax.jit(lambda x: posteriors.subset_posteriors(x, mixture))(experts)
    for s, mask in enumerate(mixture.masks):
        assert_close((x[s] for x in together), jitted_pool(experts, mask, pooling))
    given = posteriors.available_subsets(mixture, np.ones((M, B), bool))
    chosen = chosen_posteriors(experts, given, jnp.array([1, 6]))
    for b, s in enumerate((1, 6)):
        assert_close((x[b] for x in chosen), (x[s, b] for x in together))


@jax.jit
def gradients(experts, masks):
    def loss(experts, mask, pooling):
        q = pool(experts, mask, pooling)
        kl = distributions.kl_to_standard_gaussian(q)
        return jnp.sum(jnp.sin(q.mean)) + jnp.sum(q.log_variance) + jnp.sum(kl)

    def all_subsets(pooling):
        return jax.vmap(lambda mask: jax.grad(loss)(experts, mask, pooling))(masks)

    return [all_subsets(pooling) for pooling in POOLINGS]


def test_gradients_are_exactly_zero_outside_of_the_subset():
    masks = np.array(SUBSETS)
    for found in gradients(random_experts(12), masks):
        for field in found:
            assert (np.asarray(field)[~masks] == 0).all()
            assert (np.asarray(field)[masks] != 0).any(axis=(1, 2)).all()


def test_experts_outside_of_the_subset_may_be_anything():
    experts = random_experts(13)
    spoilt = jax.tree.map(lambda x: x.at[1].set(jnp.nan), experts)
    mask = np.array([True, False, True])
    for pooling in POOLINGS:
        found = jitted_pool(spoilt, mask, pooling)
        assert_close(found, jitted_pool(experts, mask, pooling), 0, 0)
    masks = np.array(SUBSETS)
    for found in gradients(spoilt, masks):
        for field in found:
            own = field[~masks[:, 1]]  # of the subsets that are without it
            assert np.isfinite(own).all() and (own[:, 1] == 0).all()


@jax.jit
def pools_and_gradients(experts):
    def loss(experts, pooling):
        q = pool(experts, np.ones(M, bool), pooling)
        return jnp.sum(jnp.sin(q.mean)) + jnp.sum(q.log_variance), q

    return [jax.grad(loss, has_aux=True)(experts, pooling) for pooling in POOLINGS]


@pytest.mark.parametrize(
    "log_variances", [(80.0, -80.0, 0.0), (-80.0,) * 3, (80.0,) * 3, (-80.0, 0.0, 1.0)]
)
def test_extreme_log_variances_are_finite_in_value_and_gradient(log_variances):
    mean = random_experts(14, spread=5.0).mean
    spread = jnp.float32(log_variances)[:, None, None] * jnp.ones_like(mean)
    experts = Gaussian(mean, spread)
    for pooling, results in zip(POOLINGS, pools_and_gradients(experts), strict=True):
        for leaf in jax.tree.leaves(results):
            assert np.isfinite(leaf).all(), pooling


@pytest.mark.slow
@pytest.mark.parametrize("make", [subsets.full_set, subsets.powerset])
@each_pooling
def test_missing_modalities_are_pooled_like_those_of_a_smaller_model(make, pooling):
    experts = random_experts(15)
    observed = np.array([True, False, True])
    mixture = subsets.pooled(make(M, "never"), pooling)
    small = subsets.pooled(make(2, "never"), pooling)
    rest = Gaussian(*(x[observed] for x in map(np.asarray, experts)))

    @jax.jit
    def both(experts, observed, rest):
        found = posteriors.observed_mixture(experts, mixture, observed)
        return *found, posteriors.subset_posteriors(rest, small)

    components, weights, expected = both(experts, observed, rest)
    is_used = np.asarray(weights)[:, 0] > 0
    np.testing.assert_allclose(np.asarray(weights)[is_used, 0], small.weights)
    assert_close((np.asarray(x)[is_used] for x in components), expected)


def test_weights_that_are_traced_are_renormalised():
    """Those that are learned, of which each is positive."""
    mixture = subsets.pooled(subsets.powerset(M), DEPENDENT)
    weights = jax.nn.softmax(jnp.arange(7.0))

    @jax.jit
    def given(weights, observed):
        own = mixture._replace(weights=weights)
        return posteriors.available_subsets(own, observed)

    found = given(weights, np.array([True, False, True]))
    assert found.pooling == DEPENDENT  # it goes through jit as it is
    is_there = np.array([1, 0, 1, 0, 1, 0, 0])
    expected = weights * is_there / (weights * is_there).sum()
    np.testing.assert_allclose(found.weights[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(
        given(weights, np.ones(M, bool)).weights[:, 0], weights
    )


def test_products_are_what_they_were():
    mixture, experts = subsets.powerset(M, "released"), random_experts(16)
    assert mixture.pooling == PRODUCT == Pooling()
    found = posteriors.subset_posteriors(experts, mixture)
    assert_close(found, subset_kl.subset_posteriors(experts, mixture), 0, 0)
    for prior in (False, True):
        one = posteriors.pool(experts, SUBSETS[-1], prior, PRODUCT)
        other = posteriors.product_of_experts(experts, SUBSETS[-1], prior)
        assert_close(one, other, 0, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "mean"}, "unknown name 'mean'; choose one of product, barycentre"),
        ({"correlation": 1.0}, "correlation must be in [0, 1), got 1.0"),
        ({"correlation": -0.1}, "correlation must be in [0, 1), got -0.1"),
        ({"correlation": float("nan")}, "correlation must be in [0, 1), got nan"),
        ({"pooled_over": "z"}, "unknown pooled_over 'z'; choose one of vector, dim"),
    ],
)
def test_errors_of_poolings(values, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Pooling(**values)


def test_the_prior_is_an_expert_of_products_alone():
    with pytest.raises(UsageError, match="the prior can be an expert only in products"):
        subsets.pooled(subsets.full_set(M), HOELDER)
    mixture = subsets.pooled(subsets.full_set(M, "never"), HOELDER)
    for function in (subset_kl.subset_posteriors, subset_kl.mixture_kl):
        arguments = (np.ones((1, 1)),) if function is subset_kl.mixture_kl else ()
        with pytest.raises(ValueError, match="subset_kl has products of experts alone"):
            function(random_experts(), mixture, *arguments)
