"""Records of images with captions, for `mmvae_jax.data.prepared.load`.

A record is a block of examples: `image` uint8 [n, H, W, 3], `caption` int32 [n, T],
`label` int32 [n] and `attribute/NAME` int32 [n]. The metadata hold

  modalities    their names, in order
  num_examples  of each split
  fingerprint   a sha256 of the data
  words         {"caption": the words by token}
  attributes    {NAME: the names of its values}
  meanings      {"caption": {NAME: {word: the value that it names}}}
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from mmvae_jax import tokens

MODALITIES = ("image", "caption")
BLOCK_BYTES = 16 << 20


class Split(NamedTuple):
    """The examples of one split, made on demand.

    Attributes:
      num_examples: N.
      read: (start, stop) -> feature -> array [n, ...].
      digest: sha256 of all sources of the examples, in hexadecimal.
    """

    num_examples: int
    read: Callable[[int, int], dict[str, np.ndarray]]
    digest: str


def describe(
    builder: Any,
    image_size: int,
    caption_length: int,
    attributes: Mapping[str, Iterable[str]] | None = None,
    meanings: Mapping[str, Mapping[str, str]] | None = None,
) -> Any:
    """The TFDS description of a data set of images with captions.

    Args:
      builder: the TFDS builder.
      image_size: side of the images, in pixels.
      caption_length: T, in tokens.
      attributes: name -> the names of its values.
      meanings: name -> word of a caption -> the value that it names.

    Returns:
      tfds.core.DatasetInfo; `add_metadata` completes its metadata.
    """
    attributes, meanings = attributes or {}, meanings or {}

    def tensor(dtype: type, *shape: int) -> Any:
        return tfds.features.Tensor(shape=(None, *shape), dtype=dtype, encoding="bytes")

    features = {
        "image": tensor(np.uint8, image_size, image_size, 3),
        "caption": tensor(np.int32, caption_length),
        "label": tensor(np.int32),
        **{f"attribute/{name}": tensor(np.int32) for name in attributes},
    }
    return builder.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(
            modalities=list(MODALITIES),
            num_examples={},
            fingerprint="",
            words={},
            attributes={name: list(values) for name, values in attributes.items()},
            meanings={"caption": {name: dict(m) for name, m in meanings.items()}},
        ),
        disable_shuffling=True,
    )


def digest(**arrays: np.ndarray) -> str:
    """The sha256 of named arrays, in hexadecimal."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name}:{array.dtype}{array.shape};".encode())
        total.update(array.data)
    return total.hexdigest()


def add_metadata(info: Any, splits: Mapping[str, Split], words: Sequence[str]) -> None:
    """Writes counts, fingerprint and vocabulary into the metadata.

    Args:
      info: the description that `describe` returned.
      splits: name -> Split.
      words: the words of the captions by token.
    """
    metadata = info.metadata
    metadata["num_examples"] = {name: s.num_examples for name, s in splits.items()}
    metadata["words"] = {"caption": list(words)}
    parts = [(name, s.num_examples, s.digest) for name, s in sorted(splits.items())]
    text = json.dumps([parts, metadata["words"], metadata["attributes"]])
    metadata["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()


def blocks(
    split: Split, image_size: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Numbered records of up to 16 MB.

    Args:
      split: Split.
      image_size: side of the images, in pixels.

    Yields:
      (number, record).
    """
    size = max(1, BLOCK_BYTES // (3 * image_size**2))
    for number, start in enumerate(range(0, split.num_examples, size)):
        yield number, split.read(start, min(start + size, split.num_examples))


@contextlib.contextmanager
def in_memory() -> Iterator[None]:
    """Makes TFDS keep records in memory until they are written.

    For splits above 1 GB, TFDS would use temporary files, which need TensorFlow. The
    records in memory are serialised but not compressed.
    """
    limit = shuffle.MAX_MEM_BUFFER_SIZE
    shuffle.MAX_MEM_BUFFER_SIZE = 1 << 60
    try:
        yield
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = limit


def encode(
    captions: Sequence[Sequence[str]], words: Sequence[str], length: int
) -> np.ndarray:
    """Encodes captions, k per image, by `tokens.encode`: int32 [n, k, T]."""
    flat = [text for texts in captions for text in texts]
    rows = tokens.encode(flat, words, length)
    return rows.reshape(len(captions), -1, length)
