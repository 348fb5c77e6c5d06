"""How a training step's time and memory grow with modalities, members and batch.

python -m benchmarks.growth [--setting polydigits|polymnist] [--steps 40] [--turns 3]
    [--out growth.json] [--plot growth.png]

One of the three changes at a time; all programs take turns, and medians are shown.
Memory is what XLA says that a program needs beside the data: arguments, outputs that
do not take an argument's place, and temporary arrays.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from benchmarks import reports, sweep
from experiments.running import command
from mmvae_jax.training.sweep import grid as members_of

MODALITIES = (1, 2, 3, 4, 5)
MEMBERS = (1, 2, 4, 8)
BATCHES = (32, 64, 128, 256)


def configure(setting, model, modalities, members, batch):
    """A config and its members."""
    config = sweep.SETTINGS[setting].get_config(model)
    config.data.num_modalities = modalities
    config.train.batch_size = batch
    config.sweep.beta = tuple(0.5 * (k + 1) for k in range(members))
    config.sweep.seed = (0,)
    return config, members_of(config.sweep)


def points(batch):
    """Settings measured: (what changes, its value, modalities, members, batch)."""
    found = [("modalities", m, m, 1, batch) for m in MODALITIES]
    found += [("members", k, MODALITIES[-1], k, batch) for k in MEMBERS]
    return found + [("batch", b, MODALITIES[-1], 1, b) for b in BATCHES]


def fit_line(rows):
    """Slope and intercept of time over value, and the share of variance explained."""
    x = np.array([row["value"] for row in rows], float)
    y = np.array([row["ms a step"] for row in rows])
    slope, intercept = np.polyfit(x, y, 1)
    left = y - slope * x - intercept
    explained = 1 - np.sum(left**2) / np.sum((y - y.mean()) ** 2)
    return {"slope": slope, "intercept": intercept, "explained": explained}


def draw(groups, title):
    """One panel for each of what changes: time, and the line through it."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    figure.suptitle(title)
    for axes, (what, rows) in zip(
        figure.subplots(1, len(groups)), groups.items(), strict=True
    ):
        x = np.array([row["value"] for row in rows])
        line = fit_line(rows)
        axes.plot(x, [row["ms a step"] for row in rows], "o")
        axes.plot(x, line["slope"] * x + line["intercept"], "-", linewidth=1)
        axes.set(xlabel=what, ylim=(0, None))
    figure.axes[0].set_ylabel("ms a step")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=sweep.SETTINGS, default="polydigits")
    parser.add_argument("--model", default="mopoe")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    with reports.own_programs():
        measure(options)


def measure(options):
    """Times everything, reports and draws it."""
    default_batch = sweep.SETTINGS[options.setting].get_config(options.model).train
    rows, ways = [], []
    for what, value, modalities, members, batch in points(default_batch.batch_size):
        config, grid = configure(
            options.setting, options.model, modalities, members, batch
        )
        way = sweep.build(config, grid, "auto")
        way(options.steps)  # compiles, and finds out how many steps a call may take
        ways.append(way)
        rows.append({"what": what, "value": value, "MB": way.megabytes()})
    times = [[] for _ in ways]
    for _ in range(options.turns):
        for taken, way in zip(times, ways, strict=True):
            taken.append(way(options.steps) / options.steps * 1e3)
    for row, taken in zip(rows, times, strict=True):
        row["ms a step"] = statistics.median(taken)
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    groups = {}
    for row in rows:
        groups.setdefault(row["what"], []).append(row)
    lines = {what: fit_line(found) for what, found in groups.items()}
    for what, line in lines.items():
        print(
            f"{what}: {line['intercept']:.2f} + {line['slope']:.3f} x ms a step, "
            f"{line['explained']:.1%} of the variance"
        )
    # At most: the data, and so often what one member needs.
    needed = {row["value"]: row["MB"] for row in groups["members"]}
    shares = {k: needed[k] / (k * needed[1]) for k in MEMBERS}
    for k, share in shares.items():
        print(f"memory of {k} members: {share:.2f} of {k} times one member's")
    if options.plot:
        draw(groups, f"{options.setting}:{options.model}, {reports.machine()}").savefig(
            options.plot, dpi=120
        )
    ran = (
        f"growth --setting {options.setting} --model {options.model} "
        f"--steps {options.steps} --turns {options.turns}"
    )
    reports.write(options.out, ran, rows, lines=lines, memory_of_members=shares)


if __name__ == "__main__":
    command.call(main)
