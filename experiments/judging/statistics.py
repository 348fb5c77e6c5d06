"""Differences of means in standard errors."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.plans import plan


class NotMeasured(Exception):
    """A claim that the runs do not measure, with the reason."""


class Point(NamedTuple):
    """A metric of a run over its seeds, at a fixed or at selected betas.

    Attributes:
      label: name of the measurement, for the text of the numbers.
      beta: beta of the members; NaN if seeds have different betas.
      mean: mean over the seeds that did not diverge.
      std: standard deviation (n - 1) over these seeds.
      num: number of these seeds.
      error: standard error of the mean, including the selection of beta.
      betas: the selected beta of each seed (`plans.choice`), if selected.
    """

    label: str
    beta: float
    mean: float
    std: float
    num: int
    error: float
    betas: tuple[float, ...] = ()


def at_one_beta(label: str, beta: float, mean: float, std: float, num: int) -> Point:
    """The metric of the seeds at a fixed beta."""
    return Point(label, beta, mean, std, num, std / math.sqrt(num))


def constant(label: str, value: float) -> Point:
    """A number without an error."""
    return at_one_beta(label, math.nan, value, 0.0, 1)


class Finding(NamedTuple):
    """Result of a rule.

    Attributes:
      holds: whether the claim holds.
      points: the measurements.
      difference: the number that should exceed zero; NaN if there is none.
      standard_error: standard error of the difference.
      z: the difference in units of its standard error.
      note: further remark.
    """

    holds: bool
    points: Sequence[Point]
    difference: float = math.nan
    standard_error: float = math.nan
    z: float = math.nan
    note: str = ""


def has_metrics(
    evidence: plan.Evidence, specs: Sequence[plan.Spec], tags: Sequence[str]
) -> bool:
    """Whether all existing runs have all of some metrics.

    A run must have the metric at every beta with a finite member.
    """
    spreads = evidence.spreads
    is_own = spreads["run"].isin([spec.folder for spec in specs])
    own = spreads[is_own & (spreads["seeds"] > 0)]
    num_known = own["mean"][own["tag"].isin(tags)].count()
    places = own[["run", "beta"]].drop_duplicates()
    return 0 < num_known == len(places) * len(tags)


def combine(terms: Iterable[tuple[float, Point]]) -> tuple[float, float, float]:
    """A linear combination of means, its standard error, and their quotient.

    Args:
      terms: (coefficient, point), for independent points, each once.

    Returns:
      (difference, standard error, z). Without variance, z is infinite, or zero for a
      difference of zero.
    """
    terms = list(terms)
    value = math.fsum(c * point.mean for c, point in terms)
    error = math.sqrt(math.fsum(c**2 * p.error**2 for c, p in terms))
    if error > 0:
        return value, error, value / error
    return value, error, math.copysign(math.inf, value) if value else 0.0


def slope_terms(
    positions: Sequence[float], points: Sequence[Point], sign: float = 1.0
) -> list[tuple[float, Point]]:
    """The least-squares slope of points over positions as terms of `combine`."""
    centred = np.asarray(positions, np.float64) - np.mean(positions)
    weights = sign * centred / (centred @ centred)
    return list(zip(weights.tolist(), points, strict=True))
