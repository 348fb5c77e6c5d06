"""All figures by name, and their files."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from ml_collections import ConfigDict

from experiments.drawing import axes, figure_captions, paper_figures, theorem
from experiments.plans import plan
from experiments.plans.shown_metrics import FID, SWD
from experiments.running import terminal
from mmvae_jax.files import write_whole


def _draw_theorem(evidence: plan.Evidence) -> paper_figures.Drawing:
    """The models' bounds during training, with their ceilings on a known pmf."""
    records = {
        spec.model: record
        for spec, record in evidence.runs.items()
        if spec.dataset == "discrete"
    }
    figure, rows = theorem.draw_ceilings(records)
    return paper_figures.Drawing(
        figure, rows, figure_captions.caption(evidence, "theorem")
    )


def _draw_discrepancy(evidence: plan.Evidence) -> paper_figures.Drawing:
    """Delta(X, S) over the number of modalities, and the first column of Figure 3."""
    dataset = evidence.config.columns[0]
    rows = [
        row
        for row in paper_figures.DRAWINGS["3"](evidence).rows
        if row["model"] in plan.MULTIMODAL
        and row["dataset"] == evidence.config.datasets[dataset].title
    ]
    # The last metric is the sliced Wasserstein distance, unless there are FIDs.
    metric = rows[-1]["metric"] if rows else SWD.tag
    label = (FID if metric.startswith(FID.tag) else SWD).label
    columns = ["model", "num_modalities", "mean", "std"]
    shown = [row for row in rows if row["metric"] == metric]
    quality = pd.DataFrame(shown, columns=columns)
    config = next(
        record.config["data"]
        for spec, record in evidence.runs.items()
        if spec.dataset == dataset and not spec.is_repeated
    )
    figure, rows = theorem.draw_discrepancy(
        quality, *theorem.polymnist_process(ConfigDict(config)), label
    )
    text = figure_captions.caption(evidence, "discrepancy", [metric])
    return paper_figures.Drawing(figure, rows, text)


DRAWINGS = paper_figures.DRAWINGS | {
    "theorem": _draw_theorem,
    "discrepancy": _draw_discrepancy,
}


def draw(evidence: plan.Evidence, names: Sequence[str]) -> None:
    """Writes figures/figure_N.{png,pdf,csv} to a plan's folder."""
    folder = evidence.directory / "figures"
    folder.mkdir(exist_ok=True)
    for name in names:
        drawing = DRAWINGS[name](evidence)
        figure_captions.finish(drawing.figure, drawing.caption)
        stem = f"figure_{name}"
        with matplotlib.rc_context(axes.STYLE):
            drawing.figure.savefig(folder / f"{stem}.png", dpi=130)
            # Without the date, equal values give equal files.
            undated = {"CreationDate": None}
            drawing.figure.savefig(folder / f"{stem}.pdf", metadata=undated)
        _write_csv(folder / f"{stem}.csv", drawing.rows)
        terminal.say(f"{folder / stem}.png, .pdf, .csv")


def _write_csv(path: Path, rows: Sequence[Mapping]) -> None:
    """Writes the plotted values atomically."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
