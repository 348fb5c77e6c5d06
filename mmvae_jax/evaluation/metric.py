"""The types of a metric: its function, its needs, its columns, and its data.

The function is ``compute(model, params, data, key, **options) -> dict`` of tags
(without the ``eval/`` prefix) and Python floats; ``METRICS`` in this package lists all
metrics. `model` has compiled functions for one sweep member. Parameters that are not
finite are not an error: metrics return NaN. Values that the data do not define are
`Undefined`, a NaN with a reason.

The ``require_*`` functions say in one line what the data lack. They are called before
training (mmvae_jax.evaluation.needs) and by the metrics, which also work without a run.
"""

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mmvae_jax.data.dataset import LABEL, Shown, Split, is_image, is_tokens, shows
from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.files import write_whole
from mmvae_jax.types import AnyArray, Array

HIGHER, LOWER = "higher", "lower"  # which values are better
_ARROWS = {HIGHER: " ↑", LOWER: " ↓", "": ""}


class Undefined(float):
    """NaN for a value that cannot be computed, with a reason.

    Attributes:
      reason: one line.
    """

    reason: str

    def __new__(cls, reason: str) -> "Undefined":
        """A NaN with its reason."""
        value = super().__new__(cls, "nan")
        value.reason = reason
        return value


class Failed(Undefined):
    """NaN for a value whose metric raised an unexpected error, the reason."""


class Column(NamedTuple):
    """How tables, reports and figures show a value of a metric.

    Attributes:
      tag: tag of the metric, without ``eval/``. A tag with "*" is a separate table with
        one column for each tag that has a name in its place: a modality or condition
        (also "a/b") at the end, or a single part of the tag elsewhere.
      heading: heading of the column, or title of that table.
      better: HIGHER, LOWER, or "" if neither is better.
      unit: unit of the values; "" for fractions and values without unit.
      limits: limits of an axis; None: those of the values.
      chance: value of random guessing; None if it depends on the data.
      reachable: tag with "/*" whose mean is the value of real data; "" if there is
        none.
      short: heading on a terminal; "": `heading`.
      long: name on the axis of a figure; "": `heading`.
    """

    tag: str
    heading: str
    better: str = ""
    unit: str = ""
    limits: tuple[float, float] | None = None
    chance: float | None = None
    reachable: str = ""
    short: str = ""
    long: str = ""


class Metric(NamedTuple):
    """A row of the table of metrics.

    Attributes:
      compute: the function, see above.
      needs: keys of `mmvae_jax.evaluation.needs.NEEDS`, each checked before training.
      columns: the main values to show.
      options: argument of `compute` -> field of config.eval with its value.
      citations: keys of its sources in references.bib.
      unconditional: regular expression of the tags that depend on unconditional
        examples and so on their sampler; "": none. For a model with a fitted sampler, a
        metric may return only these tags.
    """

    compute: Callable[..., dict[str, float]]
    needs: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    options: Mapping[str, str] = MappingProxyType({})
    citations: tuple[str, ...] = ()
    unconditional: str = ""

    def is_unconditional(self, tag: str) -> bool:
        """Whether the value of a tag depends on unconditional examples."""
        return re.fullmatch(self.unconditional, tag) is not None


class Reader(NamedTuple):
    """A judge that reads the value of an attribute (or the label) from an example.

    Readers of captions parse the words; others are classifiers, trained on the real
    training examples.

    Attributes:
      apply: examples [B, ...], images in [0, 1] -> (features [B, F], outputs
        [B, ...]); the outputs of classifiers are logits [B, num_values]. Dropout must
        be off; the published evaluation code left it on, which lowers its results.
      accuracy: fraction in [0, 1] of real test examples that it reads correctly.
      read: outputs, on the host -> [B], indices of values; -1 if an example shows none,
        NaN if the outputs are not finite. None: `most_probable`.
    """

    apply: Callable[[AnyArray], tuple[AnyArray, AnyArray]]
    accuracy: float
    read: Callable[[np.ndarray], np.ndarray] | None = None


class Matchers(NamedTuple):
    """Networks that estimate how well examples of two modalities match.

    The score of x and y is the inner product of their features times the scale of the
    pair: up to a constant, log p(x, y) / (p(x) p(y)) in nats. Training uses no labels.

    Attributes:
      embed: modality -> function of examples [B, ...], images in [0, 1], to
        features [B, F] of length one. Dropout must be off.
      scale: (modality, modality) -> scale >= 0 of that pair, for both orders.
    """

    embed: Mapping[str, Callable[[AnyArray], Array]]
    scale: Mapping[tuple[str, str], float]


class EvaluationData(NamedTuple):
    """The examples and networks for metrics.

    Attributes:
      train: the training split.
      test: the test split.
      classifiers: modality -> Reader of the label; None if no metric needs them.
      batch_size: B of every call to a function of the model.
      matchers: for all pairs of modalities; None if no metric needs them.
      readers: attribute -> modality -> Reader; None if no metric needs them.
      words: modality of tokens -> its vocabulary, one word per token.
      whole_test: the whole test split, if `test` is a part of it; else None.
      second_classifiers: other `classifiers`; None if no metric needs them.
      shown: attribute -> the modalities that show it, as in `Dataset`.
      draws: `draws.Draws` of the member for all its metrics; None: each metric makes
        its own.
    """

    train: Split
    test: Split
    classifiers: Mapping[str, Reader] | None
    batch_size: int
    matchers: Matchers | None = None
    readers: Mapping[str, Mapping[str, Reader]] | None = None
    words: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    whole_test: Split | None = None
    second_classifiers: Mapping[str, Reader] | None = None
    shown: Shown = MappingProxyType({})
    draws: Any = None

    def share(self, *modalities: str) -> bool:
        """Whether all modalities show a common attribute, or this is unknown."""
        names = (*self.test.attributes, LABEL)
        return not self.shown or any(
            len(self.showing(name, modalities)) == len(modalities) for name in names
        )

    def showing(self, attribute: str, modalities: Iterable[str]) -> tuple[str, ...]:
        """The modalities that show an attribute or the label (LABEL)."""
        return tuple(m for m in modalities if shows(self.shown, m, attribute))


def mean(values: Iterable[float]) -> float:
    """Mean of values; the first Undefined value if there is one."""
    values = list(values)
    undefined = [value for value in values if isinstance(value, Undefined)]
    return undefined[0] if undefined else float(np.mean(values))


def reasons(values: Mapping[str, float]) -> dict[str, str]:
    """Tag -> reason, for values that are Undefined."""
    return {t: x.reason for t, x in values.items() if isinstance(x, Undefined)}


def too_few_observed(split: Split, modality: str, least: int = 1) -> Undefined | None:
    """Undefined if fewer than `least` examples have a modality, else None."""
    num = int(split.is_observed(modality).sum())
    if num >= least:
        return None
    found = "no test example has" if num == 0 else f"only {num} test example has"
    return Undefined(
        f"{found} {modality}" + (f", {least} are needed" if least > 1 else "")
    )


def titled(column: Column) -> str:
    """The heading with an arrow towards better values."""
    return column.heading + _ARROWS[column.better]


def sampled(tag: str, sampler: str) -> str:
    """The tag of a value of unconditional examples from a fitted sampler."""
    return f"{sampler}/{tag}"


def axis_label(column: Column) -> str:
    """Name on an axis, with unit and direction unless it has limits or chance."""
    name = column.long or column.heading
    if column.limits is not None or column.chance is not None:
        return name
    words = [column.unit, f"{column.better} is better" if column.better else ""]
    return f"{name} ({', '.join(filter(None, words))})" if any(words) else name


def most_probable(logits: np.ndarray) -> np.ndarray:
    """Most probable values, float [B]; NaN if a logit is not finite.

    The argmax over NaN is 0, which would hide that a model has diverged.

    Args:
      logits: float [B, num_values].
    """
    finite = np.isfinite(logits).all(axis=-1)
    return np.where(finite, logits.argmax(axis=-1), np.nan)


def is_writable(folder: Path) -> bool:
    """Whether files can be written in a folder, which may not exist yet.

    The check creates nothing.
    """
    # A broken link prevents the folder, as a file does.
    places = (folder, *folder.absolute().parents)
    try:
        place = next(path for path in places if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def keep(path: Path, content: bytes) -> None:
    """Writes a cache file for later runs; warns if that fails.

    A full disk must not stop a run after its training.

    Args:
      path: path of the file; its folder is created.
      content: several threads or processes may write the same content.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content, is_shared=True)
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written ({error.strerror or error}): it is not kept, "
            "and is made again when it is needed",
            stacklevel=2,
        )


def images_of(split: Split, metric: str) -> tuple[str, ...]:
    """The modalities of a split that are images.

    Raises:
      UsageError: no modality is.
    """
    names = tuple(m for m, x in split.modalities.items() if is_image(x))
    if not names:
        raise ArgumentError(
            "metric {!r} needs images, and no modality is one: leave it out of "
            "{metrics}",
            metric,
        )
    return names


def values_of(split: Split, metric: str) -> tuple[str, ...]:
    """The modalities of a split that are images or vectors.

    Raises:
      UsageError: no modality is.
    """
    names = tuple(m for m, x in split.modalities.items() if not is_tokens(x))
    if not names:
        raise ArgumentError(
            "metric {!r} needs images or vectors, and no modality is one: leave it "
            "out of {metrics}",
            metric,
        )
    return names


def inception_images_of(split: Split, metric: str) -> tuple[str, ...]:
    """The modalities of a split that are images, all of 1 or 3 channels.

    Raises:
      UsageError: no modality is, or an image has another number of channels.
    """
    names = images_of(split, metric)
    for name in names:
        shape = split.modalities[name].shape[1:]
        if len(shape) != 3 or shape[-1] not in (1, 3):
            raise ArgumentError(
                "metric {!r} needs images of 1 or 3 channels, {} has the shape {}: "
                "leave it out of {metrics}",
                metric,
                name,
                shape,
            )
    return names


def captions_of(
    split: Split, words: Mapping[str, Sequence[str]], metric: str
) -> tuple[str, ...]:
    """The modalities of a split that are captions: several tokens with known words.

    Raises:
      UsageError: no modality is.
    """
    names = tuple(
        m
        for m, x in split.modalities.items()
        if is_tokens(x) and m in words and x.shape[1] > 1
    )
    if not names:
        raise ArgumentError(
            "metric {!r} needs captions, and no modality has them: leave it out of "
            "{metrics}",
            metric,
        )
    return names


def require_labels(split: Split, metric: str) -> np.ndarray:
    """The labels of a split.

    Raises:
      UsageError: there are none.
    """
    if split.labels is None:
        raise ArgumentError(
            "metric {!r} needs labels, and the data have none: leave it out of "
            "{metrics}",
            metric,
        )
    return split.labels


def require_attributes(split: Split, metric: str) -> tuple[str, ...]:
    """The names of the attributes of a split.

    Raises:
      UsageError: there are none.
    """
    if not split.attributes:
        raise ArgumentError(
            "metric {!r} needs attributes, and the data have none: leave it out of "
            "{metrics}",
            metric,
        )
    return tuple(split.attributes)


def require_open(
    split: Split, shown: Shown, metric: str
) -> list[tuple[str, tuple[str, ...]]]:
    """The attributes that some modalities of a split do not determine.

    Args:
      split: the examples.
      shown: as `Dataset.shown`.
      metric: name of the metric that needs them.

    Returns:
      (attribute, condition) for attributes that at least two modalities show. A
      condition is one modality that does not show the attribute, or all of these.

    Raises:
      UsageError: there is no such attribute.
    """
    found = []
    for a in require_attributes(split, metric):
        hidden = tuple(m for m in split.modalities if not shows(shown, m, a))
        if hidden and len(split.modalities) - len(hidden) > 1:
            conditions = dict.fromkeys([*((m,) for m in hidden), hidden])
            found += [(a, condition) for condition in conditions]
    if not found:
        raise ArgumentError(
            "metric {!r} needs an attribute that two modalities show and another does "
            "not, and there is none in these data ({}): leave it out of {metrics}",
            metric,
            "; ".join(
                f"{a}: shown by {_all_of(a, split, shown)}" for a in split.attributes
            ),
        )
    return found


def _all_of(attribute: str, split: Split, shown: Shown) -> str:
    """The modalities that show an attribute, as text."""
    names = [m for m in split.modalities if shows(shown, m, attribute)]
    return "all" if len(names) == len(split.modalities) else ", ".join(names) or "none"


def require_complete(test: Split, metric: str, least: int = 2) -> Split:
    """The test examples with all modalities.

    Raises:
      UsageError: there are fewer than `least`.
    """
    complete = test.complete()
    if complete.num_examples < least:
        raise ArgumentError(
            "metric {!r} needs test examples with all modalities, at least {}, got {}: "
            "leave it out of {metrics}",
            metric,
            least,
            complete.num_examples,
        )
    return complete


def require_classifiers(
    data: EvaluationData, modalities: Sequence[str], metric: str
) -> Mapping[str, Reader]:
    """The classifiers of `data`.

    Raises:
      UsageError: one is missing.
    """
    classifiers = data.classifiers or {}
    missing = [name for name in modalities if name not in classifiers]
    if missing:
        raise UsageError(
            f"metric {metric!r} needs a classifier for every modality, none for "
            f"{', '.join(missing)}: train them, or leave the metric out"
        )
    return classifiers


def require_matchers(
    data: EvaluationData, modalities: Sequence[str], metric: str
) -> Matchers:
    """The matchers of `data`.

    Raises:
      UsageError: a matcher is missing.
    """
    matchers = data.matchers or Matchers({}, {})
    missing = [name for name in modalities if name not in matchers.embed]
    if missing:
        raise UsageError(
            f"metric {metric!r} needs a matching network for every modality, none for "
            f"{', '.join(missing)}: train them, or leave the metric out"
        )
    return matchers


def require_readers(
    data: EvaluationData, modalities: Sequence[str], metric: str
) -> Mapping[str, Mapping[str, Reader]]:
    """The readers of `data`.

    Raises:
      UsageError: there is no attribute, or a reader is missing.
    """
    attributes = require_attributes(data.test, metric)
    readers = data.readers or {}
    missing = [
        f"{attribute} of {m}"
        for m in modalities
        for attribute in attributes
        if shows(data.shown, m, attribute) and m not in readers.get(attribute, {})
    ]
    if missing:
        raise UsageError(
            f"metric {metric!r} needs a reader for every attribute of a modality, "
            f"none for {', '.join(missing)}: train them, or leave the metric out"
        )
    return readers
