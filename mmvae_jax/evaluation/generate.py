"""Batches of test data for metrics, and generated examples.

Metrics loop on the host over batches of one shape, so that each function compiles once.
They sum in float64 with NumPy, because sums of tens of thousands of float32 terms lose
digits.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.data.dataset import Split, is_image, is_tokens, to_unit_interval
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.mathematics import distributions
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


def batches(
    split: Split, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of a split in order, all of the same size.

    The last batch is padded with examples from the start of the split, so that all
    batches have one shape; only its first rows count.

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
            {name: to_unit_interval(x[rows]) for name, x in split.leaves().items()},
            min(batch_size, num - start),
        )


def observed_subset(model: MultimodalVAE, batch: Batch) -> np.ndarray:
    """Observed modalities of a batch: bool [M, B], or [M] if nothing is missing."""
    if OBSERVED in batch:
        return np.asarray(batch[OBSERVED]).T
    return np.ones(len(model.modalities), bool)


def observed_rows(
    batch: Batch, modalities: tuple[str, ...], num_valid: int
) -> dict[str, np.ndarray]:
    """Modality -> in which of the valid rows it is observed, bool [num_valid]."""
    shape = (num_valid, len(modalities))
    observed = np.asarray(batch.get(OBSERVED, np.ones(shape, bool)))[:num_valid]
    return dict(zip(modalities, observed.T, strict=True))


def part_slices(latent_parts: Sequence[tuple[str, int]]) -> dict[str, slice]:
    """Name of each part in `MultimodalVAE.latent_parts` -> its slice of z."""
    found, start = {}, 0
    for name, size in latent_parts:
        found[name] = slice(start, start + size)
        start += size
    return found


def conditional_means(
    model: MultimodalVAE,
    params: Params,
    experts: Distribution,
    subset: Collection[str],
    keys: Sequence[PRNGKey] | PRNGKey,
) -> dict[str, Array]:
    """Likelihood means of all modalities given a subset, one draw per example.

    Args:
      model: for one sweep member.
      params: parameters.
      experts: output of `model.encode`.
      subset: names of the given modalities.
      keys: random keys of the posterior's component and of its sample.

    Returns:
      Modality -> [B, ...].
    """
    mask = np.array([m in subset for m in model.modalities])
    return dict(model.decode(params, latents_given(model, params, experts, mask, keys)))


def latents_given(
    model: MultimodalVAE,
    params: Params,
    experts: Distribution,
    mask: np.ndarray,
    keys: Sequence[PRNGKey] | PRNGKey,
) -> Array:
    """One draw of the latent vector per example, z [B, D].

    Args as in `conditional_means`, with the given modalities as a mask, bool [M] or
    [M, B].
    """
    posterior = model.posterior(params, experts, mask, keys[0])
    return distributions.sample(posterior, keys[1])


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
      params: parameters.
      data: real examples, for the types, and the batch size B of every call.
      key: random key of the prior samples.
      num: total number of examples.

    Yields:
      (modality -> [B, ...] as in `to_examples`, number of rows that count).
    """
    for decoded, num_valid in prior_means(model, params, data.batch_size, key, num):
        yield to_examples(data.test, decoded, data.words), num_valid


def prior_means(
    model: MultimodalVAE, params: Params, batch_size: int, key: PRNGKey, num: int
) -> Iterator[tuple[Mapping[str, Array], int]]:
    """Likelihood means of prior samples; for tokens, probabilities of words."""
    for index, start in enumerate(range(0, num, batch_size)):
        z = model.sample_prior(params, jax.random.fold_in(key, index), batch_size)
        yield model.decode(params, z), min(batch_size, num - start)


def to_examples(
    split: Split,
    decoded: Mapping[str, Array],
    words: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> dict[str, Array]:
    """Converts means or draws of likelihoods to the types of the examples of a split.

    Images are clipped to [0, 1], because means of Laplace or Gaussian likelihoods may
    be outside, and the classifiers know only images inside. Tokens are the most
    probable words; as in real captions, `<pad>` follows the first `<eos>`.

    Args:
      split: real examples.
      decoded: modality -> likelihood means [B, ...]; or draws, of tokens int [B, T].
      words: modality of tokens -> its vocabulary; captions have the special tokens.

    Returns:
      modality -> [B, ...].
    """

    def example(m: str, mean: Array) -> Array:
        real = split.modalities[m]
        if is_image(real):
            return jnp.clip(mean, 0.0, 1.0)
        if not is_tokens(real):
            return mean
        is_drawn = jnp.issubdtype(mean.dtype, jnp.integer)
        chosen = mean if is_drawn else jnp.argmax(mean, axis=-1)
        if tuple(words.get(m, ()))[: len(SPECIALS)] != SPECIALS:
            return chosen
        return jnp.where(until_eos(chosen), chosen, PAD)

    return {m: example(m, mean) for m, mean in decoded.items()}


@jax.jit
def is_finite(mean: Array) -> Array:
    """Which likelihood means [B, ...] are finite, bool [B].

    The most probable tokens do not show it: the argmax over NaN is a token.
    """
    return jnp.isfinite(mean).reshape(len(mean), -1).all(axis=1)


def nan_if_not_finite(real: np.ndarray, mean: Array, found: Array) -> Array:
    """Outputs of a network for generated examples; NaN for tokens that are not finite.

    Args:
      real: real examples of the modality, for its type.
      mean: [B, ...], mean of the likelihood.
      found: [B, F], outputs of the network.

    Returns:
      `found`, with NaN for tokens whose mean is not finite. Images and vectors need no
      change: their outputs are NaN already.
    """
    if not is_tokens(real):
        return found
    return jnp.where(is_finite(mean)[:, None], found, jnp.nan)


def to_bytes(images: Array) -> Array:
    """Rounds images in [0, 1] to uint8."""
    return jnp.round(images * 255.0).astype(jnp.uint8)
