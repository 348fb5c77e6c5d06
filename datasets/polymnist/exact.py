"""Random numbers and resizing in integers: the same bytes on every machine.

There is no floating-point rounding. Random numbers come from the raw output of PCG64,
which NumPy guarantees to keep. The methods of `Generator` have no such guarantee: a new
NumPy may draw other numbers from the same seed.
"""

from collections.abc import Iterable

import numpy as np


def random_bits(words: Iterable[int], size: int) -> np.ndarray:
    """Raw random numbers of the stream `words`.

    Args:
      words: non-negative ints; different words give independent streams.
      size: number of random numbers.

    Returns:
      uint64 [size].
    """
    stream = np.random.PCG64(np.random.SeedSequence(list(words)))
    return stream.random_raw(size)


def random_integers(words: Iterable[int], size: int, high: int) -> np.ndarray:
    """Integers, uniform over 0..high inclusive (bias below 2**-16 for `high` < 2**16).

    Args:
      words: the stream, see `random_bits`.
      size: number of random numbers.
      high: largest value, inclusive.

    Returns:
      int64 [size].
    """
    upper = random_bits(words, size) >> np.uint64(32)
    return ((upper * np.uint64(high + 1)) >> np.uint64(32)).astype(np.int64)


def random_order(words: Iterable[int], size: int) -> np.ndarray:
    """A random permutation of 0..size-1, int64 [size]."""
    return np.argsort(random_bits(words, size), kind="stable")


def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source pixels of every target pixel, and the weight of the second.

    Pixel centres are aligned: target pixel i lies at (i + 1/2) source/target - 1/2,
    so in units of 1/(2 target) every position is an integer.
    """
    unit = 2 * target
    position = (2 * np.arange(target) + 1) * source - target
    position = np.clip(position, 0, (source - 1) * unit)
    low = position // unit
    return low, np.minimum(low + 1, source - 1), position - low * unit


def resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize without antialiasing, exact up to one rounding (half up).

    Args:
      images: uint8 [N, H, W].
      height: new height, at most 512.
      width: new width, at most 512.

    Returns:
      uint8 [N, height, width].
    """
    low, high, weight = (v.astype(np.int32) for v in _taps(images.shape[1], height))
    weight = weight[:, None]
    rows = images[:, low] * (2 * height - weight) + images[:, high] * weight
    low, high, weight = (v.astype(np.int32) for v in _taps(images.shape[2], width))
    full = rows[:, :, low] * (2 * width - weight) + rows[:, :, high] * weight
    unit = 4 * height * width
    return ((full + unit // 2) // unit).astype(np.uint8, order="C")
