"""Coordination-based models, mmJSD and MMVM against their equations in float64."""

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, elbo, posteriors
from mmvae_jax.mathematics.elbo import TermWeights
from mmvae_jax.models import coordination, jensen_shannon, mixtures, mmvm
from mmvae_jax.models.coordination import coordinated_elbo
from mmvae_jax.types import Gaussian

SHAPES = {"m0": (2, 2, 1), "m1": (2, 2, 1), "m2": (2, 2, 1)}
M, B, D = 3, 5, 4
MODALITIES = tuple(SHAPES)
COORDINATED = ("jmvae", "jmvae_kl", "telbo", "mvtcae", "crmvae")
WITH_NETWORK = ("jmvae", "jmvae_kl", "telbo")
KEY = jax.random.key(0)
SCALE = 0.75
RNG = np.random.default_rng(0)
EXPERTS = Gaussian(*(jnp.float32(RNG.normal(size=(M, B, D))) for _ in range(2)))
LOADINGS = {m: RNG.normal(size=(D, 3)) for m in MODALITIES}
BATCH = {m: np.float32(RNG.normal(size=(B, 3))) for m in MODALITIES}


@pytest.fixture(scope="module")
def make(tiny_config):
    def build(name, shapes=SHAPES, latent_dim=D, **options):
        config = tiny_config(name, latent_dim, **options)
        config.modality.network_options.widths = ()
        return models.make_model(config, shapes)

    return build


def params_of(model):
    """Parameters drawn with NumPy, which compiles nothing."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(rng.uniform(-1, 1, x.shape) / np.sqrt(x.shape[0])),
        jax.eval_shape(model.init, KEY),
    )


@pytest.fixture(scope="module")
def batch(tiny_images):
    return {m: x / np.float32(255) for m, x in tiny_images(SHAPES, B).items()}


# The reference, in float64 and without any function of the package.


def float64(q):
    return Gaussian(*(np.float64(field) for field in q))


def row(q, index):
    return Gaussian(*(field[index] for field in q))


def kl64(q, p=None):
    """KL(q||p) [..., B], of the prior where p is None."""
    q_std = np.exp(q.log_variance / 2)
    p_mean, p_std = (0.0, 1.0) if p is None else (p.mean, np.exp(p.log_variance / 2))
    ratio = (q_std**2 + (q.mean - p_mean) ** 2) / (2 * p_std**2)
    return (np.log(p_std / q_std) + ratio - 0.5).sum(-1)


def product64(experts):
    precision = np.exp(-experts.log_variance)
    mean = (precision * experts.mean).sum(0) / precision.sum(0)
    return Gaussian(mean, -np.log(precision.sum(0)))


def log_likelihood64(model, params, z, batch):
    """modality -> [..., B] of z [..., B, D]: the Laplace density of decoded pixels."""
    values = {m: np.zeros(z.shape[:-1]) for m in batch}
    for index in np.ndindex(z.shape[:-2]):
        for m, mean in model.decode(params, jnp.float32(z[index])).items():
            density = scipy.stats.laplace.logpdf(batch[m], mean, SCALE)
            values[m][index] = density.sum((1, 2, 3))
    return values


@pytest.fixture
def drawn(monkeypatch):
    """What is sampled while a test runs: [(distribution, samples)]."""
    seen, sample = [], distributions.sample

    def recording(q, key, shape=()):
        seen.append((float64(q), np.float64(sample(q, key, shape))))
        return jnp.float32(seen[-1][1])

    monkeypatch.setattr(distributions, "sample", recording)
    return seen


@pytest.fixture
def without_noise(monkeypatch):
    """Samples are means: what is left is a function of the distributions."""
    monkeypatch.setattr(distributions, "sample", lambda q, key, shape=(): q.mean)


def assert_close(actual, expected, **tolerance):
    tolerance = {"rtol": 2e-5, "atol": 2e-5} | tolerance
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected
    )


def published_loss(name, options, beta, own, cross):
    """The losses as published, of terms [B] in float64."""
    joint, alone = own["joint"], own["alone"]
    prior, coordination = cross["prior"], cross["coordination"]
    if name == "jmvae":
        value = -joint + beta * prior
    elif name == "jmvae_kl":
        alpha = options.get("alpha", 0.1)
        value = -joint + beta * (prior + alpha * coordination)
    elif name == "telbo":
        value = -joint + beta * prior - alone + beta * cross["unimodal_prior"]
    elif name == "mvtcae":
        alpha = options.get("alpha", 5 / 6)
        bottlenecks = (1 - alpha) * prior + alpha / M * coordination
        value = -(M - alpha) / M * joint + beta * bottlenecks
    elif options.get("weights") == "released":
        value = -(joint + alone) / 2 + beta * (prior + coordination)
    else:
        weight = 1 / (M + 1)
        value = weight * (-joint - alone + beta * (prior + coordination))
    return value.mean()


CASES = [
    ("jmvae", {}),
    ("jmvae_kl", {}),
    ("jmvae_kl", {"alpha": 2.0}),
    ("telbo", {}),
    ("telbo", {"decoder_gradients": "joint"}),
    ("mvtcae", {}),
    ("mvtcae", {"alpha": 0.2}),
    ("crmvae", {}),
    ("crmvae", {"weights": "released"}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_coordination_is_that_of_brute_force(name, options, make, batch, drawn):
    model, beta = make(name, **options), 2.5
    params = params_of(model)
    rows = float64(model.encode(params, batch))
    loss, terms = model.objective(params, batch, KEY, jnp.float32(beta))
    joint, z = drawn[0]
    # The joint posterior is the network's, or the product of the experts.
    if name in ("jmvae_kl", "telbo"):
        expected = row(rows, M)
    elif name == "jmvae":
        expected = float64(model.mixture_posterior(params, rows, np.ones(M, bool))[0])
        expected = row(expected, 0)
    else:
        expected = product64(rows)
    assert_close(joint, expected)
    likelihoods = log_likelihood64(model, params, z, batch)
    experts, alone = row(rows, slice(M)), np.zeros(B)
    is_reconstructing = name in ("telbo", "crmvae")
    assert len(drawn) == 1 + is_reconstructing  # no decoding that nothing asks for
    if is_reconstructing:
        own, z = drawn[1]
        assert_close(own, experts)
        found = log_likelihood64(model, params, z, batch)
        alone = sum(found[m][i] for i, m in enumerate(MODALITIES))
    divergences = {
        "prior": kl64(joint),
        "coordination": sum(kl64(joint, row(experts, m)) for m in range(M)),
        "unimodal_prior": sum(kl64(row(experts, m)) for m in range(M)),
    }
    if name == "jmvae":  # its rows are no experts
        divergences["coordination"] = np.zeros(B)
    reconstruction = {"joint": sum(likelihoods.values()), "alone": alone}
    assert_close(terms.log_likelihood, likelihoods)
    assert_close(terms.kl, divergences["prior"])
    assert_close(terms.auxiliary_log_likelihood, alone)
    auxiliary = "unimodal_prior" if name == "telbo" else "coordination"
    assert_close(terms.auxiliary_kl, divergences[auxiliary])
    value = published_loss(name, options, beta, reconstruction, divergences)
    assert float(loss) == pytest.approx(value, rel=2e-5)
    # What is logged as the ELBO has no weights.
    bound = sum(likelihoods.values()) - divergences["prior"]
    assert_close(elbo.elbo(terms), bound)


def head64(params, features):
    """The joint encoder's last layers, from the features of all modalities."""
    rows = [np.concatenate([m, v], -1) for m, v in zip(*features, strict=True)]
    h = np.maximum(np.concatenate(rows, -1), 0)
    heads = jax.tree.map(np.float64, params["joint"]["head"]["params"])
    mean, raw = (
        h @ heads[name]["kernel"] + heads[name]["bias"]
        for name in ("mean", "log_variance")
    )
    return Gaussian(mean, 20 * np.tanh(raw / 20))


def test_the_joint_encoder_is_a_network_of_all_features(make, batch):
    model = make("jmvae")
    params = params_of(model)
    features = model.encode(params, batch)
    everything = jnp.ones(M, bool)
    joint = model.posterior(params, features, everything, KEY)
    assert_close(joint, head64(params, float64(features)))
    with_experts = make("jmvae_kl")
    extended = params | {"encoders": params_of(with_experts)["encoders"]}
    rows = with_experts.encode(extended, batch)
    assert_close(row(rows, M), joint, rtol=1e-6, atol=1e-6)
    assert_close(
        with_experts.posterior(extended, rows, everything, KEY),
        row(rows, M),
        rtol=0,
        atol=0,
    )


SUBSETS = [
    np.isin(np.arange(M), subset)
    for size in range(1, M + 1)
    for subset in itertools.combinations(range(M), size)
]


@pytest.mark.parametrize("name", COORDINATED)
def test_posteriors_of_subsets(name, make, batch):
    """Products of what is observed; JMVAE's network is given zeros for the rest."""
    model = make(name)
    params = params_of(model)
    rows = model.encode(params, batch)
    posterior = jax.jit(model.posterior)
    for subset in SUBSETS:
        q = posterior(params, rows, subset, KEY)
        if name == "jmvae":
            zeroed = {m: x * subset[i] for i, (m, x) in enumerate(batch.items())}
            features = float64(model.encode(params, zeroed))
            expected = head64(params, features)
        elif subset.all() and name in WITH_NETWORK:
            expected = row(rows, M)
        else:
            experts = row(float64(rows), np.flatnonzero(subset))
            expected = product64(experts)
        assert_close(q, expected)


def linear_decoders():
    """modality -> log-density of a linear Gaussian decoder."""

    def build(loadings):
        def log_likelihood(z, x):
            residual = (x - z @ jnp.float32(loadings)) / SCALE
            constant = np.log(SCALE) + 0.5 * np.log(2 * np.pi)
            return jnp.sum(-0.5 * residual**2 - constant, axis=-1)

        return log_likelihood

    return {m: build(loadings) for m, loadings in LOADINGS.items()}


def coordinated(experts, key=KEY, **options):
    """The objective with the product of the experts and the decoders of this file."""
    joint = posteriors.product_of_experts(experts, jnp.ones(M, bool), False)
    return coordinated_elbo(
        joint,
        experts,
        BATCH,
        key,
        log_likelihoods=linear_decoders(),
        unimodal_log_likelihoods=linear_decoders(),
        **options,
    )


def mmjsd_terms(experts, key=KEY, **options):
    return jensen_shannon.jensen_shannon_elbo(
        experts, BATCH, key, log_likelihoods=linear_decoders(), **options
    )


def mixture_prior(experts, key=KEY):
    return mmvm.mixture_prior_elbos(
        experts, BATCH, key, log_likelihoods=linear_decoders()
    )


BOUNDS = {
    "coordination": coordinated,
    "mmjsd": mmjsd_terms,
    "mmjsd, prior not decoded": lambda *args: mmjsd_terms(*args, decode_prior=False),
    "mmvm": mixture_prior,
}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_elbo_is_a_bound_on_the_log_likelihood(name):
    """In expectation, for every example; of independent VAEs where there are M."""
    draw = jax.jit(jax.vmap(lambda key: elbo.elbo(BOUNDS[name](EXPERTS, key))))
    samples = np.float64(draw(jax.random.split(KEY, 2_000)))
    error = samples.std(0) / np.sqrt(len(samples))

    def exact(names):
        loadings = np.concatenate([LOADINGS[m] for m in names], axis=1)
        x = np.concatenate([BATCH[m] for m in names], axis=1)
        noise = SCALE**2 * np.eye(x.shape[1])
        return scipy.stats.multivariate_normal.logpdf(
            x, cov=loadings.T @ loadings + noise
        )

    groups = [(m,) for m in MODALITIES] if name == "mmvm" else [MODALITIES]
    assert (samples.mean(0) + 5 * error < sum(exact(group) for group in groups)).all()


@pytest.mark.parametrize("name", ["coordination", "mmjsd", "mmvm"])
def test_gradients_are_finite_at_extreme_log_variances(name):
    @jax.jit
    @jax.value_and_grad
    def loss(experts):
        weights = TermWeights(0.5, 0.25, 0.5, 2.0)
        return elbo.loss(BOUNDS[name](experts, KEY), 1.0, weights)

    mixed = np.random.default_rng(1).choice([-1, 1], (M, B, D))
    for signs in (np.ones((M, B, D)), -np.ones((M, B, D)), mixed):
        value, gradient = loss(Gaussian(EXPERTS.mean, np.float32(30 * signs)))
        assert np.isfinite(value)
        for field in gradient:
            assert np.isfinite(field).all() and np.asarray(field).any()


def vae_loss(model, params, batch, beta):
    """The loss of the one VAE of a model, its samples being the means."""
    q = row(float64(model.encode(params, batch)), 0)
    found = log_likelihood64(model, params, q.mean, batch)
    return (beta * kl64(q) - sum(found.values())).mean()


@pytest.mark.parametrize(
    ("name", "options", "factor", "effective_beta"),
    [
        ("mvtcae", {}, 1 / 6, 1.0),
        ("mvtcae", {"alpha": 0.0}, 1.0, 1.0),
        # Both of its reconstructions are the same one, but its divergence is not.
        ("crmvae", {}, 1.0, 0.5),
        ("crmvae", {"weights": "released"}, 1.0, 1.0),
        ("mmvm", {"alpha": 1.0}, 1.0, 1.0),
        ("mmvm", {}, 1.0, 0.0),  # nothing is left of its prior
    ],
)
def test_with_one_modality_they_are_the_vae(
    name, options, factor, effective_beta, make, batch, without_noise
):
    model = make(name, {"m0": SHAPES["m0"]}, **options)
    params, one, beta = params_of(model), {"m0": batch["m0"]}, 2.0
    loss, _ = model.objective(params, one, KEY, beta)
    expected = factor * vae_loss(model, params, one, beta * effective_beta)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def losses(batch, beta, *described):
    """Of models with the parameters of the first one, where all have them."""
    params = params_of(described[0])
    return [float(model.objective(params, batch, KEY, beta)[0]) for model in described]


@pytest.mark.slow
def test_coefficients_lead_to_the_neighbours(make, batch, without_noise):
    kl, plain = make("jmvae_kl", alpha=0.0), make("jmvae")
    assert len(set(losses(batch, 2.0, kl, plain))) == 1
    # MVTCAE without coordination is MVAE without the prior expert.
    mvtcae, mvae = make("mvtcae", alpha=0.0), make("mvae", prior_expert="never")
    first, second = losses(batch, 2.0, mvtcae, mvae)
    assert first == pytest.approx(second, rel=1e-6)
    # The released CRMVAE is the documented one with twice its beta.
    released, documented = make("crmvae", weights="released"), make("crmvae")
    (first,), (second,) = losses(batch, 1.5, released), losses(batch, 3.0, documented)
    assert first * 2 / (M + 1) == pytest.approx(second, rel=1e-6)
    # MMVM with the standard prior alone are VAEs side by side.
    tied, unimodal = make("mmvm", alpha=1.0), make("unimodal", latent_dim=M * D)
    first, second = losses(batch, 2.0, tied, unimodal)
    assert first == pytest.approx(second, rel=1e-6)


def test_what_agrees_is_not_pulled_together():
    one = row(EXPERTS, 0)
    same = Gaussian(*(jnp.stack(M * [field]) for field in one))
    terms = coordinated_elbo(one, same, BATCH, KEY, log_likelihoods=linear_decoders())
    assert not terms.auxiliary_kl.any()
    assert not mixture_prior(same).auxiliary_kl.any()
    # A product of equal experts is narrower than each of them ...
    expected = M * D / 2 * (np.log(M) + 1 / M - 1)
    assert_close(coordinated(same).auxiliary_kl, np.full(B, expected))
    # ... and mmJSD compares with the prior too.
    standard = Gaussian(*(jnp.zeros((M, B, D)) for _ in range(2)))
    assert_close(mmjsd_terms(standard).auxiliary_kl, np.zeros(B), atol=1e-6)
    assert (mmjsd_terms(same).auxiliary_kl > 0.01).all()


# TELBO


def gradients(model, params, batch):
    def loss(params):
        return model.objective(params, batch, KEY, 2.0)[0]

    return jax.grad(loss)(params)


def unimodal_gradient(model, params, batch):
    """Of the unimodal ELBOs with respect to their encoders, decoders fixed."""

    def loss(encoders):
        rows = model.encode(params | {"encoders": encoders}, batch)
        experts = row(rows, slice(M))
        z = distributions.sample(experts, jax.random.split(KEY)[1])
        gain = [
            model.log_likelihood(params, z[i], batch)[m]
            for i, m in enumerate(MODALITIES)
        ]
        kl = distributions.kl_to_standard_gaussian(experts).sum(0)
        return jnp.mean(2.0 * kl - sum(gain))

    return jax.grad(loss)(params["encoders"])


def test_stopped_gradients_are_two_stages_at_once(make, batch):
    """Joint encoder and decoders learn as in JMVAE, unimodal encoders as in VAEs."""
    stopped, whole = make("telbo"), make("telbo", decoder_gradients="joint")
    params = params_of(stopped)
    found, other, joint, expected = jax.jit(
        lambda params: (
            *(gradients(m, params, batch) for m in (stopped, whole, make("jmvae"))),
            unimodal_gradient(stopped, params, batch),
        )
    )(params)
    for part in ("decoders", "joint"):
        assert_close(found[part], joint[part], rtol=1e-4, atol=1e-6)
    assert_close(found["encoders"], other["encoders"], rtol=1e-5, atol=1e-6)
    assert_close(other["joint"], joint["joint"], rtol=1e-4, atol=1e-6)
    for one, with_unimodal in zip(
        jax.tree.leaves(found["decoders"]),
        jax.tree.leaves(other["decoders"]),
        strict=True,
    ):
        assert np.abs(one - with_unimodal).max() > 0.1
    assert_close(found["encoders"], expected, rtol=1e-4, atol=1e-5)


# mmJSD


def dynamic_prior64(components):
    """The weighted geometric mean of components [S, B, D], uniform weights."""
    precision = np.exp(-components.log_variance) / len(components.mean)
    mean = (precision * components.mean).sum(0) / precision.sum(0)
    return Gaussian(mean, -np.log(precision.sum(0)))


@pytest.mark.parametrize("decode_prior", [True, False])
def test_mmjsd_is_that_of_brute_force(decode_prior, make, batch, drawn):
    model = make("mmjsd", subset_estimator="exact", decode_prior=decode_prior)
    params, beta = params_of(model), 2.5
    rows = float64(model.encode(params, batch))
    prior = np.zeros((1, B, D))
    components = Gaussian(*(np.concatenate([field, prior]) for field in rows))
    loss, terms = model.objective(params, batch, KEY, jnp.float32(beta))
    ((decoded, z),) = drawn
    assert_close(decoded, components if decode_prior else rows)
    found = log_likelihood64(model, params, z, batch)
    likelihoods = {m: values.mean(0) for m, values in found.items()}
    f = dynamic_prior64(components)
    divergence = np.mean([kl64(row(components, k), f) for k in range(M + 1)], axis=0)
    assert_close(terms.log_likelihood, likelihoods)
    assert_close(terms.auxiliary_kl, divergence)
    assert_close(terms.kl, kl64(decoded).mean(0))
    expected = (beta * divergence - sum(likelihoods.values())).mean()
    assert float(loss) == pytest.approx(expected, rel=2e-5)


def test_which_components_mmjsd_decodes(make, batch, drawn):
    """One for each example; prior and experts have equal shares."""
    for decode_prior in (True, False):
        drawn.clear()
        model = make("mmjsd", decode_prior=decode_prior)
        params = params_of(model)
        experts = float64(model.encode(params, batch))
        model.objective(params, batch, KEY, 1.0)
        ((q, z),) = drawn
        assert z.shape == (B, D)
        rows = [field for field in experts.mean]
        rows += [np.zeros((B, D))] * decode_prior
        counts = [int((q.mean == field).all(1).sum()) for field in rows]
        share = B / len(rows)
        assert sum(counts) == B
        assert all(np.floor(share) <= n <= np.ceil(share) for n in counts)


def test_the_dynamic_prior_is_a_normalised_geometric_mean():
    """By quadrature in one dimension, with weights that differ."""
    means, log_variances = np.array([-1.0, 0.5, 2.0]), np.array([0.3, -1.0, 1.2])
    weights = np.array([0.2, 0.3, 0.5])
    found = posteriors.geometric_mean(
        Gaussian(*(jnp.float32(x[:, None, None]) for x in (means, log_variances))),
        jnp.float32(weights),
    )

    def density(z):
        scales = np.exp(log_variances / 2)
        return np.exp(weights @ scipy.stats.norm.logpdf(z, means, scales))

    def moment(power):
        return scipy.integrate.quad(lambda z: z**power * density(z), -20, 20)[0]

    mean = moment(1) / moment(0)
    assert found.mean.item() == pytest.approx(mean, rel=1e-5)
    variance = moment(2) / moment(0) - mean**2
    assert np.exp(found.log_variance.item()) == pytest.approx(variance, rel=1e-5)


# MMVM


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_mmvm_is_that_of_brute_force(alpha, make, batch, drawn):
    model, beta = make("mmvm", alpha=alpha), 2.5
    params = params_of(model)
    loss, terms = model.objective(params, batch, KEY, jnp.float32(beta))
    ((experts, z),) = drawn
    assert_close(experts, float64(model.encode(params, batch)))
    # The latent vectors of all modalities are end to end.
    found = log_likelihood64(model, params, np.concatenate(list(z), -1), batch)
    rows = [row(experts, m) for m in range(M)]
    pairs = [kl64(q, p) for q, p in itertools.product(rows, rows)]
    standard = sum(kl64(q) for q in rows)
    assert_close(terms.log_likelihood, found)
    assert_close(terms.kl, standard)
    assert_close(terms.auxiliary_kl, sum(pairs) / M)
    divergence = (1 - alpha) / M * sum(pairs) + alpha * standard
    value = (beta * divergence - sum(found.values())).mean()
    assert float(loss) == pytest.approx(value, rel=2e-5)


def test_mmvm_bounds_the_divergence_from_the_mixture():
    """By samples: the released pairwise terms are at least the KL to the mixture."""
    experts = float64(EXPERTS)
    scale = np.exp(experts.log_variance / 2)
    z = experts.mean + scale * RNG.normal(size=(4_000, M, B, D))
    density = scipy.stats.norm.logpdf(z[:, :, None], experts.mean, scale[None, None])
    log_q = density.sum(-1)  # [N, m, n, B], of a sample of m under expert n
    own = np.stack([log_q[:, m, m] for m in range(M)], 1)
    mixture = scipy.special.logsumexp(log_q, axis=2) - np.log(M)
    exact = (own - mixture).mean(0).sum(0)
    assert (np.asarray(mixture_prior(EXPERTS).auxiliary_kl) > exact).all()


def test_mmvm_generates_what_is_absent_from_what_is_observed(make, batch):
    """Each observed modality for its share; what is observed from its own."""
    model = make("mmvm")
    params = params_of(model)
    experts = model.encode(params, batch)
    for subset in SUBSETS:
        q = model.posterior(params, experts, subset, KEY)
        parts = np.asarray(q.mean).reshape(B, M, D)
        for m in range(M):
            sources = [m] if subset[m] else np.flatnonzero(subset)
            counts = [
                int((parts[:, m] == experts.mean[source]).all(1).sum())
                for source in sources
            ]
            share = B / len(sources)
            assert sum(counts) == B
            assert all(np.floor(share) <= n <= np.ceil(share) for n in counts)


# Configs


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("jmvae_kl", "alpha", -0.1, "{} must be >= 0, got -0.1"),
        ("mvtcae", "alpha", 1.5, "{} must be in [0, 1], got 1.5"),
        ("mmvm", "alpha", -1.0, "{} must be in [0, 1], got -1.0"),
        (
            "crmvae",
            "weights",
            "code",
            "unknown {} 'code'; choose one of documented, released",
        ),
        (
            "telbo",
            "decoder_gradients",
            "staged",
            "unknown {} 'staged'; choose one of stopped, joint",
        ),
    ],
)
def test_errors_of_configs(name, field, value, message, make):
    message = re.escape(message.format(f"config.model.options.{field}"))
    with pytest.raises(UsageError, match=f"^{message}$"):
        make(name, **{field: value})


@pytest.mark.parametrize(
    ("kind", "options", "beta", "prior", "between"),
    [
        ("MVTCAE", {}, 2.5, 0.5, 0.5),
        ("CRMVAE", {}, 2.5, 2.5, 2.5),
        ("CRMVAE", {"weights": "released"}, 0.1, 0.2, 0.2),
        ("JMVAE_KL", {}, 1.0, 1.0, 0.1),
        ("JMVAE", {}, 1.0, 1.0, 0.0),
    ],
)
def test_effective_betas_of_published_values(kind, options, beta, prior, between):
    """Those of docs/models.md, with five modalities and the default options."""
    given = models.default_options(kind.lower()) | options
    weights = getattr(coordination, kind).weights(given, 5)
    assert beta * weights.kl / weights.log_likelihood == pytest.approx(prior)
    found = beta * weights.auxiliary_kl / weights.log_likelihood
    assert found == pytest.approx(between)


def test_every_model_is_in_the_tables():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    equations, betas, *_ = text.split("## ")
    named = []
    for part in (equations, betas):
        rows = [line.split("|")[1] for line in part.splitlines() if line[:3] == "| `"]
        named.append(set(re.findall(r"`(\w+)`", " ".join(rows))))
    assert named[0] == set(models.MODELS)
    # The beta of a set of subsets is that of Eq. 2.
    plain = [name for name in models.MODELS if is_of_subsets(name)]
    assert set(models.MODELS) - set(plain) <= named[1] <= set(models.MODELS)


def is_of_subsets(name):
    return models.MODELS[name].options is mixtures.OPTIONS
