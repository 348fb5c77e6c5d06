"""Coherence by a second classifier: how much does it depend on the classifier?

A generated example may only fool one classifier. A second one, with another seed and
for images another architecture (an MLP beside a convolutional one, or the reverse),
classifies the same draws. If the two disagree much more about generated than about real
examples, the generated ones are out of distribution for them, and the coherence is
unreliable.
"""

import numpy as np

from mmvae_jax.data.dataset import LABEL
from mmvae_jax.evaluation import conditionals
from mmvae_jax.evaluation.draws import draws_of
from mmvae_jax.evaluation.features import features_of
from mmvae_jax.evaluation.metric import (
    EvaluationData,
    Reader,
    most_probable,
    require_classifiers,
    require_labels,
)
from mmvae_jax.evaluation.metrics.coherence import accuracy_of
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey


def second_judge(
    model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
) -> dict[str, float]:
    """Leave-one-out coherence by a second classifier, and their disagreement.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split, and two classifiers for all modalities.
      key: random key of the posterior samples.

    Returns:
      second_judge/coherence/leave_one_out/m0, the fraction of examples of m0, generated
      given all other modalities, in which the second classifier reads the label, and
      second_judge/coherence/leave_one_out, their mean; likewise
      second_judge/disagreement, the fraction with different labels by the two,
      second_judge/real_disagreement, the same for the real m0 of these examples, and
      second_judge/accuracy/m0, of the second on real test examples. In [0, 1]; {} with
      one modality that shows the label; NaN if a parameter is not finite, Undefined
      if no example has all modalities, or, for an accuracy, the modality.

    Raises:
      UsageError: there are no labels, or a classifier is missing.
    """
    targets = data.showing(LABEL, model.modalities)
    if len(targets) < 2:
        return {}
    labels = require_labels(data.test, "second_judge")
    first = require_classifiers(data, targets, "second_judge")
    other = data._replace(classifiers=data.second_classifiers)
    second = require_classifiers(other, targets, "second_judge")
    draws = draws_of(model, params, data, key)
    found: dict[str, dict[tuple[str, str], float]] = {
        name: {} for name in ("coherence", "disagreement", "real_disagreement")
    }
    for m in targets:
        condition = conditionals.leave_one_out(data.test, m)
        place = (condition.name, m)
        if not len(condition.rows):
            why = conditionals.no_example(condition)
            found = {name: own | {place: why} for name, own in found.items()}
            continue
        generated = draws.conditional(condition)
        real = data.test.modalities[m][condition.rows]
        own, others, *of_real = (
            _classes(judge[m], examples, data.batch_size)
            for examples in (generated.examples, real)
            for judge in (first, second)
        )
        own = np.where(generated.is_finite, own, np.nan)
        found["coherence"][place] = _share(
            np.where(generated.is_finite, others, np.nan), labels[condition.rows]
        )
        found["disagreement"][place] = 1 - _share(own, others)
        found["real_disagreement"][place] = 1 - _share(*of_real)
    tags = {
        f"second_judge/accuracy/{m}": accuracy_of(data, m, second[m]) for m in targets
    }
    for name, values in found.items():
        tag = f"second_judge/{name}"
        tags |= conditionals.summarise(tag, values, len(model.modalities))
    return tags


def _classes(judge: Reader, examples: np.ndarray, batch_size: int) -> np.ndarray:
    """Classes [N] of examples by a classifier; NaN if its logits are not finite."""
    return most_probable(features_of(lambda x: judge.apply(x)[1], examples, batch_size))


def _share(classes: np.ndarray, expected: np.ndarray) -> float:
    """Fraction of classes [N] that are as expected; NaN if one is NaN."""
    is_known = ~(np.isnan(classes) | np.isnan(expected))
    return float(np.where(is_known, classes == expected, np.nan).mean())
