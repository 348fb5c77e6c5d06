"""A temporary copy of the tree, to which files of the documents are added."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (
    "benchmarks",
    "configs",
    "datasets",
    "docs",
    "experiments",
    "mmvae_jax",
    "notebooks",
    "results",
    "tests",
)
_BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def copy_tree(folder):
    """Copies what the repository holds, and returns the copy's path."""
    tree = folder / "tree"
    tree.mkdir()
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tree)
    return tree


def files_of(document):
    """The files that a document prints: path -> content.

    They are its blocks of Python whose first line is a comment with their path.
    """
    return dict(_BLOCK.findall((ROOT / document).read_text()))


def write_files(tree, files):
    """Writes new files into a copy."""
    for name, content in files.items():
        path = tree / name
        assert not path.exists(), f"{name} is no new file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def python(tree, *arguments):
    """Runs Python in a copy, whose modules come first."""
    environment = {
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tree.parent / "programs"),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
