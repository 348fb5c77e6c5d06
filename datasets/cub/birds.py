"""Photographs, classes and captions, as all layouts are read."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import dataset_images
import numpy as np
from dataset_errors import DatasetError
from PIL import Image

# The 50 of 200 classes that are only in the test split (Akata et al., 2015; with
# captions Reed et al., 2016).
TEST_CLASSES = (
    1, 4, 6, 8, 9, 14, 23, 29, 31, 33, 34, 35, 36, 37, 38, 43, 49, 51, 53, 66, 72, 79,
    83, 84, 86, 91, 95, 96, 98, 101, 102, 103, 112, 114, 119, 121, 130, 135, 138, 147,
    156, 163, 165, 166, 180, 183, 185, 186, 187, 197,
)  # fmt: skip
NUM_CLASSES = 200
CAPTIONS = 10  # per image


class Birds(NamedTuple):
    """N photographs in the order of their numbers.

    Attributes:
      classes: int64 [N], 1..200.
      is_train: bool [N], of the original split.
      captions: N lists, each with at least the requested number of texts.
      read_images: (rows, image_size, crop) -> uint8 [n, image_size, image_size, 3].
    """

    classes: np.ndarray
    is_train: np.ndarray
    captions: list[list[str]]
    read_images: Callable[[np.ndarray, int, str], np.ndarray]


def check_captions(
    where: str, captions: Sequence[str], captions_per_image: int
) -> None:
    """Raises DatasetError if an image has too few captions."""
    if len(captions) < captions_per_image:
        raise DatasetError(
            f"{where}: {len(captions)} captions where {captions_per_image} are needed; "
            "lower config.data.captions_per_image or add the captions that lack"
        )


def check_classes(where: str, classes: np.ndarray) -> None:
    """Raises DatasetError if a class is not in 1..NUM_CLASSES."""
    wrong = classes[(classes < 1) | (classes > NUM_CLASSES)]
    if wrong.size:
        raise DatasetError(
            f"{where}: class {wrong[0]:g} is not in 1..{NUM_CLASSES}; correct it, or "
            "take the published file"
        )


def decode_image(
    data: bytes, image_size: int, box: np.ndarray | None, where: str
) -> np.ndarray:
    """Decodes one photograph and scales it; its aspect ratio is not kept.

    Args:
      data: bytes of an image file.
      image_size: side of the result, in pixels.
      box: (left, top, width, height) in pixels, or None for the whole photograph.
      where: name of the photograph in messages.

    Returns:
      uint8 [image_size, image_size, 3].

    Raises:
      DatasetError: `dataset_images.decode` refuses the image, or the box is outside.
    """
    pixels = dataset_images.decode(data, where, "fetch it again")
    height, width, _ = pixels.shape
    corners = (0, 0, width, height)
    if box is not None:
        left, top = max(0, box[0]), max(0, box[1])
        right, bottom = min(width, box[0] + box[2]), min(height, box[1] + box[3])
        corners = (left, top, right, bottom)
        if right - left < 1 or bottom - top < 1:
            raise DatasetError(
                f"{where}: its bounding box {tuple(map(float, box))} is not within its "
                f"{width}x{height} pixels"
            )
    side = (image_size, image_size)
    image = Image.fromarray(pixels)
    return np.asarray(image.resize(side, Image.Resampling.BILINEAR, box=corners))
