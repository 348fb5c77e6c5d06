"""Finished runs as data, for figures, reports and the demo.

A run is a folder with the summary.json and config.json of `experiments.run`. Additional
members of its sweep may be in folders beside it, FOLDER_more and so on; they are read
as one run.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from experiments.running import workdirs
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import old_configs
from mmvae_jax.training import log
from mmvae_jax.training.sweep import Member

# The columns of the long table, and the default columns of its groups.
COLUMNS = ["run", "dataset", "model", *Member._fields, "finite", "tag", "value"]
_BY_BETA = ("run", "beta", "tag")
# The numbers of a summary that add up over the parts of a sweep.
_TOTALS = ("wall_seconds", "training_seconds", "timed_steps")


class RunRecord(NamedTuple):
    """A finished run.

    Attributes:
      workdir: folder of the run.
      config: the content of config.json.
      summary: the content of summary.json, with the members of all parts.
      parts: the joined runs of one sweep; () for a single run.
    """

    workdir: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    parts: tuple["RunRecord", ...] = ()


def join(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Joins the runs of one sweep.

    These are the run in FOLDER and runs in folders FOLDER_more..., if they differ only
    in the members of the sweep and have no common member.

    Args:
      runs: runs in any order.

    Returns:
      The joined runs, in order.
    """
    joined: dict[Path, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: len(run.workdir.name)):
        base = run.workdir.with_name(run.workdir.name.partition(workdirs.MORE)[0])
        if base in joined and _is_one_sweep(joined[base], run):
            joined[base].append(run)
        else:
            joined[run.workdir] = [run]
    return [_joined(joined[run.workdir]) for run in runs if run.workdir in joined]


def _is_one_sweep(parts: Sequence[RunRecord], run: RunRecord) -> bool:
    """Whether a run has additional members of the same sweep."""
    heads = [
        (
            workdirs.trained_as(own.config),
            *(own.summary[name] for name in ("model", "dataset", "num_steps")),
        )
        for own in (parts[0], run)
    ]
    members = [
        tuple(member[field] for field in Member._fields)
        for own in (*parts, run)
        for member in own.summary["members"]
    ]
    return heads[0] == heads[1] and len(set(members)) == len(members)


def _joined(parts: Sequence[RunRecord]) -> RunRecord:
    """One run of all members, with the time and the evaluations of all parts."""
    first = parts[0]
    if len(parts) == 1:
        return first
    summaries = [part.summary for part in parts]
    unknown = [summary.get("undefined", {}) for summary in summaries]
    summary = {
        **first.summary,
        "members": [member for own in summaries for member in own["members"]],
        "step_seconds": None,  # not defined for several runs
        **{name: _total(name, summaries) for name in _TOTALS},
        "undefined": {tag: why for own in unknown for tag, why in own.items()},
    }
    return RunRecord(first.workdir, first.config, summary, tuple(parts))


def _total(name: str, summaries: Sequence[Mapping[str, Any]]) -> float | None:
    """The sum of a number of several summaries; None if one does not have it."""
    each = [summary.get(name) for summary in summaries]
    return None if None in each else sum(each)


def read_log(run: RunRecord) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run, with the indices of its members.

    Raises:
      UsageError: the file is not the log of a run.
    """
    lines: list[dict[str, Any]] = []
    before = 0
    for part in run.parts or (run,):
        path = part.workdir / "metrics.jsonl"
        num = len(part.summary["members"])
        for line in log.read_metrics(path):
            k = line.get("member")
            if not isinstance(k, int) or not 0 <= k < num:
                raise UsageError(f"{path} is not the log of a run; move it away")
            lines.append({**line, "member": before + k})
        before += num
    return lines


def samples_of(run: RunRecord) -> list[tuple[Path, str]]:
    """(folder of samples, prefix of file names) for each member."""
    found = []
    for part in run.parts or (run,):
        members = [
            Member(*(row[field] for field in Member._fields))
            for row in part.summary["members"]
        ]
        folder = part.workdir / "samples"
        found += [(folder, log.member_name(own, members)) for own in members]
    return found


def find_runs(directory: Path) -> list[RunRecord]:
    """The joined finished runs in a folder and below, sorted by path.

    Raises:
      UsageError: there is no finished run, or a file cannot be read.
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
    return join(runs)


def checked(run: RunRecord) -> RunRecord:
    """Returns the run after a check of its files.

    Raises:
      UsageError: the JSON files are not those of experiments.run.
    """
    if not isinstance(run.config, dict) or not workdirs.is_summary(run.summary):
        raise UsageError(
            f"{run.workdir} is not a readable run: its summary.json or config.json "
            "is not one this project writes; move it away"
        )
    return run


def long_table(summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The values of some runs, one row per run, member and metric.

    Args:
      summaries: run -> the content of its summary.json.

    Returns:
      The columns COLUMNS, with runs and tags in the order of their appearance. Each
      member has a row for each tag of its run; values that were not measured are NaN.
    """
    rows = []
    for run, summary in summaries.items():
        members = summary["members"]
        tags = dict.fromkeys(tag for member in members for tag in member["metrics"])
        rows += [
            (
                *(run, summary["dataset"], summary["model"]),
                *(member[field] for field in Member._fields),
                *(member["finite"], tag, member["metrics"].get(tag)),
            )
            for member in members
            for tag in tags
        ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for column in ("run", "tag"):
        order = list(dict.fromkeys(table[column]))
        table[column] = pd.Categorical(table[column], order)
    return table.astype({"finite": bool, "value": float})


def spreads(table: pd.DataFrame, by: Sequence[str] = _BY_BETA) -> pd.DataFrame:
    """Mean and standard deviation over the members of a group.

    Diverged members are left out, because their last finite parameters say nothing
    about their beta.

    Args:
      table: result of `long_table`.
      by: the columns of a group.

    Returns:
      The columns `by`, in order; mean and std (n - 1), NaN if a member that did not
      diverge has no finite value (std also for one member); seeds and diverged, the
      numbers of members averaged and left out.
    """
    by = list(by)
    groups = table.groupby(by, observed=True)
    value = table["value"].where(table["finite"] & np.isfinite(table["value"]))
    members = table.assign(value=value, place=groups.cumcount())
    wide = members.pivot(index=by, columns="place", values="value")
    seeds = groups["finite"].sum()
    found = pd.DataFrame({"mean": wide.mean(axis=1), "std": wide.std(axis=1)})
    found = found.where((seeds > 0) & (wide.count(axis=1) == seeds))
    found = found.assign(seeds=seeds, diverged=groups.size() - seeds)
    return found.reset_index()


def show(mean: float, std: float) -> str:
    """A mean and its standard deviation as text.

    "-" means a NaN; the NaN deviation of one seed is left out.
    """
    if np.isnan(mean):
        return "-"
    digits = 3 if abs(mean) < 10 else 1
    if np.isnan(std):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


class Agreement(NamedTuple):
    """Rank correlation of two measures over runs; NaN if undefined.

    Attributes:
      rho: Spearman's rho, in [-1, 1].
      low: lower end of its 95 % bootstrap interval.
      high: upper end of that interval.
    """

    rho: float
    low: float
    high: float


def rank_agreement(
    x: Sequence[float], y: Sequence[float], seed: int = 0, *, num_resamples: int = 2_000
) -> Agreement:
    """Spearman's rank correlation of two measures, with a bootstrap interval.

    The percentile bootstrap resamples runs (model, beta, seed) (Efron and Tibshirani,
    1993, Sec. 13.3). Seeds of one model and beta count as independent, so that the
    interval is too narrow if they agree.

    Args:
      x: a measure, one value per run.
      y: another measure of the same runs; runs with a value that is not finite are left
        out.
      seed: seed of the resampling.
      num_resamples: number of resamples.

    Returns:
      The correlation and the 2.5 % and 97.5 % quantiles; all NaN for fewer than three
      runs, or if a measure is constant.

    Raises:
      ValueError: the lengths differ.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"shapes differ: {x.shape} and {y.shape}")
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Agreement(np.nan, np.nan, np.nan)

    def rho(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return scipy.stats.spearmanrho(x, y, axis=axis).statistic

    with warnings.catch_warnings():
        # Constant resamples have no correlation and are left out.
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        resampled = scipy.stats.bootstrap(
            (x, y),
            rho,
            n_resamples=num_resamples,
            paired=True,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Agreement(float(rho(x, y)), float(low), float(high))
