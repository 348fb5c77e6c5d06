"""Members of a sweep whose coherence other measures contradict.

Coherence is what one classifier says, and samples that satisfy it need not be good: a
model may have found what the classifier takes for a class. Networks that match without
labels, the Fréchet distance and a second classifier were not asked by coherence, so
that where all of them say the opposite, the samples are to be looked at.
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
# Smaller differences of coherence and matching, and smaller parts of a distance, are
# taken for noise: the standard error of a share of 600 examples is 0.02.
NOISE = 0.02


def contradictions(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines on values that contradict the coherence of members, one each.

    A line says that

    - a member has a higher coherence than another, and a lower matching and a larger
      Fréchet distance too, all by more than NOISE: the other is the best matched one;
    - the second classifier finds less coherence than the first, by more than the share
      of real examples on which the two disagree, and NOISE.

    Args:
      members: of one sweep, as summary.json has them: beta, learning_rate, seed,
        finite, metrics. Those that are not finite, and what is not measured or nan,
        have no part in it.
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
    """Whether a member is more coherent than another, and worse by both others."""
    return (
        _value(member, _COHERENCE) > _value(other, _COHERENCE) + NOISE
        and _value(member, _MATCHING) < _value(other, _MATCHING) - NOISE
        and _value(member, _FRECHET) > _value(other, _FRECHET) * (1 + NOISE)
    )


def _value(member: Mapping[str, Any], tag: str) -> float:
    """A value of a member; nan, which compares with nothing, where there is none."""
    value = member["metrics"].get(tag)
    return math.nan if value is None else float(value)
