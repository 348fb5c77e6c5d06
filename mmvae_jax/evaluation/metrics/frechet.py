"""Frechet distances between generated and real images, in features of a network.

Heusel et al. (2017), "GANs trained by a two time-scale update rule converge to a
local Nash equilibrium": the Frechet distance between Gaussians fitted to features.
`fid` uses the Inception network of pytorch-fid. `frechet` uses the penultimate layer of
the modality's own label classifier, which exists for every data set; its values compare
models on one data set with one classifier, and are not FIDs.

Images are rounded to 8 bits, as in reference implementations, which read files. The
positive bias decreases with the number of images: compare only values with the same
number. With fewer images than features the covariances are singular; the distance is
still defined, with a large bias.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.draws import draws_of
from mmvae_jax.evaluation.features import (
    Extractor,
    classifier_extractors,
    features_of,
    generated_features,
)
from mmvae_jax.evaluation.metric import (
    EvaluationData,
    Undefined,
    inception_images_of,
    keep,
    mean,
    too_few_observed,
)
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

# The widest layer of the Inception network takes 5.5 MB per image.
MAX_BATCH = 50


class Moments(NamedTuple):
    """Gaussian fitted to features.

    Attributes:
      mean: float64 [F].
      covariance: float64 [F, F], unbiased.
    """

    mean: np.ndarray
    covariance: np.ndarray


def frechet(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_samples: int | None = None,
) -> dict[str, float]:
    """Frechet distance of prior samples to real test images, in classifier features.

    Generated images are likelihood means, clipped and rounded to 8 bits. Real examples
    are those in which the modality is observed.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split, and classifiers for all modalities.
      key: random key of the prior samples.
      num_samples: generated examples; None: as many as test examples.

    Returns:
      frechet_classifier/m0, ..., and frechet_classifier, their mean: squared
      distances >= 0, lower is better; NaN if a parameter is not finite,
      Undefined if fewer than two real examples have the modality.

    Raises:
      UsageError: a modality has no classifier.
    """
    extractors = classifier_extractors(data, model.modalities, "frechet")
    real = {
        m: moments_of(
            features_of(extractors[m], _observed(data.test, m), data.batch_size)
        )
        for m in model.modalities
        if too_few_observed(data.test, m, 2) is None
    }
    generated = _generated_moments(model, params, data, key, extractors, num_samples)
    return _distances("frechet_classifier", model.modalities, data, real, generated)


def fid(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    extractor: Extractor,
    cache_dir: str | Path | None = None,
    num_samples: int | None = None,
) -> dict[str, float]:
    """Frechet inception distance of prior samples to real test images.

    Generated and real images are as in `frechet`. Grey images count as three equal
    channels.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split.
      key: random key of the prior samples.
      extractor: takes images with 1 or 3 channels; inception.make_extractor gives the
        FID.
      cache_dir: folder of this extractor's moments of real images, one file per set of
        images (34 MB for F = 2048); None: no cache.
      num_samples: generated examples; None: as many as test examples.

    Returns:
      fid/m0, ..., and fid, their mean: squared distances >= 0, lower is better;
      NaN if a parameter is not finite, Undefined as in `frechet`.

    Raises:
      UsageError: no modality has images, or of other images than these.
    """
    names = inception_images_of(data.test, "fid")
    data = data._replace(batch_size=min(data.batch_size, MAX_BATCH))
    real = {
        m: _kept_moments(extractor, _observed(data.test, m), data.batch_size, cache_dir)
        for m in names
        if too_few_observed(data.test, m, 2) is None
    }
    extractors = dict.fromkeys(real, extractor)
    generated = _generated_moments(model, params, data, key, extractors, num_samples)
    return _distances("fid", names, data, real, generated)


def _observed(split: Split, modality: str) -> np.ndarray:
    """The observed examples of a modality."""
    return split.modalities[modality][split.is_observed(modality)]


def moments_of(features: np.ndarray) -> Moments:
    """Moments of features [N, F] of at least two examples."""
    mean = features.mean(axis=0, dtype=np.float64)
    return Moments(mean, np.cov(features, rowvar=False, dtype=np.float64))


def _generated_moments(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    extractors: Mapping[str, Extractor],
    num: int | None,
) -> dict[str, Moments]:
    """Modality -> moments of features of `num` prior samples; {} for fewer than two.

    The covariance takes twice the memory of the features.
    """
    num = data.test.num_examples if num is None else num
    if num < 2:
        return {}
    draws = draws_of(model, params, data, key)
    size = data.batch_size
    return {
        m: moments_of(generated_features(extractor, draws.prior(m, num), size))
        for m, extractor in extractors.items()
    }


def _distances(
    tag: str,
    modalities: Iterable[str],
    data: EvaluationData,
    real: Mapping[str, Moments],
    generated: Mapping[str, Moments],
) -> dict[str, float]:
    """The distance of each modality, and their mean under the tag alone."""

    def distance(m: str) -> float:
        if m in real and m in generated:
            return frechet_distance(*real[m], *generated[m])
        return too_few_observed(data.test, m, 2) or Undefined(
            "two generated examples are needed"
        )

    tags = {f"{tag}/{m}": distance(m) for m in modalities}
    return {tag: mean(tags.values()), **tags}


def _kept_moments(
    extractor: Extractor,
    images: np.ndarray,
    batch_size: int,
    cache_dir: str | Path | None,
) -> Moments:
    """Moments of the features of real images, cached if possible.

    Args:
      extractor: as in `fid`.
      images: uint8 [N, H, W, C].
      batch_size: examples in every call to the extractor.
      cache_dir: as in `fid`.
    """
    if cache_dir is None:
        return moments_of(features_of(extractor, images, batch_size))
    digest = hashlib.sha256(f"{images.shape} ".encode() + images.tobytes())
    path = Path(cache_dir).expanduser() / f"{digest.hexdigest()[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Moments(kept["mean"], kept["covariance"])
    except Exception:  # NumPy and zipfile raise many types for a damaged file.
        moments = moments_of(features_of(extractor, images, batch_size))
    packed = io.BytesIO()
    np.savez(packed, **moments._asdict())
    # Members on several devices are evaluated by threads.
    keep(path, packed.getvalue())
    return moments


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    Dowson & Landau (1982): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2}). The last trace
    equals that of (C1^{1/2} C2 C1^{1/2})^{1/2}, the sum of the singular values of
    C1^{1/2} C2^{1/2}. Both roots are of symmetric matrices, by `eigh`: there are no
    complex numbers, singular covariances need no ridge, and no root is taken of the
    rounding errors of a product.

    Args:
      mean1: float [F].
      cov1: float [F, F], symmetric positive semi-definite.
      mean2: float [F].
      cov2: float [F, F], likewise.

    Returns:
      A number >= 0; NaN if an input is not finite.
    """
    if not all(np.isfinite(x).all() for x in (mean1, cov1, mean2, cov2)):
        return float("nan")
    product = _symmetric_square_root(cov1) @ _symmetric_square_root(cov2)
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    squared = np.sum((np.float64(mean1) - np.float64(mean2)) ** 2)
    distance = squared + np.trace(cov1) + np.trace(cov2) - 2.0 * overlap
    return float(max(distance, 0.0))


def _symmetric_square_root(matrix: np.ndarray) -> np.ndarray:
    """Square root [F, F] of a symmetric positive semi-definite matrix [F, F]."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    # Zero eigenvalues are computed as +-1e-16 of the largest.
    roots = np.sqrt(np.clip(values, 0.0, None))
    return (vectors * roots) @ vectors.T
