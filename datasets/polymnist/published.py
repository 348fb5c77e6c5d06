"""Reads the published layout of PolyMNIST: one PNG file per image.

    {train,test}/m{modality}/{number}.{digit}.png

Files are paired by number, never by their order in a folder. The labels in the names
must agree in all modalities.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import dataset_images
import numpy as np
from dataset_errors import DatasetError

from polymnist import backgrounds
from polymnist.recipe import Examples, SplitSource

_NAME = re.compile(r"(\d{1,9})\.(\d)\.png")


def list_files(
    folder: str | Path, split: str, modality: str
) -> tuple[Path, np.ndarray, np.ndarray, list[str]]:
    """Lists the images of one modality of one split, sorted by number.

    Returns:
      (folder, numbers int64 [N], labels uint8 [N], names [N]).

    Raises:
      DatasetError: no such folder, no images, an invalid name, or a repeated number.
    """
    place = Path(folder).expanduser() / split / modality
    if not place.is_dir():
        raise DatasetError(
            f"{place} is not a folder: config.data.published_dir must hold "
            "{train,test}/m{i}/{n}.{digit}.png for every modality"
        )
    entries = [entry for entry in os.scandir(place) if entry.name[0] != "."]
    for entry in entries:
        if not entry.is_file():  # reading a pipe would block
            raise DatasetError(f"{place}: {entry.name} is not a file; check the folder")
    names = [entry.name for entry in entries]
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    if not names or len(matches) < len(names):
        wrong = next((name for name in names if not _NAME.fullmatch(name)), "")
        what = f"{wrong} is not named" if wrong else "no file named"
        raise DatasetError(
            f"{place}: {what} {{number}}.{{digit}}.png; check the folder"
        )
    numbers = np.array([int(match[1]) for match in matches])
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    if (numbers[1:] == numbers[:-1]).any():
        twice = numbers[:-1][numbers[1:] == numbers[:-1]][0]
        raise DatasetError(f"{place}: number {twice} occurs twice; remove one file")
    labels = np.array([int(match[2]) for match in matches], np.uint8)[order]
    return place, numbers, labels, [names[i] for i in order]


def open_split(
    folder: str | Path, split: str, num_modalities: int, image_size: int
) -> SplitSource:
    """The tuples of one split of a published folder, decoded on demand.

    Args:
      folder: folder with train/ and test/.
      split: "train" or "test".
      num_modalities: reads m0 .. m{num_modalities - 1}.
      image_size: side that every image must have, in pixels.

    Returns:
      recipe.SplitSource.

    Raises:
      DatasetError: modalities differ in count, numbers or labels.
    """
    listed = [list_files(folder, split, f"m{m}") for m in range(num_modalities)]
    first_place, numbers, labels, first_names = listed[0]
    for place, other_numbers, other_labels, names in listed[1:]:
        if len(names) != len(first_names):
            raise DatasetError(
                f"{place} has {len(names)} images but {first_place} has "
                f"{len(first_names)}: every modality needs the same number"
            )
        differs = (other_numbers != numbers) | (other_labels != labels)
        if differs.any():
            i = int(np.argmax(differs))
            what = "number" if other_numbers[i] != numbers[i] else "label"
            raise DatasetError(
                f"{place / names[i]} and {first_place / first_names[i]} differ in "
                f"their {what}: images of one tuple must share number and label"
            )

    def read(start: int, stop: int) -> Examples:
        modalities = {
            f"m{m}": np.stack(
                [_read(place / name, image_size) for name in names[start:stop]]
            )
            for m, (place, _, _, names) in enumerate(listed)
        }
        return modalities, labels[start:stop]

    return SplitSource(len(labels), read)


def _read(path: Path, image_size: int) -> np.ndarray:
    """Decodes one image of exactly the given size."""
    pixels = backgrounds.read_image(path)
    if pixels.shape[:2] != (image_size, image_size):
        height, width = pixels.shape[:2]
        raise DatasetError(
            f"{path}: {width}x{height} pixels where {image_size}x{image_size} are "
            "expected; set config.data.image_size to the size of the images"
        )
    return pixels


def describe(folder: str | Path, num_modalities: int) -> Iterator[bytes]:
    """Names and sizes of all files, which identify folders without reading the files.

    A piece more says that the first file of a folder was decoded otherwise before.

    Yields:
      bytes, one or two pieces per folder.
    """
    for split in ("train", "test"):
        for m in range(num_modalities):
            place, _, _, names = list_files(folder, split, f"m{m}")
            sizes = {e.name: e.stat().st_size for e in os.scandir(place)}
            yield repr([(split, m, name, sizes[name]) for name in names]).encode()
            # Opening all files at the start of every run would take too long: the first
            # one stands for its folder, as the README says.
            if dataset_images.was_decoded_otherwise(place / names[0]):
                yield dataset_images.DECODED_ANEW
