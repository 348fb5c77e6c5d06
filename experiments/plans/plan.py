"""Plans of the paper's figures: a scale, its runs, and the finished runs.

A scale is a config of configs/scales/, which determines the runs of all figures. Each
run is a `Spec`, which names its folder and determines its config. The folder of a plan
has the scale in plan.json, so that runs of two scales are never mixed.
"""

import dataclasses
import functools
import importlib
import importlib.util
import json
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from ml_collections import ConfigDict

from experiments.plans import runs
from experiments.plans.runs import RunRecord
from experiments.running import datasets, workdirs
from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import old_configs
from mmvae_jax.models import COORDINATED, MIXTURE, POOLED, PRIVATE
from mmvae_jax.training import log

SCALES = ("small", "demo", "cpu", "published", "paper")
PLAN = "plan.json"
MODELS = ("unimodal", "mvae", "mmvae", "mopoe")
MULTIMODAL = ("mvae", "mmvae", "mopoe")
OFFICIAL = ("unimodal_official", "mmvae_official")
# Kind -> models of its panel in the figures "family" and "inputs"; REFERENCES are in
# all panels.
KINDS = {
    kind: tuple(name for name, model in models.MODELS.items() if model.kind == kind)
    for kind in (MIXTURE, COORDINATED, PRIVATE, POOLED)
}
REFERENCES = ("unimodal", "mvae", "mopoe")


class Spec(NamedTuple):
    """One run of a plan.

    Attributes:
      dataset: a column of the scale ("polymnist", "translated"; "shapes", "cub"), or
        "discrete".
      model: one of mmvae_jax.models.MODELS.
      num_modalities: number of modalities, the first ones of the data set; 0 = all.
      is_repeated: whether all modalities have the same background (Figure 11).
    """

    dataset: str
    model: str
    num_modalities: int = 0
    is_repeated: bool = False

    @property
    def folder(self) -> str:
        """Folder of the run, relative to that of the plan."""
        dataset = self.dataset + ("_repeated" if self.is_repeated else "")
        size = f"_{self.num_modalities}_modalities" if self.num_modalities else ""
        return f"{dataset}/{self.model}{size}"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The finished runs of a plan, for figures and claims.

    Attributes:
      directory: the folder of the plan.
      scale: name of the scale.
      config: the scale, as in configs/scales/demo.py.
      runs: Spec -> RunRecord, for finished runs.
    """

    directory: Path
    scale: str
    config: ConfigDict
    runs: Mapping[Spec, RunRecord]

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """The `runs.long_table` of the runs, with their folders as names."""
        return runs.long_table(
            {spec.folder: run.summary for spec, run in self.runs.items()}
        )

    @functools.cached_property
    def spreads(self) -> pd.DataFrame:
        """The `runs.spreads` of the table, by run, beta and tag."""
        return runs.spreads(self.table)


def load_scale(name: str) -> tuple[str, ConfigDict]:
    """The name and config of a scale: one of SCALES, or a similar file.

    Raises:
      UsageError: the scale does not exist, or the file has other fields.
    """
    reference = importlib.import_module("configs.scales.demo").get_config()
    if name in SCALES:
        return name, importlib.import_module(f"configs.scales.{name}").get_config()
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(
            f"unknown --scale {name!r}; choose one of {', '.join(SCALES)}, or name a "
            "file like configs/scales/demo.py"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # a user's file may raise anything
        raise UsageError(f"--scale {name} cannot be read: {error}") from error
    if not isinstance(config, ConfigDict) or set(config) != set(reference):
        raise UsageError(
            f"--scale {name}: get_config() must return the fields of "
            "configs/scales/demo.py"
        )
    return path.stem, config


def pair_columns(scale: ConfigDict) -> tuple[str, ...]:
    """The columns of images with captions; older plans have none."""
    return tuple(scale.pairs.columns) if "pairs" in scale else ()


def all_columns(scale: ConfigDict) -> tuple[str, ...]:
    """All data sets of the figures, those of images with captions last."""
    return (*scale.columns, *pair_columns(scale))


def settings(scale: ConfigDict, dataset: str) -> ConfigDict:
    """Settings of a data set in a scale."""
    if dataset == "discrete":
        return scale.discrete
    if "pairs" in scale and dataset in scale.pairs.datasets:
        return scale.pairs.datasets[dataset]
    return scale.datasets[dataset]


def with_columns(scale: ConfigDict, names: Sequence[str]) -> ConfigDict:
    """A copy of a scale with only some of its columns.

    Raises:
      UsageError: a column does not exist.
    """
    known = all_columns(scale)
    for name in names:
        if name not in known:
            raise UsageError(
                f"unknown column {name!r} in --columns; choose from {', '.join(known)}"
            )
    chosen = scale.copy_and_resolve_references()
    chosen.columns = tuple(name for name in scale.columns if name in names)
    if "pairs" in chosen:
        pairs = tuple(name for name in pair_columns(scale) if name in names)
        chosen.pairs.columns = pairs
    return chosen


def sweep(datasets: Iterable[str], models: Iterable[str]) -> list[Spec]:
    """The runs of a figure over beta."""
    return [Spec(dataset, model) for dataset in datasets for model in models]


def by_modalities(scale: ConfigDict, *, is_repeated: bool) -> list[Spec]:
    """The runs of Figure 3 or 11; for all modalities, these are the runs over beta."""
    specs = []
    for dataset in scale.columns:
        specs.append(Spec(dataset, "unimodal", 0, is_repeated))
        for model in MULTIMODAL:
            for num in scale.num_modalities:
                specs.append(modalities_spec(scale, dataset, model, num, is_repeated))
    return specs


def modalities_spec(
    scale: ConfigDict, dataset: str, model: str, num: int, is_repeated: bool
) -> Spec:
    """The run with the first `num` modalities."""
    is_all = num == scale.num_modalities[-1]
    return Spec(dataset, model, 0 if is_all else num, is_repeated)


def official(scale: ConfigDict) -> list[Spec]:
    """The runs of Figure 12."""
    num = scale.official.num_modalities
    return [
        modalities_spec(scale, first, model, num, False)
        for first in scale.columns[:1]
        for model in OFFICIAL
    ]


def family(scale: ConfigDict) -> list[Spec]:
    """The runs of all models over beta, one model after the other."""
    names = [model for kind in KINDS.values() for model in kind]
    return [Spec(dataset, model) for model in names for dataset in scale.columns]


def figure_specs(scale: ConfigDict) -> dict[str, list[Spec]]:
    """Figure -> the runs it needs; the paper's figures by number, ours by name."""
    both, first = sweep(scale.columns, MODELS), scale.columns[:1]
    discrete = [Spec("discrete", model) for model in MULTIMODAL]
    with_pairs = sweep(all_columns(scale), MODELS)
    return {
        "2": with_pairs,
        "3": by_modalities(scale, is_repeated=False),
        "4": with_pairs,
        "6": both,
        "7": with_pairs,
        "8": with_pairs,
        "9": with_pairs,
        "10": sweep(all_columns(scale), MULTIMODAL),
        "11": by_modalities(scale, is_repeated=True),
        "12": official(scale),
        "13": sweep(first, ("mvae", "mvae_plus")),
        "theorem": discrete,
        "discrepancy": [
            spec
            for spec in by_modalities(scale, is_repeated=False)
            if spec.dataset in first
        ],
        "tradeoff": both,
        "matching": both if "matching" in scale.metrics else [],
        "family": family(scale),
        "inputs": [spec for spec in family(scale) if spec.model != "unimodal"],
    }


def figures_of(scale: ConfigDict, names: Sequence[str]) -> list[str]:
    """The figures that use only these columns.

    These are figures with one column per data set, and figures of the first data set if
    it is in `names`.
    """
    whole, parts = figure_specs(scale), figure_specs(with_columns(scale, names))
    return [
        figure
        for figure, specs in parts.items()
        if specs and all(s in whole[figure] and s.dataset in names for s in specs)
    ]


def all_specs(scale: ConfigDict, figures: Iterable[str]) -> list[Spec]:
    """The runs of some figures, each once, in the order of training."""
    needed = figure_specs(scale)
    return list(dict.fromkeys(spec for name in figures for spec in needed[name]))


def run_config(scale: ConfigDict, spec: Spec, places: Mapping[str, str]) -> ConfigDict:
    """The config of a run.

    Args:
      scale: as in configs/scales/demo.py.
      spec: one of `all_specs`.
      places: fields of config.data with paths (data_dir, ...); fields that the data
        set does not read are ignored.

    Raises:
      UsageError: the scale changes a field that does not exist.
    """
    dataset = settings(scale, spec.dataset)
    module = importlib.import_module(f"configs.{dataset.config}")
    config = module.get_config(spec.model)
    changes = [dataset.changes]
    if spec.dataset in pair_columns(scale):
        config.sweep.update(beta=tuple(dataset.beta), seed=tuple(dataset.seed))
        config.eval.metrics = tuple(dataset.metrics)
    elif spec.dataset != "discrete":
        config.sweep.update(beta=tuple(scale.beta), seed=tuple(scale.seed))
        config.eval.metrics = tuple(scale.metrics)
        changes.insert(0, scale.changes)
        if spec.model in OFFICIAL:
            changes.append(scale.official.changes)
        elif spec.num_modalities or spec.is_repeated:
            config.sweep.beta = (dataset.beta_by_modalities,)
            config.eval.metrics = tuple(scale.metrics_by_modalities)
        if spec.model in scale.models:
            changes.append(scale.models[spec.model])
    for change in changes:
        _apply(config, change)
    config.data.repeated = spec.is_repeated
    if spec.num_modalities:
        config.data.use_modalities = spec.num_modalities
    ignored = datasets.unread(config.data)
    config.data.update(
        {f: x for f, x in places.items() if f in config.data and f not in ignored}
    )
    return config


def _apply(config: ConfigDict, change: ConfigDict) -> None:
    """Updates nested fields of a config; network options are replaced."""
    plain = change.to_dict()
    sections = {("modality",): plain.get("modality", {})}
    for name, section in plain.get("modalities", {}).items():
        sections["modalities", name] = section
    options = {
        place: ConfigDict(section.pop("network_options"))
        for place, section in sections.items()
        if "network_options" in section
    }
    _check_fields(config, plain, "config")
    try:
        config.update(plain)
    except TypeError as error:
        raise UsageError(f"the scale changes a field's type: {error}") from error
    for place, own in options.items():
        functools.reduce(operator.getitem, place, config).network_options = own


def _check_fields(config: ConfigDict, change: Mapping, name: str) -> None:
    """Refuses changes of fields that do not exist."""
    for field, value in change.items():
        if field not in config:
            raise UsageError(f"the scale changes {name}.{field}, which does not exist")
        if isinstance(value, dict) and isinstance(config[field], ConfigDict):
            _check_fields(config[field], value, f"{name}.{field}")


def record(directory: Path, scale: str, config: ConfigDict) -> None:
    """Writes plan.json, or compares it with the existing one.

    Raises:
      UsageError: the folder belongs to another scale or has other content.
    """
    path = directory / PLAN
    wanted = {"scale": scale, "config": json.loads(json.dumps(config.to_dict()))}
    if path.exists():
        found = workdirs.read_json(path)
        if not isinstance(found, dict):
            raise UsageError(f"{path} is not a plan of this project; move it away")
        if "config" in found:
            found["config"] = old_configs.upgraded_scale(found["config"])
        begun = {
            spec.model
            for spec in all_specs(config, figure_specs(config))
            if (directory / spec.folder).exists()
        }
        if _is_older(found, wanted, begun):
            log.write_json(path, wanted)
        elif found != wanted:
            theirs = found.get("scale", "?")
            other = " with other settings" if theirs == scale else ""
            raise UsageError(
                f"{directory} holds runs of scale {theirs!r}{other}, not of {scale!r} "
                "as asked for; choose another --directory"
            )
        return
    if directory.is_dir() and any(directory.iterdir()):
        raise UsageError(
            f"{directory} holds files, but no plan; choose another --directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    log.write_json(path, wanted)


def _is_older(found: Mapping, wanted: Mapping, begun: Collection[str]) -> bool:
    """Whether a plan differs only in newer fields, and in models that have no run yet.

    `read` checks each run against the current scale.

    Args:
      found: content of plan.json.
      wanted: what it would be today.
      begun: models with a run.
    """
    fields, now = found.get("config"), wanted["config"]
    if not isinstance(fields, dict) or found == wanted:
        return False
    known = {name: now.get(name) for name in fields}
    if isinstance(changes := fields.get("models"), dict):
        known["models"] = {
            name: now["models"].get(name) if name in begun else change
            for name, change in changes.items()
        }
    return found == {**wanted, "config": known}


def read(directory: Path) -> Evidence:
    """The finished runs of the plan in a folder.

    Raises:
      UsageError: the folder has no plan, no finished run, or a run of another scale.
    """
    path = directory / PLAN
    if not path.exists():
        raise UsageError(
            f"no {PLAN} in {directory}; `python -m experiments.figures "
            f"--directory={directory}` makes its runs"
        )
    plan = workdirs.read_json(path)
    try:
        scale = plan["scale"]
        config = ConfigDict(old_configs.upgraded_scale(plan["config"]))
        specs = all_specs(config, figure_specs(config))
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a plan of this project: {error}") from error
    finished = {}
    for spec in specs:
        folder = directory / spec.folder
        summary = workdirs.read_summary(folder)
        if summary is not None:
            found = old_configs.upgraded(workdirs.read_json(folder / "config.json"))
            _check_scale(folder, spec, config, found)
            first = runs.checked(RunRecord(folder, found, summary))
            (finished[spec],) = runs.join([first, *_further(first)])
    if not finished:
        raise UsageError(
            f"no finished run in {directory}; `python -m experiments.figures "
            f"--scale={scale} --directory={directory}` makes them"
        )
    return Evidence(directory, scale, config, finished)


def _further(run: RunRecord) -> list[RunRecord]:
    """Finished runs of additional members, in folders beside that of a run.

    Raises:
      UsageError: such a run does not belong to the sweep.
    """
    found = []
    for folder in sorted(
        run.workdir.parent.glob(f"{run.workdir.name}{workdirs.MORE}*")
    ):
        summary = workdirs.read_summary(folder)
        if summary is not None:
            config = old_configs.upgraded(workdirs.read_json(folder / "config.json"))
            found.append(runs.checked(RunRecord(folder, config, summary)))
            if len(runs.join([run, *found])) > 1:
                raise UsageError(
                    f"{folder} is no part of the sweep of {run.workdir}: other "
                    "settings differ too, or both have the same member; move it away"
                )
    return found


def _check_scale(
    folder: Path, spec: Spec, scale: ConfigDict, found: Mapping[str, Any]
) -> None:
    """Refuses a run that differs from its plan."""
    # Paths of data are not part of the scale.
    places = {
        name: value for name, value in found["data"].items() if name.endswith("_dir")
    }
    workdirs.compare(folder, run_config(scale, spec, places), found, is_finished=True)


def is_finished(directory: Path, spec: Spec) -> bool:
    """Whether a run has a summary."""
    return workdirs.read_summary(directory / spec.folder) is not None
