"""Tasks that the tests of training share, each compiled once."""

import pytest
from small_tasks import noisy_regression, small_vae

from mmvae_jax import models


@pytest.fixture(scope="module")
def regression():
    return noisy_regression()


@pytest.fixture(scope="module")
def vae(tiny_config, tiny_images):
    return small_vae("mmvae", tiny_config, tiny_images)


@pytest.fixture(
    scope="module",
    params=[
        name if name == "mmvae" else pytest.param(name, marks=pytest.mark.slow)
        for name in models.MODELS
    ],
)
def any_vae(request, vae, tiny_config, tiny_images):
    if request.param == "mmvae":
        return vae
    return small_vae(request.param, tiny_config, tiny_images)
