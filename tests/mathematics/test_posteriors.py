import itertools
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from mmvae_jax.mathematics import distributions, posteriors, subset_kl, subsets
from mmvae_jax.mathematics.components import (
    gather_components,
    posterior_component,
    random_components,
    stratified_components,
)
from mmvae_jax.types import Gaussian

M, B, D = 4, 3, 2


def random_experts(seed=0, shape=(M, B, D)):
    rng = np.random.default_rng(seed)
    return Gaussian(
        jnp.float32(rng.normal(size=shape)), jnp.float32(2 * rng.normal(size=shape))
    )


def product64(experts, mask, prior_expert):
    """The product by its definition: precisions add; in float64."""
    mean, log_variance = (np.float64(f)[np.asarray(mask)] for f in experts)
    precision = np.exp(-log_variance)
    total = precision.sum(0) + prior_expert
    return Gaussian((precision * mean).sum(0) / total, -np.log(total))


def assert_gaussians_close(actual, expected, rtol=2e-5, atol=2e-6):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def test_product_of_two_gaussians_by_hand():
    # N(1, 1/2) N(4, 1) is proportional to N((2 * 1 + 1 * 4) / 3, 1 / 3).
    experts = Gaussian(
        jnp.array([[1.0], [4.0]]), jnp.array([[np.log(0.5)], [0.0]], jnp.float32)
    )
    q = posteriors.product_of_experts(experts, jnp.array([True, True]), False)
    assert_gaussians_close(q, Gaussian([2.0], [np.log(1 / 3)]))
    q = posteriors.product_of_experts(experts, jnp.array([True, True]), True)
    assert_gaussians_close(q, Gaussian([1.5], [np.log(1 / 4)]))


def test_the_product_is_proportional_to_the_densities():
    experts = random_experts(1)
    q = posteriors.product_of_experts(experts, jnp.ones(M, bool), True)
    z = np.random.default_rng(2).normal(size=(2, B, D))
    densities = scipy.stats.norm.logpdf(z)
    for mean, log_variance in zip(*experts, strict=True):
        densities += scipy.stats.norm.logpdf(z, mean, np.exp(0.5 * log_variance))
    product = scipy.stats.norm.logpdf(z, q.mean, np.exp(0.5 * q.log_variance))
    np.testing.assert_allclose(
        product[0] - product[1], densities[0] - densities[1], rtol=1e-4, atol=1e-4
    )


jitted_product = jax.jit(posteriors.product_of_experts)
masks_with_a_member = st.lists(st.booleans(), min_size=M, max_size=M).filter(any)


@hypothesis.given(masks_with_a_member, st.booleans(), st.integers(0, 10**6))
def test_products_against_float64(mask, prior_expert, seed):
    experts = random_experts(seed)
    q = jitted_product(experts, np.array(mask), np.array(prior_expert))
    assert_gaussians_close(q, product64(experts, mask, prior_expert))


def test_masks_and_priors_per_example():
    experts = random_experts(3)
    masks = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]], bool)
    prior = np.array([True, False, True])
    q = posteriors.product_of_experts(experts, masks, prior)
    for b in range(B):
        one = Gaussian(*(field[:, b] for field in experts))
        expected = product64(one, masks[:, b], prior[b])
        assert_gaussians_close(Gaussian(q.mean[b], q.log_variance[b]), expected)


def test_an_empty_subset_with_the_prior_is_the_prior():
    q = posteriors.product_of_experts(random_experts(), jnp.zeros(M, bool), True)
    assert not np.any(q.mean) and not np.any(q.log_variance)


@hypothesis.given(masks_with_a_member, st.permutations(range(M)), st.booleans())
def test_the_order_of_modalities_does_not_matter(mask, order, prior_expert):
    experts, mask, order = random_experts(4), np.array(mask), np.array(order)
    shuffled = Gaussian(*(field[order] for field in experts))
    assert_gaussians_close(
        jitted_product(shuffled, mask[order], np.array(prior_expert)),
        jitted_product(experts, mask, np.array(prior_expert)),
    )


@jax.jit
def gradient_of_product(experts, mask, prior_expert):
    def loss(experts):
        q = posteriors.product_of_experts(experts, mask, prior_expert)
        kl = distributions.kl_to_standard_gaussian(q)
        return jnp.sum(jnp.sin(q.mean)) + jnp.sum(q.log_variance) + jnp.sum(kl)

    return jax.grad(loss)(experts)


@hypothesis.given(masks_with_a_member, st.booleans(), st.integers(0, 10**6))
def test_gradients_are_exactly_zero_outside_the_subset(mask, prior_expert, seed):
    mask = np.array(mask)
    gradient = gradient_of_product(random_experts(seed), mask, np.array(prior_expert))
    for field in gradient:
        assert (np.asarray(field)[~mask] == 0).all()
        assert (np.asarray(field)[mask] != 0).any(axis=(1, 2)).all()


def published_product(experts):
    """The product as the published code computes it, with the prior expert."""
    variance = jnp.exp(experts.log_variance) + 1e-8
    precision = 1 / variance
    total = 1 + jnp.sum(precision, axis=0)
    mean = jnp.sum(experts.mean * precision, axis=0) / total
    return Gaussian(mean, jnp.log(1 / total))


def our_product(experts):
    mask = jnp.ones(len(experts.mean), bool)
    return posteriors.product_of_experts(experts, mask, True)


def is_finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


@jax.jit
def extreme_values_and_gradients(experts):
    def results(product):
        q = product(experts)
        losses = {
            "mean": lambda e: product(e).mean.sum(),
            "log_variance": lambda e: product(e).log_variance.sum(),
            "kl": lambda e: distributions.kl_to_standard_gaussian(product(e)).sum(),
        }
        return q, {name: jax.grad(loss)(experts) for name, loss in losses.items()}

    return results(our_product), results(published_product)


@pytest.mark.parametrize(
    "log_variances",
    [(100.0, 100.0), (-100.0, -100.0), (100.0, -100.0), (100.0, 0.0), (-100.0, 0.0)],
)
def test_extreme_log_variances_are_finite_in_value_and_gradient(log_variances):
    mean = jnp.array([1.0, -2.0])[:, None]
    experts = Gaussian(mean, jnp.array(log_variances)[:, None])
    (q, gradients), (_, published) = extreme_values_and_gradients(experts)
    assert is_finite((q, gradients))
    expected = product64(experts, [True, True], True)
    assert_gaussians_close(q, expected)
    # The cause of the published MVAE's failure at large beta, where the optimum
    # has uninformative experts: exp(100) is inf and 0 * inf is nan.
    assert is_finite(published) == (max(log_variances) < 80)


def test_an_uninformative_expert_leaves_the_prior():
    experts = Gaussian(jnp.full((1, 1, 1), 3.0), jnp.full((1, 1, 1), 100.0))
    q = posteriors.product_of_experts(experts, jnp.array([True]), True)
    assert abs(q.mean.item()) < 1e-30 and abs(q.log_variance.item()) < 1e-30


def test_subset_posteriors_are_the_products_one_by_one():
    mixture = subsets.powerset(M, "released")
    experts = random_experts(5)
    together = subset_kl.subset_posteriors(experts, mixture)
    assert together.mean.shape == (2**M - 1, B, D)
    for s, (mask, prior) in enumerate(
        zip(mixture.masks, mixture.prior_expert, strict=True)
    ):
        own = Gaussian(together.mean[s], together.log_variance[s])
        assert_gaussians_close(own, jitted_product(experts, mask, prior), 1e-6, 1e-6)
        assert_gaussians_close(own, product64(experts, mask, prior))


@pytest.mark.parametrize("is_exact_preferred", [False, True])
@pytest.mark.parametrize("choice", ["paper", "released", "always"])
def test_what_is_left_of_a_full_set_is_none(choice, is_exact_preferred):
    """The mixture of an incomplete example is that of a model of what is there, but for
    "released": there the prior is in the product of all M modalities alone."""
    observed = np.array([True, True, False, False])
    given = posteriors.available_subsets(
        subsets.powerset(M, choice), observed, is_exact_preferred=is_exact_preferred
    )
    is_used = np.asarray(given.weights[:, 0]) > 0
    found = given.prior_expert[is_used]
    smaller = subsets.powerset(2, choice)
    if is_exact_preferred:  # the subset itself, and no other
        smaller = smaller._replace(prior_expert=smaller.prior_expert[-1:])
    assert len(found) == len(smaller.prior_expert)
    assert (found == smaller.prior_expert).all() == (choice != "released")
    assert choice != "released" or not found.any()


MIXTURES = {
    "all subsets": subsets.powerset(M, "released"),
    "one": subsets.full_set(M, "always"),
    "some": subsets.custom_subsets(M, ((0,), (1, 3), (0, 1, 2)), (0.5, 0.125, 0.375)),
}


def random_weights(mixture, is_by_example):
    if not is_by_example:
        return mixture.weights[:, None]
    weights = np.random.default_rng(6).uniform(size=(len(mixture.weights), B))
    return np.float32(weights / weights.sum(axis=0))


@pytest.mark.parametrize("is_by_example", [False, True])
@pytest.mark.parametrize("name", MIXTURES)
def test_the_kl_terms_of_a_mixture(name, is_by_example):
    """By definition: the KL terms of exact products, weighted."""
    mixture, experts = MIXTURES[name], random_experts(5)
    weights = random_weights(mixture, is_by_example)
    expected = np.zeros(B)
    for s, (mask, prior) in enumerate(
        zip(mixture.masks, mixture.prior_expert, strict=True)
    ):
        q = product64(experts, mask, prior)
        terms = q.mean**2 + np.exp(q.log_variance) - 1 - q.log_variance
        expected += np.float64(weights[s]) * 0.5 * terms.sum(-1)
    for mixture_kl in (subset_kl.mixture_kl, subset_kl.plain_mixture_kl):
        value = mixture_kl(experts, mixture, jnp.asarray(weights))
        np.testing.assert_allclose(value, expected, rtol=2e-5)


@pytest.mark.parametrize("is_in_blocks", [False, True])
@pytest.mark.parametrize("is_by_example", [False, True])
@pytest.mark.parametrize("name", MIXTURES)
def test_the_gradient_of_the_kl_terms(name, is_by_example, is_in_blocks, monkeypatch):
    """It is that of the plain form, in blocks of the dimensions too."""
    if is_in_blocks:
        size = len(MIXTURES[name].masks) * B * 6 * 4
        monkeypatch.setattr(subset_kl, "CACHE_BYTES", size // 3)
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        assert subset_kl._num_blocks(size, 6) == 3
    mixture, experts = MIXTURES[name], random_experts(7, (M, B, 6))
    weights = jnp.asarray(random_weights(mixture, is_by_example))
    by_example = jnp.arange(1.0, B + 1)

    def value_and_gradient(mixture_kl):
        def total(experts):
            kl = mixture_kl(experts, mixture, weights)
            return jnp.sum(by_example * kl), kl

        return jax.jit(jax.grad(total, has_aux=True))(experts)

    gradient, kl = value_and_gradient(subset_kl.mixture_kl)
    expected, expected_kl = value_and_gradient(subset_kl.plain_mixture_kl)
    np.testing.assert_allclose(kl, expected_kl, rtol=1e-5)
    for ours, theirs in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_blocks_divide_the_dimensions(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    mib = subset_kl.CACHE_BYTES
    assert subset_kl._num_blocks(mib, 512) == 1
    assert subset_kl._num_blocks(16 * mib, 512) == 16
    assert subset_kl._num_blocks(5 * mib, 512) == 8
    assert subset_kl._num_blocks(5 * mib, 7) == 7
    assert subset_kl._num_blocks(5 * mib + 1, 12) == 6
    assert subset_kl._num_blocks(5 * mib, 509) == 1
    assert subset_kl._num_blocks(100 * mib, 6) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert subset_kl._num_blocks(100 * mib, 6) == 1


stratified = jax.jit(stratified_components, static_argnums=2)


@hypothesis.given(
    st.lists(st.integers(0, 9), min_size=5, max_size=5).filter(any),
    st.sampled_from([1, 7, 32]),
    st.integers(0, 10**6),
)
def test_stratified_counts_are_rounded_down_or_up(parts, num, seed):
    weights = [Fraction(part, sum(parts)) for part in parts]
    drawn = stratified(jax.random.key(seed), jnp.float32(weights), num)
    assert drawn.shape == (num,) and drawn.dtype == jnp.int32
    counts = np.bincount(drawn, minlength=5)
    assert len(counts) == 5 and counts.sum() == num
    for count, weight in zip(counts, weights, strict=True):
        exact = num * weight  # 0 where the weight is
        assert exact.__floor__() <= count <= exact.__ceil__()


def test_stratified_draws_are_unbiased_over_keys_at_every_position():
    weights, num, repeats = np.array([0.05, 0.6, 0.35]), 4, 4_000
    keys = jax.random.split(jax.random.key(0), repeats)
    drawn = jax.vmap(lambda k: stratified(k, jnp.float32(weights), num))(keys)
    for position in (*range(num), slice(None)):
        chosen = np.asarray(drawn)[:, position].reshape(repeats, -1)
        frequency = np.stack([(chosen == k).mean(1) for k in range(3)], 1)
        error = 5 * frequency.std(0) / np.sqrt(repeats)
        assert (np.abs(frequency.mean(0) - weights) <= error).all()
    # The order within the batch is random, not one block after the other.
    assert len(np.unique(drawn, axis=0)) > 12


def test_the_powerset_is_balanced_at_the_papers_batch_size():
    weights = jnp.asarray(subsets.powerset(5).weights)
    for seed in range(5):
        counts = np.bincount(stratified(jax.random.key(seed), weights, 256))
        assert len(counts) == 31 and set(counts) <= {8, 9}
        counts = np.bincount(stratified(jax.random.key(seed), weights, 62))
        assert set(counts) == {2}


def test_random_components_are_independent_draws():
    weights, num = np.array([0.2, 0.0, 0.5, 0.3]), 20_000
    drawn = random_components(jax.random.key(0), jnp.float32(weights), num)
    frequency = np.bincount(drawn, minlength=4) / num
    error = 5 * np.sqrt(weights * (1 - weights) / num)
    assert (np.abs(frequency - weights) <= error).all()
    pairs = np.mean((drawn[:-1] == 0) & (drawn[1:] == 0))
    assert abs(pairs - 0.04) < 5 * np.sqrt(0.04 / num)


def test_gather_takes_one_component_an_example():
    components = random_experts(6)
    indices = np.array([2, 0, 3])
    gathered = gather_components(components, jnp.asarray(indices))
    for field, source in zip(gathered, components, strict=True):
        np.testing.assert_array_equal(
            field, np.stack([source[i, b] for b, i in enumerate(indices)])
        )


@pytest.mark.parametrize(
    "leading", [(), pytest.param((3,), marks=pytest.mark.slow), (2, 3)]
)
def test_mixture_density_against_scipy(leading):
    components = random_experts(7)
    weights = np.array([0.1, 0.0, 0.6, 0.3])
    z = np.random.default_rng(8).normal(size=(*leading, B, D)).astype(np.float32)
    values = posteriors.mixture_log_prob(components, jnp.float32(weights), z)
    scale = np.exp(0.5 * np.float64(components.log_variance))
    log_probs = [
        scipy.stats.norm.logpdf(z, components.mean[s], scale[s]).sum(-1)
        for s in range(M)
    ]
    expected = scipy.special.logsumexp(
        np.stack(log_probs), axis=0, b=weights.reshape(-1, *[1] * (z.ndim - 1))
    )
    assert values.shape == (*leading, B)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


def test_mixture_density_far_from_every_component():
    components = random_experts(9)
    value = posteriors.mixture_log_prob(
        components, jnp.full(M, 1 / M), jnp.full((B, D), 1e3)
    )
    assert np.isfinite(value).all() and (value < -1e3).all()


NON_EMPTY = [
    subset for size in (1, 2, 3) for subset in itertools.combinations(range(3), size)
]
CUSTOM = subsets.custom_subsets(3, ((0,), (0, 1), (1, 2)), (0.2, 0.3, 0.5))
CUSTOM_EXPECTED = {
    (0,): {(0,): 1.0},
    (1,): {(1,): 1.0},
    (2,): {(2,): 1.0},
    (0, 1): {(0, 1): 1.0},
    (0, 2): {(0,): 1.0},
    (1, 2): {(1, 2): 1.0},
    (0, 1, 2): {(0,): 0.2, (0, 1): 0.3, (1, 2): 0.5},
}
RULES = {
    "mvae": (subsets.full_set(3), lambda a: {a: 1.0}, lambda a: True),
    "mvae_never": (subsets.full_set(3, "never"), lambda a: {a: 1.0}, lambda a: False),
    "mmvae": (
        subsets.unimodal_subsets(3),
        lambda a: {(m,): 1 / len(a) for m in a},
        lambda a: False,
    ),
    "mopoe": (subsets.powerset(3), lambda a: {a: 1.0}, lambda a: False),
    "mopoe_released": (
        subsets.powerset(3, "released"),
        lambda a: {a: 1.0},
        lambda a: len(a) == 3,
    ),
    "custom": (CUSTOM, CUSTOM_EXPECTED.__getitem__, lambda a: False),
    "unequal": (
        subsets.custom_subsets(3, ((0,), (1,), (0, 1, 2)), (0.1, 0.3, 0.6)),
        {
            **{a: {a: 1.0} for a in [(0,), (1,), (2,), (0, 1, 2)]},
            (0, 1): {(0,): 0.25, (1,): 0.75},
            (0, 2): {(0,): 1.0},
            (1, 2): {(1,): 1.0},
        }.__getitem__,
        lambda a: False,
    ),
    "unweighted": (
        subsets.custom_subsets(3, ((0,), (0, 1), (0, 1, 2)), (0.5, 0.0, 0.5)),
        {
            **{a: {a: 1.0} for a in [(0,), (1,), (2,), (1, 2), (0, 1, 2)]},
            (0, 1): {(0,): 1.0},
            (0, 2): {(0,): 1.0},
        }.__getitem__,
        lambda a: False,
    ),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("is_jitted", [False, True])
def test_what_is_used_when_only_some_modalities_are_observed(name, is_jitted):
    mixture, expected, has_prior = RULES[name]

    def condition(observed):
        return posteriors.available_subsets(mixture, observed, is_exact_preferred=True)

    condition = jax.jit(condition) if is_jitted else condition
    for observed in NON_EMPTY:
        mask = np.isin(np.arange(3), observed)
        given = condition(mask)
        kept = np.flatnonzero(given.weights[:, 0])
        found = {
            tuple(np.flatnonzero(given.masks[s, :, 0]).tolist()): given.weights[s, 0]
            for s in kept
        }
        assert found == pytest.approx(expected(observed)), observed
        assert len(found) == len(kept)
        assert set(np.asarray(given.prior_expert)[kept]) == {has_prior(observed)}


def test_posterior_components_are_the_products_of_balanced_subsets():
    num = 40
    experts = random_experts(10, (3, num, D))
    mixture = CUSTOM._replace(prior_expert=np.array([False, True, False]))
    products = [
        product64(experts, mask, prior)
        for mask, prior in zip(mixture.masks, mixture.prior_expert, strict=True)
    ]
    q = jax.jit(posterior_component)(
        jax.random.key(0),
        experts,
        mixture._replace(
            masks=mixture.masks[:, :, None], weights=mixture.weights[:, None]
        ),
    )
    is_close = np.stack(
        [
            np.isclose(q.mean, p.mean, rtol=1e-4, atol=1e-5).all(-1)
            & np.isclose(q.log_variance, p.log_variance, rtol=1e-4, atol=1e-5).all(-1)
            for p in products
        ]
    )
    assert (is_close.sum(0) == 1).all()
    assert is_close.sum(1).tolist() == [8, 12, 20]
    assert len(set(np.argmax(is_close, 0)[:8])) > 1


@pytest.mark.slow
@pytest.mark.parametrize("spread", [10.0, 38.0, 100.0])
@pytest.mark.parametrize(
    "make", [pytest.param(subsets.powerset, marks=pytest.mark.slow), subsets.full_set]
)
def test_subset_posteriors_at_extreme_log_variances(spread, make):
    """Equal to the exact products within +-40, finite with finite gradients at
    +-100 too."""
    generator = np.random.default_rng(0)
    mean = jnp.asarray(generator.normal(size=(3, 4, 5)), jnp.float32)
    signs = generator.choice([-1.0, 0.0, 1.0], size=(3, 4, 5))
    experts = Gaussian(mean, jnp.asarray(spread * signs, jnp.float32))
    mixture = make(3, prior_expert="always")

    def total(experts):
        found = subset_kl.subset_posteriors(experts, mixture)
        weights = jnp.asarray(mixture.weights)[:, None]
        kl = subset_kl.mixture_kl(experts, mixture, weights)
        return jnp.sum(found.mean**2 + found.log_variance) + jnp.sum(kl)

    found = subset_kl.subset_posteriors(experts, mixture)
    gradient = jax.grad(total)(experts)
    for leaf in jax.tree.leaves((found, gradient)):
        assert np.isfinite(leaf).all()
    if spread < 40:
        for s, mask in enumerate(mixture.masks):
            exact = posteriors.product_of_experts(experts, mask, True)
            np.testing.assert_allclose(found.mean[s], exact.mean, 1e-5, 1e-5)
            np.testing.assert_allclose(
                found.log_variance[s], exact.log_variance, 1e-5, 1e-5
            )
