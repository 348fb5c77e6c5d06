"""A temporary copy of the tree, to which the additions of the documents are made."""

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
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\S+\.py)\n(.*)", re.DOTALL)


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


def blocks_of(document, start=""):
    """The blocks of Python that a document prints after the first `start` in it."""
    _, found, text = (ROOT / document).read_text().partition(start or "#")
    assert found, f"{document} has no {start!r}"
    return _BLOCK.findall(text)


def files_of(document, start=""):
    """The new files that a document prints: path -> content.

    They are its blocks whose first line is a comment with their path.
    """
    found = (_FILE.fullmatch(block) for block in blocks_of(document, start))
    return dict(match.groups() for match in found if match)


def write_files(tree, files):
    """Writes new files into a copy."""
    for name, content in files.items():
        path = tree / name
        assert not path.exists(), f"{name} is no new file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def insert(path, added, before):
    """Inserts text in a file before the first occurrence of other text."""
    text = path.read_text()
    assert before in text, f"{path} has no {before!r}"
    path.write_text(text.replace(before, added + before, 1))


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
