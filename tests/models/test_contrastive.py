"""The contrastive model against its equation in float64, its limits and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import mmvae_jax
from mmvae_jax import models, networks
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, elbo
from mmvae_jax.models import contrastive, private
from mmvae_jax.models.codes import contrast
from mmvae_jax.networks.layered import displace
from mmvae_jax.types import Gaussian, TokenShape

SHAPES = {"m0": (2, 2, 1), "m1": (2, 2, 1), "m2": (2, 2, 1)}
MODALITIES = tuple(SHAPES)
M, B, D, E, F = 3, 5, 4, 2, 3
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
CODES = np.float32(RNG.normal(size=(M, B, D)))
PRIVATE = Gaussian(*np.float32(RNG.normal(size=(2, M, B, E))))
JOINT = Gaussian(np.float32(RNG.normal(size=(B, D))), np.full((B, D), -1.0, np.float32))
LOADINGS = {m: np.float32(RNG.normal(size=(D + E, F))) for m in MODALITIES}
READERS = np.float32(RNG.normal(size=(M, D + E, D)))
BATCH = {m: np.float32(RNG.normal(size=(B, F))) for m in MODALITIES}
MIXTURE = {
    "mean": np.float32(RNG.normal(size=(6, D))),
    "log_variance": np.float32(RNG.normal(size=(6, D))),
    "log_weight": np.float32(RNG.normal(size=6)),
}
SCALE = 3.0
EVERYTHING = np.ones((M, 1), bool)


def terms_of(codes=CODES, consistency=0.5, seen=None, **changes):
    """`contrastive_terms` with linear decoders and encoders that note their inputs."""
    seen = {} if seen is None else seen

    def decoder(modality):
        def log_likelihood(z, x):
            seen[modality] = z
            return -jnp.sum(jnp.square(x - z @ LOADINGS[modality]), axis=-1)

        return log_likelihood

    def encode_generated(z):
        seen["generated"] = z
        return jnp.stack([z[m] @ READERS[i] for i, m in enumerate(MODALITIES)])

    options = {
        "log_code_prior": lambda s: private.log_mixture_prob(MIXTURE, s),
        "log_likelihoods": {m: decoder(m) for m in MODALITIES},
        "encode_generated": encode_generated,
        "scale": jnp.float32(SCALE),
        "consistency": consistency,
    }
    shared = Gaussian(jnp.asarray(codes), jnp.zeros_like(codes))
    arguments = {"joint": JOINT, "private": PRIVATE} | changes
    return contrastive.contrastive_terms(
        shared, arguments["joint"], arguments["private"], BATCH, KEY, **options
    )


# The reference, in float64 and without any function of the package.


def unit64(x):
    x = np.float64(x)
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def log_match64(left, right):
    logits = SCALE * left @ right.T
    return np.diagonal(logits - scipy.special.logsumexp(logits, 1, keepdims=True))


def contrast64(codes):
    e = unit64(codes)
    pairs = [(m, n) for m in range(M) for n in range(M) if m != n]
    return sum(log_match64(e[m], e[n]) for m, n in pairs) / (M - 1)


def mixture64(s):
    std = np.exp(np.float64(MIXTURE["log_variance"]) / 2)
    logs = scipy.stats.norm.logpdf(s[:, None], np.float64(MIXTURE["mean"]), std).sum(-1)
    weights = scipy.special.softmax(np.float64(MIXTURE["log_weight"]))
    return scipy.special.logsumexp(logs, axis=1, b=weights)


def test_terms_are_those_of_the_equation():
    seen = {}
    terms = terms_of(seen=seen)
    s = np.float64(seen["m0"][:, :D])
    for m in MODALITIES:
        np.testing.assert_array_equal(seen[m][:, :D], seen["m0"][:, :D])
        residual = BATCH[m] - np.float64(seen[m]) @ LOADINGS[m]
        np.testing.assert_allclose(
            terms.log_likelihood[m], -(residual**2).sum(-1), rtol=1e-4
        )
        # The generated image has the same code, and another private vector.
        z = np.float64(seen["generated"][m])
        np.testing.assert_array_equal(z[:, :D], s)
        assert np.abs(z[:, D:] - seen[m][:, D:]).min() > 0
    mean, log_variance = (np.float64(x) for x in PRIVATE)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - log_variance - 1).sum((0, 2))
    std = np.exp(np.float64(JOINT.log_variance) / 2)
    kl += scipy.stats.norm.logpdf(s, np.float64(JOINT.mean), std).sum(-1)
    np.testing.assert_allclose(terms.kl, kl - mixture64(s), rtol=1e-4)
    gain = contrast64(CODES)
    for i, m in enumerate(MODALITIES):
        code = unit64(np.float64(seen["generated"][m]) @ READERS[i])
        gain = gain + 0.5 * log_match64(code, unit64(JOINT.mean))
    np.testing.assert_allclose(terms.auxiliary_log_likelihood, gain, rtol=1e-4)
    np.testing.assert_array_equal(terms.auxiliary_kl, 0)


def test_without_consistency_nothing_is_decoded_from_the_prior():
    seen = {}
    terms = terms_of(consistency=0.0, seen=seen)
    assert "generated" not in seen
    np.testing.assert_allclose(
        terms.auxiliary_log_likelihood, contrast64(CODES), rtol=1e-4
    )


def test_equal_codes_leave_the_contrast_at_chance():
    # No code says which example it is of: log B nats a modality are missing.
    codes = jnp.ones((M, B, D)) / 2
    np.testing.assert_allclose(
        contrast(codes, SCALE, EVERYTHING), -M * np.log(B), rtol=1e-5
    )


def test_contrast_is_highest_where_modalities_agree_on_codes_that_differ():
    orthogonal = jnp.broadcast_to(jnp.eye(B), (M, B, B))
    values = contrast(orthogonal, 50.0, EVERYTHING)
    np.testing.assert_allclose(values, 0, atol=1e-5)


@pytest.mark.slow
def test_no_reconstruction_reaches_the_code_and_no_consistency_its_scale():
    def bound(codes, private):
        terms = terms_of(codes, private=private)
        return jnp.mean(elbo.elbo(terms))

    of_codes, of_private = jax.grad(bound, (0, 1))(CODES, PRIVATE)
    np.testing.assert_array_equal(of_codes, 0)
    assert np.abs(of_private.mean).min() > 0
    # Through the joint code neither.
    of_joint = jax.grad(lambda q: jnp.sum(terms_of(joint=q).kl))(JOINT)
    np.testing.assert_array_equal(of_joint.mean, 0)
    # The contrast does reach it.
    gradient = jax.grad(lambda c: jnp.sum(contrast(c, SCALE, EVERYTHING)))(CODES)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("log_variance", [-30.0, 30.0])
def test_gradients_are_finite_at_extreme_log_variances(log_variance):
    private = Gaussian(PRIVATE.mean, jnp.full((M, B, E), log_variance))

    def loss(private):
        return elbo.loss(terms_of(private=private), jnp.float32(1.0))

    for leaf in jax.tree.leaves(jax.grad(loss)(private)):
        assert np.isfinite(leaf).all()


def test_mixture_with_one_component_is_a_gaussian():
    one = {k: jnp.asarray(x[:1]) for k, x in MIXTURE.items()}
    expected = distributions.log_prob(
        Gaussian(one["mean"][0], one["log_variance"][0]), JOINT.mean
    )
    found = private.log_mixture_prob(one, JOINT.mean)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_samples_of_the_mixture_have_its_moments():
    s = np.float64(private.sample_mixture(MIXTURE, KEY, 100_000))
    weights = scipy.special.softmax(np.float64(MIXTURE["log_weight"]))
    mean = weights @ MIXTURE["mean"]
    second = weights @ (MIXTURE["mean"] ** 2 + np.exp(MIXTURE["log_variance"]))
    np.testing.assert_allclose(s.mean(0), mean, atol=0.05)
    np.testing.assert_allclose((s**2).mean(0), second, rtol=0.05)


# The model.


@pytest.fixture(
    scope="module", params=["same", pytest.param("conv", marks=pytest.mark.slow)]
)
def model(request, tiny_config):
    config = tiny_config(
        "contrastive",
        latent_dim=D,
        private_dim=E,
        code_components=3,
        code_network=request.param,
    )
    return models.make_model(config, SHAPES)


def test_the_network_of_the_code_is_the_one_that_is_named(model):
    encoders = model.init(KEY)["encoders"]["m0"]["params"]["first"]
    is_conv = "network" in encoders
    assert is_conv == any("StridedConv" in name for name in encoders.get("network", {}))
    assert is_conv == bool(model.convolutions)


def test_codes_lie_on_a_sphere_and_a_subset_has_their_direction(model, tiny_images):
    params = model.init(KEY)
    batch = {m: x / np.float32(255) for m, x in tiny_images(SHAPES, B).items()}
    experts = model.encode(params, batch)
    codes = np.float64(experts.mean[..., :D])
    np.testing.assert_allclose((codes**2).sum(-1), D * 0.9, rtol=1e-4)
    for subset in ([True, False, False], [False, True, True], [True] * 3):
        q = model.posterior(params, experts, np.array(subset), KEY)
        expected = np.sqrt(D * 0.9) * unit64(codes[subset].sum(0))
        np.testing.assert_allclose(q.mean[:, :D], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(q.log_variance[:, :D], np.log(0.1), rtol=1e-5)
        private = np.float64(q.mean[:, D:]).reshape(B, M, E)
        for i, is_observed in enumerate(subset):
            own = experts.mean[i, :, D:] if is_observed else np.zeros((B, E))
            np.testing.assert_allclose(private[:, i], own, rtol=1e-5)


@pytest.mark.slow
def test_the_consistency_teaches_decoders_only(tiny_config, tiny_images):
    batch = {m: x / np.float32(255) for m, x in tiny_images(SHAPES, B).items()}

    def gradient(consistency):
        config = tiny_config("contrastive", latent_dim=D, consistency=consistency)
        model = models.make_model(config, SHAPES)

        def loss(params):
            return model.objective(params, batch, KEY, jnp.float32(1.0))[0]

        return jax.jit(jax.grad(loss))(model.init(KEY))

    without, with_it = gradient(0.0), gradient(5.0)
    for name in ("encoders", "code_prior", "log_scale"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            without[name],
            with_it[name],
        )
    largest = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), without["decoders"], with_it["decoders"]
    )
    assert max(jax.tree.leaves(largest)) > 1e-3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("code_variance", 0.0, "{} must be in (0, 1), got 0.0"),
        ("code_components", 0, "{} must be >= 1, got 0"),
        ("code_prior", "vamp", "unknown {} 'vamp'; choose one of mixture, flow"),
        ("consistency", -1.0, "{} must be >= 0, got -1.0"),
    ],
)
def test_errors_of_configs(field, value, message, tiny_config):
    config = tiny_config("contrastive", **{field: value})
    message = re.escape(message.format(f"config.model.options.{field}"))
    with pytest.raises(UsageError, match=f"^{message}$"):
        models.make_model(config, SHAPES)


# A flow as the prior of the code.


def with_flow(tiny_config, **options):
    small = {"flow_width": 8, "flow_depth": 1, "ode_steps": 20, "consistency": 0.0}
    config = tiny_config(
        "contrastive", latent_dim=D, private_dim=E, code_prior="flow", **small | options
    )
    config.modality.network_options.widths = ()
    return models.make_model(config, SHAPES)


@pytest.mark.slow
def test_the_density_of_a_flow_is_in_the_bound(tiny_config, tiny_images):
    """A flow without motion is N(0, I); one that moves has the density of its draws."""
    model, start = with_flow(tiny_config), with_flow(tiny_config).init(KEY)
    batch = {m: x / np.float32(255) for m, x in tiny_images(SHAPES, B).items()}
    objective, density = jax.jit(model.objective), jax.jit(model.log_prior)
    z = np.float32(RNG.normal(size=(2, B, D + M * E)))
    expected = scipy.stats.norm.logpdf(np.float64(z)).sum(-1)
    np.testing.assert_allclose(density(start, z), expected, rtol=1e-4)
    rng = np.random.default_rng(1)
    moving = jax.tree.map(
        lambda x: np.float32(x + 0.3 * rng.normal(size=x.shape)),
        start["code_prior_average"],
    )
    params = start | {"code_prior_average": moving}
    samples = np.float64(
        jax.jit(model.sample_prior, static_argnums=2)(params, KEY, 4_000)
    )[:, :D]
    # E_p[q(s) / p(s)] = 1 for every density q, here one near that of the samples.
    centre, spread = samples.mean(0), 0.7 * samples.std(0)
    whole = np.concatenate([samples, np.zeros((len(samples), M * E))], axis=1)
    log_p = np.float64(density(params, np.float32(whole)))
    log_p -= scipy.stats.norm.logpdf(np.zeros(M * E)).sum()
    log_q = scipy.stats.norm.logpdf(samples, centre, spread).sum(1)
    ratio = np.exp(log_q - log_p)
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.05 and abs(ratio.mean() - 1) < 4 * error
    assert np.abs(log_p - scipy.stats.norm.logpdf(samples).sum(1)).max() > 0.1
    # The terms have that density of the code that was drawn, and no other.
    terms, other = (objective(p, batch, KEY, 1.0)[1] for p in (start, params))
    assert np.abs(terms.kl - other.kl).min() > 1e-3
    for m in MODALITIES:
        np.testing.assert_array_equal(terms.log_likelihood[m], other.log_likelihood[m])


def test_the_flow_learns_and_the_code_does_not_learn_from_it(tiny_config, tiny_images):
    model = with_flow(tiny_config)
    (stage,) = model.stages
    kept = {"code_prior_average"}
    assert {*stage.learns, *kept} == set(jax.eval_shape(model.init, KEY))
    batch = {m: x / np.float32(255) for m, x in tiny_images(SHAPES, B).items()}
    params = jax.jit(model.init)(KEY)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: stage.objective(p, batch, KEY, 1.0)[0])(params)

    rng = np.random.default_rng(1)
    moved = jax.tree.map(
        lambda x: np.float32(x + rng.normal(size=x.shape)), params["code_prior"]
    )
    one, other = gradient(params), gradient(params | {"code_prior": moved})
    for name in ("encoders", "decoders", "log_scale"):
        jax.tree.map(np.testing.assert_array_equal, one[name], other[name])
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(one["code_prior"]))
    largest = models.MODELS["contrastive"].options["ema"].default
    for step, decay in ((0, 1 / 10), (90, 0.91), (10_000, largest)):
        averaged = stage.after_step(params | {"code_prior": moved}, batch, step)
        jax.tree.map(
            lambda new, old, now, decay=decay: np.testing.assert_allclose(
                new, decay * old + (1 - decay) * now, rtol=1e-4, atol=1e-6
            ),
            averaged["code_prior_average"],
            params["code_prior"],
            moved,
        )


@pytest.mark.slow
def test_training_with_a_flow_gives_its_loss_and_is_loaded(tmp_path, tiny_images):
    """Codes are two points here, of which a flow can learn much."""
    data = {m: np.tile(x, (16, 1, 1, 1)) for m, x in tiny_images(SHAPES, 2).items()}
    fitted = mmvae_jax.fit(
        data,
        model="contrastive",
        num_steps=150,
        latent_dim=D,
        learning_rate=1e-2,
        is_shown=False,
        options={"code_prior": "flow", "flow_width": 16, "ode_steps": 5, "ema": 0.9},
        config={"modality.network_options.widths": (8,)},
    )
    history = [row["train/prior_flow"] for row in fitted.history]
    assert np.isfinite(history).all()
    assert np.mean(history[-20:]) < 0.8 * np.mean(history[:5])
    loaded = mmvae_jax.load(mmvae_jax.export(fitted, tmp_path / "model"))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, fitted.params)
    jax.tree.map(
        np.testing.assert_array_equal,
        mmvae_jax.score(loaded, data),
        mmvae_jax.score(fitted, data),
    )


# The decoder of layers.


def test_whole_pixels_are_shifted_and_halves_are_averaged():
    image = np.float32(RNG.normal(size=(1, 5, 6)))
    moved = displace(image, np.float32([[2.0, -1.0]]))[0]
    expected = np.zeros((5, 6))
    expected[2:, :5] = image[0, :3, 1:]
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    half = displace(image, np.float32([[0.5, 0.0]]))[0]
    padded = np.pad(image[0], ((1, 0), (0, 0)))
    np.testing.assert_allclose(half, (padded[1:] + padded[:-1]) / 2, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 8])
def test_the_layered_decoder_has_images_of_any_size(size):
    shape = (size, size, 3)
    _, decoder = networks.make_networks("layered", shape, D, widths=(6,))
    z = jnp.ones((2, D))
    output, _ = decoder.init_with_output(KEY, z)
    assert output.shape == (2, *shape)


# The comparison.


def test_contrast_is_among_what_is_observed():
    observed = np.array([[1, 1, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 0, 0, 1]], bool)
    codes = np.where(observed[..., None], CODES, np.float32(0))
    found = contrast(codes, SCALE, observed)
    expected = np.zeros(B)
    for b in range(B):
        there = np.flatnonzero(observed[:, b])
        for m in there:
            for n in set(there) - {m}:
                columns = np.flatnonzero(observed[n])
                logits = SCALE * np.float64(codes[n, columns]) @ np.float64(codes[m, b])
                own = logits[columns == b][0]
                share = 1 / (len(there) - 1)
                expected[b] += share * (own - scipy.special.logsumexp(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda c: jnp.sum(contrast(c, SCALE, observed)))(codes)
    assert np.isfinite(gradient).all()


def test_tokens_cannot_be_encoded_again(tiny_config):
    config = tiny_config("contrastive")
    config.modalities.m1 = {"likelihood": "categorical"}
    with pytest.raises(UsageError, match="m1 is of tokens"):
        models.make_model(config, {"m0": (2, 2, 1), "m1": TokenShape(3, 4)})
