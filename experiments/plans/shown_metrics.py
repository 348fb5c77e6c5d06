"""Metrics that figures show: label, limits and chance of an axis."""

from typing import NamedTuple

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


def _metric(tag: str, label: str, chance: float | None = None) -> Metric:
    """A metric with the limits and the reachable value of its column."""
    column = COLUMNS[tag]
    reachable = f"eval/{column.reachable}" if column.reachable else ""
    return Metric(tag, label, column.limits, chance, reachable)


FID = _metric("eval/fid", "FID (lower is better)")
FRECHET = _metric(
    "eval/frechet_classifier",
    "Fréchet distance, classifier features (lower is better)",
)
SWD = _metric("eval/swd", "sliced Wasserstein distance (lower is better)")
COHERENCE = _metric(
    "eval/coherence/leave_one_out", "leave-one-out coherence", 1 / _NUM_CLASSES
)
SINGLE = Metric(
    "eval/coherence/size_1",
    "coherence given one",
    (0.0, 1.0),
    1 / _NUM_CLASSES,
)
PROBE = _metric(
    "eval/linear_probe", "accuracy of a linear classifier", 1 / _NUM_CLASSES
)
ELBO = _metric("eval/elbo", "ELBO (nats, higher is better)")
LIKELIHOOD = _metric("eval/log_likelihood", "joint log-likelihood (nats)")
MATCHING = _metric("eval/matching/leave_one_out", "annotation-free coherence")
# Mean over both attributes and directions of a pair; `attribute_metric` has each.
ATTRIBUTES = _metric(
    "eval/attribute_coherence/leave_one_out",
    "attribute coherence",
    sum(CHANCES.values()) / len(CHANCES),
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
