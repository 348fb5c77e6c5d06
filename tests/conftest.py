"""Settings and tiny models shared by all tests."""

import hashlib
import os
import platform
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests' time is compilation; `make test-slow` compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import base

hypothesis.settings.register_profile(
    "fixed", deadline=None, derandomize=True, database=None, max_examples=40
)
hypothesis.settings.load_profile("fixed")

CACHE_OPTIONS = {
    # What is faster is not worth a file.
    "jax_persistent_cache_min_compile_time_secs": 0.05,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory):
    """A folder that the workers of a parallel test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache(pytestconfig, tmp_path_factory):
    """Programs are compiled once, for all tests and for runs in other processes.

    They are kept from one call of pytest to the next, in .pytest_cache, apart for each
    kind of processor: a program may have instructions that another one lacks.
    """
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else [platform.platform()]
    kinds = sorted({x for x in lines if x.startswith(("flags", "Features", "model"))})
    name = hashlib.sha256("\n".join(kinds or lines[:1]).encode()).hexdigest()[:12]
    kept = getattr(pytestconfig, "cache", None)  # None with -p no:cacheprovider
    folder = kept.mkdir(f"xla-{name}") if kept else tmp_path_factory.mktemp("xla")
    old = {name: getattr(jax.config, name) for name in CACHE_OPTIONS}
    old["jax_compilation_cache_dir"] = jax.config.jax_compilation_cache_dir
    new = {**CACHE_OPTIONS, "jax_compilation_cache_dir": str(folder)}
    _configure(new)
    yield {name.upper(): str(value) for name, value in new.items()}
    _configure(old)


def _configure(options):
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


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
