"""Draws a table of the study `comparison`: is any model both good and coherent?

    python -m experiments.drawing.comparison results/in_place.csv \\
        docs/figure_in_place.png results/guidance.csv

A point is a model, with the standard deviation over seeds; better is up and to the
right. The third file, a table of the study `guidance`, is the line through `code_flow`.
"""

import sys
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes

from experiments.drawing.axes import STYLE, make_axes
from experiments.plans.names import model_colour, model_label, model_marker

_QUALITY = "swd"
# Column of the table -> axis.
_COHERENCE = {
    "coherence/size_1": "coherence given one modality",
    "coherence/leave_one_out": "coherence given all others",
    "coherence/joint": "joint coherence of prior samples",
}


def draw(table: Path, path: Path, guidance: Path | None = None) -> Path:
    """Writes the figure.

    Args:
      table: CSV of the study `comparison`; its runs are named by their models.
      path: of the figure.
      guidance: CSV of the study `guidance`, if there is one.
    """
    rows = pd.read_csv(table)
    with matplotlib.rc_context(STYLE):
        figure, grid = make_axes(1, len(_COHERENCE), 2.6, 2.4)
        for axes, (tag, words) in zip(grid[0], _COHERENCE.items(), strict=True):
            if guidance is not None:
                _draw_guidance(axes, pd.read_csv(guidance), tag)
            for row in rows.to_dict("records"):
                _draw_model(axes, row, tag)
            axes.set_xlabel("SWD of prior samples (lower is better)")
            axes.set_ylabel(words)
            axes.set_ylim(-0.02, 1.02)
            axes.invert_xaxis()
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5)
        figure.savefig(path, dpi=150)
    return path


def _draw_model(axes: Axes, row: dict, tag: str) -> None:
    """A point with the deviations of both values."""
    axes.errorbar(
        row[f"{_QUALITY} mean"],
        row[f"{tag} mean"],
        xerr=row[f"{_QUALITY} std"],
        yerr=row[f"{tag} std"],
        color=model_colour(row["run"]),
        marker=model_marker(row["run"]),
        markersize=7 if row["run"] == "code_flow" else 5,
        linestyle="none",
        elinewidth=0.8,
        label=model_label(row["run"]),
    )


def _draw_guidance(axes: Axes, points: pd.DataFrame, tag: str) -> None:
    """A line over the strengths, each with its number."""
    x, y = points[f"{_QUALITY} mean"], points[f"{tag} mean"]
    axes.plot(x, y, color=model_colour("code_flow"), linewidth=0.8, marker=".")
    for strength, a, b in zip(points["guidance"], x, y, strict=True):
        axes.annotate(
            f"{strength:g}",
            (a, b),
            fontsize=6,
            xytext=(2, -7),
            textcoords="offset points",
        )


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(
            "usage: python -m experiments.drawing.comparison TABLE.csv FILE.png "
            "[GUIDANCE.csv]"
        )
    draw(*map(Path, sys.argv[1:]))
