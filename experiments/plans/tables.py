"""The values in figures: metrics, and plotted points as rows of a table.

They are means over seeds of values in summary.json. Missing values are NaN or have no
row.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.plans import choice, plan, runs
from experiments.plans.plan import Evidence, Spec
from experiments.plans.shown_metrics import (
    COHERENCE,
    FID,
    FRECHET,
    MATCHING,
    SWD,
    Metric,
)
from experiments.running import workdirs
from mmvae_jax.training.sweep import Member

Row = dict[str, Any]


def quality_metrics(
    evidence: Evidence, specs: Iterable[Spec], *, is_mean: bool
) -> list[Metric]:
    """FID if every run has it, otherwise its substitutes.

    Args:
      evidence: the runs.
      specs: the runs of the figure; missing or diverged runs are ignored.
      is_mean: whether to use the mean over modalities instead of the first one.
    """
    has_fid = []
    finite = evidence.table[evidence.table["finite"]]
    for spec in specs:
        names = _modality_names(members_of(evidence, spec))
        tag = FID.tag if is_mean or not names else f"{FID.tag}/{names[0]}"
        own = finite[finite["run"] == spec.folder]
        if len(own):
            has_fid.append(own.loc[own["tag"] == tag, "value"].notna().any())
    return [FID] if has_fid and all(has_fid) else [FRECHET, SWD]


def over_betas(evidence: Evidence, spec: Spec, tag: str) -> pd.DataFrame:
    """The rows of `Evidence.spreads` for a run and a metric, by increasing beta."""
    spreads = evidence.spreads
    return spreads[(spreads["run"] == spec.folder) & (spreads["tag"] == tag)]


def by_seed(evidence: Evidence, spec: Spec, tag: str) -> pd.DataFrame:
    """A metric of a run's members: one row per beta (increasing), one column per seed.

    Values of diverged members and missing values are NaN.
    """
    table = evidence.table
    own = table[(table["run"] == spec.folder) & (table["tag"] == tag)]
    value = own["value"].where(own["finite"] & np.isfinite(own["value"]))
    others = [name for name in Member._fields if name != "beta"]
    return own.assign(value=value).pivot(index="beta", columns=others, values="value")


def members_of(evidence: Evidence, spec: Spec) -> list[Mapping[str, Any]]:
    """The members of a run as in summary.json; () without a run."""
    record = evidence.runs.get(spec)
    return record.summary["members"] if record else []


def shown_pairs(evidence: Evidence) -> list[str]:
    """The columns of images with captions that have runs.

    All columns, if the scale has no others. Columns without runs are left out to avoid
    empty panels.
    """
    columns = plan.pair_columns(evidence.config)
    if not evidence.config.columns:
        return list(columns)
    found = {spec.dataset for spec in evidence.runs}
    return [column for column in columns if column in found]


def is_measured(evidence: Evidence, dataset: str, tag: str) -> bool:
    """Whether some member of a run on a data set has a metric."""
    folders = [spec.folder for spec in evidence.runs if spec.dataset == dataset]
    table = evidence.table
    own = table[(table["tag"] == tag) & table["run"].isin(folders)]
    return bool(own["value"].notna().any())


def betas_of(evidence: Evidence, specs: Iterable[Spec]) -> list[float]:
    """All betas of some runs; without runs, those of the scale."""
    found = {m["beta"] for spec in specs for m in members_of(evidence, spec)}
    return sorted(found or evidence.config.beta)


def is_pictured(evidence: Evidence, spec: Spec, member: Mapping[str, Any]) -> bool:
    """Whether figures show the samples of a member."""
    settings = plan.settings(evidence.config, spec.dataset)
    seed = settings.get("seed", evidence.config.seed)[0]
    return member["beta"] == settings.beta_of_samples and member["seed"] == seed


def modalities_of(evidence: Evidence, dataset: str) -> list[str]:
    """The names of a data set's modalities, from its runs."""
    specs = [spec for spec in evidence.runs if spec.dataset == dataset]
    known = [_modality_names(members_of(evidence, spec)) for spec in specs]
    names = max(known, key=len, default=[])
    return names or [f"m{i}" for i in range(evidence.config.num_modalities[-1])]


def num_modalities(evidence: Evidence, spec: Spec) -> int:
    """Number of modalities of a run, which may not exist yet."""
    names = _modality_names(members_of(evidence, spec))
    return len(names) or spec.num_modalities or evidence.config.num_modalities[-1]


def _modality_names(members: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the modalities with metrics in a run, in order."""
    for kind in ("reconstruction", "swd", "frechet_classifier", "fid"):
        prefix = f"eval/{kind}/"
        for member in members:
            tags = [tag for tag in member["metrics"] if tag.startswith(prefix)]
            if tags:
                return [tag.removeprefix(prefix) for tag in tags]
    return []


def title(evidence: Evidence, dataset: str) -> str:
    """Title of a data set at this scale."""
    settings = plan.settings(evidence.config, dataset)
    return settings.get("title", dataset)


def description(evidence: Evidence) -> str:
    """Description of the scale, for the shown columns."""
    config, parts = evidence.config, []
    if config.columns:
        parts.append(config.description)
    if shown_pairs(evidence):
        parts.append(config.pairs.description)
    return "; ".join(parts)


def show_beta(beta: float) -> str:
    """A beta as in the paper: 3e-4, 0.3, 9."""
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
      name: name of the figure.
      spec: the run.
      tag: tag of the metric, as in summary.json.
      **others: other columns; defaults are those of one member without a value. The
        modality "" means all; "seeds" and "diverged" are numbers of members averaged
        and left out.

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
    """One row per beta of a run's sweep; missing values are NaN.

    The column "note" has the reasons of NaNs.

    Args:
      evidence: the runs.
      name: name of the figure.
      spec: the run; without the run or the metric there are no rows.
      tag: tag without the modality.
      modality: name of the modality; "" for all together.
    """
    tag = f"{tag}/{modality}" if modality else tag
    head = point_row(evidence, name, spec, tag, modality=modality)
    found = over_betas(evidence, spec, tag).drop(columns=["run", "tag"])
    why = workdirs.undefined(members_of(evidence, spec)).get(tag)
    note = {"note": "; ".join(why)} if why else {}
    return [
        head | row | (note if np.isnan(row["mean"]) else {})
        for row in found.to_dict("records")
    ]


def front_of(spreads: pd.DataFrame, coherence: str, quality: str) -> pd.DataFrame:
    """The points with both a coherence and a quality.

    Args:
      spreads: rows of `runs.spreads`.
      coherence: tag of the coherence.
      quality: tag of the quality.

    Returns:
      The grouping columns of the spreads without the tag; x, dx (coherence), y, dy
      (quality), and diverged.
    """
    known = spreads.dropna(subset="mean")
    x, y = (
        known[known["tag"] == tag].drop(columns=["tag", "seeds"])
        for tag in (coherence, quality)
    )
    x = x.rename(columns={"mean": "x", "std": "dx"})
    y = y.rename(columns={"mean": "y", "std": "dy"})
    return x.merge(y)


def given_rows(evidence: Evidence, name: str, spec: Spec) -> list[Row]:
    """Coherence by the number of given modalities, with one beta per seed.

    The beta has the best mean over these numbers and the other seeds (`choice`).

    Returns:
      One row per number, with the column "given"; "betas" has those of all seeds, and
      "beta" their common value or NaN. No rows if a number was not measured, or if
      there are several betas but only one seed.
    """
    numbers = range(1, num_modalities(evidence, spec))
    tags = [f"eval/coherence/size_{given}" for given in numbers]
    known = [by_seed(evidence, spec, tag) for tag in tags]
    if not known or any(table.empty for table in known):
        return []
    # A beta counts if all of its finite members have all values.
    spreads = [over_betas(evidence, spec, tag).set_index("beta") for tag in tags]
    is_known = pd.concat([own["mean"] for own in spreads], axis=1).notna().all(axis=1)
    betas = np.array(is_known.index[is_known])
    values = np.stack([table.loc[betas].to_numpy() for table in known])
    found = [choice.estimate(own, values.mean(axis=0)) for own in values]
    if not betas.size or not found[0].num:
        return []
    chosen = [betas[place] for place in found[0].places if place >= 0]
    return [
        point_row(
            evidence,
            name,
            spec,
            tag,
            beta=chosen[0] if len(set(chosen)) == 1 else np.nan,
            mean=own.mean,
            std=own.std,
            seeds=own.num,
            diverged=values.shape[2] - own.num,
            given=given,
            betas=" ".join(show_beta(beta) for beta in chosen),
        )
        for given, tag, own in zip(numbers, tags, found, strict=True)
    ]


def reachable_rows(
    evidence: Evidence, name: str, specs: Iterable[Spec], tag: str
) -> list[Row]:
    """One row with the mean over modalities on real data, if known."""
    prefix = f"{tag}/"
    for spec in specs:
        # Equal for all members, which share the classifiers of the data set.
        for member in members_of(evidence, spec):
            found = member["metrics"].items()
            values = [x for t, x in found if t == tag or t.startswith(prefix)]
            if values and None not in values:
                mean = float(np.mean(values))
                row = point_row(evidence, name, spec, tag, mean=mean)
                return [{**row, "model": "real data"}]
    return []


def coherence_pairs(evidence: Evidence, spec: Spec) -> pd.DataFrame:
    """The members of a run with both kinds of coherence.

    Returns:
      The columns beta, seed, and those of the tags of COHERENCE and MATCHING.
    """
    table = evidence.table
    own = table[(table["run"] == spec.folder) & table["finite"]]
    own = own.pivot(index=list(Member._fields), columns="tag", values="value")
    pairs = own.reindex(columns=[COHERENCE.tag, MATCHING.tag]).dropna()
    return pairs.reset_index().drop(columns="learning_rate")


def pair_rows(evidence: Evidence, spec: Spec, pairs: pd.DataFrame) -> list[Row]:
    """Two rows per point, its coordinates, and the agreement within a model."""
    rows = [
        point_row(
            evidence,
            "matching",
            spec,
            tag,
            beta=pair["beta"],
            mean=pair[tag],
            seed=pair["seed"],
        )
        for pair in pairs.to_dict("records")
        for tag in (COHERENCE.tag, MATCHING.tag)
    ]
    return rows + agreement_rows(evidence, spec, pairs)


def agreement_rows(evidence: Evidence, spec: Spec, pairs: pd.DataFrame) -> list[Row]:
    """Spearman's rho of a model, or of all models (""), with its interval."""
    x, y = pairs[COHERENCE.tag], pairs[MATCHING.tag]
    found = runs.rank_agreement(x, y)
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
