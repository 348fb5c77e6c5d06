"""Whether the papers' claims hold, on the runs that are there.

    python -m experiments.claims runs/figures_demo

Judges every claim of `experiments.paper` on the finished runs of a plan's folder:
"holds", "fails" or "not measured", with the numbers, the difference in units of its
standard error, and the scale; prints a table a claim, and writes DIR/claims.json and
DIR/claims.md. A
claim that fails is a result, and the exit code is 0.

Means and standard deviations s are over the n seeds of a beta that did not diverge.
Differences and slopes are sums of c_i mean_i over models or betas, their standard
errors the root of the sum of c_i^2 s_i^2 / n_i. As in the paper (Sec. 5.1) each model
is taken at its own best beta for the metric, by the mean over seeds.
"""

import contextlib
import datetime
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tabulate
from absl import flags

from experiments import command, paper, plans, terminal, values
from experiments.names import model_label
from experiments.results import RunRecord, show
from mmvae_jax import writers
from mmvae_jax.errors import UsageError
from mmvae_jax.files import write_whole

WORDS = {True: "holds", False: "fails", None: "not measured"}


class NotMeasured(Exception):
    """The runs do not say; its text is why."""


class Point(NamedTuple):
    """A metric of a run at one beta, over its seeds.

    Attributes:
      label: name of the measurement, for the text of the numbers.
      beta: beta of the members.
      mean: over the seeds that did not diverge.
      std: standard deviation (n - 1) over them.
      num: number of these seeds.
    """

    label: str
    beta: float
    mean: float
    std: float
    num: int


class Line(NamedTuple):
    """Subject of one verdict: a claim on a data set, for a model and a metric.

    Attributes:
      evidence: the runs.
      claim: one of `paper.CLAIMS`.
      column: the data set.
      model: the model, or "".
      tag: the metric.
    """

    evidence: plans.Evidence
    claim: paper.Claim
    column: str
    model: str
    tag: str


class Finding(NamedTuple):
    """Result of a rule.

    Attributes:
      holds: whether the claim does.
      points: the numbers that it is made of.
      difference: the number that should exceed zero; nan if there is no such one.
      standard_error: standard error of the difference.
      z: the difference in units of its standard error.
      note: further remark.
    """

    holds: bool
    points: Sequence[Point]
    difference: float = math.nan
    standard_error: float = math.nan
    z: float = math.nan
    note: str = ""


class Verdict(NamedTuple):
    """A claim's verdict on one data set, for one model and metric.

    Attributes:
      claim: the claim.
      dataset: the data set's title at this scale.
      model: the model's label, or "all".
      tag: the metric.
      rule: rule by which it was judged, as text.
      scale: the name of the scale.
      holds: True, False, or None for what was not measured.
      difference: the number that should exceed zero, nan where there is none.
      standard_error: standard error of the difference.
      z: the difference in units of its standard error.
      numbers: the measurements as text, or why there are none.
      points: the measurements.
    """

    claim: paper.Claim
    dataset: str
    model: str
    tag: str
    rule: str
    scale: str
    holds: bool | None
    difference: float
    standard_error: float
    z: float
    numbers: str
    points: Sequence[Point]

    @property
    def word(self) -> str:
        """The verdict in words, one of WORDS."""
        return WORDS[self.holds]


def evaluate(
    evidence: plans.Evidence, found: Sequence[paper.Claim] = paper.CLAIMS
) -> list[Verdict]:
    """The verdicts on some claims, in their order."""
    return [
        judge(Line(evidence, claim, column, model, tag))
        for claim in found
        for column in claim.columns
        if column in plans.all_columns(evidence.config)
        for model in claim.models
        for tag in tags_of(evidence, claim, column, model)
    ]


def tags_of(
    evidence: plans.Evidence, claim: paper.Claim, column: str, model: str
) -> Sequence[str]:
    """The metrics of a claim: FID where all runs have it, or what stands in for it."""
    if claim.tags not in (paper.FIRST, paper.MEAN, paper.IMAGE):
        return claim.tags
    fid, others = claim.tags
    specs = paper.specs_of(claim, evidence.config, column, model)
    return fid if has_metrics(evidence, specs, fid) else others


def has_metrics(
    evidence: plans.Evidence, specs: Sequence[plans.Spec], tags: Sequence[str]
) -> bool:
    """Whether all of some runs that are there have all of some metrics.

    A run has a metric if it has it at every beta at which a member is finite.
    """
    spreads = evidence.spreads
    is_own = spreads["run"].isin([spec.folder for spec in specs])
    own = spreads[is_own & (spreads["seeds"] > 0)]
    num_known = own["mean"][own["tag"].isin(tags)].count()
    places = own[["run", "beta"]].drop_duplicates()
    return 0 < num_known == len(places) * len(tags)


def judge(line: Line) -> Verdict:
    """The verdict on one line."""
    evidence, claim = line.evidence, line.claim
    rule, text = JUDGES[claim.rule], rule_text(claim)
    try:
        _require(line)
        found = rule(line)
        numbers = "; ".join(_show(point, line) for point in found.points)
        numbers = "; ".join(part for part in (numbers, found.note) if part)
    except NotMeasured as reason:
        found, numbers = Finding(None, ()), str(reason)
    return Verdict(
        claim,
        values.title(evidence, line.column),
        _label(line.model) if line.model else "all",
        line.tag,
        text,
        evidence.scale,
        found.holds,
        found.difference,
        found.standard_error,
        found.z,
        numbers,
        found.points,
    )


def _require(line: Line) -> None:
    """Raises NotMeasured if a run that the line needs is not there."""
    specs = paper.specs_of(line.claim, line.evidence.config, line.column, line.model)
    missing = [spec.folder for spec in specs if spec not in line.evidence.runs]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise NotMeasured(f"no run {missing[0]}{more}")


# Numbers.


def combine(terms: Iterable[tuple[float, Point]]) -> tuple[float, float, float]:
    """A sum of coefficients times means, its standard error, and their quotient.

    Args:
      terms: (coefficient, point), of independent points; none twice.

    Returns:
      (difference, standard error, z). Where nothing varies, z is infinite, or zero
      for a difference of zero.
    """
    terms = list(terms)
    value = math.fsum(c * point.mean for c, point in terms)
    error = math.sqrt(math.fsum(c**2 * p.std**2 / p.num for c, p in terms))
    if error > 0:
        return value, error, value / error
    return value, error, math.copysign(math.inf, value) if value else 0.0


def slope_terms(
    positions: Sequence[float], points: Sequence[Point], sign: float = 1.0
) -> list[tuple[float, Point]]:
    """The least-squares slope of points over positions as terms of `combine`."""
    centred = np.asarray(positions, np.float64) - np.mean(positions)
    weights = sign * centred / (centred @ centred)
    return list(zip(weights.tolist(), points, strict=True))


def points_of(line: Line, spec: plans.Spec, tag: str = "") -> list[Point]:
    """A metric of a run at all betas with two or more finite seeds, smallest first.

    Raises:
      NotMeasured: there is none.
    """
    evidence, tag = line.evidence, tag or line.tag
    own = evidence.spreads[evidence.spreads["run"] == spec.folder]
    if len(own) and not own["seeds"].any():
        raise NotMeasured(f"all members of {spec.folder} diverged")
    known = values.over_betas(evidence, spec, tag).dropna(subset="mean")
    if known.empty:
        raise NotMeasured(f"no {tag} in {spec.folder}")
    several = known[known["seeds"] > 1]
    if several.empty:
        raise NotMeasured(
            f"one finite seed a beta in {spec.folder}: its standard error is unknown"
        )
    columns = several[["beta", "mean", "std", "seeds"]]
    label = _spec_label(line, spec)
    return [Point(label, *row) for row in columns.itertuples(index=False)]


def best(line: Line, spec: plans.Spec, tag: str = "") -> Point:
    """A metric of a run at the beta where its mean is best."""
    sign = _sign(tag or line.tag)
    return max(points_of(line, spec, tag), key=lambda point: sign * point.mean)


def at_figure_beta(line: Line, spec: plans.Spec) -> Point:
    """A metric of a run at the one beta of Figures 3 and 11."""
    beta = line.evidence.config.datasets[line.column].beta_by_modalities
    for point in points_of(line, spec):
        if math.isclose(point.beta, beta):
            return point
    raise NotMeasured(f"no two finite seeds at beta = {beta:g} in {spec.folder}")


def by_modalities(line: Line, model: str) -> tuple[list[int], list[Point]]:
    """Numbers of modalities, and a model's metric with each of them.

    Raises:
      NotMeasured: there is only one number.
    """
    scale = line.evidence.config
    nums = list(scale.num_modalities)
    if len(nums) < 2:
        raise NotMeasured("this scale has only one number of modalities")
    is_repeated = line.claim.runs == "repeated"
    points = []
    for num in nums:
        spec = plans.modalities_spec(scale, line.column, model, num, is_repeated)
        points.append(at_figure_beta(line, spec)._replace(label=f"M={num}"))
    return nums, points


def _specs(line: Line) -> list[plans.Spec]:
    """The runs of a line, the model's first and then the others', in their order."""
    return paper.specs_of(line.claim, line.evidence.config, line.column, line.model)


def _sign(tag: str) -> int:
    """1 where higher is better, -1 where lower is."""
    return -1 if tag.startswith(paper.LOWER_IS_BETTER) else 1


def _finding(terms: Sequence[tuple[float, Point]], note: str = "") -> Finding:
    """The finding of a rule that is one number."""
    difference, error, z = combine(terms)
    points = [point for _, point in terms]
    return Finding(z >= paper.THRESHOLD, points, difference, error, z, note)


# Rules: see paper.RULES.


def is_better(line: Line) -> Finding:
    """Whether the model is ahead of all others, each at its best beta."""
    return _differs(line, _sign(line.tag))


def is_worse(line: Line) -> Finding:
    """Whether the model is behind all others, each at its best beta."""
    return _differs(line, -_sign(line.tag))


def _differs(line: Line, sign: int) -> Finding:
    """sign * (model - other), the least of the others in standard errors."""
    model, *others = (best(line, spec) for spec in _specs(line))
    findings = [_finding([(sign, model), (-sign, other)]) for other in others]
    least = min(findings, key=lambda finding: finding.z)
    return least._replace(points=[model, *others])


def reaches(line: Line) -> Finding:
    """Whether the model is less than half of a mixture's gap behind the target."""
    return _within(line, (1,))


def is_level(line: Line) -> Finding:
    """Whether the model is within half of a mixture's gap of the target."""
    return _within(line, (1, -1))


def _within(line: Line, sides: Sequence[int]) -> Finding:
    """PART_OF_GAP * (gap of the nearer mixture) - side * (gap of the model), the least.

    Gaps are to the target, positive where it is ahead. A mixture without a gap leaves
    nothing to be within.
    """
    model, target, *mixtures = (best(line, spec) for spec in _specs(line))
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


def grows(line: Line) -> Finding:
    """Whether the gap to the unimodal VAEs grows with the number of modalities."""
    nums, points = by_modalities(line, line.model)
    target = at_figure_beta(line, _specs(line)[-1])
    sign = -_sign(line.tag)  # of getting worse
    ups = [sign * (b.mean - a.mean) > 0 for a, b in itertools.pairwise(points)]
    found = _finding(slope_terms(nums, points, sign))
    is_behind = sign * (points[-1].mean - target.mean) > 0
    return found._replace(
        holds=found.holds and sum(ups) > len(ups) / 2 and is_behind,
        points=[*points, target],
        note=f"{sum(ups)} of {len(ups)} steps for the worse; beta {target.beta:g}",
    )


def grows_more(line: Line) -> Finding:
    """Whether the model loses more with the number of modalities than another one."""
    sign = -_sign(line.tag)
    nums, points = by_modalities(line, line.model)
    _, others = by_modalities(line, line.claim.others[0])
    name = _label(line.claim.others[0])
    others = [point._replace(label=f"{name} {point.label}") for point in others]
    terms = slope_terms(nums, points, sign) + slope_terms(nums, others, -sign)
    return _finding(terms, f"beta {points[0].beta:g}")


def rises(line: Line) -> Finding:
    """Whether a metric rises with beta."""
    points = points_of(line, _specs(line)[0])
    if len(points) < 2:
        raise NotMeasured(f"only beta = {points[0].beta:g} has two finite seeds")
    sign = _sign(line.tag)
    ups = [sign * (b.mean - a.mean) > 0 for a, b in itertools.pairwise(points)]
    found = _finding(
        slope_terms([math.log10(point.beta) for point in points], points, sign),
        f"{sum(ups)} of {len(ups)} steps up",
    )
    return found._replace(holds=found.holds and sum(ups) > len(ups) / 2)


def can_rise(line: Line) -> Finding:
    """Whether some beta is better than the smallest."""
    points = points_of(line, _specs(line)[0])
    if len(points) < 2:
        raise NotMeasured(f"only beta = {points[0].beta:g} has two finite seeds")
    top = max(points[1:], key=lambda point: _sign(line.tag) * point.mean)
    return _finding([(_sign(line.tag), top), (-_sign(line.tag), points[0])])


def falls(line: Line) -> Finding:
    """Whether a metric is lower than on the other data set, each at its best beta."""
    here, there = (best(line, spec) for spec in _specs(line))
    return _finding([(-1, here), (1, there)])


def collapses(line: Line) -> Finding:
    """Whether less than half of what is above chance on the other data set is left."""
    specs = _specs(line)
    here, there = (best(line, spec) for spec in specs)
    seen, seen_there = (_accuracy(line, spec) for spec in specs)
    if seen_there <= paper.CHANCE:
        raise NotMeasured(f"the classifiers of {specs[1].folder} guess")
    # The part of the coherence that worse classifiers alone would leave.
    part = paper.PART_OF_GAP * (seen - paper.CHANCE) / (seen_there - paper.CHANCE)
    chance = Point("chance", math.nan, paper.CHANCE, 0.0, 1)
    found = _finding([(part, there), (-1, here), (1 - part, chance)])
    return found._replace(
        points=[here, there],
        note=f"classifiers on real images {seen:.3f} and {seen_there:.3f}",
    )


def _accuracy(line: Line, spec: plans.Spec) -> float:
    """Mean accuracy of the classifiers of all modalities on real images."""
    spreads = line.evidence.spreads
    own = spreads[(spreads["run"] == spec.folder) & (spreads["seeds"] > 0)]
    # The same at every beta.
    own = own[own["beta"] == own["beta"].iloc[0]].dropna(subset="mean")
    own = own[own["tag"].str.startswith(f"{paper.ACCURACY}/")]
    if own.empty:
        raise NotMeasured(f"no {paper.ACCURACY} in {spec.folder}")
    return float(own["mean"].mean())


def is_never_both(line: Line) -> Finding:
    """Whether a model falls short of quality or of coherence at every beta."""
    model, target, *others = _specs(line)
    tag = _image_quality(line)
    qualities = {point.beta: point for point in points_of(line, model, tag)}
    coherences = {point.beta: point for point in points_of(line, model)}
    goal = best(line, target, tag)
    last = min(
        (best(line, spec, tag) for spec in others),
        key=lambda point: _sign(tag) * point.mean,
    )
    *_, z = combine([(_sign(tag), goal), (-_sign(tag), last)])
    bound = _half_of_real(line, model)
    findings = []
    for beta in sorted(qualities.keys() & coherences.keys()):
        quality, coherence = qualities[beta], coherences[beta]
        points = [quality, coherence._replace(label=f"{quality.label} coherence")]
        short = [_finding([(1, bound), (-1, coherence)], "short of coherence")]
        if z >= paper.THRESHOLD:
            weights = {goal: 1 - paper.PART_OF_GAP, last: paper.PART_OF_GAP}
            # The model may be the last one itself.
            weights[quality] = weights.get(quality, 0) - 1
            terms = [(_sign(tag) * w, point) for point, w in weights.items()]
            short.append(_finding(terms, "short of quality"))
        most = max(short, key=lambda finding: finding.z)
        word = most.note if most.holds else "clearly short of neither"
        findings.append(most._replace(points=points, note=f"{word} at beta {beta:g}"))
    if not findings:
        raise NotMeasured(f"no beta with both {tag} and {line.tag}")
    least = min(findings, key=lambda finding: finding.z)
    return least._replace(
        points=[*least.points, goal, last],
        note="; ".join(
            [f"{bound.label} {bound.mean:.3f}", *(found.note for found in findings)]
        ),
    )


def _image_quality(line: Line) -> str:
    """The metric of the quality of images: FID where all runs have it."""
    (fid,), (swd,) = paper.IMAGE
    return fid if has_metrics(line.evidence, _specs(line), (fid,)) else swd


def _half_of_real(line: Line, spec: plans.Spec) -> Point:
    """A coherence half of the way from chance to what is read off real images."""
    chance, tag = paper.GIVEN_CAPTIONS[line.tag]
    known = values.over_betas(line.evidence, spec, tag)["mean"].dropna()
    if known.empty:
        raise NotMeasured(f"no {tag} in {spec.folder}")
    half = chance + paper.PART_OF_GAP * (known.iloc[0] - chance)
    return Point("half of real images", math.nan, half, 0.0, 1)


def nothing_is_annotated(line: Line) -> Finding:
    """Never judged; says what networks trained without labels see."""
    seen = []
    for model in line.claim.others:
        spec = plans.Spec(line.column, model)
        known = values.over_betas(line.evidence, spec, line.tag).dropna(subset="mean")
        for beta, *numbers in known[["beta", "mean", "std"]].itertuples(index=False):
            seen.append(f"{_label(model)} {show(*numbers)} (beta {beta:g})")
    text = "not judged by a number: no labels say what is shared"
    if seen:
        text += (
            "; coherence as matching networks see it (0: shuffled pairs, 1: real ones) "
            + ", ".join(seen)
        )
    raise NotMeasured(text)


def ranks_alike(line: Line) -> Finding:
    """Whether log-likelihoods rank models as the line's metric does."""
    quality, likelihood = (
        [best(line, spec, tag) for spec in _specs(line)]
        for tag in (line.tag, paper.LOG_LIKELIHOOD)
    )
    sign = _sign(line.tag)
    agreements, notes = [], []
    for i, j in itertools.permutations(range(len(quality)), 2):
        *_, z = combine([(sign, quality[i]), (-sign, quality[j])])
        if z < paper.THRESHOLD:
            continue  # not ahead, or not clearly
        *found, z = combine([(1, likelihood[i]), (-1, likelihood[j])])
        agreements.append((z, found))
        if z < paper.THRESHOLD:
            word = "reversed" if z <= -paper.THRESHOLD else "undecided"
            notes.append(f"{quality[i].label} before {quality[j].label} {word}")
    points = [p._replace(label=f"{p.label} log-lik.") for p in likelihood]
    if not agreements:
        return Finding(False, points, note="no two models differ in quality")
    same = sum(z >= paper.THRESHOLD for z, _ in agreements)
    is_none_reversed = all(z > -paper.THRESHOLD for z, _ in agreements)
    notes.insert(0, f"{same} of {len(agreements)} pairs the same way round")
    least, (difference, error) = min(agreements)
    holds = is_none_reversed and same > len(agreements) / 2
    return Finding(holds, points, difference, error, least, ", ".join(notes))


def is_smaller(line: Line) -> Finding:
    """Whether MoPoE-VAE's part of MMVAE's gap to MVAE is smaller in log-likelihood."""
    terms, parts = [], []
    names = {line.tag: "", paper.LOG_LIKELIHOOD: " log-lik."}
    for tag, weight in ((line.tag, 1), (paper.LOG_LIKELIHOOD, -1)):
        model, target, whole = (best(line, spec, tag) for spec in _specs(line))
        *_, z = combine([(_sign(tag), target), (-_sign(tag), whole)])
        if z < paper.THRESHOLD:
            return Finding(
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
        # Derivatives of the part by the three means.
        terms += [
            (-weight / gap, model),
            (weight * (1 - part) / gap, target),
            (weight * part / gap, whole),
        ]
    error = combine(terms)[1]
    difference = parts[0] - parts[1]
    z = difference / error if error else math.copysign(math.inf, difference)
    note = f"part of the gap {parts[0]:.2f} in quality, {parts[1]:.2f} in log-lik."
    points = [point for _, point in terms]
    return Finding(z >= paper.THRESHOLD, points, difference, error, z, note)


def trains(line: Line) -> Finding:
    """Whether every member at the largest beta trained to its end."""
    run = line.evidence.runs[_specs(line)[0]]
    beta = max(line.evidence.config.beta)
    members = [m for m in run.summary["members"] if math.isclose(m["beta"], beta)]
    if not members:
        raise NotMeasured(f"no member with beta = {beta:g}")
    if not any(line.tag in member["metrics"] for member in members):
        raise NotMeasured(f"no {line.tag} in {_specs(line)[0].folder}")
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
    return Finding(all(done), (), note=note)


def _first_and_last_loss(run: RunRecord, member: dict) -> tuple[float, float]:
    """The training loss of a member when it was first and last logged, in nats."""
    names = ("beta", "learning_rate", "seed")
    losses = [
        math.nan if entry["train/loss"] is None else entry["train/loss"]
        for entry in writers.read_metrics(run.workdir / "metrics.jsonl")
        if "train/loss" in entry and all(entry[name] == member[name] for name in names)
    ]
    if len(losses) < 2:
        raise NotMeasured(f"{run.workdir}/metrics.jsonl holds no course of the loss")
    return losses[0], losses[-1]


JUDGES: dict[str, Callable[[Line], Finding]] = {
    "is worse": is_worse,
    "is better": is_better,
    "reaches": reaches,
    "is level": is_level,
    "grows": grows,
    "grows more": grows_more,
    "rises": rises,
    "can rise": can_rise,
    "collapses": collapses,
    "falls": falls,
    "ranks alike": ranks_alike,
    "is smaller": is_smaller,
    "trains": trains,
    "is never both": is_never_both,
    "nothing is annotated": nothing_is_annotated,
}


# Text.


def _label(model: str) -> str:
    """Name of a model."""
    return model_label(model)


def _spec_label(line: Line, spec: plans.Spec) -> str:
    """Name of a run in a line: its model, and its data set if it is another."""
    label = _label(spec.model)
    if line.claim.reference:
        label += f" on {values.title(line.evidence, spec.dataset)}"
    return label


def rule_text(claim: paper.Claim) -> str:
    """The rule of a claim as text."""
    labels = [_label(model) for model in claim.others]
    return paper.RULES[claim.rule].format(
        others=("each of " if labels[1:] else "") + ", ".join(labels),
        target=labels[0] if labels else "",
        nearest=("the nearer one of " if labels[2:] else "") + " and ".join(labels[1:]),
    )


def _show(point: Point, line: Line) -> str:
    """A point as text: its beta if it was chosen, its seeds if some are missing."""
    parts = []
    if not line.claim.is_by_modalities:
        parts.append(f"beta {point.beta:g}")
    scale = line.evidence.config
    seeds = plans.settings(scale, line.column).get("seed", scale.seed)
    if point.num != len(seeds):
        parts.append(f"{point.num} seeds")
    value = f"{point.label} {show(point.mean, point.std)}"
    return f"{value} ({', '.join(parts)})" if parts else value


def _number(value: float, form: str) -> str:
    """A number as text; a dash where there is none."""
    return "-" if math.isnan(value) else format(value, form)


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as text: a table for each claim."""
    header = ["", "data set", "model", "metric", "difference", "SE", "in SE", "numbers"]
    parts = []
    for claim, group in itertools.groupby(verdicts, key=lambda v: v.claim):
        group = list(group)
        rows = [
            [
                # A failure is not overlooked.
                verdict.word.upper() if verdict.holds is False else verdict.word,
                verdict.dataset,
                verdict.model,
                verdict.tag.removeprefix("eval/"),
                _number(verdict.difference, ".4g"),
                _number(verdict.standard_error, ".2g"),
                _number(verdict.z, "+.1f"),
                verdict.numbers,
            ]
            for verdict in group
        ]
        parts.append(
            f"{claim.text} ({claim.where})\n  holds if: {group[0].rule}\n"
            + tabulate.tabulate(
                rows, header, disable_numparse=True, maxcolwidths=[*[None] * 7, 64]
            )
        )
    return "\n\n".join(parts)


def found_claims(evidence: plans.Evidence, verdicts: Sequence[Verdict]) -> dict:
    """Content of claims.json: the verdicts, and the runs they are about."""
    summaries = [run.summary for run in evidence.runs.values()]
    machines = dict.fromkeys(
        f"{s['device']}" + (f", {s['cpu_cores']} cores" if s.get("cpu_cores") else "")
        for s in summaries
    )
    directory = evidence.directory
    with contextlib.suppress(ValueError):  # it is elsewhere
        directory = directory.absolute().relative_to(Path.cwd())
    return {
        "command": f"python -m experiments.claims {directory}",
        "date": datetime.date.today().isoformat(),
        "scale": evidence.scale,
        "description": values.description(evidence),
        "machine": "; ".join(machines),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "numpy")},
        "datasets": list(dict.fromkeys(s["dataset"] for s in summaries)),
        "seeds": list(evidence.config.seed),
        "runs": len(summaries),
        "minutes_of_runs": round(sum(s["wall_seconds"] for s in summaries) / 60, 1),
        "threshold_in_standard_errors": paper.THRESHOLD,
        "claims": [
            {
                "name": verdict.claim.name,
                "claim": verdict.claim.text,
                "where": verdict.claim.where,
                "dataset": verdict.dataset,
                "model": verdict.model,
                "metric": verdict.tag,
                "rule": verdict.rule,
                "holds": verdict.holds,
                "verdict": verdict.word,
                "difference": verdict.difference,
                "standard_error": verdict.standard_error,
                "difference_in_standard_errors": verdict.z,
                "numbers": verdict.numbers,
                "points": [point._asdict() for point in verdict.points],
            }
            for verdict in verdicts
        ],
    }


def markdown(found: Mapping) -> str:
    """Content of claims.json as a page: a table with a row for each verdict."""
    rows = [
        [
            f"{verdict['claim']} ({verdict['where']})",
            f"{verdict['dataset']}, {verdict['model']}",
            verdict["metric"].removeprefix("eval/"),
            f"**{verdict['verdict']}**",
            _number(verdict["difference_in_standard_errors"], "+.1f"),
            verdict["numbers"],
        ]
        for verdict in found["claims"]
    ]
    header = ["claim", "on", "metric", "verdict", "in SE", "numbers"]
    return (
        f"# The papers' claims: {found['description']}\n\n"
        f"`{found['command']}` on {found['date']}; {found['runs']} runs, "
        f"{found['minutes_of_runs']} minutes on {found['machine']}; seeds "
        f"{', '.join(map(str, found['seeds']))}. In SE: the difference that the claim "
        "has positive, in units of its standard error; it holds from "
        f"{found['threshold_in_standard_errors']:g} on, by the rules in "
        "`experiments/paper.py`. No correction is made for the number of verdicts or "
        "for the choice of the best beta.\n\n"
        + tabulate.tabulate(rows, header, tablefmt="github", disable_numparse=True)
        + "\n"
    )


def report(evidence: plans.Evidence) -> list[Verdict]:
    """Prints the verdicts and writes claims.json and claims.md beside the plan."""
    verdicts = evaluate(evidence)
    path = evidence.directory / "claims.json"
    found = found_claims(evidence, verdicts)
    writers.write_json(path, found)
    write_whole(path.with_suffix(".md"), markdown(found))
    counts = Counter(verdict.holds for verdict in verdicts)
    terminal.say(
        f"{table(verdicts)}\n\n"
        f"{values.description(evidence)}; {len(evidence.runs)} runs.\n"
        f"Of {len(verdicts)} verdicts {counts[True]} hold, {counts[False]} fail and "
        f"{counts[None]} are not measured. Differences are written so that the claim "
        f"has them positive.\n{path}"
    )
    return verdicts


def main() -> None:
    """Judges the claims on the runs in a folder."""
    if not flags.FLAGS.directory:
        raise UsageError(
            "name the folder of the runs: python -m experiments.claims DIR"
        )
    report(plans.read(Path(flags.FLAGS.directory).expanduser()))


if __name__ == "__main__":
    flags.DEFINE_string("directory", "", "folder of the plan; its name alone will do")
    command.run(main, argument="directory")
