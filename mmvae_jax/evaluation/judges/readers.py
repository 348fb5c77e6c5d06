"""Readers of attributes, for the modalities that show them.

If words name the values of an attribute, captions are parsed. For other modalities, a
classifier per attribute is trained on real examples, as for the labels.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mmvae_jax import tokens
from mmvae_jax.data.dataset import Dataset, Split, shows
from mmvae_jax.evaluation.judges import classifiers
from mmvae_jax.evaluation.metric import Reader, require_attributes
from mmvae_jax.training import loop
from mmvae_jax.types import Array


def get_readers(
    config: Any,
    dataset: Dataset,
    directory: str,
    events: loop.Events = loop.Events(),  # noqa: B008 (a NamedTuple is immutable)
) -> dict[str, dict[str, Reader]] | None:
    """Readers of every attribute, for the modalities that show it.

    Args:
      config: with the section `classifier` of configs/base.py.
      dataset: the real data; its fingerprint and the attribute name a cached file.
      directory: folder of the classifiers.
      events: callbacks of the train loop.

    Returns:
      attribute -> modality -> Reader, with its accuracy on the whole test split; None
      if `events.is_stopping` ended the training.

    Raises:
      UsageError: the data have no attributes, or the network is unknown.
    """
    check(config, dataset)
    readers = {}
    for attribute in dataset.train.attributes:
        parsed = _parsed(dataset, attribute)
        own = {m: make_parser(dataset, m, attribute) for m in parsed}
        labelled = label_by(dataset, attribute)
        if labelled.train.modalities:
            found = classifiers.get_classifiers(config, labelled, directory, events)
            if found is None:
                return None
            own |= found
        readers[attribute] = own
    return readers


def check(config: Any, dataset: Dataset, metric: str = "attributes") -> None:
    """Checks that readers can be built and trained.

    Raises:
      UsageError: the data have no attributes, or the network is unknown.
    """
    for attribute in require_attributes(dataset.train, metric):
        classifiers.make_networks(config, label_by(dataset, attribute), metric)


def label_by(dataset: Dataset, attribute: str) -> Dataset:
    """The modalities to classify by an attribute, with the attribute as the label."""
    parsed = _parsed(dataset, attribute)
    kept = [
        m
        for m in dataset.train.modalities
        if m not in parsed and shows(dataset.shown, m, attribute)
    ]

    def changed(split: Split) -> Split:
        columns = [list(split.modalities).index(m) for m in kept]
        return split._replace(
            modalities={m: split.modalities[m] for m in kept},
            labels=split.attributes[attribute],
            observed=None if split.observed is None else split.observed[:, columns],
        )

    return dataset._replace(
        train=changed(dataset.train),
        test=changed(dataset.test),
        fingerprint=f"{dataset.fingerprint} {attribute}",
    )


def make_parser(dataset: Dataset, modality: str, attribute: str) -> Reader:
    """The reader of an attribute from the words of captions."""
    read = partial(
        parse,
        words=dataset.words[modality],
        meanings=dataset.meanings[modality][attribute],
        values=dataset.attributes[attribute],
    )
    rows = dataset.test.is_observed(modality)
    found = read(dataset.test.modalities[modality][rows])
    is_right = found == dataset.test.attributes[attribute][rows]
    accuracy = float(is_right.mean()) if len(is_right) else float("nan")
    return Reader(lambda rows: (rows, rows), accuracy, read)


def parse(
    captions: Array,
    words: Sequence[str],
    meanings: Mapping[str, str],
    values: Sequence[str],
) -> np.ndarray:
    """The values of one attribute in captions.

    Args:
      captions: tokens [B, T].
      words: the words by token.
      meanings: word -> the value that the word names.
      values: names of the values.

    Returns:
      int [B], indices of values; -1 if no word names a value, or words name several.
    """
    found = []
    for row in np.asarray(captions):
        text = tokens.decode(row, words)
        value = tokens.read_attributes(text.split(), {"": meanings})[""]
        found.append(-1 if value is None else values.index(value))
    return np.array(found, int)


def _parsed(dataset: Dataset, attribute: str) -> list[str]:
    """The modalities of tokens whose words name the values of an attribute."""
    return [
        m for m in dataset.train.modalities if attribute in dataset.meanings.get(m, {})
    ]
