"""The notebook: as it is stored, and every cell of it in order with tiny settings."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbclient
import nbformat
import pytest

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "explore.ipynb"
CONSTRAINTS = ROOT / "constraints.txt"
# The settings, and the smoke config's data and classifiers.
TINY = """
MODELS = ("mvae", "mopoe")
BETAS = (0.3, 1.0)
NUM_STEPS = THEORY_STEPS = 4
DATA_DIR = {data_dir!r}
CHANGES = {{
    "model.latent_dim": 4,
    "modality.network_options.widths": (16,),
    "data.num_modalities": 2,
    "data.image_size": 8,
    "data.pairings": 1,
    "train.batch_size": 16,
    "classifier.num_steps": 60,
    "classifier.batch_size": 64,
    "eval.batch_size": 100,
    "eval.num_examples": 100,
}}
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook):
    """The positions of the cells whose settings may be replaced."""
    return [
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    ]


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    text = NOTEBOOK.read_text()
    assert text.endswith("}\n")
    assert "attachments" not in text
    # What an editor adds: of whom it is, and what it ran with.
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}


def test_it_names_no_place_of_a_machine(notebook):
    for cell in notebook.cells:
        assert not re.search(r"(?<![\w.)])(/|~/|[A-Z]:\\)[a-z]+/", cell.source), cell.id


def test_every_code_cell_is_introduced(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert ("code", "code") not in zip(kinds, kinds[1:], strict=False)
    assert len(tagged(notebook)) == 1


@pytest.mark.slow
def test_every_cell_runs(notebook, data_dir, cache, tmp_path, monkeypatch):
    for name, value in cache.items():
        monkeypatch.setenv(name, value)
    # Nearly all the time is compilation.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    tiny = nbformat.v4.new_code_cell(TINY.format(data_dir=str(data_dir)))
    notebook.cells.insert(tagged(notebook)[0] + 1, tiny)
    before = files()
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        # As Jupyter starts it; what it writes goes to DATA_DIR.
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    ).execute()
    assert files() == before
    outputs = {
        cell.id: {kind for output in cell.outputs for kind in output.get("data", ())}
        for cell in code_cells(notebook)
    }
    for name in ("data", "curves", "tradeoff", "prior", "conditional", "traversal"):
        assert "image/png" in outputs[name], name
    for name in ("experts", "decoded", "discrepancy", "trained"):
        assert "image/png" in outputs[name], name
    for name in ("evaluation", "rates"):
        assert "text/html" in outputs[name], name


def files():
    """What lies in the root of the repository and beside the notebook."""
    return {*ROOT.glob("*"), *NOTEBOOK.parent.iterdir()}


def test_an_error_of_a_cell_is_an_error(notebook, tmp_path):
    """Else the test above could not fail."""
    broken = nbformat.v4.new_notebook(metadata=notebook.metadata)
    broken.cells = [nbformat.v4.new_code_cell("raise ValueError('so')")]
    client = nbclient.NotebookClient(
        broken, timeout=60, resources={"metadata": {"path": str(tmp_path)}}
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="so"):
        client.execute()


@pytest.fixture
def in_colab(notebook, tmp_path, monkeypatch):
    """(REPOSITORY) -> the commands that the first cell runs in Colab."""
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = code_cells(notebook)[0].source

    installed = {"jax": "0.7.2", "jaxlib": "0.7.2", "numpy": "2.0.2", "flax": "0.11"}

    def version(name):
        if name in installed:
            return installed[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)

    def execute(repository):
        commands = []

        def run(command, check):
            assert check
            commands.append(command)
            if command[0] == "git":
                checkout = tmp_path / command[-1]
                checkout.mkdir()
                (checkout / "constraints.txt").write_text(CONSTRAINTS.read_text())
            else:
                installed["mmvae_jax"] = "1"

        monkeypatch.setattr(subprocess, "run", run)
        named, count = re.subn(
            'REPOSITORY = ""', f"REPOSITORY = {json.dumps(repository)}", source
        )
        assert count == 1
        exec(compile(named, "setup", "exec"), {})
        return commands

    return execute


def test_in_colab_it_is_cloned_and_installed_once(in_colab, tmp_path):
    address = "https://example.org/mmvae_jax.git"
    clone, install = in_colab(address)
    assert clone == ["git", "clone", address, "mmvae_jax"]
    assert install[:4] == [sys.executable, "-m", "pip", "install"]
    assert install[-1] == str(tmp_path / "mmvae_jax")
    assert Path.cwd() == tmp_path / "mmvae_jax"
    assert sys.path[0] == str(Path.cwd())
    assert in_colab(address) == []  # the cell once more, in the checkout
    os.chdir(tmp_path)
    assert in_colab(address) == []  # and in a new session
    assert Path.cwd() == tmp_path / "mmvae_jax"


def test_in_colab_what_is_installed_stays(in_colab, tmp_path):
    _, install = in_colab("https://example.org/mmvae_jax.git")
    name = install[install.index("--constraint") + 1]
    lines = (tmp_path / name).read_text().splitlines()
    assert lines[-3:] == ["jax==0.7.2", "jaxlib==0.7.2", "numpy==2.0.2"]
    names = [line.split("==")[0] for line in lines]
    assert "flax" not in names
    pinned = {line for line in CONSTRAINTS.read_text().splitlines() if "==" in line}
    assert set(lines[:-3]) <= pinned
    assert {"clu", "tensorflow-datasets"} <= set(names)


def test_in_colab_without_an_address_it_says_so(in_colab):
    with pytest.raises(ValueError, match="set REPOSITORY"):
        in_colab("")
