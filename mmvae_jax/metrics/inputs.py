"""What every metric is given, and how it walks through it.

A metric is a function ``metric(model, params, data, key, **options) -> dict`` of
tags (without the ``eval/`` prefix) and Python floats. It loops over batches on
the host: the functions of `model` arrive compiled, for one sweep member, and
the loops keep their shapes constant, so that each compiles once. Sums are taken
in float64 numpy, because tens of thousands of float32 terms lose digits.

Parameters that are not finite are a result, not an error: metrics return nan.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax import distributions
from mmvae_jax.data import Split, is_image, is_tokens, scaled
from mmvae_jax.errors import UsageError
from mmvae_jax.tokens import PAD, SPECIALS, until_eos
from mmvae_jax.types import (
    OBSERVED,
    Array,
    Batch,
    Distribution,
    MultimodalVAE,
    Params,
    PRNGKey,
)


class Classifier(NamedTuple):
    """A label classifier of one modality, trained on real training examples.

    Attributes:
      apply: examples [B, ...], images in [0, 1] -> (features [B, F], logits
        [B, num_classes]). Dropout must be off: the published evaluation code
        left it on, which lowers what it measures.
      accuracy: fraction in [0, 1] of real test examples it labels correctly.
    """

    apply: Callable[[Array], tuple[Array, Array]]
    accuracy: float


class Matchers(NamedTuple):
    """Networks that tell how well examples of two modalities match.

    x of one modality and y of another match by the product of their features times
    the scale of the pair, in nats: up to a constant, the log of how much likelier
    they are to occur together than apart. They were trained without labels.

    Attributes:
      embed: modality -> function of examples [B, ...], images in [0, 1], to
        features [B, F] of length one. Dropout must be off.
      scale: (modality, modality) -> scale >= 0 of that pair, for both orders.
    """

    embed: Mapping[str, Callable[[Array], Array]]
    scale: Mapping[tuple[str, str], float]


class Reader(NamedTuple):
    """Tells which value of one attribute an example of one modality shows.

    Attributes:
      read: examples [B, ...], images in [0, 1] -> [B], indices of values; -1 where the
        example says none, nan where it is not finite.
      accuracy: fraction in [0, 1] of real test examples that it reads correctly.
    """

    read: Callable[[Array], np.ndarray]
    accuracy: float


class EvaluationData(NamedTuple):
    """The examples and networks that metrics are computed with.

    Attributes:
      train: the training split.
      test: the test split.
      classifiers: modality -> Classifier, or None where there is no label.
      batch_size: B, of every call to a function of the model.
      matchers: of all pairs of modalities, or None where no metric needs them.
      readers: modality -> attribute -> Reader, or None where no metric needs them.
      words: modality of tokens -> its vocabulary, the word of every token.
      whole_test: the test split of which `test` is a part; None where it is whole.
    """

    train: Split
    test: Split
    classifiers: Mapping[str, Classifier] | None
    batch_size: int
    matchers: Matchers | None = None
    readers: Mapping[str, Mapping[str, Reader]] | None = None
    words: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    whole_test: Split | None = None


def batches(
    split: Split, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of a split in order, all of the same size.

    The last one is filled up with examples from the start of the split, so that
    compiled functions see a single shape; only its first rows count.

    Args:
      split: N examples.
      batch_size: B.

    Yields:
      (modality -> [B, ...], images float32 in [0, 1], and OBSERVED -> bool [B, M] if
      anything is missing; number of rows that count).
    """
    num = split.num_examples
    for start in range(0, num, batch_size):
        rows = np.arange(start, start + batch_size) % num
        yield (
            {name: scaled(x[rows]) for name, x in split.leaves().items()},
            min(batch_size, num - start),
        )


def observed_subset(model: MultimodalVAE, batch: Batch) -> np.ndarray:
    """What is observed of a batch: bool [M, B], or [M] where nothing is missing."""
    if OBSERVED in batch:
        return np.asarray(batch[OBSERVED]).T
    return np.ones(len(model.modalities), bool)


def observed_rows(
    batch: Batch, modalities: tuple[str, ...], num_valid: int
) -> dict[str, np.ndarray]:
    """Modality -> in which of the rows that count it is there, bool [num_valid]."""
    shape = (num_valid, len(modalities))
    observed = np.asarray(batch.get(OBSERVED, np.ones(shape, bool)))[:num_valid]
    return dict(zip(modalities, observed.T, strict=True))


def conditional_means(
    model: MultimodalVAE,
    params: Params,
    experts: Distribution,
    subset: Collection[str],
    keys: Sequence[PRNGKey],
) -> dict[str, Array]:
    """Likelihood means of all modalities given some, one draw for each example.

    Args:
      model: for one sweep member.
      params: its parameters.
      experts: of its encoder.
      subset: names of the modalities that are given.
      keys: of the posterior's component and of the sample from it.

    Returns:
      Modality -> [B, ...].
    """
    mask = np.array([m in subset for m in model.modalities])
    posterior = model.posterior(params, experts, mask, keys[0])
    return model.decode(params, distributions.sample(posterior, keys[1]))


def prior_examples(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    num: int,
) -> Iterator[tuple[dict[str, Array], int]]:
    """Generated examples of all modalities from prior samples.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: what real examples are like, and the batch size B of every call; the rows
        beyond `num` do not count.
      key: of the prior samples.
      num: how many examples in all.

    Yields:
      (modality -> [B, ...] as of `to_examples`, number of rows that count).
    """
    for decoded, num_valid in prior_means(model, params, data.batch_size, key, num):
        yield to_examples(data.test, decoded, data.words), num_valid


def prior_means(
    model: MultimodalVAE, params: Params, batch_size: int, key: PRNGKey, num: int
) -> Iterator[tuple[Mapping[str, Array], int]]:
    """As `prior_examples`, but the likelihood means: of tokens, probabilities."""
    for index, start in enumerate(range(0, num, batch_size)):
        z = model.sample_prior(params, jax.random.fold_in(key, index), batch_size)
        yield model.decode(params, z), min(batch_size, num - start)


def to_examples(
    split: Split,
    decoded: Mapping[str, Array],
    words: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> dict[str, Array]:
    """Likelihood means as examples of the kinds that a split has.

    Images are clipped to [0, 1]: the mean of a Laplace or Gaussian likelihood may lie
    outside of it; an image may not, and the classifiers have never seen one that
    does. Of tokens, whose mean is a probability for every word, the most probable;
    after the first `<eos>` of a caption there is `<pad>`, as in real ones.

    Args:
      split: real examples.
      decoded: modality -> likelihood means [B, ...].
      words: modality of tokens -> its vocabulary, which tells captions from others.

    Returns:
      modality -> [B, ...].
    """

    def example(m: str, mean: Array) -> Array:
        real = split.modalities[m]
        if is_image(real):
            return jnp.clip(mean, 0.0, 1.0)
        if not is_tokens(real):
            return mean
        most_probable = jnp.argmax(mean, axis=-1)
        if tuple(words.get(m, ()))[: len(SPECIALS)] != SPECIALS:
            return most_probable
        return jnp.where(until_eos(most_probable), most_probable, PAD)

    return {m: example(m, mean) for m, mean in decoded.items()}


def is_finite(mean: Array) -> Array:
    """Which likelihood means [B, ...] are finite, bool [B].

    Most probable tokens would not tell: the argmax over nan is a token.
    """
    return jnp.isfinite(mean).reshape(len(mean), -1).all(axis=1)


def nan_if_not_finite(real: np.ndarray, mean: Array, found: Array) -> Array:
    """What a network makes of generated examples, nan where these are no examples.

    Args:
      real: examples of the modality, which tell its kind.
      mean: [B, ...], that of the likelihood.
      found: [B, F], outputs of the network.

    Returns:
      `found`; of tokens nan where the mean is not finite. Images show it themselves.
    """
    if not is_tokens(real):
        return found
    return jnp.where(is_finite(mean)[:, None], found, jnp.nan)


def as_coarse(real: np.ndarray, generated: Array) -> Array:
    """Generated examples as coarse as real ones: images rounded to 8 bits."""
    return to_eight_bits(generated) if is_image(real) else generated


def images_of(data: EvaluationData, metric: str) -> tuple[str, ...]:
    """The modalities that are images.

    Raises:
      UsageError: there is none.
    """
    names = tuple(m for m, x in data.test.modalities.items() if is_image(x))
    if not names:
        raise UsageError(f"metric {metric!r} is of images, and no modality is one")
    return names


def captions_of(data: EvaluationData, metric: str) -> tuple[str, ...]:
    """The modalities that are tokens of which the words are known.

    Raises:
      UsageError: there is none.
    """
    tokens = [m for m, x in data.test.modalities.items() if is_tokens(x)]
    names = tuple(m for m in tokens if m in data.words)
    if not names:
        raise UsageError(
            f"metric {metric!r} is of captions, and no modality is one: leave it out "
            "of config.eval.metrics"
        )
    return names


def require_labels(split: Split, metric: str) -> np.ndarray:
    """The labels of a split.

    Raises:
      UsageError: there are none.
    """
    if split.labels is None:
        raise UsageError(
            f"metric {metric!r} needs labels, and the data have none: leave it out of "
            "config.eval.metrics"
        )
    return split.labels


def require_attributes(split: Split, metric: str) -> tuple[str, ...]:
    """The names of the attributes of a split.

    Raises:
      UsageError: there are none.
    """
    if not split.attributes:
        raise UsageError(
            f"metric {metric!r} needs attributes, and the data have none: leave it out "
            "of config.eval.metrics"
        )
    return tuple(split.attributes)


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


def require_readers(
    data: EvaluationData, modalities: tuple[str, ...], metric: str
) -> Mapping[str, Mapping[str, Reader]]:
    """The readers of `data`.

    Raises:
      UsageError: there is no attribute, or one cannot be read off a modality.
    """
    attributes = require_attributes(data.test, metric)
    readers = data.readers or {}
    missing = [
        f"{attribute} of {m}"
        for m in modalities
        for attribute in attributes
        if attribute not in readers.get(m, {})
    ]
    if missing:
        raise UsageError(
            f"metric {metric!r} needs a reader for every attribute of every modality, "
            f"none for {', '.join(missing)}: train them, or leave the metric out"
        )
    return readers
