"""Data sets in memory: splits, kinds of modalities, and scaling of bytes.

The type of an array gives the kind of its modality: images are uint8, vectors (of any
shape) float32, sequences of tokens int32. Counts [N, F] may also be int32; for
likelihoods of counts, `with_counts` converts them to vectors.
"""

import hashlib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from mmvae_jax.errors import UsageError
from mmvae_jax.types import OBSERVED, AnyArray, Array, TokenShape

LABEL = "label"
ATTRIBUTE = "attribute/"  # prefix of the features of attributes
_LARGEST_COUNT = 2**24
# For functions that return the type of array that they are given.
_Array = TypeVar("_Array", Array, np.ndarray, AnyArray)


class Split(NamedTuple):
    """The examples of one split; row i of every field is example i.

    Attributes:
      modalities: name -> images uint8 [N, H, W, C] in 0..255, vectors float32 [N, ...],
        or tokens int32 [N, T]; in order.
      labels: int32 [N], or None.
      observed: bool [N, M], at least one True per row; None: nothing is missing.
      attributes: name -> int32 [N], further labels of the examples.
    """

    modalities: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    observed: np.ndarray | None = None
    attributes: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def num_examples(self) -> int:
        """N, the number of examples."""
        return len(next(iter(self.modalities.values())))

    def is_observed(self, modality: str) -> np.ndarray:
        """Mask of the examples with a modality, bool [N]."""
        if self.observed is None:
            return np.ones(self.num_examples, bool)
        return self.observed[:, list(self.modalities).index(modality)]

    def take(self, rows: np.ndarray) -> "Split":
        """The examples of these rows."""
        return Split(
            {m: x[rows] for m, x in self.modalities.items()},
            None if self.labels is None else self.labels[rows],
            None if self.observed is None else self.observed[rows],
            {name: x[rows] for name, x in self.attributes.items()},
        )

    def complete(self) -> "Split":
        """The examples with all modalities."""
        if self.observed is None:
            return self
        return self.take(np.flatnonzero(self.observed.all(axis=1)))._replace(
            observed=None
        )

    def leaves(self) -> dict[str, np.ndarray]:
        """The arrays of batches: modalities, and `observed` if any."""
        observed = {} if self.observed is None else {OBSERVED: self.observed}
        return dict(self.modalities) | observed


# Attribute -> the modalities that show it.
Shown = Mapping[str, Collection[str]]


class Dataset(NamedTuple):
    """A prepared data set.

    Attributes:
      train: Split.
      test: Split.
      fingerprint: sha256 of all examples, in hexadecimal.
      name: name of the data set and its options.
      words: modality of tokens -> its vocabulary, one word per token.
      attributes: name -> the names of its values.
      meanings: modality of tokens -> attribute -> word -> the value that it names.
      shown: attribute (or LABEL) -> the modalities that show it; attributes without an
        entry are shown by all modalities.
    """

    train: Split
    test: Split
    fingerprint: str
    name: str
    words: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    attributes: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    meanings: Mapping[str, Mapping[str, Mapping[str, str]]] = MappingProxyType({})
    shown: Shown = MappingProxyType({})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modality -> shape of one example; a TokenShape for tokens."""
        return {
            m: TokenShape(x.shape[1], len(self.words[m]))
            if is_tokens(x)
            else x.shape[1:]
            for m, x in self.train.modalities.items()
        }


def with_counts(dataset: Dataset, modalities: Collection[str]) -> Dataset:
    """Converts int arrays of counts [N, F] from tokens to vectors.

    Args:
      dataset: Dataset.
      modalities: the modalities with counts; arrays of other types are unchanged.

    Returns:
      Dataset, with floats and without a vocabulary for these modalities, and with
      another fingerprint if any has changed.

    Raises:
      UsageError: a count is not exact in float32.
    """
    own = [m for m in modalities if is_tokens(dataset.train.modalities[m])]
    if not own:
        return dataset
    splits = []
    for split in (dataset.train, dataset.test):
        for m in own:
            if split.modalities[m].max(initial=0) > _LARGEST_COUNT:
                raise UsageError(
                    f"{m} has the count {split.modalities[m].max()}, and float32 is "
                    f"exact to {_LARGEST_COUNT}: scale it down"
                )
        counts = {m: split.modalities[m].astype(np.float32) for m in own}
        splits.append(split._replace(modalities=split.modalities | counts))
    source = f"{dataset.fingerprint} counts {' '.join(own)}"
    return dataset._replace(
        train=splits[0],
        test=splits[1],
        fingerprint=hashlib.sha256(source.encode()).hexdigest(),
        words={m: words for m, words in dataset.words.items() if m not in own},
    )


def shows(shown: Shown, modality: str, attribute: str) -> bool:
    """Whether a modality shows an attribute, by `Dataset.shown`."""
    return modality in shown.get(attribute, (modality,))


def is_image(x: AnyArray) -> bool:
    """Whether examples [N, ...] are images."""
    return x.dtype == np.uint8


def is_tokens(x: AnyArray) -> bool:
    """Whether examples [N, ...] are sequences of tokens."""
    return np.issubdtype(x.dtype, np.integer) and not is_image(x)


def kind_of(x: AnyArray) -> str:
    """The kind of examples [N, ...]: "images", "tokens" or "vectors"."""
    return "images" if is_image(x) else "tokens" if is_tokens(x) else "vectors"


def to_unit_interval(x: _Array) -> _Array:
    """Scales images from bytes to [0, 1]; other arrays are unchanged.

    Use it in a compiled step on a batch: as floats, the whole training split would take
    four times the memory.

    Args:
      x: uint8 [...] in 0..255; or any other array.

    Returns:
      float32 [...] in [0, 1]; or the other array.
    """
    return x.astype(jnp.float32) / 255 if is_image(x) else x
