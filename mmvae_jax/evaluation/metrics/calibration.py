"""Calibration of imputations: do intervals of draws contain the real values?

Each value (a pixel, an entry of a vector) of a missing modality is drawn 19 times given
the other modalities. If the real value is one more draw of the same distribution, it
lies between the 5th and the 15th with probability 10 / 20, and between the smallest and
the largest with probability 18 / 20: exactly, for any distribution, if equal values are
in random order. Pixels are often equal: they are clipped to [0, 1] and rounded to 8
bits, in draws as in real images. A draw is one of the likelihood, given z ~ q(z|x_A).
"""

import numpy as np

from mmvae_jax.data.dataset import to_unit_interval
from mmvae_jax.evaluation import conditionals
from mmvae_jax.evaluation.draws import draws_of
from mmvae_jax.evaluation.metric import EvaluationData, values_of
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

NUM_DRAWS = 19
# Name -> ranks of the draws at the ends of the interval.
INTERVALS = {"coverage_50": (4, 14), "coverage_90": (0, 18)}


def calibration(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_examples: int = 500,
) -> dict[str, float]:
    """Coverage of intervals, and CRPS, of images and vectors given all others.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split.
      key: random key of the draws.
      num_examples: largest number per modality; all draws are in memory at once.

    Returns:
      calibration/coverage_50/leave_one_out/m0, the fraction of values of m0 in the
      interval, given all other modalities; calibration/coverage_50/leave_one_out, the
      mean over modalities; likewise coverage_90, and crps, mean over values, in the
      units of the data, images in [0, 1]; >= 0 up to its error, lower is better. {}
      with one modality; NaN if a parameter is not finite, Undefined if no example
      has all.

    Raises:
      UsageError: no modality has images or vectors.
    """
    names = values_of(data.test, "calibration")
    if len(model.modalities) == 1:
        return {}
    draws = draws_of(model, params, data, key)
    found: dict[str, dict[tuple[str, str], float]] = {}
    for m in names:
        condition = conditionals.leave_one_out(data.test, m)
        place = (condition.name, m)
        if len(condition.rows):
            values = [
                draws.again(condition, turn, num_examples, has_noise=True).values()
                for turn in range(NUM_DRAWS)
            ]
            rows = condition.rows[:num_examples]
            real = to_unit_interval(data.test.modalities[m][rows])
            scores = interval_scores(np.stack(values), np.asarray(real))
        else:
            why = conditionals.no_example(condition)
            scores = dict.fromkeys((*INTERVALS, "crps"), why)
        for name, value in scores.items():
            found.setdefault(name, {})[place] = value
    tags: dict[str, float] = {}
    for name, own in found.items():
        tag = f"calibration/{name}"
        tags |= conditionals.summarise(tag, own, len(model.modalities))
    return tags


def interval_scores(draws: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Coverage of the intervals of 19 draws, and the CRPS.

    Coverage is the probability that the real value is within the ranks of the interval,
    if those that are equal to it are ordered at random.

    CRPS: Gneiting & Raftery (2007), Eq. 21, E|x - y| - E|x - x'| / 2, estimated without
    bias from pairs of different draws.

    Args:
      draws: float [19, ...].
      real: float [...].

    Returns:
      coverage_50, coverage_90 in [0, 1], and crps; NaN if a draw is not finite.
    """
    if not np.isfinite(draws).all():
        return dict.fromkeys((*INTERVALS, "crps"), float("nan"))
    ordered = np.sort(draws, axis=0)
    num = len(ordered)
    below = (ordered < real).sum(axis=0)
    # The real value has one of these ranks: the number of draws that come before it.
    highest = below + (ordered == real).sum(axis=0)
    scores = {}
    for name, (low, high) in INTERVALS.items():
        inside = np.minimum(highest, high) - np.maximum(below, low + 1) + 1
        share = np.maximum(inside, 0) / (highest - below + 1)
        scores[name] = float(share.mean())
    error = np.mean([np.abs(x - real).mean(dtype=np.float64) for x in ordered])
    # The sum over pairs of |x - x'|, of ordered draws.
    factors = 2 * np.arange(num) - num + 1
    means = ordered.reshape(num, -1).mean(axis=1, dtype=np.float64)
    pairs = (factors * means).sum() / (num * (num - 1) / 2)
    return scores | {"crps": float(error - pairs / 2)}
