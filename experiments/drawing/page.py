"""The page of results: one HTML file."""

import base64
import datetime
import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from experiments.drawing import page_pictures
from experiments.judging.verdicts import word_of
from experiments.plans.names import model_label, model_rank
from experiments.plans.runs import (
    RunRecord,
    find_runs,
    long_table,
    samples_of,
    show,
    spreads,
)
from experiments.running import citing, workdirs
from experiments.running.contradictions import contradictions, names_of
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import titled
from mmvae_jax.evaluation.metrics import COLUMNS
from mmvae_jax.files import write_whole
from mmvae_jax.training.log import member_name
from mmvae_jax.training.sweep import Member

_TEMPLATE, _SCRIPT = "report.html.jinja", "report.js"
_DASH, _NAN = "–", "nan"  # not measured; measured, and not finite
# Tag -> heading; columns that no run has measured are left out.
METRICS = {t: titled(c) for t, c in COLUMNS.items() if "*" not in t}
# Tag with "*" for the modality -> heading of a table.
_PER_MODALITY = {t: titled(c) for t, c in COLUMNS.items() if "*" in t}
# Tag of a metric by the number of given modalities -> title of its table.
_LEAVE_ONE_OUT, _WORDS = "/leave_one_out", ", leave one out"
_BY_SIZE = {"eval/coherence": "Coherence ↑"} | {
    t.removesuffix(_LEAVE_ONE_OUT): titled(c).replace(_WORDS, "")
    for t, c in COLUMNS.items()
    if t.endswith(_LEAVE_ONE_OUT) and c.heading.endswith(_WORDS)
}
_ATTRIBUTE = re.compile(
    r"eval/attribute_coherence/(?!leave_one_out|size_1|joint)([^/]+)"
)
# Measures of real captions, shown beside those of generated captions.
_REAL_CAPTIONS = {
    "eval/captions/real/bleu": "BLEU (one against the others of its image)",
    "eval/captions/real/distinct_1": "distinct-1",
    "eval/captions/real/distinct_2": "distinct-2",
}
# With more members, the page shows one per run, to limit its size.
MAX_MEMBERS = 100
_SETTING = ["learning_rate", "beta"]


class Row(NamedTuple):
    """A row of a table: label, colour of the model, and cells."""

    label: str
    colour: str
    cells: Sequence[str]


class _Table(NamedTuple):
    """A table: title (may be ""), headings, and rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Row]


class Samples(NamedTuple):
    """Pictures and captions of a member.

    Attributes:
      label: label of the member.
      pictures: sample grids.
      text: captions; "" without captions.
      choice: filters of the gallery: model, beta, rate, seed, as text.
    """

    label: str
    pictures: Sequence[page_pictures.Picture]
    text: str
    choice: Mapping[str, str]


class Points(NamedTuple):
    """The results of some runs over their seeds.

    Attributes:
      heads: one row per run, learning rate and beta (its index): model, dataset, label,
        colour, setting (the beta as text) and seeds (their number as text).
      spreads: `runs.spreads` by run, learning rate, beta and tag.
      cells: mean and standard deviation as text, with the rows of heads, and one column
        per measured tag; "nan" if a member that did not diverge has no finite value.
    """

    heads: pd.DataFrame
    spreads: pd.DataFrame
    cells: pd.DataFrame


def write(directory: Path, out: Path) -> None:
    """Writes the page of the runs in a directory atomically.

    Raises:
      UsageError: there is no run, a run cannot be read, or `out` is a folder.
    """
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    page = render(directory)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"--out {out} is below a file; choose another") from error
    write_whole(out, page, is_shared=True)


def _ordered_runs(directory: Path) -> list[RunRecord]:
    """The finished runs in a directory, in the order of the models.

    Raises:
      UsageError: there is no run, or a run cannot be read.
    """
    return sorted(
        find_runs(directory), key=lambda run: model_rank(run.summary["model"])
    )


def points_in(directory: Path) -> Points:
    """The results of the finished runs in a directory over their seeds."""
    runs = _ordered_runs(directory)
    return _points_of(runs, _names(runs, directory))


def render(directory: Path) -> str:
    """The page of the finished runs in a directory, as HTML.

    Raises:
      UsageError: there is no run, or a run cannot be read.
    """
    runs = _ordered_runs(directory)
    labels = _names(runs, directory)
    points = _points_of(runs, labels)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = _read_results(directory)
    script = (Path(__file__).parent / _SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    num_members = sum(len(run.summary["members"]) for run in runs)
    return environment.get_template(_TEMPLATE).render(
        title=directory.resolve().name,
        script=script,
        script_digest=digest,
        date=datetime.date.today().isoformat(),
        overview=_overview(runs, labels),
        results=found,
        verdicts=_verdicts(found),
        figures=page_pictures.figures(directory),
        fronts=page_pictures.draw_fronts(points.heads, points.spreads, METRICS),
        quality=quality(points),
        undefined=_undefined(runs, labels),
        contradictions=_contradictions(runs, labels),
        modalities=_modality_tables(points),
        accuracy=_classifier_accuracy(points),
        real_captions=_real_captions(points),
        curves=page_pictures.draw_curves(runs, labels),
        bibtex=citing.bibtex([(run.config, run.summary) for run in runs]),
        runs=[_run_section(run, labels, num_members <= MAX_MEMBERS) for run in runs],
        versions={
            "Python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "flax", "numpy")},
        },
    )


def _names(runs: Sequence[RunRecord], directory: Path) -> dict[Path, str]:
    """Name of each run: its model, and its folder if the model is not unique."""
    models = [run.summary["model"] for run in runs]
    labels = {}
    for run, model in zip(runs, models, strict=True):
        label = model_label(model)
        if models.count(model) > 1:
            label += f" ({run.workdir.relative_to(directory)})"
        labels[run.workdir] = label
    return labels


def _points_of(runs: Sequence[RunRecord], labels: Mapping[Path, str]) -> Points:
    """The results of some runs over their seeds, for each learning rate and beta."""
    place = ["run", *_SETTING]
    summaries = {str(run.workdir): run.summary for run in runs}
    members = pd.DataFrame(
        [
            {
                **{"run": str(run.workdir), "label": labels[run.workdir]},
                **{name: run.summary[name] for name in ("model", "dataset")},
                **{"colour": page_pictures.colour_of(run), "finite": member["finite"]},
                **{name: member[name] for name in _SETTING},
            }
            for run in runs
            for member in run.summary["members"]
        ]
    )
    groups = members.groupby(place, sort=False)
    heads = groups[["model", "dataset", "label", "colour"]].first()
    num, size = groups["finite"].sum(), groups.size()
    heads["seeds"] = [
        f"{a}" + ("" if a == b else f" of {b} finite")
        for a, b in zip(num, size, strict=True)
    ]
    rates = members.groupby("run")["learning_rate"].nunique()
    heads["setting"] = [
        f"{beta:g}" + (f", lr {rate:g}" if rates[run] > 1 else "")
        for run, rate, beta in heads.index
    ]
    found = spreads(long_table(summaries), [*place, "tag"])
    found = found.astype({"run": str, "tag": str})
    known = found[found["seeds"] > 0]
    text = [
        _NAN if math.isnan(mean) else show(mean, std)
        for mean, std in zip(known["mean"], known["std"], strict=True)
    ]
    cells = known.assign(text=text).pivot(index=place, columns="tag", values="text")
    tags = known["tag"].unique()
    return Points(
        heads, found, cells.reindex(index=heads.index, columns=tags).fillna(_DASH)
    )


def _overview(runs: Sequence[RunRecord], labels: Mapping[Path, str]) -> _Table:
    """The runs and their sizes, one row per run."""
    rows = []
    for run in runs:
        summary = run.summary
        spent = [summary.get(x) for x in ("wall_seconds", "training_seconds")]
        finite = sum(bool(member["finite"]) for member in summary["members"])
        cells = [
            f"{len(summary['members'])}",
            f"{finite}",
            f"{summary['num_steps']:,}",
            *(_DASH if seconds is None else _duration(seconds) for seconds in spent),
            _number(summary.get("step_seconds"), "{:.3g} s"),
            _number(summary.get("num_parameters"), "{:,}"),
            summary["device"],
            summary["dataset"],
        ]
        rows.append(Row(labels[run.workdir], page_pictures.colour_of(run), cells))
    header = ["members", "finite", "steps", "wall time", "training time", "a step"]
    header += ["parameters", "device", "data set"]
    return _Table("", header, rows)


def _number(value: float | None, form: str) -> str:
    """A number of summary.json as text; a dash if an older version lacks it."""
    return _DASH if value is None else form.format(value)


def _read_results(directory: Path) -> dict:
    """Content of claims.json or results.json; empty if neither exists.

    Raises:
      UsageError: the file cannot be read.
    """
    paths = [directory / name for name in ("claims.json", "results.json")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return {}
    try:
        found = workdirs.read_json(path)
    except (OSError, UsageError) as error:
        raise UsageError(f"{path} cannot be read: {error}; move it away") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no results of this project; move it away")
    return found


def _verdicts(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(claim, verdict, numbers) as text."""
    try:
        return [
            (
                claim["claim"] + _about(claim),
                word_of(claim.get("holds"), claim.get("difference_in_standard_errors")),
                _unbroken(claim.get("numbers")) + _in_errors(claim),
            )
            for claim in found.get("claims", [])
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            "claims.json or results.json holds claims that are not this project's; "
            "move it away"
        ) from error


def _about(claim: Mapping[str, Any]) -> str:
    """Data set, model and metric of a verdict of experiments.claims."""
    metric = str(claim.get("metric", "")).removeprefix("eval/")
    parts = [claim.get("dataset"), claim.get("model"), metric]
    known = [str(part) for part in parts if part]
    return f" ({', '.join(known)})" if known else ""


def _in_errors(claim: Mapping[str, Any]) -> str:
    """The difference in units of its standard error as text; "" if there is none."""
    value = claim.get("difference_in_standard_errors")
    return "" if value is None else f"; difference {value:+.1f} SE"


def quality(points: Points) -> _Table:
    """Mean and standard deviation over seeds, one row per model and beta."""
    tags = {METRICS[tag]: tag for tag in METRICS if tag in points.cells}
    return _by_column(points, "", tags, ["setting", "seeds"])


def _undefined(
    runs: Sequence[RunRecord], labels: Mapping[Path, str]
) -> list[tuple[str, str]]:
    """Reasons of NaNs: (reason, tags and runs), each reason once."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for run in runs:
        last = workdirs.undefined([run.summary, *run.summary["members"]])
        for tag, why in (last | _reasons_at_other_steps(run)).items():
            for reason in why:
                own = found.setdefault(reason, {})
                own.setdefault(labels[run.workdir], {})[tag.removeprefix("eval/")] = (
                    None
                )
    return [
        (
            reason,
            "; ".join(f"{label}: {', '.join(tags)}" for label, tags in own.items()),
        )
        for reason, own in found.items()
    ]


def _reasons_at_other_steps(run: RunRecord) -> dict[str, list[str]]:
    """Tag and step -> the reasons of NaNs in `_at_other_steps`."""
    return workdirs.joined_reasons(
        {f"{tag} at step {made['step']:,}": why for tag, why in own.items()}
        for part in run.parts or (run,)
        for made in part.summary.get("evaluations", ())
        for own in made.get("undefined", ())
    )


def _contradictions(runs: Sequence[RunRecord], labels: Mapping[Path, str]) -> list[str]:
    """Lines on members of all runs with the same data and judges."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(_judged_by(run), []).append(run)
    lines = []
    for own in groups.values():
        members, names = [], []
        for run in own:
            members += run.summary["members"]
            label = labels[run.workdir]
            names += [f"{label} {x}" for x in names_of(run.summary["members"])]
        lines += contradictions(members, names)
    return lines


def _judged_by(run: RunRecord) -> str:
    """The settings that two runs must share for their values to be compared, as text.

    They are of data, judges and test examples. The accuracies of the judges are added,
    because evaluations added later may have other settings.
    """
    config, accuracies = run.config, {}
    for member in run.summary["members"]:
        for tag, value in member["metrics"].items():
            if tag.startswith("eval/classifier_accuracy"):
                accuracies[tag] = value
    data = {x: y for x, y in config.get("data", {}).items() if x != "data_dir"}
    evaluated = {x: config.get("eval", {}).get(x) for x in ("num_examples", "seed")}
    judges = [config.get(section) for section in ("classifier", "matcher")]
    parts = [run.summary["dataset"], data, *judges, evaluated, accuracies]
    return json.dumps(parts, sort_keys=True)


def _modality_tables(points: Points) -> list[_Table]:
    """One table per metric, one column per modality; the last by size of the subset."""
    tables = [
        _by_column(points, title, _filled(points, pattern))
        for pattern, title in _PER_MODALITY.items()
    ]
    for prefix, title in _BY_SIZE.items():
        found = _filled(points, f"{prefix}/*")
        numbers = (t.removeprefix("size_") for t in found if t.startswith("size_"))
        sizes = sorted(int(number) for number in numbers if number.isdigit())
        tags = {f"{size} given": found[f"size_{size}"] for size in sizes}
        if "reconstruction" in found and tags:
            tags["all given"] = found["reconstruction"]
        title = f"{title} by the number of modalities given"
        tables.append(_by_column(points, title, tags))
    attributes = {m[1]: t for t in points.cells if (m := _ATTRIBUTE.fullmatch(t))}
    title = "Attribute coherence ↑ by attribute, mean over modalities"
    tables.append(_by_column(points, title, attributes))
    return [table for table in tables if table.header[1:]]


def _classifier_accuracy(points: Points) -> str:
    """The accuracies on real data of the classifiers and readers."""
    found = list(_filled(points, "eval/classifier_accuracy/*").items())
    readers = _filled(points, "eval/attribute_accuracy/*")
    # Tags without an attribute are means over attributes.
    found += [(name, tag) for name, tag in readers.items() if "/" not in name]
    return ", ".join(f"{name} {_means(points, tag)}" for name, tag in found)


def _real_captions(points: Points) -> str:
    """The measures of captions, for real captions."""
    return ", ".join(
        f"{name} {_means(points, tag)}"
        for tag, name in _REAL_CAPTIONS.items()
        if tag in points.cells
    )


def _means(points: Points, tag: str) -> str:
    """The different means of a tag."""
    known = points.spreads[points.spreads["tag"] == tag]["mean"].dropna()
    return " / ".join(sorted({_single(mean) for mean in known})) or _NAN


def _run_section(
    run: RunRecord, labels: Mapping[Path, str], is_complete: bool
) -> dict[str, Any]:
    """The section of one run: members, samples (all or one), and config."""
    rows = run.summary["members"]
    members = [_member(row) for row in rows]
    tags = [t for t in METRICS if any(t in row["metrics"] for row in rows)]
    shown = _shown_member(rows)
    table_rows, samples = [], []
    for row, member, (folder, prefix) in zip(
        rows, members, samples_of(run), strict=True
    ):
        name = member_name(member, members)
        finite = "yes" if row["finite"] else "NO"
        cells = [
            _single(row["metrics"][tag]) if tag in row["metrics"] else _DASH
            for tag in tags
        ]
        label = name.replace("beta", "β").replace("=", " = ").replace(",", ", ")
        table_rows.append(Row(label, "", [finite, *cells]))
        is_shown = len(samples) == shown
        grids, text = [], ""
        if is_complete or is_shown:
            text = page_pictures.member_captions(folder, prefix)
            is_exact = is_shown and is_complete
            grids = page_pictures.member_grids(
                folder, prefix, lossless=is_exact, has_text=bool(text)
            )
        choice = {
            "model": labels[run.workdir],
            "beta": f"{member.beta:g}",
            "rate": f"{member.learning_rate:g}",
            "seed": f"{member.seed}",
        }
        samples.append(Samples(label, grids, text, choice))
    return {
        "label": labels[run.workdir],
        "colour": page_pictures.colour_of(run),
        "members": _Table("", ["finite", *(METRICS[tag] for tag in tags)], table_rows),
        "added": _added(run),
        "at_other_steps": _at_other_steps(run),
        "shown": [sample for sample in samples[shown:][:1] if sample.pictures],
        "hidden": [
            sample for k, sample in enumerate(samples) if sample.pictures and k != shown
        ],
        "config": json.dumps(run.config, indent=2, ensure_ascii=False),
    }


def _added(run: RunRecord) -> list[str]:
    """Lines on evaluations added after the run: values, date and settings."""
    return [
        f"{', '.join(tag.removeprefix('eval/') for tag in tags)}: {how}"
        + (f" ({part.workdir.name})" if run.parts else "")
        for part in run.parts or (run,)
        for how, tags in workdirs.additions(
            part.config, part.summary, part.summary["num_steps"]
        )
    ]


def _at_other_steps(run: RunRecord) -> list[_Table]:
    """Tables of added evaluations at other steps than the last."""
    tables = []
    for part in run.parts or (run,):
        members = [_member(row) for row in part.summary["members"]]
        for made in part.summary.get("evaluations", ()):
            if made["step"] == part.summary["num_steps"]:
                continue
            tags = [tag for tag in METRICS if tag in made["tags"]]
            rows = [
                Row(
                    member_name(member, members),
                    "",
                    [_single(own[tag]) if tag in own else _DASH for tag in tags],
                )
                for member, own in zip(members, made["members"], strict=True)
            ]
            how = workdirs.how_added(part.config, made)
            title = f"At step {made['step']:,}, {how}"
            tables.append(_Table(title, [METRICS[tag] for tag in tags], rows))
    return tables


def _by_column(
    points: Points,
    title: str,
    tags: Mapping[str, str],
    first: Sequence[str] = ("setting",),
) -> _Table:
    """A table with one row per model and beta, and one column per tag.

    Args:
      points: the results of the runs.
      title: title of the table.
      tags: heading -> tag.
      first: the first columns, from the points' heads.
    """
    headings = {"setting": "β", "seeds": "seeds"}
    texts = points.heads[[*first]].join(points.cells[[*tags.values()]])
    rows = [
        Row(label, colour, cells)
        for label, colour, cells in zip(
            points.heads["label"],
            points.heads["colour"],
            texts.to_numpy().tolist(),
            strict=True,
        )
    ]
    return _Table(title, [*(headings[name] for name in first), *tags], rows)


def _filled(points: Points, pattern: str) -> dict[str, str]:
    """Name in the place of "*" -> tag, for tags that fit a pattern (`Column.tag`)."""
    head, _, tail = pattern.partition("*")
    name = "[^/]+" if tail else ".+"
    form = re.compile(f"{re.escape(head)}({name}){re.escape(tail)}")
    return {m[1]: tag for tag in points.cells if (m := form.fullmatch(tag))}


def _member(row: Mapping[str, Any]) -> Member:
    """The hyper-parameters in a row of summary.json."""
    return Member(float(row["beta"]), float(row["learning_rate"]), int(row["seed"]))


def _shown_member(rows: Sequence[Mapping]) -> int:
    """The member to show: the first finite one of the middle beta, else the first."""
    betas = sorted({row["beta"] for row in rows if row["finite"]})
    if not betas:
        return 0
    middle = betas[len(betas) // 2]
    return next(
        k for k, row in enumerate(rows) if row["finite"] and row["beta"] == middle
    )


def _single(value: float | None) -> str:
    """A number as text, with the digits of the tables."""
    is_known = value is not None and math.isfinite(value)
    return show(float(value), math.nan) if is_known else _NAN


def _unbroken(numbers: str | None) -> str:
    """Text in which a mean and its deviation stay on one line."""
    return str(numbers or _DASH).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def _duration(seconds: float) -> str:
    """Seconds as text."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
