"""Checks of a whole data set before training: errors and notes.

They find values outside of a likelihood's support, modalities that are never observed,
and splits that do not match.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from mmvae_jax.data.dataset import (
    LABEL,
    Dataset,
    Split,
    is_image,
    is_tokens,
    shows,
    to_unit_interval,
)
from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.tokens import SPECIALS
from mmvae_jax.types import Support

_BYTES = np.arange(256, dtype=np.uint8)
_NUM_AT_ONCE = 1 << 24  # values to check at a time
_NUM_SHOWN = 5
_LABELS, _ATTRIBUTE = "labels", "attribute "  # in messages
_LEAST_SIDE = 8  # of what may be an image, in pixels


def require_support(dataset: Dataset, modality: str, support: Support) -> None:
    """Requires examples of a modality in the support of its likelihood.

    Args:
      dataset: the observed values of both splits are checked.
      modality: name of the modality.
      support: support of the likelihood, from `MultimodalVAE.supports`.

    Raises:
      ArgumentError: a value is outside; the message names {likelihood}.
    """
    for name, split in _splits(dataset):
        x = split.modalities[modality]
        if is_image(x) and support.holds(to_unit_interval(_BYTES)).all():
            continue
        for part in _parts(x, split.is_observed(modality)):
            values = to_unit_interval(part)
            inside = np.asarray(support.holds(values))
            if not inside.all():
                raise ArgumentError(
                    "{likelihood} is one of {}, and {} examples of {} hold {:.4g}{}: "
                    "choose another, or change the data",
                    support.words,
                    name,
                    modality,
                    values[~inside][0],
                    ", bytes divided by 255" if is_image(x) else "",
                )


def require_specials(dataset: Dataset, modality: str) -> None:
    """Requires a vocabulary in which token 2 is the end of a text.

    Raises:
      UsageError: the words of the modality do not begin with `tokens.SPECIALS`.
    """
    if dataset.words[modality][: len(SPECIALS)] != SPECIALS:
        raise UsageError(
            "network 'transformer' and count_padding=False take token 2 for the end of "
            f"a text, and the words of {modality} do not begin with "
            f"{', '.join(SPECIALS)}: number them so, or choose network 'text_conv' or "
            "'mlp', and count_padding=True"
        )


def require_observed(dataset: Dataset) -> None:
    """Requires each modality in some training example.

    Raises:
      UsageError: a modality is never observed.
    """
    for modality in dataset.train.modalities:
        if not dataset.train.is_observed(modality).any():
            raise UsageError(
                f"no training example of {dataset.name} has {modality}: leave it out "
                "of the data, or add some that have it"
            )


def require_seen(
    dataset: Dataset, kind: str, metric: str, modalities: Collection[str] = ()
) -> None:
    """Requires all classes of the test examples in the training examples.

    Args:
      dataset: the real data.
      kind: "labels", or "attributes" for all attributes.
      metric: name of the metric that needs them.
      modalities: those whose classes judges read. A judge learns from the training
        examples that have its modality, and reads what is generated for any test
        example, so that each modality that shows the classes must be seen with all.

    Raises:
      ArgumentError: a class is missing, or only one split has classes; the message
        names {metrics}.
    """
    classes = [_classes(split, kind) for _, split in _splits(dataset)]
    for name in sorted(set(classes[0]) ^ set(classes[1])):
        raise ArgumentError(
            "metric {!r} needs {} of training and test examples, and only {} examples "
            "have them: add the others, or leave it out of {metrics}",
            metric,
            name,
            "training" if name in classes[0] else "test",
        )
    for name, own in classes[1].items():
        seen = {"": classes[0][name]}  # which training examples -> their classes
        for m in modalities:
            if _is_judged(dataset, m, name):
                seen[f" with {m}"] = classes[0][name][dataset.train.is_observed(m)]
        for where, known in seen.items():
            unseen = np.setdiff1d(own, known)
            if len(unseen):
                raise ArgumentError(
                    "metric {!r} needs {}, and test examples have {} of them that no "
                    "training example{} has ({}): add training examples of these, or "
                    "leave it out of {metrics}",
                    metric,
                    name,
                    len(unseen),
                    where,
                    _listed(unseen),
                )


def notes(dataset: Dataset) -> list[str]:
    """Notes on unusual but valid properties of a data set, one line each."""
    (_, train), (_, test) = _splits(dataset)
    found = []
    for name, x in train.modalities.items():
        rows = train.is_observed(name)
        if not test.is_observed(name).any():
            found.append(f"no test example has {name}: what is measured of it is nan")
        if rows.sum() > 1 and _is_constant(x, rows):
            found.append(f"all training examples of {name} are alike")
        if is_tokens(x):
            unseen = np.setdiff1d(_used(test, name), _used(train, name))
            if len(unseen):
                words = [dataset.words[name][token] for token in unseen]
                found.append(
                    f"test examples of {name} have {len(unseen)} words that no "
                    f"training example has ({_listed(words)})"
                )
        if is_image(x):
            found += _note_on_images(name, x)
        else:
            own = dataset.words.get(name, ())
            found += _note_on_values(name, x, len(train.modalities) - 1, own)
    apart = [
        f"{a} and {b}"
        for a, b in itertools.combinations(train.modalities, 2)
        if _have_both(test, a, b) and not _have_both(train, a, b)
    ]
    if apart:
        found.append(
            "no training example has both modalities of a pair that test examples have "
            f"together: {_listed(apart)}"
        )
    for kind in (_LABELS, "attributes"):
        classes = [set(_classes(split, kind)) for split in (train, test)]
        for name in sorted(classes[0] ^ classes[1]):
            which = "training" if name in classes[0] else "test"
            found.append(f"only {which} examples have {name}")
    return found


def _note_on_images(name: str, x: np.ndarray) -> list[str]:
    """A note if images of 2 or 4 channels look transposed; `arrays` refuses 1 and 3."""
    _, height, width, num_channels = x.shape
    if height in (2, 4) and min(width, num_channels) >= _LEAST_SIDE:
        return [
            f"{name} looks like images [N, C, H, W], and is taken for images of "
            f"{height} x {width} pixels and {num_channels} channels: images are "
            "[N, H, W, C], np.moveaxis(x, 1, -1)"
        ]
    return []


def _note_on_values(
    name: str, x: np.ndarray, num_others: int, words: Sequence[str]
) -> list[str]:
    """Notes if vectors or tokens look like another kind of data."""
    few = x[:1000]
    # Users who name the words of a 0 and a 1 mean tokens.
    is_named = any(word != str(token) for token, word in enumerate(words))
    is_bits = x.shape[1:] == (num_others,) and np.isin(few, (0, 1)).all()
    if is_bits and not is_named:
        return [
            f"{name} holds a 0 or 1 for each other modality, and is trained on as a "
            "modality: what is observed is said by a bool array 'observed'"
        ]
    # The sides of images: of one channel, with channels last, or with channels first.
    sides = [x.shape[1:]] if x.ndim == 3 else []
    if x.ndim == 4:
        sides += [x.shape[1:3]] if x.shape[-1] in (1, 3, 4) else []
        sides += [x.shape[2:]] if x.shape[1] in (1, 3, 4) else []
    is_shaped = any(min(own) >= _LEAST_SIDE for own in sides)
    if is_shaped and few.min() >= 0 and few.max() <= 255:
        return [
            f"{name} looks like images given as floats, and is taken for vectors of "
            f"shape {x.shape[1:]}: images are uint8 [N, H, W, C], 0 to 255"
        ]
    return []


def _splits(dataset: Dataset) -> tuple[tuple[str, Split], tuple[str, Split]]:
    """Both splits with their names for messages."""
    return ("training", dataset.train), ("test", dataset.test)


def _parts(x: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the examples in the mask `rows`, some at a time."""
    num = max(1, _NUM_AT_ONCE // max(1, x[0].size))
    for start in range(0, len(x), num):
        part = slice(start, start + num)
        yield x[part] if rows[part].all() else x[part][rows[part]]


def _is_constant(x: np.ndarray, rows: np.ndarray) -> bool:
    """Whether all examples in the mask `rows` are equal."""
    first = x[np.argmax(rows)]
    return all((part == first).all() for part in _parts(x, rows))


def _used(split: Split, modality: str) -> np.ndarray:
    """The tokens that occur in observed examples of a modality."""
    return np.unique(split.modalities[modality][split.is_observed(modality)])


def _have_both(split: Split, first: str, second: str) -> bool:
    """Whether some example has both modalities."""
    return bool((split.is_observed(first) & split.is_observed(second)).any())


def _classes(split: Split, kind: str) -> dict[str, np.ndarray]:
    """Name for messages -> classes of the examples, [N]; may be empty."""
    if kind == _LABELS:
        return {} if split.labels is None else {kind: split.labels}
    return {f"{_ATTRIBUTE}{name}": x for name, x in split.attributes.items()}


def _is_judged(dataset: Dataset, modality: str, name: str) -> bool:
    """Whether a classifier of a modality learns the classes of a name of `_classes`."""
    own = LABEL if name == _LABELS else name.removeprefix(_ATTRIBUTE)
    is_parsed = own in dataset.meanings.get(modality, {})  # by its words
    return shows(dataset.shown, modality, own) and not is_parsed


def _listed(items: Iterable[object]) -> str:
    """The first few items as text."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:_NUM_SHOWN]) + (", ..." if len(texts) > _NUM_SHOWN else "")
