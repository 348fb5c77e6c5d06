"""Draws a table of the study `comparison`: is any model both good and coherent?

    python -m experiments.drawing.comparison results/in_place.csv \\
        docs/figure_in_place.png results/guidance.csv

A point is a model, with standard deviations over seeds; better is up and to the right.
Open points have samples of a mixture fitted to the latents instead of the prior. The
third file, a table of the study `guidance`, gives the line through `code_flow`.
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes

from experiments.drawing.axes import STYLE, make_axes
from experiments.plans.names import model_colour, model_label, model_marker

# A panel: the coherence, its axis label, and the quality of the same images.
_PANELS = (
    ("coherence/size_1", "coherence given one modality", "conditional_swd/size_1"),
    (
        "coherence/leave_one_out",
        "coherence given all others",
        "conditional_swd/leave_one_out",
    ),
    ("coherence/joint", "joint coherence of prior samples", "swd"),
)
_FITTED = "gmm/"  # prefix of tags of the fitted mixture


def draw(table: Path, path: Path, guidance: Path | None = None) -> Path:
    """Writes the figure.

    Args:
      table: CSV of the study `comparison`, with model names as names of runs.
      path: path of the figure.
      guidance: CSV of the study `guidance`, or None.
    """
    rows = pd.read_csv(table)
    with matplotlib.rc_context(STYLE):
        figure, grid = make_axes(1, len(_PANELS), 2.6, 2.4)
        for axes, (tag, words, quality) in zip(grid[0], _PANELS, strict=True):
            if guidance is not None:
                _draw_guidance(axes, pd.read_csv(guidance), quality, tag)
            for row in rows.to_dict("records"):
                _draw_model(axes, row, quality, tag)
                if f"{_FITTED}{tag} mean" in row:
                    _draw_model(axes, row, _FITTED + quality, _FITTED + tag)
            axes.set_xlabel("SWD of the same images (lower is better)")
            axes.set_ylabel(words)
            axes.set_ylim(-0.02, 1.02)
            axes.invert_xaxis()
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5)
        figure.savefig(path, dpi=150)
    return path


def _draw_model(axes: Axes, row: dict, quality: str, tag: str) -> None:
    """Draws a point with the deviations of both values, unless one is NaN."""
    is_fitted = tag.startswith(_FITTED)
    axes.errorbar(
        row[f"{quality} mean"],
        row[f"{tag} mean"],
        xerr=row[f"{quality} std"],
        yerr=row[f"{tag} std"],
        color=model_colour(row["run"]),
        marker=model_marker(row["run"]),
        markersize=7 if row["run"] == "code_flow" else 6,
        markeredgewidth=0.8,
        linestyle="none",
        elinewidth=0.8,
        markerfacecolor="white" if is_fitted else None,
        label="" if is_fitted else model_label(row["run"]),
    )


def _draw_guidance(axes: Axes, points: pd.DataFrame, quality: str, tag: str) -> None:
    """Draws a line over the strengths of guidance, with their numbers."""
    x, y = points[f"{quality} mean"], points[f"{tag} mean"]
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
    parser = argparse.ArgumentParser(description="Draws quality against coherence.")
    parser.add_argument("table", type=Path, help="CSV file of a study")
    parser.add_argument("file", type=Path, help="picture, *.png")
    parser.add_argument("guidance", type=Path, nargs="?", help="CSV file, for a line")
    own = parser.parse_args()
    draw(own.table, own.file, own.guidance)
