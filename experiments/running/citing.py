"""BibTeX entries of the models, metrics and data sets of runs."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.running import datasets, workdirs
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metrics import METRICS, columns_of
from mmvae_jax.evaluation.samplers import SAMPLERS
from mmvae_jax.interface import old_configs, references

_BIB = "CITATIONS.bib"
_CONDITIONS = re.compile(r"^\s*keywords\s*=\s*\{(.*?)\}", re.MULTILINE)


def bibtex(runs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any] | None]]) -> str:
    """The BibTeX entries of some runs, with comments that say what each is for.

    Args:
      runs: content of config.json, and of summary.json if the run is finished.
    """
    entries, used = references.entries(), {}
    for config, summary in runs:
        model = _section(config, "model").get("name", "")
        own = datasets_entries(_section(config, "data"))
        # Equal keys have equal entries (tests/experiments/test_cite.py).
        entries = own | entries
        chosen = _metrics(config, summary), _samplers(config, summary)
        used |= references.uses(model, *chosen)
        if name := _section(config, "data").get("name"):
            used[f"data set {name}"] = tuple(own)
    lines = [
        f"% {what}: {', '.join(keys) or 'no entry'}" for what, keys in used.items()
    ]
    cited = dict.fromkeys(key for keys in used.values() for key in keys)
    return "\n\n".join(["\n".join(lines), *(entries[key] for key in cited)])


def datasets_entries(data_config: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a data set with given options: key -> entry.

    Args:
      data_config: config.data. An entry of datasets/NAME/CITATIONS.bib with the field
        `keywords` is used only if one of its FIELD=VALUE holds in config.data.
    """
    path = datasets.DATASETS / str(data_config.get("name")) / _BIB
    if not path.is_file():
        return {}
    found = {}
    for key, entry in references.parse(path.read_text(encoding="utf-8")).items():
        asked = _CONDITIONS.search(entry)
        conditions = [x.strip() for x in asked[1].split(",")] if asked else []
        held = {f"{field}={value}" for field, value in data_config.items()}
        if not conditions or held & set(conditions):
            found[key] = entry
    return found


def read(directory: Path) -> list[tuple[Any, dict | None]]:
    """The configs and summaries of all runs and exports in a folder and below.

    Raises:
      UsageError: there is no run or export, or a file cannot be read.
    """
    found = []
    for path in sorted(directory.rglob("config.json")):
        config = old_configs.upgraded(workdirs.read_json(path))
        if not _section(config, "model").get("name"):
            raise UsageError(f"{path} names no model: it is no config of this project")
        found.append((config, workdirs.read_summary(path.parent)))
    if not found:
        raise UsageError(
            f"no run in {directory}: name the folder of a run, of several, or an export"
        )
    return found


def _section(config: Any, name: str) -> Mapping[str, Any]:
    """A section of a config, or an empty mapping."""
    section = config.get(name) if isinstance(config, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _metrics(config: Any, summary: Mapping[str, Any] | None) -> list[str]:
    """The metrics of a run: those in its config, and those with values."""
    named = _section(config, "eval").get("metrics")
    named = named if isinstance(named, list) else ()
    tags = _tags(summary)
    return [
        name
        for name in METRICS
        if name in named or any(f"eval/{c.tag}" in tags for c in columns_of(name))
    ]


def _samplers(config: Any, summary: Mapping[str, Any] | None) -> list[str]:
    """The fitted samplers of a run: that in its config, and those with values."""
    named, tags = _section(config, "eval").get("sampler"), _tags(summary)
    return [
        name
        for name in SAMPLERS
        if name == named or any(tag.startswith(f"eval/{name}/") for tag in tags)
    ]


def _tags(summary: Mapping[str, Any] | None) -> set[str]:
    """The tags with values in a run."""
    return {t for row in (summary or {}).get("members", ()) for t in row["metrics"]}
