"""CoDE-VAE's learned weights, and the bounds of models that pool their experts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import elbo, posteriors, subsets
from mmvae_jax.mathematics.subsets import Pooling
from mmvae_jax.types import OBSERVED, Gaussian

SHAPES = {"m0": (3,), "m1": (3,), "m2": (3,)}
M, B, D = 3, 4, 6  # D as in tests/conftest.py
KEY = jax.random.key(0)
LOGITS = np.linspace(-1, 1, 7, dtype=np.float32)


def params_of(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(rng.uniform(-1, 1, x.shape)),
        jax.eval_shape(model.init, KEY),
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {m: rng.random((B, *shape), np.float32) for m, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def code_vae(tiny_config):
    """The model and its compiled loss, terms and gradient."""
    model = models.make_model(tiny_config("code_vae"), SHAPES)
    return model, jax.jit(jax.value_and_grad(model.objective, has_aux=True))


def test_the_bound_has_the_kl_of_the_pools_and_the_learned_weights(code_vae, batch):
    model, differentiate = code_vae
    params = params_of(model) | {"subset_logits": LOGITS}
    (loss, terms), gradient = differentiate(params, batch, KEY, 2.0)
    weights = np.exp(np.float64(LOGITS)) / np.exp(np.float64(LOGITS)).sum()
    mixture = subsets.pooled(subsets.powerset(M), Pooling("dependent", 0.5))
    q = posteriors.subset_posteriors(model.encode(params, batch), mixture)
    kls = 0.5 * (q.mean**2 + np.exp(q.log_variance) - 1 - q.log_variance).sum(-1)
    np.testing.assert_allclose(terms.kl, weights @ kls, rtol=1e-4)
    # The bound, less 1,000 times the entropy of the weights, as released.
    entropy = -(weights * np.log(weights)).sum()
    plain = elbo.loss(terms, jnp.float32(2.0))
    assert float(loss) == pytest.approx(float(plain) - 1000 * entropy, rel=1e-5)
    assert (gradient["subset_logits"] != 0).all()


def test_the_gradient_of_the_weights_is_of_what_each_subset_gives(code_vae, batch):
    """By finite differences of the loss, whose draws do not depend on the weights."""
    model, differentiate = code_vae
    params = params_of(model) | {"subset_logits": LOGITS}
    _, gradient = differentiate(params, batch, KEY, 2.0)
    for s in range(7):
        step = np.float32(0.02) * (np.arange(7) == s)
        losses = [
            float(differentiate(params | {"subset_logits": x}, batch, KEY, 2.0)[0][0])
            for x in (np.float32(LOGITS + step), np.float32(LOGITS - step))
        ]
        found = (losses[0] - losses[1]) / 0.04
        assert gradient["subset_logits"][s] == pytest.approx(found, rel=0.03, abs=0.3)


def test_weights_of_an_incomplete_example_are_those_of_what_is_there(code_vae, batch):
    model, differentiate = code_vae
    params = params_of(model) | {"subset_logits": LOGITS}
    observed = {OBSERVED: np.tile([True, False, True], (B, 1))}
    _, gradient = differentiate(params, batch | observed, KEY, 1.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    experts = model.encode(params, batch)
    _, weights = model.mixture_posterior(params, experts, np.array([1, 0, 1], bool))
    expected = np.exp(LOGITS) * [1, 0, 1, 0, 1, 0, 0]
    np.testing.assert_allclose(weights[:, 0], expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "pooling"),
    [
        ("wb_vae", {}, Pooling("barycentre")),
        ("code_vae", {"correlation": 0.9}, Pooling("dependent", 0.9)),
        pytest.param("helvae", {}, Pooling("hoelder"), marks=pytest.mark.slow),
        pytest.param(
            "helvae",
            {"pooled_over": "dimensions"},
            Pooling("hoelder", pooled_over="dimensions"),
            marks=pytest.mark.slow,
        ),
        (
            "custom",
            {"subsets": ((0, 1, 2),), "pooling": "dependent", "correlation": 0.2},
            Pooling("dependent", 0.2),
        ),
    ],
)
def test_the_posterior_of_all_is_the_pool_of_the_experts(
    name, options, pooling, tiny_config, batch
):
    model = models.make_model(tiny_config(name, **options), SHAPES)
    rng = np.random.default_rng(2)
    experts = Gaussian(*np.float32(rng.normal(size=(2, M, B, D))))
    params = {"subset_logits": LOGITS}
    q = model.posterior(params, experts, np.ones(M, bool), KEY)
    expected = posteriors.pool(experts, np.ones(M, bool), False, pooling)
    for found, wanted in zip(q, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "code_vae",
            {"correlation": 1.0},
            "config.model.options.correlation must be in [0, 1), got 1.0",
        ),
        (
            "code_vae",
            {"entropy_weight": -1.0},
            "config.model.options.entropy_weight must be >= 0, got -1.0",
        ),
        (
            "code_vae",
            {"subset_estimator": "stratified"},
            "config.model.options.learned_weights = True needs subset_estimator = "
            "'exact', got 'stratified'",
        ),
        (
            "helvae",
            {"pooled_over": "all"},
            "unknown config.model.options.pooled_over 'all'; choose one of vector, ",
        ),
        (
            "custom",
            {"subsets": ((0,),), "pooling": "hoelder", "prior_expert": "always"},
            "the prior can be an expert only in products, not with the pooling",
        ),
    ],
)
def test_errors_of_options(name, options, message, tiny_config):
    config = tiny_config(name)
    for field, value in options.items():
        config.model.options[field] = value
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        models.make_model(config, SHAPES)
