"""The description of a model's training data, and checks of new data against it.

Users' data are a mapping of the names of modalities to NumPy arrays: images uint8
[N, H, W, C] (or [N, H, W] with one channel), vectors of real numbers [N, ...], tokens
int [N, T], or captions as N strings. A modality without an array is missing in all
examples; OBSERVED, bool [N, M], says which others each example has.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmvae_jax import tokens
from mmvae_jax.data.dataset import Dataset, Split, is_image, is_tokens, kind_of
from mmvae_jax.errors import UsageError
from mmvae_jax.types import OBSERVED, AnyArray, TokenShape

IMAGES, VECTORS, TOKENS = "images", "vectors", "tokens"
_DTYPES = {IMAGES: np.uint8, VECTORS: np.float32, TOKENS: np.int32}
# Keys of arrays that are not modalities; models do not read them.
LABELS, WORDS = "labels", "_words"


class Modality(NamedTuple):
    """One modality of the data.

    Attributes:
      name: name in the model.
      kind: IMAGES (uint8), VECTORS (float32) or TOKENS (int32).
      shape: shape of one example; (T,) for tokens.
      words: the vocabulary, one word per token.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    words: tuple[str, ...] = ()


class Description(NamedTuple):
    """A description of a model's training data.

    Attributes:
      name: name of the data set.
      modalities: modalities in the order of the model.
      num_classes: number of classes of the labels; 0 without labels.
      fingerprint: sha256 of the examples, or "" if it was not computed.
    """

    name: str
    modalities: tuple[Modality, ...]
    num_classes: int = 0
    fingerprint: str = ""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modality -> shape of one example; a TokenShape for tokens."""
        return {
            m.name: TokenShape(m.shape[0], len(m.words)) if m.words else m.shape
            for m in self.modalities
        }


def describe(dataset: Dataset) -> Description:
    """The description of a data set."""
    train = dataset.train
    return Description(
        dataset.name,
        tuple(
            Modality(
                name,
                kind_of(x),
                tuple(x.shape[1:]),
                tuple(dataset.words[name]) if is_tokens(x) else (),
            )
            for name, x in train.modalities.items()
        ),
        0 if train.labels is None else int(train.labels.max()) + 1,
        dataset.fingerprint,
    )


def to_json(description: Description) -> dict[str, Any]:
    """The content of description.json."""
    modalities = [m._asdict() for m in description.modalities]
    return description._asdict() | {"modalities": modalities}


def from_json(found: Any) -> Description:
    """The inverse of `to_json`.

    Raises:
      ValueError: the content is not a description.
    """
    try:
        modalities = tuple(
            Modality(
                str(m["name"]),
                str(m["kind"]),
                tuple(int(n) for n in m["shape"]),
                tuple(str(word) for word in m["words"]),
            )
            for m in found["modalities"]
        )
        if not modalities or any(m.kind not in _DTYPES for m in modalities):
            raise ValueError("no modality of a known kind")
        return Description(
            str(found["name"]),
            modalities,
            int(found["num_classes"]),
            str(found["fingerprint"]),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{error!r} is missing") from error


def blank_batch(description: Description, num: int) -> dict[str, np.ndarray]:
    """`num` examples of zeros, in the types of the data."""
    return {
        m.name: np.zeros((num, *m.shape), _DTYPES[m.kind])
        for m in description.modalities
    }


def to_split(
    description: Description,
    data: Mapping[str, Any] | Split,
    observed: AnyArray | Mapping[str, AnyArray] | None = None,
) -> Split:
    """Users' arrays as a Split of the model's modalities.

    Args:
      description: description of the training data.
      data: modality -> array, as at the top of this file; OBSERVED is an optional key,
        and LABELS is ignored. A Split of the same modalities is also accepted.
      observed: which modalities each example has, bool [N, M] in the order of the
        model's modalities, or some modalities -> bool [N]; default: all in `data`.
        Missing values may be anything, also NaN.

    Returns:
      Split, with zeros for missing values.

    Raises:
      UsageError: an unknown name, or an array of another kind, shape or range. The line
        names the array and says what the model expects.
    """
    given = to_arrays(data.leaves() if isinstance(data, Split) else data)
    known = {m.name: m for m in description.modalities}
    _check_words(known, given)
    arrays = {m: x for m, x in given.items() if m in known or is_modality(m)}
    for name in arrays:
        if name not in known:
            raise UsageError(
                f"{name!r} is no modality of this model, which has {', '.join(known)}"
            )
    if not arrays:
        raise UsageError(f"the data have none of the modalities {', '.join(known)}")
    masks = observed_masks(
        known, arrays, given.get(OBSERVED) if observed is None else observed
    )
    num = len(masks)
    return Split(
        {
            m: (
                _as_modality(modality, arrays[m], masks[:, i])
                if m in arrays
                else np.zeros((num, *modality.shape), _DTYPES[modality.kind])
            )
            for i, (m, modality) in enumerate(known.items())
        },
        observed=None if masks.all() else masks,
    )


def to_arrays(data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts users' data to arrays by name.

    Raises:
      UsageError: the data are not a mapping of names to arrays, or an array is masked:
        only OBSERVED marks missing values.
    """
    if not isinstance(data, Mapping):
        raise UsageError(
            'data must be a mapping of names to arrays, {"image": x, ...}, got '
            f"{type(data).__name__}"
        )
    arrays = {}
    for name, x in data.items():
        if not isinstance(name, str):
            raise UsageError(
                "data must be a mapping of names to arrays, whose names are strings, "
                f"got {name!r}"
            )
        if np.ma.isMaskedArray(x):
            raise UsageError(
                f"{name} is a masked array: give x.data, and what is missing in "
                f"{OBSERVED!r}"
            )
        try:
            arrays[name] = np.asarray(x)
        except ValueError as error:
            raise UsageError(
                f"{name} is not of one shape: its examples need equal lengths"
            ) from error
        except TypeError as error:
            raise UsageError(f"{name} cannot become an array: {error}") from error
    return arrays


def is_modality(name: str) -> bool:
    """Whether an array of this name is a modality."""
    return name not in (OBSERVED, LABELS) and not name.endswith(WORDS)


def _check_words(known: Mapping[str, Modality], given: Mapping[str, Any]) -> None:
    """Raises UsageError if data and model number words differently."""
    for name, modality in known.items():
        own = tuple(str(word) for word in given.get(f"{name}{WORDS}", ()))
        if own != modality.words[: len(own)]:
            raise UsageError(
                f"{name}{WORDS} numbers words otherwise than the model's vocabulary: "
                "number them as for training"
            )


def _num_examples(arrays: Mapping[str, np.ndarray]) -> int:
    """N, which all arrays must share."""
    if not arrays:
        raise UsageError("data hold no modality: give one array [N, ...] for each")
    lengths = {name: len(x) if x.ndim else 0 for name, x in arrays.items()}
    num = next(iter(lengths.values()))
    if num < 1 or any(n != num for n in lengths.values()):
        counts = ", ".join(f"{n} of {m}" for m, n in lengths.items())
        raise UsageError(f"modalities need equally many examples, got {counts}")
    return num


def observed_masks(
    known: Collection[str], arrays: Mapping[str, np.ndarray], observed: Any
) -> np.ndarray:
    """Masks of the modalities that are observed, bool [N, M].

    Args:
      known: names of the modalities, in the order of M.
      arrays: modality -> array [N, ...], for some of them.
      observed: as in `to_split`.

    Raises:
      UsageError: lengths differ, or `observed` does not fit.
    """
    num = _num_examples(arrays)
    shape = (num, len(known))
    masks = np.broadcast_to(np.array([m in arrays for m in known]), shape).copy()
    if isinstance(observed, Mapping):
        for name, mask in observed.items():
            mask = np.asarray(mask)
            if name not in known or mask.dtype != bool or mask.shape != (num,):
                raise UsageError(
                    f"{OBSERVED}[{name!r}] is {mask.dtype} {mask.shape}: it must be "
                    f"bool ({num},), of one of {', '.join(known)}"
                )
            masks[:, list(known).index(name)] &= mask
    elif observed is not None:
        mask = np.asarray(observed)
        if mask.dtype != bool or mask.shape != shape:
            raise UsageError(
                f"{OBSERVED} must be bool {shape}, a column each for "
                f"{', '.join(known)}, got {mask.dtype} {mask.shape}"
            )
        masks &= mask
    empty = np.flatnonzero(~masks.any(axis=1))
    if len(empty):
        raise UsageError(f"example {empty[0]} has no observed modality")
    return masks


def _as_modality(modality: Modality, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Converts one array to the type of its modality, with zeros where missing."""
    where = f"{modality.name} is {x.dtype} {x.shape}, and the model knows it as"
    kind = f"{modality.kind} {np.dtype(_DTYPES[modality.kind])}"
    wanted = f"{kind} [N, {', '.join(str(n) for n in modality.shape)}]"
    if modality.kind == TOKENS and x.dtype.kind in "UO":
        x = _encoded(modality, x, mask)
    if modality.kind == IMAGES and x.ndim == 3 and modality.shape[-1] == 1:
        x = x[..., None]
    is_fitting = {
        IMAGES: is_image(x),
        VECTORS: x.dtype.kind in "fiu" and not is_image(x),
        TOKENS: x.dtype.kind in "iu" and not is_image(x),
    }[modality.kind]
    if not is_fitting or x.shape[1:] != modality.shape:
        raise UsageError(f"{where} {wanted}")
    if modality.kind != IMAGES and mask.any():
        # Reduce to one value per example, [N], to save memory.
        values = tuple(range(1, x.ndim))
        with np.errstate(invalid="ignore"):
            low, high = (f(x, axis=values)[mask] for f in (np.min, np.max))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise UsageError(
                f"{modality.name} holds NaN or infinity: mark missing data in "
                f"{OBSERVED!r}"
            )
        words = len(modality.words)
        if modality.kind == TOKENS and (low.min() < 0 or high.max() >= words):
            raise UsageError(
                f"{modality.name} has tokens {low.min()} to {high.max()}, and the "
                f"model knows 0 to {words - 1}"
            )
    x = x.astype(_DTYPES[modality.kind], copy=not mask.all())
    if not mask.all():
        x[~mask] = 0
    return x


def _encoded(modality: Modality, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Converts captions [N], or words [N, T], to tokens [N, T]."""
    words, length = modality.words, modality.shape[0]
    if x.ndim == 1:
        if words[: len(tokens.SPECIALS)] != tokens.SPECIALS:
            raise UsageError(
                f"{modality.name}: texts need a vocabulary that begins with "
                f"{', '.join(tokens.SPECIALS)}, and that of the model does not: give "
                "its words, [N, T]"
            )
        return tokens.encode(texts_of(modality.name, x, mask), words, length)
    index = {word: token for token, word in enumerate(words)}
    unknown = sorted({str(word) for word in x[mask].ravel()} - index.keys())
    if unknown:
        raise UsageError(
            f"{modality.name} has the word {unknown[0]!r}, which is not in the model's "
            f"vocabulary of {len(words)}"
        )
    rows = [[index.get(str(word), 0) for word in row] for row in x]
    return np.array(rows, np.int32).reshape(x.shape)


def texts_of(name: str, x: np.ndarray, mask: np.ndarray) -> list[str]:
    """Captions [N], empty strings where missing.

    Raises:
      UsageError: an observed caption is not a string, for instance None or NaN.
    """
    for i in np.flatnonzero(mask):
        if not isinstance(x[i], str):
            raise UsageError(
                f"{name} has {x[i]!r} among its captions (example {i}): say where one "
                f"is missing in {OBSERVED!r}"
            )
    return [
        str(text) if is_there else "" for text, is_there in zip(x, mask, strict=True)
    ]


def to_texts(modality: Modality, rows: AnyArray) -> np.ndarray:
    """Converts tokens [N, T] to N strings, each up to its first `<eos>`."""
    return np.array([tokens.decode(row, modality.words) for row in np.asarray(rows)])


def names_of(description: Description, given: Sequence[str] | None) -> tuple[str, ...]:
    """The given names of modalities, after a check; None: all.

    Raises:
      UsageError: a name is unknown, or `given` is empty.
    """
    known = tuple(m.name for m in description.modalities)
    if given is None:
        return known
    if isinstance(given, str):
        given = (given,)
    for name in given:
        if name not in known:
            raise UsageError(
                f"{name!r} is no modality of this model, which has {', '.join(known)}"
            )
    if not given:
        raise UsageError(f"give at least one modality of {', '.join(known)}")
    return tuple(given)
