"""Models whose likelihoods have learned scales, or are of counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tasks import MAP, VMAP, Setup, assert_same_bits

from mmvae_jax import models
from mmvae_jax.data.dataset import Dataset, Split, with_counts
from mmvae_jax.errors import UsageError
from mmvae_jax.training.step import vae_task
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import OBSERVED, TokenShape

SHAPES = {"image": (2, 2, 1), "vector": (3,), "counts": TokenShape(4, 9)}
LIKELIHOODS = {
    "image": "gaussian_optimal",
    "vector": "gaussian_learned",
    "counts": "negative_binomial",
}
B, KEY = 6, jax.random.key(0)
FAST = ("mopoe",)
EVERY = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in models.MODELS
]


def config_of(tiny_config, name, likelihoods=LIKELIHOODS, **settings):
    options = {"subsets": ((0,), (0, 1, 2))} if name == "custom" else {}
    config = tiny_config(name, **options)
    for m, likelihood in likelihoods.items():
        config.modalities[m] = {"likelihood": likelihood, **settings}
    return config


def batch_of(num=B, dtype=np.int32):
    rng = np.random.default_rng(0)
    return {
        "image": rng.uniform(size=(num, 2, 2, 1)).astype(np.float32),
        "vector": rng.normal(size=(num, 3)).astype(np.float32),
        "counts": rng.poisson(4.0, (num, 4)).astype(dtype),
    }


@pytest.mark.parametrize("name", EVERY)
def test_every_model_trains_them(tiny_config, name):
    model = models.make_model(config_of(tiny_config, name), SHAPES)
    params = jax.jit(model.init)(KEY)
    differentiate = jax.jit(jax.value_and_grad(model.objective, has_aux=True))
    mask = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]])

    def spoilt(value):
        batch, there = batch_of(dtype=np.float32), mask.astype(bool)
        return {OBSERVED: there} | {
            m: np.where(there[:, i].reshape(-1, *[1] * (x.ndim - 1)), x, value)
            for i, (m, x) in enumerate(batch.items())
        }

    # What is missing has no part in a scale either.
    found = [differentiate(params, spoilt(np.float32(x)), KEY, 1.5) for x in (-7, 50)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert_same_bits(*found)
    (_, terms), gradient = found[0]
    assert set(terms.log_likelihood) == set(SHAPES)
    for m in SHAPES:
        assert np.any(gradient["decoders"][m]["params"]["likelihood"] != 0), m
    z = np.zeros((B, model.latent_dim), np.float32)
    means, deviations = jax.jit(lambda *x: (model.decode(*x), model.deviation(*x)))(
        params, z
    )
    for m, x in batch_of().items():
        assert means[m].shape == deviations[m].shape == x.shape
        assert (deviations[m] > 0).all()
    assert (means["counts"] > 0).all()
    np.testing.assert_allclose(deviations["vector"], 0.75, rtol=1e-6)


def test_weights_scale_the_loss_alone(tiny_config):
    losses, bounds = [], []
    for weight in (1.0, 2.0):
        config = config_of(tiny_config, "mopoe", likelihood_weight=weight)
        model = models.make_model(config, SHAPES)
        params = jax.tree.map(
            lambda x: np.full(x.shape, 0.1, np.float32),
            jax.eval_shape(model.init, KEY),
        )
        loss, terms = jax.jit(model.objective)(params, batch_of(), KEY, 0.0)
        losses.append(float(loss))
        bounds.append(terms)
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *bounds
    )


def test_encoders_are_given_logarithms_of_counts(tiny_config):
    config = config_of(tiny_config, "mopoe")
    model = models.make_model(config, SHAPES)
    params, batch = model.init(KEY), batch_of()
    config.modalities.counts.likelihood = "gaussian"  # a vector of its own
    plain = models.make_model(config, SHAPES | {"counts": (4,)})
    logs = batch | {"counts": np.log1p(batch["counts"])}
    own, expected = model.encode(params, batch), plain.encode(params, logs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, expected
    )


def test_tokens_have_no_deviation(tiny_config):
    config = config_of(tiny_config, "mopoe", {"counts": "categorical"})
    model = models.make_model(config, SHAPES)
    params = model.init(KEY)
    z = model.sample_prior(params, KEY, B)
    assert set(model.decode(params, z)) == set(SHAPES)
    assert set(model.deviation(params, z)) == {"image", "vector"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mopoe", "nexus"])
def test_draws_have_the_moments_of_the_likelihood(tiny_config, name):
    model = models.make_model(config_of(tiny_config, name), SHAPES)
    num = 4_000
    params, z = model.init(KEY), jnp.ones((num, model.latent_dim))
    draws = model.sample_likelihood(params, z, KEY)
    means, deviations = model.decode(params, z), model.deviation(params, z)
    assert set(draws) == set(SHAPES)
    for m, x in draws.items():
        errors = (x.mean(axis=0) - means[m][0]) / deviations[m][0]
        np.testing.assert_allclose(errors, 0, atol=5 / np.sqrt(num))
        np.testing.assert_allclose(x.std(axis=0) / deviations[m][0], 1, atol=0.2)
    # The noises of modalities are independent.
    first, second = (draws[m].reshape(num, -1)[:, 0] for m in ("image", "vector"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.08


def test_likelihoods_that_do_not_fit_are_refused(tiny_config):
    for shapes, modality, name in (
        (SHAPES, "counts", "laplace"),
        (SHAPES, "vector", "categorical"),
    ):
        config = config_of(tiny_config, "mopoe", LIKELIHOODS | {modality: name})
        with pytest.raises(UsageError, match=f"'{name}' of {modality} is for"):
            models.make_model(config, shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        pytest.param("gaussian_learned", 2e-2, marks=pytest.mark.slow),
        ("gaussian_optimal", 1e-2),
    ],
)
def test_scales_are_found_by_training(tiny_config, kind, rate):
    """The members of a sweep too, each by itself, with the bits of a run alone."""
    config = config_of(tiny_config, "unimodal", {"vector": kind}, likelihood_scale=0.4)
    config.modality.network_options.widths = ()
    model = models.make_model(config, {"vector": (3,)})
    noise = 0.1 * np.random.default_rng(0).normal(size=(40, 3))
    data = {"vector": jnp.float32(1 + noise)}
    setup = Setup(vae_task(model), data)
    members = [Member(30.0, rate, 0), Member(30.0, rate, 1)]
    states = {x: setup.fit(members, x, 400) for x in (MAP, VMAP)}
    alone = setup.fit(members[1:], MAP, 400)
    one = jax.tree.map(lambda leaf: leaf[1:], states[MAP].params)
    assert_same_bits(one, alone.params)
    for state in states.values():
        for k in range(2):
            params = jax.tree.map(lambda leaf, k=k: leaf[k], state.params)
            found = model.deviation(params, jnp.zeros((1, 6)))["vector"]
            np.testing.assert_allclose(found, noise.std(), rtol=0.3)


def dataset_of(counts):
    splits = [Split({"x": counts.astype(np.float32), "n": counts}) for _ in range(2)]
    return Dataset(*splits, "fingerprint", "own", {"n": ("a", "b", "c")})


def test_counts_become_vectors():
    dataset = dataset_of(np.arange(6, dtype=np.int32).reshape(3, 2))
    assert with_counts(dataset, ["x"]) is dataset
    found = with_counts(dataset, ["x", "n"])
    assert dataset.shapes()["n"] == TokenShape(2, 3) and found.shapes()["n"] == (2,)
    for split, own in ((found.train, dataset.train), (found.test, dataset.test)):
        assert split.modalities["n"].dtype == np.float32
        np.testing.assert_array_equal(split.modalities["n"], own.modalities["n"])
    # Judges of tokens are none of these: the file of them has another name.
    assert found.words == {} and found.fingerprint != dataset.fingerprint


def test_counts_are_exact():
    with pytest.raises(UsageError, match=f"n has the count {2**24 + 1}, .*scale it"):
        with_counts(dataset_of(np.full((3, 2), 2**24 + 1, np.int32)), ["n"])
