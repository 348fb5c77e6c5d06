"""Precision and recall, density and coverage: how good, and how diverse.

Kynkäänniemi et al. (2019), "Improved precision and recall metric for assessing
generative models", and Naeem et al. (2020), "Reliable fidelity and diversity metrics
for generative models". A Fréchet distance is one number for two faults: examples that
look wrong (precision, density), and kinds of examples that are never generated (recall,
coverage). All four count examples within balls. The ball of an example extends to its
k-th nearest neighbour in its own set; k = 5, in the features of the label classifier.
Balls are closed, as in Eq. 1 of the former paper; the released code of both papers
uses open balls.
"""

from typing import NamedTuple

import numpy as np

from mmvae_jax.evaluation import conditionals
from mmvae_jax.evaluation.draws import draws_of
from mmvae_jax.evaluation.features import (
    classifier_extractors,
    features_of,
    generated_features,
)
from mmvae_jax.evaluation.metric import EvaluationData, Undefined, mean
from mmvae_jax.types import PRIOR, MultimodalVAE, Params, PRNGKey

NUM_NEIGHBOURS = 5
_ROWS_AT_ONCE = 500  # rows per block: 40 MB of distances to 10,000 examples
# Squared distances below this fraction of the squared norms are rounding errors.
_ROUNDING = 1e-12


class Scores(NamedTuple):
    """Scores of generated examples, in [0, 1] except density, which is >= 0.

    Attributes:
      precision: fraction of generated examples within the ball of a real one.
      recall: fraction of real examples within the ball of a generated one.
      density: mean number of real examples' balls that contain a generated one, over k.
      coverage: fraction of real examples whose ball contains a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_examples: int = 10_000,
) -> dict[str, float]:
    """Precision, recall, density and coverage of prior and conditional samples.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split, and classifiers for all modalities.
      key: random key of the samples.
      num_examples: examples of each kind; all real ones, if there are fewer.

    Returns:
      precision_recall/prior/precision, mean over modalities of
      precision_recall/prior/precision/m0; likewise recall, density and coverage; and
      precision_recall/leave_one_out/..., of each modality given all others, except with
      one modality. NaN if a parameter is not finite, Undefined if there are at most k
      real examples; all but recall also if every real example has k copies, as in
      discrete data.

    Raises:
      UsageError: a modality has no classifier.
    """
    extractors = classifier_extractors(data, model.modalities, "precision_recall")
    draws, size = draws_of(model, params, data, key), data.batch_size
    rows = conditionals.order_of(data.test.num_examples)[:num_examples]
    is_single = len(model.modalities) == 1 or model.sampler != PRIOR
    found: dict[str, dict[str, Scores]] = {"prior": {}}
    for m, extractor in extractors.items():
        real = features_of(extractor, data.test.modalities[m][rows], size)
        is_there = data.test.is_observed(m)[rows]
        # Equal numbers of both kinds: the balls of more examples are smaller.
        prior = draws.prior(m, len(rows))
        features = generated_features(extractor, prior, size)
        own = real[is_there]
        found["prior"][m] = _scores(own, features[: len(own)], f"{m} (prior)")
        if is_single:
            continue
        condition = conditionals.leave_one_out(data.test, m)
        own = real[np.isin(rows, condition.rows)]
        if len(own):
            generated = draws.conditional(condition, len(own))
            features = generated_features(extractor, generated, size)
        name = f"{m} ({condition.name})"
        found.setdefault(condition.name, {})[m] = _scores(own, features, name)
    tags = {}
    for name, scores in found.items():
        for field in Scores._fields:
            own_tags = {
                f"precision_recall/{name}/{field}/{m}": getattr(one, field)
                for m, one in scores.items()
            }
            tags[f"precision_recall/{name}/{field}"] = mean(own_tags.values())
            tags |= own_tags
    return tags


def _scores(real: np.ndarray, generated: np.ndarray, name: str) -> Scores:
    """`manifold_scores`, or Undefined for too few different examples."""
    k = NUM_NEIGHBOURS
    if len(real) <= k:
        why = Undefined(
            f"{name}: more than {k} test examples are needed, there are {len(real)}"
        )
        return Scores(*[why] * len(Scores._fields))
    scores = manifold_scores(real, generated)
    _, copies = np.unique(real, axis=0, return_counts=True)
    if copies.min() <= k:
        return scores
    why = Undefined(f"{name}: every test example has {k} copies: no ball has a size")
    return scores._replace(precision=why, density=why, coverage=why)


def manifold_scores(
    real: np.ndarray, generated: np.ndarray, k: int = NUM_NEIGHBOURS
) -> Scores:
    """Precision, recall, density and coverage of generated examples.

    Distances are computed in blocks: memory is linear in the number of examples.

    Args:
      real: float [N, F], N > k.
      generated: float [n, F], n > k.
      k: the ball of an example extends to its k-th nearest neighbour.

    Returns:
      Scores; NaN if a feature is not finite.

    Raises:
      ValueError: there are too few examples.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"more than {k} examples of each kind are needed, got {len(real)} real and "
            f"{len(generated)} generated"
        )
    if not (np.isfinite(real).all() and np.isfinite(generated).all()):
        return Scores(*[float("nan")] * len(Scores._fields))
    centre = real.mean(axis=0, dtype=np.float64)  # for precision
    real, generated = real - centre, generated - centre
    real_radii, own_radii = squared_radii(real, k), squared_radii(generated, k)
    num_precise, num_inside = 0, 0
    is_recalled = np.zeros(len(real), bool)
    is_covered = np.zeros(len(real), bool)
    for start in range(0, len(generated), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distances = squared_distances(generated[rows], real)
        is_inside = distances <= real_radii
        num_precise += int(is_inside.any(axis=1).sum())
        num_inside += int(is_inside.sum())
        is_covered |= is_inside.any(axis=0)
        is_recalled |= (distances <= own_radii[rows, None]).any(axis=0)
    num = len(generated)
    return Scores(
        num_precise / num,
        float(is_recalled.mean()),
        num_inside / (k * num),
        float(is_covered.mean()),
    )


def squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance from each of x [N, F] to its k-th nearest other, float64 [N]."""
    found = []
    for start in range(0, len(x), _ROWS_AT_ONCE):
        distances = squared_distances(x[start : start + _ROWS_AT_ONCE], x)
        # Index 0 is the example itself. A view would keep the whole block in memory.
        found.append(np.partition(distances, k, axis=1)[:, k].copy())
    return np.concatenate(found)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of x [n, F] and y [N, F], float64 [n, N]."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    norms = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
    distances = norms - 2 * (x @ y.T)
    # Equal examples have the distance 0, without rounding errors.
    return np.where(distances > _ROUNDING * norms, distances, 0.0)
