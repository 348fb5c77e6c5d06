"""Captions of figures: content, runs, and missing runs."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from experiments.judging import paper
from experiments.plans import plan, tables
from experiments.plans.names import model_label
from experiments.plans.plan import Evidence, Spec
from mmvae_jax.training.sweep import Member

PICTURES = ("9", "10")
# Suffix of the data set's name in a run of the first modalities.
_FIRST = re.compile(r"-first\d+$")
_HEADINGS = {
    "tradeoff": "The trade-off",
    "matching": "Coherence without annotation",
    "theorem": "The theorem",
    "discrepancy": "Generative discrepancy",
    "family": "The family",
    "inputs": "Coherence by what is given",
}
_SENTENCES = {
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
    "tradeoff": "Quality of unconditional samples, the mean over modalities, and ELBO "
    "against coherence given all other modalities, each with its standard deviation; "
    "better is up and to the right; markers grow with β",
    "matching": "Coherence as networks trained without labels see it (0: shuffled "
    "pairs, 1: real ones), against coherence as labels do; a point is a trained "
    "model at one β and seed; ρ is Spearman's rank correlation, with its bootstrap "
    "interval",
    "theorem": "The objective L_S and its reconstruction term in training, on data "
    "whose joint pmf is known, with their ceilings; that of Eq. 4 is not what holds "
    "(docs/theory.md)",
    "discrepancy": "What the theory says no mixture can reconstruct, Δ(X, S) of the "
    "process that makes the data, beside the measured quality of the first modality",
    "family": "Quality of unconditional samples, the mean over modalities, against "
    "coherence given all other modalities and given one, both with standard "
    "deviations; better is up and to the right; a line is a model, its markers grow "
    "with β; faint: models of another kind, to compare with",
    "inputs": "How often generated modalities show the digit of 1, 2, ... others that "
    "they are given, each seed at the one β with the best mean over these numbers and "
    "over the other seeds; a model of one seed and several β is left out, as nothing "
    "is there to choose by; faint: models of another kind, to compare with. Last row, "
    "no run of this project: "
    f"{paper.PUBLISHED_SOURCE}",
}
# Figure -> its sentence on pairs of images and captions, added if it shows them.
_PAIRS = {
    "2": "of pairs, of the image",
    "4": "of Shapes, how often its shape and colour are read off what is generated "
    "from the other modality, the mean and one by one; of CUB, of which nobody has "
    "annotated what is shared, images given captions",
    "8": "of pairs, of the image",
    "9": "of pairs, images with the captions drawn with them, some of them",
    "10": "of pairs, ten draws beside what they were generated from, some of them",
}


def caption(evidence: Evidence, name: str, tags: Iterable[str] = ()) -> str:
    """The content of a figure and the settings of its runs.

    Args:
      evidence: the runs.
      name: name of the figure, as in plan.figure_specs.
      tags: tags of the shown metrics.

    Returns:
      One paragraph.
    """
    heading = _HEADINGS.get(name, f"Figure {name}")
    # The scale's description is about images, which the theorem's data are not.
    specs = plan.figure_specs(evidence.config)[name]
    pairs = plan.pair_columns(evidence.config)
    scale = evidence.config.description
    if any(spec.dataset in pairs for spec in specs):
        scale = tables.description(evidence)
    scale = f"{evidence.scale} scale" if name == "theorem" else scale
    sentence = _SENTENCES[name]
    if name in _PAIRS and tables.shown_pairs(evidence):
        sentence += f"; {_PAIRS[name]}"
    text = [f"{heading}. {sentence}; {scale}"]
    found = {s: evidence.runs[s].summary for s in specs if s in evidence.runs}
    if not found:
        return f"{text[0]}. None of its runs is there."
    data = dict.fromkeys(
        f"{tables.title(evidence, spec.dataset)}: {_FIRST.sub('', summary['dataset'])}"
        for spec, summary in found.items()
    )
    names = ", ".join(tag.removeprefix("eval/") for tag in tags)
    setting = ", ".join(_setting(evidence, name, found))
    text += ["; ".join(data), setting + (f"; metrics: {names}" if names else "")]
    return ". ".join(text + _absences(evidence, name, specs)) + "."


def _setting(
    evidence: Evidence, name: str, summaries: Mapping[Spec, Mapping[str, Any]]
) -> list[str]:
    """Steps, modalities, seeds and machines of the runs of a figure."""
    runs = summaries.values()
    parts = [f"{num:,} steps" for num in sorted({run["num_steps"] for run in runs})]
    numbers = {tables.num_modalities(evidence, spec) for spec in summaries}
    if len(numbers) == 1:
        parts.append(f"{min(numbers)} modalities")
    seeds = {member["seed"] for run in runs for member in run["members"]}
    if name in PICTURES:
        parts.append(f"seed {evidence.config.seed[0]}")
    elif len(seeds) == 1:
        parts.append("one seed")
    elif name == "matching":
        parts.append(f"{len(seeds)} seeds")
    else:
        parts.append(f"mean and one standard deviation over {len(seeds)} seeds")
    return parts + sorted({_machine(run) for run in runs})


def _machine(summary: Mapping[str, Any]) -> str:
    """The device of a run, and the cores of its machine if recorded."""
    cores = summary.get("cpu_cores")
    return summary["device"] + (f" with {cores} CPU cores" if cores else "")


def _absences(evidence: Evidence, name: str, specs: Sequence[Spec]) -> list[str]:
    """Sentences on missing runs and betas of a figure."""
    left_out = {
        spec.dataset: tables.title(evidence, spec.dataset)
        for spec in specs
        if spec.dataset in plan.pair_columns(evidence.config)
        and spec.dataset not in tables.shown_pairs(evidence)
    }
    specs = [spec for spec in specs if spec.dataset not in left_out]
    missing = [spec.folder for spec in specs if spec not in evidence.runs]
    lost, is_partial = [], False
    for spec in specs:
        groups = _finite_by_beta(evidence, name, spec)
        gone = [tables.show_beta(beta) for beta in groups.index[~groups["any"]]]
        is_partial |= bool((groups["any"] & ~groups["all"]).any())
        if gone:
            place = tables.title(evidence, spec.dataset)
            lost.append(
                f"{model_label(spec.model)} on {place} at β = {', '.join(gone)}"
            )
    sentences = []
    if left_out:
        sentences.append(f"Left out, for want of runs: {'; '.join(left_out.values())}")
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


def _finite_by_beta(evidence: Evidence, name: str, spec: Spec) -> pd.DataFrame:
    """Whether some and all members of each beta are finite, in a figure.

    Returns:
      The columns any and all, one row per beta.
    """
    table = evidence.table
    own = table[table["run"] == spec.folder].drop_duplicates([*Member._fields])
    if name in ("3", "11"):
        settings = evidence.config.datasets[spec.dataset]
        own = own[own["beta"] == settings.beta_by_modalities]
    elif name in PICTURES:
        members = own.to_dict("records")
        shown = [tables.is_pictured(evidence, spec, member) for member in members]
        own = own[np.array(shown, bool)]
    return own.groupby("beta")["finite"].agg(["any", "all"])


def finish(figure: Figure, text: str, size: float = 7.0) -> None:
    """Adds a caption below the panels, which keep their size.

    Args:
      figure: figure of a `Drawing`; it is enlarged for the caption.
      text: text of the caption; wrapped to the width of the figure.
      size: size of the font in points.
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


def _wrap(text: str, width: float, size: float) -> list[str]:
    """Wraps a text to lines of at most `width` points."""
    # Hinting rounds letter widths to pixels, so that they depend on the resolution.
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
