"""Drawings of shapes on textures, in integers: the same bytes on every machine.

Lengths are in units of 1/4096 of the side of the image, so that a plan can be drawn at
any resolution. Inside a shape they are in units of 1/1024 of its radius. Edges are
antialiased with 3 x 3 points per pixel.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from polymnist import exact

SIDE = 4096
RADIUS = 1024
SMALLEST, LARGEST = 920, 1480  # radius, 0.22 to 0.36 of the side
REACH = 1270  # largest extent of a shape at any angle, in units of RADIUS
SAMPLES = 3
CHUNK = 1 << 17  # pixels at a time, so that arrays stay in the cache
STEEPEST = 20  # degrees

# In the order of captions.COLOURS; each channel of a drawing varies by up to JITTER.
PAINTS = np.array(
    [
        (210, 35, 40),
        (240, 130, 25),
        (240, 215, 50),
        (45, 160, 60),
        (40, 85, 210),
        (135, 55, 180),
        (238, 238, 238),
        (22, 22, 22),
    ]
)
JITTER = 16
PURPOSES = (
    "label",
    "radius",
    "down",
    "right",
    "turn",
    "paint",
    "light",
    "texture",
    "lattice",
    "ground",
    "wording",
)


class Plan(NamedTuple):
    """All choices of N drawings; shape and colour are shared with the caption.

    Attributes:
      shape: int64 [N], index of a shape.
      colour: int64 [N], index of a colour.
      radius: int64 [N], in SIDE.
      centre: int64 [N, 2], row and column, in SIDE.
      turn: int64 [N], in degrees.
      paint: int64 [N, 3], added to the colour's RGB.
      light: int64 [N, 2], change of brightness per radius, down and right, in 1/256.
      texture: int64 [N], index of a texture of TEXTURES.
      lattice: uint8 [N, 256], random tones of the texture.
      ground: int64 [N, 2, 3], the RGB of the texture's two colours.
    """

    shape: np.ndarray
    colour: np.ndarray
    radius: np.ndarray
    centre: np.ndarray
    turn: np.ndarray
    paint: np.ndarray
    light: np.ndarray
    texture: np.ndarray
    lattice: np.ndarray
    ground: np.ndarray


def uniform(
    words: Sequence[int], purpose: str, low: int, high: int, *shape: int
) -> np.ndarray:
    """Integers in low..high from the stream of one purpose, int64 `shape`."""
    stream = (*words, PURPOSES.index(purpose))
    values = exact.random_integers(stream, int(np.prod(shape)), high - low)
    return values.reshape(shape) + low


def make_plan(shape: np.ndarray, colour: np.ndarray, words: Sequence[int]) -> Plan:
    """Draws the private attributes of the images.

    Args:
      shape: int64 [N].
      colour: int64 [N].
      words: ints that identify the random streams.

    Returns:
      Plan.
    """
    num = len(shape)
    radius = uniform(words, "radius", SMALLEST, LARGEST, num)
    # Anywhere in the image, without being cut off.
    margin = radius * REACH // RADIUS
    centre = [
        margin + uniform(words, purpose, 0, SIDE, num) * (SIDE - 2 * margin) // SIDE
        for purpose in ("down", "right")
    ]
    ground = uniform(words, "ground", -100, 100, num, 9)
    # Two tinted greys, which are not colours of shapes.
    first = 120 + ground[:, :1] * 35 // 100 + ground[:, 1:4] * 15 // 100
    second = first + ground[:, 4:5] * 40 // 100 + ground[:, 5:8] * 10 // 100
    ground = np.clip(np.stack([first, second], axis=1), 60, 185)
    return Plan(
        shape=shape,
        colour=colour,
        radius=radius,
        centre=np.stack(centre, axis=1),
        turn=uniform(words, "turn", -STEEPEST, STEEPEST, num),
        paint=uniform(words, "paint", -JITTER, JITTER, num, 3),
        light=uniform(words, "light", -24, 24, num, 2),
        texture=uniform(words, "texture", 0, len(TEXTURES) - 1, num),
        lattice=uniform(words, "lattice", 0, 255, num, 256).astype(np.uint8),
        ground=ground,
    )


# ---- shapes: masks of the inside, for coordinates int32 v (down) and u (right)


def _circle(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Radius 1."""
    return u * u + v * v <= RADIUS**2


def _square(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Half a side of 0.85."""
    return np.maximum(np.abs(u), np.abs(v)) <= 870


def _half_planes(
    corners: tuple[int, int, int], v: np.ndarray, u: np.ndarray
) -> np.ndarray:
    """The number of half-planes of a regular polygon that contain each point.

    The polygon has `corners[0]` corners at the radius `corners[2]`, one at the top;
    sides join every `corners[1]`-th corner.
    """
    number, step, radius = corners
    count = np.zeros(u.shape, np.int8)
    for side in range(number):
        # The normal points to the middle of a side.
        angle = np.pi * (2 * side + step) / number
        down, right = (int(np.rint(1024 * f(angle))) for f in (np.cos, np.sin))
        distance = int(np.rint(radius * np.cos(np.pi * step / number)))
        count += right * u - down * v <= 1024 * distance
    return count


def _triangle(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Equal sides, corners at 1.2."""
    return _half_planes((3, 1, 1230), v - 150, u) == 3


def _star(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Five points at 1.2: inside at least four of the lines between second points."""
    return _half_planes((5, 2, 1230), v, u) >= 4


def _heart(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Two discs on the upper sides of a square that stands on its corner."""
    left, right, down = u + 480, u - 480, v + 330
    discs = np.minimum(left * left, right * right) + down * down <= 679**2
    return discs | (np.abs(u) + np.abs(v - 150) <= 960)


def _cross(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Two beams, 2.1 by 0.68."""
    first, second = np.abs(u), np.abs(v)
    return (np.minimum(first, second) <= 350) & (np.maximum(first, second) <= 1080)


# In the order of captions.SHAPES.
INSIDE = (_circle, _square, _triangle, _star, _heart, _cross)


@functools.cache
def _rotation(degrees: int) -> tuple[int, int]:
    """Cosine and sine times 2**14."""
    angle = np.deg2rad(degrees)
    return int(np.rint(16384 * np.cos(angle))), int(np.rint(16384 * np.sin(angle)))


def _own_coordinates(
    plan: Plan, corner: np.ndarray, side: int, size: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of a grid of points in the frame of each shape, in RADIUS.

    Args:
      plan: Plan of n drawings.
      corner: int [n, 2], the window's first row and column, in pixels.
      side: side of the window, in pixels.
      size: side of the images, in pixels.
      samples: points per pixel in each direction.

    Returns:
      int32 v (down) and u (right), each [n, side * samples, side * samples].
    """
    number = samples * corner[..., None] + np.arange(samples * side)
    points = (2 * number + 1) * SIDE // (2 * samples * size) - plan.centre[..., None]
    down, right = points.astype(np.int32).transpose(1, 0, 2)
    rotation = np.array([_rotation(int(turn)) for turn in plan.turn])
    cosine, sine = (rotation * RADIUS // plan.radius[:, None]).T.astype(np.int32)

    def place(along_down: np.ndarray, along_right: np.ndarray) -> np.ndarray:
        rows = (along_down[:, None] * down)[:, :, None]
        return (rows + (along_right[:, None] * right)[:, None, :]) >> 14

    return place(cosine, -sine), place(sine, cosine)


def _windows(plan: Plan, size: int) -> tuple[np.ndarray, int]:
    """Squares around the shapes, with the size of the largest shape.

    Returns:
      (int [n, 2] first row and column, side), in pixels.
    """
    reach = plan.radius * REACH // RADIUS
    side = min(size, int(2 * reach.max() * size // SIDE) + 2)
    corner = (plan.centre - reach[:, None]) * size // SIDE
    return np.clip(corner, 0, size - side), side


def _coverage(plan: Plan, corner: np.ndarray, side: int, size: int) -> np.ndarray:
    """Number of the 9 points of each pixel in the shape: uint16 [n, side, side]."""
    v, u = _own_coordinates(plan, corner, side, size, SAMPLES)
    inside = INSIDE[plan.shape[0]](v, u).view(np.uint8)
    points = inside.reshape(len(v), side, SAMPLES, side, SAMPLES)
    # Much faster than a sum over two axes.
    rows = points[:, :, 0] + points[:, :, 1] + points[:, :, 2]
    return (rows[..., 0] + rows[..., 1] + rows[..., 2]).astype(np.uint16)


def _paint(plan: Plan, corner: np.ndarray, side: int, size: int) -> np.ndarray:
    """The colours of the shapes with light: uint16 [n, side, side, 3]."""
    colour = (PAINTS[plan.colour] + plan.paint).astype(np.int32)
    v, u = _own_coordinates(plan, corner, side, size, 1)
    down, right = plan.light.astype(np.int32).T[:, :, None, None]
    light = 256 + (down * v + right * u) // RADIUS
    lit = light[..., None] * colour[:, None, None] >> 8
    return np.clip(lit, 0, 255).astype(np.uint16)


def draw_shapes(plan: Plan, images: np.ndarray) -> None:
    """Draws on images, in place.

    Args:
      plan: Plan of n drawings of one shape.
      images: uint8 [n, size, size, 3].
    """
    size = images.shape[1]
    corner, side = _windows(plan, size)
    down, right = (corner[..., None] + np.arange(side)).transpose(1, 0, 2)
    window = np.arange(len(images))[:, None, None], down[:, :, None], right[:, None]
    covered = _coverage(plan, corner, side, size)[..., None]
    full = np.uint16(SAMPLES**2)
    mixed = _paint(plan, corner, side, size) * covered
    mixed += images[window] * (full - covered)
    images[window] = (mixed + full // 2) // full


# ---- textures: tones 0..255 uint8 [n, size, size] from a lattice uint8 [n, 256]


def _smooth(cells: int, lattice: np.ndarray, size: int) -> np.ndarray:
    """A lattice of `cells` x `cells` random tones, interpolated bilinearly."""
    corners = lattice[:, : cells**2].reshape(-1, cells, cells)
    return exact.resize(corners, size, size)


def _waves(lattice: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Two waves over the image, each with its own direction and length.

    Yields:
      int32 [n, size, size], 0..255.
    """
    points = ((2 * np.arange(size) + 1) * SIDE // (2 * size)).astype(np.int32)
    values = lattice.astype(np.int32)
    for i in (0, 3):
        # At most 4 periods of 2**13 over the side.
        down, right = (values[:, i + j, None] - 128 for j in (0, 1))
        rows, columns = (down * points >> 4)[:, :, None], (right * points >> 4)
        phase = rows + columns[:, None, :] + 32 * values[:, i + 2, None, None]
        yield np.abs((phase & 8191) - 4096) * 255 >> 12


def _stripes(lattice: np.ndarray, size: int) -> np.ndarray:
    """One wave."""
    return next(_waves(lattice, size)).astype(np.uint8)


def _lumps(lattice: np.ndarray, size: int) -> np.ndarray:
    """The product of two waves."""
    first, second = _waves(lattice, size)
    return (first * second >> 8).astype(np.uint8)


TEXTURES = (
    functools.partial(_smooth, 2),
    functools.partial(_smooth, 5),
    functools.partial(_smooth, 14),
    _stripes,
    _lumps,
)


def draw_grounds(plan: Plan, size: int) -> np.ndarray:
    """Textures in two colours.

    Args:
      plan: Plan of n drawings of one texture.
      size: side of the images, in pixels.

    Returns:
      uint8 [n, size, size, 3].
    """
    tone = TEXTURES[plan.texture[0]](plan.lattice, size)
    tone = tone.astype(np.uint16)[..., None]
    first, second = plan.ground.astype(np.uint16).transpose(1, 0, 2)[:, :, None, None]
    # At most 255 * 255 + 127, which 16 bits hold.
    return ((first * (255 - tone) + second * tone + 127) // 255).astype(np.uint8)


def draw(plan: Plan, size: int) -> np.ndarray:
    """The drawings of a plan.

    Args:
      plan: Plan of N drawings.
      size: side of the images, in pixels.

    Returns:
      uint8 [N, size, size, 3].
    """
    images = np.empty((len(plan.shape), size, size, 3), np.uint8)
    for rows in _groups(plan.texture, plan.radius, size):
        images[rows] = draw_grounds(_take(plan, rows), size)
    for rows in _groups(plan.shape, plan.radius, size):
        drawn = images[rows]
        draw_shapes(_take(plan, rows), drawn)
        images[rows] = drawn
    return images


def _take(plan: Plan, rows: np.ndarray) -> Plan:
    """The plan of some of the drawings."""
    return Plan(*(field[rows] for field in plan))


def _groups(values: np.ndarray, radius: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yields rows of one value and of similar radius, CHUNK pixels at a time."""
    number = max(1, CHUNK // size**2)
    for value in np.unique(values):
        rows = np.flatnonzero(values == value)
        rows = rows[np.argsort(radius[rows], kind="stable")]
        for start in range(0, len(rows), number):
            yield rows[start : start + number]
