"""Metrics that figures show: label, limits and chance of an axis."""

from typing import NamedTuple

from mmvae_jax.evaluation.metric import axis_label
from mmvae_jax.evaluation.metrics import COLUMNS

_NUM_CLASSES = 10
# Chance of guessing a value of an attribute of Shapes.
CHANCES = {"colour": 1 / 8, "shape": 1 / 6}


class Metric(NamedTuple):
    """Quantity that a panel shows.

    Attributes:
      tag: tag of summary.json, without the modality.
      label: label of the axis.
      limits: limits of the axis; None where they are those of the values.
      chance: the value of guessing, drawn as a line.
      reachable: a tag whose values on real data are drawn as a line.
    """

    tag: str
    label: str
    limits: tuple[float, float] | None = None
    chance: float | None = None
    reachable: str = ""


def _metric(tag: str, chance: float | None = None) -> Metric:
    """A metric as its column shows it; the chance of a class is that of the data."""
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
# Mean over both attributes and directions of a pair; `attribute_metric` has each.
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
