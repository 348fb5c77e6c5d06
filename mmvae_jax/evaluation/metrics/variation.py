"""Variation of several draws for one condition, relative to that of a class.

Modality-specific content (handwriting, background) should vary between the draws for
one condition as much as between real examples of one class. Coherence does not notice a
model that draws the same image every time.
"""

import itertools

import jax
import numpy as np
from scipy.spatial.distance import pdist

from mmvae_jax.evaluation import conditionals
from mmvae_jax.evaluation.draws import draws_of
from mmvae_jax.evaluation.features import (
    classifier_extractors,
    features_of,
    generated_features,
)
from mmvae_jax.evaluation.metric import EvaluationData, Undefined, require_labels
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

NUM_DRAWS = 10
_MAX_OF_A_CLASS = 200


def variation(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_examples: int = 500,
    num_draws: int = NUM_DRAWS,
) -> dict[str, float]:
    """Mean distance of draws for a condition, over that of real examples of a class.

    Distances are Euclidean, in the features of the label classifier.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split, and classifiers for all modalities.
      key: random key of the draws, and of the real examples of a class.
      num_examples: largest number of conditions per modality.
      num_draws: number of draws per condition, at least 2.

    Returns:
      variation/leave_one_out/m0, of draws of m0 given all other modalities, and
      variation/leave_one_out, their mean: >= 0; 0: all draws are equal, 1: draws vary
      as much as real examples of a class. Modalities that show only the class are left
      out. {} with one modality; NaN if a parameter is not finite, Undefined without
      conditions or without two different examples of a class.

    Raises:
      UsageError: there are no labels, or a modality has no classifier.
    """
    if len(model.modalities) == 1:
        return {}
    labels = require_labels(data.test, "variation")
    extractors = classifier_extractors(data, model.modalities, "variation")
    row_key, draw_key = jax.random.split(key)
    rng = conditionals.numpy_rng(row_key)
    draws = draws_of(model, params, data, draw_key)
    values: dict[tuple[str, str], float] = {}
    for m, extractor in extractors.items():
        is_there = data.test.is_observed(m)
        real, classes = data.test.modalities[m][is_there], labels[is_there]
        if shows_class_alone(real, classes):
            continue
        condition = conditionals.leave_one_out(data.test, m)
        if not len(condition.rows):
            values[condition.name, m] = conditionals.no_example(condition)
            continue
        features_of_draws = [
            generated_features(
                extractor, draws.again(condition, turn, num_examples), data.batch_size
            )
            for turn in range(num_draws)
        ]
        features = features_of(extractor, real, data.batch_size)
        of_classes = spread_of_classes(features, classes, rng)
        values[condition.name, m] = (
            of_classes
            if isinstance(of_classes, Undefined)
            else spread_of_draws(np.stack(features_of_draws)) / of_classes
        )
    if not values:
        why = "real examples of a class are alike in all modalities"
        values[conditionals.LEAVE_ONE_OUT, model.modalities[0]] = Undefined(why)
    return conditionals.summarise("variation", values, len(model.modalities))


def shows_class_alone(real: np.ndarray, labels: np.ndarray) -> bool:
    """Whether each class has several examples [N, ...], which are all equal."""
    found, first, counts = np.unique(labels, return_index=True, return_counts=True)
    alike = real == real[first[np.searchsorted(found, labels)]]
    return bool(len(counts) and counts.min() > 1 and alike.all())


def spread_of_draws(features: np.ndarray) -> float:
    """Mean Euclidean distance of two draws for one condition.

    Args:
      features: [L, n, F], for L >= 2 draws for each of n conditions.
    """
    pairs = itertools.combinations(features.astype(np.float64), 2)
    return float(np.mean([np.linalg.norm(x - y, axis=-1).mean() for x, y in pairs]))


def spread_of_classes(
    features: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> float:
    """Mean Euclidean distance of two examples of one class, mean over classes.

    Args:
      features: [N, F].
      labels: int [N].
      rng: generator for the examples of a class with more than 200.

    Returns:
      A number >= 0; Undefined if no class has two examples, or all are equal.
    """
    found = []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))[:_MAX_OF_A_CLASS]
        if len(own) > 1:
            found.append(pdist(features[own].astype(np.float64)).mean())
    if not found:
        return Undefined("no class has two test examples, between which to differ")
    if not np.mean(found):
        return Undefined("real examples of a class have the same features")
    return float(np.mean(found))
