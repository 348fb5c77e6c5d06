"""Captions as rows of integers: words, vocabulary, and the way back.

A token is an index into `words`, a list that begins with the three special tokens,
SPECIALS. A caption of length T is its words, `<eos>`, and `<pad>` up to T; `<exc>`
stands for a word outside the list. SPECIALS are those of Shi et al. (2019), in their
order.
"""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mmvae_jax.types import Array

SPECIALS = ("<exc>", "<pad>", "<eos>")
EXC, PAD, EOS = range(3)
# Runs of letters and digits; str.isalnum() with "_" left out.
_WORD = re.compile(r"[^\W_]+")
# For functions that return the type of array that they are given.
_Array = TypeVar("_Array", np.ndarray, Array)
_APOSTROPHES = str.maketrans("", "", "'\u2019")


def tokenize(text: str) -> list[str]:
    """Splits a text into words in lower case.

    Apostrophes are removed ("bird's" becomes "birds"); any other character that is not
    a letter or digit separates words ("black-and-white" becomes three). No word can
    equal a special token.

    Args:
      text: one caption, of one or more sentences.

    Returns:
      Words; an empty list if the text has no letter or digit.
    """
    return _WORD.findall(text.translate(_APOSTROPHES).lower())


def build_vocabulary(captions: Iterable[str], min_count: int = 1) -> list[str]:
    """The vocabulary: SPECIALS, then frequent words, the most frequent first.

    Args:
      captions: texts of the training split only; test captions would leak into the
        vocabulary.
      min_count: smallest number of occurrences of a word.

    Returns:
      The word of each token; equally frequent words are in alphabetical order.
    """
    counts = collections.Counter(w for text in captions for w in tokenize(text))
    kept = [word for word, count in counts.items() if count >= min_count]
    return [*SPECIALS, *sorted(kept, key=lambda word: (-counts[word], word))]


def encode(captions: Sequence[str], words: Sequence[str], length: int) -> np.ndarray:
    """Captions as tokens.

    Args:
      captions: N texts.
      words: the words by token.
      length: T, at least 1; longer captions keep their first T - 1 words.

    Returns:
      int32 [N, T].
    """
    index = {word: token for token, word in enumerate(words)}
    tokens = np.full((len(captions), length), PAD, np.int32)
    for row, text in zip(tokens, captions, strict=True):
        known = [index.get(word, EXC) for word in tokenize(text)[: length - 1]]
        row[: len(known)] = known
        row[len(known)] = EOS
    return tokens


def decode(tokens: Sequence[int], words: Sequence[str]) -> str:
    """The text of one row of tokens, up to the first `<eos>` and without `<pad>`.

    Args:
      tokens: integers [T] in 0..len(words) - 1.
      words: the words by token.

    Returns:
      Words separated by spaces; an unknown word is `<exc>`.
    """
    shown = []
    for token in tokens:
        # Compare words, not tokens: a user's vocabulary may lack the special tokens.
        word = words[token]
        if word == SPECIALS[EOS]:
            break
        if word != SPECIALS[PAD]:
            shown.append(word)
    return " ".join(shown)


def until_eos(tokens: _Array) -> _Array:
    """Mask of the tokens of a caption, up to and including the first `<eos>`.

    Args:
      tokens: int [..., T].

    Returns:
      bool [..., T].
    """
    is_eos = (tokens == EOS).astype(np.int32)
    return is_eos.cumsum(axis=-1) == is_eos


def read_attributes(
    words: Iterable[str], meanings: Mapping[str, Mapping[str, str]]
) -> dict[str, str | None]:
    """The values of attributes that the words of a caption name.

    Args:
      words: the words of one caption, in any order.
      meanings: attribute -> word -> the value that the word names.

    Returns:
      attribute -> value; None if no word names a value, or words name several values.
    """
    known = set(words)
    found = {
        attribute: {value_of[word] for word in known & value_of.keys()}
        for attribute, value_of in meanings.items()
    }
    return {a: v.pop() if len(v) == 1 else None for a, v in found.items()}
