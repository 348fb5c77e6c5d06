import jax
import numpy as np
import pytest
from toy_models import LinearGaussian

from mmvae_jax.evaluation.metrics import elbo


def test_the_bound_is_tight_where_the_posterior_is_exact():
    toy = LinearGaussian()
    data = toy.data(num=10, batch_size=4)
    tags = elbo.elbo(toy.model, 0.0, data, jax.random.key(0))
    assert set(tags) == {"elbo", "kl", "reconstruction/m0", "reconstruction/m1"}
    assert tags["elbo"] == pytest.approx(toy.exact(data.test).mean(), rel=1e-5)
    assert tags["elbo"] == pytest.approx(
        tags["reconstruction/m0"] + tags["reconstruction/m1"] - tags["kl"]
    )
    assert tags["reconstruction/m0"] != pytest.approx(tags["reconstruction/m1"])


def test_a_diverged_model_has_no_bound():
    toy = LinearGaussian()
    data = toy.data(num=5, batch_size=4)
    tags = elbo.elbo(toy.model, np.float32(np.nan), data, jax.random.key(0))
    assert np.isnan(tags["elbo"])
