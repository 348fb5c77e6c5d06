"""Frechet distance between generated and real images, in classifier features.

The formula is that of the Frechet inception distance (Heusel et al., 2017); the
features are the penultimate layer of the modality's own label classifier, which
is at hand for every dataset, and not those of an Inception network. The values
compare models on one dataset with one classifier; they are not FIDs.
"""

from collections import defaultdict
from typing import NamedTuple

import jax
import numpy as np

from mmvae_jax.metrics.inputs import as_coarse, batches, observed_rows, prior_examples
from mmvae_jax.metrics.metric import EvaluationData, require_classifiers
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey


class Moments(NamedTuple):
    """Streamed moments of features.

    Attributes:
      count: examples seen.
      mean: float64 [F].
      scatter: float64 [F, F], sum of outer products of deviations from the mean.
    """

    count: int = 0
    mean: np.ndarray | float = 0.0
    scatter: np.ndarray | float = 0.0


def frechet(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_samples: int | None = None,
) -> dict[str, float]:
    """Frechet distance of prior samples to real test images.

    Generated images are likelihood means, clipped and rounded to 8 bits as real
    ones are. Real examples are those in which the modality is observed.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: test split, and classifiers for all modalities.
      key: of the prior samples.
      num_samples: generated examples; None: as many as test examples.

    Returns:
      frechet_classifier/m0, ..., and frechet_classifier, their mean: squared
      distances >= 0, lower is better; nan where a parameter is not finite.

    Raises:
      UsageError: a modality has no classifier.
    """
    classifiers = require_classifiers(data, model.modalities, "frechet")
    num_samples = data.test.num_examples if num_samples is None else num_samples
    real, generated = defaultdict(Moments), defaultdict(Moments)
    for moments, source in (
        (real, batches(data.test, data.batch_size)),
        (generated, prior_examples(model, params, data, key, num_samples)),
    ):
        for batch, num_valid in source:
            features = jax.device_get(
                {
                    name: classifiers[name].apply(as_coarse(real_one, batch[name]))[0]
                    for name, real_one in data.test.modalities.items()
                }
            )
            observed = observed_rows(batch, model.modalities, num_valid)
            for name, values in features.items():
                values = values[:num_valid][observed[name]]
                moments[name] = update_moments(moments[name], values)
    tags = {}
    for name in model.modalities:
        tags[f"frechet_classifier/{name}"] = frechet_distance(
            *mean_and_covariance(real[name]), *mean_and_covariance(generated[name])
        )
    return {"frechet_classifier": float(np.mean(list(tags.values()))), **tags}


def update_moments(moments: Moments, features: np.ndarray) -> Moments:
    """Moments after seeing another batch.

    Chan, Golub & LeVeque (1983), Eq. (2.1): merging centred moments does not
    cancel as a difference of raw second moments does.

    Args:
      moments: of what was seen before.
      features: float [B, F].

    Returns:
      Moments of both together.
    """
    features = np.asarray(features, np.float64)
    num = len(features)
    if num == 0:
        return moments
    mean = features.mean(axis=0)
    centred = features - mean
    count = moments.count + num
    shift = mean - moments.mean
    between = np.outer(shift, shift) * (moments.count * num / count)
    return Moments(
        count,
        moments.mean + shift * (num / count),
        moments.scatter + centred.T @ centred + between,
    )


def mean_and_covariance(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Mean [F] and unbiased covariance [F, F] of at least two examples."""
    return moments.mean, moments.scatter / (moments.count - 1)


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    Dowson & Landau (1982): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2}). The last
    trace is that of (C1^{1/2} C2 C1^{1/2})^{1/2}, which is the sum of singular
    values of C1^{1/2} C2^{1/2}. Both roots are of symmetric matrices, by `eigh`,
    so that no complex numbers arise, singular covariances need no ridge, and no
    root is taken of a product's rounding errors.

    Args:
      mean1: float [F].
      cov1: float [F, F], symmetric positive semi-definite.
      mean2: float [F].
      cov2: float [F, F], likewise.

    Returns:
      A number >= 0; nan if an input is not finite.
    """
    if not all(np.isfinite(x).all() for x in (mean1, cov1, mean2, cov2)):
        return float("nan")
    product = symmetric_square_root(cov1) @ symmetric_square_root(cov2)
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    squared = np.sum((np.float64(mean1) - np.float64(mean2)) ** 2)
    distance = squared + np.trace(cov1) + np.trace(cov2) - 2.0 * overlap
    return float(max(distance, 0.0))


def symmetric_square_root(matrix: np.ndarray) -> np.ndarray:
    """Square root [F, F] of a symmetric positive semi-definite matrix [F, F]."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    # Eigenvalues that are zero come out as +-1e-16 of the largest.
    roots = np.sqrt(np.clip(values, 0.0, None))
    return (vectors * roots) @ vectors.T
