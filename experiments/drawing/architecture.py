"""Draws the rooms (subpackages) and the imports between them.

    python -m experiments.drawing.architecture docs/architecture.png

The picture is drawn from the import statements. A box is a room with its lines of code.
An arrow points to an imported room; its width is the number of imports.
"""

import argparse
import ast
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

PACKAGE, COMMANDS = "mmvae_jax", "experiments"
# Room -> (column, row) of its box; the basis is at the bottom.
_PLACES = {
    "commands": (1.0, 6.0),
    "studies": (3.0, 6.0),
    "drawing": (0.0, 5.0),
    "judging": (1.0, 5.0),
    "plans": (2.0, 5.0),
    "running": (3.0, 5.0),
    "interface": (1.5, 4.0),
    "evaluation": (1.5, 3.0),
    "models": (0.5, 2.0),
    "training": (2.5, 2.0),
    "networks": (0.0, 1.0),
    "mathematics": (1.5, 1.0),
    "data": (3.0, 1.0),
    "basis": (1.5, 0.0),
}


def _room_of(parts: tuple[str, ...], root: Path) -> str | None:
    """The room of a dotted name; None for other packages.

    Args:
      parts: parts of the dotted name, for instance ("mmvae_jax", "data", "arrays").
      root: folder of the repository.
    """
    if len(parts) < 2 or parts[0] not in (PACKAGE, COMMANDS):
        return None
    if (root / parts[0] / parts[1]).is_dir():
        return parts[1]
    return "basis" if parts[0] == PACKAGE else "commands"


def _source_files(root: Path) -> list[Path]:
    """The Python files of both packages, relative to `root`."""
    found = (root / folder for folder in (PACKAGE, COMMANDS))
    return sorted(p.relative_to(root) for folder in found for p in folder.rglob("*.py"))


def count_imports(root: Path) -> Counter:
    """(room, imported room) -> number of import statements."""
    counted: Counter = Counter()
    for path in _source_files(root):
        room = _room_of(path.with_suffix("").parts, root)
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {
                    _room_of((*node.module.split("."), alias.name), root)
                    for alias in node.names
                }
                counted.update((room, below) for below in names - {room, None})
    return counted


def draw(root: Path, path: Path) -> Path:
    """Writes the picture as PNG.

    Args:
      root: folder of the repository.
      path: path of the file.

    Returns:
      The same path.
    """
    lines: Counter = Counter()
    for source in _source_files(root):
        room = _room_of(source.with_suffix("").parts, root)
        lines[room] += len((root / source).read_text().splitlines())
    figure = Figure(figsize=(9.0, 8.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.6, 3.6), ylim=(-0.45, 6.45))
    axes.set_axis_off()
    for (above, below), number in count_imports(root).items():
        if below == "basis":  # every room imports from it
            continue
        start, end = _PLACES[above], _PLACES[below]
        is_level = start[1] == end[1]
        axes.annotate(
            "",
            xy=(end[0], end[1] + (0.0 if is_level else 0.26)),
            xytext=(start[0], start[1] - (0.0 if is_level else 0.26)),
            arrowprops={
                "arrowstyle": "-|>",
                "color": "0.6",
                "linewidth": 0.4 + number**0.5 / 3,
                "shrinkA": 45 if is_level else 0,
                "shrinkB": 45 if is_level else 0,
                "connectionstyle": f"arc3,rad={0.35 if is_level else 0.0}",
            },
            zorder=0,
        )
    for room, (x, y) in _PLACES.items():
        colour = "#dbe9f6" if y <= 4 else "#fdebd3"
        axes.text(
            x,
            y,
            f"{room}\n{lines[room]:,} lines",
            ha="center",
            va="center",
            fontsize=10,
            bbox={"boxstyle": "round,pad=0.5", "facecolor": colour},
        )
    axes.set_title(f"{PACKAGE} (blue) and {COMMANDS} (orange)", fontsize=10)
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draws the rooms and their imports.")
    parser.add_argument("file", type=Path, help="picture, *.png")
    draw(Path(__file__).resolve().parents[2], parser.parse_args().file)
