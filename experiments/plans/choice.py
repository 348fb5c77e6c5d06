"""Selection of a setting, without the numbers on which it is judged.

The best of several means is biased: with three seeds and six equally good betas, the
largest mean is 0.7 standard deviations above the true mean, and a comparison with a
model that has one good beta exceeds two standard errors in 18 instead of 6 of a hundred
cases. Therefore the beta of a seed is selected by the mean over the other seeds, as in
leave-one-out cross-validation (Stone, 1974). The mean of the resulting values has no
selection bias: it is that of a model tuned on one seed less.

These values are not independent, because each seed takes part in the selections for the
others. Their standard deviation ignores this (for equally good betas it gives half of
the variance). Therefore the standard error is the jackknife's over seeds, which repeats
the selection without each seed (Efron and Tibshirani, 1993, Ch. 11). It equals that of
a mean if the selection is always the same; otherwise it is rather too large than too
small.

The effect of the common test examples and classifiers is not removed: it favours all
seeds of a beta equally, and only a validation split would show it.
"""

import math
from typing import NamedTuple

import numpy as np

# Two seeds can select for each other, but give no error of the selection.
LEAST_SEEDS = 3


class Estimate(NamedTuple):
    """A measure over seeds, each at the setting that the others select.

    Attributes:
      mean: mean of the values; NaN without values.
      std: standard deviation (n - 1) of the values; NaN for one value.
      num: number of values.
      error: standard error of the mean; NaN for too few seeds.
      places: index of the setting of each seed, -1 without a selection.
    """

    mean: float
    std: float
    num: int
    error: float
    places: tuple[int, ...]


def choose(scores: np.ndarray) -> np.ndarray:
    """The setting with the best mean over the other seeds, for each seed.

    Args:
      scores: [settings, seeds], higher is better, NaN for diverged members.

    Returns:
      Indices [seeds]; the first of several best settings, -1 if no other seed has a
      score. A single setting is used by all seeds.
    """
    num_settings, num_seeds = scores.shape
    if num_settings == 1:
        return np.zeros(num_seeds, int)
    places = np.full(num_seeds, -1)
    for seed in range(num_seeds):
        others = np.delete(scores, seed, axis=1)
        known = np.isfinite(others)
        num = known.sum(axis=1)
        if num.any():
            total = np.where(known, others, 0.0).sum(axis=1)
            means = np.where(num > 0, total / np.maximum(num, 1), -np.inf)
            places[seed] = means.argmax()
    return places


def judged(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The values [seeds] of the seeds at their settings; NaN without a setting.

    Args:
      values: [settings, seeds].
      places: result of `choose`.
    """
    own = values[places, np.arange(values.shape[1])]
    return np.where(places >= 0, own, np.nan)


def replicates(values: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The mean of the values for all seeds, and then without each seed.

    Args:
      values: [settings, seeds], values to judge; NaN for diverged members.
      scores: [settings, seeds], scores for the selection; higher is better.

    Returns:
      Means [1 + seeds]; NaN without values.
    """

    def mean(kept: np.ndarray) -> float:
        own = judged(values[:, kept], choose(scores[:, kept]))
        own = own[np.isfinite(own)]
        return float(own.mean()) if own.size else math.nan

    seeds = np.arange(values.shape[1])
    return np.array([mean(seeds), *(mean(np.delete(seeds, seed)) for seed in seeds)])


def jackknife_error(found: np.ndarray) -> float:
    """The standard error of an estimate from its `replicates`; NaN for one seed."""
    without = found[1:]
    num = len(without)
    if num < 2:
        return math.nan
    return float(np.sqrt((num - 1) * np.var(without)))


def estimate(values: np.ndarray, scores: np.ndarray) -> Estimate:
    """The estimate of values, each seed at the setting that the others select.

    Args:
      values: [settings, seeds], values to judge; NaN for diverged members.
      scores: [settings, seeds], scores for the selection; higher is better.
    """
    places = choose(scores)
    own = judged(values, places)
    own = own[np.isfinite(own)]
    found = replicates(values, scores)
    return Estimate(
        mean=float(found[0]),
        std=float(own.std(ddof=1)) if own.size > 1 else math.nan,
        num=own.size,
        error=jackknife_error(found),
        places=tuple(places.tolist()),
    )
