"""Samples of one member as pictures, and captions as text.

Images with 1 or 3 channels are shown unchanged; for others, each channel is a grey
image, one below the other. Vectors are squares of grey values, row by row, from the
smallest (black) to the largest value of the test examples. Captions are shown up to the
first `<eos>`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import einops
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmvae_jax import tokens
from mmvae_jax.data.dataset import Split, is_image, is_tokens
from mmvae_jax.types import PRIOR, AnyArray, Array

_Words = Mapping[str, Sequence[str]]

_FONT_PIXELS = 13
_LINE = 17  # pixels from one line of text to the next
_TEXT_WIDTH = 250  # width of a caption beside its images
_LIST_WIDTH = 620  # width of a list of captions
_PAGE_WIDTH = 1_000  # largest width of two columns; else there is one column
_INDENT = "   "  # indentation of wrapped lines
_TILE = 64  # approximate width of an image beside captions, at least two thirds of it
_GAP = 8
_LINE_BETWEEN = 2  # pixels between the modalities of a traversal
_INK, _REAL = (20, 20, 20), (0, 70, 160)
_MISSING = "(missing)"
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Draws(NamedTuple):
    """Draws of one modality given another.

    Attributes:
      target: the generated modality.
      source: the given modality.
      examples: N real examples with the given modality.
      draws: examples of the target for each draw, [N, ...].
    """

    target: str
    source: str
    examples: Split
    draws: Sequence[Array]


class Traversal(NamedTuple):
    """A latent traversal: decoded examples while one latent dimension varies.

    Attributes:
      dimensions: the R dimensions that vary.
      decoded: modality -> [R, L, ...], examples at L values of each dimension.
    """

    dimensions: Sequence[int]
    decoded: Mapping[str, Array]


class Samples(NamedTuple):
    """Generated examples of one member.

    Attributes:
      prior: modality -> [N, ...], unconditional examples.
      conditional: draws of each modality given another.
      traversal: None for models with `draws_missing`.
      sampler: name of the sampler of the unconditional examples.
    """

    prior: Mapping[str, Array]
    conditional: Sequence[Draws]
    traversal: Traversal | None = None
    sampler: str = PRIOR


def draw_grids(samples: Samples, test: Split, words: _Words) -> dict[str, np.ndarray]:
    """Pictures of samples (the paper's Figures 9 and 10, and 4 for captions).

    Args:
      samples: samples of one member.
      test: real examples, for the types of modalities.
      words: modality of tokens -> the words by token; other tokens are not shown.

    Returns:
      name -> uint8 [H, W, 1 or 3]. "prior", or the name of the sampler: one row of
      samples per modality. "m0_given_m1" and so on: given examples on top, and one row
      per draw below; with captions, given examples on the left, and their draws beside
      them. "traversal": one row per dimension, and the modalities below each other,
      without captions.
    """
    texts = [m for m, x in test.modalities.items() if is_tokens(x) and m in words]
    shown = [m for m, x in test.modalities.items() if not is_tokens(x)]
    grids = {}
    if texts:
        grids[samples.sampler] = _captioned_prior(samples.prior, test, shown, words)
    elif shown:
        rows = [_row(_tiles(test.modalities[m], samples.prior[m])) for m in shown]
        grids[samples.sampler] = _stack(rows)
    for given in samples.conditional:
        if given.target not in shown + texts:
            continue
        name = f"{given.target}_given_{given.source}"
        if texts and given.source in shown + texts:
            grids[name] = _draws_beside(given, test, words)
        elif not texts:
            grids[name] = _draws_below(given, test)
    if samples.traversal is not None and shown:
        grids["traversal"] = _traversal(samples.traversal, test, shown)
    return grids


def write_captions(samples: Samples, test: Split, words: _Words) -> str:
    """The generated captions and the given captions, as plain text.

    Args:
      samples: samples of one member.
      test: real examples, for the types of modalities.
      words: modality of tokens -> the words by token.

    Returns:
      Lines; "" without captions.
    """
    texts = [m for m, x in test.modalities.items() if is_tokens(x) and m in words]
    lines = []
    by = "" if samples.sampler == PRIOR else f" (drawn by {samples.sampler})"
    for m in texts:
        lines += [f"{m}, unconditional{by}", ""]
        drawn = _captions(samples.prior[m], words[m])
        lines += [f"{k}. {text}" for k, text in enumerate(drawn, 1)] + [""]
    for given in samples.conditional:
        if given.target in texts:
            lines += [f"{given.target} given {given.source}", ""]
            real = _real_captions(given.examples, given.target, words)
            draws = [_captions(x, words[given.target]) for x in given.draws]
            for k, text in enumerate(real):
                lines += [f"{k + 1}. real: {text}"]
                lines += [f"   - {own[k]}" for own in draws]
            lines += [""]
        elif given.source in texts:
            lines += [f"{given.target} given {given.source}: what is given", ""]
            real = _real_captions(given.examples, given.source, words)
            lines += [f"{k}. {text}" for k, text in enumerate(real, 1)] + [""]
    return "\n".join(lines)


def _captions(rows: AnyArray, words: Sequence[str]) -> list[str]:
    """Tokens [N, T] as text."""
    return [tokens.decode(row, words) for row in np.asarray(rows)]


def _real_captions(examples: Split, modality: str, words: _Words) -> list[str]:
    """Captions of real examples, or _MISSING."""
    found = _captions(examples.modalities[modality], words[modality])
    is_there = examples.is_observed(modality)
    return [
        text if there else _MISSING for text, there in zip(found, is_there, strict=True)
    ]


# ---- without captions


def _draws_below(given: Draws, test: Split) -> np.ndarray:
    """A row of the given examples, unless they are tokens, and one row per draw."""
    is_shown = not is_tokens(given.examples.modalities[given.source])
    rows = [_row(_real_tiles(given, test))] if is_shown else []
    rows += [_row(_tiles(test.modalities[given.target], x)) for x in given.draws]
    return _stack(rows)


def _traversal(traversal: Traversal, test: Split, shown: Sequence[str]) -> np.ndarray:
    """One row per modality and dimension, with white lines between modalities."""
    rows: list[np.ndarray] = []
    for m in shown:
        own = [_row(_tiles(test.modalities[m], x)) for x in traversal.decoded[m]]
        line = np.full((_LINE_BETWEEN, *own[0].shape[1:]), 255, np.uint8)
        rows += [*([line] if rows else []), *own]
    return _stack(rows)


def _real_tiles(given: Draws, test: Split) -> np.ndarray:
    """The given examples as tiles."""
    real = given.examples.modalities[given.source]
    values = real / np.float32(255) if is_image(real) else real
    return _tiles(test.modalities[given.source], values)


def _tiles(real: np.ndarray, examples: AnyArray) -> np.ndarray:
    """Examples [N, ...] of the type of `real` as pictures: uint8 [N, H, W, 1 or 3]."""
    values = np.nan_to_num(np.asarray(examples, np.float64))
    if is_image(real):
        if values.shape[-1] not in (1, 3):
            values = einops.rearrange(values, "n h w c -> n (c h) w 1")
    else:
        low, high = np.float64(np.min(real)), np.float64(np.max(real))
        grey = (np.clip(values, low, high) - low) / max(high - low, 1e-9)
        grey = grey.reshape(len(grey), -1)
        side = math.ceil(math.sqrt(grey.shape[1]))
        grey = np.pad(grey, ((0, 0), (0, side**2 - grey.shape[1])))
        tiles = np.kron(grey.reshape(-1, side, side), np.ones((1, 4, 4)))
        # A white edge separates examples.
        values = np.pad(tiles, ((0, 0), (0, 1), (0, 1)), constant_values=1.0)
        values = values[..., None]
    return np.round(values * 255).astype(np.uint8)


def _row(tiles: np.ndarray) -> np.ndarray:
    """Tiles side by side, uint8 [H, N W, C]."""
    return einops.rearrange(tiles, "n h w c -> h (n w) c")


def _stack(rows: Sequence[np.ndarray], blank: int = 0) -> np.ndarray:
    """Stacks rows [h, w, c]; pads narrow rows, and repeats grey next to colours."""
    width = max(row.shape[1] for row in rows)
    channels = max(row.shape[2] for row in rows)
    return np.concatenate(
        [
            np.pad(
                np.broadcast_to(row, (*row.shape[:2], channels)),
                ((0, 0), (0, width - row.shape[1]), (0, 0)),
                constant_values=blank,
            )
            for row in rows
        ]
    )


# ---- with captions: on white, and enlarged so that text fits beside images


def _captioned_prior(
    prior: Mapping[str, Array], test: Split, shown: Sequence[str], words: _Words
) -> np.ndarray:
    """Samples in two columns, each its images and then its captions."""
    columns = [_large(_tiles(test.modalities[m], prior[m])) for m in shown]
    texts = [_captions(prior[m], words[m]) for m in prior if m in words]
    lines = [[(text, _INK) for text in own] for own in zip(*texts, strict=True)]
    written = _texts(lines, _TEXT_WIDTH)
    cells = [_beside(parts) for parts in zip(*columns, written, strict=True)]
    return _on_white(_in_columns(cells, 2))


def _draws_beside(given: Draws, test: Split, words: _Words) -> np.ndarray:
    """One row per given example: the example on the left, then its draws."""
    is_list = given.target in words
    if given.source in words:
        real = _real_captions(given.examples, given.source, words)
        left = _texts([[(text, _REAL)] for text in real], _TEXT_WIDTH)
    else:
        left = list(_large(_real_tiles(given, test), 2 if is_list else 1))
    if is_list:
        right = _texts(_lists(given, words), _LIST_WIDTH)
    else:
        kind = test.modalities[given.target]
        drawn = np.stack([_large(_tiles(kind, x)) for x in given.draws], axis=1)
        right = [_row(tiles) for tiles in drawn]
    what = f"{len(given.draws)} draws of {given.target} given it"
    (name,) = _texts([[(given.source, _REAL)]], _TEXT_WIDTH)
    missing = max(0, name.shape[1] - left[0].shape[1])
    left = [_padded(picture, 0, missing) for picture in left]
    head = [
        *_texts([[(given.source, _REAL)]], left[0].shape[1], is_tight=False),
        *_texts([[(what, _INK)]], right[0].shape[1], is_tight=False),
    ]
    rows = [_beside(pair) for pair in zip(left, right, strict=True)]
    num = 2 if is_list and 2 * rows[0].shape[1] <= _PAGE_WIDTH else 1
    return _on_white([_beside([_beside(head)] * num), *_in_columns(rows, num)])


def _lists(given: Draws, words: _Words) -> list[list[tuple[str, tuple]]]:
    """The real caption and the draws of each example, with their colours."""
    real = _real_captions(given.examples, given.target, words)
    drawn = [_captions(x, words[given.target]) for x in given.draws]
    return [
        [(f"real: {text}", _REAL), *((own[k], _INK) for own in drawn)]
        for k, text in enumerate(real)
    ]


def _large(tiles: np.ndarray, times: int = 1) -> np.ndarray:
    """Enlarges tiles [N, H, W, C] by a whole factor, with three channels."""
    scale = times * max(1, round(_TILE / tiles.shape[1]))
    tiles = einops.repeat(tiles, "n h w c -> n (h s) (w z) c", s=scale, z=scale)
    return np.broadcast_to(tiles, (*tiles.shape[:3], 3))


def _texts(
    blocks: Sequence[Sequence[tuple[str, tuple]]], width: int, is_tight: bool = True
) -> list[np.ndarray]:
    """Blocks of lines of text, each a picture: uint8 [H, W, 3].

    Args:
      blocks: the lines of each block with their colours.
      width: largest width of a line in pixels; longer ones are wrapped.
      is_tight: whether all blocks have the width of the longest line.
    """
    font = ImageFont.load_default(_FONT_PIXELS)
    wrapped = [
        [(part, ink) for text, ink in lines for part in _wrap(text, font, width)]
        for lines in blocks
    ]
    if is_tight:
        lengths = [font.getlength(part) for lines in wrapped for part, _ in lines]
        width = math.ceil(max(lengths)) + 1
    pictures = []
    for lines in wrapped:
        picture = Image.new("RGB", (width, _LINE * len(lines)), "white")
        canvas = ImageDraw.Draw(picture)
        for k, (part, ink) in enumerate(lines):
            canvas.text((0, k * _LINE), part, fill=ink, font=font)
        pictures.append(np.asarray(picture))
    return pictures


def _wrap(text: str, font: _Font, width: int) -> list[str]:
    """Wraps a text at words into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(_INDENT + word)
        else:
            lines[-1] = longer
    return lines


def _beside(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures [h, w, 3] side by side on white, with a gap after each."""
    height = max(part.shape[0] for part in parts)
    return np.concatenate([_padded(x, height - len(x), _GAP) for x in parts], axis=1)


def _in_columns(rows: Sequence[np.ndarray], num: int) -> list[np.ndarray]:
    """Arranges rows of one width in `num` columns, column by column."""
    length = math.ceil(len(rows) / num)
    return [_beside(rows[k::length]) for k in range(length)]


def _on_white(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks rows with gaps and an edge."""
    whole = _stack([_padded(row, _GAP, 0) for row in rows], blank=255)
    return np.pad(whole, ((_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255)


def _padded(picture: np.ndarray, below: int, right: int) -> np.ndarray:
    """Adds white below and to the right of a picture."""
    return np.pad(picture, ((0, below), (0, right), (0, 0)), constant_values=255)
