"""Labels that a tuple shares beside its images: the digit, and its quarter.

Both are attributes, and may be modalities of one token. The quarter is an attribute of
the tuple where all images have the same one, and of each image alone where not.
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
      images: names of the modalities that are images.
      label_modalities: names of the others, keys of VALUES.
      quadrant: SHARED, PRIVATE, or "": there are none beside the label.
    """
    if quadrant == PRIVATE:
        return {f"{QUADRANT}_{m}": [m] for m in images}
    names = (DIGIT, QUADRANT) if quadrant else ()
    return {n: [*images, *(m for m in label_modalities if m == n)] for n in names}


def describe(
    images: Sequence[str], label_modalities: Sequence[str], quadrant: str
) -> dict[str, Any]:
    """The metadata of attributes and words; {} where there are neither.

    Args as of `shown_by`.
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
    """Attributes int32 [n] and tokens int32 [n, 1] of some tuples, by their features.

    Args:
      digits: uint8 [n].
      quadrants: int64 [M, n], of each image; None where digits are not in quarters.
      label_modalities: as of `shown_by`.
      quadrant: as of `shown_by`.
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
