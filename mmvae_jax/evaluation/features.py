"""Features of real and generated examples, in a network, for several metrics."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.draws import Generated
from mmvae_jax.evaluation.generate import batches
from mmvae_jax.evaluation.metric import EvaluationData, Reader, require_classifiers
from mmvae_jax.types import AnyArray

# Examples of one modality, [B, ...], images in [0, 1] -> features [B, F].
Extractor = Callable[[AnyArray], AnyArray]


def classifier_extractors(
    data: EvaluationData, modalities: Sequence[str], metric: str
) -> dict[str, Extractor]:
    """Modality -> features of its label classifier.

    Raises:
      UsageError: one is missing.
    """
    classifiers = require_classifiers(data, modalities, metric)
    return {m: partial(_last_layer, classifiers[m]) for m in modalities}


def _last_layer(classifier: Reader, examples: AnyArray) -> AnyArray:
    """Features [B, F] of a classifier before its logits."""
    return classifier.apply(examples)[0]


def features_of(extractor: Extractor, x: np.ndarray, batch_size: int) -> np.ndarray:
    """Features [N, F] of examples [N, ...], in batches of one size."""
    found = []
    for batch, num_valid in batches(Split({"": x}), batch_size):
        features = extractor(batch[""])
        found.append(jax.device_get(features)[:num_valid])
    return np.concatenate(found)


def generated_features(
    extractor: Extractor, generated: Generated, batch_size: int
) -> np.ndarray:
    """Features [N, F] of generated examples; NaN for those that are not finite.

    All features are in memory at once: 80 MB for 10,000 samples of 2048 features.
    """
    features = features_of(extractor, generated.examples, batch_size)
    return np.where(generated.is_finite[:, None], features, np.nan)
