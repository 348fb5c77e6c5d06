"""The values that figures show: metrics, and a figure's points as rows of its table.

They are those of summary.json, averaged over seeds. Nothing is invented: what is not
there is nan, or no row.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import plans, results
from experiments.plans import Evidence, Spec

NUM_CLASSES = 10
# Of Shapes: attribute -> the chance of guessing one of its values.
CHANCES = {"colour": 1 / 8, "shape": 1 / 6}

Row = dict[str, Any]
# A member of summary.json, its labelled and its annotation-free coherence.
Pair = tuple[Mapping[str, Any], float, float]


class Metric(NamedTuple):
    """What a panel shows.

    Attributes:
      tag: of summary.json, without the modality.
      label: of the axis.
      limits: of the axis; None where they are those of the values.
      chance: the value of guessing, drawn as a line.
      reachable: a tag whose values on real data are drawn as a line.
    """

    tag: str
    label: str
    limits: tuple[float, float] | None = None
    chance: float | None = None
    reachable: str = ""


FID = Metric("eval/fid", "FID (lower is better)")
FRECHET = Metric(
    "eval/frechet_classifier",
    "Fréchet distance, classifier features (lower is better)",
)
SWD = Metric("eval/swd", "sliced Wasserstein distance (lower is better)")
COHERENCE = Metric(
    "eval/coherence/leave_one_out",
    "leave-one-out coherence",
    (0.0, 1.0),
    1 / NUM_CLASSES,
    "eval/classifier_accuracy",
)
SINGLE = Metric(
    "eval/coherence/size_1",
    "coherence given one",
    (0.0, 1.0),
    1 / NUM_CLASSES,
)
PROBE = Metric(
    "eval/linear_probe",
    "accuracy of a linear classifier",
    (0.0, 1.0),
    1 / NUM_CLASSES,
)
LIKELIHOOD = Metric("eval/log_likelihood", "joint log-likelihood (nats)")
MATCHING = Metric("eval/matching/leave_one_out", "annotation-free coherence")
# Of both attributes and directions of a pair, and one by one.
ATTRIBUTES = Metric(
    "eval/attribute_coherence/leave_one_out",
    "attribute coherence",
    (0.0, 1.0),
    sum(CHANCES.values()) / len(CHANCES),
    "eval/attribute_accuracy",
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


def quality_metrics(
    evidence: Evidence, specs: Iterable[Spec], *, is_mean: bool
) -> list[Metric]:
    """FID where every run has it, otherwise what stands in for it.

    Args:
      evidence: the runs.
      specs: of the runs; those that are missing or diverged have no say.
      is_mean: whether the mean over modalities is needed, or the first one's value.
    """
    has_fid = []
    for spec in specs:
        members = members_of(evidence, spec)
        names = _modality_names(members)
        tag = FID.tag if is_mean or not names else f"{FID.tag}/{names[0]}"
        values = [m["metrics"].get(tag) for m in members if m["finite"]]
        if values:
            has_fid.append(any(value is not None for value in values))
    return [FID] if has_fid and all(has_fid) else [FRECHET, SWD]


def members_of(evidence: Evidence, spec: Spec) -> list[Mapping[str, Any]]:
    """The members of a run, as in summary.json; none where there is no run."""
    record = evidence.runs.get(spec)
    return record.summary["members"] if record else []


def shown_pairs(evidence: Evidence) -> list[str]:
    """The columns of images with captions that have a run; all, if there are no others.

    A column without runs is left out: who has no photographs needs no empty panels.
    """
    columns = plans.pair_columns(evidence.config)
    if not evidence.config.columns:
        return list(columns)
    found = {spec.dataset for spec in evidence.runs}
    return [column for column in columns if column in found]


def is_measured(evidence: Evidence, dataset: str, tag: str) -> bool:
    """Whether any member of any run on a data set has a metric."""
    return any(
        member["metrics"].get(tag) is not None
        for spec in evidence.runs
        if spec.dataset == dataset
        for member in members_of(evidence, spec)
    )


def betas_of(evidence: Evidence, specs: Iterable[Spec]) -> list[float]:
    """Every beta of some runs' sweeps; the scale's, if there is no run."""
    found = {m["beta"] for spec in specs for m in members_of(evidence, spec)}
    return sorted(found or evidence.config.beta)


def is_pictured(evidence: Evidence, spec: Spec, member: Mapping[str, Any]) -> bool:
    """Whether a member of a run is the one whose samples are shown."""
    settings = plans.settings(evidence.config, spec.dataset)
    seed = settings.get("seed", evidence.config.seed)[0]
    return member["beta"] == settings.beta_of_samples and member["seed"] == seed


def modalities_of(evidence: Evidence, dataset: str) -> list[str]:
    """The names of a data set's modalities, as the runs know them."""
    specs = [spec for spec in evidence.runs if spec.dataset == dataset]
    known = [_modality_names(members_of(evidence, spec)) for spec in specs]
    names = max(known, key=len, default=[])
    return names or [f"m{i}" for i in range(evidence.config.num_modalities[-1])]


def num_modalities(evidence: Evidence, spec: Spec) -> int:
    """How many modalities a run has, or would have."""
    names = _modality_names(members_of(evidence, spec))
    return len(names) or spec.num_modalities or evidence.config.num_modalities[-1]


def _modality_names(members: Iterable[Mapping[str, Any]]) -> list[str]:
    """Those that a run has metrics of, in their order."""
    for kind in ("reconstruction", "swd", "frechet_classifier", "fid"):
        prefix = f"eval/{kind}/"
        for member in members:
            tags = [tag for tag in member["metrics"] if tag.startswith(prefix)]
            if tags:
                return [tag.removeprefix(prefix) for tag in tags]
    return []


def title(evidence: Evidence, dataset: str) -> str:
    """What a data set is called at this scale."""
    settings = plans.settings(evidence.config, dataset)
    return settings.get("title", dataset)


def description(evidence: Evidence) -> str:
    """What the scale of the columns that are shown is."""
    config, parts = evidence.config, []
    if config.columns:
        parts.append(config.description)
    if shown_pairs(evidence):
        parts.append(config.pairs.description)
    return "; ".join(parts)


def show_beta(beta: float) -> str:
    """A beta as short as the paper writes it: 3e-4, 0.3, 9."""
    if 0 < beta < 0.01:
        mantissa, exponent = f"{beta:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{beta:g}"


def point_row(
    evidence: Evidence, name: str, spec: Spec, tag: str, **others: Any
) -> Row:
    """A plotted point as a row of the table of its figure.

    Args:
      evidence: the runs.
      name: of the figure.
      spec: of the run.
      tag: of the metric, as in summary.json.
      **others: columns that differ from those of one member without a value. "" as
        the modality is all together; "seeds" were averaged, "diverged" left out.

    Returns:
      Plain numbers and strings.
    """
    row = {
        "figure": name,
        "dataset": title(evidence, spec.dataset),
        "model": spec.model,
        "beta": np.nan,
        "num_modalities": num_modalities(evidence, spec),
        "modality": "",
        "metric": tag,
        "mean": np.nan,
        "std": np.nan,
        "seeds": 1,
        "diverged": 0,
    }
    return row | others


def beta_rows(
    evidence: Evidence, name: str, spec: Spec, tag: str, modality: str = ""
) -> list[Row]:
    """One row for every beta of a run's sweep, nan where nothing was measured.

    Members that diverged are left out, as `results.by_beta` does.

    Args:
      evidence: the runs.
      name: of the figure.
      spec: of the run, which may be missing: no rows.
      tag: without the modality.
      modality: "" for the value of all together.
    """
    tag = f"{tag}/{modality}" if modality else tag
    groups: dict[float, list] = {}
    for member in members_of(evidence, spec):
        groups.setdefault(member["beta"], []).append(member)
    rows = []
    for beta, members in sorted(groups.items()):
        values = [m["metrics"].get(tag) for m in members if m["finite"]]
        is_complete = values and None not in values
        spread = results.spread(values) if is_complete else None
        rows.append(
            point_row(
                evidence,
                name,
                spec,
                tag,
                beta=beta,
                modality=modality,
                seeds=len(values),
                diverged=len(members) - len(values),
                **(spread._asdict() if spread else {}),
            )
        )
    return rows


def given_rows(evidence: Evidence, name: str, spec: Spec) -> list[Row]:
    """Coherence by the number of given modalities, at the best beta of a run.

    That is the one beta with the best mean over these numbers.

    Returns:
      Rows as `beta_rows`, one a number, in the column "given" too; none where
      nothing was measured.
    """
    by_beta: dict[float, list[Row]] = {}
    for given in range(1, num_modalities(evidence, spec)):
        tag = f"eval/coherence/size_{given}"
        for row in beta_rows(evidence, name, spec, tag):
            by_beta.setdefault(row["beta"], []).append({**row, "given": given})
    means = {
        beta: np.mean([row["mean"] for row in rows]) for beta, rows in by_beta.items()
    }
    known = [beta for beta, mean in means.items() if np.isfinite(mean)]
    return by_beta[max(known, key=means.get)] if known else []


def reachable_rows(
    evidence: Evidence, name: str, specs: Iterable[Spec], tag: str
) -> list[Row]:
    """What real data reach, the mean over modalities: one row where it is known."""
    prefix = f"{tag}/"
    for spec in specs:
        # The same for all members: classifiers are a data set's.
        for member in members_of(evidence, spec):
            found = member["metrics"].items()
            values = [
                x
                for t, x in found
                if (t == tag or t.startswith(prefix)) and x is not None
            ]
            if values:
                mean = float(np.mean(values))
                row = point_row(evidence, name, spec, tag, mean=mean)
                return [{**row, "model": "real data"}]
    return []


def coherence_pairs(evidence: Evidence, spec: Spec) -> list[Pair]:
    """Labelled and annotation-free coherence of the members that have both."""
    tags = COHERENCE.tag, MATCHING.tag
    pairs = [
        (member, *(member["metrics"].get(tag) for tag in tags))
        for member in members_of(evidence, spec)
        if member["finite"]
    ]
    return [pair for pair in pairs if None not in pair]


def pair_rows(evidence: Evidence, spec: Spec, pairs: Sequence[Pair]) -> list[Row]:
    """Two rows a point, its coordinates; and the agreement within a model."""
    rows = [
        point_row(
            evidence,
            "matching",
            spec,
            metric.tag,
            beta=member["beta"],
            mean=value,
            seed=member["seed"],
        )
        for member, *coherences in pairs
        for metric, value in zip((COHERENCE, MATCHING), coherences, strict=True)
    ]
    return rows + agreement_rows(evidence, spec, pairs)


def agreement_rows(evidence: Evidence, spec: Spec, pairs: Sequence[Pair]) -> list[Row]:
    """Spearman's rho of a model, or of all (""), and the ends of its interval."""
    _, x, y = zip(*pairs, strict=True)
    found = results.rank_agreement(x, y)
    rows = [
        point_row(
            evidence,
            "matching",
            spec,
            f"spearman{part}",
            mean=value,
            seeds=len(pairs),
            seed="",
        )
        for part, value in zip(("", "/low", "/high"), found, strict=True)
    ]
    return [{**row, "model": spec.model or "all"} for row in rows]
