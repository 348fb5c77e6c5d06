"""log p(x_A) of models that draw what is missing, against closed forms."""

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

from mmvae_jax import models
from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation import evaluate
from mmvae_jax.evaluation.metrics.elbo import elbo_batches
from mmvae_jax.evaluation.metrics.log_likelihood import estimate_batches

SHAPES = {"m0": (3,), "m1": (4,), "m2": (2,)}
M, D, COPIES = 3, 2, 2_000
PATTERNS = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]], bool)
KEY = jax.random.key(1)
FLOWS = ("code_flow", "latent_flow")


def make(tiny_config, name):
    options = {"ode_steps": 1} if name in FLOWS else {}
    if name == "code_flow":  # q(s|x) is nearly p(s)
        options |= {"code_dim": 2, "code_variance": 0.95}
    config = tiny_config(name, D, **options)
    config.modality.network_options.widths = ()
    config.modality.likelihood = "gaussian"
    config.modality.likelihood_scale = 1.0
    return evaluate.compile_model(models.make_model(config, SHAPES))


def linear_params(model, rng):
    """Encoders that say N(0, I), linear decoders, and flows that move nothing.

    And the means and variances of p(z).
    """
    params = jax.tree.map(np.asarray, jax.jit(model.init)(KEY))
    for part in {"encoders", "joint", "code"} & set(params):
        params[part] = jax.tree.map(np.zeros_like, params[part])
    params["decoders"] = jax.tree.map(
        lambda x: np.float32(0.5 * rng.normal(size=x.shape)), params["decoders"]
    )
    mean, variance = np.zeros(model.latent_dim), np.ones(model.latent_dim)
    if "whitening" in params:
        mean[-M * D :] = np.linspace(-0.3, 0.3, M * D)
        variance[-M * D :] = np.linspace(0.7, 1.3, M * D)
        squares = {"num": 0 * mean + 1, "mean": mean, "squares": variance}
        own = {name: np.float32(x[-M * D :]) for name, x in squares.items()}
        params["whitening"] = own
    return params, mean, variance


@pytest.mark.parametrize(
    "name",
    [
        "jnf",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("jnf_shared", *FLOWS)
        ),
    ],
)
def test_the_marginal_of_linear_decoders(name, tiny_config):
    model, rng = make(tiny_config, name), np.random.default_rng(0)
    params, mean, variance = linear_params(model, rng)
    x = {m: np.float32(rng.normal(size=shape)) for m, shape in SHAPES.items()}
    # The decoders' bias in the first row, and what each dimension adds to it.
    points = np.concatenate([np.zeros((1, model.latent_dim)), np.eye(model.latent_dim)])
    decoded = {
        m: np.float64(own)
        for m, own in model.decode(params, np.float32(points)).items()
    }
    wanted = []
    for pattern in PATTERNS:
        kept = [m for m, is_there in zip(SHAPES, pattern, strict=True) if is_there]
        bias = np.concatenate([decoded[m][0] for m in kept])
        maps = np.concatenate([decoded[m][1:] - decoded[m][0] for m in kept], axis=1)
        covariance = maps.T * variance @ maps + np.eye(len(bias))
        law = scipy.stats.multivariate_normal(bias + mean @ maps, covariance)
        wanted.append(law.logpdf(np.concatenate([x[m] for m in kept])))
    observed = np.repeat(PATTERNS, COPIES, axis=0)
    split = Split({m: np.tile(own, (len(observed), 1)) for m, own in x.items()})
    # What is missing may be anything.
    split = split._replace(observed=observed)
    split.modalities["m1"][~observed[:, 1]] = np.nan
    common = (model, params, split, len(observed), KEY)
    (bounds,) = elbo_batches(*common)
    assert (bounds.reshape(-1, COPIES).mean(axis=1) < wanted).all()
    for proposal in ("joint", "mixture"):
        (found,) = estimate_batches(*common, num_samples=5, proposal=proposal)
        found = scipy.special.logsumexp(found.reshape(-1, COPIES), axis=1)
        np.testing.assert_allclose(found - np.log(COPIES), wanted, atol=0.05)
