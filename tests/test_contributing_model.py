"""A new model, added to a copy of the tree as the README says, and by nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "data", "runs", "build", "dist")
DOCS_ROW = "| `up_to_pairs` | L_S of all subsets of one and two | this project |\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The copy, with the model of the README's section "Add your own"."""
    root = tmp_path_factory.mktemp("contributor") / "tree"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
    _, _, section = (ROOT / "README.md").read_text().partition("## Add your own")
    function, row = re.findall(r"```python\n(.*?)```", section, re.S)[:2]
    subsets = root / "mmvae_jax" / "subsets.py"
    subsets.write_text(f"{subsets.read_text()}\n\n{function}")
    for path, last, added in (
        (root / "mmvae_jax" / "models" / "__init__.py", '    "custom": Model(', row),
        (root / "docs" / "models.md", "| `custom` |", DOCS_ROW),
    ):
        text = path.read_text()
        assert last in text
        path.write_text(text.replace(last, added + last, 1))
    return root


@pytest.fixture(scope="module")
def call(tree):
    """(arguments of python) -> what it prints in the copy."""

    def run(*arguments):
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


def test_it_trains_and_is_reported(tree, call):
    flags = {
        "config.data.num_modalities": 3,
        "config.train.num_steps": 4,
        "config.train.eval_every_steps": 0,
        "config.eval.metrics": "('elbo',)",
        "config.model.options.subset_estimator": "exact",
        "workdir": tree / "runs" / "mine",
    }
    printed = call(
        "-m",
        "experiments.run",
        "--config=configs/smoke.py:up_to_pairs",
        *(f"--{name}={value}" for name, value in flags.items()),
    )
    assert "up_to_pairs on polymnist" in printed and "ELBO" in printed
    call("-m", "experiments.report", f"--directory={tree / 'runs'}")
    assert "up to pairs" in (tree / "runs" / "report.html").read_text()


def test_it_is_in_the_figure_of_the_family(call):
    program = (
        "from experiments.plans import names, plan; "
        "spec = plan.Spec('polymnist', 'up_to_pairs'); "
        "assert spec in plan.family(plan.load_scale('demo')[1]); "
        "colours = [names.model_colour(x) for x in sum(plan.KINDS.values(), ())]; "
        "assert len(set(colours)) == len(colours)"
    )
    call("-c", program)


def test_the_tests_of_models_and_figures_pass(call):
    common = ("-m", "pytest", "-p", "no:cacheprovider")
    files = ("models", "missing", "train", "divergence")
    own = (f"tests/test_{name}.py" for name in files)
    assert " passed" in call(*common, "-k", "up_to_pairs", *own)
    files = ("models", "coordination", "subsets", "golden", "figures", "drawings")
    call(*common, "-m", "not slow", *(f"tests/test_{name}.py" for name in files))
