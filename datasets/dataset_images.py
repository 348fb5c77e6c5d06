"""Decodes the image files of all data sets to 8-bit RGB, or refuses them in one line.

Image files may have other modes than 8-bit RGB, and libraries clip values when they
convert them. Here every mode is scaled to 0..255 or refused:

  1, L, P, RGB, CMYK, YCbCr   as they are
  I;16 and 16-bit colours     the upper 8 of 16 bits (12 bits: of 12)
  alpha channels, palettes    where no pixel is transparent
  I, F, LAB, signed numbers   refused: nothing in the file says what is black and white

EXIF orientation and colour profiles are not applied, as in the published code of all
data sets here (the bounding boxes of CUB refer to the stored pixels). The orientation
of TIFF is part of the format and is applied.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from dataset_errors import DatasetError, unreadable
from PIL import Image

# Limit against decompression bombs, checked before decoding: 8k x 8k, 200 MB as RGB.
MAX_PIXELS = 64_000_000
# Other formats are refused: for some of them Pillow starts another program.
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Part of the name of data for which `was_decoded_otherwise` is true, so that data of
# the first version are not used for them. A new version of the builder would prepare
# all other data again, too.
DECODED_ANEW = b"decoded anew"
_COLOURS = {"1", "L", "P", "RGB", "CMYK", "YCbCr"}
_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def decode(source: Path | bytes, where: str, remedy: str) -> np.ndarray:
    """Decodes one image file, independent of its name (see the module).

    Args:
      source: the file, or its bytes.
      where: name of the file in messages.
      remedy: advice for a damaged file: "fetch it again".

    Returns:
      uint8 [H, W, 3].

    Raises:
      DatasetError: not a complete image of FORMATS, a file of several images, more than
        MAX_PIXELS, or a mode that is refused.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images in open(); here, MAX_PIXELS decides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DatasetError(
                        f"{where}: {width}x{height} pixels are more than the "
                        f"{MAX_PIXELS} that are decoded; scale the image down"
                    )
                if not width * height:
                    raise ValueError("it has no pixels")
                # In MPO, a JPEG with several images, the first one is the photograph.
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                if frames > 1:
                    raise DatasetError(
                        f"{where}: holds {frames} images; save the one that is meant "
                        "as a file of its own"
                    )
                image.load()
                return _rgb(image, where)
    except DatasetError:
        raise
    except Image.UnidentifiedImageError as error:
        start = source[:8] if isinstance(source, bytes) else _first_bytes(source)
        if not start:
            raise DatasetError(
                f"{where}: not a readable image but an empty file; {remedy}"
            ) from error
        raise DatasetError(
            f"{where}: not a readable image, of {', '.join(FORMATS)} (it begins with "
            f"{start!r}); save it anew as one of these, or {remedy}"
        ) from error
    except Exception as error:  # Pillow raises many types for a damaged file.
        raise unreadable(where, error, "not a readable image", remedy) from error


def was_decoded_otherwise(path: Path) -> bool:
    """Whether the first version decoded a file to other values.

    It used Image.convert("RGB") for all files, which clips 16 bits at 255. The result
    is True for files that are now refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                samples = dict(getattr(image, "tag_v2", {})).get(_SAMPLE_FORMAT, (1,))
                is_usual = image.mode in _COLOURS and set(samples) == {_UNSIGNED}
                is_single = image.format == "MPO" or getattr(image, "n_frames", 1) == 1
                if is_usual and is_single and not image.has_transparency_data:
                    return False
                before = np.asarray(image.convert("RGB"))
        return not np.array_equal(before, decode(path, str(path), ""))
    except DatasetError:
        return True
    except Exception:  # Pillow cannot read it, so that no data were prepared from it
        return False


def _first_bytes(path: Path) -> bytes:
    """The first 8 bytes of a file."""
    with open(path, "rb") as file:
        return file.read(8)


def _rgb(image: Image.Image, where: str) -> np.ndarray:
    """The values of a decoded image: uint8 [H, W, 3].

    Raises:
      DatasetError: the mode is refused.
    """
    tags = dict(getattr(image, "tag_v2", {}))
    mode = image.mode
    samples = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    if image.format == "PPM" and mode == "I":
        # Pillow scales grey values of more than 8 bits to 0..65535.
        return _upper_bits(np.asarray(image), 16)
    if mode in ("I", "F") or set(samples) != {_UNSIGNED}:
        raise DatasetError(
            f"{where}: its values are signed, of 32 bits or floats (mode {mode}), so "
            "that nothing says which of them are black and white; save it with 8 or "
            "16 bits"
        )
    if mode == "P" and image.has_transparency_data:
        image = image.convert("RGBA")
    elif "transparency" in image.info:
        raise DatasetError(
            f"{where}: names a transparent colour (mode {mode}); save it without"
        )
    if image.mode in _WITH_ALPHA:
        if np.asarray(image.getchannel(image.getbands()[-1])).min() < 255:
            raise DatasetError(
                f"{where}: has transparent pixels (mode {mode}), and nothing says what "
                "is behind them; save it without transparency"
            )
        return np.asarray(image.convert("RGBA").convert("RGB"))
    if mode.startswith("I;16"):
        values = _upper_bits(np.asarray(image), tags.get(_BITS, (16,))[0])
        return 255 - values if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values
    if mode not in _COLOURS:
        raise DatasetError(
            f"{where}: its colours are of mode {mode}, of which the values in RGB are "
            "not known; save it as RGB"
        )
    return np.asarray(image.convert("RGB"))


def _upper_bits(grey: np.ndarray, bits: int) -> np.ndarray:
    """Converts grey [H, W] of `bits` bits to uint8 [H, W, 3], like Pillow."""
    return np.repeat((grey >> bits - 8).astype(np.uint8)[..., None], 3, axis=2)
