"""Rules by which a claim holds or fails."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.judging import paper, statistics
from experiments.plans import choice, plan, tables
from experiments.plans.names import model_label
from experiments.plans.runs import RunRecord, read_log, show


class Line(NamedTuple):
    """Subject of one verdict: a claim on a data set, for a model and a metric.

    Attributes:
      evidence: the runs.
      claim: one of `paper.CLAIMS`.
      column: the data set.
      model: the model, or "".
      tag: the metric.
    """

    evidence: plan.Evidence
    claim: paper.Claim
    column: str
    model: str
    tag: str


def _points_of(line: Line, spec: plan.Spec, tag: str = "") -> list[statistics.Point]:
    """A metric of a run at all betas with at least two finite seeds, in order.

    Raises:
      NotMeasured: there is no such beta.
    """
    evidence, tag = line.evidence, tag or line.tag
    own = evidence.spreads[evidence.spreads["run"] == spec.folder]
    if len(own) and not own["seeds"].any():
        raise statistics.NotMeasured(f"all members of {spec.folder} diverged")
    known = tables.over_betas(evidence, spec, tag).dropna(subset="mean")
    if known.empty:
        raise statistics.NotMeasured(f"no {tag} in {spec.folder}")
    several = known[known["seeds"] > 1]
    if several.empty:
        raise statistics.NotMeasured(
            f"one finite seed per beta in {spec.folder}: no standard error"
        )
    columns = several[["beta", "mean", "std", "seeds"]]
    label = _spec_label(line, spec)
    return [
        statistics.at_one_beta(label, *row) for row in columns.itertuples(index=False)
    ]


def _chosen(
    line: Line,
    spec: plan.Spec,
    tag: str = "",
    among: Sequence[statistics.Point] | None = None,
) -> statistics.Point:
    """A metric of a run, each seed at the beta that is best for the others.

    Args:
      line: the line to judge.
      spec: the run.
      tag: the metric; "": that of the line.
      among: points of the betas to select from; None: all of `_points_of`.

    Raises:
      NotMeasured: there are too few seeds.
    """
    points = _points_of(line, spec, tag) if among is None else among
    if len(points) == 1:
        return points[0]
    values = _values(line, spec, points, tag)
    if values.shape[1] < choice.LEAST_SEEDS:
        raise statistics.NotMeasured(
            f"{values.shape[1]} finite seeds in {spec.folder}: choosing beta by the "
            f"other seeds needs {choice.LEAST_SEEDS} or more"
        )
    found = choice.estimate(values, _sign(tag or line.tag) * values)
    if math.isnan(found.error) or found.num < 2:
        raise statistics.NotMeasured(
            f"too many members of {spec.folder} diverged to choose beta without the "
            "seed that it is judged by"
        )
    betas = tuple(points[place].beta for place in found.places)
    beta = betas[0] if len(set(betas)) == 1 else math.nan
    return statistics.Point(
        points[0].label, beta, found.mean, found.std, found.num, found.error, betas
    )


def _values(
    line: Line, spec: plan.Spec, points: Sequence[statistics.Point], tag: str = ""
) -> np.ndarray:
    """Values of a metric, [betas of `points`, seeds with a finite value]."""
    known = tables.by_seed(line.evidence, spec, tag or line.tag)
    return known.loc[[p.beta for p in points]].dropna(axis=1, how="all").to_numpy()


def _at_figure_beta(line: Line, spec: plan.Spec) -> statistics.Point:
    """A metric of a run at the beta of Figures 3 and 11."""
    beta = line.evidence.config.datasets[line.column].beta_by_modalities
    for point in _points_of(line, spec):
        if math.isclose(point.beta, beta):
            return point
    raise statistics.NotMeasured(
        f"no two finite seeds at beta = {beta:g} in {spec.folder}"
    )


def _by_modalities(line: Line, model: str) -> tuple[list[int], list[statistics.Point]]:
    """Numbers of modalities, and a model's metric for each number.

    Raises:
      NotMeasured: there is only one number.
    """
    scale = line.evidence.config
    nums = list(scale.num_modalities)
    if len(nums) < 2:
        raise statistics.NotMeasured("this scale has only one number of modalities")
    is_repeated = line.claim.runs == "repeated"
    points = []
    for num in nums:
        spec = plan.modalities_spec(scale, line.column, model, num, is_repeated)
        points.append(_at_figure_beta(line, spec)._replace(label=f"M={num}"))
    return nums, points


def _specs(line: Line) -> list[plan.Spec]:
    """The runs of a line: the model's, and then those of the other models."""
    return paper.specs_of(line.claim, line.evidence.config, line.column, line.model)


def _sign(tag: str) -> int:
    """1 if higher is better, -1 if lower is better."""
    return -1 if tag.startswith(paper.LOWER_IS_BETTER) else 1


def _finding(
    terms: Sequence[tuple[float, statistics.Point]], note: str = ""
) -> statistics.Finding:
    """The finding of a rule with one number."""
    difference, error, z = statistics.combine(terms)
    points = [point for _, point in terms]
    return statistics.Finding(z >= paper.THRESHOLD, points, difference, error, z, note)


def _is_better(line: Line) -> statistics.Finding:
    """Whether the model is better than all others."""
    return _differs(line, _sign(line.tag))


def _is_worse(line: Line) -> statistics.Finding:
    """Whether the model is worse than all others."""
    return _differs(line, -_sign(line.tag))


def _differs(line: Line, sign: int) -> statistics.Finding:
    """sign * (model - other), for the other with the smallest z."""
    model, *others = (_chosen(line, spec) for spec in _specs(line))
    findings = [_finding([(sign, model), (-sign, other)]) for other in others]
    least = min(findings, key=lambda finding: finding.z)
    return least._replace(points=[model, *others])


def _reaches(line: Line) -> statistics.Finding:
    """Whether the model is worse than the target by less than half a mixture's gap."""
    return _within(line, (1,))


def _is_level(line: Line) -> statistics.Finding:
    """Whether the model is within half of a mixture's gap of the target."""
    return _within(line, (1, -1))


def _within(line: Line, sides: Sequence[int]) -> statistics.Finding:
    """Smallest PART_OF_GAP * (gap of the nearer mixture) - side * (gap of the model).

    Gaps are differences to the target, positive if the target is better. A mixture
    without a gap leaves no tolerance.
    """
    model, target, *mixtures = (_chosen(line, spec) for spec in _specs(line))
    sign = _sign(line.tag)
    nearer = max(mixtures, key=lambda point: sign * point.mean)
    findings = [
        _finding(
            [
                (sign * side, model),
                (sign * (paper.PART_OF_GAP - side), target),
                (-sign * paper.PART_OF_GAP, nearer),
            ]
        )
        for side in sides
    ]
    return min(findings, key=lambda finding: finding.z)


def _grows(line: Line) -> statistics.Finding:
    """Whether the gap to the unimodal VAEs grows with the number of modalities."""
    nums, points = _by_modalities(line, line.model)
    target = _at_figure_beta(line, _specs(line)[-1])
    sign = -_sign(line.tag)  # positive if the metric gets worse
    ups = [sign * (b.mean - a.mean) > 0 for a, b in itertools.pairwise(points)]
    found = _finding(statistics.slope_terms(nums, points, sign))
    is_behind = sign * (points[-1].mean - target.mean) > 0
    return found._replace(
        holds=found.holds and sum(ups) > len(ups) / 2 and is_behind,
        points=[*points, target],
        note=f"{sum(ups)} of {len(ups)} steps for the worse; beta {target.beta:g}",
    )


def _grows_more(line: Line) -> statistics.Finding:
    """Whether the model loses more with the number of modalities than another one."""
    sign = -_sign(line.tag)
    nums, points = _by_modalities(line, line.model)
    _, others = _by_modalities(line, line.claim.others[0])
    name = label_of(line.claim.others[0])
    others = [point._replace(label=f"{name} {point.label}") for point in others]
    terms = statistics.slope_terms(nums, points, sign) + statistics.slope_terms(
        nums, others, -sign
    )
    return _finding(terms, f"beta {points[0].beta:g}")


def _rises(line: Line) -> statistics.Finding:
    """Whether a metric rises with beta."""
    points = _points_of(line, _specs(line)[0])
    if len(points) < 2:
        raise statistics.NotMeasured(
            f"only beta = {points[0].beta:g} has two finite seeds"
        )
    sign = _sign(line.tag)
    ups = [sign * (b.mean - a.mean) > 0 for a, b in itertools.pairwise(points)]
    found = _finding(
        statistics.slope_terms(
            [math.log10(point.beta) for point in points], points, sign
        ),
        f"{sum(ups)} of {len(ups)} steps up",
    )
    return found._replace(holds=found.holds and sum(ups) > len(ups) / 2)


def _can_rise(line: Line) -> statistics.Finding:
    """Whether some beta is better than the smallest."""
    points = _points_of(line, _specs(line)[0])
    if len(points) < 2:
        raise statistics.NotMeasured(
            f"only beta = {points[0].beta:g} has two finite seeds"
        )
    top = _chosen(line, _specs(line)[0], among=points[1:])
    return _finding([(_sign(line.tag), top), (-_sign(line.tag), points[0])])


def _falls(line: Line) -> statistics.Finding:
    """Whether a metric is lower than on the other data set."""
    here, there = (_chosen(line, spec) for spec in _specs(line))
    return _finding([(-1, here), (1, there)])


def _collapses(line: Line) -> statistics.Finding:
    """Whether a coherence above chance is less than half of that on the other data."""
    specs = _specs(line)
    here, there = (_chosen(line, spec) for spec in specs)
    seen, seen_there = (_accuracy(line, spec) for spec in specs)
    if seen_there <= paper.CHANCE:
        raise statistics.NotMeasured(
            f"the classifiers of {specs[1].folder} are at chance"
        )
    # Worse classifiers alone would leave this part of the coherence.
    part = paper.PART_OF_GAP * (seen - paper.CHANCE) / (seen_there - paper.CHANCE)
    chance = statistics.constant("chance", paper.CHANCE)
    found = _finding([(part, there), (-1, here), (1 - part, chance)])
    return found._replace(
        points=[here, there],
        note=f"classifiers on real images {seen:.3f} and {seen_there:.3f}",
    )


def _accuracy(line: Line, spec: plan.Spec) -> float:
    """Mean accuracy of the classifiers of all modalities on real images."""
    spreads = line.evidence.spreads
    own = spreads[(spreads["run"] == spec.folder) & (spreads["seeds"] > 0)]
    own = own[own["tag"].str.startswith(f"{paper.ACCURACY}/")].dropna(subset="mean")
    if own.empty:
        raise statistics.NotMeasured(f"no {paper.ACCURACY} in {spec.folder}")
    own = own[own["beta"] == own["beta"].iloc[0]]  # equal for all betas
    return float(own["mean"].mean())


def _is_never_both(line: Line) -> statistics.Finding:
    """Whether a model lacks quality or coherence at every beta."""
    model, target, *others = _specs(line)
    tag = _image_quality(line)
    qualities = {point.beta: point for point in _points_of(line, model, tag)}
    coherences = {point.beta: point for point in _points_of(line, model)}
    goal = _chosen(line, target, tag)
    last_spec, last = min(
        ((spec, _chosen(line, spec, tag)) for spec in others),
        key=lambda pair: _sign(tag) * pair[1].mean,
    )
    *_, z = statistics.combine([(_sign(tag), goal), (-_sign(tag), last)])
    bound = _half_of_real(line, model)
    findings = []
    for beta in sorted(qualities.keys() & coherences.keys()):
        quality, coherence = qualities[beta], coherences[beta]
        points = [quality, coherence._replace(label=f"{quality.label} coherence")]
        short = [_finding([(1, bound), (-1, coherence)], "short of coherence")]
        if z >= paper.THRESHOLD:
            part, sign = paper.PART_OF_GAP, _sign(tag)
            terms = [(sign * (1 - part), goal)]
            if last_spec == model:  # both numbers are of the same members
                terms += [(sign, _part_of_own(line, model, tag, part, quality))]
            else:
                terms += [(sign * part, last), (-sign, quality)]
            short.append(_finding(terms, "short of quality"))
        most = max(short, key=lambda finding: finding.z)
        word = most.note if most.holds else "clearly short of neither"
        findings.append(most._replace(points=points, note=f"{word} at beta {beta:g}"))
    if not findings:
        raise statistics.NotMeasured(f"no beta with both {tag} and {line.tag}")
    least = min(findings, key=lambda finding: finding.z)
    return least._replace(
        points=[*least.points, goal, last],
        note="; ".join(
            [f"{bound.label} {bound.mean:.3f}", *(found.note for found in findings)]
        ),
    )


def _part_of_own(
    line: Line, spec: plan.Spec, tag: str, part: float, at: statistics.Point
) -> statistics.Point:
    """A fraction of a run's metric at the chosen beta, minus the metric at one beta.

    Both are of the same members; the error is that of the difference.
    """
    points = _points_of(line, spec, tag)
    values = _values(line, spec, points, tag)
    one = values[[[point.beta for point in points].index(at.beta)]]
    found = part * choice.replicates(values, _sign(tag) * values)
    found -= choice.replicates(one, one)
    error = choice.jackknife_error(found)
    return statistics.constant(at.label, float(found[0]))._replace(error=error)


def _image_quality(line: Line) -> str:
    """The metric of image quality: FID if all runs have it, else SWD."""
    (fid,), (swd,) = paper.IMAGE
    return fid if statistics.has_metrics(line.evidence, _specs(line), (fid,)) else swd


def _half_of_real(line: Line, spec: plan.Spec) -> statistics.Point:
    """The coherence halfway between chance and the accuracy on real images."""
    chance, tag = paper.GIVEN_CAPTIONS[line.tag]
    known = tables.over_betas(line.evidence, spec, tag)["mean"].dropna()
    if known.empty:
        raise statistics.NotMeasured(f"no {tag} in {spec.folder}")
    half = chance + paper.PART_OF_GAP * (known.iloc[0] - chance)
    return statistics.constant("half of real images", half)


def _nothing_is_annotated(line: Line) -> statistics.Finding:
    """Never judged; reports the matching networks, which need no labels."""
    seen = []
    for model in line.claim.others:
        spec = plan.Spec(line.column, model)
        known = tables.over_betas(line.evidence, spec, line.tag).dropna(subset="mean")
        for beta, *numbers in known[["beta", "mean", "std"]].itertuples(index=False):
            seen.append(f"{label_of(model)} {show(*numbers)} (beta {beta:g})")
    text = "not judged by a number: no labels say what is shared"
    if seen:
        text += (
            "; coherence as matching networks see it (0: shuffled pairs, 1: real ones) "
            + ", ".join(seen)
        )
    raise statistics.NotMeasured(text)


def _ranks_alike(line: Line) -> statistics.Finding:
    """Whether log-likelihoods rank models like the line's metric."""
    quality, likelihood = (
        [_chosen(line, spec, tag) for spec in _specs(line)]
        for tag in (line.tag, paper.LOG_LIKELIHOOD)
    )
    sign = _sign(line.tag)
    agreements, notes = [], []
    for i, j in itertools.permutations(range(len(quality)), 2):
        *_, z = statistics.combine([(sign, quality[i]), (-sign, quality[j])])
        if z < paper.THRESHOLD:
            continue  # not clearly better
        *found, z = statistics.combine([(1, likelihood[i]), (-1, likelihood[j])])
        agreements.append((z, found))
        if z < paper.THRESHOLD:
            word = "reversed" if z <= -paper.THRESHOLD else "undecided"
            notes.append(f"{quality[i].label} before {quality[j].label} {word}")
    points = [p._replace(label=f"{p.label} log-lik.") for p in likelihood]
    if not agreements:
        return statistics.Finding(False, points, note="no two models differ in quality")
    same = sum(z >= paper.THRESHOLD for z, _ in agreements)
    is_none_reversed = all(z > -paper.THRESHOLD for z, _ in agreements)
    notes.insert(0, f"{same} of {len(agreements)} pairs the same way round")
    least, (difference, error) = min(agreements)
    holds = is_none_reversed and same > len(agreements) / 2
    return statistics.Finding(holds, points, difference, error, least, ", ".join(notes))


def _is_smaller(line: Line) -> statistics.Finding:
    """Whether MoPoE-VAE's gap to MVAE over MMVAE's is smaller in log-likelihood."""
    terms, parts = [], []
    names = {line.tag: "", paper.LOG_LIKELIHOOD: " log-lik."}
    for tag, weight in ((line.tag, 1), (paper.LOG_LIKELIHOOD, -1)):
        model, target, whole = (_chosen(line, spec, tag) for spec in _specs(line))
        *_, z = statistics.combine([(_sign(tag), target), (-_sign(tag), whole)])
        if z < paper.THRESHOLD:
            return statistics.Finding(
                False,
                [target, whole],
                note=f"{whole.label} has no gap to {target.label} in {tag}",
            )
        model, target, whole = (
            point._replace(label=point.label + names[tag])
            for point in (model, target, whole)
        )
        gap = target.mean - whole.mean
        part = (target.mean - model.mean) / gap
        parts.append(part)
        # Derivatives of the relative gap with respect to the three means.
        terms += [
            (-weight / gap, model),
            (weight * (1 - part) / gap, target),
            (weight * part / gap, whole),
        ]
    error = statistics.combine(terms)[1]
    difference = parts[0] - parts[1]
    z = difference / error if error else math.copysign(math.inf, difference)
    note = f"part of the gap {parts[0]:.2f} in quality, {parts[1]:.2f} in log-lik."
    points = [point for _, point in terms]
    return statistics.Finding(z >= paper.THRESHOLD, points, difference, error, z, note)


def _trains(line: Line) -> statistics.Finding:
    """Whether all members at the largest beta trained to the end."""
    run = line.evidence.runs[_specs(line)[0]]
    beta = max(line.evidence.config.beta)
    members = [m for m in run.summary["members"] if math.isclose(m["beta"], beta)]
    if not members:
        raise statistics.NotMeasured(f"no member with beta = {beta:g}")
    if not any(line.tag in member["metrics"] for member in members):
        raise statistics.NotMeasured(f"no {line.tag} in {_specs(line)[0].folder}")
    losses = [_first_and_last_loss(run, member) for member in members]
    done = [
        member["finite"]
        and member["metrics"].get(line.tag) is not None
        and last < first
        for member, (first, last) in zip(members, losses, strict=True)
    ]
    first, last = np.mean(losses, axis=0)
    note = (
        f"beta = {beta:g}: {sum(done)} of {len(done)} members; loss {first:.1f} when "
        f"first logged, {last:.1f} at the end"
    )
    return statistics.Finding(all(done), (), note=note)


def _first_and_last_loss(run: RunRecord, member: dict) -> tuple[float, float]:
    """The first and last logged training loss of a member, in nats."""
    names = ("beta", "learning_rate", "seed")
    losses = [
        math.nan if entry["train/loss"] is None else entry["train/loss"]
        for entry in read_log(run)
        if "train/loss" in entry and all(entry[name] == member[name] for name in names)
    ]
    if len(losses) < 2:
        raise statistics.NotMeasured(
            f"{run.workdir}/metrics.jsonl has fewer than two values of the loss"
        )
    return losses[0], losses[-1]


JUDGES: dict[str, Callable[[Line], statistics.Finding]] = {
    "is worse": _is_worse,
    "is better": _is_better,
    "reaches": _reaches,
    "is level": _is_level,
    "grows": _grows,
    "grows more": _grows_more,
    "rises": _rises,
    "can rise": _can_rise,
    "collapses": _collapses,
    "falls": _falls,
    "ranks alike": _ranks_alike,
    "is smaller": _is_smaller,
    "trains": _trains,
    "is never both": _is_never_both,
    "nothing is annotated": _nothing_is_annotated,
}


def label_of(model: str) -> str:
    """Name of a model."""
    return model_label(model)


def _spec_label(line: Line, spec: plan.Spec) -> str:
    """Name of a run in a line: its model, and its data set if there are two."""
    label = label_of(spec.model)
    if line.claim.reference:
        label += f" on {tables.title(line.evidence, spec.dataset)}"
    return label
