"""Prepared data sets, read from their folder without TensorFlow.

A prepared data set is a TFDS folder in the array_record format. Its records are blocks
of examples, with one feature [n, ...] per modality and optionally `label` and
`attribute/NAME` [n]. Its metadata hold `modalities` (names in order), `num_examples`
(split -> int), `fingerprint`, and for tokens or attributes `words`, `attributes`,
`meanings` and `shown` (as in `Dataset`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmvae_jax.data.dataset import ATTRIBUTE, LABEL, Dataset, Split, is_tokens
from mmvae_jax.errors import UsageError, first_line

_MAX_JSON_BYTES = 64 << 20  # limit for each file that describes prepared data

_FEATURES = {
    "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "tensorflow_datasets.core.features.tensor_feature.Tensor",
}


def load(directory: str | Path) -> Dataset:
    """Reads a prepared data set into host memory.

    Args:
      directory: folder that `experiments.running.datasets.prepare` returned.

    Returns:
      Dataset.

    Raises:
      UsageError: the folder has no finished data set, or a damaged one.
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
            shown={name: tuple(own) for name, own in metadata.get("shown", {}).items()},
        )
        _check_values(dataset)
        return dataset
    except PermissionError as error:  # not damaged, so the user must not delete it
        raise UsageError(
            f"the data set in {directory} cannot be read ({error}): change its "
            "permissions"
        ) from error
    except Exception as error:  # Damage raises many types of exception.
        reason = first_line(error)
        raise UsageError(
            f"the data set in {directory} is damaged ({reason[:200]}): delete the "
            "folder and " + again
        ) from error


def _check_description(directory: Path) -> None:
    """Refuses descriptions for which TFDS would import modules or fill the memory.

    A description names the classes of its features; TFDS imports the modules of unknown
    classes.
    """
    for name in ("dataset_info.json", "features.json", "metadata.json"):
        size = (directory / name).stat().st_size
        if size > _MAX_JSON_BYTES:
            raise ValueError(f"{name} has {size} bytes, {_MAX_JSON_BYTES} is the limit")
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
    """Raises ValueError if a data set does not fit the documentation of `Dataset`."""
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


def _read(
    builder: Any, split: str, modalities: Sequence[str], num_examples: int
) -> Split:
    """Reads one split and concatenates its blocks."""
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
    labels = arrays.pop(LABEL) if LABEL in arrays else None
    if labels is not None:
        is_integer = np.issubdtype(labels.dtype, np.integer)
        if not is_integer or (labels > np.iinfo(np.int32).max).any():
            raise ValueError(f"{LABEL} of {split} is {labels.dtype}, not within int32")
        labels = labels.astype(np.int32)
    attributes = {name.removeprefix(ATTRIBUTE): arrays.pop(name) for name in known}
    return Split(arrays, labels, attributes=attributes)
