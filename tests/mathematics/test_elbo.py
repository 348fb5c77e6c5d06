import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import elbo, subsets
from mmvae_jax.types import Gaussian, ObjectiveTerms

M, B, D, F = 3, 8, 2, 3
SCALE = 0.7
MODALITIES = ("m0", "m1", "m2")
_RNG = np.random.default_rng(0)
EXPERTS = Gaussian(
    jnp.float32(_RNG.normal(size=(M, B, D))), jnp.float32(_RNG.normal(size=(M, B, D)))
)
LOADINGS = dict(zip(MODALITIES, _RNG.normal(size=(M, D, F)), strict=True))
BATCH = dict(zip(MODALITIES, np.float32(_RNG.normal(size=(M, B, F))), strict=True))
MIXTURE = subsets.custom_subsets(
    M, ((0,), (1, 2), (0, 1, 2)), (0.5, 0.125, 0.375), "released"
)


# The reference: a linear Gaussian decoder, everything in float64.


def product64(mask, prior_expert):
    mean, log_variance = (np.float64(f)[np.asarray(mask, bool)] for f in EXPERTS)
    precision = np.exp(-log_variance)
    total = precision.sum(0) + prior_expert
    return Gaussian((precision * mean).sum(0) / total, -np.log(total))


def kl64(q):
    terms = np.square(q.mean) + np.exp(q.log_variance) - 1 - q.log_variance
    return 0.5 * terms.sum(-1)


def log_likelihood64(modality, z, variance=0.0):
    """log p(x|z) [B]; its expectation where z has a variance [B, D]."""
    loadings = LOADINGS[modality]
    spread = (np.broadcast_to(variance, z.shape) @ np.square(loadings)).sum(-1)
    squares = np.square(BATCH[modality] - z @ loadings).sum(-1) + spread
    return -0.5 * squares / SCALE**2 - F * (np.log(SCALE) + 0.5 * np.log(2 * np.pi))


def expected64(modality, q):
    return log_likelihood64(modality, q.mean, np.exp(q.log_variance))


def components64(mixture):
    pairs = zip(mixture.masks, mixture.prior_expert, strict=True)
    return [product64(mask, prior) for mask, prior in pairs]


def elbo64(mixture):
    """L_S of Eq. 2 [B], in closed form."""
    return sum(
        weight * (sum(expected64(m, q) for m in MODALITIES) - kl64(q))
        for weight, q in zip(mixture.weights, components64(mixture), strict=True)
    )


# The same decoder as the objectives take it.


def decoder(modality, z, x):
    residual = (x - z @ jnp.float32(LOADINGS[modality])) / SCALE
    constant = np.log(SCALE) + 0.5 * np.log(2 * np.pi)
    return jnp.sum(-0.5 * residual**2 - constant, axis=-1)


def decoders(seen=None):
    """modality -> decoder; notes the latent vectors it is given in `seen`."""

    def build(modality):
        def log_likelihood(z, x):
            if seen is not None:
                seen.setdefault(modality, []).append(np.float64(z))
            return decoder(modality, z, x)

        return log_likelihood

    return {m: build(m) for m in MODALITIES}


def assert_terms_close(terms, log_likelihood, kl, auxiliary=(0.0, 0.0)):
    assert set(terms.log_likelihood) == set(MODALITIES)
    for modality, value in log_likelihood.items():
        np.testing.assert_allclose(
            terms.log_likelihood[modality], value, rtol=2e-5, atol=2e-5
        )
    np.testing.assert_allclose(terms.kl, kl, rtol=2e-5, atol=2e-6)
    for value, expected in zip(terms[2:], auxiliary, strict=True):
        np.testing.assert_allclose(
            value, np.broadcast_to(expected, B), rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize("estimator", elbo.SUBSET_ESTIMATORS)
@pytest.mark.parametrize("prior_expert", ["paper", "never"])
def test_with_the_full_set_it_is_the_plain_elbo(estimator, prior_expert):
    mixture, seen = subsets.full_set(M, prior_expert), {}
    terms = elbo.subset_elbo(
        EXPERTS,
        BATCH,
        jax.random.key(1),
        mixture=mixture,
        log_likelihoods=decoders(seen),
        estimator=estimator,
    )
    z = {m: values[0].reshape(B, D) for m, values in seen.items()}
    for m in MODALITIES:  # one latent vector for all modalities
        np.testing.assert_array_equal(z[m], z["m0"])
    q = product64([1, 1, 1], prior_expert == "paper")
    assert_terms_close(terms, {m: log_likelihood64(m, z[m]) for m in z}, kl64(q))


@pytest.mark.parametrize("estimator", elbo.SUBSET_ESTIMATORS)
def test_with_one_modality_all_members_of_the_family_are_the_vae(estimator):
    experts = Gaussian(*(field[:1] for field in EXPERTS))
    results = [
        elbo.subset_elbo(
            experts,
            BATCH,
            jax.random.key(2),
            mixture=build(1, "never"),
            log_likelihoods={"m0": decoders()["m0"]},
            estimator=estimator,
        )
        for build in (subsets.full_set, subsets.unimodal_subsets, subsets.powerset)
    ]
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)
    q = Gaussian(*(np.float64(field[0]) for field in EXPERTS))
    np.testing.assert_allclose(results[0].kl, kl64(q), rtol=2e-5)


def test_the_exact_estimator_is_the_weighted_sum_over_subsets():
    seen = {}
    terms = elbo.subset_elbo(
        EXPERTS,
        BATCH,
        jax.random.key(3),
        mixture=MIXTURE,
        log_likelihoods=decoders(seen),
        estimator="exact",
    )
    log_likelihood = {}
    for m, (z,) in seen.items():
        parts = zip(MIXTURE.weights, z.reshape(B, -1, D).swapaxes(0, 1), strict=True)
        log_likelihood[m] = sum(w * log_likelihood64(m, part) for w, part in parts)
    pairs = zip(MIXTURE.weights, components64(MIXTURE), strict=True)
    kl = sum(weight * kl64(q) for weight, q in pairs)
    assert_terms_close(terms, log_likelihood, kl)


@pytest.mark.parametrize("estimator", ["stratified", "random"])
def test_one_decoding_an_example_but_the_kl_of_all_subsets(estimator):
    seen = {}
    terms = elbo.subset_elbo(
        EXPERTS,
        BATCH,
        jax.random.key(4),
        mixture=MIXTURE,
        log_likelihoods=decoders(seen),
        estimator=estimator,
    )
    assert all(len(z) == 1 and z[0].shape == (B, D) for z in seen.values())
    pairs = zip(MIXTURE.weights, components64(MIXTURE), strict=True)
    kl = sum(weight * kl64(q) for weight, q in pairs)
    log_likelihood = {m: log_likelihood64(m, z) for m, (z,) in seen.items()}
    assert_terms_close(terms, log_likelihood, kl)


def simulate(objective, num_keys, **options):
    """The terms for many keys, fields [num_keys, B]."""

    @jax.jit
    @jax.vmap
    def draw(key):
        return objective(EXPERTS, BATCH, key, log_likelihoods=decoders(), **options)

    return jax.tree.map(np.float64, draw(jax.random.split(jax.random.key(5), num_keys)))


def assert_mean(samples, expected):
    """samples [num_keys, ...] have this mean, within five standard errors."""
    error = 5 * samples.std(0) / np.sqrt(len(samples)) + 1e-5 * np.abs(expected)
    assert (np.abs(samples.mean(0) - expected) < error).all()


def test_all_estimators_have_the_objective_as_expectation():
    batch_means = {}
    for estimator in elbo.SUBSET_ESTIMATORS:
        terms = simulate(elbo.subset_elbo, 4_000, mixture=MIXTURE, estimator=estimator)
        samples = elbo.elbo(terms)
        assert_mean(samples, elbo64(MIXTURE))
        for m in MODALITIES:
            pairs = zip(MIXTURE.weights, components64(MIXTURE), strict=True)
            expected = sum(weight * expected64(m, q) for weight, q in pairs)
            assert_mean(terms.log_likelihood[m], expected)
        batch_means[estimator] = samples.mean(1).std()
    # What stratification and exact enumeration are for.
    assert batch_means["exact"] < batch_means["stratified"] < batch_means["random"]


@pytest.mark.parametrize("prior_expert", [True, False])
def test_mvae_plus_adds_the_unimodal_elbos(prior_expert):
    mixture = subsets.full_set(M, "always" if prior_expert else "never")
    terms = simulate(elbo.subsampled_elbo, 4_000, mixture=mixture)
    assert_mean(elbo.elbo(terms), elbo64(mixture))
    alone = [product64(np.eye(M)[i], prior_expert) for i in range(M)]
    # No reconstruction across modalities, and no division by M (Eq. 84).
    gains = sum(expected64(m, q) for m, q in zip(MODALITIES, alone, strict=True))
    assert_mean(terms.auxiliary_log_likelihood, gains)
    np.testing.assert_allclose(
        terms.auxiliary_kl[0], sum(kl64(q) for q in alone), rtol=1e-5
    )
    np.testing.assert_allclose(
        terms.kl[0], kl64(product64([1, 1, 1], prior_expert)), rtol=1e-5
    )
    total = -elbo.loss(jax.tree.map(lambda x: x.mean(0), terms), 1.0)
    unimodal = sum(
        expected64(m, q) - kl64(q) for m, q in zip(MODALITIES, alone, strict=True)
    )
    expected = (elbo64(mixture) + unimodal).mean()
    assert total == pytest.approx(expected, rel=0.01)


def test_mvae_plus_decodes_each_modality_from_its_own_posterior():
    seen = {}
    terms = elbo.subsampled_elbo(
        EXPERTS,
        BATCH,
        jax.random.key(6),
        mixture=subsets.full_set(M),
        log_likelihoods=decoders(seen),
    )
    joint = {m: log_likelihood64(m, z[0]) for m, z in seen.items()}
    gains = sum(log_likelihood64(m, z[1]) for m, z in seen.items())
    alone = [product64(np.eye(M)[i], True) for i in range(M)]
    auxiliary = (gains, sum(kl64(q) for q in alone))
    assert_terms_close(terms, joint, kl64(product64([1, 1, 1], True)), auxiliary)


def test_unimodal_vaes_are_independent():
    seen = {}
    terms = elbo.unimodal_elbos(
        EXPERTS, BATCH, jax.random.key(7), log_likelihoods=decoders(seen)
    )
    own = [product64(np.eye(M)[i], False) for i in range(M)]
    log_likelihood = {m: log_likelihood64(m, z[0]) for m, z in seen.items()}
    assert_terms_close(terms, log_likelihood, sum(kl64(q) for q in own))
    samples = simulate(elbo.unimodal_elbos, 4_000)
    for m, q in zip(MODALITIES, own, strict=True):
        assert_mean(samples.log_likelihood[m], expected64(m, q))


TERMS = ObjectiveTerms(
    log_likelihood={"m0": jnp.array([-1.0, -2.0]), "m1": jnp.array([-3.0, 4.0])},
    kl=jnp.array([5.0, 6.0]),
    auxiliary_log_likelihood=jnp.array([-7.0, 8.0]),
    auxiliary_kl=jnp.array([9.0, 11.0]),
)


def test_beta_weights_the_kl_terms_and_nothing_else():
    # gains: (-1 - 3 - 7, -2 + 4 + 8) = (-11, 10); KL terms: (14, 17)
    for beta in (0.0, 1.0, 2.5):
        expected = (beta * (14 + 17) + 11 - 10) / 2
        assert elbo.loss(TERMS, jnp.float32(beta)) == pytest.approx(expected)
    slope = jax.grad(elbo.loss, argnums=1)(TERMS, jnp.float32(3.0))
    assert slope == pytest.approx(15.5)


def test_the_elbo_ignores_beta_and_what_is_no_part_of_the_bound():
    assert elbo.elbo(TERMS).tolist() == [-9.0, -4.0]


def test_unknown_estimator():
    message = (
        "unknown estimator of subsets 'all'; choose one of stratified, random, exact"
    )
    with pytest.raises(UsageError, match=message):
        elbo.subset_elbo(
            EXPERTS,
            BATCH,
            jax.random.key(0),
            mixture=MIXTURE,
            log_likelihoods=decoders(),
            estimator="all",
        )
