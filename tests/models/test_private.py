"""Models with private latent vectors: MMVAE+ and DMVAE."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, elbo, importance, posteriors, subsets
from mmvae_jax.models import dmvae, mmvae_plus, private
from mmvae_jax.types import Gaussian, Laplace

M, B, D, E, F, K = 3, 4, 2, 3, 3, 5  # D shared dimensions, E private ones
SCALE = 0.7
MODALITIES = ("m0", "m1", "m2")
RNG = np.random.default_rng(0)
MEANS, SPREADS = np.float32(RNG.normal(size=(2, M, B, D + E)))
LOADINGS = dict(
    zip(MODALITIES, np.float32(RNG.normal(size=(M, D + E, F))), strict=True)
)
BATCH = dict(zip(MODALITIES, np.float32(RNG.normal(size=(M, B, F))), strict=True))
PRIOR_SPREAD = np.float32([0.3, -0.4, 0.1, 0.2, -0.3])
AUXILIARY_SPREAD = np.float32(0.5 * RNG.normal(size=(M, E)))
DENSITIES = {  # family -> (z, mean, spread) -> log-density in float64
    Laplace: lambda z, mean, s: scipy.stats.laplace.logpdf(z, mean, np.exp(s)).sum(-1),
    Gaussian: lambda z, mean, s: scipy.stats.norm.logpdf(z, mean, np.exp(s / 2)).sum(
        -1
    ),
}
KEY = jax.random.key(0)
# Programs that run once: compiling them costs more than they do.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def decoders(loadings=LOADINGS, seen=None):
    """Linear decoders with Gaussian noise; they note their latent vectors in `seen`."""

    def make(modality):
        def log_likelihood(z, x):
            if seen is not None:
                seen.setdefault(modality, []).append(z)
            residual = (x - z @ loadings[modality]) / SCALE
            constant = np.log(SCALE) + 0.5 * np.log(2 * np.pi)
            return jnp.sum(-0.5 * residual**2 - constant, axis=-1)

        return log_likelihood

    return {m: make(m) for m in loadings}


def likelihood(modality, z, b):
    """log p(x|z) of example b in float64."""
    mean = np.float64(z) @ np.float64(LOADINGS[modality])
    return scipy.stats.norm.logpdf(BATCH[modality][b], mean, SCALE).sum(-1)


def by_sample(folded, num_examples, *shape):
    """What a decoder was called with, float64 [*shape, num_examples, D + E]."""
    z = np.float64(folded).reshape(num_examples, *shape, D + E)
    return np.moveaxis(z, 0, len(shape))


def centred(family, spread):
    return family(jnp.zeros(np.shape(spread)), jnp.asarray(spread))


def without_private(loadings=LOADINGS):
    """Loadings of decoders that leave w alone."""
    return {
        m: jnp.where(np.arange(D + E)[:, None] < D, x, 0) for m, x in loadings.items()
    }


# MMVAE+.


def weighted(experts, key=KEY, beta=1.0, modalities=MODALITIES, **options):
    """The objective with the decoders and the priors of this file."""
    family, num = type(experts), len(modalities)
    defaults = {
        "shared_dim": D,
        "prior": centred(family, PRIOR_SPREAD),
        "auxiliary_priors": centred(family, AUXILIARY_SPREAD[:num]),
        "log_likelihoods": decoders({m: LOADINGS[m] for m in modalities}),
        "num_samples": K,
    }
    batch = {m: BATCH[m] for m in modalities}
    return mmvae_plus.private_importance_weighted(
        experts, batch, key, beta, **defaults | options
    )


def brute_force(family, seen, beta, form):
    """Objective, log-likelihoods, KL and log r - log p [B], one weight at a time."""
    density = DENSITIES[family]
    z = {m: by_sample(x[0], B, K, M) for m, x in seen.items()}
    log_w = np.zeros((K, M, B))
    log_likelihood, kl, excess = {m: np.zeros(B) for m in MODALITIES}, *np.zeros((2, B))
    for k, m, b in np.ndindex(K, M, B):
        own = z[MODALITIES[m]][k, m, b]
        shared = own[:D]
        log_q = [density(shared, MEANS[j, b, :D], SPREADS[j, b, :D]) for j in range(M)]
        log_q = np.log(np.mean(np.exp(log_q)))
        log_q += density(own[D:], MEANS[m, b, D:], SPREADS[m, b, D:])
        log_p = density(own, 0.0, np.float64(PRIOR_SPREAD))
        log_w[k, m, b] = beta * (log_p - log_q)
        kl[b] += (log_q - log_p) / (K * M)
        for n, name in enumerate(MODALITIES):
            used = z[name][k, m, b]
            np.testing.assert_array_equal(used[:D], shared)
            value = likelihood(name, used, b)
            log_w[k, m, b] += value
            log_likelihood[name][b] += value / (K * M)
            if n != m:
                log_r = density(used[D:], 0.0, np.float64(AUXILIARY_SPREAD[n]))
                log_p = density(used[D:], 0.0, np.float64(PRIOR_SPREAD[D:]))
                excess[b] += (log_r - log_p) / (K * M)
    if form == "tight":
        return np.log(np.exp(log_w).mean((0, 1))), log_likelihood, kl, excess
    return np.log(np.exp(log_w).mean(0)).mean(0), log_likelihood, kl, excess


@pytest.mark.parametrize(
    ("family", "form", "estimator", "beta"),
    [
        (Laplace, "loose", "dreg", 1.0),
        (Laplace, "tight", "iwae", 2.5),
        (Gaussian, "loose", "iwae", 2.5),
        (Gaussian, "tight", "dreg", 1.0),
    ],
)
def test_mmvae_plus_is_that_of_brute_force(family, form, estimator, beta):
    @compiled
    def objective(beta):
        seen = {}
        functions = decoders(seen=seen)
        options = {"form": form, "estimator": estimator}
        experts = family(MEANS, SPREADS)
        found = weighted(experts, beta=beta, log_likelihoods=functions, **options)
        return *found, seen

    loss, terms, seen = objective(beta)
    # Each modality is decoded once, for all samples (and once more for DReG).
    assert {len(calls) for calls in seen.values()} == {2 if estimator == "dreg" else 1}
    for first, *others in seen.values():
        for other in others:
            np.testing.assert_array_equal(other, first)
    value, log_likelihood, kl, excess = brute_force(family, seen, beta, form)
    assert loss == pytest.approx(-value.mean(), rel=1e-5)
    for m in MODALITIES:
        np.testing.assert_allclose(terms.log_likelihood[m], log_likelihood[m], 1e-5)
    np.testing.assert_allclose(terms.kl, kl + excess, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(terms.auxiliary_kl, -excess, rtol=1e-4, atol=1e-4)
    assert not terms.auxiliary_log_likelihood.any() and np.abs(excess).max() > 0.1


def test_private_vectors_are_of_the_expert_or_of_the_auxiliary_prior():
    num = 2_000

    @compiled
    def draw():
        seen = {}
        options = {"log_likelihoods": decoders(seen=seen), "num_samples": num}
        weighted(Laplace(MEANS, SPREADS), estimator="iwae", **options)
        return seen

    noise = []
    for n, (name, calls) in enumerate(draw().items()):
        assert name == MODALITIES[n]
        z = by_sample(calls[0], B, num, M)
        own = (z - MEANS) / np.exp(np.float64(SPREADS))
        for m in range(M):
            auxiliary = z[:, m, :, D:] / np.exp(np.float64(AUXILIARY_SPREAD[n]))
            w = own[:, m, :, D:] if m == n else auxiliary
            noise.append(w.reshape(num, -1))
        noise.append(own[:, n, :, :D].reshape(num, -1))
    noise = np.concatenate(noise, axis=1)
    assert scipy.stats.kstest(noise.ravel()[::7], "laplace").pvalue > 1e-3
    pairs = np.corrcoef(noise.T) - np.eye(noise.shape[1])
    assert np.abs(pairs).max() < 6 / np.sqrt(num)  # all are independent


def test_with_one_sample_it_is_the_beta_weighted_elbo():
    @compiled
    def objective(beta):
        experts = Laplace(MEANS, SPREADS)
        options = {"beta": beta, "num_samples": 1}
        return [
            weighted(experts, estimator=e, **options) for e in importance.ESTIMATORS
        ]

    for beta in (0.3, 4.0):
        for loss, terms in objective(beta):
            expected = elbo.loss(terms, beta)
            assert loss == pytest.approx(float(expected), rel=1e-5)


def both_gradients(one, other, experts):
    """Values and gradients of two losses with respect to experts and loadings."""
    for loss in (one, other):
        yield compiled(jax.value_and_grad(loss, (0, 1)))(experts, LOADINGS)


def assert_close(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, other
    )


def test_with_one_modality_it_is_a_vae_of_both_vectors():
    prior = centred(Laplace, PRIOR_SPREAD)
    options = {"num_samples": K, "estimator": "dreg"}
    own_key, _ = jax.random.split(KEY)

    def ours(experts, loadings):
        log_likelihoods = {"m0": decoders(loadings)["m0"]}
        return weighted(
            experts, KEY, 2.0, ("m0",), log_likelihoods=log_likelihoods, **options
        )[0]

    def neighbour(experts, loadings):
        return importance.importance_weighted(
            experts,
            {"m0": BATCH["m0"]},
            own_key,
            2.0,
            prior=prior,
            log_likelihoods={"m0": decoders(loadings)["m0"]},
            **options,
        )[0]

    assert_close(*both_gradients(ours, neighbour, Laplace(MEANS[:1], SPREADS[:1])))


def test_without_private_information_it_is_the_official_mmvae():
    """Experts of w equal to p(w), and decoders that leave w alone."""
    prior = centred(Laplace, PRIOR_SPREAD)
    options = {"num_samples": K, "estimator": "dreg", "form": "loose"}
    own_key, _ = jax.random.split(KEY)
    unused = Laplace(
        np.where(np.arange(D + E) < D, MEANS, 0),
        np.where(np.arange(D + E) < D, SPREADS, PRIOR_SPREAD),
    )

    def ours(experts, loadings):
        functions = decoders(without_private(loadings))
        return weighted(experts, beta=2.0, log_likelihoods=functions, **options)[0]

    def neighbour(experts, loadings):
        functions = decoders(without_private(loadings))
        return importance.importance_weighted(
            experts,
            BATCH,
            own_key,
            2.0,
            prior=prior,
            log_likelihoods=functions,
            **options,
        )[0]

    (value, gradient), (expected, reference) = both_gradients(ours, neighbour, unused)
    assert value == pytest.approx(float(expected), rel=1e-5)
    # With respect to z and the decoders: p(w) is an expert of its own there.
    shared = jax.tree.map(lambda field: field[..., :D], (gradient[0], reference[0]))
    assert_close(*shared)
    assert_close(gradient[1], reference[1])


def exact_log_likelihood(batch):
    """log p(X) [B] of the linear decoders and the Gaussian prior, in float64."""
    stacked = np.zeros((D + M * E, M * F))
    for i, m in enumerate(MODALITIES):
        columns = slice(i * F, (i + 1) * F)
        stacked[:D, columns] = LOADINGS[m][:D]
        stacked[D + i * E : D + (i + 1) * E, columns] = LOADINGS[m][D:]
    spread = np.float64(PRIOR_SPREAD)
    variances = np.exp(np.concatenate([spread[:D], *[spread[D:]] * M]))[:, None]
    covariance = stacked.T @ (variances * stacked) + SCALE**2 * np.eye(M * F)
    x = np.concatenate([batch[m] for m in MODALITIES], axis=1)
    return scipy.stats.multivariate_normal.logpdf(x, cov=covariance)


@pytest.mark.slow
def test_the_terms_are_a_bound_and_the_objective_is_one_for_equal_priors():
    """Of log p(X), from below; with r_n other than p, the terms alone."""
    experts = Gaussian(0.3 * MEANS, 0.2 * SPREADS)
    x = {m: 0.1 * x for m, x in BATCH.items()}
    exact = exact_log_likelihood(x).mean()

    @compiled
    def values(auxiliary):
        loss, terms = mmvae_plus.private_importance_weighted(
            experts,
            x,
            KEY,
            1.0,
            shared_dim=D,
            prior=centred(Gaussian, PRIOR_SPREAD),
            auxiliary_priors=centred(Gaussian, auxiliary),
            log_likelihoods=decoders(),
            num_samples=40_000,
            form="tight",
            estimator="iwae",
        )
        return -loss, jnp.mean(elbo.elbo(terms))

    objective, bound = values(np.broadcast_to(PRIOR_SPREAD[D:], (M, E)))
    assert objective == pytest.approx(exact, abs=0.05) and bound < exact - 1
    # Data near 0: w~ = 0 explains them better than p(w) does on average.
    objective, bound = values(np.full((M, E), np.float32(-9)))
    assert objective > exact + 0.5 and bound < exact - 1


def test_auxiliary_priors_learn_by_the_plain_derivative():
    """They are in no density: both estimators give them the same gradient."""

    def loss(spread, estimator):
        priors = centred(Laplace, spread)
        return weighted(
            Laplace(MEANS, SPREADS), auxiliary_priors=priors, estimator=estimator
        )[0]

    dreg, iwae = (
        compiled(jax.grad(partial(loss, estimator=e)))(AUXILIARY_SPREAD)
        for e in importance.ESTIMATORS
    )
    np.testing.assert_allclose(dreg, iwae, rtol=1e-4, atol=1e-5)
    assert np.abs(iwae).min() > 1e-4


EXTREME = np.float32(
    [[30.0, -30, -30, 30, 0], [-30, 30, -30, 0, 30], [0, 0, 30, -30, -30]]
)


@pytest.mark.slow
@pytest.mark.parametrize("family", DENSITIES)
def test_mmvae_plus_is_finite_at_extreme_heads(family):
    def loss(experts, auxiliary, beta):
        priors = centred(family, auxiliary)
        options = {"auxiliary_priors": priors, "estimator": "dreg"}
        return weighted(experts, KEY, beta, MODALITIES[:2], **options)

    gradient = compiled(jax.value_and_grad(loss, (0, 1), has_aux=True))
    spreads = np.broadcast_to(EXTREME[:2, None], MEANS[:2].shape)
    for scale, beta in itertools.product((0.5, 1.0), (0.0, 32.0)):
        experts = family(10 * MEANS[:2], scale * spreads)
        results = gradient(experts, AUXILIARY_SPREAD[:2], beta)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


# DMVAE.

PRIOR_CHOICES = ((True, False), (True, True), (False, False))


def joint_of(experts, prior):
    """The product of the shared parts; `prior` as in PRIOR_CHOICES."""
    num = len(experts.mean)
    shared, _ = distributions.split(experts, D)
    everything = np.ones(num, bool)
    return posteriors.product_of_experts(shared, everything, prior[num == 1])


def elbos(experts, key=KEY, modalities=MODALITIES, prior=(True, False), **options):
    defaults = {
        "joint": joint_of(experts, prior),
        "shared_dim": D,
        "is_single_with_prior": prior[1],
        "log_likelihoods": decoders({m: LOADINGS[m] for m in modalities}),
    }
    batch = {m: BATCH[m] for m in modalities}
    return dmvae.private_shared_elbos(experts, batch, key, **defaults | options)


def product(b, chosen, with_prior):
    """Mean and variance of a product of experts of z, in float64."""
    precision = np.exp(-np.float64(SPREADS[chosen, b, :D]))
    total = precision.sum(0) + with_prior
    return (precision * MEANS[chosen, b, :D]).sum(0) / total, 1 / total


def kl_to_prior(mean, variance):
    return 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(-1)


@pytest.mark.parametrize("prior", PRIOR_CHOICES)
def test_dmvae_is_that_of_brute_force(prior):
    @compiled
    def objective():
        seen = {}
        experts = Gaussian(MEANS, SPREADS)
        terms = elbos(experts, prior=prior, log_likelihoods=decoders(seen=seen))
        return terms, seen

    terms, seen = jax.tree.map(np.float64, objective())
    assert {len(calls) for calls in seen.values()} == {1}
    z = {m: by_sample(calls[0], B, M + 1) for m, calls in seen.items()}
    log_likelihood = {m: np.zeros(B) for m in MODALITIES}
    kl, auxiliary, auxiliary_kl = np.zeros((3, B))
    sources = [list(range(M)), *([m] for m in range(M))]
    for (s, source), b in itertools.product(enumerate(sources), range(B)):
        own_kl = kl_to_prior(*product(b, source, prior[len(source) == 1]))
        for m, name in enumerate(MODALITIES):
            used = z[name][s, b]
            np.testing.assert_array_equal(used[:D], z["m0"][s, b, :D])
            np.testing.assert_array_equal(used[D:], z[name][0, b, D:])
            value = likelihood(name, used, b)
            variance = np.exp(np.float64(SPREADS[m, b, D:]))
            own_kl += kl_to_prior(np.float64(MEANS[m, b, D:]), variance)
            if s == 0:
                log_likelihood[name][b] = value
            else:
                auxiliary[b] += value
        (auxiliary_kl if s else kl)[b] += own_kl
    for m in MODALITIES:
        np.testing.assert_allclose(terms.log_likelihood[m], log_likelihood[m], 1e-5)
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-5)
    np.testing.assert_allclose(terms.auxiliary_log_likelihood, auxiliary, rtol=1e-5)
    np.testing.assert_allclose(terms.auxiliary_kl, auxiliary_kl, rtol=1e-5)


def test_samples_of_dmvae_are_of_the_product_the_experts_and_the_private_posteriors():
    num = 300
    tiled = [np.tile(field, (1, num, 1)) for field in (MEANS, SPREADS)]

    @compiled
    def draw():
        seen = {}
        experts = Gaussian(*tiled)
        dmvae.private_shared_elbos(
            experts,
            {m: np.tile(x, (num, 1)) for m, x in BATCH.items()},
            KEY,
            joint=joint_of(experts, (True, False)),
            shared_dim=D,
            is_single_with_prior=False,
            log_likelihoods=decoders(seen=seen),
        )
        return seen

    noise, seen = [], draw()
    for m, name in enumerate(MODALITIES):
        z = by_sample(seen[name][0], num, B, M + 1).transpose(2, 1, 0, 3)
        w = (z[:, 0, :, D:] - MEANS[m, :, D:]) / np.exp(0.5 * SPREADS[m, :, D:])
        noise.append(w.reshape(len(z), -1))
    for s, source in enumerate([list(range(M)), *([m] for m in range(M))]):
        for b in range(B):
            mean, variance = product(b, source, s == 0)
            noise.append((z[:, s, b, :D] - mean) / np.sqrt(variance))
    noise = np.concatenate(noise, axis=1)
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    pairs = np.corrcoef(noise.T) - np.eye(noise.shape[1])
    assert np.abs(pairs).max() < 6 / np.sqrt(len(noise))


def test_without_private_information_dmvae_is_mvae_and_mmvae():
    """Its bound is that of MVAE; what it adds, M times that of MMVAE. Experts so
    certain that a sample is the mean, and products without the prior."""
    experts = Gaussian(
        np.where(np.arange(D + E) < D, MEANS, 0),
        np.where(np.arange(D + E) < D, np.full_like(SPREADS, -30), 0),
    )
    functions = decoders(without_private())
    terms = compiled(partial(elbos, log_likelihoods=functions))(experts)
    shared = jax.tree.map(lambda field: jnp.asarray(field[..., :D]), experts)
    functions = decoders({m: x[:D] for m, x in LOADINGS.items()})
    mixtures = subsets.full_set(M), subsets.unimodal_subsets(M)
    joint, unimodal = (
        compiled(
            partial(
                elbo.subset_elbo,
                mixture=mixture,
                log_likelihoods=functions,
                estimator="exact",
            )
        )(shared, BATCH, KEY)
        for mixture in mixtures
    )
    assert_close(terms.log_likelihood, joint.log_likelihood)
    np.testing.assert_allclose(terms.kl, joint.kl, rtol=1e-5)
    np.testing.assert_allclose(terms.auxiliary_kl, M * unimodal.kl, rtol=1e-5)
    np.testing.assert_allclose(
        terms.auxiliary_log_likelihood,
        M * sum(unimodal.log_likelihood.values()),
        rtol=1e-4,
    )


def test_with_one_modality_dmvae_is_a_vae_of_both_vectors_twice():
    experts = Gaussian(MEANS[:1], SPREADS[:1])
    certain = experts._replace(log_variance=np.full_like(SPREADS[:1], -30))
    ours = compiled(partial(elbos, modalities=("m0",)))
    functions = {"m0": decoders()["m0"]}
    neighbour = compiled(partial(elbo.unimodal_elbos, log_likelihoods=functions))
    for own in (experts, certain):
        terms = ours(own)
        expected = neighbour(own, {"m0": BATCH["m0"]}, KEY)
        np.testing.assert_allclose(terms.kl, expected.kl, rtol=1e-5)
        np.testing.assert_allclose(terms.auxiliary_kl, expected.kl, rtol=1e-5)
    for values in (terms.log_likelihood["m0"], terms.auxiliary_log_likelihood):
        np.testing.assert_allclose(values, expected.log_likelihood["m0"], rtol=1e-4)


def test_dmvae_is_finite_at_extreme_heads():
    def loss(experts, beta):
        terms = elbos(experts)
        return elbo.loss(terms, beta), terms

    gradient = compiled(jax.value_and_grad(loss, has_aux=True))
    experts = Gaussian(10 * MEANS, np.broadcast_to(EXTREME[:, None], MEANS.shape))
    for beta in (0.0, 32.0):
        results = gradient(experts, beta)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


def test_one_gaussian_around_zero_is_the_prior_of_mmvae_plus():
    experts = Gaussian(MEANS, SPREADS)
    standard = Gaussian(jnp.zeros(D + E), jnp.zeros(D + E))
    one = {"mean": jnp.zeros((1, D)), "log_weight": jnp.array([3.0])}

    @jax.jit
    def both():
        return [
            weighted(experts, prior=standard, log_shared_prior=log_prior)
            for log_prior in (None, partial(private.log_mixture_prob, one))
        ]

    assert_close(*both())


def test_a_mixture_of_the_shared_vector_is_learned():
    experts = Gaussian(MEANS, SPREADS)
    prior = Gaussian(jnp.zeros(D + E), jnp.zeros(D + E))
    rng = np.random.default_rng(3)
    mixture = {
        "mean": np.float32(rng.normal(size=(4, D))),
        "log_weight": np.float32(rng.normal(size=4)),
    }

    @jax.jit
    @jax.grad
    def gradient(mixture):
        log_prior = partial(private.log_mixture_prob, mixture)
        return weighted(experts, prior=prior, log_shared_prior=log_prior)[0]

    found = gradient(mixture)
    assert (np.abs(found["mean"]) > 0).all() and np.abs(found["log_weight"]).max() > 0
    # Weights are a softmax: their gradient sums to zero.
    assert np.sum(found["log_weight"]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
@pytest.mark.parametrize("has_self_gradient", [True, False])
def test_the_shared_vector_learns_across_modalities_alone(has_self_gradient, estimator):
    experts = Gaussian(MEANS, SPREADS)
    decode = decoders(LOADINGS)
    nothing = {m: lambda z, x: 0.0 * z[..., 0] for m in MODALITIES[1:]}

    @jax.jit
    @jax.grad
    def gradient(experts):
        return weighted(
            experts,
            beta=0.0,
            prior=Gaussian(jnp.zeros(D + E), jnp.zeros(D + E)),
            log_likelihoods={"m0": decode["m0"], **nothing},
            has_self_gradient=has_self_gradient,
            estimator=estimator,
        )[0]

    own, across = (np.abs(gradient(experts).mean[m, :, :D]) for m in (0, 1))
    assert (own.max() > 0) == has_self_gradient and across.max() > 0
    assert np.abs(gradient(experts).mean[0, :, D:]).max() > 0  # of w_m


# The models.

SHAPES = {m: (2, 2, 1) for m in MODALITIES}
NAMES = ("mmvae_plus", "dmvae")


def make(tiny_config, name, **options):
    config = tiny_config(name, D, **{"private_dim": E} | options)
    return models.make_model(config, SHAPES)


def params_of(model):
    """Parameters drawn with NumPy, which compiles nothing."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(rng.uniform(-1, 1, x.shape)),
        jax.eval_shape(model.init, KEY),
    )


@pytest.fixture(scope="module", params=NAMES)
def built(request, tiny_config):
    model = make(tiny_config, request.param)
    return request.param, model, params_of(model)


def fake_experts(name):
    family = Laplace if name == "mmvae_plus" else Gaussian
    return family(*np.float32(np.random.default_rng(1).normal(size=(2, M, 12, D + E))))


def private_part(z, m):
    return z[..., D + m * E : D + (m + 1) * E]


SUBSETS = [s for s in itertools.product([False, True], repeat=M) if any(s)]


def test_a_posterior_has_private_parts_of_its_own_or_of_the_prior(built):
    name, model, params = built
    experts = fake_experts(name)
    for subset in SUBSETS:
        q = model.posterior(params, experts, np.array(subset), KEY)
        assert type(q) is type(experts) and q.mean.shape == (12, model.latent_dim)
        for field, expert in zip(q, experts, strict=True):
            for m in range(M):
                expected = expert[m, :, D:] if subset[m] else 0.0  # p(w) has scale 1
                np.testing.assert_allclose(private_part(field, m), expected, atol=1e-6)
        shared = jax.tree.map(lambda field: field[..., :D], experts)
        own = jax.tree.map(lambda field: field[..., :D], q)
        if name == "dmvae":
            with_prior = sum(subset) > 1
            expected = posteriors.product_of_experts(shared, subset, with_prior)
            assert_close(own, expected)
        else:
            is_own = (shared.mean == own.mean) & (shared.log_scale == own.log_scale)
            counts = is_own.all(-1).sum(1)
            assert counts.tolist() == [12 // sum(subset) * x for x in subset]


def test_the_mixture_is_of_what_is_drawn_given_everything(built):
    name, model, params = built
    experts = fake_experts(name)
    everything = np.ones(M, bool)
    components, weights = model.mixture_posterior(params, experts, everything)
    num = M if name == "mmvae_plus" else 1
    np.testing.assert_allclose(weights[:, 0], np.full(num, 1 / num), rtol=1e-6)
    drawn = model.posterior(params, experts, everything, KEY)
    is_drawn = np.isclose(components.mean, drawn.mean, atol=1e-6).all(-1)
    assert is_drawn.any(0).all() and components.mean.shape[0] == num
    # Only the shared part is a mixture.
    np.testing.assert_array_equal(
        components.mean[..., D:],
        np.broadcast_to(drawn.mean[:, D:], (num, 12, M * E)),
    )


def test_a_modality_is_decoded_from_the_shared_and_its_own_vector(built, tiny_images):
    _, model, params = built
    z = RNG.normal(size=(B, model.latent_dim)).astype(np.float32)
    batch = {m: x / np.float32(255) for m, x in tiny_images(SHAPES, B).items()}
    decode = compiled(model.decode)
    values = decode(params, z)
    for i in range(model.latent_dim):
        changed = decode(params, z + (np.arange(model.latent_dim) == i))
        for m, name in enumerate(MODALITIES):
            is_used = i < D or (i - D) // E == m
            assert np.array_equal(changed[name], values[name]) != is_used
    found = model.log_likelihood(params, z, batch)
    for m, x in batch.items():
        residual = np.abs(values[m] - x) / 0.75 + np.log(2 * 0.75)
        np.testing.assert_allclose(found[m], -residual.sum((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("draw", ("own", "shared"))
def test_unconditional_draws(name, draw, tiny_config):
    model = make(tiny_config, name, private_draw=draw)
    params = params_of(model)
    z = np.float64(model.sample_prior(params, KEY, 3_000))
    law = scipy.stats.laplace if name == "mmvae_plus" else scipy.stats.norm
    assert scipy.stats.kstest(z[:, : D + E].ravel(), law.cdf).pvalue > 1e-3
    assert z.shape == (3_000, D + M * E)
    for m in range(1, M):
        w = private_part(z, m)
        assert np.array_equal(w, private_part(z, 0)) == (draw == "shared")
        assert scipy.stats.kstest(w.ravel(), law.cdf).pvalue > 1e-3
    # The density is that of independent private vectors in both cases.
    np.testing.assert_allclose(
        model.log_prior(params, np.float32(z)), law.logpdf(z).sum(-1), rtol=1e-5
    )


def test_scales_of_mmvae_plus_sum_to_their_dimensions(tiny_config, tiny_images):
    batch = {m: x / np.float32(255) for m, x in tiny_images(SHAPES, B).items()}
    laplace, gaussian = (
        make(tiny_config, "mmvae_plus", posterior=family)
        for family in ("laplace", "gaussian")
    )
    params = params_of(laplace)
    experts, emitted = (x.encode(params, batch) for x in (laplace, gaussian))
    assert isinstance(experts, Laplace) and isinstance(emitted, Gaussian)
    for part, size in ((np.s_[..., :D], D), (np.s_[..., D:], E)):
        logits = np.float64(emitted.log_variance[part])
        expected = scipy.special.softmax(logits, -1) * size + 1e-6
        np.testing.assert_allclose(np.exp(experts.log_scale[part]), expected, rtol=1e-5)


def test_encoders_of_mmvae_plus_are_disjoint(tiny_config, tiny_images):
    model = make(tiny_config, "mmvae_plus", posterior="gaussian")
    params = params_of(model)
    batch = {m: x / np.float32(255) for m, x in tiny_images(SHAPES, B).items()}
    experts = model.encode(params, batch)
    for part, kept in (("first", np.s_[..., D:]), ("second", np.s_[..., :D])):
        encoder = params["encoders"]["m1"]["params"]
        other = jax.tree.map(lambda x: 1.5 * x, encoder[part])
        other = {"params": encoder | {part: other}}
        changed = params | {"encoders": params["encoders"] | {"m1": other}}
        is_equal = np.equal(model.encode(changed, batch).mean, experts.mean)
        assert is_equal[[0, 2]].all() and is_equal[1][kept].all()
        assert not is_equal[1].all()


def test_the_config_reaches_the_objective_of_mmvae_plus(tiny_config):
    config = tiny_config("mmvae_plus")
    batch = {m: np.zeros((B, *shape), np.float32) for m, shape in SHAPES.items()}

    def objective():
        model = models.make_model(config, SHAPES)
        params = jax.eval_shape(model.init, KEY)
        return str(jax.make_jaxpr(model.objective)(params, batch, KEY, 1.0))

    jaxprs = [objective()]
    changes = {"num_samples": 3, "estimator": "iwae", "form": "tight"}
    for field, value in changes.items():
        config.model.options[field] = value
        jaxprs.append(objective())
    config.model.options.posterior = "gaussian"
    jaxprs.append(objective())
    assert len(set(jaxprs)) == 5


@pytest.mark.parametrize("is_learned", [True, False])
def test_the_auxiliary_priors_are_all_that_is_learned_of_priors(
    is_learned, tiny_config
):
    model = make(tiny_config, "mmvae_plus", learned_prior=is_learned)
    params = jax.eval_shape(model.init, KEY)
    own = {"auxiliary_priors"} if is_learned else set()
    assert set(params) == {"encoders", "decoders"} | own
    if is_learned:
        assert params["auxiliary_priors"].shape == (M, E)


def test_clusters_are_the_prior_of_cmvae(tiny_config):
    model = make(tiny_config, "cmvae", prior_components=3)
    params = jax.jit(model.init)(KEY)
    means = np.asarray(params["clusters"]["mean"])
    assert means.shape == (3, D) and 0.5 < np.abs(means).max() <= 1
    clusters = {"mean": 40 * means, "log_weight": np.zeros(3, np.float32)}
    far = params | {"clusters": clusters}
    z = np.float64(jax.jit(model.sample_prior, static_argnums=2)(far, KEY, 900))
    offsets = z[:, None, :D] - 40 * means
    nearest = np.square(offsets).sum(-1).argmin(1)
    assert np.bincount(nearest, minlength=3).min() > 200
    rest = np.concatenate([offsets[np.arange(900), nearest], z[:, D:]], axis=1)
    assert scipy.stats.kstest(rest.ravel(), "norm").pvalue > 1e-3
    expected = scipy.special.logsumexp(
        scipy.stats.norm.logpdf(offsets).sum(-1) - np.log(3), axis=1
    )
    expected += scipy.stats.norm.logpdf(z[:, D:]).sum(-1)
    np.testing.assert_allclose(
        jax.jit(model.log_prior)(far, np.float32(z)), expected, rtol=1e-4, atol=1e-3
    )


def test_the_prior_is_an_expert_as_asked(tiny_config):
    experts = fake_experts("dmvae")
    shared = jax.tree.map(lambda field: field[..., :D], experts)
    for choice, flags in (
        ("paper", (True, False)),
        ("released", (True, False)),
        ("always", (True, True)),
        ("never", (False, False)),
    ):
        model = make(tiny_config, "dmvae", prior_expert=choice)
        for subset in SUBSETS:
            q = model.posterior({}, experts, np.array(subset), KEY)
            with_prior = flags[sum(subset) == 1]
            expected = posteriors.product_of_experts(shared, subset, with_prior)
            assert_close(q.mean[:, :D], expected.mean)


def test_as_many_private_dimensions_as_shared_ones_by_default(tiny_config):
    for name in NAMES:
        assert make(tiny_config, name, private_dim=0).latent_dim == D + M * D
        assert make(tiny_config, name).latent_dim == D + M * E


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("dmvae", "private_dim", -1, "{} must be >= 0, got -1"),
        (
            "mopoe",
            "private_dim",
            2,
            "{} is no option of the model 'mopoe', which reads prior_expert, "
            "subset_estimator; a model is chosen, with its options, by "
            "--config=FILE.py:mopoe",
        ),
        (
            "mmvae_plus",
            "private_draw",
            "one",
            "unknown {} 'one'; choose one of own, shared",
        ),
    ],
)
def test_errors_of_configs(name, field, value, message, tiny_config):
    config = tiny_config(name, **{field: value})
    message = re.escape(message.format(f"config.model.options.{field}"))
    with pytest.raises(UsageError, match=f"^{message}$"):
        models.make_model(config, SHAPES)


@pytest.mark.parametrize("name", ["mmvae_plus", "dmvae", "contrastive"])
def test_shared_and_private_latents_have_all_places_of_a_spatial_network(
    name, tiny_config
):
    shared, own = 4, 8
    config = tiny_config(name, shared, private_dim=own)
    config.modality.network = "spatial"
    config.modality.network_options = {"channels": (4,), "outer_kernel": 3}
    shape = (4, 4, 1)
    model = models.make_model(config, dict.fromkeys(("m0", "m1"), shape))
    params = model.init(KEY)
    # Parameters of the former layout, the parts as rows of the map, are refused.
    assert "maps" in params["decoders"]["m0"]["params"]
    z = jnp.zeros((1, shared + 2 * own))
    slopes = jax.jacobian(lambda z: model.decode(params, z)["m0"])(z)[0, :, :, 0, 0]
    is_moved = jnp.any(slopes != 0, axis=(0, 1))
    assert is_moved[: shared + own].all() and not is_moved[shared + own :].any()
    # Both parts have places above (0, 1) and below (2, 3), with pixels of their own.
    quarters = jnp.any(slopes != 0, axis=1)
    for part in (quarters[:, :shared], quarters[:, shared : shared + own]):
        above, below = jnp.split(part, 2, axis=1)
        assert above[0].all() and not above[3].any()
        assert below[3].all() and not below[0].any()


def test_parts_of_latents_must_each_fill_the_places(tiny_config):
    config = tiny_config("dmvae", 6, private_dim=6)  # 12 of both fill four places
    config.modality.network = "spatial"
    config.modality.network_options = {"channels": (4,), "outer_kernel": 3}
    with pytest.raises(UsageError, match="dimensions, 6, must be a multiple of the 4"):
        models.make_model(config, dict.fromkeys(("m0", "m1"), (4, 4, 1)))
