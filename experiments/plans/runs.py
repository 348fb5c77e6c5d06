"""Finished runs as data: what figures, reports and the demo read.

A run is a folder with summary.json and config.json, as `experiments.run` leaves it.
Further members of its sweep may be in folders beside it, FOLDER_more and so on: they
are read as one run.
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

# The columns of the long table, and what its groups have in common if nothing else is
# said.
COLUMNS = ["run", "dataset", "model", *Member._fields, "finite", "tag", "value"]
_BY_BETA = ("run", "beta", "tag")


class RunRecord(NamedTuple):
    """A finished run.

    Attributes:
      workdir: its folder.
      config: the content of config.json.
      summary: the content of summary.json, with the members of all parts.
      parts: the runs of one sweep that it was joined from; none where it is one.
    """

    workdir: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    parts: tuple["RunRecord", ...] = ()


def join(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs, those of one sweep as one.

    Such are a run in FOLDER and those in folders beside it whose names begin with
    FOLDER_more, if they differ in the members of the sweep alone, and have none twice.

    Args:
      runs: in any order.

    Returns:
      The runs, in their order.
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
    """Whether a run has further members of the sweep of others."""
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
    seconds = [summary.get("wall_seconds") for summary in summaries]
    summary = {
        **first.summary,
        "members": [member for own in summaries for member in own["members"]],
        "step_seconds": None,  # of all members at once there is none
        "wall_seconds": None if None in seconds else sum(seconds),
    }
    return RunRecord(first.workdir, first.config, summary, tuple(parts))


def read_log(run: RunRecord) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run, with the numbers of its members.

    Raises:
      UsageError: it is not the log of a run.
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
    """The folder of the samples of each member, and what their names begin with."""
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
    """The finished runs in a folder and all folders below it, by path; joined.

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
    return join(runs)


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


def long_table(summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The measured values of some runs, a row for each run, member and metric.

    Args:
      summaries: run -> the content of its summary.json.

    Returns:
      The columns COLUMNS, runs and tags in the order of their appearance. Each member
      has a row for every tag of its run; a value that was not measured is nan.
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

    Members that diverged are left out: their last finite parameters say nothing
    about their beta.

    Args:
      table: of `long_table`.
      by: the columns that a group has in common.

    Returns:
      The columns of `by`, in their order; mean and std (n - 1), NaN if a member of
      the group that did not diverge has no finite value, std also where there is only
      one; seeds, the number of members averaged; diverged, that of those left out.
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
    """A mean and its standard deviation as text, with as many digits as they deserve.

    "-" stands for a mean that is nan; the deviation of one seed, nan, is left out.
    """
    if np.isnan(mean):
        return "-"
    digits = 3 if abs(mean) < 10 else 1
    if np.isnan(std):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


class Agreement(NamedTuple):
    """Rank correlation of two measures over runs; NaN if it is not defined.

    Attributes:
      rho: Spearman's, in [-1, 1].
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

    Runs (model, beta, seed) are resampled, as the percentile bootstrap does (Efron
    and Tibshirani, 1993, Sec. 13.3). The seeds of one model and beta count as
    independent runs, so the interval is too narrow where these agree.

    Args:
      x: a measure, one value a run.
      y: another one of the same runs. A run in which one of them is not finite
        is left out.
      seed: seed of the resampling.
      num_resamples: number of resamples.

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

    def rho(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return scipy.stats.spearmanrho(x, y, axis=axis).statistic

    with warnings.catch_warnings():
        # Resamples of a single value have no correlation; they are left out.
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
