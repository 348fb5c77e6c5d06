"""The notebooks: as they are stored, and every cell in order with tiny settings."""

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import nbclient
import nbformat
import pytest
from matplotlib import pyplot

from experiments.drawing import notebooks

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
COPIES = ROOT / "docs" / "notebooks"
# Notebook -> its settings.
TINY = {
    "explore": """
MODELS, BETAS, NUM_STEPS = ("mvae", "mmvae"), (0.3, 1.0), 4
WIDTHS, NUM_COPIES = (8,), 1
""",
    "your_data": """
NUM_STEPS, NUM_DRAWS = 4, 2
FIT = FIT | {"config": {"modality.network_options.widths": (8,)}}
""",
    "sweep": """
BETAS, SEEDS, NUM_STEPS, WIDTHS = (0.3, 1.0), (0, 1), 4, (8,)
""",
    # The smoke config's data.
    "claim": """
BETAS = (1.0,)
CHANGES = {
    "model": {"latent_dim": 4},
    "modality": {"network_options": {"widths": (8,)}},
    "data": {"num_modalities": 2, "image_size": 8, "pairings": 1},
    "train": {"num_steps": 4, "batch_size": 16},
    "eval": {"batch_size": 100, "num_examples": 100},
}
""",
}
# Notebook -> its cells that show a picture.
PICTURES = {
    "explore": ("data", "curves", "tradeoff", "prior", "conditional", "embedding"),
    "your_data": ("imputation", "score"),
    "sweep": ("rate", "front", "samples"),
    "claim": ("numbers",),
}


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    return read(name)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook):
    """The positions of the cells whose settings may be replaced."""
    return [
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    ]


def test_it_is_stored_without_outputs(name, notebook):
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
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


def with_tiny_settings(name, data_dir=""):
    """A notebook with a cell after that of its settings."""
    found = read(name)
    source = f"{TINY[name]}DATA_DIR = {data_dir!r}"
    tiny = nbformat.v4.new_code_cell(source)
    found.cells.insert(tagged(found)[0] + 1, tiny)
    return found


def test_the_first_cell_is_the_same_in_all(notebook):
    assert notebook.cells[1].id == notebooks.SETUP
    assert notebook.cells[1].source == read("explore").cells[1].source


def test_the_tour_is_of_the_calls_of_the_library():
    code = "\n".join(cell.source for cell in code_cells(read("explore"))[1:])
    for call in ("fit", "score", "generate", "embed", "impute", "export", "load"):
        assert f"mmvae_jax.{call}(" in code, call
    assert not re.search(r"mmvae_jax\.\w+\.|experiments|configs", code)


def test_the_cells_before_training_run_in_this_process(name, monkeypatch):
    """The slow test below runs whole notebooks in kernels, as Jupyter does."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    space, cells = {}, code_cells(with_tiny_settings(name))
    for cell in cells[:4]:  # the first, settings, tiny settings, data or claim
        exec(compile(cell.source, cell.get("id", "tiny"), "exec"), space)
    assert cells[3].id in ("data", "claim")
    if name == "claim":
        assert space["claim"].name == space["CLAIM"]
    else:
        assert not {"trained", "members"} & space.keys()
        data = space.get("train", space.get("data"))
        assert len({len(x) for x in data.values()}) == 1 and len(data) >= 2


@pytest.mark.slow
def test_every_cell_runs(name, data_dir, cache, tmp_path, monkeypatch):
    for variable, value in cache.items():
        monkeypatch.setenv(variable, value)
    # Nearly all the time is compilation.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = with_tiny_settings(name, str(data_dir))
    before = files()
    nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        # As Jupyter starts it; what it writes goes to DATA_DIR.
        resources={"metadata": {"path": str(ROOT / "notebooks")}},
    ).execute()
    assert files() == before
    page, pictures = notebooks.render(notebook, name)
    assert set(pictures) == {f"{name}_{cell}.png" for cell in PICTURES[name]}
    assert all(f"]({file})" in page for file in pictures)
    assert "IProgress" not in page and "it/s" not in page


def files():
    """What lies in the root of the repository and beside the notebooks."""
    return {*ROOT.glob("*"), *(ROOT / "notebooks").iterdir()}


def test_the_copy_in_the_documentation_is_of_the_notebook(name, notebook):
    """`python -m experiments.drawing.notebooks docs/notebooks` writes it."""
    page = (COPIES / f"{name}.md").read_text()
    written = [cell.source for cell in code_cells(notebook)]
    assert notebooks.code_of(page) == written[1:]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert cell.source in page
    assert str(ROOT) not in page and tempfile.gettempdir() not in page
    shown = re.findall(r"\]\((\S+\.png)\)", page)
    assert set(shown) == {f"{name}_{cell}.png" for cell in PICTURES[name]}
    assert all((COPIES / file).read_bytes().startswith(b"\x89PNG") for file in shown)


def test_a_copy_has_what_is_shown_and_no_progress():
    def output(kind, **fields):
        return nbformat.v4.new_output(kind, **fields)

    cell = nbformat.v4.new_code_cell("print(1)")
    cell.id, cell.outputs = (
        "one",
        [
            output("stream", name="stderr", text="training: 10%"),
            output(
                "stream", name="stdout", text=f"1 {tempfile.gettempdir()}/tmpab_1/x\n"
            ),
            output("stream", name="stdout", text="2\n"),
            output(
                "display_data", data={"image/png": "AAEC", "text/plain": "<Figure>"}
            ),
        ],
    )
    setup = nbformat.v4.new_code_cell("install()")
    setup.id = notebooks.SETUP
    text = nbformat.v4.new_markdown_cell("# Title")
    made = nbformat.v4.new_notebook(cells=[text, setup, cell])
    page, pictures = notebooks.render(made, "it")
    assert page == (
        "# Title\n\n```python\nprint(1)\n```\n\n```text\n1 x\n2\n```\n\n"
        "![what the cell shows: one](it_one.png)\n"
    )
    assert pictures == {"it_one.png": bytes([0, 1, 2])}
    assert notebooks.code_of(page) == ["print(1)"]


def test_an_error_of_a_cell_is_an_error(tmp_path):
    """Else the test above could not fail."""
    broken = nbformat.v4.new_notebook(metadata=read("sweep").metadata)
    broken.cells = [nbformat.v4.new_code_cell("raise ValueError('so')")]
    client = nbclient.NotebookClient(
        broken, timeout=60, resources={"metadata": {"path": str(tmp_path)}}
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="so"):
        client.execute()


@pytest.fixture
def in_colab(tmp_path, monkeypatch):
    """(REPOSITORY) -> the commands that the first cell runs in Colab."""
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = code_cells(read("explore"))[0].source

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
