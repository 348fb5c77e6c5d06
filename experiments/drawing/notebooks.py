"""Copies of the notebooks for the documentation, with the output of their cells.

    python -m experiments.drawing.notebooks docs/notebooks [NAME ...]

Runs notebooks/NAME.ipynb (default: all) and writes NAME.md with text, code and printed
output, and the pictures beside it.
"""

import argparse
import base64
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmvae_jax.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
# Temporary folders, which are removed from the output.
_TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/tmp\w+/")
# The first code cell of every notebook, which installs packages; left out of the pages.
SETUP = "setup"


def render(notebook: Mapping[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Converts an executed notebook to Markdown.

    Progress bars, warnings and other lines of stderr are left out.

    Args:
      notebook: notebook with outputs, as read by nbformat.
      name: name of its file without the suffix.

    Returns:
      (the page, file name -> PNG).
    """
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(cell["source"])
        elif cell["id"] == SETUP:
            continue
        else:
            parts.append(f"```python\n{cell['source']}\n```")
            for kind, content in _shown(cell["outputs"]):
                if kind == "image/png":
                    file = f"{name}_{cell['id']}.png"
                    pictures[file] = base64.b64decode(content)
                    parts.append(f"![what the cell shows: {cell['id']}]({file})")
                else:
                    text = _TEMPORARY.sub("", content).strip("\n")
                    parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n", pictures


def _shown(outputs: list) -> Iterator[tuple[str, str]]:
    """Yields type and content of the outputs of a cell; joins consecutive lines."""
    lines = ""
    for output in outputs:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            lines += output["text"]
        elif "data" in output:
            if lines:
                yield "text/plain", lines
                lines = ""
            kinds = [k for k in ("image/png", "text/plain") if k in output["data"]]
            yield from [(kind, output["data"][kind]) for kind in kinds[:1]]
    if lines:
        yield "text/plain", lines


def code_of(page: str) -> list[str]:
    """The code of a page, one string per cell."""
    return re.findall(r"^```python\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE)


def write(folder: Path, name: str) -> Path:
    """Runs one notebook and writes its page and pictures."""
    import nbclient  # in the extra `test`
    import nbformat

    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    place = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=None, resources=place).execute()
    page, pictures = render(notebook, name)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in pictures.items():
        (folder / file).write_bytes(content)
    write_whole(folder / f"{name}.md", page)
    return folder / f"{name}.md"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Runs notebooks and writes pages.")
    parser.add_argument("folder", type=Path, help="where the pages go")
    parser.add_argument("names", nargs="*", help="of notebooks; default: all")
    own = parser.parse_args()
    for stem in own.names or sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")):
        print(write(own.folder, stem))
