"""The paper's trade-off on real digits, from nothing, in minutes.

    make demo

Trains configs/polydigits.py for four models (three betas and three seeds each),
prints one table, draws one figure and the samples side by side, and says whether
the trade-off came out: the exit code is 1 if it did not. A stopped demo continues
where it was.
"""

import datetime
import os
import resource
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import tabulate
from absl import flags

from experiments import claims, command, paper, report, run, terminal, workdirs
from experiments.results import COLOURS, LABELS, Spread, by_beta, show
from mmvae_jax.errors import UsageError
from mmvae_jax.sweeps import Member
from mmvae_jax.writers import member_name, write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (the backend comes first)

MODELS = ("unimodal", "mvae", "mmvae", "mopoe")
COHERENCE, SWD, ELBO = "eval/coherence/leave_one_out", "eval/swd", "eval/elbo"
COLUMNS = {
    COHERENCE: "coherence",
    "eval/coherence/joint": "joint coh.",
    SWD: "SWD (lower: better)",
    ELBO: "ELBO (nats)",
    "eval/log_likelihood": "log-lik. (nats)",
    "eval/linear_probe": "probe",
}


Results = Mapping[str, Mapping[float, Mapping[str, Spread]]]


class Claim(NamedTuple):
    """One statement of the paper as a comparison of two models' best betas.

    Attributes:
      text: the statement.
      tag: the metric compared.
      better: the model that should be ahead.
      worse: the other one.
      sign: 1 where higher is better, -1 where lower is.
    """

    text: str
    tag: str
    better: str
    worse: str
    sign: int


CLAIMS = (
    Claim("MVAE generates better than MMVAE (SWD)", SWD, "mvae", "mmvae", -1),
    Claim("MVAE generates better than MoPoE (SWD)", SWD, "mvae", "mopoe", -1),
    Claim("unimodal VAEs better than MMVAE (SWD)", SWD, "unimodal", "mmvae", -1),
    Claim("unimodal VAEs better than MoPoE (SWD)", SWD, "unimodal", "mopoe", -1),
    Claim("MVAE has a higher ELBO than MMVAE", ELBO, "mvae", "mmvae", 1),
    Claim("MVAE has a higher ELBO than MoPoE", ELBO, "mvae", "mopoe", 1),
    Claim("MMVAE is more coherent than MVAE", COHERENCE, "mmvae", "mvae", 1),
    Claim("MoPoE is more coherent than MVAE", COHERENCE, "mopoe", "mvae", 1),
)


def judge(summaries: Mapping[str, Mapping]) -> list[tuple[Claim, bool, str]]:
    """Whether each claim holds, and the numbers that say so.

    As in the paper (Sec. 5.1) each model is taken at its own best beta, and as in
    `experiments.claims` a claim holds if the difference is at least paper.THRESHOLD
    standard errors.

    Args:
      summaries: model -> the content of its summary.json.
    """
    verdicts = []
    for claim in CLAIMS:
        pair = []
        for model in (claim.better, claim.worse):
            points = claims.over_betas(summaries[model], claim.tag, LABELS[model])
            several = [point for point in points if point.num > 1]
            pair += [max(several, key=lambda p: claim.sign * p.mean)] if several else []
        if len(pair) < 2:
            verdicts.append((claim, False, "no beta at which two seeds are finite"))
            continue
        *_, z = claims.combine(zip((claim.sign, -claim.sign), pair, strict=True))
        shown = (show(Spread(point.mean, point.std)) for point in pair)
        numbers = f"{' against '.join(shown)}, {z:+.1f} SE"
        verdicts.append((claim, z >= paper.THRESHOLD, numbers))
    return verdicts


def print_results(results: Results) -> None:
    """Prints a row for each model and beta: mean and standard deviation."""
    rows = [
        [LABELS[model], beta, *(show(tags.get(tag)) for tag in COLUMNS)]
        for model, betas in results.items()
        for beta, tags in betas.items()
    ]
    header = ["model", "beta", *COLUMNS.values()]
    terminal.say(tabulate.tabulate(rows, header, disable_numparse=True))


def draw_tradeoff(results: Results, caption: str, path: Path) -> None:
    """Draws quality against coherence, a point a model and beta."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    panels = ((SWD, "sliced Wasserstein distance\n(lower is better)"), (ELBO, "ELBO"))
    for axis, (tag, label) in zip(axes, panels, strict=True):
        for model, betas in results.items():
            points = [(tags[COHERENCE], tags[tag], b) for b, tags in betas.items()]
            axis.errorbar(
                [x.mean for x, _, _ in points],
                [y.mean for _, y, _ in points],
                xerr=[x.std for x, _, _ in points],
                yerr=[y.std for _, y, _ in points],
                color=COLOURS[model],
                label=LABELS[model],
                marker="o",
                capsize=2,
            )
            for x, y, beta in points:
                axis.annotate(
                    f"β={beta:g}",
                    (x.mean, y.mean),
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize=8,
                    color=COLOURS[model],
                )
        axis.set_xlabel("leave-one-out coherence (higher is better)")
        axis.set_ylabel(label + (" in nats (higher is better)" if tag == ELBO else ""))
        axis.set_xlim(0, 1)
        axis.grid(alpha=0.3)
    # Better is up and to the right in both panels.
    axes[0].invert_yaxis()
    axes[0].legend()
    figure.suptitle(caption, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_samples(folders: Mapping[str, Path], member: str, path: Path) -> None:
    """Puts the models' prior samples and one conditional grid side by side."""
    titles = {"prior": "unconditional", "m0_given_m1": "m0 given m1 (top row)"}
    pictures = {
        (name, model): plt.imread(folder / "samples" / f"{member}_{name}.png")
        for name in titles
        for model, folder in folders.items()
    }
    # Rows as high as their pictures are, at one width for all.
    shapes = [pictures[name, next(iter(folders))].shape for name in titles]
    ratios = [height / width for height, width, *_ in shapes]
    figure, axes = plt.subplots(
        len(titles),
        len(folders),
        figsize=(2.6 * len(folders), 2.6 * sum(ratios) + 0.6),
        height_ratios=ratios,
        layout="constrained",
        squeeze=False,
    )
    for row, (name, title) in enumerate(titles.items()):
        for column, model in enumerate(folders):
            axis = axes[row, column]
            axis.imshow(pictures[name, model], interpolation="nearest")
            axis.set_title(f"{LABELS[model]}: {title}", fontsize=7)
            axis.set_axis_off()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def check(config: Any) -> None:
    """Checks what the demo needs of its config, which flags may have changed.

    Raises:
      UsageError: fewer than two seeds, several learning rates, a metric missing.
    """
    if len(config.sweep.seed) < 2 or len(config.sweep.learning_rate) != 1:
        raise UsageError(
            "the demo needs at least two config.sweep.seed, for its error bars, and "
            "one config.sweep.learning_rate"
        )
    missing = {"elbo", "coherence", "swd"} - set(config.eval.metrics)
    if missing:
        raise UsageError(
            f"the demo needs the metric {sorted(missing)[0]} in config.eval.metrics"
        )


def found_results(
    summary: dict, config: Any, results: Results, verdicts: list, minutes: float
) -> dict:
    """What results.json holds: the numbers and what they were measured with."""
    return {
        "command": "make demo",
        "date": datetime.date.today().isoformat(),
        "machine": f"{summary['device']}, {os.cpu_count()} cores",
        "minutes": round(minutes, 1),
        # Linux counts in kibibytes.
        "peak_memory_gib": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
        ),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "numpy")},
        "dataset": summary["dataset"],
        "num_steps": summary["num_steps"],
        "seeds": list(config.sweep.seed),
        "scale": "demo: 16 x 16 pixels, small networks; not the paper's data",
        "mean_and_std_over_seeds": {
            model: {
                str(beta): {tag: [*spread] for tag, spread in tags.items()}
                for beta, tags in betas.items()
            }
            for model, betas in results.items()
        },
        "claims": [
            {"claim": claim.text, "holds": holds, "numbers": numbers}
            for claim, holds, numbers in verdicts
        ],
    }


def main() -> int:
    """Runs, or takes up, the four runs of the demo and shows their results."""
    start = time.perf_counter()
    check(flags.FLAGS.config)
    workdir = Path(flags.FLAGS.workdir).expanduser().absolute()
    folders, summaries = {}, {}
    for model in MODELS:
        config = flags.FLAGS.config.copy_and_resolve_references()
        config.model.name = model
        folders[model] = workdir / model
        code = run.train_and_evaluate(config, folders[model])
        if code > 1:
            return code
        summaries[model] = workdirs.read_summary(folders[model])
    results = {model: by_beta(summary) for model, summary in summaries.items()}
    terminal.say("\nmean ± standard deviation over seeds")
    print_results(results)
    first = summaries["mvae"]
    caption = (
        f"{first['dataset']}, {first['num_steps']} steps, "
        f"{len(config.sweep.seed)} seeds, {first['device']}"
    )
    draw_tradeoff(results, caption, workdir / "tradeoff.png")
    middle = Member(
        sorted(config.sweep.beta)[len(config.sweep.beta) // 2],
        config.sweep.learning_rate[0],
        config.sweep.seed[0],
    )
    draw_samples(folders, member_name(middle, [middle]), workdir / "samples.png")
    verdicts = judge(summaries)
    minutes = (time.perf_counter() - start) / 60
    found = found_results(first, config, results, verdicts, minutes)
    if not (workdir / "results.json").exists():  # a later call trains nothing
        write_json(workdir / "results.json", found)
    report.write(workdir, workdir / "report.html")
    rows = [[c.text, "holds" if ok else "FAILS", n] for c, ok, n in verdicts]
    terminal.say("\n" + tabulate.tabulate(rows, ["claim (best beta each)", "", ""]))
    terminal.say(
        f"\n{minutes:.1f} minutes. Everything on one page: {workdir / 'report.html'}\n"
        f"The figure is {workdir / 'tradeoff.png'}, the samples "
        f"{workdir / 'samples.png'}; every run's own files are in {workdir}/<model>/"
    )
    return 0 if all(ok for _, ok, _ in verdicts) else 1


if __name__ == "__main__":
    command.define_config("configs/polydigits.py")
    flags.DEFINE_string("workdir", "runs/demo", "folder of the demo's runs")
    command.run(main)
