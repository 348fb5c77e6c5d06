"""The packed layout: crops of 64 x 64 pixels in one file, captions in another.

    cub64_bbox.npz         jpeg uint8 [bytes], offsets int64 [N + 1], ids [N],
                           labels [N] (1..200), cub_is_train bool [N]
    cub_captions.jsonl.gz  one line per image: {"id": ..., "label": ..., "captions":
                           [...]}

Image k is the JPEG file `jpeg[offsets[k] : offsets[k + 1]]`. Captions may belong to
images that are missing.
"""

import gzip
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from dataset_errors import DatasetError, check_gzip, unreadable

from cub.birds import Birds, check_captions, check_classes, decode_image

IMAGES, CAPTIONS = "cub64_bbox.npz", "cub_captions.jsonl.gz"
IMAGE_SIZE = 64
MAX_BYTES = 1 << 30  # all arrays, unpacked
# Limits for all captions, unpacked (the published ones have 12 MB), and for one line.
MAX_CAPTION_BYTES, MAX_LINE_BYTES = 64 << 20, 1 << 20
_ARRAYS = {
    "jpeg": np.uint8,
    "offsets": np.integer,
    "ids": np.integer,
    "labels": np.integer,
    "cub_is_train": np.bool_,
}


def is_packed(folder: str | Path) -> bool:
    """Whether a folder has the packed layout."""
    return (Path(folder).expanduser() / IMAGES).is_file()


def describe(folder: str | Path) -> bytes:
    """The sha256 of both files."""
    folder = Path(folder).expanduser()
    parts = []
    try:
        for name in (IMAGES, CAPTIONS):
            if not (folder / name).is_file():  # reading a pipe would block
                raise DatasetError(
                    f"{folder / name}: no such file; the layout of packed files is "
                    f"{IMAGES} and {CAPTIONS}"
                )
            with open(folder / name, "rb") as file:
                parts.append(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise unreadable(str(folder), error, "cannot be read", "check it") from error
    return b"".join(parts)


def open_birds(folder: str | Path, captions_per_image: int) -> Birds:
    """`official.open_birds` for the packed layout."""
    folder = Path(folder).expanduser()
    arrays = _read_arrays(folder / IMAGES)
    records = _read_records(folder / CAPTIONS)
    captions = []
    for number, label in zip(arrays["ids"], arrays["labels"], strict=True):
        where = f"{folder / CAPTIONS}: image {number}"
        record = records.get(int(number))
        if record is None:
            raise DatasetError(
                f"{where} of {IMAGES} has no captions; take both files from the same "
                "source"
            )
        if record["label"] != label:
            raise DatasetError(
                f"{where} is of class {record['label']}, in {IMAGES} of class {label}; "
                "take both files from the same source"
            )
        check_captions(where, record["captions"], captions_per_image)
        captions.append(record["captions"])

    def read_images(rows: np.ndarray, image_size: int, crop: str) -> np.ndarray:
        del crop  # the images are boxes already
        return np.stack([_read_image(folder, arrays, r, image_size) for r in rows])

    return Birds(
        classes=arrays["labels"].astype(np.int64),
        is_train=arrays["cub_is_train"],
        captions=captions,
        read_images=read_images,
    )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the npz file, checked."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            if sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise DatasetError(
                    f"{path}: unpacks to more than {MAX_BYTES} bytes; check where it "
                    "comes from"
                )
            # With other methods, a few bytes can unpack to gigabytes.
            known = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
            if not {entry.compress_type for entry in entries} <= known:
                raise ValueError("it is packed in an unknown way")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except DatasetError:
        raise
    except KeyError as error:
        raise DatasetError(
            f"{path}: {error.args[0]}; it must hold {', '.join(_ARRAYS)}"
        ) from error
    except Exception as error:  # NumPy and zipfile raise many types.
        damage = "not a readable npz file"
        raise unreadable(str(path), error, damage, "fetch it again") from error
    for name, array in arrays.items():
        if array.ndim != 1 or not np.issubdtype(array.dtype, _ARRAYS[name]):
            raise DatasetError(
                f"{path}: {name} is {array.dtype} {array.shape}, and must be "
                f"{_ARRAYS[name].__name__} with one axis"
            )
    num = arrays["ids"].size
    if {arrays["labels"].size, arrays["cub_is_train"].size} != {num}:
        raise DatasetError(
            f"{path}: ids, labels and cub_is_train differ in length; write one of each "
            "an image"
        )
    offsets = arrays["offsets"].astype(np.int64)
    ends = len(offsets) == num + 1 and (offsets[0], offsets[-1])
    if ends != (0, len(arrays["jpeg"])) or (np.diff(offsets) < 0).any():
        raise DatasetError(
            f"{path}: the offsets do not cut jpeg into the {num} images of ids"
        )
    check_classes(str(path), arrays["labels"])
    if len(np.unique(arrays["ids"])) != num:
        raise DatasetError(f"{path}: a number occurs twice in ids")
    return {**arrays, "offsets": offsets}


def _read_records(path: Path) -> dict[int, dict[str, Any]]:
    """id -> record of the captions file, checked."""
    check_gzip(path)
    try:
        with gzip.open(path, "rb") as file:
            data = bytearray()
            # In pieces, because read() allocates the largest size at once.
            while len(data) <= MAX_CAPTION_BYTES and (part := file.read(1 << 20)):
                data += part
    except (OSError, EOFError, zlib.error) as error:
        damage = "cannot be read to its end"
        raise unreadable(str(path), error, damage, "fetch it again") from error
    if len(data) > MAX_CAPTION_BYTES:
        raise DatasetError(
            f"{path}: unpacks to more than {MAX_CAPTION_BYTES} bytes; check where it "
            "comes from"
        )
    records = {}
    for number, line in enumerate(io.BytesIO(data), start=1):
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"it has {len(line)} bytes")
            record = json.loads(line)
            texts = record["captions"]
            if not isinstance(texts, list) or not all(
                isinstance(t, str) for t in texts
            ):
                raise TypeError("captions are not a list of texts")
            for field in ("id", "label"):
                if type(record[field]) is not int:
                    raise TypeError(f"{field} is {record[field]!r:.80}, no integer")
            records[record["id"]] = {"label": record["label"], "captions": texts}
        except (LookupError, RecursionError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path}: line {number} is not a record with id, label and captions "
                f"({type(error).__name__}: {error}); correct it, or fetch the file "
                "again"
            ) from error
    return records


def _read_image(
    folder: Path, arrays: Mapping[str, np.ndarray], row: int, image_size: int
) -> np.ndarray:
    """Decodes one image."""
    start, stop = arrays["offsets"][row : row + 2]
    where = f"{folder / IMAGES}: image {arrays['ids'][row]}"
    return decode_image(arrays["jpeg"][start:stop].tobytes(), image_size, None, where)
