"""The pure train step: Adam, clipping, what stops a member, what is logged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tasks import BATCH, SHAPES, bits_differ

from mmvae_jax.training.step import (
    LARGEST_GRADIENT,
    Task,
    gradient_norm,
    init_state,
    train_step,
)
from mmvae_jax.types import Hyper


@pytest.mark.parametrize("where", ["", "loss", "gradient", "metric"])
def test_whatever_is_not_finite_stops_a_member(where):
    def loss(params, hyper, key, batch):
        value = jnp.sum(params["w"])
        if where == "loss":
            value += jnp.inf
        elif where == "gradient":
            value += jnp.sqrt(params["w"][0] * 0)  # 0, with a gradient of nan
        return value, {"metric": jnp.nan if where == "metric" else jnp.sum(value) * 0}

    task = Task(lambda key: {"w": jnp.ones(2)}, loss)
    hyper, key = Hyper(jnp.float32(1), jnp.float32(0.1)), jax.random.key(0)
    state = init_state(task, hyper, key, {})
    after = train_step(task, state, hyper, key, {})
    assert bool(state.finite) and bool(after.finite) == (where == "")
    assert bits_differ(after.params, state.params) == (where == "")


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 10.0])
def test_gradients_are_clipped_by_their_norm(clip_norm):
    def loss(params, hyper, key, batch):
        value = 3 * params["w"] + 4 * params["v"]  # a gradient of norm 5
        return value, {"train/loss": value}

    def init(key):
        return {"w": jnp.float32(0), "v": jnp.float32(0)}

    task = Task(init, loss, clip_norm)
    hyper, key = Hyper(jnp.float32(1), jnp.float32(0.1)), jax.random.key(0)
    state = train_step(task, init_state(task, hyper, key, {}), hyper, key, {})
    # Adam's first moment after one step: a tenth of the gradient.
    shrink = 0.1 if clip_norm == 0.5 else 1.0
    assert state.optimizer.mu["w"] == pytest.approx(0.1 * 3 * shrink)
    assert state.optimizer.mu["v"] == pytest.approx(0.1 * 4 * shrink)


def test_metrics_of_a_vae_are_those_of_its_terms(vae):
    hyper = Hyper(jnp.float32(3.0), jnp.float32(1e-3))
    params = vae.task.init(jax.random.key(1))
    batch = {m: x[:BATCH] for m, x in vae.data.items()}
    loss = jax.jit(vae.task.loss)
    value, metrics = loss(params, hyper, jax.random.key(2), batch)
    parts = [metrics[f"train/log_likelihood/{m}"] for m in SHAPES]
    assert set(metrics) == {
        "train/loss",
        "train/elbo",
        "train/kl",
        *(f"train/log_likelihood/{m}" for m in SHAPES),
    }
    assert metrics["train/elbo"] == pytest.approx(
        float(sum(parts) - metrics["train/kl"]), rel=1e-5
    )
    assert (
        metrics["train/loss"]
        == value
        == pytest.approx(float(3 * metrics["train/kl"] - sum(parts)), rel=1e-5)
    )
    # Bytes reach the model as values in [0, 1]: the likelihood of 4 pixels cannot
    # be lower than with all residuals as large as the outputs allow.
    assert metrics["train/log_likelihood/m0"] > -4 * (3 / 0.75 + np.log(1.5))


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e18, 1e20, 1e28])
def test_the_norm_of_a_gradient(size):
    gradient = {"a": jnp.float32([3 * size, 0]), "b": jnp.float32([[-4 * size]])}
    np.testing.assert_allclose(gradient_norm(gradient), 5 * size, rtol=1e-6)
    nan = {"a": jnp.float32([size]), "b": jnp.float32([jnp.nan])}
    assert not gradient_norm(nan) <= LARGEST_GRADIENT


@pytest.mark.parametrize(("size", "finite"), [(1.79e19, True), (1.81e19, False)])
def test_gradients_as_large_as_adam_can_square(size, finite):
    task = Task(
        lambda key: {"w": jnp.zeros(2)},
        lambda params, hyper, key, batch: (size * params["w"][0], {}),
    )
    hyper = Hyper(jnp.float32(1), jnp.float32(1e-3))
    state = init_state(task, hyper, jax.random.key(0), {})
    state = train_step(task, state, hyper, jax.random.key(0), {})
    assert bool(state.finite) == finite
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))
    assert bool(state.params["w"][0] < 0) == finite
