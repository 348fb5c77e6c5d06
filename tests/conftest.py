"""Settings and tiny models shared by all tests."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests' time is compilation; `make test-slow` compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import numpy as np
import pytest

from configs import base

hypothesis.settings.register_profile(
    "fixed", deadline=None, derandomize=True, database=None, max_examples=40
)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def tiny_config():
    """(model name, latent_dim, options) -> a config with small dense networks."""

    def build(name, latent_dim=6, **options):
        config = base.parse_arg(base.get_config(), name)
        config.model.update({"latent_dim": latent_dim, "options": options})
        config.modality.network = "mlp"
        config.modality.network_options.widths = (8,)
        return config

    return build


@pytest.fixture(scope="session")
def tiny_images():
    """(shapes, number) -> modality -> uint8 noise images."""

    def build(shapes, num):
        rng = np.random.default_rng(0)
        return {
            m: rng.integers(0, 256, (num, *shape), dtype=np.uint8)
            for m, shape in shapes.items()
        }

    return build
