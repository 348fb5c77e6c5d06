"""Saved states of made-up runs, for the tests of checkpoints and of damaged bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmvae_jax.training import checkpoints
from mmvae_jax.training.step import TrainState


def make_state(step, width=40):
    """A state of two members, with awkward bits."""
    rng = np.random.default_rng(step)
    params = {
        "encoders": {"m0": jnp.asarray(rng.normal(size=(2, 30, width)), jnp.float32)},
        "odd": jnp.array([-0.0, 1e-42], jnp.float32),
    }
    adam = optax.scale_by_adam()
    _, optimizer = adam.update(params, adam.init(params))
    return TrainState(
        step=jnp.full(2, step, jnp.int32),
        params=params,
        optimizer=optimizer,
        finite=jnp.array([True, False]),
        totals={"train/loss": jnp.array([jnp.nan, jnp.inf], jnp.float32)},
        num_logged=jnp.full(2, 3, jnp.int32),
    )


def bits(state):
    return jax.tree.map(lambda leaf: (leaf.dtype, np.asarray(leaf).tobytes()), state)


def save_all(directory, steps, num_kept=3):
    manager = checkpoints.open_checkpoints(directory, num_kept)
    for step in steps:
        checkpoints.save(manager, step, make_state(step))
    checkpoints.close(manager)


def restore(directory, like, num_kept=3):
    manager = checkpoints.open_checkpoints(directory, num_kept)
    try:
        return checkpoints.restore(manager, like, num_kept)
    finally:
        checkpoints.close(manager)
