"""The paper's figures as pure functions of the finished runs.

Missing runs, betas or metrics are gaps, and an empty panel says why. The layout is the
paper's: one column per data set, points are means over seeds, bands are one standard
deviation. `experiments.plans.tables` has the values, `experiments.drawing.panels` the
drawing, and `experiments.drawing.figure_captions` the captions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.drawing import figure_captions, panels, picture_panels
from experiments.drawing.axes import NOT_MEASURED, STYLE, add_legend, make_axes, say
from experiments.drawing.panels import Front, Panel
from experiments.drawing.picture_panels import Page, Strips
from experiments.judging import paper
from experiments.plans import plan, shown_metrics, tables
from experiments.plans.plan import Evidence, Spec
from experiments.plans.shown_metrics import (
    ATTRIBUTES,
    COHERENCE,
    ELBO,
    LIKELIHOOD,
    MATCHING,
    PROBE,
    SINGLE,
    Metric,
)
from experiments.plans.tables import Row

_NUM_CONDITIONS = 10  # columns of pictures of conditional samples
_NUM_PRIOR = 20  # columns of pictures of prior samples
# Shown fraction of the height of pictures with captions.
_PART_OF_PRIOR = 0.5
_PART_OF_CONDITIONAL = 0.3


class Drawing(NamedTuple):
    """A figure of the paper.

    Attributes:
      figure: figure without the caption, which `figure_captions.finish` adds.
      rows: one `tables.point_row` per plotted point; none for pictures.
      caption: description of the runs.
    """

    figure: Figure
    rows: list[Row]
    caption: str


@matplotlib.rc_context(STYLE)
def _draw_quality(evidence: Evidence) -> Drawing:
    """Figure 2: quality of the first modality over beta."""
    return _draw_columns(evidence, "2", is_first=True)


@matplotlib.rc_context(STYLE)
def _draw_num_modalities(evidence: Evidence) -> Drawing:
    """Figure 3: quality of the first modality over the number of modalities."""
    return _draw_columns(evidence, "3", is_first=True, x="num_modalities")


@matplotlib.rc_context(STYLE)
def _draw_coherence(evidence: Evidence) -> Drawing:
    """Figure 4: leave-one-out coherence over beta.

    For images with captions, coherence of their attributes; without attributes,
    pictures of images given captions.
    """
    pairs = tables.shown_pairs(evidence)
    labelled = [c for c in pairs if tables.is_measured(evidence, c, ATTRIBUTES.tag)]

    def panel(column: str, metric: Metric, title: str) -> Panel:
        return Panel(title, metric, plan.sweep([column], plan.MULTIMODAL))

    first = [(column, COHERENCE) for column in evidence.config.columns]
    first += [(column, ATTRIBUTES) for column in labelled]
    grid = [[panel(c, m, tables.title(evidence, c)) for c, m in first]] if first else []
    for column in labelled:
        image, caption = tables.modalities_of(evidence, column)
        title = tables.title(evidence, column)
        grid.append(
            [
                panel(
                    column,
                    shown_metrics.attribute_metric(attribute, target, source),
                    f"{title}: {attribute},\n{target} given {source}",
                )
                for target, source in ((image, caption), (caption, image))
                for attribute in shown_metrics.CHANCES
            ]
        )
    pages = [
        page
        for column in pairs
        if column not in labelled
        for page in _conditional_pages(evidence, column)
        if page.name.startswith(tables.modalities_of(evidence, column)[0])
    ]
    size = (2.2, 1.8) if labelled or pages else (2.9, 2.0)
    return _draw_grid(evidence, "4", grid, size, pages=pages)


@matplotlib.rc_context(STYLE)
def _draw_probe(evidence: Evidence) -> Drawing:
    """Figure 6: linear classification of latent representations over beta."""
    return _draw_columns(evidence, "6", [PROBE])


@matplotlib.rc_context(STYLE)
def _draw_likelihood(evidence: Evidence) -> Drawing:
    """Figure 7: joint log-likelihood over beta."""
    return _draw_columns(evidence, "7", [LIKELIHOOD])


@matplotlib.rc_context(STYLE)
def _draw_all_modalities(evidence: Evidence) -> Drawing:
    """Figure 8: quality of each modality over beta, one row per data set."""
    columns = evidence.config.columns
    specs = plan.sweep(columns, plan.MODELS)
    metrics = tables.quality_metrics(evidence, specs, is_mean=False)
    grid = [
        [
            Panel(
                _symbol(i),
                metric,
                plan.sweep([column], plan.MODELS),
                name,
                tables.title(evidence, column),
            )
            for i, name in enumerate(tables.modalities_of(evidence, column))
            if column in columns
            or tables.is_measured(evidence, column, f"{metric.tag}/{name}")
        ]
        for column in (*columns, *tables.shown_pairs(evidence))
        for metric in metrics
    ]
    grid = [line for line in grid if line]
    return _draw_grid(evidence, "8", grid, (1.6, 1.35), is_shared=True)


@matplotlib.rc_context(STYLE)
def _draw_prior_samples(evidence: Evidence) -> Drawing:
    """Figure 9: unconditional samples of every model."""
    strips = {}
    for column in evidence.config.columns:
        num = len(tables.modalities_of(evidence, column))
        strips[column] = Strips("prior", [_symbol(i) for i in range(num)])
    pages = [
        Page(Spec(column, model), "prior", "some samples", _PART_OF_PRIOR)
        for column in tables.shown_pairs(evidence)
        for model in plan.MODELS
    ]
    figure = picture_panels.draw_pictures(
        evidence, plan.MODELS, strips, _NUM_PRIOR, 2, pages, 2
    )
    return Drawing(figure, [], figure_captions.caption(evidence, "9"))


@matplotlib.rc_context(STYLE)
def _draw_conditional_samples(evidence: Evidence) -> Drawing:
    """Figure 10: samples of the first modality given the second."""
    labels = [_symbol(1), *[""] * _NUM_CONDITIONS]
    labels[1 + _NUM_CONDITIONS // 2] = _symbol(0)
    strips = {}
    for column in evidence.config.columns:
        names = tables.modalities_of(evidence, column)
        name = f"{names[0]}_given_{names[1 % len(names)]}"
        strips[column] = Strips(name, labels)
    pages = [
        page
        for column in tables.shown_pairs(evidence)
        for page in _conditional_pages(evidence, column)
    ]
    models = plan.MULTIMODAL
    figure = picture_panels.draw_pictures(
        evidence, models, strips, _NUM_CONDITIONS, 3, pages
    )
    return Drawing(figure, [], figure_captions.caption(evidence, "10"))


@matplotlib.rc_context(STYLE)
def _draw_repeated_modalities(evidence: Evidence) -> Drawing:
    """Figure 11: mean quality over the number of repeated modalities."""
    return _draw_columns(evidence, "11", x="num_modalities")


@matplotlib.rc_context(STYLE)
def _draw_official(evidence: Evidence) -> Drawing:
    """Figure 12: the official MMVAE on the first data set."""
    return _draw_ablation(evidence, "12")


@matplotlib.rc_context(STYLE)
def _draw_subsampling(evidence: Evidence) -> Drawing:
    """Figure 13: MVAE with and without ELBO sub-sampling on the first data set."""
    return _draw_ablation(evidence, "13")


@matplotlib.rc_context(STYLE)
def _draw_tradeoff(evidence: Evidence) -> Drawing:
    """Quality and ELBO against coherence of the models of Figure 2."""
    columns = evidence.config.columns
    specs = plan.sweep(columns, plan.MODELS)
    # FID or SWD; the Frechet distance would need classifiers.
    quality = tables.quality_metrics(evidence, specs, is_mean=True)[-1]
    grid = [
        [
            Front(
                *("", COHERENCE, metric, plan.sweep([column], plan.MODELS), ()),
                heading=tables.title(evidence, column),
                is_annotated=True,
            )
            for metric in (quality, ELBO)
        ]
        for column in columns
    ]
    figure, rows = panels.draw_fronts(evidence, "tradeoff", grid, (4.2, 3.2))
    tags = [metric.tag for metric in (COHERENCE, quality, ELBO)]
    return Drawing(figure, rows, figure_captions.caption(evidence, "tradeoff", tags))


@matplotlib.rc_context(STYLE)
def _draw_matching(evidence: Evidence) -> Drawing:
    """Annotation-free against labelled coherence, one point per trained model."""
    columns = evidence.config.columns
    figure, axes = make_axes(1, len(columns), 2.9, 2.4)
    rows = []
    for axis, column in zip(axes[0], columns, strict=True):
        specs = plan.sweep([column], plan.MODELS)
        pairs = {spec: tables.coherence_pairs(evidence, spec) for spec in specs}
        pairs = {spec: found for spec, found in pairs.items() if len(found)}
        title = tables.title(evidence, column)
        if pairs:
            panels.draw_pairs(axis, pairs)
            for spec, found in pairs.items():
                rows += tables.pair_rows(evidence, spec, found)
            together = pd.concat(pairs.values())
            agreement = tables.agreement_rows(evidence, Spec(column, ""), together)
            rows += agreement
            title += "\n" + _show_agreement(*(row["mean"] for row in agreement))
        else:
            say(axis, NOT_MEASURED)
        axis.set(title=title, xlabel=f"{COHERENCE.label} (labels)")
    axes[0, 0].set_ylabel(f"{MATCHING.label}\n(matching networks)")
    add_legend(figure)
    tags = [MATCHING.tag, COHERENCE.tag]
    return Drawing(figure, rows, figure_captions.caption(evidence, "matching", tags))


def _kinds_of(evidence: Evidence, figure: str) -> dict[str, tuple[str, ...]]:
    """Kinds of models of a figure with a finished run; all kinds if none has one."""
    specs = plan.figure_specs(evidence.config)[figure]
    finished = {spec.model for spec in specs if spec in evidence.runs}
    found = {kind: x for kind, x in plan.KINDS.items() if finished & set(x)}
    return found or plan.KINDS


@matplotlib.rc_context(STYLE)
def _draw_family(evidence: Evidence) -> Drawing:
    """Quality against coherence of all models, one panel per kind with a run."""
    specs = plan.figure_specs(evidence.config)["family"]
    metrics = tables.quality_metrics(evidence, specs, is_mean=True)

    def front(column: str, metric: Metric, coherence: Metric, kind: str) -> Front:
        own = plan.sweep([column], plan.KINDS[kind])
        others = plan.sweep([column], plan.REFERENCES)
        others = [spec for spec in others if spec not in own]
        title = tables.title(evidence, column)
        return Front(kind, coherence, metric, own, others, title)

    grid = [
        [
            front(column, metric, coherence, kind)
            for coherence in (COHERENCE, SINGLE)
            for kind in _kinds_of(evidence, "family")
        ]
        for column in evidence.config.columns
        for metric in metrics
    ]
    figure, rows = panels.draw_fronts(evidence, "family", grid, (1.7, 1.6))
    tags = [metric.tag for metric in (COHERENCE, SINGLE, *metrics)]
    return Drawing(figure, rows, figure_captions.caption(evidence, "family", tags))


@matplotlib.rc_context(STYLE)
def _draw_inputs(evidence: Evidence) -> Drawing:
    """Coherence by the number of given modalities, ours and published."""
    columns, kinds = evidence.config.columns, _kinds_of(evidence, "inputs")
    published = paper.PUBLISHED_COHERENCE
    most = max(evidence.config.num_modalities[-1] - 1, *map(len, published.values()))
    size = len(columns) + 1, len(kinds)
    figure, axes = make_axes(*size, 2.3, 1.6, sharex=True, sharey=True)
    axes[0, 0].set(ylim=COHERENCE.limits, xticks=range(1, most + 1))
    rows = []
    for i, column in enumerate(columns):
        for axis, models in zip(axes[i], kinds.values(), strict=True):
            own = plan.sweep([column], models)
            others = plan.sweep([column], plan.REFERENCES)
            others = [spec for spec in others if spec not in own]
            rows += panels.draw_given(axis, evidence, "inputs", own, others)
        axes[i, 0].set_ylabel(f"{tables.title(evidence, column)}\ncoherence")
    for axis, models in zip(axes[-1], kinds.values(), strict=True):
        known = {name: line for name, line in published.items() if name in models}
        if rows and known:
            panels.draw_published(axis, known)
        else:
            axis.set_axis_off()
    axes[-1, 0].set_ylabel("PolyMNIST, published\ncoherence")
    for axis, kind in zip(axes[0], kinds, strict=True):
        axis.set_title(kind)
    for axis in axes[-1]:
        axis.set_xlabel("number of given modalities")
    free = [axis for axis in axes[-1] if not axis.axison]
    add_legend(figure, free[-1] if free else None)
    num = evidence.config.num_modalities[-1]
    tags = [f"eval/coherence/size_1…{num - 1}"]
    return Drawing(figure, rows, figure_captions.caption(evidence, "inputs", tags))


DRAWINGS: dict[str, Callable[[Evidence], Drawing]] = {
    "2": _draw_quality,
    "3": _draw_num_modalities,
    "4": _draw_coherence,
    "6": _draw_probe,
    "7": _draw_likelihood,
    "8": _draw_all_modalities,
    "9": _draw_prior_samples,
    "10": _draw_conditional_samples,
    "11": _draw_repeated_modalities,
    "12": _draw_official,
    "13": _draw_subsampling,
    "tradeoff": _draw_tradeoff,
    "matching": _draw_matching,
    "family": _draw_family,
    "inputs": _draw_inputs,
}


def _draw_columns(
    evidence: Evidence,
    name: str,
    metrics: Sequence[Metric] = (),
    models: Sequence[str] = plan.MODELS,
    *,
    is_first: bool = False,
    x: str = "beta",
) -> Drawing:
    """One column per data set, one row per metric; default: quality metrics."""
    scale = evidence.config
    specs = plan.figure_specs(scale)[name]
    pairs = [
        c for c in tables.shown_pairs(evidence) if any(s.dataset == c for s in specs)
    ]
    if not metrics:
        own = [spec for spec in specs if spec.dataset in scale.columns]
        metrics = tables.quality_metrics(evidence, own, is_mean=not is_first)

    def panel(column: str, metric: Metric) -> Panel:
        title = tables.title(evidence, column)
        if x == "num_modalities":
            beta = scale.datasets[column].beta_by_modalities
            title += f" (β = {tables.show_beta(beta)})"
        own = [s for s in specs if s.dataset == column and s.model in models]
        modality = tables.modalities_of(evidence, column)[0] if is_first else ""
        return Panel(title, metric, own, modality)

    def is_measured(panel: Panel) -> bool:
        tag = "/".join(filter(None, [panel.metric.tag, panel.modality]))
        return any(tables.is_measured(evidence, s.dataset, tag) for s in panel.specs)

    grid = []
    for metric in metrics:
        line = [panel(column, metric) for column in scale.columns]
        further = [panel(column, metric) for column in pairs]
        # Pairs do not have all metrics.
        line += further if any(map(is_measured, further)) else []
        grid += [line] if line else []
    if not grid:
        grid = [[panel(column, metrics[-1]) for column in pairs]]
    return _draw_grid(evidence, name, grid, (2.9, 2.0), x=x)


def _conditional_pages(evidence: Evidence, column: str) -> list[Page]:
    """Pictures of each modality of a pair given the other."""
    names = tables.modalities_of(evidence, column)[:2]
    return [
        Page(
            Spec(column, model),
            f"{target}_given_{source}",
            f"{target} given {source}, some examples",
            _PART_OF_CONDITIONAL,
        )
        for target, source in (names, names[::-1])
        for model in plan.MULTIMODAL
    ]


def _draw_ablation(evidence: Evidence, name: str) -> Drawing:
    """All metrics of some models on one data set, three panels per row."""
    specs = plan.figure_specs(evidence.config)[name]
    multimodal = [spec for spec in specs if not spec.model.startswith("unimodal")]
    first = tables.modalities_of(evidence, specs[0].dataset)[0]
    quality = tables.quality_metrics(evidence, specs, is_mean=False)
    line = [
        *(Panel("", metric, specs, first) for metric in quality),
        Panel("", COHERENCE, multimodal),
        Panel("", PROBE, specs),
        Panel("", LIKELIHOOD, specs),
    ]
    num, width = (2, 2.9) if len(line) == 4 else (3, 2.3)
    grid = [line[i : i + num] for i in range(0, len(line), num)]
    return _draw_grid(evidence, name, grid, (width, 1.8), is_column=False)


def _draw_grid(
    evidence: Evidence,
    name: str,
    grid: Sequence[Sequence[Panel]],
    size: tuple[float, float],
    **options: Any,
) -> Drawing:
    """A Drawing by `panels.draw_grid`, with the same arguments."""
    figure, rows = panels.draw_grid(evidence, name, grid, size, **options)
    tags = panels.tags_of(grid)
    return Drawing(figure, rows, figure_captions.caption(evidence, name, tags))


def _symbol(index: int) -> str:
    """The paper's name of a modality."""
    return f"$X_{{{index + 1}}}$"


def _show_agreement(rho: float, low: float, high: float) -> str:
    if np.isnan(rho):
        return "ρ is not defined"
    return f"ρ = {rho:.2f} [{low:.2f}, {high:.2f}]"
