"""Captions as rows of integers: words, vocabulary, and the way back.

A token is an index into `words`, a list that begins with the three of SPECIALS. A
caption of length T is its words, `<eos>`, and `<pad>` up to T; a word that is not in
the list is `<exc>`. The specials and their order are those of Shi et al. (2019).
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
# One kind of array, for functions that return the kind that they are given.
_Array = TypeVar("_Array", np.ndarray, Array)
_APOSTROPHES = str.maketrans("", "", "'\u2019")


def tokenize(text: str) -> list[str]:
    """Splits a text into words.

    The words are in lower case. Apostrophes vanish ("bird's" is "birds"); any other
    character that is no letter or digit separates words ("black-and-white" is three).
    No word can look like a special token.

    Args:
      text: one caption, of one or more sentences.

    Returns:
      Words; none where the text has no letter or digit.
    """
    return _WORD.findall(text.translate(_APOSTROPHES).lower())


def build_vocabulary(captions: Iterable[str], min_count: int = 1) -> list[str]:
    """The words that occur often enough, the most frequent first, after SPECIALS.

    Args:
      captions: texts of the training split alone: the vocabulary of a test split
        would give it away.
      min_count: occurrences that a word needs at least.

    Returns:
      The words by token; equally frequent ones in alphabetical order.
    """
    counts = collections.Counter(w for text in captions for w in tokenize(text))
    kept = [word for word, count in counts.items() if count >= min_count]
    return [*SPECIALS, *sorted(kept, key=lambda word: (-counts[word], word))]


def encode(captions: Sequence[str], words: Sequence[str], length: int) -> np.ndarray:
    """Captions as tokens.

    Args:
      captions: N texts.
      words: the words by token.
      length: T, at least 1; a caption keeps its first T - 1 words.

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
      Words with spaces between them; unknown ones read `<exc>`.
    """
    shown = []
    for token in tokens:
        # By its word: a vocabulary of the user's own may lack the special ones.
        word = words[token]
        if word == SPECIALS[EOS]:
            break
        if word != SPECIALS[PAD]:
            shown.append(word)
    return " ".join(shown)


def until_eos(tokens: _Array) -> _Array:
    """Whether a token belongs to its caption: it is no later than the first `<eos>`.

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
    """The values of attributes that a caption names by single words.

    Args:
      words: the words of one caption, in any order.
      meanings: attribute -> word -> the value that it names.

    Returns:
      attribute -> value; None where no word names one, or two words name two.
    """
    known = set(words)
    found = {
        attribute: {value_of[word] for word in known & value_of.keys()}
        for attribute, value_of in meanings.items()
    }
    return {a: v.pop() if len(v) == 1 else None for a, v in found.items()}
