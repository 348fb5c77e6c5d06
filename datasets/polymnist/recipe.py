"""Composes digits and backgrounds to tuples of images, in whole arrays.

Per class and modality, the digit images of the class are permuted; the i-th images of
all modalities form a tuple with one label and different handwriting. Each image has a
random crop of the background of its modality, with inverted colours under the digit.
See README.md for the sources.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from polymnist import exact
from polymnist.digits import Digits
from polymnist.labels import SHARED

THRESHOLD = 128
SPLIT_WORDS = {"train": 0, "test": 1}
_ORDER, _PAIR, _ROW, _COLUMN, _DOWN, _RIGHT, _QUADRANT = range(7)

# (Modality -> uint8 [n, H, W, 3], labels uint8 [n]).
Examples = tuple[dict[str, np.ndarray], np.ndarray]


class Plan(NamedTuple):
    """All random choices of one split; N tuples, M modalities.

    Attributes:
      labels: uint8 [N].
      digits: int64 [M, N], index of the digit image.
      crops: int64 [M, N, 2], upper left corner in the background, in pixels.
      offsets: int64 [M, N, 2], upper left corner of the digit, in pixels.
      quadrants: int64 [M, N], quarter of the digit, 0..3 in the order of
        `labels.VALUES`; zeros without quarters.
    """

    labels: np.ndarray
    digits: np.ndarray
    crops: np.ndarray
    offsets: np.ndarray
    quadrants: np.ndarray


class SplitSource(NamedTuple):
    """The examples of one split, made on demand.

    Attributes:
      num_examples: N.
      read: (start, stop) -> Examples.
      quadrants: int64 [M, N] as in Plan; None without quarters.
    """

    num_examples: int
    read: Callable[[int, int], Examples]
    quadrants: np.ndarray | None = None


def make_plan(
    labels: np.ndarray,
    backgrounds: Sequence[np.ndarray],
    *,
    split: str,
    image_size: int,
    side: int,
    pairings: int,
    seed: int,
    quadrant: str = "",
) -> Plan:
    """Draws all random choices of one split.

    Each (seed, split, pairing, modality, purpose) has its own stream: m0 is the same
    with one modality as with five.

    Args:
      labels: uint8 [n], labels of the digit images.
      backgrounds: M arrays uint8 [H, W, 3].
      split: "train" or "test".
      image_size: side of the images, in pixels.
      side: side of the digit in the image; below `image_size` it is translated.
      pairings: number of tuples with each digit image, per modality.
      seed: int, at least 0.
      quadrant: "shared": all modalities have the quarters of m0; "private": each has
        its own; "": no quarters.

    Returns:
      Plan with N = n * pairings tuples in random order.
    """
    size = len(labels)
    total = size * pairings
    shape = (len(backgrounds), total)
    digits = np.empty(shape, np.int64)
    crops, offsets = np.empty((*shape, 2), np.int64), np.zeros((*shape, 2), np.int64)
    quadrants = np.zeros(shape, np.int64)
    for m, background in enumerate(backgrounds):
        highest = [n - image_size for n in background.shape[:2]]
        for pairing in range(pairings):
            words = (seed, SPLIT_WORDS[split], pairing, m)
            part = slice(pairing * size, (pairing + 1) * size)
            # Sorted by class and random within: position i has the same class in all
            # modalities.
            bits = exact.random_bits((*words, _PAIR), size)
            digits[m, part] = np.lexsort((bits, labels))
            for axis, word in enumerate((_ROW, _COLUMN)):
                crops[m, part, axis] = exact.random_integers(
                    (*words, word), size, highest[axis]
                )
            if quadrant:
                own = (*words[:3], 0 if quadrant == SHARED else m, _QUADRANT)
                quadrants[m, part] = exact.random_integers(own, size, 3)
                offsets[m, part] = side * np.stack(divmod(quadrants[m, part], 2), -1)
                continue
            for axis, word in enumerate((_DOWN, _RIGHT)):
                offsets[m, part, axis] = exact.random_integers(
                    (*words, word), size, image_size - side
                )
    order = exact.random_order((seed, SPLIT_WORDS[split], _ORDER), total)
    paired = np.tile(np.sort(labels), pairings)
    of_modalities = (digits, crops, offsets, quadrants)
    return Plan(paired[order], *(x[:, order] for x in of_modalities))


def paste(patches: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """Puts each patch on a black square.

    Args:
      patches: uint8 [n, s, s].
      offsets: int [n, 2], upper left corner of each patch, in pixels.
      size: side of the square, at least s plus the largest offset.

    Returns:
      uint8 [n, size, size].
    """
    num, side, _ = patches.shape
    canvas = np.zeros((num, size, size), np.uint8)
    rows = offsets[:, 0, None] + np.arange(side)
    columns = offsets[:, 1, None] + np.arange(side)
    index = np.arange(num)[:, None, None]
    canvas[index, rows[:, :, None], columns[:, None, :]] = patches
    return canvas


def compose(
    digits: np.ndarray, background: np.ndarray, crops: np.ndarray
) -> np.ndarray:
    """Crops the background and inverts its colours under the digits.

    Args:
      digits: uint8 [n, s, s]; a pixel belongs to the digit above THRESHOLD.
      background: uint8 [H, W, 3].
      crops: int [n, 2], upper left corner of each crop, in pixels.

    Returns:
      uint8 [n, s, s, 3].
    """
    size = digits.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(background, (size, size, 3))
    images = windows[crops[:, 0], crops[:, 1], 0]
    # 255 - v is v XOR 255 for a byte.
    images ^= np.where(digits > THRESHOLD, np.uint8(255), np.uint8(0))[..., None]
    return images


def open_split(
    digits: Digits,
    backgrounds: Sequence[np.ndarray],
    *,
    split: str,
    num_modalities: int,
    side: int,
    repeated: bool,
    pairings: int,
    seed: int,
    image_size: int = 0,
    quadrant: str = "",
) -> SplitSource:
    """The tuples of one split.

    Args:
      digits: Digits of the split, square images, resized to `side`.
      backgrounds: `num_modalities` backgrounds, or at least one if `repeated`.
      split: "train" or "test".
      num_modalities: M.
      side: side of the digit in the image, in pixels; no translation if equal to the
        side of the image.
      repeated: every modality uses the first background.
      pairings: number of repetitions of the procedure.
      seed: int, at least 0.
      image_size: side of the images, in pixels; 0: that of the digits.
      quadrant: as in `make_plan`.

    Returns:
      SplitSource; modalities are named m0, m1, ...
    """
    size = image_size or digits.images.shape[1]
    if repeated:
        backgrounds = [backgrounds[0]] * num_modalities
    plan = make_plan(
        digits.labels,
        backgrounds,
        split=split,
        image_size=size,
        side=side,
        pairings=pairings,
        seed=seed,
        quadrant=quadrant,
    )
    images = digits.images
    if side < images.shape[1]:
        images = exact.resize(images, side, side)

    def read(start: int, stop: int) -> Examples:
        part = slice(start, stop)
        modalities = {}
        for m, background in enumerate(backgrounds):
            chosen = images[plan.digits[m, part]]
            if side < size:
                chosen = paste(chosen, plan.offsets[m, part], size)
            modalities[f"m{m}"] = compose(chosen, background, plan.crops[m, part])
        return modalities, plan.labels[part]

    return SplitSource(len(plan.labels), read, plan.quadrants if quadrant else None)
