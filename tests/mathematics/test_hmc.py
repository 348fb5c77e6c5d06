"""Hamiltonian Monte Carlo: moments of known densities, and what is not taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmvae_jax.mathematics import hmc

KEY = jax.random.key(0)
MEAN = np.array([1.0, -2.0, 0.5], np.float32)
DEVIATION = np.array([0.3, 2.0, 1.0], np.float32)


def log_gaussian(z):
    return -0.5 * jnp.sum(((z - MEAN) / DEVIATION) ** 2, axis=-1)


def run(log_density, z, num_steps, **options):
    fn = jax.jit(
        lambda z: hmc.hamiltonian(log_density, z, KEY, num_steps, 5, **options)
    )
    return np.asarray(fn(z))


@pytest.mark.parametrize("scale", [1.0, DEVIATION])
def test_chains_reach_a_gaussian_from_afar(scale):
    start = np.full((4_000, 3), 4.0, np.float32)
    found = run(log_gaussian, start, 60 if np.ndim(scale) == 0 else 20, scale=scale)
    np.testing.assert_allclose(found.mean(0), MEAN, atol=0.12)
    np.testing.assert_allclose(found.std(0), DEVIATION, rtol=0.06)
    np.testing.assert_array_equal(run(log_gaussian, start, 0), start)


def test_chains_stay_where_they_are_right():
    """A sample of the density is one after some steps, of no Gaussian either."""

    def log_density(z):  # two modes, each for half of the chains
        return jnp.log(jnp.cosh(3 * z[:, 0])) - 0.5 * z[:, 0] ** 2

    rng = np.random.default_rng(0)
    modes = np.where(np.arange(4_000) % 2, 3.0, -3.0)
    start = np.float32(modes + rng.normal(size=4_000))[:, None]
    found = run(log_density, start, 10)
    assert np.mean(found == start) < 0.2
    assert np.abs(found).mean() == pytest.approx(3, abs=0.05)
    assert np.std(np.abs(found)) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_an_end_that_is_not_finite_is_not_taken(value):
    start = np.zeros((5, 3), np.float32)
    found = run(lambda z: jnp.where(z[:, 0] == 0, 0.0, value), start, 5)
    np.testing.assert_array_equal(found, start)
