"""The decoder of image files: every mode keeps its values or is refused in a line."""

import io
import re
import struct
import zlib

import dataset_images
import numpy as np
import pytest
from cub import birds
from dataset_errors import DatasetError
from PIL import Image, TiffImagePlugin
from polymnist import backgrounds, published
from polymnist.options import Options

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
WIDE = GREY.astype(np.uint16) * 257  # 0..65535
REFUSED = "refused"


def saved(image, kind, **options):
    """The bytes of a file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data):
    return dataset_images.decode(data, "7.png", "fetch it again")


def as_grey(values):
    return np.repeat(values[..., None], 3, axis=2)


def with_alpha(mode, alpha):
    """An image of a mode with an alpha channel of one value."""
    image = Image.fromarray(COLOURS if mode == "RGBA" else GREY).convert(mode)
    image.putalpha(alpha)
    return image


def images():
    """Mode -> (an image of it, what it decodes to)."""
    palette = Image.fromarray(255 - GREY, "P")
    palette.putpalette(bytes(COLOURS.reshape(-1)))
    lossless = {
        "1": (Image.fromarray(GREY > 99), as_grey(np.uint8(255) * (GREY > 99))),
        "L": (Image.fromarray(GREY), as_grey(GREY)),
        "P": (palette, COLOURS[::-1, ::-1]),
        "RGB": (Image.fromarray(COLOURS), COLOURS),
        "CMYK": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
        "I;16": (Image.fromarray(WIDE), as_grey(GREY)),
        "I;16L": (Image.frombytes("I;16L", (16, 16), WIDE.tobytes()), as_grey(GREY)),
        "I;16B": (
            Image.frombytes("I;16B", (16, 16), WIDE.astype(">u2").tobytes()),
            as_grey(GREY),
        ),
    }
    opaque = {mode: with_alpha(mode, 255) for mode in ("LA", "RGBA")}
    opaque["PA"] = palette.convert("PA")
    refused = {
        "I": Image.fromarray(WIDE.astype(np.int32)),
        "F": Image.fromarray(GREY.astype(np.float32) / 255),
        "LAB": Image.frombytes("LAB", (16, 16), COLOURS.tobytes()),
    }
    shown = {
        "LA": as_grey(GREY),
        "RGBA": COLOURS,
        "PA": COLOURS[::-1, ::-1],
    }
    return {
        **lossless,
        **{mode: (image, shown[mode]) for mode, image in opaque.items()},
        **{mode: (image, REFUSED) for mode, image in refused.items()},
    }


# What Pillow writes of each mode without loss; JPEG and YCbCr are below.
KINDS = ("BMP", "PNG", "PPM", "TIFF")


def written():
    """(format, mode) of every file that Pillow writes."""
    for mode, (image, _) in images().items():
        for kind in KINDS:
            try:
                saved(image, kind)
            except (OSError, KeyError):
                continue
            yield kind, mode


@pytest.mark.parametrize("kind, mode", list(written()))
def test_every_mode_keeps_its_values_or_is_refused(kind, mode):
    image, expected = images()[mode]
    data = saved(image, kind)
    if mode == "I" and kind == "PPM":  # which says that it has 16 bits
        expected = as_grey(GREY)
    if expected is REFUSED:
        with pytest.raises(DatasetError, match=rf"^7\.png: .*mode {mode}\b.*; save it"):
            decode(data)
    else:
        decoded = decode(data)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, expected)


def test_the_modes_are_all_that_pillow_writes():
    kinds = set(written())
    assert {mode for _, mode in kinds} == set(images())
    assert {("TIFF", "LAB"), ("TIFF", "F"), ("PNG", "I;16"), ("TIFF", "I;16B")} <= kinds


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_colours_in_lossy_files(kind):
    smooth = np.stack(np.broadcast_arrays(GREY, GREY.T, 128), -1).astype(np.uint8) // 2
    image = Image.fromarray(smooth).resize((64, 64))
    expected = np.asarray(image).astype(int)
    mode = "RGB" if kind == "WEBP" else "YCbCr"
    decoded = decode(saved(image.convert(mode), kind, quality=100))
    assert np.abs(decoded - expected).max() < 12


def png(bits, colour, rows, transparent=b""):
    """A PNG file of one row of any depth: 0 grey, 2 RGB, 3 palette, 4 LA, 6 RGBA."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    width = len(rows) * 8 // (bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    parts = [chunk(b"IHDR", struct.pack(">2I5B", width, 1, bits, colour, 0, 0, 0))]
    if colour == 3:
        parts.append(chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])))
    if transparent:
        parts.append(chunk(b"tRNS", transparent))
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "data, expected",
    [
        (png(1, 0, b"\x80"), [255, 0, 0, 0, 0, 0, 0, 0]),
        (png(2, 0, b"\x1b"), [0, 85, 170, 255]),
        (png(4, 0, b"\x0f"), [0, 255]),
        (png(16, 0, b"\xff\xff\x80\x00\x01\xff"), [255, 128, 1]),
        (png(16, 2, bytes([255, 255, 128, 0, 1, 255])), [[255, 128, 1]]),
        (png(16, 4, b"\x12\x34\xff\xff"), [18]),
        (png(16, 6, bytes([255, 255, 128, 0, 1, 255, 255, 255])), [[255, 128, 1]]),
        (png(1, 3, b"\x40"), [[9, 8, 7], [6, 5, 4], *[[9, 8, 7]] * 6]),
        (png(1, 3, b"\x40", b"\xff\xff"), [[9, 8, 7], [6, 5, 4], *[[9, 8, 7]] * 6]),
    ],
)
def test_png_of_every_depth(data, expected):
    row = np.broadcast_to(np.array(expected, np.uint8).T, (3, len(expected))).T
    np.testing.assert_array_equal(decode(data)[0], row)


def tiff(rows, **tags):
    """A TIFF file of one strip, written by its tags."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    numbers = {
        "width": 256,
        "height": 257,
        "bits": 258,
        "compression": 259,
        "photometric": 262,
        "samples": 277,
        "rows": 278,
        "bytes": 279,
        "format": 339,
    }
    fields = {"height": 1, "compression": 1, "rows": 1, "bytes": len(rows)}
    for name, value in {**fields, **tags}.items():
        directory[numbers[name]] = value
    directory[273] = 0  # the strip begins where the directory ends
    return b"II*\0" + struct.pack("<I", 8) + directory.tobytes(8) + rows


GREY_16 = np.array([0, 0x8000, 0xFFFF], "<u2").tobytes()
GREY_12 = b"\x00\x08\x00\xff\xf0\x00"
RGB_16 = {"bits": (16,) * 3, "samples": 3, "photometric": 2}


@pytest.mark.parametrize(
    "data, expected",
    [
        (tiff(GREY_16, width=3, bits=16, photometric=1), [0, 128, 255]),
        (tiff(GREY_16, width=3, bits=16, photometric=0), [255, 127, 0]),
        (tiff(GREY_12, width=4, bits=12, photometric=1), [0, 128, 255, 0]),
        (tiff(b"\0\x80\xff", width=3, bits=8, photometric=0), [255, 127, 0]),
        (tiff(GREY_16, width=1, **RGB_16), [[0, 128, 255]]),
        (tiff(GREY_16, width=3, bits=16, photometric=1, format=2), "signed"),
        (tiff(b"\0\x80\xff", width=3, bits=8, photometric=1, format=2), "signed"),
        (tiff(bytes(12), width=3, bits=32, photometric=1), "of 32 bits"),
        (tiff(bytes(12), width=3, bits=32, photometric=0, format=3), "floats"),
        (tiff(bytes(24), width=3, bits=64, photometric=1, format=3), "II"),
    ],
)
def test_tiff_of_every_kind_of_number(data, expected):
    if isinstance(expected, str):
        with pytest.raises(DatasetError, match=expected):
            decode(data)
        return
    row = np.broadcast_to(np.array(expected, np.uint8).T, (3, len(expected))).T
    np.testing.assert_array_equal(decode(data)[0], row)


@pytest.mark.parametrize(
    "image, options, message",
    [
        (with_alpha("LA", 254), {}, "has transparent pixels (mode LA)"),
        (with_alpha("RGBA", 0), {}, "has transparent pixels (mode RGBA)"),
        (images()["P"][0], {"transparency": 3}, "has transparent pixels (mode P)"),
        (images()["L"][0], {"transparency": 3}, "names a transparent colour (mode L)"),
        (
            images()["RGB"][0],
            {"transparency": (1, 2, 3)},
            "names a transparent colour (mode RGB)",
        ),
        (
            images()["I;16"][0],
            {"transparency": 3},
            "names a transparent colour (mode I;16)",
        ),
    ],
)
def test_transparency_is_refused(image, options, message):
    with pytest.raises(DatasetError, match=re.escape(f"7.png: {message}")):
        decode(saved(image, "PNG", **options))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_one_of_several_images_is_not_chosen(kind):
    image = Image.fromarray(COLOURS)
    other = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    data = saved(image, kind, save_all=True, append_images=[other])
    with pytest.raises(DatasetError, match=r"7\.png: holds 2 images; save the one"):
        decode(data)


def test_photographs_with_a_second_view_are_read():
    image = Image.fromarray(COLOURS)
    data = saved(image, "MPO", save_all=True, append_images=[image])
    assert decode(data).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixels_stay_as_they_are_stored(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image = Image.fromarray(COLOURS[:8])
    turned = decode(saved(image, kind, exif=exif))
    np.testing.assert_array_equal(turned, decode(saved(image, kind)))
    assert turned.shape == (8, 16, 3)


def test_16_bits_in_every_data_set(tmp_path):
    path = tmp_path / "1.png"
    Image.fromarray(WIDE).save(path)
    np.testing.assert_array_equal(backgrounds.load(tmp_path, 1, 16)[0], as_grey(GREY))
    np.testing.assert_array_equal(published._read(path, 16), as_grey(GREY))
    bird = birds.decode_image(path.read_bytes(), 16, None, "1.jpg")
    np.testing.assert_array_equal(bird, as_grey(GREY))


def test_data_of_other_values_have_another_name(tmp_path, monkeypatch):
    """Only where the first version gave other ones: nothing else is prepared anew."""

    def names():
        where = {"digits": "published", "published_dir": str(tmp_path)}
        for options in ({"backgrounds_dir": str(tmp_path / "train/m0")}, where):
            yield Options(num_modalities=1, image_size=16, **options).name

    found = {}
    for kind, mode in written():
        for split in ("train", "test"):
            place = tmp_path / split / "m0"
            place.mkdir(parents=True, exist_ok=True)
            images()[mode][0].save(place / "1.0.png", kind)
        new = list(names())
        with monkeypatch.context() as patch:
            patch.setattr(dataset_images, "was_decoded_otherwise", lambda path: False)
            is_new = [a != b for a, b in zip(new, names(), strict=True)]
        assert is_new in ([False] * 2, [True] * 2)
        found.setdefault(is_new[0], set()).add(mode)
    assert found[True] == {"I;16", "I;16L", "I;16B", "I", "F", "LAB"}
    assert not found[True] & found[False]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "an empty file; fetch it again"),
        (b"<!DOCTYPE html>", "begins with b'<!DOCTYP'.*save it anew as one of these"),
        (saved(Image.fromarray(GREY), "GIF"), "begins with b'GIF"),
        (saved(Image.fromarray(COLOURS), "PNG")[:-300], "truncated.*; fetch it again"),
    ],
)
def test_what_is_no_image_says_what_it_is(tmp_path, content, message):
    path = tmp_path / "1.png"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(DatasetError, match=f"7.png: not a readable.*{message}"):
            dataset_images.decode(source, "7.png", "fetch it again")


def test_files_that_the_system_does_not_give(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(DatasetError, match=r"7.png: cannot be read \(Permission") as e:
        decode(b"")
    assert "fetch" not in str(e.value)
