"""Lines, progress bars and the table that a run shows on the terminal."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tabulate

from experiments.running import workdirs
from experiments.running.contradictions import contradictions, names_of
from mmvae_jax.data.dataset import Dataset, Split, kind_of
from mmvae_jax.evaluation.metrics import COLUMNS
from mmvae_jax.interface.progress import drawing_interval, tqdm

# Largest number of columns of results on a terminal.
_MAX_COLUMNS = 14


def say(text: str) -> None:
    """Prints one line without breaking a progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def steps(num: int, name: str) -> tqdm:
    """A progress bar of `num` steps that disappears at its end."""
    return tqdm(total=num, desc=name, leave=False, mininterval=drawing_interval())


def print_modalities(dataset: Dataset, likelihoods: Mapping[str, str]) -> None:
    """Prints one row per modality: its kind, its values, and how much is missing.

    Args:
      dataset: data of the used modalities.
      likelihoods: modality -> name of its likelihood.
    """

    def missing(split: Split, name: str) -> str:
        return f"{1 - split.is_observed(name).mean():.0%}"

    def values(name: str, x: np.ndarray) -> str:
        if name in dataset.words:
            return f"{len(dataset.words[name])} words"
        rows = dataset.train.is_observed(name)
        own = x if rows.all() else x[rows]
        return f"{own.min():.4g} to {own.max():.4g}"

    rows = [
        [
            name,
            kind_of(x),
            " x ".join(map(str, x.shape[1:])),
            values(name, x),
            likelihoods[name],
            missing(dataset.train, name),
            missing(dataset.test, name),
        ]
        for name, x in dataset.train.modalities.items()
    ]
    header = ["modality", "kind", "shape", "values", "likelihood"]
    header += ["missing in training", "in test"]
    say(tabulate.tabulate(rows, header, disable_numparse=True))


def print_table(summary: dict[str, Any]) -> None:
    """Prints one row per member: its hyper-parameters and its main results.

    Many results are printed as rows, with one column per member. Below are the reasons
    of NaNs, and values that contradict a coherence.
    """
    members = summary["members"]
    columns = {
        tag: column.short or column.heading
        for tag, column in COLUMNS.items()
        if any(tag in member["metrics"] for member in members)
    }
    rows = [
        [member["beta"], member["seed"], "yes" if member["finite"] else "NO"]
        + [_value(member["metrics"].get(tag)) for tag in columns]
        for member in members
    ]
    header = ["beta", "seed", "finite", *columns.values()]
    if len(columns) > _MAX_COLUMNS:
        texts = [[x if isinstance(x, str) else f"{x:.4g}" for x in row] for row in rows]
        rows, header = [list(row) for row in zip(header, *texts, strict=True)], []
    say(
        f"{summary['model']} on {summary['dataset']}, {summary['num_steps']} steps\n"
        + tabulate.tabulate(rows, header, floatfmt=".4g", disable_numparse=not header)
    )
    for tag, why in workdirs.undefined(members).items():
        if tag in columns:
            say(f"{columns[tag]} is nan: {'; '.join(why)}")
    for line in contradictions(members, names_of(members)):
        say(line)


def _value(value: float | None) -> float:
    """A value of summary.json, where None means NaN."""
    return math.nan if value is None else value
