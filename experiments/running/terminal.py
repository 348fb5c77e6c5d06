"""Lines, progress bars and the table that a run shows on the terminal."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tabulate
from tqdm import tqdm

from experiments.running import workdirs
from mmvae_jax.data.dataset import Dataset, Split, kind_of
from mmvae_jax.evaluation.metrics import COLUMNS


def say(text: str) -> None:
    """Prints one line without tearing a progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def steps(num: int, name: str) -> tqdm:
    """A progress bar of `num` steps that vanishes at its end."""
    return tqdm(total=num, desc=name, leave=False, mininterval=_interval())


class ProgressBar:
    """Steps done, time left, examples per second, and the members' losses.

    Attributes:
      losses: the members' latest losses, in nats; set by whoever logs them.
    """

    def __init__(
        self,
        step: int,
        num_steps: int,
        examples_per_step: int,
        name: str = "training",
    ):
        """A bar that starts at `step` and appears with its first move."""
        self.losses: list[float] = []
        self._examples_per_step = examples_per_step
        self._bar = tqdm(
            total=num_steps,
            initial=step,
            unit="step",
            desc=name,
            delay=1e-9,
            mininterval=_interval(),
        )

    def update(self, step: int, seconds_per_step: float) -> None:
        """Moves the bar; called after every call of the compiled program."""
        examples = self._examples_per_step / max(seconds_per_step, 1e-9)
        losses = " ".join(f"{loss:.4g}" for loss in self.losses[:6])
        if len(self.losses) > 6:
            losses += " ..."
        self._bar.set_postfix_str(
            f"{examples:.0f} examples/s" + (f", losses {losses}" if losses else ""),
            refresh=False,
        )
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

    def __enter__(self):
        """The bar itself."""
        return self

    def __exit__(self, *exception):
        """Closes the bar."""
        self.close()


def print_modalities(dataset: Dataset, likelihoods: Mapping[str, str]) -> None:
    """Prints one row a modality: what it was taken for, and how much is missing.

    Args:
      dataset: the modalities that are used.
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
    """Prints one row a member: its hyper-parameters and its main results.

    Below it are the reasons for what is nan.
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
    say(
        f"{summary['model']} on {summary['dataset']}, {summary['num_steps']} steps\n"
        + tabulate.tabulate(
            rows, ["beta", "seed", "finite", *columns.values()], floatfmt=".4g"
        )
    )
    for tag, why in workdirs.undefined(members).items():
        if tag in columns:
            say(f"{columns[tag]} is nan: {'; '.join(why)}")


def _value(value: float | None) -> float:
    """A value of summary.json, in which nan is None."""
    return math.nan if value is None else value


def _interval() -> float:
    """Seconds between two drawings of a bar: few lines where it is not a terminal."""
    return 0.2 if sys.stderr.isatty() else 10.0
