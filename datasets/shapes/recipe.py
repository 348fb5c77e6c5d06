"""Pairs of a drawing and a caption that share only shape and colour."""

from typing import NamedTuple

import numpy as np
from polymnist import exact

from shapes import captions, drawing

SPLITS = ("train", "test")
NUM_COLOURS = len(captions.COLOURS)


class Pairs(NamedTuple):
    """The examples of one split before drawing.

    Attributes:
      plan: drawing.Plan of N drawings.
      wording: int64 [N], index of the wording of each caption.
      captions: N texts.
      labels: int64 [N], shape * number of colours + colour.
    """

    plan: drawing.Plan
    wording: np.ndarray
    captions: list[str]
    labels: np.ndarray


def combinations(split: str, held_out: int) -> np.ndarray:
    """The labels of one split.

    Held-out labels are taken diagonally, so that the first ones differ in shape and
    colour, and every shape and colour stays in the training split.

    Args:
      split: "train" or "test".
      held_out: number of labels only in the test split, at most half of all; the test
        split then has no others. With 0 both splits have all.

    Returns:
      int64, sorted.
    """
    colour, shape = np.indices((NUM_COLOURS, len(captions.SHAPES)))
    diagonal = shape * NUM_COLOURS + (colour + shape) % NUM_COLOURS
    # Every second diagonal comes first, so that a shape keeps every second colour.
    order = np.concatenate([diagonal[::2], diagonal[1::2]]).ravel()
    if not held_out:
        return np.sort(order)
    return np.sort(order[:held_out] if split == "test" else order[held_out:])


def make_pairs(split: str, num: int, held_out: int, seed: int) -> Pairs:
    """Draws all random choices of one split.

    Args:
      split: "train" or "test".
      num: N; counts of combinations differ by at most one.
      held_out: see `combinations`.
      seed: int, at least 0.

    Returns:
      Pairs.
    """
    words = (seed, SPLITS.index(split))
    order = exact.random_order((*words, drawing.PURPOSES.index("label")), num)
    labels = np.resize(combinations(split, held_out), num)[order]
    shape, colour = divmod(labels, NUM_COLOURS)
    wording = drawing.uniform(words, "wording", 0, captions.NUM_WORDINGS - 1, num)
    shapes, colours = tuple(captions.SHAPES), tuple(captions.COLOURS)
    texts = [
        captions.write_caption(shapes[s], colours[c], w)
        for s, c, w in zip(shape, colour, wording, strict=True)
    ]
    return Pairs(drawing.make_plan(shape, colour, words), wording, texts, labels)
