"""Pictures of the page of `experiments.report`, as data URIs."""

import base64
import glob
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.figure import Figure
from PIL import Image

from experiments.drawing import panels
from experiments.plans import tables
from experiments.plans.names import model_colour, model_label
from experiments.plans.runs import RunRecord, read_log, show
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.samplers import SAMPLERS
from mmvae_jax.types import PRIOR

# Names of runs may contain "$".
_STYLE = {"svg.hashsalt": "report", "font.size": 9, "text.parse_math": False}
# Largest number of points per curve.
_MAX_POINTS = 500
# Largest number of runs in a front with betas beside the points.
MAX_ANNOTATED = 6
# Qualities of a front: the first measured one is used.
_FRONT_QUALITY = ("eval/fid", "eval/swd", "eval/frechet_classifier")
COHERENCE = "eval/coherence/leave_one_out"
_CURVES = {"train/elbo": "ELBO (nats)", "train/loss": "loss (nats)"}


class Point(NamedTuple):
    """A point of a front and its position in the picture.

    Attributes:
      label: label of the run.
      beta: beta as text.
      rate: learning rate as text.
      text: values of the point.
      left: position in percent of the width of the picture.
      top: position in percent of the height.
    """

    label: str
    beta: str
    rate: str
    text: str
    left: float
    top: float


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
      uri: data URI.
      caption: description.
      width: width in pixels.
      has_text: whether it contains text.
      points: points of a front.
    """

    uri: str
    caption: str
    width: int
    has_text: bool = False
    points: Sequence[Point] = ()


def colour_of(run: RunRecord) -> str:
    """The model's colour as CSS."""
    return colors.to_hex(model_colour(run.summary["model"]))


def figures(directory: Path) -> list[Picture]:
    """The figures in a directory: the trade-off, then by number, then by name."""

    def place(path: Path) -> tuple:
        number = re.search(r"\d+", path.stem)
        return (
            not path.stem.endswith("tradeoff"),
            int(number[0]) if number else math.inf,
            path.stem,
        )

    paths = [*directory.glob("*.png"), *directory.glob("figures/*.png")]
    return [
        picture(path, path.stem.replace("_", " ").capitalize())
        for path in sorted(paths, key=place)
    ]


def draw_fronts(
    heads: pd.DataFrame, spreads: pd.DataFrame, headings: Mapping[str, str]
) -> list[Picture]:
    """Quality against coherence with error bars, one panel per data set.

    Args:
      heads: `Points.heads`, indexed by run, learning rate and beta: model, dataset,
        label and setting.
      spreads: `runs.spreads` by these and tag.
      headings: tag -> label of the axis.
    """
    pictures = []
    for dataset, own in heads.groupby("dataset", sort=False):
        for tag in _FRONT_QUALITY:
            front = tables.front_of(spreads, COHERENCE, tag)
            # Keep the order of the runs.
            front = own.reset_index().merge(front)
            if len(front):
                break
        if len(front) > 1:
            pictures.append(_draw_front(dataset, front, headings[tag]))
    return pictures


def _draw_front(dataset: str, points: pd.DataFrame, label: str) -> Picture:
    """One panel as SVG; better is up and to the right."""
    betas = sorted(points["beta"].unique())
    runs = points.drop_duplicates("run")
    is_annotated = len(runs) <= MAX_ANNOTATED
    height = 3.9 + (0 if is_annotated else 0.06 * len(runs))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, height), layout="constrained")
        axis = figure.subplots()
        for _, own in points.groupby("run", sort=False):
            model, name = own[["model", "label"]].iloc[0]
            # One run per model in this panel: the model is enough as a label.
            if (runs["model"] == model).sum() == 1:
                name = model_label(model)
            panels.draw_front(axis, own, model, name, betas, is_annotated=is_annotated)
        axis.set_xlim(0, 1)
        axis.set_xlabel("leave-one-out coherence ↑")
        axis.set_ylabel(label)
        axis.invert_yaxis()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        style = {"frameon": False, "fontsize": 8}
        if is_annotated:
            axis.legend(**style)
        else:
            figure.legend(loc="outside lower center", ncols=3, **style)
        uri = _svg(figure)  # also computes the layout
        places = axis.transData.transform(points[["x", "y"]].to_numpy())
        places = figure.transFigure.inverted().transform(places)
        return Picture(uri, dataset, 520, points=_points_of(points, places, label))


def _points_of(points: pd.DataFrame, places: np.ndarray, label: str) -> list[Point]:
    """The points of a front; places [N, 2] are fractions of the figure, from below."""
    rows = zip(points.to_dict("records"), places, strict=True)
    return [
        Point(
            row["label"],
            f"{row['beta']:g}",
            f"{row['learning_rate']:g}",
            f"{row['label']}, β = {row['setting']}: "
            f"coherence {show(row['x'], row['dx'])}, "
            f"{label} {show(row['y'], row['dy'])}",
            round(100 * x, 2),
            round(100 * (1 - y), 2),
        )
        for row, (x, y) in rows
        if np.isfinite((x, y)).all()
    ]


def member_captions(folder: Path, name: str) -> str:
    """The captions of a member in a folder of samples; "" without captions.

    Raises:
      UsageError: the file cannot be read.
    """
    texts = []
    for end in ("", *(f"_{sampler}" for sampler in SAMPLERS)):
        path = folder / f"{name}_captions{end}.txt"
        try:
            texts += [path.read_text(encoding="utf-8")] if path.exists() else []
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} is not readable text: {error}") from error
    return "\n".join(texts)


def member_grids(
    folder: Path, name: str, lossless: bool, has_text: bool = False
) -> list[Picture]:
    """The sample grids of a member in a folder of samples, unconditional ones first."""
    pattern = glob.escape(f"{name}_") + "*.png"
    paths = sorted(folder.glob(pattern))
    unconditional = {PRIOR: "unconditional"} | {
        name: f"unconditional, {own.label}" for name, own in SAMPLERS.items()
    }
    paths.sort(key=lambda path: path.stem[len(name) + 1 :] not in unconditional)
    grids = []
    for path in paths:
        caption, across = unquote(path.stem[len(name) + 1 :]), 320
        if caption in unconditional:
            # These have twice as many images per row.
            caption, across = unconditional[caption], 640
        elif caption == "traversal":
            caption = (
                "latent traversal (a dimension a row, −2 to 2 deviations of the prior)"
            )
        elif "_given_" in caption:
            caption = caption.replace("_given_", " given ")
            caption += " (real, on the left)" if has_text else " (real, top row)"
        grid = picture(path, caption, lossless)._replace(has_text=has_text)
        # Enlarge small grids by whole factors, so that pixels stay square.
        scale = max(1, round(across / grid.width))
        grids.append(grid._replace(width=grid.width * scale))
    return grids


def picture(path: Path, caption: str, lossless: bool = True) -> Picture:
    """A picture file as a data URI, compressed as WebP unless `lossless`.

    Args:
      path: a PNG file.
      caption: description.
      lossless: whether to keep the file unchanged.

    Raises:
      UsageError: the file is not a picture.
    """
    try:
        content, kind = path.read_bytes(), "png"
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
            width = image.width
            if not lossless:
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "WEBP", quality=75)
                if buffer.tell() < len(content):
                    content, kind = buffer.getvalue(), "webp"
    except Exception as error:  # Pillow raises many types for a damaged file.
        raise UsageError(f"{path} is not a readable picture: {error}") from error
    return Picture(_uri(content, kind), caption, width)


def draw_curves(runs: Sequence[RunRecord], labels: Mapping[Path, str]) -> list[Picture]:
    """The training curves: one panel per run, one line per member."""
    read = [(run, *read_curves(run)) for run in runs]
    limits: dict[tuple, list[float]] = {}
    for run, tag, lines in read:
        shown = [y for _, line in lines for y in line[1] if math.isfinite(y)]
        # Panels of the same data set and quantity share limits for comparison.
        limits.setdefault((run.summary["dataset"], tag), []).extend(shown)
    return [
        _draw_panel(
            run, labels[run.workdir], tag, lines, limits[run.summary["dataset"], tag]
        )
        for run, tag, lines in read
        if lines
    ]


def read_curves(run: RunRecord) -> tuple[str, list[tuple[Mapping, np.ndarray]]]:
    """The plotted tag, and (member, float [2, N] steps and values) of each member.

    Raises:
      UsageError: metrics.jsonl is invalid.
    """
    path = run.workdir / "metrics.jsonl"
    members = run.summary["members"]
    try:
        logged = read_log(run)
        tag = next((t for t in _CURVES if any(t in line for line in logged)), "")
        points: list[list] = [[] for _ in members]
        for line in logged:
            if tag and tag in line:
                value = math.nan if line[tag] is None else float(line[tag])
                points[line["member"]].append((int(line["step"]), value))
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise UsageError(f"{path} is not the log of a run; move it away") from error
    lines = [
        # Limit the number of points.
        (member, np.array(sorted(line)[:: 1 + len(line) // _MAX_POINTS]).T)
        for member, line in zip(members, points, strict=True)
        if line
    ]
    return tag, lines


def _draw_panel(
    run: RunRecord, label: str, tag: str, lines: Sequence, values: Sequence[float]
) -> Picture:
    """One run's curves as SVG, darker for larger betas."""
    betas = sorted({member["beta"] for member, _ in lines})
    full = np.array(colors.to_rgb(colour_of(run)))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 2.9), layout="constrained")
        axis = figure.subplots()
        seen = set()
        for member, (steps, curve) in lines:
            rank = (betas.index(member["beta"]) + 1) / len(betas)
            weight = 0.3 + 0.7 * rank
            name = None if member["beta"] in seen else f"β = {member['beta']:g}"
            seen.add(member["beta"])
            axis.plot(
                steps,
                np.where(np.isfinite(curve), curve, np.nan),
                color=weight * full + 1 - weight,
                linewidth=1.2,
                label=name,
                marker="." if len(steps) == 1 else None,
            )
        axis.set_ylim(*_limits(values))
        axis.set_xlabel("step")
        axis.set_ylabel(_CURVES[tag])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(betas) <= 8:
            axis.legend(frameon=False, fontsize=8)
        return Picture(_svg(figure), label, 420)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits for all values, or for 98 % of them if outliers would hide these."""
    if not values:
        return 0.0, 1.0
    low, high = np.min(values), np.max(values)
    inner_low, inner_high = np.percentile(values, [1, 99])
    if high - low > 5 * (inner_high - inner_low) > 0:
        low, high = inner_low, inner_high
    margin = 0.05 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _svg(figure: Figure) -> str:
    """A figure as a data URI; without a date, equal figures have equal URIs."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _uri(buffer.getvalue(), "svg+xml")


def _uri(content: bytes, kind: str) -> str:
    """A data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
