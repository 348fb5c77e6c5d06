"""A setting is chosen without the numbers that it is judged by.

The best of several means is too good: with three seeds and six betas that are alike,
the largest mean is 0.7 standard deviations above what all of them have, and a
comparison with a model that has one good beta exceeds two standard errors in 18 instead
of 6 of a hundred cases. So the beta by which a seed is judged is chosen by the mean
over the other seeds, as in leave-one-out cross-validation (Stone, 1974). The mean of
the values judged is that of a model tuned on one seed less, without bias by the choice.

The values judged are not independent, since each seed takes part in the choices for the
others, and sometimes the choices differ. Their standard deviation knows nothing of that
(it gives half of the variance for betas that are alike), and so the standard error is
the jackknife's over seeds, with the choice made again without each (Efron and
Tibshirani, 1993, Ch. 11). It is that of a mean where the choice is always the same, and
too large rather than too small where it is not.

What all seeds have in common, the test examples and the classifiers, is not left out:
it favours all seeds of a beta alike, and only a validation split would show it.
"""

import math
from typing import NamedTuple

import numpy as np

# Two seeds choose for each other, but say nothing of the error of that.
LEAST_SEEDS = 3


class Estimate(NamedTuple):
    """A measure over seeds, each at the setting that the others choose.

    Attributes:
      mean: over the values that are judged; NaN if there is none.
      std: standard deviation (n - 1) of these values; NaN if there is one.
      num: their number.
      error: standard error of the mean; NaN if too few seeds are there.
      places: the setting of every seed, -1 where nothing can be chosen.
    """

    mean: float
    std: float
    num: int
    error: float
    places: tuple[int, ...]


def choose(scores: np.ndarray) -> np.ndarray:
    """The setting that the mean over the other seeds finds best, for each seed.

    Args:
      scores: [settings, seeds], higher is better, NaN if a member diverged.

    Returns:
      Indices [seeds]; the first of several that are best, -1 where no other seed has a
      score. A single setting is no choice, and is every seed's.
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
    """The values [seeds] of the seeds at their own settings, NaN if there is none.

    Args:
      values: [settings, seeds].
      places: of `choose`.
    """
    own = values[places, np.arange(values.shape[1])]
    return np.where(places >= 0, own, np.nan)


def replicates(values: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The mean of what is judged, of all seeds and then without each.

    Args:
      values: [settings, seeds], what is judged; NaN if a member diverged.
      scores: [settings, seeds], by which is chosen; higher is better.

    Returns:
      Means [1 + seeds]; NaN if nothing can be judged.
    """

    def mean(kept: np.ndarray) -> float:
        own = judged(values[:, kept], choose(scores[:, kept]))
        own = own[np.isfinite(own)]
        return float(own.mean()) if own.size else math.nan

    seeds = np.arange(values.shape[1])
    return np.array([mean(seeds), *(mean(np.delete(seeds, seed)) for seed in seeds)])


def jackknife_error(found: np.ndarray) -> float:
    """The standard error of an estimate, of its `replicates`; nan for a single seed."""
    without = found[1:]
    num = len(without)
    if num < 2:
        return math.nan
    return float(np.sqrt((num - 1) * np.var(without)))


def estimate(values: np.ndarray, scores: np.ndarray) -> Estimate:
    """Judged values, each seed's at the setting that the others choose.

    Args:
      values: [settings, seeds], what is judged; NaN if a member diverged.
      scores: [settings, seeds], by which is chosen; higher is better.
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
