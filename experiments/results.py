"""Finished runs as data: what figures, reports and the demo read.

A run is a folder with summary.json and config.json, as `experiments.run` leaves it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from experiments import old_configs, workdirs
from experiments.names import model_colour, model_label
from mmvae_jax.errors import UsageError
from mmvae_jax.models import MODELS

# For experiments.demo alone; everyone else asks `experiments.names`.
LABELS = {model: model_label(model) for model in MODELS}
COLOURS = {model: model_colour(model) for model in MODELS}


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1) over seeds; the latter nan for one seed."""

    mean: float
    std: float


class RunRecord(NamedTuple):
    """A finished run.

    Attributes:
      workdir: its folder.
      config: the content of config.json.
      summary: the content of summary.json.
    """

    workdir: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]


def find_runs(directory: Path) -> list[RunRecord]:
    """The finished runs in a folder and all folders below it, by path.

    Raises:
      UsageError: there is none, or one of their files cannot be read.
    """
    runs = []
    for path in sorted(directory.rglob("summary.json")):
        try:
            config = old_configs.upgraded(
                workdirs.read_json(path.parent / "config.json")
            )
            summary = workdirs.read_json(path)
        except (OSError, UsageError) as error:
            raise UsageError(f"{path.parent} is not a readable run: {error}") from error
        runs.append(checked(RunRecord(path.parent, config, summary)))
    if not runs:
        raise UsageError(f"no finished run in {directory}; run experiments.run first")
    return runs


def checked(run: RunRecord) -> RunRecord:
    """The same run, if its files are what experiments.run writes.

    Raises:
      UsageError: they are JSON, but something else.
    """
    if not isinstance(run.config, dict) or not workdirs.is_summary(run.summary):
        raise UsageError(
            f"{run.workdir} is not a readable run: its summary.json or config.json "
            "is not one this project writes; move it away"
        )
    return run


def by_beta(summary: Mapping[str, Any]) -> dict[float, dict[str, Spread]]:
    """Mean and spread over seeds of every metric: beta -> tag -> Spread.

    Members that diverged are left out: their last finite parameters say nothing
    about their beta. A beta at which all did is missing.
    """
    groups: dict[float, list] = {}
    for member in summary["members"]:
        if member["finite"]:
            groups.setdefault(member["beta"], []).append(member["metrics"])
    return {
        beta: {
            tag: spread([metrics[tag] for metrics in group])
            for tag in group[0]
            if all(metrics.get(tag) is not None for metrics in group)
        }
        for beta, group in groups.items()
    }


def spread(values: list[float]) -> Spread:
    """Mean and standard deviation of some values."""
    std = np.std(values, ddof=1) if len(values) > 1 else np.nan
    return Spread(float(np.mean(values)), float(std))


def show(value: Spread | None) -> str:
    """A spread as text, with as many digits as it deserves."""
    if value is None:
        return "-"
    digits = 3 if abs(value.mean) < 10 else 1
    if np.isnan(value.std):
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} ± {value.std:.{digits}f}"


class Agreement(NamedTuple):
    """Rank correlation of two measures over runs.

    Attributes:
      rho: Spearman's, in [-1, 1]; nan where it is not defined.
      low: of its 95 % bootstrap interval.
      high: likewise.
    """

    rho: float
    low: float
    high: float


def rank_agreement(
    x: Sequence[float], y: Sequence[float], seed: int = 0, *, num_resamples: int = 2_000
) -> Agreement:
    """Spearman's rank correlation of two measures, with a bootstrap interval.

    Runs (model, beta, seed) are resampled, as the percentile bootstrap does (Efron
    and Tibshirani, 1993, Sec. 13.3). The seeds of one model and beta count as
    independent runs, so the interval is too narrow where these agree.

    Args:
      x: a measure, one value a run.
      y: another one of the same runs. A run in which one of them is not finite
        is left out.
      seed: of the resampling.
      num_resamples: how often.

    Returns:
      The correlation and the 2.5 % and 97.5 % quantiles; all nan for fewer than
      three runs, or where one measure is the same for all.

    Raises:
      ValueError: the two differ in length.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"shapes differ: {x.shape} and {y.shape}")
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Agreement(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(x), (num_resamples, len(x)))
    # Resamples of a single value have no correlation; they are left out.
    low, high = np.nanquantile(_spearman(x[rows], y[rows]), [0.025, 0.975])
    return Agreement(float(_spearman(x, y)), float(low), float(high))


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlations along the last axis; nan where one side is constant."""
    x, y = (scipy.stats.rankdata(values, axis=-1) for values in (x, y))
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    norm = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(-1) / norm
