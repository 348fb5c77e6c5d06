"""Panels of figures: their grid, axes, lines, legend, and pictures of samples.

Bands are one standard deviation. Empty panels say why. `experiments.plans.names` has
the colours and names of models.
"""

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.drawing import picture_panels
from experiments.drawing.axes import (
    LEVEL,
    NOT_MEASURED,
    add_legend,
    limits_around,
    make_axes,
    make_axes_above,
    say,
)
from experiments.judging import paper
from experiments.plans import plan, tables
from experiments.plans.names import model_colour, model_label, model_marker
from experiments.plans.plan import Evidence, Spec
from experiments.plans.shown_metrics import COHERENCE, MATCHING, Metric
from experiments.plans.tables import Row

_AXIS_LABELS = {"beta": "β", "num_modalities": "number of modalities"}
# Areas of the markers of the smallest and the largest beta, in points squared.
_AREAS = (4.0, 30.0)
# Opacity of reference runs.
_FAINT = 0.45


class Panel(NamedTuple):
    """A panel with lines of some runs.

    Attributes:
      title: title above the panel.
      metric: the plotted quantity.
      specs: the runs.
      modality: the modality of the values; "" for all together.
      heading: text above the label of the axis.
    """

    title: str
    metric: Metric
    specs: Sequence[Spec]
    modality: str = ""
    heading: str = ""


class Front(NamedTuple):
    """A panel with quality against coherence of some runs.

    Attributes:
      title: title above the panel.
      coherence: the horizontal axis.
      quality: the vertical axis, with better values up.
      specs: the runs.
      references: runs for comparison.
      heading: text above the label of the axis.
      is_annotated: whether the betas are written beside the points.
    """

    title: str
    coherence: Metric
    quality: Metric
    specs: Sequence[Spec]
    references: Sequence[Spec]
    heading: str
    is_annotated: bool = False


def draw_grid(
    evidence: Evidence,
    name: str,
    grid: Sequence[Sequence[Panel]],
    size: tuple[float, float],
    *,
    x: str = "beta",
    is_shared: bool = False,
    is_column: bool = True,
    pages: Sequence[picture_panels.Page] = (),
) -> tuple[Figure, list[Row]]:
    """Panels with lines over beta or over the number of modalities.

    Args:
      evidence: the runs.
      name: name of the figure.
      grid: rows of panels; a row may be shorter.
      size: width and height of a panel in inches.
      x: "beta" or "num_modalities".
      is_shared: whether the panels of a row share the vertical axis.
      is_column: whether the panels of a column share the horizontal axis, and those of
        a row a label.
      pages: pages below the panels, one per row; not with `is_shared`.

    Returns:
      (figure, rows), one row per plotted point.
    """
    width, height = size
    num_columns = max((len(line) for line in grid), default=3)
    if pages:
        read = [picture_panels.read_page(evidence, page) for page in pages]
        parts = make_axes_above(len(grid), num_columns, width, height, 0.6, read, 1)
        figure, axes, below = parts
        picture_panels.show_pages(evidence, below, pages, read, itertools.repeat(""))
    else:
        sharey = "row" if is_shared else False
        figure, axes = make_axes(len(grid), num_columns, width, height, sharey=sharey)
    betas = _betas_of(evidence, grid)

    def neighbour(i: int, j: int) -> Panel | None:
        is_there = 0 <= i < len(grid) and j < len(grid[i])
        return grid[i][j] if is_there else None

    rows = []
    for i, line in enumerate(grid):
        for j, panel in enumerate(line):
            axis = axes[i, j]
            above, under = neighbour(i - 1, j), neighbour(i + 1, j)
            own = _kind(evidence, panel)
            found = _fill_panel(axis, evidence, name, panel, x, betas[own], width)
            rows += found
            _say_why_empty(axis, found, keeps_ticks=is_shared)
            if above is None or above.title != panel.title:
                axis.set_title(panel.title)
            if j == 0 or not is_column:
                axis.set_ylabel(_axis_label(panel.metric, height, panel.heading))
            # A title between two panels separates their axes.
            is_one = under is not None and under.title == panel.title
            if is_column and is_one and _kind(evidence, under) == own:
                axis.tick_params(labelbottom=False)
            else:
                axis.set_xlabel(_AXIS_LABELS[x])
            if panel.metric.limits:
                axis.set_ylim(panel.metric.limits)
    empty = [axis for i, line in enumerate(grid) for axis in axes[i, len(line) :]]
    for axis in empty:
        axis.set_axis_off()
    add_legend(figure, empty[0] if empty else None)
    return figure, rows


def _fill_panel(
    axis: Axes,
    evidence: Evidence,
    name: str,
    panel: Panel,
    x: str,
    betas: Sequence[float],
    width: float,
) -> list[Row]:
    """Draws the lines and ticks of a panel; returns the points."""
    if x == "beta":
        _set_beta_axis(axis, betas, width)
        return _draw_over_beta(axis, evidence, name, panel)
    numbers = evidence.config.num_modalities
    axis.set_xticks(numbers)
    axis.set_xlim(numbers[0] - 0.2, numbers[-1] + 0.2)
    return _draw_over_numbers(axis, evidence, name, panel)


def _kind(evidence: Evidence, panel: Panel) -> str:
    """The data set of a panel if it has its own betas; "" for those of the scale."""
    names = {spec.dataset for spec in panel.specs}
    return next(iter(names & set(plan.pair_columns(evidence.config))), "")


def _betas_of(
    evidence: Evidence, grid: Iterable[Iterable[Panel]]
) -> dict[str, list[float]]:
    """The betas of panels that share an axis, by `_kind`."""
    specs: dict[str, list[Spec]] = {}
    for line in grid:
        for panel in line:
            specs.setdefault(_kind(evidence, panel), []).extend(panel.specs)
    return {kind: tables.betas_of(evidence, own) for kind, own in specs.items()}


def draw_fronts(
    evidence: Evidence,
    name: str,
    grid: Sequence[Sequence[Front]],
    size: tuple[float, float],
) -> tuple[Figure, list[Row]]:
    """Panels with quality against coherence, one line per run through its betas.

    Panels of a row with the same quality share an axis.

    Returns:
      (figure, rows), two rows per plotted point, without references.
    """
    is_shared = all(len({front.quality for front in line}) == 1 for line in grid)
    sharey = "row" if is_shared else False
    figure, axes = make_axes(len(grid), len(grid[0]), *size, sharey=sharey)
    specs = [spec for line in grid for front in line for spec in front.specs]
    betas = tables.betas_of(evidence, specs)
    # Each value once, even if it is plotted several times.
    known: dict[tuple, Row] = {}
    for i, line in enumerate(grid):
        turned = set()
        for j, (axis, front) in enumerate(zip(axes[i], line, strict=True)):
            found = _fill_front(axis, evidence, name, front, betas)
            for row in found:
                place = row["dataset"], row["model"], row["beta"], row["metric"]
                known.setdefault(place, row)
            if i == 0:
                axis.set_title(front.title)
            if i + 1 == len(grid):
                axis.set_xlabel(front.coherence.label)
            else:
                axis.tick_params(labelbottom=False)
            if j == 0 or not is_shared:
                axis.set_ylabel(_axis_label(front.quality, size[1], front.heading))
            if found and front.quality.tag.startswith(paper.LOWER_IS_BETTER):
                turned.add(axes[i, 0] if is_shared else axis)
        for axis in turned:
            axis.invert_yaxis()  # for the whole row if shared
    add_legend(figure)
    return figure, list(known.values())


def _fill_front(
    axis: Axes, evidence: Evidence, name: str, front: Front, betas: Sequence[float]
) -> list[Row]:
    """Draws the lines of a front; returns the points of its runs without references."""
    for spec in front.references:
        _draw_run(axis, evidence, name, front, spec, betas, alpha=_FAINT)
    rows = [
        row
        for spec in front.specs
        for row in _draw_run(axis, evidence, name, front, spec, betas)
    ]
    if not _say_why_empty(axis, rows, keeps_ticks=True):
        axis.axvline(front.coherence.chance, **LEVEL, label="chance")
    axis.set_xlim(*front.coherence.limits)
    return rows


def _draw_run(
    axis: Axes,
    evidence: Evidence,
    name: str,
    front: Front,
    spec: Spec,
    betas: Sequence[float],
    *,
    alpha: float = 1.0,
) -> list[Row]:
    """Draws the line of a run in a front; returns its points, two rows per point."""
    tags = front.coherence.tag, front.quality.tag
    own = evidence.spreads[evidence.spreads["run"] == spec.folder]
    points = tables.front_of(own, *tags)
    if points.empty:
        lines = (tables.beta_rows(evidence, name, spec, tag) for tag in tags)
        return [row for line in lines for row in line if "note" in row]
    points = points.assign(setting=points["beta"].map(tables.show_beta))
    label, is_annotated = model_label(spec.model), front.is_annotated
    draw_front(
        axis,
        points,
        spec.model,
        label,
        betas,
        alpha=alpha,
        is_annotated=is_annotated,
    )
    lines = [tables.beta_rows(evidence, name, spec, tag) for tag in tags]
    shown = set(points["beta"])
    pairs = zip(
        *([r for r in line if r["beta"] in shown] for line in lines), strict=True
    )
    return [row for pair in pairs for row in pair]


def draw_front(
    axis: Axes,
    points: pd.DataFrame,
    model: str,
    label: str,
    betas: Sequence[float],
    *,
    alpha: float = 1.0,
    is_annotated: bool = False,
) -> None:
    """Draws quality against coherence: a line whose markers grow with beta.

    Args:
      axis: axis of the panel.
      points: rows of `tables.front_of` of one run; hollow if seeds diverged.
      model: determines the colour and the marker.
      label: label of the line in the legend.
      betas: betas of all lines of the panel, in increasing order.
      alpha: opacity.
      is_annotated: whether to write the column "setting" beside the points.
    """
    colour, marker = model_colour(model), model_marker(model)
    axis.errorbar(
        points["x"],
        points["y"],
        # The deviation of one seed is NaN.
        xerr=points["dx"].fillna(0),
        yerr=points["dy"].fillna(0),
        color=colour,
        alpha=alpha,
        linewidth=0.8,
        elinewidth=0.6,
    )
    areas = dict(zip(betas, np.linspace(*_AREAS, len(betas)), strict=True))
    axis.scatter(
        points["x"],
        points["y"],
        points["beta"].map(areas),
        ["white" if num else colour for num in points["diverged"]],
        marker=marker,
        edgecolors=colour,
        linewidths=0.6,
        alpha=alpha,
        zorder=3,
    )
    # Only for the legend.
    axis.plot([], [], marker, color=colour, linestyle="-", linewidth=0.8, label=label)
    for point in points.itertuples() if is_annotated else ():
        axis.annotate(
            f"β={point.setting}",
            (point.x, point.y),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=7,
            color=colour,
        )


def tags_of(grid: Iterable[Iterable[Panel]]) -> list[str]:
    """The tags of some panels with their modalities, each once."""
    found: dict[str, dict[str, None]] = {}
    for line in grid:
        for panel in line:
            names = found.setdefault(panel.metric.tag, {})
            if panel.modality:
                names[panel.modality] = None
    tags = []
    for tag, names in found.items():
        numbered = [name for name in names if name[1:].isdigit()]
        ends = numbered[:: max(1, len(numbered) - 1)]
        parts = ["…".join(ends)] if ends else []
        parts += [name for name in names if name not in numbered]
        tags += [f"{tag}/{part}" for part in parts] or [tag]
    return tags


def _draw_over_beta(
    axis: Axes, evidence: Evidence, name: str, panel: Panel
) -> list[Row]:
    """Draws one line per run, and levels; returns the existing points."""
    metric, rows = panel.metric, []
    for spec in panel.specs:
        line = tables.beta_rows(evidence, name, spec, metric.tag, panel.modality)
        rows += _draw_line(axis, line, "beta", spec.model)
    if rows and metric.chance is not None:
        axis.axhline(metric.chance, **LEVEL, label="chance")
    if rows and metric.reachable:
        found = tables.reachable_rows(evidence, name, panel.specs, metric.reachable)
        for row in found:
            style = LEVEL | {"linestyle": "--", "label": "classifiers on real data"}
            axis.axhline(row["mean"], **style)
        rows += found
    return rows


def _draw_over_numbers(
    axis: Axes, evidence: Evidence, name: str, panel: Panel
) -> list[Row]:
    """Draws one line per model, and a level for unimodal VAEs; returns the points."""
    scale, tag, rows = evidence.config, panel.metric.tag, []
    for model in plan.MODELS:
        line = []
        for spec in [spec for spec in panel.specs if spec.model == model]:
            beta = scale.datasets[spec.dataset].beta_by_modalities
            found = tables.beta_rows(evidence, name, spec, tag, panel.modality)
            found = [row for row in found if row["beta"] == beta]
            gap = tables.point_row(evidence, name, spec, tag, beta=beta)
            num = spec.num_modalities or scale.num_modalities[-1]
            num = 1 if model == "unimodal" else num
            line += [{**row, "num_modalities": num} for row in found or [gap]]
        if model == "unimodal":
            present = [row for row in line if np.isfinite(row["mean"])]
            for row in present:
                ends = np.array(axis.get_xlim())
                _draw_mean(axis, ends, np.full(2, row["mean"]), row["std"], model)
            rows += present
        else:
            rows += _draw_line(axis, line, "num_modalities", model)
    return rows


def draw_given(
    axis: Axes,
    evidence: Evidence,
    name: str,
    specs: Sequence[Spec],
    references: Sequence[Spec],
) -> list[Row]:
    """Draws coherence over the number of given modalities; returns the points of specs.

    Args:
      axis: axis of the panel.
      evidence: the runs.
      name: name of the figure.
      specs: the runs, each at its selected beta.
      references: runs for comparison.
    """
    rows = []
    for spec in (*references, *specs):
        if spec.model == "unimodal":
            continue  # unimodal VAEs are not conditional
        line = tables.given_rows(evidence, name, spec)
        if spec in specs:
            rows += _draw_line(axis, line, "given", spec.model)
        else:
            _draw_line(axis, line, "given", spec.model, _FAINT)
    if rows:
        axis.axhline(COHERENCE.chance, **LEVEL, label="chance")
    else:
        say(axis, NOT_MEASURED, keeps_ticks=True)
    return rows


def draw_published(axis: Axes, lines: Mapping[str, Sequence[float]]) -> None:
    """Draws published coherences of models given one, two, ... modalities."""
    for model, line in lines.items():
        x, y = np.arange(1, len(line) + 1), np.array(line)
        _draw_mean(axis, x, y, np.nan, model, model_marker(model))
    axis.axhline(COHERENCE.chance, **LEVEL, label="chance")


def _say_why_empty(axis: Axes, rows: Sequence[Row], *, keeps_ticks: bool) -> bool:
    """Writes the reason in an empty panel; returns whether the panel is empty."""
    if any(np.isfinite(row["mean"]) for row in rows):
        return False
    notes = dict.fromkeys(row["note"] for row in rows if "note" in row)
    words = "\n".join(textwrap.wrap("; ".join(["nan", *notes]), 30))
    say(axis, words if notes else NOT_MEASURED, keeps_ticks=keeps_ticks)
    return True


def _draw_line(
    axis: Axes, rows: Sequence[Row], x: str, model: str, alpha: float = 1.0
) -> list[Row]:
    """Draws mean and band; returns the rows, or rows with a note if all are NaN.

    Points with diverged seeds are hollow, because they average fewer seeds.
    """
    present = [row for row in rows if np.isfinite(row["mean"])]
    if not present:
        return [row for row in rows if "note" in row]
    places, mean, std, diverged = (
        np.array([row[column] for row in rows], float)
        for column in (x, "mean", "std", "diverged")
    )
    marker = model_marker(model)
    _draw_mean(axis, places, mean, std, model, marker, alpha)
    is_partial = np.isfinite(mean) & (diverged > 0)
    if is_partial.any():
        axis.plot(
            places[is_partial],
            mean[is_partial],
            marker,
            color=model_colour(model),
            markerfacecolor="white",
        )
    return present


def _draw_mean(
    axis: Axes,
    x: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray | float,
    model: str,
    marker: str = "",
    alpha: float = 1.0,
) -> None:
    """Draws a line and a band in a model's colour; no band for one seed."""
    colour, std = model_colour(model), np.nan_to_num(std)
    axis.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2 * alpha, lw=0)
    label = model_label(model)
    axis.plot(x, mean, marker=marker, color=colour, label=label, alpha=alpha)


def draw_pairs(axis: Axes, pairs: Mapping[Spec, pd.DataFrame]) -> None:
    """Draws annotation-free against labelled coherence, with both levels of chance."""
    for spec, found in pairs.items():
        axis.plot(
            found[COHERENCE.tag],
            found[MATCHING.tag],
            model_marker(spec.model),
            color=model_colour(spec.model),
            label=model_label(spec.model),
            alpha=0.75,
            markeredgewidth=0,
            markersize=4.5,
        )
    axis.axvline(COHERENCE.chance, **LEVEL)
    axis.axhline(0, **LEVEL, label="chance")
    points = pd.concat(pairs.values())
    axis.set_xlim(*limits_around([*points[COHERENCE.tag], COHERENCE.chance]))
    axis.set_ylim(*limits_around([*points[MATCHING.tag], 0.0]))


def _set_beta_axis(axis: Axes, betas: Sequence[float], width: float) -> None:
    """Sets a logarithmic axis with space for zero, and a tick per beta if they fit."""
    positive = [beta for beta in betas if beta > 0]
    if not positive:
        axis.set_xticks(betas)
    elif positive == list(betas):
        axis.set_xscale("log")
    else:
        axis.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    transform = axis.get_xaxis().get_transform()
    places = transform.transform(np.asarray(betas, float))
    span = places[-1] - places[0] or 1.0
    ends = np.array([places[0] - 0.05 * span, places[-1] + 0.05 * span])
    axis.set_xlim(*transform.inverted().transform(ends))
    inches = (places - places[0]) / span * (0.9 * width - 0.2)
    labels, last = [], np.inf
    for place, beta in zip(inches[::-1], betas[::-1], strict=True):
        text = tables.show_beta(beta)
        half = 0.5 * 0.05 * len(text) + 0.01
        is_free = place + half < last
        labels.append(text if is_free else "")
        last = place - half if is_free else last
    axis.set_xticks(betas, labels[::-1])
    axis.minorticks_off()


def _axis_label(metric: Metric, height: float, heading: str) -> str:
    """A metric's label, wrapped to the height of a panel in inches."""
    # Keep words in brackets on one line.
    name, bracket, rest = metric.label.partition("(")
    text = name + bracket + rest.replace(" ", "\N{NO-BREAK SPACE}")
    width = round(height * 72 / 4.6)
    num_lines = len(textwrap.wrap(text, width))
    while len(textwrap.wrap(text, width - 1)) == num_lines:
        width -= 1
    lines = [heading] * bool(heading) + textwrap.wrap(text, width)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
