"""Background images: five procedural textures, or the images of a folder.

The published set uses five photographs and paintings of third parties, which may not be
redistributed. The textures replace them: they differ in colour and structure, crops of
one texture differ, and no colour has all three channels near 128, where an inverted
digit would be invisible.
"""

import re
from pathlib import Path

import dataset_images
import numpy as np
from dataset_errors import DatasetError

from polymnist import exact

TEXTURE_SIZE = 512
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_Colour = tuple[int, int, int]  # RGB


def _noise(stream: int, cells: int) -> np.ndarray:
    """Value noise with `cells` lattice points per side, int32 [S, S] in 0..255."""
    lattice = exact.random_integers((9173, stream, cells), cells * cells, 255)
    lattice = lattice.reshape(1, cells, cells).astype(np.uint8)
    return exact.resize(lattice, TEXTURE_SIZE, TEXTURE_SIZE)[0].astype(np.int32)


def _tones(stream: int, index: np.ndarray) -> np.ndarray:
    """A fixed random value in 0..255 for every integer in `index`."""
    index = index - index.min()
    return exact.random_integers((7211, stream), int(index.max()) + 1, 255)[index]


def _mix(first: _Colour, second: _Colour, tone: np.ndarray) -> np.ndarray:
    """Blends two RGB colours; tone 0 gives the first, 255 the second."""
    tone = np.clip(tone, 0, 255)[..., None]
    colour = (np.array(first) * (255 - tone) + np.array(second) * tone + 127) // 255
    return colour.astype(np.uint8, order="C")


def _grid() -> np.ndarray:
    """Row and column of every pixel."""
    return np.indices((TEXTURE_SIZE, TEXTURE_SIZE))


def _bricks() -> np.ndarray:
    """Red bricks of different tones with light mortar."""
    y, x = _grid()
    row = y // 10
    x = x + (row % 2) * 11 + _tones(1, row) // 40
    tone = (3 * _tones(2, row * 64 + x // 22) + _noise(3, 200)) // 4
    bricks = _mix((110, 10, 10), (245, 80, 50), tone)
    mortar = (y % 10 < 2) | (x % 22 < 2)
    light = _mix((205, 185, 165), (250, 235, 220), _noise(4, 32))
    return np.where(mortar[..., None], light, bricks)


def _clouds() -> np.ndarray:
    """Smooth blue noise of three scales."""
    noise = (4 * _noise(5, 24) + 2 * _noise(6, 56) + _noise(7, 160)) // 7
    return _mix((0, 0, 45), (70, 105, 255), (noise - 127) * 9 // 5 + 127)


def _stripes() -> np.ndarray:
    """Bent diagonal stripes of yellow and dark green."""
    y, x = _grid()
    band = (2 * x + y + _noise(8, 20) // 2) // 18
    tone = (_tones(9, band) + _noise(10, 90)) // 2
    dark = _mix((0, 35, 0), (25, 90, 20), tone)
    light = _mix((235, 180, 0), (255, 245, 70), tone)
    return np.where((band % 2 == 0)[..., None], light, dark)


def _dots() -> np.ndarray:
    """Pale dots of many sizes on purple."""
    y, x = _grid()
    cell = (y // 12) * 64 + x // 12
    centre_y, centre_x = 3 + _tones(11, cell) // 43, 3 + _tones(12, cell) // 43
    distance = (y % 12 - centre_y) ** 2 + (x % 12 - centre_x) ** 2
    dot = distance < 3 + _tones(13, cell) // 14
    ground = _mix((30, 0, 45), (100, 0, 100), _noise(14, 64))
    pale = _mix((255, 145, 215), (255, 235, 255), _tones(15, cell))
    return np.where(dot[..., None], pale, ground)


def _weave() -> np.ndarray:
    """Green threads over and under each other."""
    y, x = _grid()
    over = ((y // 6 + x // 6) % 2 == 0)[..., None]
    round_y, round_x = (20 * np.minimum(v % 6, 5 - v % 6) for v in (y, x))
    warp = round_y + (2 * _tones(16, y // 6) + 3 * _noise(17, 40)) // 6
    weft = round_x + (2 * _tones(18, x // 6) + 3 * _noise(19, 40)) // 6
    first = _mix((0, 105, 65), (140, 255, 185), warp)
    second = _mix((0, 25, 60), (60, 100, 20), weft)
    return np.where(over, first, second)


TEXTURES = (_bricks, _clouds, _stripes, _dots, _weave)


def _by_name(path: Path) -> list[str | int]:
    """Sorts 2.jpg before 10.jpg: runs of digits compare as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)]


def list_folder(folder: str | Path) -> list[Path]:
    """The image files of a folder in the order of their names, numbers as numbers.

    Raises:
      DatasetError: the folder does not exist.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is not a folder: set config.data.backgrounds_dir to a folder "
            'of background images, or to "" for the built-in textures'
        )
    paths = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    return sorted((p for p in paths if p.is_file()), key=_by_name)


def read_image(path: Path, least: int = 1) -> np.ndarray:
    """Decodes one image file.

    Args:
      path: the file.
      least: smallest height and width allowed, in pixels.

    Returns:
      uint8 [H, W, 3].

    Raises:
      DatasetError: `dataset_images.decode` refuses the image, or it is too small.
    """
    pixels = dataset_images.decode(path, str(path), "replace or remove the file")
    height, width, _ = pixels.shape
    if min(height, width) < least:
        raise DatasetError(
            f"{path}: {width}x{height} pixels are smaller than the image size "
            f"{least}; use a larger image or lower config.data.image_size"
        )
    return pixels


def load(folder: str | Path, num: int, image_size: int) -> list[np.ndarray]:
    """The first `num` backgrounds.

    Args:
      folder: folder with one image per modality, in the order of their names; "" for
        the built-in textures.
      num: number of backgrounds.
      image_size: side of the crops, in pixels.

    Returns:
      List of `num` uint8 [H, W, 3].

    Raises:
      DatasetError: there are fewer than `num`, or a file is invalid.
    """
    paths = list_folder(folder) if folder else []
    found = len(paths) if folder else len(TEXTURES)
    if found < num:
        where = f"{folder} has" if folder else "the built-in textures give"
        raise DatasetError(
            f"{num} modalities need {num} backgrounds but {where} {found}: lower "
            "config.data.num_modalities, set config.data.repeated, or give a folder "
            "with more images in config.data.backgrounds_dir"
        )
    if folder:
        return [read_image(path, image_size) for path in paths[:num]]
    return [texture() for texture in TEXTURES[:num]]
