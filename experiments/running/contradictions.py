"""Members of a sweep whose coherence other measures contradict.

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
_FRECHET = "eval/frechet_classifier"
_SECOND = "eval/second_judge/coherence/leave_one_out"
_REAL = "eval/second_judge/real_disagreement/leave_one_out"
# Smaller differences of coherence and matching, and smaller relative differences of a
# distance, are noise: the standard error of a fraction of 600 examples is 0.02.
NOISE = 0.02


def contradictions(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines on values that contradict the coherence of members.

    A line says that

    - a member has a higher coherence than another (the one with the best matching), but
      a lower matching and a larger Fréchet distance, all by more than NOISE;
    - the coherence by the second classifier is lower than by the first, by more than
      the fraction of real examples on which the two disagree, plus NOISE.

    Args:
      members: members of one sweep as in summary.json: beta, learning_rate, seed,
        finite, metrics. Members that are not finite, and missing values, are ignored.
    """
    finite = [member for member in members if member["finite"]]

    def name_of(member: Mapping[str, Any]) -> str:
        fields = [Member(*(x[name] for name in Member._fields)) for x in members]
        return member_name(fields[list(members).index(member)], fields)

    lines = []
    for member in finite:
        coherence = _value(member, _COHERENCE)
        better = [other for other in finite if _is_contradicted(member, other)]
        if better:
            best = max(better, key=lambda other: _value(other, _MATCHING))
            numbers = ", ".join(
                f"{words} {_value(member, tag):.3g} against {_value(best, tag):.3g}"
                for words, tag in (
                    ("coherence", _COHERENCE),
                    ("matching", _MATCHING),
                    ("Fréchet distance", _FRECHET),
                )
            )
            lines.append(
                f"{name_of(member)} is more coherent than {name_of(best)} for its "
                f"classifier alone ({numbers}): look at its samples"
            )
        second, explained = _value(member, _SECOND), _value(member, _REAL)
        if coherence - second > explained + NOISE:
            lines.append(
                f"{name_of(member)} has the coherence {coherence:.3g}, by a second "
                f"classifier {second:.3g}, and of real examples the two disagree about "
                f"{explained:.3g} only: look at its samples"
            )
    return lines


def _is_contradicted(member: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a member is more coherent than another, but worse in both others."""
    return (
        _value(member, _COHERENCE) > _value(other, _COHERENCE) + NOISE
        and _value(member, _MATCHING) < _value(other, _MATCHING) - NOISE
        and _value(member, _FRECHET) > _value(other, _FRECHET) * (1 + NOISE)
    )


def _value(member: Mapping[str, Any], tag: str) -> float:
    """A value of a member, or NaN, for which all comparisons are False."""
    value = member["metrics"].get(tag)
    return math.nan if value is None else float(value)
