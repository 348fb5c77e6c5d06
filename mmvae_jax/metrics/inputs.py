"""What every metric is given, and how it walks through it.

A metric is a function ``metric(model, params, data, key, **options) -> dict`` of
tags (without the ``eval/`` prefix) and Python floats. It loops over batches on
the host: the functions of `model` arrive compiled, for one sweep member, and
the loops keep their shapes constant, so that each compiles once. Sums are taken
in float64 numpy, because tens of thousands of float32 terms lose digits.

Parameters that are not finite are a result, not an error: metrics return nan.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.errors import UsageError
from mmvae_jax.types import OBSERVED, Array, Batch, MultimodalVAE, Params, PRNGKey


class Classifier(NamedTuple):
    """A label classifier of one modality, trained on real training images.

    Attributes:
      apply: images, float [B, H, W, C] in [0, 1] -> (features [B, F], logits
        [B, num_classes]). Dropout must be off: the published evaluation code
        left it on, which lowers what it measures.
      accuracy: fraction in [0, 1] of real test images it labels correctly.
    """

    apply: Callable[[Array], tuple[Array, Array]]
    accuracy: float


class Matchers(NamedTuple):
    """Networks that tell how well examples of two modalities match.

    x of one modality and y of another match by the product of their features times
    the scale of the pair, in nats: up to a constant, the log of how much likelier
    they are to occur together than apart. They were trained without labels.

    Attributes:
      embed: modality -> function of images, float [B, H, W, C] in [0, 1], to
        features [B, F] of length one. Dropout must be off.
      scale: (modality, modality) -> scale >= 0 of that pair, for both orders.
    """

    embed: Mapping[str, Callable[[Array], Array]]
    scale: Mapping[tuple[str, str], float]


class EvaluationData(NamedTuple):
    """The examples and networks that metrics are computed with.

    Attributes:
      train: a split, with attributes `modalities`, name -> uint8 [N, H, W, C],
        and `labels`, int [N].
      test: likewise.
      classifiers: modality -> Classifier, or None where there is no label.
      batch_size: B, of every call to a function of the model.
      matchers: of all pairs of modalities, or None where no metric needs them.
    """

    train: Any
    test: Any
    classifiers: Mapping[str, Classifier] | None
    batch_size: int
    matchers: Matchers | None = None


def batches(split: Any, batch_size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of a split in order, all of the same size.

    The last one is filled up with examples from the start of the split, so that
    compiled functions see a single shape; only its first rows count.

    Args:
      split: modalities, name -> uint8 [N, H, W, C].
      batch_size: B.

    Yields:
      (modality -> float32 [B, H, W, C] in [0, 1], number of rows that count).
    """
    num = len(split.labels)
    for start in range(0, num, batch_size):
        rows = np.arange(start, start + batch_size) % num
        yield (
            {
                name: images[rows].astype(np.float32) / np.float32(255)
                for name, images in split.modalities.items()
            },
            min(batch_size, num - start),
        )


def observed_subset(model: MultimodalVAE, batch: Batch) -> np.ndarray:
    """What is observed of a batch: bool [M, B], or [M] where nothing is missing."""
    if OBSERVED in batch:
        return np.asarray(batch[OBSERVED]).T
    return np.ones(len(model.modalities), bool)


def prior_images(
    model: MultimodalVAE, params: Params, key: PRNGKey, num: int, batch_size: int
) -> Iterator[tuple[dict[str, Array], int]]:
    """Generated examples of all modalities from prior samples.

    Args:
      model: for one sweep member.
      params: its parameters.
      key: of the prior samples.
      num: how many examples in all.
      batch_size: B, of every call; the rows beyond `num` do not count.

    Yields:
      (modality -> float [B, H, W, C] in [0, 1], number of rows that count).
    """
    for index, start in enumerate(range(0, num, batch_size)):
        z = model.sample_prior(params, jax.random.fold_in(key, index), batch_size)
        yield to_images(model.decode(params, z)), min(batch_size, num - start)


def to_images(decoded: Mapping[str, Array]) -> dict[str, Array]:
    """Likelihood means, clipped to the range [0, 1] of images.

    The mean of a Laplace or Gaussian likelihood may lie outside of it; an image
    may not, and the classifiers have never seen one that does.
    """
    return {name: jnp.clip(mean, 0.0, 1.0) for name, mean in decoded.items()}


def to_eight_bits(images: Array) -> Array:
    """Images in [0, 1] rounded to the 256 levels that real ones have."""
    return jnp.round(images * 255.0) / 255.0


def require_classifiers(
    data: EvaluationData, modalities: tuple[str, ...], metric: str
) -> Mapping[str, Classifier]:
    """The classifiers of `data`.

    Raises:
      UsageError: one is missing.
    """
    classifiers = data.classifiers or {}
    missing = [name for name in modalities if name not in classifiers]
    if missing:
        raise UsageError(
            f"metric {metric!r} needs a classifier for every modality, none for "
            f"{', '.join(missing)}: train them, or leave the metric out"
        )
    return classifiers


def require_matchers(
    data: EvaluationData, modalities: tuple[str, ...], metric: str
) -> Matchers:
    """The matchers of `data`.

    Raises:
      UsageError: there are none, or one is missing.
    """
    embed = data.matchers.embed if data.matchers is not None else {}
    missing = [name for name in modalities if name not in embed]
    if missing:
        raise UsageError(
            f"metric {metric!r} needs a matching network for every modality, none for "
            f"{', '.join(missing)}: train them, or leave the metric out"
        )
    return data.matchers
