"""One to many: do modalities agree on attributes that the condition does not determine?

A condition that does not show an attribute (a digit does not show its position) has
many right answers, and coherence cannot judge them. But modalities decoded from one
latent vector should agree: Yeo et al. (2026) measure this on PolyMNIST-Quadrant-Labels.
Here agreement is measured for pairs of modalities, so that chance does not depend on
their number.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from mmvae_jax.evaluation.metric import (
    EvaluationData,
    Undefined,
    mean,
    require_open,
    require_readers,
)
from mmvae_jax.evaluation.metrics.coherence import joined, read_given
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

_SCORES = ("agreement", "chance", "total_variation")


def one_to_many(
    model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
) -> dict[str, float]:
    """Agreement of modalities on attributes that their condition does not show.

    A condition is a modality that does not show an attribute, or all such modalities.
    For each test example, one z ~ q(z|x_A) is drawn, and all modalities that show the
    attribute are decoded from it. For generated values a_m of the attribute, means over
    pairs of modalities and over modalities:

      agreement        P(a_m = a_n)
      chance           sum_k P(a_m = k) P(a_n = k), agreement if they were independent
      total_variation  1/2 sum_k |P(a_m = k) - P(a = k)|, to the real values of the
                       same examples; "no value" counts as a value

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split with attributes, and readers for the modalities that show them.
      key: random key of the posterior samples.

    Returns:
      one_to_many/agreement/quadrant_given_digit, ..., for every attribute and condition
      that does not determine it, and likewise chance and total_variation; and
      one_to_many/agreement, ..., their means. In [0, 1]; {} with one modality; NaN
      if a parameter is not finite, Undefined if no test example has the
      condition.

    Raises:
      UsageError: all modalities show all attributes, or a reader is missing.
    """
    if len(model.modalities) == 1:
        return {}
    cases = require_open(data.test, data.shown, "one_to_many")
    known = require_readers(data, model.modalities, "one_to_many")
    readers = {
        a: {m: known[a][m] for m in data.showing(a, model.modalities)} for a, _ in cases
    }
    subsets = list(dict.fromkeys(subset for _, subset in cases))
    parts: dict[tuple[str, ...], list[tuple[np.ndarray, Mapping]]] = {}
    for subset, rows, own in read_given(model, params, data, readers, subsets, key):
        parts.setdefault(subset, []).append((rows, own))
    scores: dict[str, dict[str, float]] = {}
    for a, subset in cases:
        rows = np.concatenate([rows for rows, _ in parts[subset]])
        values = [np.stack([own[a, m] for m in readers[a]]) for _, own in parts[subset]]
        scores[f"{a}_given_{joined(subset)}"] = (
            agreement(np.concatenate(values, axis=1), data.test.attributes[a][rows])
            if len(rows)
            else dict.fromkeys(
                _SCORES, Undefined(f"no test example has {' and '.join(subset)}")
            )
        )
    tags: dict[str, float] = {}
    for name in _SCORES:
        found = {case: own[name] for case, own in scores.items()}
        tags[f"one_to_many/{name}"] = mean(found.values())
        tags |= {f"one_to_many/{name}/{case}": x for case, x in found.items()}
    return tags


def agreement(values: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Scores of generated values of one attribute, see `one_to_many`.

    Args:
      values: [M, n] for M >= 2 modalities, whole numbers; -1: no value is shown, which
        never agrees; NaN: not finite.
      real: int [n], real values of the same examples.

    Returns:
      agreement, chance, total_variation; all NaN if a value is NaN.
    """
    if np.isnan(values).any():
        return dict.fromkeys(_SCORES, float("nan"))
    num = int(max(values.max(), real.max())) + 1

    def shares(x: np.ndarray) -> np.ndarray:
        """Fractions of the values 0, 1, ..., and of no value: [num + 1]."""
        known = np.where(x < 0, num, x).astype(int)
        return np.bincount(known, minlength=num + 1) / x.size

    own, wanted = [shares(x) for x in values], shares(real)
    pairs = list(itertools.combinations(range(len(values)), 2))
    same = [np.mean((values[i] == values[j]) & (values[i] >= 0)) for i, j in pairs]
    return {
        "agreement": float(np.mean(same)),
        "chance": float(np.mean([own[i][:-1] @ own[j][:-1] for i, j in pairs])),
        "total_variation": float(np.mean([abs(x - wanted).sum() / 2 for x in own])),
    }
