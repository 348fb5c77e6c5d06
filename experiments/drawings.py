"""The paper's figures as pure functions: evidence -> a figure and what it shows.

Nothing here trains, and nothing is invented: a run, a beta or a metric that is not
there is a gap, and a panel without any says so. The layout is the paper's (one
column a data set, a point the mean over seeds, a band one standard deviation);
colours and names of models are those of `experiments.results`.
"""

import string
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from experiments import plans, results
from experiments.plans import Evidence, Spec
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
MARKERS = {"unimodal": "D", "mvae_plus": "P", "mmvae": "s", "mopoe": "^"}
NUM_CLASSES = 10
NUM_CONDITIONS = 10  # columns of the pictures of conditional samples
NUM_PRIOR = 20  # columns of those of prior samples
BOOTSTRAP_SEED = 0
PICTURES = ("9", "10")

SENTENCES = {
    "2": "How good unconditional samples of the first modality are, over β",
    "3": "What every additional modality does to the quality of the first one, "
    "which is the same in all runs; unimodal VAEs know no other modality",
    "4": "How often a modality generated from all others shows their digit, over β",
    "6": "How well a linear classifier reads the digit from the joint embedding, "
    "over β",
    "7": "Importance-sampled log-likelihood of all modalities together, over β",
    "8": "How good unconditional samples of each modality are, over β",
    "9": "Unconditional samples: one row a modality, one column a draw of the prior",
    "10": "Conditional samples: ten of the first modality below each example of the "
    "second that they were generated from",
    "11": "What every additional modality does to the quality of all, where "
    "modalities repeat one background and differ in nothing else",
    "12": "The objective of the official MMVAE (importance sampling, DReG "
    "gradients, a learned prior), over β",
    "13": "MVAE with (MVAE+) and without the ELBOs of single modalities as further "
    "terms, over β",
    "matching": "Coherence as networks trained without labels see it (0: shuffled "
    "pairs, 1: real ones), against coherence as labels do; a point is a trained "
    "model at one β and seed; ρ is Spearman's rank correlation, with its bootstrap "
    "interval",
}
HEADINGS = {
    "matching": "Coherence without annotation",
    "theorem": "The theorem",
    "discrepancy": "Generative discrepancy",
}


class Drawing(NamedTuple):
    """A figure of the paper.

    Attributes:
      figure: without its caption; `finish` adds it.
      rows: one a plotted point, or none for pictures: the columns of `point_row`.
      caption: of these runs.
    """

    figure: Figure
    rows: list[dict[str, Any]]
    caption: str


class Metric(NamedTuple):
    """What a panel shows.

    Attributes:
      tag: of summary.json, without the modality.
      label: of the axis.
      limits: of the axis; None where they are those of the values.
      chance: the value of guessing, drawn as a line.
      reachable: a tag whose values on real data are drawn as a line.
    """

    tag: str
    label: str
    limits: tuple[float, float] | None = None
    chance: float | None = None
    reachable: str = ""


class Panel(NamedTuple):
    """Lines over beta, one a run.

    Attributes:
      title: above the panel.
      metric: what is shown.
      specs: of the runs.
      modality: whose values they are; "" for those of all together.
      heading: above the label of the axis.
    """

    title: str
    metric: Metric
    specs: Sequence[Spec]
    modality: str = ""
    heading: str = ""


FID = Metric("eval/fid", "FID (lower is better)")
FRECHET = Metric(
    "eval/frechet_classifier",
    "Fréchet distance, classifier features (lower is better)",
)
SWD = Metric("eval/swd", "sliced Wasserstein distance (lower is better)")
COHERENCE = Metric(
    "eval/coherence/leave_one_out",
    "leave-one-out coherence",
    (0.0, 1.0),
    1 / NUM_CLASSES,
    "eval/classifier_accuracy",
)
PROBE = Metric(
    "eval/linear_probe",
    "accuracy of a linear classifier",
    (0.0, 1.0),
    1 / NUM_CLASSES,
)
LIKELIHOOD = Metric("eval/log_likelihood", "joint log-likelihood (nats)")
MATCHING = Metric("eval/matching/leave_one_out", "annotation-free coherence")


@matplotlib.rc_context(STYLE)
def draw_quality(evidence: Evidence) -> Drawing:
    """Figure 2: quality of the first modality over beta."""
    return _draw_columns(evidence, "2", plans.MODELS, is_first=True)


@matplotlib.rc_context(STYLE)
def draw_num_modalities(evidence: Evidence) -> Drawing:
    """Figure 3: quality of the first modality over the number of modalities."""
    return _draw_modalities(evidence, "3", is_repeated=False)


@matplotlib.rc_context(STYLE)
def draw_coherence(evidence: Evidence) -> Drawing:
    """Figure 4: leave-one-out coherence over beta."""
    return _draw_columns(evidence, "4", plans.MULTIMODAL, [COHERENCE])


@matplotlib.rc_context(STYLE)
def draw_probe(evidence: Evidence) -> Drawing:
    """Figure 6: linear classification of latent representations over beta."""
    return _draw_columns(evidence, "6", plans.MODELS, [PROBE])


@matplotlib.rc_context(STYLE)
def draw_likelihood(evidence: Evidence) -> Drawing:
    """Figure 7: joint log-likelihood over beta."""
    return _draw_columns(evidence, "7", plans.MODELS, [LIKELIHOOD])


@matplotlib.rc_context(STYLE)
def draw_all_modalities(evidence: Evidence) -> Drawing:
    """Figure 8: quality of every modality over beta, one row a data set."""
    metrics = _quality_metrics(evidence, plans.figure_specs(evidence.config)["8"])
    names = {c: modalities_of(evidence, c) for c in evidence.config.columns}
    panels = [
        [
            Panel(
                f"$X_{{{i + 1}}}$",
                metric,
                plans.sweep([column], plans.MODELS),
                name,
                _title(evidence, column),
            )
            for i, name in enumerate(names[column])
        ]
        for column in evidence.config.columns
        for metric in metrics
    ]
    return _draw_panels(evidence, "8", panels, (1.6, 1.35), is_shared=True)


@matplotlib.rc_context(STYLE)
def draw_prior_samples(evidence: Evidence) -> Drawing:
    """Figure 9: unconditional samples of every model."""

    def strips(column: str) -> list[str]:
        return [_symbol(i) for i in range(len(modalities_of(evidence, column)))]

    return _draw_pictures(
        evidence, "9", plans.MODELS, 2, lambda column: "prior", strips, NUM_PRIOR
    )


@matplotlib.rc_context(STYLE)
def draw_conditional_samples(evidence: Evidence) -> Drawing:
    """Figure 10: samples of the first modality given the second."""

    def picture(column: str) -> str:
        names = modalities_of(evidence, column)
        return f"{names[0]}_given_{names[1 % len(names)]}"

    def strips(column: str) -> list[str]:
        rows = [""] * NUM_CONDITIONS
        rows[NUM_CONDITIONS // 2] = _symbol(0)
        return [_symbol(1), *rows]

    return _draw_pictures(
        evidence, "10", plans.MULTIMODAL, 3, picture, strips, NUM_CONDITIONS
    )


@matplotlib.rc_context(STYLE)
def draw_repeated_modalities(evidence: Evidence) -> Drawing:
    """Figure 11: mean quality over the number of repeated modalities."""
    return _draw_modalities(evidence, "11", is_repeated=True)


@matplotlib.rc_context(STYLE)
def draw_official(evidence: Evidence) -> Drawing:
    """Figure 12: the official MMVAE on the first data set."""
    return _draw_ablation(evidence, "12", plans.official(evidence.config))


@matplotlib.rc_context(STYLE)
def draw_subsampling(evidence: Evidence) -> Drawing:
    """Figure 13: MVAE with and without ELBO sub-sampling on the first data set."""
    return _draw_ablation(
        evidence, "13", plans.figure_specs(evidence.config)["13"], has_unimodal=False
    )


@matplotlib.rc_context(STYLE)
def draw_matching(evidence: Evidence) -> Drawing:
    """Annotation-free against labelled coherence, a point a trained model."""
    columns = evidence.config.columns
    figure, axes = _make_axes(1, len(columns), 2.9, 2.4)
    rows = []
    for axis, column in zip(axes[0], columns, strict=True):
        points = {
            spec: found
            for spec in plans.sweep([column], plans.MODELS)
            if (found := _pairs(evidence, spec))
        }
        for spec, found in points.items():
            _, x, y = zip(*found, strict=True)
            axis.plot(
                x,
                y,
                MARKERS.get(spec.model, "o"),
                color=results.COLOURS[spec.model],
                label=results.LABELS[spec.model],
                alpha=0.75,
                markeredgewidth=0,
                markersize=4.5,
            )
            rows += _matching_rows(evidence, spec, found)
        title = _title(evidence, column)
        everything = [pair for found in points.values() for pair in found]
        if everything:
            found = _rank_agreement(everything)
            rows += _agreement_rows(evidence, Spec(column, ""), len(everything), found)
            title += "\n" + _show_agreement(found)
            axis.axvline(COHERENCE.chance, color="0.3", lw=0.8, ls=":")
            axis.axhline(0, color="0.3", lw=0.8, ls=":", label="chance")
            _, x, y = zip(*everything, strict=True)
            axis.set_xlim(*_limits([*x, COHERENCE.chance]))
            axis.set_ylim(*_limits([*y, 0.0]))
        else:
            _say_not_measured(axis)
        axis.set(title=title, xlabel=f"{COHERENCE.label} (labels)")
    axes[0, 0].set_ylabel(f"{MATCHING.label}\n(matching networks)")
    _add_legend(figure)
    tags = [MATCHING.tag, COHERENCE.tag]
    return Drawing(figure, rows, caption(evidence, "matching", tags))


DRAWINGS: dict[str, Callable[[Evidence], Drawing]] = {
    "2": draw_quality,
    "3": draw_num_modalities,
    "4": draw_coherence,
    "6": draw_probe,
    "7": draw_likelihood,
    "8": draw_all_modalities,
    "9": draw_prior_samples,
    "10": draw_conditional_samples,
    "11": draw_repeated_modalities,
    "12": draw_official,
    "13": draw_subsampling,
    "matching": draw_matching,
}


def caption(
    evidence: Evidence, name: str, tags: Iterable[str] = (), sentence: str = ""
) -> str:
    """What a figure shows and what it was measured with, from the runs themselves.

    Args:
      evidence: the runs.
      name: of the figure, as in plans.figure_specs.
      tags: of the metrics shown.
      sentence: what it shows; "" = that of SENTENCES.

    Returns:
      One paragraph.
    """
    heading = HEADINGS.get(name, f"Figure {name}")
    sentence = sentence or SENTENCES[name]
    text = [f"{heading}. {sentence}; {evidence.config.description}"]
    specs = plans.figure_specs(evidence.config)[name]
    found = {spec: evidence.runs[spec] for spec in specs if spec in evidence.runs}
    if not found:
        return f"{text[0]}. None of its runs is there."
    summaries = [record.summary for record in found.values()]
    data = {
        f"{_title(evidence, spec.dataset)}: {record.summary['dataset']}": None
        for spec, record in found.items()
    }
    text.append("; ".join(data))
    steps = sorted({summary["num_steps"] for summary in summaries})
    seeds = {member["seed"] for summary in summaries for member in summary["members"]}
    numbers = {_num_modalities(evidence, spec) for spec in found}
    setting = [f"{num:,} steps" for num in steps]
    if len(numbers) == 1:
        setting.append(f"{min(numbers)} modalities")
    if name in PICTURES:
        setting.append(f"seed {evidence.config.seed[0]}")
    elif len(seeds) == 1:
        setting.append("one seed")
    elif name == "matching":
        setting.append(f"{len(seeds)} seeds")
    else:
        setting.append(f"mean and one standard deviation over {len(seeds)} seeds")
    setting += sorted({_machine(summary) for summary in summaries})
    names = ", ".join(tag.removeprefix("eval/") for tag in tags)
    text.append(", ".join(setting) + (f"; metrics: {names}" if names else ""))
    text += _absences(evidence, name, specs)
    return ". ".join(text) + "."


def _machine(summary: Mapping) -> str:
    """The device of a run, and the cores of its machine where they were recorded."""
    cores = summary.get("cpu_cores")
    return summary["device"] + (f" with {cores} CPU cores" if cores else "")


def finish(figure: Figure, text: str, size: float = 7.0) -> None:
    """Adds a caption below the panels, which keep their size.

    Args:
      figure: of a `Drawing`; it grows by what the caption needs.
      text: any; wrapped to the width of the figure.
      size: of the font, points.
    """
    width, height = figure.get_size_inches()
    margin, line = 0.1, 1.35 * size / 72
    lines = _wrap(text, 72 * (width - 2 * margin), size)
    reserved = line * len(lines) + 2 * margin
    total = height + reserved
    figure.set_size_inches(width, total)
    figure.get_layout_engine().set(rect=(0, reserved / total, 1, height / total))
    figure.text(
        margin / width,
        (reserved - margin) / total,
        "\n".join(lines),
        size=size,
        color="0.25",
        va="top",
        linespacing=1.3,
        parse_math=False,
    )


def point_row(
    evidence: Evidence,
    name: str,
    spec: Spec,
    tag: str,
    beta: float,
    value: results.Spread,
    *,
    modality: str = "",
    num_modalities: int | None = None,
    seeds: int = 1,
    diverged: int = 0,
) -> dict[str, Any]:
    """A plotted point as a row of the table of its figure.

    Args:
      evidence: the runs.
      name: of the figure.
      spec: of the run.
      tag: of the metric, as in summary.json.
      beta: of the point.
      value: nan where there is none.
      modality: "" for all together.
      num_modalities: None: as many as the run has.
      seeds: that were averaged.
      diverged: members that were left out.

    Returns:
      Plain numbers and strings.
    """
    if num_modalities is None:
        num_modalities = _num_modalities(evidence, spec)
    return {
        "figure": name,
        "dataset": _title(evidence, spec.dataset),
        "model": spec.model,
        "beta": beta,
        "num_modalities": num_modalities,
        "modality": modality,
        "metric": tag,
        "mean": value.mean,
        "std": value.std,
        "seeds": seeds,
        "diverged": diverged,
    }


def beta_rows(
    evidence: Evidence, name: str, spec: Spec, tag: str, modality: str = ""
) -> list[dict[str, Any]]:
    """One row for every beta of a run's sweep, nan where nothing was measured.

    Args:
      evidence: the runs.
      name: of the figure.
      spec: of the run, which may be missing: no rows.
      tag: without the modality.
      modality: "" for the value of all together.
    """
    record = evidence.runs.get(spec)
    if record is None:
        return []
    tag = f"{tag}/{modality}" if modality else tag
    members = record.summary["members"]
    # by_beta would average all metrics of the run where one is asked for.
    reduced = [{**m, "metrics": {tag: m["metrics"].get(tag)}} for m in members]
    found = results.by_beta({"members": reduced})
    rows = []
    for beta in sorted({member["beta"] for member in members}):
        own = [member["finite"] for member in members if member["beta"] == beta]
        value = found.get(beta, {}).get(tag, results.Spread(np.nan, np.nan))
        rows.append(
            point_row(
                evidence,
                name,
                spec,
                tag,
                beta,
                value,
                modality=modality,
                seeds=sum(own),
                diverged=len(own) - sum(own),
            )
        )
    return rows


def modalities_of(evidence: Evidence, dataset: str) -> list[str]:
    """The names of a data set's modalities, as the runs know them."""
    names = max(
        (
            _modality_names(record)
            for spec, record in evidence.runs.items()
            if spec.dataset == dataset
        ),
        key=len,
        default=[],
    )
    return names or [f"m{i}" for i in range(evidence.config.num_modalities[-1])]


def _modality_names(record: results.RunRecord) -> list[str]:
    """Those that a run has metrics of, in their order."""
    for kind in ("reconstruction", "swd", "frechet_classifier", "fid"):
        prefix = f"eval/{kind}/"
        for member in record.summary["members"]:
            names = [
                t[len(prefix) :] for t in member["metrics"] if t.startswith(prefix)
            ]
            if names:
                return names
    return []


def _num_modalities(evidence: Evidence, spec: Spec) -> int:
    record = evidence.runs.get(spec)
    names = _modality_names(record) if record else []
    return len(names) or spec.num_modalities or evidence.config.num_modalities[-1]


def _title(evidence: Evidence, dataset: str) -> str:
    settings = evidence.config.datasets.get(dataset)
    return settings.title if settings else dataset


def _symbol(index: int) -> str:
    """The paper's name of a modality."""
    return f"$X_{{{index + 1}}}$"


def _draw_columns(
    evidence: Evidence,
    name: str,
    models: Iterable[str],
    metrics: Sequence[Metric] = (),
    *,
    is_first: bool = False,
) -> Drawing:
    """One column a data set, one row a metric; without metrics those of quality."""
    columns = evidence.config.columns
    metrics = metrics or _quality_metrics(
        evidence, plans.figure_specs(evidence.config)[name]
    )
    panels = [
        [
            Panel(
                _title(evidence, column),
                metric,
                plans.sweep([column], models),
                modalities_of(evidence, column)[0] if is_first else "",
            )
            for column in columns
        ]
        for metric in metrics
    ]
    return _draw_panels(evidence, name, panels, (2.9, 2.0))


def _draw_ablation(
    evidence: Evidence, name: str, specs: Sequence[Spec], *, has_unimodal: bool = True
) -> Drawing:
    """Every metric of some models on one data set, three panels a row."""
    multimodal = specs[1:] if has_unimodal else specs
    first = modalities_of(evidence, specs[0].dataset)[0]
    panels = [
        *(
            Panel("", metric, specs, first)
            for metric in _quality_metrics(evidence, specs)
        ),
        Panel("", COHERENCE, multimodal),
        Panel("", PROBE, specs),
        Panel("", LIKELIHOOD, specs),
    ]
    width = 2 if len(panels) == 4 else 3
    rows = [panels[i : i + width] for i in range(0, len(panels), width)]
    size = (2.3 if width == 3 else 2.9, 1.8)
    return _draw_panels(evidence, name, rows, size, is_column=False)


def _draw_panels(
    evidence: Evidence,
    name: str,
    panels: Sequence[Sequence[Panel]],
    size: tuple[float, float],
    *,
    is_shared: bool = False,
    is_column: bool = True,
) -> Drawing:
    """Lines over beta in a grid of panels.

    Args:
      evidence: the runs.
      name: of the figure.
      panels: rows of them; a row may be shorter.
      size: of a panel, inches.
      is_shared: whether the panels of a row have one axis of values.
      is_column: whether those of a column have one axis of beta.
    """
    num_columns = max(len(row) for row in panels)
    figure, axes = _make_axes(
        len(panels), num_columns, *size, sharey="row" if is_shared else False
    )
    betas = _betas(evidence, [spec for row in panels for p in row for spec in p.specs])
    rows = []
    for i, line in enumerate(panels):
        for j, panel in enumerate(line):
            axis = axes[i, j]
            found = _draw_panel(axis, evidence, name, panel)
            rows += found
            if not found:
                _say_not_measured(axis, keeps_ticks=is_shared)
            is_last = not is_column or i + 1 == len(panels)
            _set_beta_axis(axis, betas, size[0], is_last)
            if i == 0:
                axis.set_title(panel.title)
            if j == 0 or not is_column:
                axis.set_ylabel(_axis_label(panel.metric, size[1], panel.heading))
            if panel.metric.limits:
                axis.set_ylim(panel.metric.limits)
    empty = [axis for i, line in enumerate(panels) for axis in axes[i, len(line) :]]
    for axis in empty:
        axis.set_axis_off()
    _add_legend(figure, empty[0] if empty else None)
    tags = _tags(panel for line in panels for panel in line)
    return Drawing(figure, rows, caption(evidence, name, tags))


def _draw_panel(
    axis: Axes, evidence: Evidence, name: str, panel: Panel
) -> list[dict[str, Any]]:
    """Draws the lines of a panel; returns the points that are there."""
    rows = []
    for spec in panel.specs:
        found = beta_rows(evidence, name, spec, panel.metric.tag, panel.modality)
        rows += _draw_line(axis, found, "beta", spec.model)
    if rows and panel.metric.chance is not None:
        axis.axhline(
            panel.metric.chance, color="0.3", lw=0.8, linestyle=":", label="chance"
        )
    if rows and panel.metric.reachable:
        rows += _draw_reachable(axis, evidence, name, panel)
    return rows


def _draw_line(
    axis: Axes, rows: Sequence[Mapping[str, Any]], x: str, model: str
) -> list[dict[str, Any]]:
    """Draws mean and band; returns the rows with a value.

    Points of which a seed diverged are hollow: they average fewer.
    """
    present = [row for row in rows if np.isfinite(row["mean"])]
    if not present:
        return []
    places = np.array([row[x] for row in rows], float)
    mean = np.array([row["mean"] for row in rows], float)
    std = np.nan_to_num(np.array([row["std"] for row in rows], float))
    is_partial = np.isfinite(mean) & np.array([row["diverged"] > 0 for row in rows])
    colour = results.COLOURS[model]
    axis.fill_between(places, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
    marker = MARKERS.get(model, "o")
    label = results.LABELS[model]
    axis.plot(places, mean, marker=marker, color=colour, label=label)
    if is_partial.any():
        axis.plot(
            places[is_partial],
            mean[is_partial],
            marker,
            color=colour,
            markerfacecolor="white",
        )
    return present


def _draw_reachable(
    axis: Axes, evidence: Evidence, name: str, panel: Panel
) -> list[dict[str, Any]]:
    """Draws what real data reach in the metric of a panel, where it is known."""
    for spec in panel.specs:
        record = evidence.runs.get(spec)
        if record is None:
            continue
        prefix = f"{panel.metric.reachable}/"
        # The same for all members: classifiers are a data set's.
        for member in record.summary["members"]:
            values = [
                value
                for tag, value in member["metrics"].items()
                if tag.startswith(prefix) and value is not None
            ]
            if values:
                mean = float(np.mean(values))
                axis.axhline(
                    mean,
                    color="0.3",
                    linewidth=0.8,
                    linestyle="--",
                    label="classifiers on real data",
                )
                value = results.Spread(mean, np.nan)
                row = point_row(
                    evidence, name, spec, panel.metric.reachable, np.nan, value
                )
                return [{**row, "model": "real data"}]
    return []


def _draw_modalities(evidence: Evidence, name: str, *, is_repeated: bool) -> Drawing:
    """Quality over the number of modalities: of the first, or of all repeated ones."""
    scale = evidence.config
    specs = plans.figure_specs(scale)[name]
    metrics = _quality_metrics(evidence, specs, is_mean=is_repeated)
    figure, axes = _make_axes(len(metrics), len(scale.columns), 2.9, 2.0)
    rows, panels = [], []
    for i, metric in enumerate(metrics):
        for j, column in enumerate(scale.columns):
            axis = axes[i, j]
            modality = "" if is_repeated else modalities_of(evidence, column)[0]
            panel = Panel(_title(evidence, column), metric, specs, modality)
            found = _draw_numbers(axis, evidence, name, panel, column, is_repeated)
            if not found:
                _say_not_measured(axis)
            rows += found
            panels.append(panel)
            numbers = scale.num_modalities
            axis.set_xticks(numbers)
            axis.set_xlim(numbers[0] - 0.2, numbers[-1] + 0.2)
            if i == 0:
                beta = scale.datasets[column].beta_by_modalities
                axis.set_title(f"{panel.title} (β = {show_beta(beta)})")
            if i + 1 == len(metrics):
                axis.set_xlabel("number of modalities")
            else:
                axis.tick_params(labelbottom=False)
            if j == 0:
                axis.set_ylabel(_axis_label(metric, 2.0))
    _add_legend(figure)
    return Drawing(figure, rows, caption(evidence, name, _tags(panels)))


def _draw_numbers(
    axis: Axes,
    evidence: Evidence,
    name: str,
    panel: Panel,
    column: str,
    is_repeated: bool,
) -> list[dict[str, Any]]:
    """Draws a panel over the number of modalities; returns the points it has."""
    scale = evidence.config
    beta = scale.datasets[column].beta_by_modalities

    def at_beta(spec: Spec) -> list[dict[str, Any]]:
        found = beta_rows(evidence, name, spec, panel.metric.tag, panel.modality)
        return [row for row in found if row["beta"] == beta]

    ends = scale.num_modalities[0] - 0.2, scale.num_modalities[-1] + 0.2
    rows = []
    for row in at_beta(Spec(column, "unimodal", 0, is_repeated)):
        if np.isfinite(row["mean"]):
            colour, std = results.COLOURS["unimodal"], np.nan_to_num(row["std"])
            low, high = row["mean"] - std, row["mean"] + std
            axis.fill_between(ends, low, high, color=colour, alpha=0.2, lw=0)
            axis.plot(
                ends, [row["mean"]] * 2, color=colour, label=results.LABELS["unimodal"]
            )
            rows.append({**row, "num_modalities": 1})
    nothing = results.Spread(np.nan, np.nan)
    for model in plans.MULTIMODAL:
        line = []
        for num in scale.num_modalities:
            spec = plans.modalities_spec(scale, column, model, num, is_repeated)
            # A gap, where there is none.
            found = at_beta(spec) or [
                point_row(evidence, name, spec, panel.metric.tag, beta, nothing)
            ]
            line += [{**row, "num_modalities": num} for row in found]
        rows += _draw_line(axis, line, "num_modalities", model)
    return rows


def _draw_pictures(
    evidence: Evidence,
    name: str,
    models: Sequence[str],
    num_columns: int,
    picture_name: Callable[[str], str],
    strip_labels: Callable[[str], list[str]],
    num_samples: int,
) -> Drawing:
    """The pictures that runs wrote of one member, a panel a data set and model.

    Args:
      evidence: the runs.
      name: of the figure.
      models: one panel each.
      num_columns: panels in a row.
      picture_name: data set -> the name of its picture.
      strip_labels: data set -> what stands beside each row of its pictures.
      num_samples: in a row of a picture.
    """
    columns = evidence.config.columns
    lines = -(-len(models) // num_columns)  # a data set's
    strips = max(len(strip_labels(column)) for column in columns)
    width, title = 7.2 / num_columns, 0.2 if num_columns == 2 else 0.33
    height = (width - 0.05) * strips / num_samples + title
    figure, axes = _make_axes(lines * len(columns), num_columns, width, height, 0.15)
    figure.set_dpi(300)  # of a PDF, for which pictures are resampled
    letters = iter(string.ascii_lowercase)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, column in enumerate(columns):
        beta = evidence.config.datasets[column].beta_of_samples
        for k, model in enumerate(models):
            axis = axes[i * lines + k // num_columns, k % num_columns]
            title = [
                f"({next(letters, '…')}) {results.LABELS[model]}",
                f"{_title(evidence, column)}, β = {show_beta(beta)}",
            ]
            axis.set_title((", " if num_columns == 2 else ",\n").join(title), size=8)
            found = _picture(evidence, Spec(column, model), picture_name(column))
            if isinstance(found, str):
                axis.set_box_aspect(len(strip_labels(column)) / num_samples)
                axis.text(0.5, 0.5, found, color=GREY, ha="center", va="center")
            else:
                _show_picture(axis, found, strip_labels(column), num_samples)
    return Drawing(figure, [], caption(evidence, name))


def _picture(evidence: Evidence, spec: Spec, name: str) -> np.ndarray | str:
    """The picture a run has written of the member to show, or why there is none."""
    record = evidence.runs.get(spec)
    if record is None:
        return "not measured"
    members = record.summary["members"]
    known = [Member(m["beta"], m["learning_rate"], m["seed"]) for m in members]
    beta = evidence.config.datasets[spec.dataset].beta_of_samples
    for member, item in zip(known, members, strict=True):
        if item["beta"] == beta and item["seed"] == evidence.config.seed[0]:
            file = f"{member_name(member, known)}_{name}.png"
            path = Path(record.workdir) / "samples" / file
            if not item["finite"]:
                return "diverged"
            if path.is_file():
                with Image.open(path) as image:
                    return np.asarray(image.convert("RGB"))
    return "not measured"


def _show_picture(
    axis: Axes, pixels: np.ndarray, labels: Sequence[str], num_samples: int
) -> None:
    """Shows a picture with what stands beside its rows, where these are known."""
    height, width = pixels.shape[:2]
    # Sharp pixels that a print of any resolution averages evenly.
    factor = max(1, -(-800 // width))
    sharp = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    axis.imshow(sharp, extent=(0, width, height, 0), interpolation="antialiased")
    if height * num_samples != width * len(labels):
        return  # modalities of several sizes
    axis.set_axis_on()
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
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


def _pairs(evidence: Evidence, spec: Spec) -> list[tuple[Mapping, float, float]]:
    """(member, labelled, annotation-free coherence) where a run has both."""
    record = evidence.runs.get(spec)
    if record is None:
        return []
    pairs = []
    for member in record.summary["members"]:
        x = member["metrics"].get(COHERENCE.tag)
        y = member["metrics"].get(MATCHING.tag)
        if member["finite"] and x is not None and y is not None:
            pairs.append((member, x, y))
    return pairs


def _rank_agreement(
    pairs: Sequence[tuple[Mapping, float, float]],
) -> tuple[float, float, float]:
    """Spearman's rho and its interval; nan where there is nothing to order."""
    x = np.array([pair[1] for pair in pairs])
    y = np.array([pair[2] for pair in pairs])
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2 or len(x) < 3:
        return np.nan, np.nan, np.nan
    return results.rank_agreement(x, y, BOOTSTRAP_SEED)


def _show_agreement(found: tuple[float, float, float]) -> str:
    rho, low, high = found
    if np.isnan(rho):
        return "ρ is not defined"
    return f"ρ = {rho:.2f} [{low:.2f}, {high:.2f}]"


def _matching_rows(
    evidence: Evidence, spec: Spec, pairs: Sequence[tuple[Mapping, float, float]]
) -> list[dict[str, Any]]:
    """Two rows a point, its coordinates; and the agreement within a model."""
    rows = []
    for member, *values in pairs:
        for tag, value in zip((COHERENCE.tag, MATCHING.tag), values, strict=True):
            spread = results.Spread(value, np.nan)
            row = point_row(evidence, "matching", spec, tag, member["beta"], spread)
            rows.append({**row, "seed": member["seed"]})
    return rows + _agreement_rows(evidence, spec, len(pairs), _rank_agreement(pairs))


def _agreement_rows(
    evidence: Evidence, spec: Spec, num_points: int, found: tuple[float, float, float]
) -> list[dict[str, Any]]:
    """Spearman's rho of a model, or of all, and the ends of its interval."""
    rows = []
    for part, value in zip(("", "/low", "/high"), found, strict=True):
        tag, spread = f"spearman{part}", results.Spread(value, np.nan)
        row = point_row(
            evidence, "matching", spec, tag, np.nan, spread, seeds=num_points
        )
        rows.append({**row, "model": spec.model or "all", "seed": ""})
    return rows


def _quality_metrics(
    evidence: Evidence, specs: Iterable[Spec], *, is_mean: bool = False
) -> list[Metric]:
    """FID where every run has it, otherwise what stands in for it."""
    records = [evidence.runs[spec] for spec in specs if spec in evidence.runs]
    has_fid = []
    for record in records:
        finite = [m["metrics"] for m in record.summary["members"] if m["finite"]]
        names = _modality_names(record)
        tag = FID.tag if is_mean or not names else f"{FID.tag}/{names[0]}"
        if finite:
            has_fid.append(any(metrics.get(tag) is not None for metrics in finite))
    return [FID] if has_fid and all(has_fid) else [FRECHET, SWD]


def _tags(panels: Iterable[Panel]) -> list[str]:
    """The tags of some panels, each once, with all modalities it is shown of."""
    found: dict[str, dict[str, None]] = {}
    for panel in panels:
        names = found.setdefault(panel.metric.tag, {})
        if panel.modality:
            names[panel.modality] = None
    tags = []
    for tag, names in found.items():
        ends = list(names)[:: max(1, len(names) - 1)]
        tags.append("/".join([tag, "…".join(ends)] if ends else [tag]))
    return tags


def _absences(evidence: Evidence, name: str, specs: Sequence[Spec]) -> list[str]:
    """What a figure lacks, as sentences."""
    missing = [spec.folder for spec in specs if spec not in evidence.runs]
    lost, is_partial = [], False
    for spec in specs:
        if spec in evidence.runs:
            groups = _finite_by_beta(evidence, name, spec)
            betas = [
                show_beta(beta) for beta, group in groups.items() if not any(group)
            ]
            is_partial |= any(any(x) and not all(x) for x in groups.values())
            if betas:
                name_of_run = f"{results.LABELS[spec.model]} on "
                name_of_run += _title(evidence, spec.dataset)
                lost.append(f"{name_of_run} at β = {', '.join(betas)}")
    sentences = []
    if len(missing) > 6:
        sentences.append(f"Not measured: {len(missing)} of {len(specs)} runs")
    elif missing:
        sentences.append(f"Not measured: {', '.join(missing)}")
    if lost:
        sentences.append(f"Diverged and left out: {'; '.join(lost)}")
    if is_partial and name == "matching":
        sentences.append("Single seeds that diverged are left out too")
    elif is_partial:
        sentences.append("Hollow points: some seeds diverged and are left out")
    return sentences


def _finite_by_beta(evidence: Evidence, name: str, spec: Spec) -> dict[float, list]:
    """beta -> whether its members are finite, of those that a figure shows."""
    settings = evidence.config.datasets.get(spec.dataset)
    groups: dict[float, list[bool]] = {}
    for member in evidence.runs[spec].summary["members"]:
        if name in ("3", "11"):
            is_shown = member["beta"] == settings.beta_by_modalities
        elif name in PICTURES:
            is_shown = member["beta"] == settings.beta_of_samples
            is_shown &= member["seed"] == evidence.config.seed[0]
        else:
            is_shown = True
        if is_shown:
            groups.setdefault(member["beta"], []).append(member["finite"])
    return groups


def _make_axes(
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


def _axis_label(metric: Metric, height: float, heading: str = "") -> str:
    """A metric's label in as few lines as fit beside a panel of a height in inches."""
    # What is in brackets stays on one line.
    name, bracket, rest = metric.label.partition("(")
    text = name + bracket + rest.replace(" ", "\N{NO-BREAK SPACE}")
    width = round(height * 72 / 4.6)
    num_lines = len(textwrap.wrap(text, width))
    while len(textwrap.wrap(text, width - 1)) == num_lines:
        width -= 1
    lines = (
        [heading, *textwrap.wrap(text, width)]
        if heading
        else (textwrap.wrap(text, width))
    )
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _limits(values: Sequence[float], least: float = 0.3) -> tuple[float, float]:
    """Limits of an axis around values: wide enough that noise looks like noise."""
    low, high = min(values), max(values)
    half = max(high - low, least) * 0.54
    return (low + high) / 2 - half, (low + high) / 2 + half


def _betas(evidence: Evidence, specs: Iterable[Spec]) -> list[float]:
    """Every beta of some runs' sweeps; the scale's, if there is no run."""
    found = {
        member["beta"]
        for spec in specs
        if spec in evidence.runs
        for member in evidence.runs[spec].summary["members"]
    }
    return sorted(found or evidence.config.beta)


def show_beta(beta: float) -> str:
    """A beta as short as the paper writes it: 3e-4, 0.3, 9."""
    if 0 < beta < 0.01:
        mantissa, exponent = f"{beta:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{beta:g}"


def _set_beta_axis(
    axis: Axes, betas: Sequence[float], width: float, is_labelled: bool
) -> None:
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
    ends = transform.inverted().transform(
        np.array([places[0] - 0.05 * span, places[-1] + 0.05 * span])
    )
    axis.set_xlim(*ends)
    inches = (places - places[0]) / span * (0.9 * width - 0.2)
    labels, last = [], np.inf
    for place, beta in zip(inches[::-1], list(betas)[::-1], strict=True):
        text = show_beta(beta)
        half = 0.5 * 0.05 * len(text) + 0.01
        is_free = place + half < last
        labels.append(text if is_free else "")
        last = place - half if is_free else last
    axis.set_xticks(betas, labels[::-1])
    axis.minorticks_off()
    if is_labelled:
        axis.set_xlabel("β")
    else:
        axis.tick_params(labelbottom=False)


def _say_not_measured(axis: Axes, *, keeps_ticks: bool = False) -> None:
    axis.text(
        0.5,
        0.5,
        "not measured",
        color=GREY,
        ha="center",
        va="center",
        transform=axis.transAxes,
    )
    if not keeps_ticks:
        axis.tick_params(left=False, labelleft=False)
        axis.grid(False)


def _add_legend(figure: Figure, place: Axes | None = None) -> None:
    """One legend for all panels: above them, or in a place that is free."""
    found: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = list(results.LABELS.values())
    labels = sorted(found, key=lambda x: order.index(x) if x in order else len(order))
    if not labels:
        return
    handles = [found[label] for label in labels]
    if place is not None:
        place.legend(handles, labels, loc="center")
    else:
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(len(labels), 6)
        )


def _wrap(text: str, width: float, size: float) -> list[str]:
    """Lines that are not wider than `width` points."""
    # Letters are hinted: at a low resolution their widths are whole pixels.
    renderers = [FigureCanvasAgg(Figure(dpi=dpi)).get_renderer() for dpi in (72, 130)]
    font = FontProperties(size=size)

    def measure(line: str) -> float:
        return max(
            renderer.get_text_width_height_descent(line, font, False)[0]
            * 72
            / renderer.dpi
            for renderer in renderers
        )

    num = max(8, round(width / (0.45 * size)))
    while True:
        lines = textwrap.wrap(text, num)
        if num <= 8 or all(measure(line) <= width for line in lines):
            return lines
        num -= 1
