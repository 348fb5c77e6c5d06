"""Labels of a tuple: the digit and its quarter.

Both are attributes and may be modalities of one token. The quarter is an attribute of
the tuple if all images share it, else of each image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

SHARED, PRIVATE = "shared", "private"  # the quarters of a tuple
DIGIT, QUADRANT = "digit", "quadrant"
# Names of the values, by their index.
VALUES = {
    DIGIT: tuple("0123456789"),
    QUADRANT: ("upper-left", "upper-right", "lower-left", "lower-right"),
}


def shown_by(
    images: Sequence[str], label_modalities: Sequence[str], quadrant: str
) -> dict[str, list[str]]:
    """The attributes of a tuple: name -> the modalities that show it.

    Args:
      images: names of the image modalities.
      label_modalities: names of the other modalities, keys of VALUES.
      quadrant: SHARED, PRIVATE, or "": no attributes except the label.
    """
    if quadrant == PRIVATE:
        return {f"{QUADRANT}_{m}": [m] for m in images}
    names = (DIGIT, QUADRANT) if quadrant else ()
    return {n: [*images, *(m for m in label_modalities if m == n)] for n in names}


def describe(
    images: Sequence[str], label_modalities: Sequence[str], quadrant: str
) -> dict[str, Any]:
    """The metadata of attributes and words; {} without both.

    Args as in `shown_by`.
    """
    shown = shown_by(images, label_modalities, quadrant)
    found: dict[str, Any] = {}
    if label_modalities:
        found["words"] = {m: list(VALUES[m]) for m in label_modalities}
        found["meanings"] = {
            m: {m: {word: word for word in VALUES[m]}}
            for m in label_modalities
            if m in shown
        }
    if shown:
        found["attributes"] = {
            name: list(VALUES[name.partition("_")[0]]) for name in shown
        }
        found["shown"] = shown
    if QUADRANT in label_modalities:
        found["shown"] = shown | {"label": shown[DIGIT]}
    return found


def features(
    digits: np.ndarray,
    quadrants: np.ndarray | None,
    label_modalities: Sequence[str],
    quadrant: str,
) -> dict[str, np.ndarray]:
    """Features of some tuples: attributes int32 [n] and tokens int32 [n, 1].

    Args:
      digits: uint8 [n].
      quadrants: int64 [M, n], quarter of each image; None without quarters.
      label_modalities: as in `shown_by`.
      quadrant: as in `shown_by`.
    """
    values = {DIGIT: digits.astype(np.int32)}
    if quadrants is not None:
        values[QUADRANT] = quadrants[0].astype(np.int32)
    found = {m: values[m][:, None] for m in label_modalities}
    if quadrant == SHARED:
        found |= {f"attribute/{name}": x for name, x in values.items()}
    elif quadrants is not None:
        own = quadrants.astype(np.int32)
        found |= {f"attribute/{QUADRANT}_m{m}": x for m, x in enumerate(own)}
    return found
