"""Densities fitted to latents, in place of a prior: what they recover, and are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from toy_models import toy_model, toy_split

from configs import base
from mmvae_jax import models
from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import UsageError, fields_of
from mmvae_jax.evaluation import evaluate, samplers, samples
from mmvae_jax.evaluation.metric import EvaluationData, reasons
from mmvae_jax.evaluation.metrics import METRICS
from mmvae_jax.types import Gaussian

KEY = jax.random.key(0)
WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-3.0, 8.0], [2.0, 5.0]])
COVARIANCES = np.array([[[0.5, 0.4], [0.4, 0.5]], [[1.0, -0.6], [-0.6, 0.8]]])


def settings(sampler, **changes):
    config = base.get_config().eval
    config.update({"sampler": sampler, "batch_size": 500, **changes})
    return config


def model_of(z, **fields):
    """A model whose posteriors are these latents, with hardly any variance."""

    def encode(params, batch):
        return Gaussian(batch["m0"][None], jnp.full((1, *batch["m0"].shape), -30.0))

    def posterior(params, experts, subset, key):
        return jax.tree.map(lambda field: field[0], experts)

    model = toy_model(("m0",), z.shape[1], encode=encode, posterior=posterior, **fields)
    return model, toy_split({"m0": np.float32(z)}, np.zeros(len(z)))


def split_of(num):
    return toy_split({"m0": np.zeros((num, 2), np.float32)}, np.zeros(num))


def draws(z, sampler, num=20_000, fields=(), **changes):
    model, train = model_of(z, **dict(fields))
    fitted = samplers.fit(settings(sampler, **changes), model, None, train, KEY)
    assert fitted.sampler == sampler
    found = np.float64(fitted.sample_prior(None, jax.random.key(1), num))
    assert found.shape == (num, z.shape[1])
    return found


def known(num):
    """Examples of the mixture of WEIGHTS, MEANS and COVARIANCES."""
    rng = np.random.default_rng(0)
    rows = rng.choice(2, num, p=WEIGHTS)
    factors = np.linalg.cholesky(COVARIANCES)[rows]
    noise = rng.normal(size=(num, 2))
    return MEANS[rows] + np.einsum("nij,nj->ni", factors, noise)


def log_density(z):
    densities = [
        weight * scipy.stats.multivariate_normal(mean, covariance).pdf(z)
        for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
    ]
    return np.log(np.sum(densities, axis=0))


def assert_recovered(found, tolerance):
    z = known(20_000)
    np.testing.assert_allclose(found.mean(0), z.mean(0), atol=tolerance)
    np.testing.assert_allclose(np.cov(found.T), np.cov(z.T), atol=2 * tolerance)
    # The mixture's own likelihood of what is drawn: that of real latents is the most.
    likelihood = np.maximum(log_density(found), -30).mean()
    assert likelihood == pytest.approx(log_density(z).mean(), abs=tolerance)
    first = found[:, 0] < -0.5
    assert first.mean() == pytest.approx(0.3, abs=tolerance)


def test_a_mixture_of_two_gaussians_is_recovered():
    found = draws(known(4_000), "gmm", sampler_components=(1, 2, 3))
    assert_recovered(found, 0.1)
    one = draws(known(4_000), "gmm", sampler_components=(1,))
    assert log_density(one).mean() < log_density(found).mean() - 0.5


@pytest.mark.slow
def test_a_flow_recovers_it_too():
    assert_recovered(draws(known(4_000), "flow", 4_000, sampler_steps=500), 0.25)


def test_held_out_latents_choose_full_covariances_where_latents_depend():
    z = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], 600)
    correlation = np.corrcoef(draws(z, "gmm", sampler_components=(1,)).T)[0, 1]
    assert correlation == pytest.approx(0.9, abs=0.03)
    wide = np.random.default_rng(0).normal(size=(300, samplers._MOST_FULL + 1))
    (mixture,) = samplers._fit_mixtures(
        wide[None], 0, settings("gmm", sampler_components=(2,))
    )
    assert mixture.factors.shape == mixture.means.shape


@pytest.mark.slow
def test_parts_are_independent_and_have_their_own_units():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(2_000, 1))
    z = np.concatenate([shared, shared + 0.1, 100 * shared + 7], axis=1)
    parts = {"latent_parts": (("shared", 2), ("m0", 1))}
    found = draws(z, "gmm", fields=parts, sampler_components=(1, 2))
    correlations = np.corrcoef(found.T)
    assert correlations[0, 1] > 0.99
    assert abs(correlations[0, 2]) < 0.05
    np.testing.assert_allclose(found.mean(0), z.mean(0), atol=3)
    np.testing.assert_allclose(found.std(0), z.std(0), rtol=0.05)


@pytest.mark.parametrize(
    "sampler", ["gmm", pytest.param("flow", marks=pytest.mark.slow)]
)
def test_the_moments_of_an_aggregate_posterior_far_from_the_prior(sampler):
    z = 4 + 3 * np.random.default_rng(0).normal(size=(1_000, 3)) * [1, 0.01, 5]
    found = draws(z, sampler, sampler_components=(1,), sampler_steps=5)
    np.testing.assert_allclose(found.mean(0), z.mean(0), atol=0.1 * z.std())
    np.testing.assert_allclose(found.std(0), z.std(0), rtol=0.1)


def test_the_same_seed_gives_the_same_draws():
    first, second = (draws(known(200), "gmm", 9, sampler_components=(3,)) for _ in "ab")
    assert (first == second).all()


def test_latents_that_are_not_finite_give_values_that_are_nan_with_a_reason():
    z = np.ones((40, 2))
    z[7, 1] = np.inf
    model, train = model_of(z, decode=lambda params, z: {"m0": z})
    fitted = samplers.fit(settings("gmm"), model, None, train, KEY)
    images = toy_split({"m0": np.zeros((40, 8, 8, 1), np.uint8)}, np.zeros(40))
    fitted = fitted._replace(
        decode=lambda params, z: {"m0": jnp.tile(z[:, :1, None, None], (1, 8, 8, 1))}
    )
    data = EvaluationData(train, images, None, 40)
    swd = {"swd": METRICS["swd"].compute}
    values = evaluate.evaluate_member(swd, fitted, None, data, KEY)
    why = "what the model computes is not finite"
    assert reasons(values) == {"eval/gmm/swd": why, "eval/gmm/swd/m0": why}


@pytest.mark.slow
def test_a_flow_that_diverges_draws_nan(monkeypatch):
    monkeypatch.setattr(samplers, "_LEARNING_RATE", 1e38)
    assert np.isnan(draws(known(60), "flow", 9, sampler_steps=3)).all()


def test_tags_of_unconditional_examples():
    names = {
        "attributes": ("joint", "shape/joint"),
        "coherence": ("joint",),
        "matching": ("joint",),
        "fid": ("", "m0", "joint"),
        "captions": ("prior/words", "prior/words/m0"),
        "precision_recall": ("prior/recall", "prior/recall/m0"),
    }
    others = {
        "attributes": ("leave_one_out/joint", "reconstruction/joint", "shape"),
        "coherence": ("leave_one_out", "leave_one_out/joint", "subset/m0/joint"),
        "matching": ("leave_one_out/joint",),
        "captions": ("bleu", "real/words"),
        "precision_recall": ("leave_one_out/recall",),
    }
    heads = {"attributes": "attribute_coherence"}
    for cases, wanted in ((names, True), (others, False)):
        for name, ends in cases.items():
            for end in ends:
                tag = "/".join(filter(None, (heads.get(name, name), end)))
                assert METRICS[name].is_unconditional(tag) == wanted, tag
    assert not METRICS["elbo"].is_unconditional("elbo")


SHAPES = {"image": (4, 4, 3), "vector": (4,), "other": (3,)}
FAST = ("mopoe",)


def make_split(num):
    g = np.random.default_rng(0)
    modalities = {
        "image": g.integers(0, 256, (num, 4, 4, 3), dtype=np.uint8),
        "vector": g.normal(size=(num, 4)).astype(np.float32),
        "other": g.normal(size=(num, 3)).astype(np.float32),
    }
    observed = g.random((num, 3)) < 0.7
    observed[:, 0] |= ~observed.any(axis=1)
    return Split(modalities, None, observed)


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in models.MODELS
    ],
)
def test_every_model_is_sampled_or_refused(name, tiny_config):
    options = {"subsets": ((0,), (1, 2))} if name == "custom" else {}
    model = models.make_model(tiny_config(name, **options), SHAPES)
    own = settings("gmm", sampler_components=(2, 3), batch_size=24)
    train = make_split(40)
    if name in ("code_flow", "latent_flow"):
        message = "config.eval.sampler='gmm' is not for .*; leave it 'prior'"
        with pytest.raises(UsageError, match=message), fields_of("config.eval"):
            samplers.check(own, model, train)
        return
    samplers.check(own, model, train)
    params = jax.jit(model.init)(KEY)
    compiled = evaluate.compile_model(model)
    fitted = samplers.fit(own, compiled, params, train, KEY)
    z = fitted.sample_prior(params, KEY, 24)
    assert z.shape == (24, model.latent_dim)
    found = samplers.latents(compiled, params, train, KEY, 24)
    distance = np.abs(np.asarray(z).mean(0) - found.mean(0))
    assert (distance < 1.5 * found.std(0) + 1e-3).all()
    shown = samples.draw_samples(fitted, params, train, KEY)
    assert shown.sampler == "gmm" and not shown.conditional
    assert all(np.isfinite(x).all() for x in shown.prior.values())


def test_sizes_that_the_examples_do_not_have_are_refused():
    model, _ = model_of(np.zeros((4, 2)))
    own = settings("gmm", sampler_components=(2, 50))
    message = (
        "^config.eval.sampler='gmm' is fitted to 36 training examples, which are fewer "
        "than the 50 of config.eval.sampler_components; give smaller numbers$"
    )
    with pytest.raises(UsageError, match=message), fields_of("config.eval"):
        samplers.check(own, model, split_of(40))
    samplers.check(own, model, split_of(56))
    samplers.check(settings("prior"), model, split_of(1))
    samplers.check(settings("flow"), model, split_of(1))
    # Of a part of one modality, the examples that have it count.
    model = model._replace(latent_parts=(("m0", 2),))
    observed = np.arange(56)[:, None] >= 20
    with pytest.raises(UsageError, match="fitted to 32 training"):
        samplers.check(own, model, split_of(56)._replace(observed=observed))


@pytest.mark.slow
def test_a_part_is_fitted_where_its_modality_is_observed():
    """Elsewhere the posterior of a modality is the prior, or of another modality."""
    z = np.where(np.arange(400)[:, None] % 2, 5.0, -5.0) + np.zeros(4)
    z[:, :2] = 1.0
    z += 0.1 * np.random.default_rng(0).normal(size=z.shape)
    model, train = model_of(z, latent_parts=(("m0", 2), ("m1", 2)))
    observed = np.stack([np.ones(400, bool), np.arange(400) % 2 == 1], axis=1)
    images = {m: train.modalities["m0"] for m in ("m0", "m1")}
    train = train._replace(modalities=images, observed=observed)
    for sampler in ("gmm", "flow"):
        own = settings(sampler, sampler_components=(2,), sampler_steps=300)
        fitted = samplers.fit(own, model, None, train, KEY)
        found = np.asarray(fitted.sample_prior(None, jax.random.key(1), 500))
        assert found[:, :2].mean() == pytest.approx(1, abs=0.1)
        assert (found[:, 2:] > 3).mean() > 0.98
