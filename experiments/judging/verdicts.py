"""Verdicts on all claims, as a table."""

import contextlib
import datetime
import itertools
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import tabulate

from experiments.judging import paper, rules, statistics
from experiments.plans import plan, tables
from experiments.plans.runs import show
from experiments.running import workdirs
from mmvae_jax.errors import UsageError

_WORDS = {True: "holds", False: "fails", None: "not measured"}
_FRAGILE = "holds (fragile)"
# Field of claims.json: how beta was selected. Older files do not have it.
_CHOICE = "for each seed by the mean over the other seeds"
_OLD_CHOICE = (
    "by the mean over the seeds that it was judged by, which favours models whose "
    "betas are alike"
)
# Fields that identify a verdict in another claims.json.
_KEY = ("name", "dataset", "model", "metric")


class Verdict(NamedTuple):
    """A claim's verdict on one data set, for one model and metric.

    Attributes:
      claim: the claim.
      dataset: the data set's title at this scale.
      model: the model's label, or "all".
      tag: the metric.
      rule: the rule as text.
      scale: the name of the scale.
      holds: True, False, or None if not measured.
      difference: the number that should exceed zero, NaN if there is none.
      standard_error: standard error of the difference.
      z: the difference in units of its standard error.
      numbers: the measurements as text, or the reason for their absence.
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
    points: Sequence[statistics.Point]

    @property
    def word(self) -> str:
        """The verdict as text, one of _WORDS or _FRAGILE."""
        return word_of(self.holds, self.z)


def word_of(holds: bool | None, z: float | None) -> str:
    """A verdict as text; "fragile" if it holds by fewer than FRAGILE standard errors.

    Args:
      holds: the verdict; None if not measured.
      z: the difference in standard errors; NaN or None if there is none.
    """
    # A comparison with NaN is False.
    is_fragile = bool(holds) and z is not None and z < paper.FRAGILE
    return _FRAGILE if is_fragile else _WORDS[holds]


def evaluate(
    evidence: plan.Evidence, found: Sequence[paper.Claim] = paper.CLAIMS
) -> list[Verdict]:
    """The verdicts on some claims, in order."""
    return [
        judge(rules.Line(evidence, claim, column, model, tag))
        for claim in found
        for column in claim.columns
        if column in plan.all_columns(evidence.config)
        for model in claim.models
        for tag in tags_of(evidence, claim, column, model)
    ]


def tags_of(
    evidence: plan.Evidence, claim: paper.Claim, column: str, model: str
) -> Sequence[str]:
    """The metrics of a claim: FID if all runs have it, else its substitutes."""
    if claim.tags not in (paper.FIRST, paper.MEAN, paper.IMAGE):
        return claim.tags
    fid, others = claim.tags
    specs = paper.specs_of(claim, evidence.config, column, model)
    return fid if statistics.has_metrics(evidence, specs, fid) else others


def judge(line: rules.Line) -> Verdict:
    """The verdict on one line."""
    evidence, claim = line.evidence, line.claim
    rule, text = rules.JUDGES[claim.rule], _rule_text(claim)
    try:
        _require(line)
        found = rule(line)
        numbers = "; ".join(_show(point, line) for point in found.points)
        numbers = "; ".join(part for part in (numbers, found.note) if part)
    except statistics.NotMeasured as reason:
        found, numbers = statistics.Finding(None, ()), str(reason)
    return Verdict(
        claim,
        tables.title(evidence, line.column),
        rules.label_of(line.model) if line.model else "all",
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


def _require(line: rules.Line) -> None:
    """Raises NotMeasured if a run of the line does not exist."""
    specs = paper.specs_of(line.claim, line.evidence.config, line.column, line.model)
    missing = [spec.folder for spec in specs if spec not in line.evidence.runs]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise statistics.NotMeasured(f"no run {missing[0]}{more}")


def _rule_text(claim: paper.Claim) -> str:
    """The rule of a claim as text."""
    labels = [rules.label_of(model) for model in claim.others]
    return paper.RULES[claim.rule].format(
        others=("each of " if labels[1:] else "") + ", ".join(labels),
        target=labels[0] if labels else "",
        nearest=("the nearer one of " if labels[2:] else "") + " and ".join(labels[1:]),
    )


def _show(point: statistics.Point, line: rules.Line) -> str:
    """A point as text, with a selected beta, and the seeds if some are missing."""
    parts = []
    if not line.claim.is_by_modalities:
        # Several, in the order of the seeds, if they differ.
        shown = [point.beta] if math.isfinite(point.beta) else point.betas
        parts += [f"beta {', '.join(f'{beta:g}' for beta in shown)}"] if shown else []
    scale = line.evidence.config
    seeds = plan.settings(scale, line.column).get("seed", scale.seed)
    if point.num != len(seeds):
        parts.append(f"{point.num} seeds")
    value = f"{point.label} {show(point.mean, point.std)}"
    return f"{value} ({', '.join(parts)})" if parts else value


def _number(value: float, form: str) -> str:
    """A number as text; a dash for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as text, one table per claim."""
    header = ["", "data set", "model", "metric", "difference", "SE", "in SE", "numbers"]
    parts = []
    for claim, group in itertools.groupby(verdicts, key=lambda v: v.claim):
        group = list(group)
        rows = [
            [
                # Upper case makes a failure visible.
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


def found_claims(
    evidence: plan.Evidence,
    verdicts: Sequence[Verdict],
    before: Mapping | None = None,
) -> dict:
    """Content of claims.json: the verdicts and their runs.

    Args:
      evidence: the runs.
      verdicts: verdicts on the runs.
      before: the content of an earlier claims.json, whose verdicts are added.
    """
    earlier = {
        tuple(row[name] for name in _KEY): row
        for row in (before or {}).get("claims", [])
    }

    def old_of(verdict: Verdict) -> dict:
        key = (verdict.claim.name, verdict.dataset, verdict.model, verdict.tag)
        if key not in earlier:
            return {}
        holds = earlier[key]["holds"]
        z = earlier[key]["difference_in_standard_errors"]
        return {"before": word_of(holds, z), "before_in_standard_errors": z}

    summaries = [run.summary for run in evidence.runs.values()]
    machines = dict.fromkeys(
        f"{s['device']}" + (f", {s['cpu_cores']} cores" if s.get("cpu_cores") else "")
        for s in summaries
    )
    directory = evidence.directory
    with contextlib.suppress(ValueError):  # another folder
        directory = directory.absolute().relative_to(Path.cwd())
    return {
        "command": f"python -m experiments.claims {directory}",
        "date": datetime.date.today().isoformat(),
        "scale": evidence.scale,
        "description": tables.description(evidence),
        "machine": "; ".join(machines),
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "numpy")},
        "datasets": list(dict.fromkeys(s["dataset"] for s in summaries)),
        "seeds": list(evidence.config.seed),
        "runs": len(summaries),
        "minutes_of_runs": round(sum(s["wall_seconds"] for s in summaries) / 60, 1),
        "threshold_in_standard_errors": paper.THRESHOLD,
        "fragile_below_standard_errors": paper.FRAGILE,
        "beta_chosen": _CHOICE,
        **({"before": before.get("date")} if before else {}),
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
                "verdict": _WORDS[verdict.holds],
                "fragile": verdict.word == _FRAGILE,
                **old_of(verdict),
                "difference": verdict.difference,
                "standard_error": verdict.standard_error,
                "difference_in_standard_errors": verdict.z,
                "numbers": verdict.numbers,
                "points": [point._asdict() for point in verdict.points],
            }
            for verdict in verdicts
        ],
    }


def read_claims(path: Path) -> dict:
    """Content of an earlier claims.json.

    Raises:
      UsageError: the file does not exist or has other content.
    """
    try:
        found = workdirs.read_json(path)
        rows = found["claims"]
        names = (*_KEY, "holds", "difference_in_standard_errors")
        is_ours = bool(rows) and all(name in row for row in rows for name in names)
    except OSError as error:
        raise UsageError(f"--before={path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, UsageError):
        is_ours = False
    if not is_ours:
        raise UsageError(f"--before={path} is no claims.json of experiments.claims")
    return found


def changed(found: Mapping) -> list[Mapping]:
    """The verdicts of claims.json that have changed, of those judged both times."""
    return [
        verdict
        for verdict in _judged_twice(found)
        if verdict["before"] != word_of(verdict["holds"], _z_of(verdict))
    ]


def _judged_twice(found: Mapping) -> list[Mapping]:
    """The verdicts of claims.json that the earlier file has too, both measured."""
    none = _WORDS[None]
    return [
        verdict
        for verdict in found["claims"]
        if verdict["verdict"] != none and verdict.get("before", none) != none
    ]


def _old(verdict: Mapping) -> str:
    """The earlier verdict as text, with its difference in standard errors."""
    z = verdict["before_in_standard_errors"]
    return verdict["before"] + ("" if z is None else f" {z:+.1f}")


def _z_of(verdict: Mapping) -> float:
    """The difference in standard errors in claims.json, where None means NaN."""
    z = verdict["difference_in_standard_errors"]
    return math.nan if z is None else z


def markdown(found: Mapping) -> str:
    """Content of claims.json as Markdown: a table with one row per verdict.

    Verdicts that hold by little are marked as fragile. Changed verdicts show the
    earlier one.
    """
    others = changed(found)
    rows = [
        [
            f"{verdict['claim']} ({verdict['where']})",
            f"{verdict['dataset']}, {verdict['model']}",
            verdict["metric"].removeprefix("eval/"),
            f"**{word_of(verdict['holds'], _z_of(verdict))}**"
            + (f", before: {_old(verdict)}" if verdict in others else ""),
            _number(_z_of(verdict), "+.1f"),
            verdict["numbers"],
        ]
        for verdict in found["claims"]
    ]
    header = ["claim", "on", "metric", "verdict", "in SE", "numbers"]
    num = len(_judged_twice(found))
    before = ""
    if num:
        before = (
            f"Of the {num} verdicts that were judged on {found['before']} too, "
            f"{len(others)} are others now and say so. "
        )
    return (
        f"# The papers' claims: {found['description']}\n\n"
        f"`{found['command']}` on {found['date']}; {found['runs']} runs, "
        f"{found['minutes_of_runs']} minutes on {found['machine']}; seeds "
        f"{', '.join(map(str, found['seeds']))}. In SE: the difference that the claim "
        "has positive, in units of its standard error; it holds from "
        f"{found['threshold_in_standard_errors']:g} on, by the rules in "
        "`experiments/judging/paper.py`, and is fragile below "
        f"{paper.FRAGILE:g}. Beta was chosen {found.get('beta_chosen', _OLD_CHOICE)}. "
        f"{before}No correction is made for the number of verdicts.\n\n"
        + tabulate.tabulate(rows, header, tablefmt="github", disable_numparse=True)
        + "\n"
    )
