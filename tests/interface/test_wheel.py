"""The sdist and the wheel made of it: what is in them, and the calls of users."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import mmvae_jax

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("configs", "experiments", "datasets", "benchmarks", "tests")
# Users' calls, of few steps and small arrays.
CALLS = """
import importlib.util
import sys

wheel, packages, *others = sys.argv[1:]
sys.path[:] = [wheel, *sys.path, packages]

import numpy as np

g = np.random.default_rng(0)
images = g.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
waves = g.normal(size=(60, 4)).astype(np.float32)
observed = np.ones((60, 2), bool)
observed[::3, 1] = False
key = 0

import mmvae_jax
trained = mmvae_jax.fit(
    {"image": images, "waves": waves}, model="mvtcae", observed=observed, num_steps=20
)
mmvae_jax.export(trained, "runs/tp")
data = {"image": images[:7], "waves": waves[:7], "observed": observed[:7]}
trained = mmvae_jax.load("runs/tp", beta=1.0, seed=0)
z = mmvae_jax.embed(trained, data)
filled = mmvae_jax.impute(trained, data, num_draws=20)
pairs = mmvae_jax.generate(trained, 64, key)
values = mmvae_jax.score(trained, data)

assert z.mean.shape == z.log_variance.shape == (7, 16) and z.mean.dtype == np.float32
assert list(filled.mean) == list(pairs) == ["image", "waves"]
for own, shape, kind in (("image", (8, 8, 3), np.uint8), ("waves", (4,), np.float32)):
    assert filled.mean[own].shape == filled.spread[own].shape == (7, *shape)
    assert filled.draws[own].shape == (20, 7, *shape)
    assert pairs[own].shape == (64, *shape)
    assert filled.mean[own].dtype == filled.draws[own].dtype == pairs[own].dtype == kind
    assert filled.spread[own].dtype == np.float32
assert np.array_equal(filled.mean["waves"][1:3], waves[1:3])
assert (filled.spread["waves"][0] > 0).all()
assert values.elbo.shape == values.log_likelihood.shape == (7,)
assert values.elbo.dtype == np.float64 and np.isfinite(values.elbo).all()
reconstructed = mmvae_jax.reconstruct(trained, data)
assert reconstructed["image"].shape == (7, 8, 8, 3)

for name in others:
    found = importlib.util.find_spec(name)
    assert found is None or all(
        path.startswith(packages) for path in found.submodule_search_locations
    ), name
assert mmvae_jax.__file__.startswith(wheel), mmvae_jax.__file__
"""


ROOT_FILES = (
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
)
BUILD_SDIST = (
    "import sys; from setuptools import build_meta as m; m.build_sdist(*sys.argv[1:])"
)


def run(*command, **options):
    subprocess.run(command, check=True, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist, of links to the files, so that no build is left here."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in (*ROOT_FILES, "mmvae_jax", *FOLDERS):
        (source / name).symlink_to(ROOT / name)
    run(sys.executable, "-c", BUILD_SDIST, out, cwd=source)
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, of nothing but the sdist."""
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", out]
    run(sys.executable, "-m", "pip", "wheel", "--quiet", sdist, *options)
    (found,) = out.iterdir()
    return found


def described(content):
    """The metadata of a distribution: names, versions and licences are checked."""
    found = Metadata.from_email(content, validate=True)
    assert found.name == "mmvae_jax" and str(found.version) == mmvae_jax.__version__
    assert found.license_expression == "Apache-2.0"
    assert found.license_files == ["LICENSE"]
    assert found.description_content_type == "text/markdown"
    assert found.description == (ROOT / "README.md").read_text()
    return found


def test_the_sdist_holds_the_library_and_what_a_project_is_told_by(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
        (top,) = {name.partition("/")[0] for name in archive.getnames()}
        described(archive.extractfile(f"{top}/PKG-INFO").read())
    assert set(ROOT_FILES) <= held
    assert top == f"mmvae_jax-{mmvae_jax.__version__}"
    assert not any(name.partition("/")[0] in FOLDERS for name in held)


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (x for x in archive.namelist() if x.endswith("dist-info/METADATA"))
        described(archive.read(info))
        licence = archive.read(info.replace("METADATA", "licenses/LICENSE"))
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_holds_every_file_of_the_library_and_nothing_else(wheel):
    library = [
        p for p in (ROOT / "mmvae_jax").rglob("*") if "__pycache__" not in p.parts
    ]
    files = {str(path.relative_to(ROOT)) for path in library if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == files and "mmvae_jax/py.typed" in held


def test_the_calls_of_users_need_no_checkout(wheel, tmp_path):
    installed, folder = tmp_path / "installed", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:  # as installers do with pure Python
        archive.extractall(installed)
    folder.mkdir()
    packages = sysconfig.get_path("purelib")
    # -S: no .pth of the environment, which may name a checkout; -I: no variables.
    python = [sys.executable, "-I", "-S", "-c", CALLS, installed, packages, *FOLDERS]
    subprocess.run(python, check=True, cwd=folder, timeout=600)
    assert {path.name for path in folder.iterdir()} == {"runs"}
