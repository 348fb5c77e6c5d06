"""Axes and legends of all figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmvae_jax.models import MODELS

# Also needed when saving: the fonts of a PDF are chosen then.
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
}
_GREY = "0.55"
LEVEL = {"color": "0.3", "linewidth": 0.8, "linestyle": ":"}

NOT_MEASURED = "not measured"


def make_axes(
    num_rows: int,
    num_columns: int,
    width: float,
    height: float,
    legend: float = 0.6,
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of panels and space for a legend above; sizes in inches."""
    size = (num_columns * width + 0.6, num_rows * height + legend)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def make_axes_above(
    num_rows: int,
    num_columns: int,
    width: float,
    height: float,
    legend: float,
    pages: Sequence[np.ndarray | str],
    num_pages: int,
) -> tuple[Figure, np.ndarray, list[Axes]]:
    """`make_axes` with space for pages below the panels, `num_pages` per row.

    Returns:
      (figure, axes of the panels, one axis per page).
    """
    full = num_columns * width
    lines = [pages[i : i + num_pages] for i in range(0, len(pages), num_pages)]
    heights = [num_rows * height] * (num_rows > 0)
    for line in lines:
        shapes = [page.shape[:2] for page in line if not isinstance(page, str)]
        aspect = max((shape[0] / shape[1] for shape in shapes), default=0.1)
        heights.append(full / num_pages * aspect + 0.3)
    figure = Figure(figsize=(full + 0.6, sum(heights) + legend), layout="constrained")
    FigureCanvasAgg(figure)
    outer = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = np.empty((0, num_columns), object)
    if num_rows:
        inner = outer[0].subgridspec(num_rows, num_columns)
        axes = inner.subplots(squeeze=False)
    below = []
    for i in range(len(lines)):
        place = outer[len(heights) - len(lines) + i].subgridspec(1, num_pages)
        below += list(place.subplots(squeeze=False)[0])
    for axis in below:
        axis.set_axis_off()
    return figure, axes, below


def limits_around(shown: Sequence[float], least: float = 0.3) -> tuple[float, float]:
    """Limits of an axis around values, at least `least` wide so that noise is small."""
    low, high = min(shown), max(shown)
    half = max(high - low, least) * 0.54
    return (low + high) / 2 - half, (low + high) / 2 + half


def say(axis: Axes, text: str, *, keeps_ticks: bool = False) -> None:
    """Writes the reason for an empty panel in its middle."""
    place = {"ha": "center", "va": "center", "transform": axis.transAxes}
    axis.text(0.5, 0.5, text, color=_GREY, parse_math=False, **place)
    if not keeps_ticks:
        axis.tick_params(left=False, labelleft=False)
        axis.grid(False)


def add_legend(figure: Figure, place: Axes | None = None) -> None:
    """Adds one legend for all panels: above them, or in a free panel."""
    found: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = [model.label for model in MODELS.values()]
    labels = sorted(found, key=lambda x: order.index(x) if x in order else len(order))
    if not labels:
        return
    handles = [found[label] for label in labels]
    if place is not None:
        place.legend(handles, labels, loc="center", ncols=1 + (len(labels) > 9))
    else:
        # A label and its line need an inch and a half.
        columns = max(1, min(len(labels), 6, int(figure.get_figwidth() / 1.5)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
