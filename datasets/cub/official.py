"""The published layouts of CUB-200-2011 and its captions, listed in README.md.

Files are never paired by their order in a folder.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from dataset_errors import DatasetError

from cub import files
from cub.birds import CAPTIONS, Birds, check_captions, check_classes, decode_image
from cub.files import Place

_IMAGE_NAME = re.compile(r"(\d{3})\.[^/\\]+/[^/\\]+\.jpe?g", re.IGNORECASE)
_NUMBER = re.compile("[0-9]{1,9}")
_TABLES = {
    "images.txt": 1,
    "image_class_labels.txt": 1,
    "train_test_split.txt": 1,
    "bounding_boxes.txt": 4,
}


class Layout(NamedTuple):
    """The places of photographs and captions in a folder.

    Attributes:
      images: Place of images.txt.
      captions: Place of the folders of the classes, or of one file per class.
    """

    images: Place
    captions: Place


def find_layout(folder: str | Path) -> Layout:
    """Finds photographs and captions in a folder.

    Raises:
      DatasetError: photographs or captions are missing.
    """
    folder = Path(folder).expanduser()
    if (folder / "images.txt").is_file():
        images = Place(folder, "")
    else:
        images = _first(
            folder,
            ("", "CUB_200_2011/"),
            ("CUB_200_2011.tgz", "CUB_200_2011/"),
            what="photographs (CUB_200_2011/ or CUB_200_2011.tgz)",
        )
    captions = _first(
        folder,
        ("", "text_c10/"),
        ("", "cvpr2016_cub/text_c10/"),
        ("", "CUB_200_2011/text_c10/"),
        ("text_c10.tgz", "text_c10/"),
        ("text_c10.tar.gz", "text_c10/"),
        ("cvpr2016_cub.tgz", "cvpr2016_cub/text_c10/"),
        ("cvpr2016_cub.tar.gz", "cvpr2016_cub/text_c10/"),
        what="captions (text_c10/ or text_c10.tgz)",
    )
    return Layout(images, captions)


def _first(folder: Path, *candidates: tuple[str, str], what: str) -> Place:
    """The first place that exists."""
    for archive, prefix in candidates:
        place = Place(folder / archive if archive else folder, prefix)
        if files.exists(place):
            return place
    raise DatasetError(
        f"{folder} has no {what}: set config.data.cub_dir to a folder in one of the "
        "layouts of datasets/cub/README.md"
    )


def describe(folder: str | Path) -> bytes:
    """Bytes that identify a folder: its tables, and names and sizes of its files."""
    layout = find_layout(folder)
    parts = [
        files.describe(layout.images, "images"),
        files.describe(layout.captions, ""),
    ]
    if layout.images.path.is_dir():
        parts += [data for _, data in sorted(_read_tables(layout.images).items())]
    return b"".join(parts)


def open_birds(folder: str | Path, captions_per_image: int) -> Birds:
    """Reads a folder, except for the photographs.

    Args:
      folder: see README.md.
      captions_per_image: required number of captions per image.

    Returns:
      Birds.

    Raises:
      DatasetError: a file is missing or inconsistent.
    """
    layout = find_layout(folder)
    tables = _parse_tables(layout.images, _read_tables(layout.images))
    names = [name for (name,) in tables["images.txt"]]
    classes = _numbers(layout.images, tables, "image_class_labels.txt")[:, 0]
    for name, label in zip(names, classes, strict=True):
        match = _IMAGE_NAME.fullmatch(name)
        if not match or int(match[1]) != label:
            raise DatasetError(
                f"{layout.images}images.txt: {name!r} is not named NNN.Class/NAME.jpg "
                f"with NNN its class {label:.0f} of image_class_labels.txt"
            )
    check_classes(f"{layout.images}image_class_labels.txt", classes)
    if len(set(names)) < len(names):
        raise DatasetError(f"{layout.images}images.txt: an image occurs twice")
    boxes = _numbers(layout.images, tables, "bounding_boxes.txt")
    is_train = _numbers(layout.images, tables, "train_test_split.txt")[:, 0]
    for name, value in zip(names, is_train, strict=True):
        if value not in (0, 1):
            raise DatasetError(
                f"{layout.images}train_test_split.txt: {name} has {value:g}, which is "
                "neither 1 (to train) nor 0 (to test); correct it"
            )

    def read_images(rows: np.ndarray, image_size: int, crop: str) -> np.ndarray:
        wanted = {f"images/{names[row]}": i for i, row in enumerate(rows)}
        images = np.empty((len(rows), image_size, image_size, 3), np.uint8)
        for name, data in files.read_files(layout.images, list(wanted)):
            i = wanted.pop(name)
            box = boxes[rows[i]] if crop == "box" else None
            images[i] = decode_image(data, image_size, box, f"{layout.images}{name}")
        if wanted:
            raise DatasetError(
                f"{layout.images}{min(wanted)}: no such file, but images.txt names it"
            )
        return images

    return Birds(
        classes=classes.astype(np.int64),
        is_train=is_train == 1,
        captions=_read_captions(layout.captions, names, captions_per_image),
        read_images=read_images,
    )


def _read_tables(place: Place) -> dict[str, bytes]:
    """The four text files: name -> bytes."""
    found = dict(files.read_files(place, list(_TABLES)))
    for name in _TABLES:
        if name not in found:
            raise DatasetError(
                f"{place}{name}: no such file; it is part of the published "
                "CUB_200_2011.tgz"
            )
    return found


def _parse_tables(
    place: Place, texts: Mapping[str, bytes]
) -> dict[str, list[list[str]]]:
    """name -> rows of fields in the order of the image numbers."""
    tables, first = {}, None
    for name, num_fields in _TABLES.items():
        rows = [line.split() for line in _lines(texts[name])]
        for row in rows:
            if len(row) != 1 + num_fields or not _NUMBER.fullmatch(row[0]):
                raise DatasetError(
                    f"{place}{name}: {' '.join(row)[:80]!r} is not a number and "
                    f"{num_fields} fields; correct that line, or take the published "
                    "file"
                )
        table = {int(row[0]): row[1:] for row in rows}
        first = first or table
        if not rows or len(table) != len(rows) or table.keys() != first.keys():
            raise DatasetError(
                f"{place}{name}: the numbers of its {len(rows)} lines are not those of "
                f"the {len(first)} images of images.txt, each once; take both files "
                "from the same source"
            )
        tables[name] = [table[number] for number in sorted(table)]
    return tables


def _lines(text: bytes) -> list[str]:
    """The lines of a text file that are not blank."""
    return [line for line in text.decode(errors="replace").split("\n") if line.strip()]


def _numbers(
    place: Place, tables: Mapping[str, list[list[str]]], name: str
) -> np.ndarray:
    """A table as float64 [N, F]."""
    try:
        values = np.array(tables[name], np.float64)
    except ValueError as error:
        raise DatasetError(
            f"{place}{name}: {error}; correct that line, or take the published file"
        ) from error
    if not np.isfinite(values).all():
        raise DatasetError(
            f"{place}{name}: not all values are finite; correct them, or take the "
            "published file"
        )
    return values


def _read_captions(
    place: Place, names: Sequence[str], captions_per_image: int
) -> list[list[str]]:
    """The captions of every image, from one file per image or per class."""
    stems = [name.rpartition(".")[0] for name in names]
    of_class: dict[str, list[int]] = {}
    for row, stem in enumerate(stems):
        of_class.setdefault(stem.partition("/")[0], []).append(row)
    wanted = [f"{stem}.txt" for stem in (*of_class, *stems)]
    lines = {name: _lines(text) for name, text in files.read_files(place, wanted)}
    found = {row: lines.get(f"{stem}.txt") for row, stem in enumerate(stems)}
    for name, rows in of_class.items():
        own = lines.get(f"{name}.txt")
        if own is None:
            continue
        if len(own) != CAPTIONS * len(rows):
            raise DatasetError(
                f"{place}{name}.txt has {len(own)} captions where {len(rows)} images "
                f"need {CAPTIONS * len(rows)}"
            )
        ordered = sorted(rows, key=stems.__getitem__)
        for i, row in enumerate(ordered):
            found[row] = own[CAPTIONS * i : CAPTIONS * (i + 1)]
    captions = []
    for row, stem in enumerate(stems):
        own = found[row]
        if own is None:
            raise DatasetError(
                f"{place}{stem}.txt: no such file (nor one of its class), so that its "
                "image has no captions"
            )
        check_captions(f"{place}{stem}.txt", own, captions_per_image)
        captions.append(own)
    return captions
