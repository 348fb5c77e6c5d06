"""Your own data: a .npz file of arrays.

The file has one array per modality, with its name and in order: images uint8 [N, H, W]
or [N, H, W, C], vectors (of any shape) float [N, ...], sequences of tokens int [N, T].
Counts are int [N, F] (or float), with the likelihood "poisson" or "negative_binomial".

Optional arrays are `labels` int [N], `observed` bool [N, M] (which modalities each
example has; missing values may be anything, also NaN), and for tokens of a modality
NAME the vocabulary `NAME_words`, an array of strings. For the network "transformer" and
for `count_padding=False`, the words must begin with `tokens.SPECIALS`: token 2 is the
end of a text.
"""

import hashlib
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import ArgumentError, UsageError, first_line
from mmvae_jax.types import OBSERVED

# Limit on unpacked bytes, against decompression bombs.
_MAX_BYTES = 16 << 30
# Largest vocabulary without words; networks have a row for each token.
_MAX_UNNAMED = 1 << 16
_LABELS = "labels"
_WORDS = "_words"


def load(
    path: str, test_path: str = "", test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """Reads a data set from one or two files.

    Args:
      path: path of the .npz file of training examples.
      test_path: path of the file of test examples; "": part of `path`.
      test_fraction: fraction of `path` for test examples without a test file, in
        (0, 1).
      seed: seed of the random split.

    Returns:
      Dataset.

    Raises:
      UsageError: a file is missing or damaged, unpacks to more than MAX_BYTES, or has
        an invalid array.
    """
    if not path:
        raise ArgumentError("{path} is empty: give the .npz file of your arrays")
    train, words = _read(path)
    if test_path:
        test, test_words = _read(test_path)
        _check_alike(train, test, path, test_path)
        for m, own in words.items():
            if any(a != b for a, b in zip(own, test_words[m], strict=False)):
                raise UsageError(
                    f"{path} and {test_path} number the words of {m} differently: both "
                    f"need {m}{_WORDS}, and one must begin with the other"
                )
        words = {m: max(own, test_words[m], key=len) for m, own in words.items()}
    else:
        train, test = _divide(train, test_fraction, seed, path)
    return Dataset(train, test, fingerprint(train, test), Path(path).stem, words)


def fingerprint(*splits: Split) -> str:
    """The sha256 of all examples of some splits, in hexadecimal."""
    digest = hashlib.sha256()
    for split in splits:
        arrays = split.leaves() | {_LABELS: split.labels}
        for name, array in arrays.items():
            if array is not None:
                digest.update(f"{name} {array.dtype} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(path: str | Path) -> tuple[Split, dict[str, tuple[str, ...]]]:
    """The Split and the vocabularies of one file."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ArgumentError("no file {} ({path}, {test_path})", path)
    return to_split(read_npz(path), str(path))


def to_split(
    arrays: Mapping[str, np.ndarray], where: str = "data"
) -> tuple[Split, dict[str, tuple[str, ...]]]:
    """Converts arrays, named as in a file, to a Split.

    Args:
      arrays: as at the top of this file.
      where: name of the data in errors.

    Returns:
      (Split, modality of tokens -> its vocabulary).

    Raises:
      UsageError: an array is invalid.
    """
    arrays = dict(arrays)
    for name, x in arrays.items():
        if name.endswith(_WORDS) and (x.ndim != 1 or x.dtype.kind != "U"):
            raise UsageError(f"{where}: {name} must be strings [V], got {x.dtype}")
    words = {
        name.removesuffix(_WORDS): tuple(arrays.pop(name).tolist())
        for name in list(arrays)
        if name.endswith(_WORDS)
    }
    labels, observed = arrays.pop(_LABELS, None), arrays.pop(OBSERVED, None)
    if not arrays:
        raise UsageError(f"{where} holds no modality: give one array [N, ...] for each")
    for name in arrays:
        if "." in name or not name:
            raise UsageError(
                f"{where}: a config cannot name the modality {name!r}: rename it, "
                "without dots"
            )
    lengths = {name: len(x) if x.ndim else 0 for name, x in arrays.items()}
    num = min(lengths.values())
    if num < 1 or num < max(lengths.values()):
        counts = ", ".join(f"{n} of {m}" for m, n in lengths.items())
        raise UsageError(
            f"{where}: modalities need equally many examples, got {counts}"
        )
    observed = _observed(where, observed, num, list(arrays))
    masks = np.ones((num, len(arrays)), bool) if observed is None else observed
    modalities = {
        name: _modality(f"{where}: {name}", x, mask)
        for (name, x), mask in zip(arrays.items(), masks.T, strict=True)
    }
    vocabularies = {}
    for name, x in modalities.items():
        if x.dtype == np.int32:
            if name not in words and x.max() >= _MAX_UNNAMED:
                raise UsageError(
                    f"{where}: {name} holds {x.max()}: ints are tokens, and so many "
                    f"need their words, {name}{_WORDS}; counts and measurements are "
                    "vectors, x.astype(float)"
                )
            own = words.pop(name, tuple(str(i) for i in range(x.max() + 1)))
            if x.max() >= len(own):
                raise UsageError(
                    f"{where}: {name} has the token {x.max()}, and {name}{_WORDS} only "
                    f"{len(own)} words"
                )
            vocabularies[name] = own
    if words:
        name = next(iter(words))
        raise UsageError(f"{where}: {name}{_WORDS} belongs to no modality of tokens")
    return Split(modalities, _labels(where, labels, num), observed), vocabularies


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one .npz file, by name.

    Raises:
      UsageError: the file is damaged, or unpacks to more bytes than it declares.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > _MAX_BYTES:
                raise ValueError(f"unpacks to {size} bytes, {_MAX_BYTES} is the limit")
            for entry in entries:
                # With other methods, a few bytes can unpack to gigabytes.
                if entry.compress_type not in (
                    zipfile.ZIP_STORED,
                    zipfile.ZIP_DEFLATED,
                ):
                    raise ValueError(f"{entry.filename} is packed in an unknown way")
                with archive.open(entry) as member:
                    _check_header(entry, member)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # NumPy and zipfile raise many types.
        reason = first_line(error)
        raise UsageError(f"{path} is not a .npz file of arrays ({reason})") from error


def _check_header(entry: zipfile.ZipInfo, member: IO[bytes]) -> None:
    """Raises ValueError if an array's header declares more bytes than its entry."""
    version = np.lib.format.read_magic(member)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read(member)
    if dtype.hasobject:
        raise ValueError(
            f"{entry.filename} holds objects, as lists of unequal length make them: "
            "give it one shape and a type of numbers"
        )
    if math.prod(shape) * dtype.itemsize > entry.file_size or min(shape, default=0) < 0:
        raise ValueError(f"{entry.filename} holds less than its header says")


def _modality(where: str, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Converts one modality to the type of its kind, with zeros for missing values."""
    given = f"{where} is {x.dtype} {x.shape}"
    if x.dtype.kind not in "biuf":
        raise UsageError(
            f"{given}: images are uint8, vectors float, tokens int (captions become "
            "tokens by mmvae_jax.tokens.encode; numbers held as objects are "
            "x.astype(float))"
        )
    if x.ndim < 2:
        raise UsageError(
            f"{given}, one value per example: name classes {_LABELS!r}, int [N]; "
            "vectors are float [N, F], F = 1 too"
        )
    if x.dtype == bool:
        raise UsageError(
            f"{given}: a mask of modalities is called {OBSERVED!r}, bool [N, M]; "
            "images of zeros and ones are uint8, 255 * x, and vectors x.astype(float)"
        )
    if x.dtype == np.uint8:
        if x.ndim not in (3, 4):
            raise UsageError(
                f"{given}, the type of images [N, H, W] or [N, H, W, C]: give vectors "
                "as x.astype(float), and tokens as x.astype(int)"
            )
        x = x[..., None] if x.ndim == 3 else x
        _, height, width, num_channels = x.shape
        # Few rows of many columns, each of many channels; or small and square.
        is_wide = min(width, num_channels) >= 8 or width == num_channels > 4
        if height in (1, 3) and is_wide:
            raise UsageError(
                f"{given}, which looks like images [N, C, H, W]: images are "
                "[N, H, W, C], np.moveaxis(x, 1, -1)"
            )
        if x[mask].max(initial=0) == 1:
            raise UsageError(
                f"{given} of zeros and ones: images are 0 to 255, give 255 * x"
            )
    elif np.issubdtype(x.dtype, np.floating):
        with np.errstate(over="ignore"):  # too large values become infinity
            x = x.astype(np.float32)
        if not np.isfinite(x[mask]).all():
            raise UsageError(
                f"{where} holds NaN, infinity, or numbers beyond float32: mark missing "
                f"data in the array {OBSERVED!r}"
            )
    else:
        if x.ndim != 2:
            raise UsageError(
                f"{given}: images are uint8, x.astype(np.uint8) if they are 0 to 255; "
                "vectors are x.astype(float); tokens are int [N, T]"
            )
        if (x[mask] < 0).any():
            raise UsageError(
                f"{where}: tokens and counts are >= 0, got {x[mask].min()}; ints that "
                "are neither are vectors, x.astype(float)"
            )
        if (x[mask] > np.iinfo(np.int32).max).any():
            raise UsageError(f"{where}: {x.max()} is beyond int32")
        x = x.astype(np.int32)
    if 0 in x.shape:
        raise UsageError(f"{where} is empty: shape {x.shape}")
    if not mask.all():
        x = x.copy()
        x[~mask] = 0
    return x


def _observed(
    where: str, observed: np.ndarray | None, num: int, names: list[str]
) -> np.ndarray | None:
    """The checked mask; None if nothing is missing."""
    if observed is None:
        return None
    shape = (num, len(names))
    if observed.dtype != bool or observed.shape != shape:
        raise UsageError(
            f"{where}: {OBSERVED} must be bool {shape}, one column a modality "
            f"({', '.join(names)}), got {observed.dtype} {observed.shape}"
        )
    empty = np.flatnonzero(~observed.any(axis=1))
    if len(empty):
        raise UsageError(f"{where}: example {empty[0]} has no observed modality")
    return None if observed.all() else observed


def _labels(where: str, labels: np.ndarray | None, num: int) -> np.ndarray | None:
    """The checked labels as int32, or None."""
    if labels is None:
        return None
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (num,):
        raise UsageError(
            f"{where}: {_LABELS} must be integers ({num},), got {labels.dtype} "
            f"{labels.shape}: classes 0, 1, ... are x.astype(int)"
        )
    if labels.min() < 0 or labels.max() >= 1_000_000:
        raise UsageError(
            f"{where}: {_LABELS} are classes 0, 1, ..., got {labels.min()} to "
            f"{labels.max()}"
        )
    return labels.astype(np.int32)


def _divide(split: Split, fraction: float, seed: int, path: str) -> tuple[Split, Split]:
    """Training and test examples of one file."""
    if not 0 < fraction < 1:
        raise ArgumentError("{test_fraction} must be in (0, 1), got {}", fraction)
    num_test = round(fraction * split.num_examples)
    if not 0 < num_test < split.num_examples:
        raise ArgumentError(
            "{}: {} examples cannot be divided into training and test examples with "
            "{test_fraction}={}",
            path,
            split.num_examples,
            fraction,
        )
    order = np.random.default_rng(seed).permutation(split.num_examples)
    return split.take(np.sort(order[num_test:])), split.take(np.sort(order[:num_test]))


def _check_alike(train: Split, test: Split, path: str, test_path: str) -> None:
    """Checks that two files hold the same modalities."""
    kinds = [
        [(m, x.dtype, x.shape[1:]) for m, x in split.modalities.items()]
        for split in (train, test)
    ]
    if kinds[0] != kinds[1]:
        own, other = (
            ", ".join(f"{m} {dtype}{list(shape)}" for m, dtype, shape in kind)
            for kind in kinds
        )
        raise UsageError(f"{path} holds {own}, but {test_path} holds {other}")
