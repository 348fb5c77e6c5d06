"""The paper's trade-off on real digits, from nothing, in minutes.

    make demo

Trains the four models of Figure 2 at the scale configs/scales/small.py (three betas and
three seeds each), prints a table, draws the trade-off and samples, and says whether the
trade-off appears; the exit code is 1 if it does not. The same command resumes a stopped
demo.
"""

import resource
import time
from collections.abc import Sequence
from pathlib import Path

import tabulate
from absl import flags

from experiments import figures
from experiments.drawing import gallery
from experiments.drawing.page import points_in, quality, write
from experiments.judging import paper
from experiments.judging.verdicts import Verdict, evaluate, found_claims, table
from experiments.plans import plan
from experiments.running import command, terminal
from mmvae_jax.training.log import write_json

SCALE = "small"
FIGURES = ("tradeoff", "9", "10")


def _found_results(
    evidence: plan.Evidence, verdicts: Sequence[Verdict], minutes: float
) -> dict:
    """Content of results.json: the numbers and the conditions of the measurement."""
    spreads = evidence.spreads.dropna(subset="mean")
    means: dict[str, dict[str, dict]] = {}
    for spec in evidence.runs:
        own = spreads[spreads["run"] == spec.folder]
        for row in own.to_dict("records"):
            betas = means.setdefault(spec.model, {}).setdefault(str(row["beta"]), {})
            betas[row["tag"]] = [row["mean"], row["std"]]
    summary = next(iter(evidence.runs.values())).summary
    return found_claims(evidence, verdicts) | {
        "command": "make demo",
        "minutes": round(minutes, 1),
        # Linux reports kibibytes.
        "peak_memory_gib": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
        ),
        "num_steps": summary["num_steps"],
        "mean_and_std_over_seeds": means,
    }


def _print_results(directory: Path) -> None:
    """Prints quality and coherence of each model and beta."""
    found = quality(points_in(directory))
    rows = [[row.label, *row.cells] for row in found.rows]
    header = ["model", *found.header]
    terminal.say("\nmean ± standard deviation over seeds")
    terminal.say(tabulate.tabulate(rows, header, disable_numparse=True))


def make(directory: Path, name: str) -> int:
    """Trains unfinished runs and shows the results.

    Args:
      directory: folder of the plan.
      name: name of the scale, or its file.

    Returns:
      0 if all claims hold, else 1; 128 + n after signal n.
    """
    start = time.perf_counter()
    name, scale = plan.load_scale(name)
    specs = plan.sweep(scale.columns, plan.MODELS)
    configs = figures.checked_configs(scale, specs, {})
    plan.record(directory, name, scale)
    code = figures.train_missing(directory, configs)
    if code:
        return code
    evidence = plan.read(directory)
    gallery.draw(evidence, FIGURES)
    verdicts = evaluate(evidence, paper.TRADEOFF)
    minutes = (time.perf_counter() - start) / 60
    if not (directory / "results.json").exists():  # later calls train nothing
        found = _found_results(evidence, verdicts, minutes)
        write_json(directory / "results.json", found)
    page = directory / "report.html"
    write(directory, page)
    _print_results(directory)
    terminal.say(f"\n{table(verdicts)}")
    terminal.say(
        f"\n{minutes:.1f} minutes. Everything on one page: {page}\n"
        f"The figures are in {directory / 'figures'}; every run's own files are in "
        f"{directory}/<data set>/<model>/"
    )
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def main() -> int:
    """Starts or resumes the four runs of the demo."""
    return make(Path(flags.FLAGS.workdir).expanduser().absolute(), SCALE)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/demo", "folder of the demo's runs")
    command.run(main)
