"""Differences of means in standard errors."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.plans import plan


class NotMeasured(Exception):
    """The runs do not say; its text is why."""


class Point(NamedTuple):
    """A metric of a run over its seeds, at one beta or at one that the others choose.

    Attributes:
      label: name of the measurement, for the text of the numbers.
      beta: beta of the members; NaN if the seeds are judged at different ones.
      mean: over the seeds that did not diverge.
      std: standard deviation (n - 1) over them.
      num: number of these seeds.
      error: standard error of the mean, with that of the choice of beta.
      betas: the beta of each seed where it was chosen (`plans.choice`).
    """

    label: str
    beta: float
    mean: float
    std: float
    num: int
    error: float
    betas: tuple[float, ...] = ()


def at_one_beta(label: str, beta: float, mean: float, std: float, num: int) -> Point:
    """The metric of the seeds of one beta, which nobody chose."""
    return Point(label, beta, mean, std, num, std / math.sqrt(num))


def constant(label: str, value: float) -> Point:
    """A number that is known without an error."""
    return at_one_beta(label, math.nan, value, 0.0, 1)


class Finding(NamedTuple):
    """Result of a rule.

    Attributes:
      holds: whether the claim does.
      points: the numbers that it is made of.
      difference: the number that should exceed zero; NaN if there is no such one.
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
    """Whether all of some runs that are there have all of some metrics.

    A run has a metric if it has it at every beta at which a member is finite.
    """
    spreads = evidence.spreads
    is_own = spreads["run"].isin([spec.folder for spec in specs])
    own = spreads[is_own & (spreads["seeds"] > 0)]
    num_known = own["mean"][own["tag"].isin(tags)].count()
    places = own[["run", "beta"]].drop_duplicates()
    return 0 < num_known == len(places) * len(tags)


def combine(terms: Iterable[tuple[float, Point]]) -> tuple[float, float, float]:
    """A sum of coefficients times means, its standard error, and their quotient.

    Args:
      terms: (coefficient, point), of independent points; none twice.

    Returns:
      (difference, standard error, z). Where nothing varies, z is infinite, or zero
      for a difference of zero.
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
