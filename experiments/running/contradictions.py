"""Members of sweeps whose coherence other measures contradict.

Coherence depends on one classifier, and a model may generate bad samples that this
classifier accepts. Matching networks without labels, the Fréchet distance and a second
classifier are independent of it. If they contradict a coherence, look at the samples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmvae_jax.training.log import member_name
from mmvae_jax.training.sweep import Member

_COHERENCE = "eval/coherence/leave_one_out"
_MATCHING = "eval/matching/leave_one_out"
# The first distance is of the same examples as the coherence, the second of others.
_FRECHET = {
    "eval/conditional_frechet/leave_one_out": "Fréchet distance given all others",
    "eval/frechet_classifier": "Fréchet distance of prior samples",
}
_SECOND = "eval/second_judge/coherence/leave_one_out"
_REAL = "eval/second_judge/real_disagreement/leave_one_out"
# Smaller differences of coherence and matching, and smaller relative differences of a
# distance, are noise: the standard error of a fraction of 600 examples is 0.02.
NOISE = 0.02


def names_of(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the members of one sweep, which are as in summary.json."""
    fields = [Member(*(x[name] for name in Member._fields)) for x in members]
    return [member_name(own, fields) for own in fields]


def contradictions(
    members: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[str]:
    """Lines on values that contradict the coherence of members.

    A line says that

    - a member has a higher coherence than another (the one with the best matching), but
      a lower matching and a larger Fréchet distance, all by more than NOISE. The
      distance is that given all others, as the coherence, if both have it; else that
      of prior samples;
    - the coherence by the second classifier is lower than by the first, by more than
      the fraction of real examples on which the two disagree, plus NOISE.

    Args:
      members: members of sweeps on the same data with the same judges, as in
        summary.json: finite, metrics. Members that are not finite, and missing values,
        are ignored.
      names: their names.
    """
    finite = [
        (member, name)
        for member, name in zip(members, names, strict=True)
        if member["finite"]
    ]
    lines = []
    for member, name in finite:
        coherence = _value(member, _COHERENCE)
        better = [other for other in finite if _is_contradicted(member, other[0])]
        if better:
            best, its_name = max(better, key=lambda other: _value(other[0], _MATCHING))
            distance = _distance_of(member, best)
            numbers = ", ".join(
                f"{words} {_value(member, tag):.3g} against {_value(best, tag):.3g}"
                for words, tag in (
                    ("coherence", _COHERENCE),
                    ("matching", _MATCHING),
                    (_FRECHET[distance], distance),
                )
            )
            lines.append(
                f"{name} is more coherent than {its_name} for its classifier alone "
                f"({numbers}): look at its samples"
            )
        second, explained = _value(member, _SECOND), _value(member, _REAL)
        if coherence - second > explained + NOISE:
            lines.append(
                f"{name} has the coherence {coherence:.3g}, by a second classifier "
                f"{second:.3g}, and of real examples the two disagree about "
                f"{explained:.3g} only: look at its samples"
            )
    return lines


def _is_contradicted(member: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a member is more coherent than another, but worse in both others."""
    distance = _distance_of(member, other)
    return (
        _value(member, _COHERENCE) > _value(other, _COHERENCE) + NOISE
        and _value(member, _MATCHING) < _value(other, _MATCHING) - NOISE
        and _value(member, distance) > _value(other, distance) * (1 + NOISE)
    )


def _distance_of(member: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The tag of the distance to compare: the first that both have, or the last."""
    *first, last = _FRECHET
    known = (
        tag
        for tag in first
        if not any(math.isnan(_value(own, tag)) for own in (member, other))
    )
    return next(known, last)


def _value(member: Mapping[str, Any], tag: str) -> float:
    """A value of a member, or NaN, for which all comparisons are False."""
    value = member["metrics"].get(tag)
    return math.nan if value is None else float(value)
