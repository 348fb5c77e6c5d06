"""Metrics in figures: label, limits and chance of an axis."""

from typing import NamedTuple

from mmvae_jax.evaluation.metric import axis_label
from mmvae_jax.evaluation.metrics import COLUMNS

_NUM_CLASSES = 10
# Probability of guessing an attribute of Shapes.
CHANCES = {"colour": 1 / 8, "shape": 1 / 6}


class Metric(NamedTuple):
    """The quantity of a panel.

    Attributes:
      tag: tag of summary.json, without the modality.
      label: label of the axis.
      limits: limits of the axis; None: those of the values.
      chance: value of random guessing, drawn as a line.
      reachable: tag of the values on real data, drawn as a line.
    """

    tag: str
    label: str
    limits: tuple[float, float] | None = None
    chance: float | None = None
    reachable: str = ""


def _metric(tag: str, chance: float | None = None) -> Metric:
    """The metric of a column; `chance` depends on the data."""
    column = COLUMNS[tag]
    reachable = f"eval/{column.reachable}" if column.reachable else ""
    return Metric(tag, axis_label(column), column.limits, chance, reachable)


FID = _metric("eval/fid")
FRECHET = _metric("eval/frechet_classifier")
SWD = _metric("eval/swd")
COHERENCE = _metric("eval/coherence/leave_one_out", 1 / _NUM_CLASSES)
SINGLE = COHERENCE._replace(
    tag="eval/coherence/size_1", label="coherence given one", reachable=""
)
PROBE = _metric("eval/linear_probe", 1 / _NUM_CLASSES)
ELBO = _metric("eval/elbo")
LIKELIHOOD = _metric("eval/log_likelihood")
MATCHING = _metric("eval/matching/leave_one_out")
# Mean over both attributes and directions of a pair; see `attribute_metric`.
ATTRIBUTES = _metric(
    "eval/attribute_coherence/leave_one_out", sum(CHANCES.values()) / len(CHANCES)
)


def attribute_metric(attribute: str, target: str, source: str) -> Metric:
    """The coherence of one attribute in one direction."""
    return Metric(
        f"eval/attribute_coherence/{attribute}/{target}_given_{source}",
        ATTRIBUTES.label,
        ATTRIBUTES.limits,
        CHANCES[attribute],
        f"{ATTRIBUTES.reachable}/{attribute}/{target}",
    )
