"""Digit images: the idx files of MNIST, or the small digits of scikit-learn."""

import gzip
import math
import urllib.request
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from dataset_errors import GZIP, DatasetError, check_gzip, unreadable

from polymnist import exact

MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# Split -> (path of the images, path of the labels).
Files = dict[str, tuple[Path, Path]]
# Larger than any digit set; a header that declares more is damaged or hostile.
MAX_BYTES = 1 << 30
SKLEARN_SPLIT_SEED = 1797
SKLEARN_TEST_PERCENT = 20
VALIDATION_SEED = 1798


class Digits(NamedTuple):
    """Digit images of one split.

    Attributes:
      images: uint8 [N, H, W], ink is bright.
      labels: uint8 [N], 0..9.
    """

    images: np.ndarray
    labels: np.ndarray


def find_files(folder: str | Path) -> Files:
    """The four idx files of a folder, raw or with .gz.

    Returns:
      split -> (path of the images, path of the labels).

    Raises:
      DatasetError: a file is missing.
    """
    folder = Path(folder).expanduser()

    def find(name: str) -> Path:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
        raise DatasetError(
            f"{folder} has no {name}.gz (nor {name}): set config.data.digits_dir to a "
            'folder with the four MNIST idx files, or to "" to download them'
        )

    return {s: (find(images), find(labels)) for s, (images, labels) in FILES.items()}


def check_reachable(url: str) -> None:
    """Requests the header of a file; raises OSError without an answer."""
    request = urllib.request.Request(url, method="HEAD")
    with urllib.request.urlopen(request, timeout=20):
        pass


def read_idx(path: str | Path, num_dims: int) -> np.ndarray:
    """Reads one idx file of unsigned bytes, raw or gzip by its name.

    Args:
      path: the file.
      num_dims: 3 for images, 1 for labels.

    Returns:
      uint8 array with `num_dims` axes.

    Raises:
      DatasetError: anything but exactly one well-formed array.
    """
    is_gzip = Path(path).suffix == ".gz"
    if is_gzip:
        check_gzip(Path(path))
    opener: Any = gzip.open if is_gzip else open
    try:
        with opener(path, "rb") as file:
            header = file.read(4 + 4 * num_dims)
            shape = _idx_shape(path, header, num_dims)
            # At most one byte more than expected, because a small gzip file can unpack
            # to any size.
            data = _read_at_most(file, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        damage = "cannot be read to its end"
        raise unreadable(str(path), error, damage, "fetch the file again") from error
    if len(data) != math.prod(shape):
        is_more = len(data) > math.prod(shape)
        remedy = "correct its header" if is_more else "fetch the file again"
        raise DatasetError(
            f"{path}: the header announces {math.prod(shape)} bytes of data but the "
            f"file has {'more' if is_more else len(data)}; {remedy}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_at_most(file: BinaryIO, num: int) -> bytearray:
    """The next `num` bytes of a file, or fewer at its end."""
    data = bytearray()
    # In pieces, because read() allocates the largest size at once.
    while len(data) < num and (part := file.read(min(1 << 20, num - len(data)))):
        data += part
    return data


def _idx_shape(path: str | Path, header: bytes, num_dims: int) -> tuple[int, ...]:
    """Checks the header of an idx file and returns its shape."""
    if header.startswith(GZIP):
        raise DatasetError(
            f"{path}: not an idx file but one that gzip has compressed; add .gz to its "
            "name"
        )
    if not b"\0\0".startswith(header[:2]):
        raise DatasetError(
            f"{path}: not an idx file, which begins with two zero bytes, but begins "
            f"with {header[:8]!r}; put the file of that name of MNIST in its place"
        )
    if len(header) < 4 + 4 * num_dims:
        raise DatasetError(
            f"{path}: not an idx file but {len(header)} bytes of its beginning; fetch "
            "the file again"
        )
    if header[2] != 8:
        raise DatasetError(
            f"{path}: data type code {header[2]:#04x} is not 0x08 (unsigned bytes); "
            "write its values as bytes, 0..255"
        )
    if header[3] != num_dims:
        raise DatasetError(
            f"{path}: {header[3]} dimensions where {num_dims} are expected; are "
            "images and labels swapped?"
        )
    shape = tuple(int(v) for v in np.frombuffer(header[4:], ">u4"))
    if min(shape) < 1 or math.prod(shape) > MAX_BYTES:
        raise DatasetError(
            f"{path}: impossible shape {shape} in the header; fetch the file again, or "
            "correct its header"
        )
    return shape


def load_mnist(files: Files, image_size: int) -> dict[str, Digits]:
    """Reads the digits of both splits from idx files.

    Args:
      files: split -> (path of the images, path of the labels).
      image_size: side of the result, in pixels; other sizes are resized to it.

    Returns:
      split -> Digits.

    Raises:
      DatasetError: damaged files, labels above 9, or unequal counts.
    """
    return {
        split: _load_pair(*paths, image_size=image_size)
        for split, paths in files.items()
    }


def _load_pair(images_path: Path, labels_path: Path, image_size: int) -> Digits:
    """One split: images and labels that belong together."""
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DatasetError(
            f"{images_path} has {len(images)} images but {labels_path} has "
            f"{len(labels)} labels: take both from the same source"
        )
    if labels.max() > 9:
        raise DatasetError(
            f"{labels_path}: label {labels.max()} is not a digit 0..9; leave out what "
            "is no digit, or number ten classes from 0"
        )
    if images.shape[1:] != (image_size, image_size):
        images = _resized(images_path, images, image_size)
    return Digits(images, labels)


def _resized(path: Path, images: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes images, some at a time, because resizing takes twelve times their bytes.

    Raises:
      DatasetError: the result or an intermediate array would exceed MAX_BYTES.
    """
    pixels = math.prod(max(side, image_size) for side in images.shape[1:])
    if len(images) * pixels > MAX_BYTES:
        raise DatasetError(
            f"{path}: {len(images)} images of {images.shape[1:]} pixels are too many "
            f"to be resized to {image_size}; take fewer or smaller ones"
        )
    step = max(1, (1 << 24) // pixels)
    parts = range(0, len(images), step)
    return np.concatenate(
        [exact.resize(images[i : i + step], image_size, image_size) for i in parts]
    )


def load_sklearn(image_size: int) -> dict[str, Digits]:
    """The 1,797 digits of scikit-learn, 8x8 scaled up, in two disjoint splits.

    The split is stratified by class and does not depend on the user's seed. A margin of
    1/12 of the side is added on every side, because the digits fill their frame.

    Args:
      image_size: side of the result, in pixels.

    Returns:
      split -> Digits, about 80 % train and 20 % test.
    """
    from sklearn import datasets as sklearn_datasets

    source = sklearn_datasets.load_digits()
    labels = source.target.astype(np.uint8)
    margin = image_size // 12
    side = image_size - 2 * margin
    small = (source.images.astype(np.int64) * 255 // 16).astype(np.uint8)
    large = exact.resize(small, side, side)
    images = np.pad(large, ((0, 0), (margin, margin), (margin, margin)))

    return _parted(Digits(images, labels), SKLEARN_TEST_PERCENT, SKLEARN_SPLIT_SEED)


def for_validation(digits: dict[str, Digits], percent: int) -> dict[str, Digits]:
    """Splits the training digits, for model selection without test digits.

    Args:
      digits: split -> Digits.
      percent: held-out percentage of each class of the training digits.

    Returns:
      split -> Digits: "test" has the held-out training digits, always the same.
    """
    return _parted(digits["train"], percent, VALIDATION_SEED)


def _parted(digits: Digits, percent: int, seed: int) -> dict[str, Digits]:
    """Two disjoint splits, stratified by class: "test" has `percent` of each class."""
    images, labels = digits
    bits = exact.random_bits((seed,), len(labels))
    order = np.lexsort((bits, labels))
    counts = np.bincount(labels, minlength=10)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_test = rank * 100 < counts[labels[order]] * percent
    chosen = {"train": np.sort(order[~is_test]), "test": np.sort(order[is_test])}
    return {s: Digits(images[index], labels[index]) for s, index in chosen.items()}
