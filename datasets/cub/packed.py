"""The packed layout: boxed crops of 64 x 64 pixels in one file, captions in another.

    cub64_bbox.npz         jpeg uint8 [bytes], offsets int64 [N + 1], ids [N],
                           labels [N] (1..200), cub_is_train bool [N]
    cub_captions.jsonl.gz  a line an image: {"id": ..., "label": ..., "captions": [...]}

Image k is the JPEG file `jpeg[offsets[k] : offsets[k + 1]]`. There may be captions of
images that are not there.
"""

import gzip
import hashlib
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
from pairs.errors import DatasetError

from cub.birds import Birds, check_captions, decode_image

IMAGES, CAPTIONS = "cub64_bbox.npz", "cub_captions.jsonl.gz"
IMAGE_SIZE = 64
MAX_BYTES = 1 << 30
_ARRAYS = {
    "jpeg": "u",
    "offsets": "iu",
    "ids": "iu",
    "labels": "iu",
    "cub_is_train": "b",
}


def is_packed(folder):
    """Whether a folder has the packed layout."""
    return (Path(folder).expanduser() / IMAGES).is_file()


def describe(folder):
    """The sha256 of both files."""
    folder = Path(folder).expanduser()
    try:
        parts = [(folder / name).read_bytes() for name in (IMAGES, CAPTIONS)]
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read ({error})") from error
    return b"".join(hashlib.sha256(part).digest() for part in parts)


def open_birds(folder, captions_per_image):
    """Reads a folder; arguments, result and errors are those of `official`'s."""
    folder = Path(folder).expanduser()
    arrays = _read_arrays(folder / IMAGES)
    records = _read_records(folder / CAPTIONS)
    captions = []
    for number, label in zip(arrays["ids"], arrays["labels"], strict=True):
        where = f"{folder / CAPTIONS}: image {number}"
        record = records.get(int(number))
        if record is None:
            raise DatasetError(f"{where} of {IMAGES} has no captions")
        if record["label"] != label:
            raise DatasetError(
                f"{where} is of class {record['label']}, in {IMAGES} of class {label}"
            )
        check_captions(where, record["captions"], captions_per_image)
        captions.append(record["captions"])

    def read_images(rows, image_size, crop):
        del crop  # they are boxes
        return np.stack([_read_image(folder, arrays, r, image_size) for r in rows])

    return Birds(
        classes=arrays["labels"].astype(np.int64),
        is_train=arrays["cub_is_train"],
        captions=captions,
        read_images=read_images,
    )


def _read_arrays(path):
    """The arrays of the npz file, checked."""
    try:
        with zipfile.ZipFile(path) as file:
            if sum(entry.file_size for entry in file.infolist()) > MAX_BYTES:
                raise DatasetError(
                    f"{path}: unpacks to more than {MAX_BYTES} bytes; check where it "
                    "comes from"
                )
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except DatasetError:
        raise
    except KeyError as error:
        raise DatasetError(f"{path}: {error.args[0]}; fetch it again") from error
    except Exception as error:  # NumPy and zipfile raise many kinds.
        raise DatasetError(
            f"{path}: not a readable npz file ({error}); fetch it again"
        ) from error
    num = len(arrays["ids"])
    fits = all(
        array.ndim == 1 and array.dtype.kind in _ARRAYS[name]
        for name, array in arrays.items()
    )
    if not fits or {len(arrays["labels"]), len(arrays["cub_is_train"])} != {num}:
        raise DatasetError(f"{path}: ids, labels and cub_is_train differ in length")
    offsets = arrays["offsets"].astype(np.int64)
    ends = len(offsets) == num + 1 and (offsets[0], offsets[-1])
    if ends != (0, len(arrays["jpeg"])) or (np.diff(offsets) < 0).any():
        raise DatasetError(
            f"{path}: the offsets do not cut jpeg into the {num} images of ids"
        )
    if len(np.unique(arrays["ids"])) != num:
        raise DatasetError(f"{path}: a number occurs twice in ids")
    return {**arrays, "offsets": offsets}


def _read_records(path):
    """id -> record of the captions file, checked."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(
            f"{path}: cannot be read to its end ({error}); fetch it again"
        ) from error
    if len(data) > MAX_BYTES:
        raise DatasetError(f"{path}: unpacks to more than {MAX_BYTES} bytes")
    records = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            record = json.loads(line)
            texts = record["captions"]
            if not isinstance(texts, list) or not all(
                isinstance(t, str) for t in texts
            ):
                raise TypeError("captions are not a list of texts")
            records[int(record["id"])] = {
                "label": int(record["label"]),
                "captions": texts,
            }
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(
                f"{path}: line {number} is not a record with id, label and captions "
                f"({type(error).__name__}); fetch it again"
            ) from error
    return records


def _read_image(folder, arrays, row, image_size):
    """Decodes one image."""
    start, stop = arrays["offsets"][row : row + 2]
    where = f"{folder / IMAGES}: image {arrays['ids'][row]}"
    return decode_image(arrays["jpeg"][start:stop].tobytes(), image_size, None, where)
