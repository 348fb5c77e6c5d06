"""Additions as the documents describe them, each in a copy of the tree."""

import json

import pytest
from contributions import copy_tree, files_of, python, write_files

pytestmark = pytest.mark.slow
BARS = files_of("datasets/README.md")
FEW_STEPS = ("--config.train.num_steps=5", "--config.train.log_every_steps=1")


@pytest.fixture
def tree(tmp_path):
    return copy_tree(tmp_path)


def train(tree, config, *flags):
    """Trains for a few steps, and returns the run's summary."""
    done = python(
        tree, "-m", "experiments.run", f"--config={config}", *FEW_STEPS,
        "--workdir=runs/new", *flags,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((tree / "runs" / "new" / "summary.json").read_text())


def test_a_new_data_set(tree):
    write_files(tree, BARS)
    prepared = python(tree, "-m", "experiments.prepare", "--config=configs/bars.py")
    assert prepared.returncode == 0, prepared.stderr
    assert prepared.stdout.strip().startswith(str(tree / "data" / "bars"))
    summary = train(tree, "configs/bars.py:mopoe")
    (member,) = summary["members"]
    assert member["finite"]
    wrong = python(
        tree, "-m", "experiments.run", "--config=configs/bars.py",
        "--config.data.side=1", "--workdir=runs/wrong",
    )  # fmt: skip
    assert wrong.returncode == 2
    (line,) = wrong.stderr.splitlines()[-1:]
    assert line == "error: config.data.side=1 must be in 2..64"


def test_a_new_data_set_is_as_typed_and_as_clean_as_the_others(tree):
    write_files(tree, BARS)
    for command in (
        ("mypy", "datasets/bars"),
        ("ruff", "check", *sorted(BARS)),
        ("ruff", "format", "--check", *sorted(BARS)),
        ("pytest", "-p", "no:cacheprovider", "tests/test_architecture.py"),
    ):
        done = python(tree, "-m", *command)
        assert done.returncode == 0, done.stdout
