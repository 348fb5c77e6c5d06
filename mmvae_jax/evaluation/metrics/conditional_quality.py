"""Quality of conditionally generated examples and of reconstructions.

The metrics are the distances of `swd`, `frechet` and `fid` for a modality generated
given some others, all others, or all modalities (one draw per example). The real
examples are from the same test tuples. Coherence does not show whether a coherent model
generates bad examples, or good ones only of a given modality.
"""

import functools
from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np

from mmvae_jax.data.dataset import to_unit_interval
from mmvae_jax.evaluation import conditionals
from mmvae_jax.evaluation.draws import Generated, draws_of
from mmvae_jax.evaluation.features import (
    Extractor,
    classifier_extractors,
    features_of,
    generated_features,
)
from mmvae_jax.evaluation.metric import (
    EvaluationData,
    images_of,
    inception_images_of,
)
from mmvae_jax.evaluation.metrics import frechet, swd
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

# (rows of the test split, the examples generated for them) -> distance.
_Distance = Callable[[np.ndarray, Generated], float]


def conditional_swd(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_images: int = 2048,
    patches_per_image: int = 16,
    num_projections: int = 128,
) -> dict[str, float]:
    """Sliced Wasserstein distance of conditionally generated images to real ones.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split.
      key: random key of the subsets, the posterior samples, the patches and the
        projections; the last two are the same of all conditions.
      num_images: images of each kind and condition; all, if there are fewer.
      patches_per_image: as in `swd`.
      num_projections: as in `swd`.

    Returns:
      conditional_swd/leave_one_out, mean over images of the next;
      conditional_swd/leave_one_out/m0, of m0 given all other modalities;
      conditional_swd/size_1, ..., given a random subset of others of that size, mean;
      conditional_swd/reconstruction and /m0, of m0 given all observed modalities.
      Times 1e3; lower is better; NaN if a parameter is not finite, Undefined if
      no example has what is needed. With one modality only reconstruction.

    Raises:
      UsageError: no modality has images.
    """

    def distance(m: str, rows: np.ndarray, generated: Generated) -> float:
        distances = swd.level_distances(
            to_unit_interval(data.test.modalities[m][rows]),
            generated.values(),
            conditionals.numpy_rng(patch_key),
            patches_per_image,
            num_projections,
        )
        return 1e3 * float(np.mean(distances))

    names = images_of(data.test, "conditional_swd")
    own_key, patch_key = jax.random.split(key)
    distances = {m: partial(distance, m) for m in names}
    return _measured(
        "conditional_swd", model, params, data, own_key, distances, 1, num_images
    )


def conditional_frechet(
    model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
) -> dict[str, float]:
    """Frechet distance of conditionally generated to real examples.

    As `frechet` of prior samples, in the features of the label classifier.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split, and classifiers for all modalities.
      key: random key of the subsets and the posterior samples.

    Returns:
      Tags as in `conditional_swd`: squared distances >= 0, lower is better; Undefined
      if fewer than two examples have what is needed.

    Raises:
      UsageError: a modality has no classifier.
    """

    tag = "conditional_frechet"
    extractors = classifier_extractors(data, model.modalities, tag)
    return _between_features(tag, model, params, data, key, extractors)


def conditional_fid(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    extractor: Extractor,
) -> dict[str, float]:
    """Frechet inception distance of conditionally generated images to real ones.

    As `fid` of prior samples; the real images are those of the same test tuples.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split.
      key: random key of the subsets and the posterior samples.
      extractor: as in `fid`.

    Returns:
      Tags as in `conditional_swd`: squared distances >= 0, lower is better; Undefined
      if fewer than two examples have what is needed.

    Raises:
      UsageError: no modality has images, or of other images than those of `fid`.
    """
    tag = "conditional_fid"
    extractors = dict.fromkeys(inception_images_of(data.test, tag), extractor)
    data = data._replace(batch_size=min(data.batch_size, frechet.MAX_BATCH))
    return _between_features(tag, model, params, data, key, extractors)


def _between_features(
    tag: str,
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    extractors: Mapping[str, Extractor],
) -> dict[str, float]:
    """Tags and values: Frechet distances of the modalities that have an extractor."""

    @functools.lru_cache(maxsize=1)  # for all conditions of a modality
    def real_features(m: str) -> np.ndarray:
        real = data.test.modalities[m]
        return features_of(extractors[m], real, data.batch_size)

    def distance(m: str, rows: np.ndarray, generated: Generated) -> float:
        features = generated_features(extractors[m], generated, data.batch_size)
        return frechet.frechet_distance(
            *frechet.moments_of(real_features(m)[rows]),
            *frechet.moments_of(features),
        )

    distances = {m: partial(distance, m) for m in extractors}
    return _measured(tag, model, params, data, key, distances, 2, None)


def _measured(
    tag: str,
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    distances: Mapping[str, _Distance],
    least: int,
    num: int | None,
) -> dict[str, float]:
    """Tags and values: the distance of each modality for each of its conditions."""
    draws = draws_of(model, params, data, key)
    values: dict[tuple[str, str], float] = {}
    for m, distance in distances.items():
        for one in conditionals.conditions(data.test, m):
            rows = one.rows[:num]
            values[one.name, m] = (
                distance(rows, draws.conditional(one, num))
                if len(rows) >= least
                else conditionals.no_example(one)
            )
    return conditionals.summarise(tag, values, len(model.modalities))
