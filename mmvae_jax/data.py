"""Prepared data in memory, and the order in which training sees them.

A modality is of one of three kinds, told by its type: images are uint8, vectors (of any
shape) float32, sequences of tokens int32.

A prepared data set is a TFDS folder in the array_record format whose records are
blocks of examples: one feature [n, ...] a modality, `label` and `attribute/NAME` [n]
where there are any; its metadata hold `modalities` (names in order), `num_examples`
(split -> int) and `fingerprint`, and where there are tokens or attributes `words`,
`attributes` and `meanings` (as `Dataset` has them).

Batches are a pure function of seed and step, so a resumed run needs no iterator state.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from mmvae_jax.errors import UsageError
from mmvae_jax.types import OBSERVED, Array, TokenShape

MAX_JSON_BYTES = 64 << 20  # size of each file that describes prepared data
LABEL = "label"
ATTRIBUTE = "attribute/"  # and its name
_FEATURES = {
    "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "tensorflow_datasets.core.features.tensor_feature.Tensor",
}


class Split(NamedTuple):
    """The examples of one split; row i of every field is example i.

    Attributes:
      modalities: name -> images uint8 [N, H, W, C] of values 0..255, vectors float32
        [N, ...], or tokens int32 [N, T]; in order.
      labels: int32 [N], or None.
      observed: bool [N, M], at least one True a row; None: nothing is missing.
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
        """The examples that have a modality, as a mask bool [N]."""
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
        """The examples that have all modalities."""
        if self.observed is None:
            return self
        return self.take(np.flatnonzero(self.observed.all(axis=1)))._replace(
            observed=None
        )

    def leaves(self) -> dict[str, np.ndarray]:
        """Arrays that batches are gathered from: modalities, and `observed` if any."""
        observed = {} if self.observed is None else {OBSERVED: self.observed}
        return dict(self.modalities) | observed


class Dataset(NamedTuple):
    """A prepared data set.

    Attributes:
      train: Split.
      test: Split.
      fingerprint: sha256 of all examples, in hexadecimal.
      name: name of the data set and its options.
      words: modality of tokens -> its vocabulary, the word of every token.
      attributes: name -> the names of its values.
      meanings: modality of tokens -> attribute -> word -> the value that it names.
    """

    train: Split
    test: Split
    fingerprint: str
    name: str
    words: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    attributes: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    meanings: Mapping[str, Mapping[str, Mapping[str, str]]] = MappingProxyType({})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modality -> shape of one example; a TokenShape where it is tokens."""
        return {
            m: TokenShape(x.shape[1], len(self.words[m]))
            if is_tokens(x)
            else x.shape[1:]
            for m, x in self.train.modalities.items()
        }


def is_image(x: Array | np.ndarray) -> bool:
    """Whether examples [N, ...] are images."""
    return x.dtype == np.uint8


def is_tokens(x: Array | np.ndarray) -> bool:
    """Whether examples [N, ...] are sequences of tokens."""
    return np.issubdtype(x.dtype, np.integer) and not is_image(x)


def load(directory: str | Path) -> Dataset:
    """Reads a prepared data set into host memory.

    Args:
      directory: folder that `experiments.datasets.prepare` returned.

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
        _check_description(directory)
        builder = tfds.builder_from_directory(directory)
        metadata = builder.info.metadata
        counts = metadata["num_examples"]
        modalities = metadata["modalities"]
        splits = {s: _read(builder, s, modalities, counts[s]) for s in counts}
        dataset = Dataset(
            train=splits["train"],
            test=splits["test"],
            fingerprint=metadata["fingerprint"],
            name=f"{builder.name}/{directory.parent.name}",
            words={m: tuple(own) for m, own in metadata.get("words", {}).items()},
            attributes={
                name: tuple(own) for name, own in metadata.get("attributes", {}).items()
            },
            meanings=dict(metadata.get("meanings", {})),
        )
        _check_values(dataset)
        return dataset
    except Exception as error:  # Damage shows as many kinds of exception.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"the data set in {directory} is damaged ({reason[:200]}): delete the "
            "folder and " + again
        ) from error


def _check_description(directory: Path) -> None:
    """Refuses descriptions that TFDS would import modules or fill memory for.

    A description names the classes of its features, and TFDS imports the modules of
    those that it does not know.
    """
    for name in ("dataset_info.json", "features.json", "metadata.json"):
        size = (directory / name).stat().st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"{name} has {size} bytes, {MAX_JSON_BYTES} is the limit")
    left = [json.loads((directory / "features.json").read_text())]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += item.values()
            for field in ("pythonClassName", "python_class_name", "type"):
                if isinstance(item.get(field), str) and item[field] not in _FEATURES:
                    raise ValueError(f"features.json names {item[field]}")
        elif isinstance(item, list):
            left += item


def _check_values(dataset: Dataset) -> None:
    """Raises ValueError where a data set is not what its documentation says."""
    if not isinstance(dataset.fingerprint, str):
        raise ValueError("its fingerprint is no text")
    for split in (dataset.train, dataset.test):
        for name, x in split.modalities.items():
            if x.dtype not in (np.uint8, np.float32, np.int32) or 0 in x.shape:
                raise ValueError(f"{name} is {x.dtype} {x.shape}")
            if is_tokens(x) and not 0 <= x.min() <= x.max() < len(dataset.words[name]):
                raise ValueError(f"{name} has tokens without a word")
        labels = {} if split.labels is None else {LABEL: split.labels}
        for name, x in {**labels, **split.attributes}.items():
            if x.min() < 0:
                raise ValueError(f"{name} is {x.min()}")
    listed = [*dataset.words.values(), *dataset.attributes.values()]
    if not all(isinstance(word, str) for words in listed for word in words):
        raise ValueError("its words are no texts")


def first_modalities(dataset: Dataset, num: int) -> Dataset:
    """A data set reduced to its first modalities, to study the effect of their number.

    Args:
      dataset: Dataset.
      num: number of modalities that are kept; 0 for all of them.

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
            modalities={name: split.modalities[name] for name in names[:num]},
            observed=None if split.observed is None else split.observed[:, :num],
        )
        for split in (dataset.train, dataset.test)
    )
    for split in (train, test):
        if split.observed is not None and not split.observed.any(axis=1).all():
            raise UsageError(
                f"config.data.use_modalities={num}: some examples have none of the "
                f"first {num} modalities"
            )
    name = f"{dataset.name}-first{num}"
    return dataset._replace(train=train, test=test, name=name)


def with_missing(
    dataset: Dataset, fraction: float, test_fraction: float, seed: int
) -> Dataset:
    """A data set in which modalities are missing at random.

    Every modality of every example is missing with the same probability,
    independently, but one of each example, drawn at random, is always there. Missing
    modalities are overwritten with zeros.

    Args:
      dataset: Dataset, complete.
      fraction: probability in [0, 1), in training.
      test_fraction: likewise of the test split.
      seed: int, at least 0.

    Returns:
      Dataset; a split of fraction 0 is left as it is.

    Raises:
      UsageError: a fraction is out of range, or data are missing already.
    """
    for name, value in (("missing", fraction), ("missing_test", test_fraction)):
        if not 0 <= value < 1:
            raise UsageError(f"config.data.{name} must be in [0, 1), got {value}")
    if fraction == test_fraction == 0:
        return dataset
    for split in (dataset.train, dataset.test):
        if split.observed is not None:
            raise UsageError(
                "config.data.missing and .missing_test are for complete data; "
                f"modalities of {dataset.name} are missing already"
            )
    return dataset._replace(
        train=_without_some(dataset.train, fraction, (seed, 0)),
        test=_without_some(dataset.test, test_fraction, (seed, 1)),
        name=f"{dataset.name}-missing{fraction:g},{test_fraction:g}",
    )


def _without_some(split: Split, fraction: float, seed: Sequence[int]) -> Split:
    """A split in which modalities are missing with this probability."""
    if fraction == 0:
        return split
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    shape = (split.num_examples, len(split.modalities))
    observed = rng.random(shape) >= fraction
    observed[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = True
    modalities = {}
    for column, (name, x) in zip(observed.T, split.modalities.items(), strict=True):
        modalities[name] = x.copy()
        modalities[name][~column] = 0
    return split._replace(modalities=modalities, observed=observed)


def _read(
    builder: Any, split: str, modalities: Sequence[str], num_examples: int
) -> Split:
    """One split, its blocks joined."""
    features = builder.info.features
    known = sorted(name for name in features if name.startswith(ATTRIBUTE))
    names = [*modalities, *known, *([LABEL] if LABEL in features else [])]
    arrays = {
        name: np.empty(
            (num_examples, *features[name].shape[1:]), features[name].np_dtype
        )
        for name in names
    }
    start = 0
    for block in builder.as_data_source(split):
        stop = start + len(block[modalities[0]])
        for name, array in arrays.items():
            array[start:stop] = block[name]
        start = stop
    if start != num_examples:
        raise ValueError(f"{split} holds {start} of {num_examples} examples")
    labels = arrays.pop(LABEL).astype(np.int32) if LABEL in arrays else None
    attributes = {name.removeprefix(ATTRIBUTE): arrays.pop(name) for name in known}
    return Split(arrays, labels, attributes=attributes)


def batch_indices(
    seed: int, step: int, num_steps: int, num_examples: int, batch_size: int
) -> np.ndarray:
    """Rows of the examples that make up the batches of a range of steps.

    Every epoch is one permutation of all examples; those that do not fill a last batch
    are left out of that epoch.

    Args:
      seed: int, at least 0.
      step: first step, at least 0, counted over all epochs.
      num_steps: number of steps.
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
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The permutation of one epoch, int32 [num_examples], read-only."""
    stream = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    order = np.random.Generator(stream).permutation(num_examples).astype(np.int32)
    order.flags.writeable = False
    return order


def scaled(x: Array) -> Array:
    """Images from bytes to [0, 1]; everything else as it is.

    For use inside a compiled step, after the batch has been gathered: the whole
    training split would grow fourfold as floats.

    Args:
      x: uint8 [...], values 0..255; or anything else.

    Returns:
      float32 [...], values in [0, 1]; or what was given.
    """
    return x.astype(jnp.float32) / 255 if is_image(x) else x
