"""One page with everything that finished runs have to show.

    python -m experiments.report --directory=runs/demo

Writes a report.html that needs no other file, no network and no script: what was
run, the verdicts of results.json, the figures, tables, samples, loss curves,
environment and configs. It reads and never measures: what a run lacks is a dash.
"""

import base64
import datetime
import glob
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from absl import flags
from matplotlib import colors
from matplotlib.figure import Figure
from PIL import Image

from experiments import command, terminal, workdirs
from experiments.names import model_colour, model_label, model_marker, model_rank
from experiments.results import (
    RunRecord,
    Spread,
    by_beta,
    find_runs,
    show,
)
from mmvae_jax.errors import UsageError
from mmvae_jax.sweeps import Member
from mmvae_jax.writers import member_name, read_metrics

TEMPLATE = "report.html.jinja"
DASH = "–"
# Tag -> heading; a column that no run has measured is left out.
METRICS = {
    "eval/coherence/leave_one_out": "coherence ↑",
    "eval/coherence/joint": "joint coherence ↑",
    "eval/attribute_coherence/leave_one_out": "attribute coherence ↑",
    "eval/attribute_coherence/joint": "joint attribute coherence ↑",
    "eval/matching/leave_one_out": "matching (no labels) ↑",
    "eval/fid": "FID ↓",
    "eval/frechet_classifier": "Fréchet (classifier) ↓",
    "eval/swd": "SWD ↓",
    "eval/elbo": "ELBO ↑",
    "eval/kl": "KL",
    "eval/log_likelihood": "log-likelihood ↑",
    "eval/linear_probe": "linear probe ↑",
    "eval/captions/bleu": "BLEU ↑",
    "eval/captions/distinct_1": "distinct-1",
    "eval/captions/distinct_2": "distinct-2",
}
# Tag without its last part, the modality -> heading of a table.
PER_MODALITY = {
    "eval/coherence/leave_one_out": "Leave-one-out coherence ↑",
    "eval/attribute_coherence/leave_one_out": "Attribute coherence ↑",
    "eval/matching/leave_one_out": "Matching ↑, coherence without labels",
    "eval/reconstruction": "Reconstruction ↑, log-likelihood in nats",
    "eval/fid": "FID ↓",
    "eval/frechet_classifier": "Fréchet distance on classifier features ↓",
    "eval/swd": "Sliced Wasserstein distance ↓",
}
SIZE = re.compile(r"eval/coherence/size_(\d+)")
ATTRIBUTE = re.compile(
    r"eval/attribute_coherence/(?!leave_one_out|size_1|joint)([^/]+)"
)
# Of real captions, what stands beside the generated ones'.
REAL_CAPTIONS = {
    "eval/captions/real/bleu": "BLEU (one against the others of its image)",
    "eval/captions/real/distinct_1": "distinct-1",
    "eval/captions/real/distinct_2": "distinct-2",
}
# Figures that come first, and what they show.
FIGURES = {
    "tradeoff": "Quality against coherence; mean and standard deviation over seeds.",
    "samples": "Samples of the models side by side.",
}
# Of a curve.
MAX_POINTS = 500
# Beyond so many members the page shows one of each run, and is not too heavy for a
# phone.
MAX_MEMBERS = 100
# Beyond so many runs in a front, their betas are not written beside the points.
MAX_ANNOTATED = 6
# The quality that the front is drawn with, the first that was measured.
FRONT_QUALITY = ("eval/fid", "eval/swd", "eval/frechet_classifier")
COHERENCE = "eval/coherence/leave_one_out"
CURVES = {"train/elbo": "ELBO (nats)", "train/loss": "loss (nats)"}


class Picture(NamedTuple):
    """A picture as the page holds it: data URI, caption, pixels across, text in it."""

    uri: str
    caption: str
    width: int
    has_text: bool = False


class Row(NamedTuple):
    """A row of a table: whose it is, the colour of the model, and the cells."""

    label: str
    colour: str
    cells: Sequence[str]


class Table(NamedTuple):
    """A table: its title if it needs one, the headings of its cells, its rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Row]


class Point(NamedTuple):
    """The results of a run at one beta and learning rate, over its seeds."""

    model: str
    dataset: str
    label: str
    colour: str
    setting: str
    seeds: str
    tags: Mapping[str, Spread]


def write(directory: Path, out: Path) -> None:
    """Writes the page of the runs in a directory, at once or not at all.

    Raises:
      UsageError: there is no run, one cannot be read, or `out` is a folder.
    """
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    page = render(directory)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"--out {out} is below a file; choose another") from error
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def render(directory: Path) -> str:
    """The page of the finished runs in a directory, as HTML.

    Raises:
      UsageError: there is no run, or one cannot be read.
    """
    runs = find_runs(directory)
    runs.sort(key=lambda run: model_rank(run.summary["model"]))
    labels = names(runs, directory)
    points = [point for run in runs for point in run_points(run, labels)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = read_results(directory)
    num_members = sum(len(run.summary["members"]) for run in runs)
    return environment.get_template(TEMPLATE).render(
        title=directory.resolve().name,
        date=datetime.date.today().isoformat(),
        overview=overview(runs, labels),
        results=results,
        verdicts=verdicts(results),
        figures=figures(directory),
        fronts=draw_fronts(points),
        quality=quality(points),
        modalities=modality_tables(points),
        accuracy=classifier_accuracy(points),
        real_captions=real_captions(points),
        curves=draw_curves(runs, labels),
        runs=[run_section(run, labels, num_members <= MAX_MEMBERS) for run in runs],
        versions={
            "Python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "flax", "numpy")},
        },
    )


def names(runs: Sequence[RunRecord], directory: Path) -> dict[Path, str]:
    """What each run is called: its model, and its folder where that is not enough."""
    models = [run.summary["model"] for run in runs]
    labels = {}
    for run, model in zip(runs, models, strict=True):
        label = model_label(model)
        if models.count(model) > 1:
            label += f" ({run.workdir.relative_to(directory)})"
        labels[run.workdir] = label
    return labels


def run_points(run: RunRecord, labels: Mapping[Path, str]) -> list[Point]:
    """The results of a run over its seeds, for each learning rate and beta."""
    members = run.summary["members"]
    rates = list(dict.fromkeys(member["learning_rate"] for member in members))
    points = []
    for rate in rates:
        group = [member for member in members if member["learning_rate"] == rate]
        results = by_beta({"members": group})
        for beta in dict.fromkeys(member["beta"] for member in group):
            finite = [member["finite"] for member in group if member["beta"] == beta]
            points.append(
                Point(
                    run.summary["model"],
                    run.summary["dataset"],
                    labels[run.workdir],
                    _colour(run),
                    f"{beta:g}" + (f", lr {rate:g}" if len(rates) > 1 else ""),
                    f"{sum(finite)}"
                    + ("" if all(finite) else f" of {len(finite)} finite"),
                    results.get(beta, {}),
                )
            )
    return points


def overview(runs: Sequence[RunRecord], labels: Mapping[Path, str]) -> Table:
    """What was run: a row a run."""
    rows = []
    for run in runs:
        summary = run.summary
        seconds = summary.get("wall_seconds")
        finite = sum(bool(member["finite"]) for member in summary["members"])
        cells = [
            f"{len(summary['members'])}",
            f"{finite}",
            f"{summary['num_steps']:,}",
            DASH if seconds is None else _duration(seconds),
            summary["device"],
            summary["dataset"],
        ]
        rows.append(Row(labels[run.workdir], _colour(run), cells))
    header = ["members", "finite", "steps", "wall time", "device", "data set"]
    return Table("", header, rows)


def read_results(directory: Path) -> dict:
    """What claims.json or results.json holds; empty if neither is there.

    Raises:
      UsageError: it cannot be read.
    """
    paths = [directory / name for name in ("claims.json", "results.json")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return {}
    try:
        results = workdirs.read_json(path)
    except (OSError, UsageError) as error:
        raise UsageError(f"{path} cannot be read: {error}; move it away") from error
    if not isinstance(results, dict):
        raise UsageError(f"{path} holds no results of this project; move it away")
    return results


def verdicts(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Claim, "holds", "fails" or "not measured", and the numbers."""
    words = {True: "holds", False: "fails", None: "not measured"}
    try:
        return [
            (
                claim["claim"] + _about(claim),
                words[claim.get("holds")],
                _unbroken(claim.get("numbers")) + _in_errors(claim),
            )
            for claim in results.get("claims", [])
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            "claims.json or results.json holds claims that are not this project's; "
            "move it away"
        ) from error


def _about(claim: Mapping[str, Any]) -> str:
    """What a verdict of experiments.claims is about, besides its claim."""
    metric = str(claim.get("metric", "")).removeprefix("eval/")
    parts = [claim.get("dataset"), claim.get("model"), metric]
    known = [str(part) for part in parts if part]
    return f" ({', '.join(known)})" if known else ""


def _in_errors(claim: Mapping[str, Any]) -> str:
    """The difference in units of its standard error, where there is one."""
    value = claim.get("difference_in_standard_errors")
    return "" if value is None else f"; difference {value:+.1f} SE"


def figures(directory: Path) -> list[Picture]:
    """The pictures in a directory, those of the demo first, then the numbered ones."""
    order = {name: k for k, name in enumerate(FIGURES)}

    def place(path: Path) -> tuple:
        number = re.search(r"\d+", path.stem)
        return (
            order.get(path.stem, len(order)),
            int(number[0]) if number else math.inf,
            path.stem,
        )

    paths = [*directory.glob("*.png"), *directory.glob("figures/*.png")]
    return [
        picture(path, FIGURES.get(path.stem, path.stem.replace("_", " ").capitalize()))
        for path in sorted(paths, key=place)
    ]


def draw_fronts(points: Sequence[Point]) -> list[Picture]:
    """Quality against coherence with error bars, a panel a data set.

    Models of one data set are comparable; those that a run with other modalities
    or networks would add are in the tables.
    """
    pictures = []
    for dataset in dict.fromkeys(point.dataset for point in points):
        group = [p for p in points if p.dataset == dataset and COHERENCE in p.tags]
        tag = next((t for t in FRONT_QUALITY if any(t in p.tags for p in group)), None)
        group = [point for point in group if tag in point.tags]
        if len(group) > 1:
            pictures.append(_draw_front(dataset, group, tag))
    return pictures


def _draw_front(dataset: str, points: Sequence[Point], tag: str) -> Picture:
    """One panel as SVG; better is up and to the right."""
    labels = dict.fromkeys(point.label for point in points)
    models = [next(p.model for p in points if p.label == label) for label in labels]
    is_annotated = len(labels) <= MAX_ANNOTATED
    height = 3.9 + (0 if is_annotated else 0.06 * len(labels))
    with matplotlib.rc_context({"svg.hashsalt": "report", "font.size": 9}):
        figure = Figure(figsize=(5.2, height), layout="constrained")
        axis = figure.subplots()
        for label, model in zip(labels, models, strict=True):
            own = [point for point in points if point.label == label]
            # Here, other data sets' runs of the model are not to be told from it.
            is_only = models.count(model) == 1
            x, y = ([p.tags[t] for p in own] for t in (COHERENCE, tag))
            axis.errorbar(
                [value.mean for value in x],
                [value.mean for value in y],
                xerr=np.nan_to_num([value.std for value in x]),
                yerr=np.nan_to_num([value.std for value in y]),
                color=own[0].colour,
                label=model_label(model) if is_only else label,
                marker=model_marker(model),
                markersize=4,
                linewidth=1.2 if is_annotated else 0.8,
                capsize=2 if is_annotated else 0,
            )
            written = zip(own, x, y, strict=True) if is_annotated else ()
            for point, a, b in written:
                axis.annotate(
                    f"β={point.setting}",
                    (a.mean, b.mean),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color=point.colour,
                )
        axis.set_xlim(0, 1)
        axis.set_xlabel("leave-one-out coherence ↑")
        axis.set_ylabel(METRICS[tag])
        axis.invert_yaxis()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        style = {"frameon": False, "fontsize": 8}
        if is_annotated:
            axis.legend(**style)
        else:
            figure.legend(loc="outside lower center", ncols=3, **style)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Picture(_uri(buffer.getvalue(), "svg+xml"), dataset, 520)


def quality(points: Sequence[Point]) -> Table:
    """Mean and standard deviation over seeds, a row for each model and beta."""
    tags = [tag for tag in METRICS if any(tag in point.tags for point in points)]
    header = ["β", "seeds", *(METRICS[tag] for tag in tags)]
    rows = [
        Row(
            point.label,
            point.colour,
            [point.setting, point.seeds, *(_cell(point.tags.get(t)) for t in tags)],
        )
        for point in points
    ]
    return Table("", header, rows)


def modality_tables(points: Sequence[Point]) -> list[Table]:
    """A table a metric, a column a modality; the last by size of the subset."""
    tables = []
    for prefix, title in PER_MODALITY.items():
        tables.append(_by_column(points, title, _suffixes(points, prefix)))
    sizes = sorted(
        {int(m[1]) for p in points for tag in p.tags if (m := SIZE.fullmatch(tag))}
    )
    tags = {f"{size} given": f"eval/coherence/size_{size}" for size in sizes}
    title = "Coherence ↑ by the number of modalities given"
    tables.append(_by_column(points, title, tags))
    attributes = {
        m[1]: tag for p in points for tag in p.tags if (m := ATTRIBUTE.fullmatch(tag))
    }
    title = "Attribute coherence ↑ by attribute, mean over modalities"
    tables.append(_by_column(points, title, attributes))
    return [table for table in tables if table.header[1:]]


def classifier_accuracy(points: Sequence[Point]) -> str:
    """The accuracies on real data of what coherences are measured with."""
    kinds = ("eval/classifier_accuracy", "eval/attribute_accuracy")
    found = [item for kind in kinds for item in _suffixes(points, kind).items()]
    return ", ".join(f"{name} {_means(points, tag)}" for name, tag in found)


def real_captions(points: Sequence[Point]) -> str:
    """What the measures of generated captions are of real ones."""
    found = {tag for point in points for tag in point.tags}
    return ", ".join(
        f"{name} {_means(points, tag)}"
        for tag, name in REAL_CAPTIONS.items()
        if tag in found
    )


def _means(points: Sequence[Point], tag: str) -> str:
    """The different means of a tag."""
    return " / ".join(
        sorted({_single(p.tags[tag].mean) for p in points if tag in p.tags})
    )


def run_section(
    run: RunRecord, labels: Mapping[Path, str], is_complete: bool
) -> dict[str, Any]:
    """What the page shows of one run: members, samples (all or one), and config."""
    rows = run.summary["members"]
    members = [_member(row) for row in rows]
    tags = [
        t for t in METRICS if any(row["metrics"].get(t) is not None for row in rows)
    ]
    shown = _shown_member(rows)
    table_rows, samples = [], []
    for row, member in zip(rows, members, strict=True):
        name = member_name(member, members)
        finite = "yes" if row["finite"] else "NO"
        cells = [_single(row["metrics"].get(tag)) for tag in tags]
        label = name.replace("beta", "β").replace("=", " = ").replace(",", ", ")
        table_rows.append(Row(label, "", [finite, *cells]))
        is_shown = len(samples) == shown
        grids, text = [], ""
        if is_complete or is_shown:
            text = member_captions(run, name)
            is_exact = is_shown and is_complete
            grids = member_grids(run, name, lossless=is_exact, has_text=bool(text))
        samples.append((label, grids, text))
    return {
        "label": labels[run.workdir],
        "colour": _colour(run),
        "members": Table("", ["finite", *(METRICS[tag] for tag in tags)], table_rows),
        "shown": [sample for sample in samples[shown:][:1] if sample[1]],
        "hidden": [
            sample for k, sample in enumerate(samples) if sample[1] and k != shown
        ],
        "config": json.dumps(run.config, indent=2, ensure_ascii=False),
    }


def member_captions(run: RunRecord, name: str) -> str:
    """The captions among the samples of the member of that name; "" without any.

    Raises:
      UsageError: they cannot be read.
    """
    path = run.workdir / "samples" / f"{name}_captions.txt"
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable text: {error}") from error


def member_grids(
    run: RunRecord, name: str, lossless: bool, has_text: bool = False
) -> list[Picture]:
    """The sample grids of the member of that name, the unconditional ones first."""
    pattern = glob.escape(f"{name}_") + "*.png"
    paths = sorted(run.workdir.joinpath("samples").glob(pattern))
    paths.sort(key=lambda path: not path.stem.endswith("_prior"))
    grids = []
    for path in paths:
        caption, across = path.stem[len(name) + 1 :], 320
        if caption == "prior":
            # Twice as many images in a row.
            caption, across = "unconditional", 640
        elif "_given_" in caption:
            caption = caption.replace("_given_", " given ")
            caption += " (real, on the left)" if has_text else " (real, top row)"
        grid = picture(path, caption, lossless)._replace(has_text=has_text)
        # Whole multiples of small grids, so that pixels stay square.
        scale = max(1, round(across / grid.width))
        grids.append(grid._replace(width=grid.width * scale))
    return grids


def picture(path: Path, caption: str, lossless: bool = True) -> Picture:
    """A picture file as a data URI; compressed as WebP where it need not be exact.

    Args:
      path: a PNG.
      caption: what it shows.
      lossless: whether the file goes in as it is.

    Raises:
      UsageError: it is not a picture.
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
    except Exception as error:  # Pillow raises many kinds for a broken file.
        raise UsageError(f"{path} is not a readable picture: {error}") from error
    return Picture(_uri(content, kind), caption, width)


def draw_curves(runs: Sequence[RunRecord], labels: Mapping[Path, str]) -> list[Picture]:
    """The training of every run: a panel a run, a line a member."""
    read = [(run, *read_curves(run)) for run in runs]
    limits: dict[tuple, list[float]] = {}
    for run, tag, lines in read:
        values = [y for _, line in lines for y in line[1] if math.isfinite(y)]
        # Panels of one data set and one quantity can be compared: one axis.
        limits.setdefault((run.summary["dataset"], tag), []).extend(values)
    return [
        _draw_panel(
            run, labels[run.workdir], tag, lines, limits[run.summary["dataset"], tag]
        )
        for run, tag, lines in read
        if lines
    ]


def read_curves(run: RunRecord) -> tuple[str, list[tuple[Mapping, np.ndarray]]]:
    """The tag that is drawn, and (member, float [2, N] steps and values) of each.

    Raises:
      UsageError: metrics.jsonl is not what a run writes.
    """
    path = run.workdir / "metrics.jsonl"
    members = run.summary["members"]
    try:
        logged = [dict(line) for line in read_metrics(path)]
        tag = next((t for t in CURVES if any(t in line for line in logged)), "")
        points: list[list] = [[] for _ in members]
        for line in logged:
            if tag and tag in line:
                value = math.nan if line[tag] is None else float(line[tag])
                points[line["member"]].append((int(line["step"]), value))
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise UsageError(f"{path} is not the log of a run; move it away") from error
    lines = [
        # No more points than a panel can show.
        (member, np.array(sorted(line)[:: 1 + len(line) // MAX_POINTS]).T)
        for member, line in zip(members, points, strict=True)
        if line
    ]
    return tag, lines


def _draw_panel(
    run: RunRecord, label: str, tag: str, lines: Sequence, values: Sequence[float]
) -> Picture:
    """One run's curves as SVG, darker for larger betas."""
    betas = sorted({member["beta"] for member, _ in lines})
    full = np.array(colors.to_rgb(_colour(run)))
    with matplotlib.rc_context({"svg.hashsalt": "report", "font.size": 9}):
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
        axis.set_ylabel(CURVES[tag])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(betas) <= 8:
            axis.legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Picture(_uri(buffer.getvalue(), "svg+xml"), label, 420)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """An axis that holds all values, or 98 % of them where the rest would hide them."""
    if not values:
        return 0.0, 1.0
    low, high = np.min(values), np.max(values)
    inner_low, inner_high = np.percentile(values, [1, 99])
    if high - low > 5 * (inner_high - inner_low) > 0:
        low, high = inner_low, inner_high
    margin = 0.05 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _by_column(points: Sequence[Point], title: str, tags: Mapping[str, str]) -> Table:
    """A row for each model and beta, a column for each of some tags."""
    rows = [
        Row(
            point.label,
            point.colour,
            [point.setting, *(_cell(point.tags.get(tag)) for tag in tags.values())],
        )
        for point in points
    ]
    return Table(title, ["β", *tags], rows)


def _suffixes(points: Sequence[Point], prefix: str) -> dict[str, str]:
    """Modality -> tag of all tags that are the prefix and a modality."""
    return {
        tag.removeprefix(f"{prefix}/"): tag
        for point in points
        for tag in point.tags
        if tag.rpartition("/")[0] == prefix and not tag.endswith("/standard_error")
    }


def _member(row: Mapping[str, Any]) -> Member:
    """The hyper-parameters in a row of summary.json."""
    return Member(float(row["beta"]), float(row["learning_rate"]), int(row["seed"]))


def _shown_member(rows: Sequence[Mapping]) -> int:
    """The member shown openly: the middle beta's first, a finite one if there is."""
    betas = sorted({row["beta"] for row in rows if row["finite"]})
    if not betas:
        return 0
    middle = betas[len(betas) // 2]
    return next(
        k for k, row in enumerate(rows) if row["finite"] and row["beta"] == middle
    )


def _colour(run: RunRecord) -> str:
    """The model's colour as CSS."""
    return colors.to_hex(model_colour(run.summary["model"]))


def _cell(value: Spread | None) -> str:
    """A spread as text; a dash for what was not measured or is no number."""
    return DASH if value is None or not math.isfinite(value.mean) else show(value)


def _single(value: float | None) -> str:
    """A number as text, with the digits of the tables of means."""
    return DASH if value is None else _cell(Spread(float(value), math.nan))


def _unbroken(numbers: str | None) -> str:
    """Numbers as text in which a mean and its deviation stay on one line."""
    return str(numbers or DASH).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def _duration(seconds: float) -> str:
    """Seconds as text."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _uri(content: bytes, kind: str) -> str:
    """A data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def main() -> None:
    """Writes the page and says where it is."""
    directory = Path(flags.FLAGS.directory).expanduser()
    out = Path(flags.FLAGS.out).expanduser() if flags.FLAGS.out else None
    out = out or directory / "report.html"
    write(directory, out)
    terminal.say(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    flags.DEFINE_string("directory", "runs/demo", "folder of the finished runs")
    flags.DEFINE_string("out", "", "the page; default: report.html in the directory")
    command.run(main)
