import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmvae_jax.training import sweep
from mmvae_jax.training.sweep import (
    MAPPINGS,
    Member,
    grid,
    map_members,
    stack_hyper,
    stack_keys,
)


def ranges(**values):
    fields = {"beta": (1.0,), "learning_rate": (1e-3,), "seed": (0,)}
    return ConfigDict(fields | values)


def test_the_grid_is_a_product_with_seeds_innermost():
    members = grid(ranges(beta=(0.0, 2.5), learning_rate=(1e-3, 1), seed=(3, 1)))
    assert members == [
        Member(beta, rate, seed)
        for beta in (0.0, 2.5)
        for rate in (1e-3, 1.0)
        for seed in (3, 1)
    ]
    assert all(
        [type(field) for field in member] == [float, float, int] for member in members
    )


MEMBERS = [Member(0.5, 1e-3, 7), Member(2.0, 1e-4, 0), Member(9.0, 1.0, 2**32 - 1)]


def test_members_are_stacked_in_order():
    hyper = stack_hyper(MEMBERS)
    np.testing.assert_array_equal(hyper.beta, np.float32([0.5, 2, 9]))
    np.testing.assert_array_equal(hyper.learning_rate, np.float32([1e-3, 1e-4, 1]))
    one = sweep.member(hyper, 1)
    assert (one.beta, one.learning_rate) == (2.0, np.float32(1e-4))
    keys = stack_keys(MEMBERS)
    for k, one in enumerate(MEMBERS):
        assert (
            jax.random.key_data(keys[k])
            == jax.random.key_data(jax.random.key(one.seed))
        ).all()


def run(hyper, key, shared, num):
    """A function of one member with a draw, a product and a loop."""
    noise = jax.random.normal(key, shared.shape[1:])

    def body(i, value):
        return jnp.tanh(value @ jnp.outer(shared[0], noise) + hyper.beta + i)

    looped = jax.lax.fori_loop(0, num, body, noise)
    return {"looped": looped, "rate": hyper.learning_rate * shared.sum()}


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_all_mappings_equal_members_one_by_one(mapping):
    hyper, keys = stack_hyper(MEMBERS), stack_keys(MEMBERS)
    shared = jnp.linspace(-1, 1, 8).reshape(2, 4)
    mapped = jax.jit(map_members(run, mapping, num_shared=2))
    result = mapped(hyper, keys, shared, 3)
    assert result["looped"].shape == (3, 4) and result["rate"].shape == (3,)
    alone = jax.jit(run)
    for k in range(3):
        expected = alone(sweep.member(hyper, k), keys[k], shared, 3)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
            sweep.member(result, k),
            expected,
        )


def test_one_after_the_other_every_state_is_held_once():
    num, size = 8, 1 << 16

    def steps(state, scale, num_steps):
        new = jax.lax.fori_loop(0, num_steps, lambda i, x: jnp.sin(x) * scale, state)
        return new, jnp.sum(new)

    mapped = jax.jit(map_members(steps, "map", 2), donate_argnums=0)
    state = jax.ShapeDtypeStruct((num, size), jnp.float32)
    found = mapped.lower(state, 2.0, 3).compile().memory_analysis()
    # A few members' arrays beside the states, which are overwritten.
    assert found.alias_size_in_bytes == 4 * num * size
    assert found.temp_size_in_bytes < 4 * 4 * size
    values = jnp.arange(12.0).reshape(3, 4)
    new, sums = mapped(jnp.copy(values), 2.0, 1)
    np.testing.assert_allclose(new, np.sin(values) * 2, rtol=1e-6)
    np.testing.assert_allclose(sums, np.sum(new, axis=1), rtol=1e-6)
