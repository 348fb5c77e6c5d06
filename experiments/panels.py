"""Panels of figures: their grid, axes, lines, legend, and pictures of samples.

A band is one standard deviation, and a panel without values says so. Colours and
names of models are those of `experiments.names`.
"""

import itertools
import string
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments import paper, plans, values
from experiments.names import model_colour, model_label, model_marker
from experiments.plans import Evidence, Spec
from experiments.values import COHERENCE, MATCHING, Metric, Row
from mmvae_jax.errors import UsageError
from mmvae_jax.models import MODELS
from mmvae_jax.sweeps import Member
from mmvae_jax.writers import member_name

# Also for saving: fonts of a PDF are chosen when it is written.
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
GREY = "0.55"
LEVEL = {"color": "0.3", "linewidth": 0.8, "linestyle": ":"}
AXIS_LABELS = {"beta": "β", "num_modalities": "number of modalities"}
# Areas of the markers of the smallest and the largest beta, points squared.
AREAS = (4.0, 30.0)
# Opacity of what is there to be compared with.
FAINT = 0.45
NOT_MEASURED = "not measured"


class Panel(NamedTuple):
    """Lines of some runs.

    Attributes:
      title: above the panel.
      metric: the quantity shown.
      specs: the runs.
      modality: the modality whose values they are; "" for those of all together.
      heading: above the label of the axis.
    """

    title: str
    metric: Metric
    specs: Sequence[Spec]
    modality: str = ""
    heading: str = ""


class Front(NamedTuple):
    """Quality against coherence of some runs.

    Attributes:
      title: above the panel.
      coherence: to the right.
      quality: better is up, as it is in all fronts of this project.
      specs: the runs.
      references: runs that are there to be compared with.
      heading: above the label of the axis.
      is_annotated: whether each point has its beta beside it.
    """

    title: str
    coherence: Metric
    quality: Metric
    specs: Sequence[Spec]
    references: Sequence[Spec]
    heading: str
    is_annotated: bool = False


class Strips(NamedTuple):
    """A picture of samples, as runs write it.

    Attributes:
      name: name of its file, after the member's.
      labels: text beside each of its rows.
    """

    name: str
    labels: Sequence[str]


class Page(NamedTuple):
    """A picture of samples with captions, as runs write it.

    Attributes:
      spec: the run.
      name: name of its file, after the member's.
      title: description of the picture.
      part: share of its height that is shown, from above.
    """

    spec: Spec
    name: str
    title: str
    part: float


def make_axes(
    num_rows: int,
    num_columns: int,
    width: float,
    height: float,
    legend: float = 0.6,
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of panels of a size, and of room above, in inches."""
    size = (num_columns * width + 0.6, num_rows * height + legend)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def _make_axes_above(
    num_rows: int,
    num_columns: int,
    width: float,
    height: float,
    legend: float,
    pages: Sequence[np.ndarray | str],
    num_pages: int,
) -> tuple[Figure, np.ndarray, list[Axes]]:
    """`make_axes` with room for pages below the panels, some in a row.

    Returns:
      (figure, axes of the panels, an axis a page).
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


def draw_grid(
    evidence: Evidence,
    name: str,
    grid: Sequence[Sequence[Panel]],
    size: tuple[float, float],
    *,
    x: str = "beta",
    is_shared: bool = False,
    is_column: bool = True,
    pages: Sequence[Page] = (),
) -> tuple[Figure, list[Row]]:
    """Panels with lines over beta or over the number of modalities.

    Args:
      evidence: the runs.
      name: name of the figure.
      grid: rows of panels; a row may be shorter.
      size: width and height of a panel, inches.
      x: "beta" or "num_modalities".
      is_shared: whether the panels of a row have one axis of values.
      is_column: whether those of a column have one axis below and those of a row
        one label.
      pages: below the panels, one in a row; not with `is_shared`.

    Returns:
      (figure, rows), a row for each plotted point.
    """
    width, height = size
    num_columns = max((len(line) for line in grid), default=3)
    if pages:
        read = [_read_page(evidence, page) for page in pages]
        parts = _make_axes_above(len(grid), num_columns, width, height, 0.6, read, 1)
        figure, axes, below = parts
        _show_pages(evidence, below, pages, read, itertools.repeat(""))
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
            if not found:
                say(axis, NOT_MEASURED, keeps_ticks=is_shared)
            if above is None or above.title != panel.title:
                axis.set_title(panel.title)
            if j == 0 or not is_column:
                axis.set_ylabel(_axis_label(panel.metric, height, panel.heading))
            # A title between two panels parts their axes.
            is_one = under is not None and under.title == panel.title
            if is_column and is_one and _kind(evidence, under) == own:
                axis.tick_params(labelbottom=False)
            else:
                axis.set_xlabel(AXIS_LABELS[x])
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
    """Draws the lines of a panel over x, with its ticks; returns the points."""
    if x == "beta":
        _set_beta_axis(axis, betas, width)
        return _draw_over_beta(axis, evidence, name, panel)
    numbers = evidence.config.num_modalities
    axis.set_xticks(numbers)
    axis.set_xlim(numbers[0] - 0.2, numbers[-1] + 0.2)
    return _draw_over_numbers(axis, evidence, name, panel)


def _kind(evidence: Evidence, panel: Panel) -> str:
    """The data set of a panel whose betas are its own; "" of those of the scale."""
    names = {spec.dataset for spec in panel.specs}
    return next(iter(names & set(plans.pair_columns(evidence.config))), "")


def _betas_of(
    evidence: Evidence, grid: Iterable[Iterable[Panel]]
) -> dict[str, list[float]]:
    """The betas of the panels of one axis, by `_kind`."""
    specs: dict[str, list[Spec]] = {}
    for line in grid:
        for panel in line:
            specs.setdefault(_kind(evidence, panel), []).extend(panel.specs)
    return {kind: values.betas_of(evidence, own) for kind, own in specs.items()}


def draw_fronts(
    evidence: Evidence,
    name: str,
    grid: Sequence[Sequence[Front]],
    size: tuple[float, float],
) -> tuple[Figure, list[Row]]:
    """Panels with quality against coherence, a line a run through its betas.

    The panels of a row have one axis if they show one quality.

    Returns:
      (figure, rows), two rows for each plotted point but those of references.
    """
    is_shared = all(len({front.quality for front in line}) == 1 for line in grid)
    sharey = "row" if is_shared else False
    figure, axes = make_axes(len(grid), len(grid[0]), *size, sharey=sharey)
    specs = [spec for line in grid for front in line for spec in front.specs]
    betas = values.betas_of(evidence, specs)
    # Each value once, whatever else it is drawn against.
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
            axis.invert_yaxis()  # of the whole row where it is shared
    add_legend(figure)
    return figure, list(known.values())


def _fill_front(
    axis: Axes, evidence: Evidence, name: str, front: Front, betas: Sequence[float]
) -> list[Row]:
    """Draws the lines of a front; returns the points of its runs."""
    for spec in front.references:
        _draw_run(axis, evidence, name, front, spec, betas, alpha=FAINT)
    rows = [
        row
        for spec in front.specs
        for row in _draw_run(axis, evidence, name, front, spec, betas)
    ]
    if rows:
        axis.axvline(front.coherence.chance, **LEVEL, label="chance")
    else:
        say(axis, NOT_MEASURED, keeps_ticks=True)
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
    """Draws the line of a run in a front; returns its points, two rows each."""
    tags = front.coherence.tag, front.quality.tag
    own = evidence.spreads[evidence.spreads["run"] == spec.folder]
    points = values.front_of(own, *tags)
    if points.empty:
        return []
    points = points.assign(setting=points["beta"].map(values.show_beta))
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
    lines = [values.beta_rows(evidence, name, spec, tag) for tag in tags]
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
      points: rows of `values.front_of` of one run; hollow where seeds diverged.
      model: decides on the colour and the marker.
      label: label of the line in the legend.
      betas: betas of all lines of the panel, the smallest first.
      alpha: opacity.
      is_annotated: whether each point has its text, of the column "setting", beside it.
    """
    colour, marker = model_colour(model), model_marker(model)
    axis.errorbar(
        points["x"],
        points["y"],
        # One seed has no deviation.
        xerr=points["dx"].fillna(0),
        yerr=points["dy"].fillna(0),
        color=colour,
        alpha=alpha,
        linewidth=0.8,
        elinewidth=0.6,
    )
    areas = dict(zip(betas, np.linspace(*AREAS, len(betas)), strict=True))
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
    # For the legend, and nothing else.
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
    """The tags of some panels, each once, with all modalities it is shown of."""
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
    """Draws a line a run, and levels; returns the points that are there."""
    metric, rows = panel.metric, []
    for spec in panel.specs:
        line = values.beta_rows(evidence, name, spec, metric.tag, panel.modality)
        rows += _draw_line(axis, line, "beta", spec.model)
    if rows and metric.chance is not None:
        axis.axhline(metric.chance, **LEVEL, label="chance")
    if rows and metric.reachable:
        found = values.reachable_rows(evidence, name, panel.specs, metric.reachable)
        for row in found:
            style = LEVEL | {"linestyle": "--", "label": "classifiers on real data"}
            axis.axhline(row["mean"], **style)
        rows += found
    return rows


def _draw_over_numbers(
    axis: Axes, evidence: Evidence, name: str, panel: Panel
) -> list[Row]:
    """Draws a line a model, a level for unimodal VAEs; returns the points it has."""
    scale, tag, rows = evidence.config, panel.metric.tag, []
    for model in plans.MODELS:
        line = []
        for spec in [spec for spec in panel.specs if spec.model == model]:
            beta = scale.datasets[spec.dataset].beta_by_modalities
            found = values.beta_rows(evidence, name, spec, tag, panel.modality)
            found = [row for row in found if row["beta"] == beta]
            gap = values.point_row(evidence, name, spec, tag, beta=beta)
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
      specs: the runs, each at its best beta.
      references: runs at their best beta that are there to be compared with.
    """
    rows = []
    for spec in (*references, *specs):
        if spec.model == "unimodal":
            continue  # nothing is given to them
        line = values.given_rows(evidence, name, spec)
        if spec in specs:
            rows += _draw_line(axis, line, "given", spec.model)
        else:
            _draw_line(axis, line, "given", spec.model, FAINT)
    if rows:
        axis.axhline(COHERENCE.chance, **LEVEL, label="chance")
    else:
        say(axis, NOT_MEASURED, keeps_ticks=True)
    return rows


def draw_published(axis: Axes, lines: Mapping[str, Sequence[float]]) -> None:
    """Draws coherences of models given one, two, ... modalities, as published."""
    for model, line in lines.items():
        x, y = np.arange(1, len(line) + 1), np.array(line)
        _draw_mean(axis, x, y, np.nan, model, model_marker(model))
    axis.axhline(COHERENCE.chance, **LEVEL, label="chance")


def _draw_line(
    axis: Axes, rows: Sequence[Row], x: str, model: str, alpha: float = 1.0
) -> list[Row]:
    """Draws mean and band; returns the rows with a value.

    Points of which a seed diverged are hollow: they average fewer.
    """
    present = [row for row in rows if np.isfinite(row["mean"])]
    if not present:
        return []
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
    """Draws a line and a band in a model's colour; one seed has no band."""
    colour, std = model_colour(model), np.nan_to_num(std)
    axis.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2 * alpha, lw=0)
    label = model_label(model)
    axis.plot(x, mean, marker=marker, color=colour, label=label, alpha=alpha)


def draw_pairs(axis: Axes, pairs: Mapping[Spec, pd.DataFrame]) -> None:
    """Draws annotation-free over labelled coherence, and both levels of chance."""
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
    axis.set_xlim(*_limits([*points[COHERENCE.tag], COHERENCE.chance]))
    axis.set_ylim(*_limits([*points[MATCHING.tag], 0.0]))


def _limits(shown: Sequence[float], least: float = 0.3) -> tuple[float, float]:
    """Limits of an axis around values: wide enough that noise looks like noise."""
    low, high = min(shown), max(shown)
    half = max(high - low, least) * 0.54
    return (low + high) / 2 - half, (low + high) / 2 + half


def _set_beta_axis(axis: Axes, betas: Sequence[float], width: float) -> None:
    """A logarithmic axis, with room for zero, and a tick a beta where they fit."""
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
        text = values.show_beta(beta)
        half = 0.5 * 0.05 * len(text) + 0.01
        is_free = place + half < last
        labels.append(text if is_free else "")
        last = place - half if is_free else last
    axis.set_xticks(betas, labels[::-1])
    axis.minorticks_off()


def _axis_label(metric: Metric, height: float, heading: str) -> str:
    """A metric's label in as few lines as fit beside a panel of a height in inches."""
    # Words in brackets stay on one line.
    name, bracket, rest = metric.label.partition("(")
    text = name + bracket + rest.replace(" ", "\N{NO-BREAK SPACE}")
    width = round(height * 72 / 4.6)
    num_lines = len(textwrap.wrap(text, width))
    while len(textwrap.wrap(text, width - 1)) == num_lines:
        width -= 1
    lines = [heading] * bool(heading) + textwrap.wrap(text, width)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def say(axis: Axes, text: str, *, keeps_ticks: bool = False) -> None:
    """Writes in the middle of a panel why it is empty."""
    place = {"ha": "center", "va": "center", "transform": axis.transAxes}
    axis.text(0.5, 0.5, text, color=GREY, **place)
    if not keeps_ticks:
        axis.tick_params(left=False, labelleft=False)
        axis.grid(False)


def add_legend(figure: Figure, place: Axes | None = None) -> None:
    """One legend for all panels: above them, or in a place that is free."""
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
        # A label and its line take an inch and a half.
        columns = max(1, min(len(labels), 6, int(figure.get_figwidth() / 1.5)))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def draw_pictures(
    evidence: Evidence,
    models: Sequence[str],
    strips: Mapping[str, Strips],
    num_samples: int,
    num_columns: int,
    pages: Sequence[Page] = (),
    num_pages: int = 1,
) -> Figure:
    """The pictures that runs wrote of one member, a panel a data set and model.

    Args:
      evidence: the runs.
      models: one panel each.
      strips: data set -> its picture.
      num_samples: in a row of a picture.
      num_columns: panels in a row.
      pages: below them.
      num_pages: number of pages in a row.
    """
    lines = -(-len(models) // num_columns)  # a data set's
    most = max((len(picture.labels) for picture in strips.values()), default=0)
    width, above = 7.2 / num_columns, 0.2 if num_columns == 2 else 0.33
    height = (width - 0.05) * most / num_samples + above
    size = lines * len(strips), num_columns, width, height, 0.15
    read = [_read_page(evidence, page) for page in pages]
    if pages:
        figure, axes, below = _make_axes_above(*size, read, num_pages)
    else:
        figure, axes = make_axes(*size)
    figure.set_dpi(300)  # of a PDF, for which pictures are resampled
    for axis in axes.flat:
        axis.set_axis_off()
    letters = iter(string.ascii_lowercase)
    for i, (dataset, picture) in enumerate(strips.items()):
        beta = evidence.config.datasets[dataset].beta_of_samples
        for k, model in enumerate(models):
            axis = axes[i * lines + k // num_columns, k % num_columns]
            parts = [
                f"({next(letters, '…')}) {model_label(model)}",
                f"{values.title(evidence, dataset)}, β = {values.show_beta(beta)}",
            ]
            axis.set_title((", " if num_columns == 2 else ",\n").join(parts), size=8)
            found = _read_picture(evidence, Spec(dataset, model), picture.name)
            if isinstance(found, str):
                axis.set_box_aspect(len(picture.labels) / num_samples)
                say(axis, found)
            else:
                _show_picture(axis, found, picture.labels, num_samples)
    if pages:
        marks = (f"({letter}) " for letter in itertools.chain(letters, "…" * len(read)))
        _show_pages(evidence, below, pages, read, marks)
    return figure


def _read_page(evidence: Evidence, page: Page) -> np.ndarray | str:
    """The part of a page that is shown, or why there is none.

    It ends with a white line, so that nothing is cut in two.
    """
    found = _read_picture(evidence, page.spec, page.name)
    if isinstance(found, str):
        return found
    part = found[: max(1, round(page.part * len(found)))]
    white = np.flatnonzero((part == 255).all(axis=(1, 2)))
    return part[: white[-1] + 1] if len(white) else part


def _show_pages(
    evidence: Evidence,
    axes: Sequence[Axes],
    pages: Sequence[Page],
    read: Sequence[np.ndarray | str],
    marks: Iterable[str],
) -> None:
    """Shows pages, each with what it is above it."""
    for axis, page, found, mark in zip(axes, pages, read, marks, strict=False):
        settings = plans.settings(evidence.config, page.spec.dataset)
        axis.set_title(
            f"{mark}{model_label(page.spec.model)}, {settings.title}, β = "
            f"{values.show_beta(settings.beta_of_samples)}: {page.title}",
            size=8,
        )
        if isinstance(found, str):
            say(axis, found)
        else:
            _show_picture(axis, found, (), 1)


def _read_picture(evidence: Evidence, spec: Spec, name: str) -> np.ndarray | str:
    """The picture a run has written of the member to show, or why there is none."""
    members = values.members_of(evidence, spec)
    known = [Member(*(m[field] for field in Member._fields)) for m in members]
    for member, found in zip(known, members, strict=True):
        if values.is_pictured(evidence, spec, found):
            if not found["finite"]:
                return "diverged"
            file = f"{member_name(member, known)}_{name}.png"
            path = evidence.runs[spec].workdir / "samples" / file
            if path.is_file():
                try:
                    with Image.open(path, formats=("PNG",)) as image:
                        return np.asarray(image.convert("RGB"))
                except Exception as error:  # Pillow raises many kinds.
                    raise UsageError(
                        f"{path} is not a readable picture: {error}"
                    ) from error
    return NOT_MEASURED


def _show_picture(
    axis: Axes, pixels: np.ndarray, labels: Sequence[str], num_samples: int
) -> None:
    """Shows a picture with what stands beside its rows, where these are known."""
    height, width = pixels.shape[:2]
    # Sharp pixels that a print of any resolution averages evenly.
    factor = max(1, -(-800 // width))
    sharp = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    axis.imshow(sharp, extent=(0, width, height, 0), interpolation="antialiased")
    if not labels or height * num_samples != width * len(labels):
        return  # a page, or modalities of several sizes
    axis.set_axis_on()
    axis.grid(False)
    axis.spines[:].set_visible(False)
    strip = height / len(labels)
    # Between rows where the label is for several: none is in their middle.
    places = [
        (i + (0.5 if len(set(labels)) == len(labels) or i == 0 else 0)) * strip
        for i in range(len(labels))
    ]
    axis.set_xticks([])
    axis.set_yticks(places, labels)
    axis.tick_params(left=False, pad=1)
    if "" in labels:
        axis.axhline(strip, color="white", linewidth=1.5)
