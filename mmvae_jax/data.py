"""Prepared data in memory, and the order in which training sees them.

A prepared data set is a TFDS folder in the array_record format whose records are
blocks of examples: one uint8 feature [n, ...] a modality and `label` [n]; its
metadata hold `modalities` (names in order), `num_examples` (split -> int) and
`fingerprint`. What the images show is no concern of this module.

Batches are a pure function of seed and step, so a resumed run needs no iterator state.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from mmvae_jax.errors import UsageError

LABEL = "label"


class Split(NamedTuple):
    """The examples of one split; row i of every field is example i.

    Attributes:
      modalities: name -> uint8 [N, H, W, C], values 0..255; in order.
      labels: int32 [N].
    """

    modalities: dict[str, np.ndarray]
    labels: np.ndarray


class Dataset(NamedTuple):
    """A prepared data set.

    Attributes:
      train: Split.
      test: Split.
      fingerprint: sha256 of all images and labels, in hexadecimal.
      name: of the data set and its config.
    """

    train: Split
    test: Split
    fingerprint: str
    name: str


def load(directory):
    """Reads a prepared data set into host memory.

    Args:
      directory: folder that `experiments.prepare.prepare` returned.

    Returns:
      Dataset.

    Raises:
      UsageError: no finished data set there, or one that is damaged.
    """
    directory = Path(directory)
    again = (
        "prepare it with `python -m experiments.prepare --config=CONFIG`, CONFIG the "
        "file given to your run"
    )
    if not directory.exists():
        raise UsageError(f"no prepared data set in {directory}: {again}")
    try:
        for name in ("dataset_info.json", "features.json", "metadata.json"):
            if not (directory / name).is_file():
                raise FileNotFoundError(f"no {name}")
        builder = tfds.builder_from_directory(directory)
        metadata = builder.info.metadata
        counts = metadata["num_examples"]
        modalities = metadata["modalities"]
        splits = {s: _read(builder, s, modalities, counts[s]) for s in counts}
        return Dataset(
            train=splits["train"],
            test=splits["test"],
            fingerprint=metadata["fingerprint"],
            name=f"{builder.name}/{directory.parent.name}",
        )
    except Exception as error:  # Damage shows as many kinds of exception.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"the data set in {directory} is damaged ({reason}): delete the folder and "
            + again
        ) from error


def first_modalities(dataset, num):
    """A data set reduced to its first modalities, for what depends on their number.

    Args:
      dataset: Dataset.
      num: how many are kept; 0 for all of them.

    Returns:
      Dataset; the arrays are shared, the fingerprint is that of the whole, the
      name says how many there are.

    Raises:
      UsageError: the data set has fewer.
    """
    names = list(dataset.train.modalities)
    if not 0 <= num <= len(names):
        raise UsageError(
            f"config.data.use_modalities={num} must be in 0..{len(names)}, the number "
            "of modalities of the data (0: all)"
        )
    if num == 0:
        return dataset
    train, test = (
        split._replace(
            modalities={name: split.modalities[name] for name in names[:num]}
        )
        for split in (dataset.train, dataset.test)
    )
    name = f"{dataset.name}-first{num}"
    return dataset._replace(train=train, test=test, name=name)


def _read(builder, split, modalities, num_examples):
    """Joins the blocks of one split."""
    features = builder.info.features
    arrays = {
        name: np.empty((num_examples, *features[name].shape[1:]), np.uint8)
        for name in (*modalities, LABEL)
    }
    start = 0
    for block in builder.as_data_source(split):
        stop = start + len(block[LABEL])
        for name, array in arrays.items():
            array[start:stop] = block[name]
        start = stop
    if start != num_examples:
        raise ValueError(f"{split} holds {start} of {num_examples} examples")
    labels = arrays.pop(LABEL).astype(np.int32)
    return Split(modalities=arrays, labels=labels)


def batch_indices(seed, step, num_steps, num_examples, batch_size):
    """Which examples make up the batches of a range of steps.

    Every epoch is one permutation of all examples; what does not fill a last batch
    is left out of that epoch.

    Args:
      seed: int, at least 0.
      step: first step, at least 0, counted over all epochs.
      num_steps: how many steps.
      num_examples: size of the split.
      batch_size: examples a batch.

    Returns:
      int32 [num_steps, batch_size], equal for equal arguments.

    Raises:
      UsageError: the batch size is not in 1..num_examples.
    """
    if not 1 <= batch_size <= num_examples:
        raise UsageError(
            f"batch_size={batch_size} does not fit {num_examples} training examples: "
            f"set it to 1..{num_examples}"
        )
    steps_per_epoch = num_examples // batch_size
    indices = np.empty((num_steps, batch_size), np.int32)
    for row in range(num_steps):
        epoch, position = divmod(step + row, steps_per_epoch)
        order = _epoch_order(seed, epoch, num_examples)
        indices[row] = order[position * batch_size :][:batch_size]
    return indices


@functools.lru_cache(maxsize=2)
def _epoch_order(seed, epoch, num_examples):
    """The permutation of one epoch, int32 [num_examples], read-only."""
    stream = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    order = np.random.Generator(stream).permutation(num_examples).astype(np.int32)
    order.flags.writeable = False
    return order


def to_float(images):
    """Scales bytes to [0, 1].

    For use inside a compiled step, after the batch has been gathered: the whole
    training split would grow fourfold as floats.

    Args:
      images: uint8 [...], values 0..255.

    Returns:
      float32 [...], values in [0, 1].
    """
    return images.astype(jnp.float32) / 255


def put_on_device(split):
    """Copies a split, still in bytes, to the default device: Split of jax.Array."""
    return jax.device_put(split)
