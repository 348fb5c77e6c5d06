"""Generated captions: their diversity, and their similarity to real ones.

The metric needs no language model, and does not measure whether a caption is true.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from sacrebleu.metrics import BLEU

from mmvae_jax import tokens
from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.draws import draws_of
from mmvae_jax.evaluation.generate import (
    batches,
    conditional_means,
    is_finite,
    to_examples,
)
from mmvae_jax.evaluation.metric import (
    EvaluationData,
    Undefined,
    captions_of,
    mean,
    require_complete,
)
from mmvae_jax.types import Array, MultimodalVAE, Params, PRNGKey

_References = tuple[tuple[str, ...], ...]


def captions(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_prior_samples: int | None = None,
) -> dict[str, float]:
    """BLEU, distinct-n and length of generated captions, and of real ones.

    For each different image of the complete test examples, one caption is generated:
    z ~ q(z|x_A) with A all other modalities. Its references are all captions of test
    examples with the same image. With one reference per image and random wording, BLEU
    is low by construction and says little more than whether templates match.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split, and the words of its tokens.
      key: random key of the posterior and prior samples.
      num_prior_samples: number of unconditional captions, on which distinct-n depends;
        None: the number of different images.

    Returns:
      Means over modalities of captions, and each with /m0 at the end (NaN if a
      parameter is not finite):
      captions/bleu, corpus BLEU-4 in 0..100 (Papineni et al., 2002), not smoothed;
      captions/distinct_1 and captions/distinct_2, the fraction of different words and
      pairs of consecutive words (Li et al., 2016), in [0, 1];
      captions/words, the mean number of words;
      captions/prior/distinct_1, .../distinct_2, .../words, of prior samples;
      captions/real/distinct_1, .../distinct_2, .../words, of the first real caption of
      each image; captions/real/bleu, of these against the other captions of the image
      (one fewer than generated captions have), if there are any.
      With one modality, only the last two groups.

    Raises:
      UsageError: no modality is a caption, or no test example has all modalities.
    """
    names = captions_of(data.test, data.words, "captions")
    test = data.test
    if len(model.modalities) > 1:
        test = require_complete(test, "captions", 1)
    whole = (data.whole_test or data.test).complete()
    per_modality = {}
    for index, name in enumerate(names):
        own_key = jax.random.fold_in(key, index)
        rows, references = references_of(test, whole, name, data.words[name])
        num = len(rows) if num_prior_samples is None else num_prior_samples
        given = data._replace(test=test.take(rows))
        found = _generated(model, params, given, name, references, own_key, num)
        per_modality[name] = found | _real(references)
    tags = {
        f"captions/{tag}/{name}": value
        for name, found in per_modality.items()
        for tag, value in found.items()
    }
    for tag in dict.fromkeys(t for found in per_modality.values() for t in found):
        values = [found[tag] for found in per_modality.values() if tag in found]
        tags[f"captions/{tag}"] = mean(values)
    return tags


def _generated(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    name: str,
    references: _References,
    key: PRNGKey,
    num: int,
) -> dict[str, float]:
    """Values of captions: one per test image, and `num` prior samples."""
    conditional_key, prior_key = jax.random.split(key)
    found: dict[str, float] = {}
    if len(model.modalities) > 1:
        texts = _given_others(model, params, data, name, conditional_key)
        found |= {"bleu": bleu(texts, references), **_statistics(texts)}
    prior = draws_of(model, params, data, prior_key).prior(name, num)
    is_whole = prior.is_finite.all()
    texts = _decoded(data, name, prior.examples) if is_whole else None
    return found | {f"prior/{tag}": value for tag, value in _statistics(texts).items()}


def _real(references: _References) -> dict[str, float]:
    """Values of real captions: the first of each image against its others."""
    texts = [own[0] for own in references]
    found = {f"real/{tag}": value for tag, value in _statistics(texts).items()}
    several = [own for own in references if len(own) > 1]
    if several:
        others = tuple(own[1:] for own in several)
        found["real/bleu"] = bleu([own[0] for own in several], others)
    return found


def references_of(
    test: Split, whole: Split, name: str, words: Sequence[str]
) -> tuple[np.ndarray, _References]:
    """The captions of each different image (or value of the other modalities).

    Args:
      test: complete examples.
      whole: complete examples of the whole split, which contains `test`.
      name: name of the modality of captions.
      words: the words by token.

    Returns:
      The row in `test` of the first example of each image, in order, and all captions
      of that image in `whole`.
    """
    if list(test.modalities) == [name]:
        alone = [(tokens.decode(row, words),) for row in test.modalities[name]]
        return np.arange(len(alone)), tuple(alone)
    rows: dict[bytes, int] = {}
    for row, image in enumerate(_others(test, name)):
        rows.setdefault(image, row)
    found: dict[bytes, list[str]] = {image: [] for image in rows}
    captions = whole.modalities[name]
    for row, image in enumerate(_others(whole, name)):
        if image in found:
            found[image].append(tokens.decode(captions[row], words))
    return np.array(list(rows.values()), int), tuple(map(tuple, found.values()))


def _others(split: Split, name: str) -> Iterator[bytes]:
    """Digests of all modalities except the captions, one per row."""
    others = [x for m, x in split.modalities.items() if m != name]
    for row in range(split.num_examples):
        digest = hashlib.blake2b(digest_size=16)
        for x in others:
            digest.update(np.ascontiguousarray(x[row]).data)
        yield digest.digest()


def _given_others(
    model: MultimodalVAE, params: Params, data: EvaluationData, name: str, key: PRNGKey
) -> list[str] | None:
    """One caption per test example; None if the model is not finite."""
    texts: list[str] = []
    others = [m for m in model.modalities if m != name]
    for batch, num_valid in batches(data.test, data.batch_size):
        key, *own_keys = jax.random.split(key, 3)
        experts = model.encode(params, batch)
        decoded = conditional_means(model, params, experts, others, own_keys)
        found = _texts(data, name, decoded[name], num_valid)
        if found is None:
            return None
        texts += found
    return texts


def _texts(
    data: EvaluationData, name: str, mean: Array, num_valid: int
) -> list[str] | None:
    """Converts probabilities of words to captions; None if they are not finite."""
    mean = mean[:num_valid]
    if not np.asarray(is_finite(mean)).all():
        return None
    example = to_examples(data.test, {name: mean}, data.words)
    return _decoded(data, name, np.asarray(example[name]))


def _decoded(data: EvaluationData, name: str, captions: np.ndarray) -> list[str]:
    """Captions as text."""
    return [tokens.decode(row, data.words[name]) for row in captions]


def _statistics(texts: Sequence[str] | None) -> dict[str, float]:
    """distinct_1, distinct_2 and words of captions; NaN if there are none."""
    if not texts:
        return dict.fromkeys(("distinct_1", "distinct_2", "words"), float("nan"))
    return {
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "words": float(np.mean([len(text.split()) for text in texts])),
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """The fraction of different n-grams among all n-grams of the captions.

    Args:
      texts: captions.
      n: at least 1.

    Returns:
      In (0, 1], lower for more captions; Undefined if no caption has n words.
    """
    runs: list[tuple[str, ...]] = []
    for text in texts:
        words = text.split()
        runs += zip(*(words[i:] for i in range(n)), strict=False)
    if not runs:
        return Undefined(f"no caption has {n} words")
    return len(set(runs)) / len(runs)


def bleu(texts: Sequence[str] | None, references: _References) -> float:
    """Corpus BLEU-4 of captions, by whole words, in 0..100.

    Args:
      texts: N captions; None gives NaN.
      references: one or more references per caption.
    """
    if not texts:
        return float("nan")
    return float(_scorer(references).corpus_score(list(texts), None).score)


@functools.lru_cache(maxsize=4)
def _scorer(references: _References) -> BLEU:
    """BLEU with these references, whose words are counted once per sweep."""
    num = max(len(own) for own in references)
    # None if an image has fewer captions, which BLEU's type does not mention.
    streams: list[list[Any]] = [
        [own[i] if i < len(own) else None for own in references] for i in range(num)
    ]
    return BLEU(tokenize="none", smooth_method="none", force=True, references=streams)
