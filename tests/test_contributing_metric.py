"""A new metric is two files: what the README says, and nothing else, is done here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
TREE = ("mmvae_jax", "experiments", "configs", "datasets", "tests")


def readme_blocks():
    """The code of README's metric: its file, and its row of METRICS."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text[text.index("**A metric**") :]
    file, row = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:2]
    return file, row


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the tree with the metric in it."""
    root = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in TREE:
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    file, row = readme_blocks()
    path, _, code = file.removeprefix("# ").partition("\n")
    (root / path).write_text(
        f'"""Diversity of what is generated."""\n\n{code}', encoding="utf-8"
    )
    said = re.search(
        r"`METRICS` in\n`([^`]*)`", (ROOT / "README.md").read_text(encoding="utf-8")
    )[1]
    table = root / said
    text = table.read_text(encoding="utf-8")
    (package,) = re.findall(r"^from (\S+) import \(\n    captions,", text, re.MULTILINE)
    text = text.replace("    coherence,\n", "    coherence,\n    diversity,\n", 1)
    row = row.partition("\n")[2]
    table.write_text(
        text.replace("METRICS = {\n", "METRICS = {\n" + row, 1), encoding="utf-8"
    )
    assert (root / path).parent == root / Path(*package.split("."))
    return root


@pytest.fixture(scope="module")
def call(tree):
    """(arguments of python) -> what has run in the copy."""

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


def test_it_is_in_the_table_and_in_the_report(call, tree):
    found = call(
        "-m",
        "experiments.run",
        "--config=configs/smoke.py",
        "--workdir=runs/smoke",
        "--config.eval.metrics=('elbo', 'diversity')",
        "--config.train.num_steps=4",
        "--config.classifier.num_steps=4",
    )
    assert found.returncode == 0, found.stderr
    (header,) = [x for x in found.stdout.splitlines() if x.lstrip().startswith("beta")]
    assert "diversity" in header.split()
    report = call("-m", "experiments.report", "--directory=runs")
    assert report.returncode == 0, report.stderr
    page = (tree / "runs" / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r"<th\b[^>]*>\s*([^<]*?)\s*</th>", page)
    assert "diversity\N{NO-BREAK SPACE}↑" in headings


def test_it_is_refused_on_data_without_labels(call, tree):
    images = np.zeros((20, 8, 8), np.uint8)
    np.savez(tree / "unlabelled.npz", m0=images, m1=images)
    found = call(
        "-m",
        "experiments.run",
        "--config=configs/arrays.py",
        "--config.data.path=unlabelled.npz",
        "--workdir=runs/refused",
        "--config.eval.metrics=('diversity',)",
        "--config.train.batch_size=4",
    )
    assert found.returncode == 2
    wanted = "error: metric 'diversity' needs labels, and the data have none: leave it"
    assert wanted in found.stderr and "Traceback" not in found.stderr
    assert not (tree / "runs" / "refused" / "checkpoints").exists()


def test_the_tests_of_metrics_and_of_the_architecture_pass(call):
    tests = (
        "tests/test_needs.py",
        "tests/test_architecture.py",
        "tests/test_evaluate.py",
    )
    found = call("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
    assert found.returncode == 0, found.stdout[-3000:]
