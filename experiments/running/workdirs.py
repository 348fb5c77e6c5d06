"""The working directory of a run: one config, and one process at a time."""

import contextlib
import fcntl
import itertools
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.running import datasets
from mmvae_jax.data.dataset import Dataset
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import description, old_configs, trained
from mmvae_jax.interface.sweeps import Sweep
from mmvae_jax.training import log, stages
from mmvae_jax.training.devices import Layout
from mmvae_jax.training.sweep import MAPPINGS, Member

_MAX_JSON_BYTES = 64 << 20
_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxother = _REPR.maxlong = 100

# Suffix of a folder with additional members of the sweep in the folder beside it.
MORE = "_more"
# Files of a run that was killed before it wrote config.json.
_BEFORE_CONFIG = (
    ".lock",
    "config.partial",
    "description.partial",
    trained.DESCRIPTION,
)


@contextlib.contextmanager
def locked(workdir: Path, config: Any) -> Iterator[None]:
    """Locks a working directory for this run within the context.

    Args:
      workdir: created if it does not exist.
      config: compared with an existing config.json.

    Raises:
      UsageError: the directory has another config or other files, is used by another
        process, or cannot be created.
    """
    path = workdir / "config.json"
    if workdir.is_dir() and not path.exists():
        if any(item.name not in _BEFORE_CONFIG for item in workdir.iterdir()):
            raise UsageError(
                f"{workdir} holds files, but no run; choose another --workdir"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"--workdir {workdir} is not a folder") from error
    with open(workdir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another process is running in {workdir}; wait for it, or choose "
                "another --workdir"
            ) from error
        if path.exists():
            compare_training(workdir, config, old_configs.upgraded(read_json(path)))
        yield


def record(workdir: Path, config: Any, dataset: Dataset) -> None:
    """Writes config.json and description.json, after the data are loaded.

    A run that continues for more steps gets the new config; its earlier summary is
    renamed to summary_STEPS.json.
    """
    describe(workdir, dataset)
    summary = read_summary(workdir)
    if summary is not None:
        names = (f"_{n}" if n else "" for n in itertools.count())
        former = (f"summary_{summary['num_steps']}{name}.json" for name in names)
        unused = next(name for name in former if not (workdir / name).exists())
        (workdir / "summary.json").replace(workdir / unused)
    path, content = workdir / trained.CONFIG, resolved(config)
    if not path.exists() or read_json(path) != content:
        log.write_json(path, content)  # last, because it makes the folder a run


def describe(workdir: Path, dataset: Dataset) -> None:
    """Writes description.json if it does not exist.

    Raises:
      UsageError: the existing file describes other data.
    """
    path = workdir / trained.DESCRIPTION
    if not path.exists():
        log.write_json(path, description.to_json(description.describe(dataset)))
        return
    found = trained.read_description(path)
    if found.fingerprint != dataset.fingerprint:
        raise UsageError(
            f"the data of {workdir} have changed since it was trained ({path.name} "
            "has another fingerprint); restore them, or choose another --workdir"
        )


def earlier_mapping(workdir: Path, device: str, layout: Layout) -> str | None:
    """The mapping of members that an earlier version chose for this run, or None.

    Earlier versions measured the mappings and stored the fastest in execution.json. A
    run must continue with the same mapping, because another one changes bits.

    Args:
      workdir: folder of the run.
      device: kind of the devices; a choice for another kind is ignored.
      layout: numbers of devices; a choice for another layout is ignored.

    Raises:
      UsageError: the file is invalid.
    """
    path = workdir / "execution.json"
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("mapping") not in MAPPINGS:
        raise UsageError(
            f"{path} was not written by this project; remove it, and the device and "
            "the network choose the mapping of members"
        )
    is_from_here = [found.get("device"), found.get("layout")] == [device, list(layout)]
    return found["mapping"] if is_from_here else None


def read_summary(workdir: Path) -> dict | None:
    """Content of summary.json; None if the run is not finished."""
    path = workdir / "summary.json"
    if not path.exists():
        return None
    summary = read_json(path)
    if not is_summary(summary):
        raise UsageError(
            f"{path} is no summary of this project; choose another --workdir, or move "
            "the file away"
        )
    return summary


def is_summary(summary: Any) -> bool:
    """Whether this is the content of a summary.json of experiments.run."""
    try:
        optional = ("wall_seconds", "step_seconds", "training_seconds", "timed_steps")
        optional += ("num_parameters",)
        numbers = [summary["num_steps"], *(summary.get(x) or 0 for x in optional)]
        texts = [summary["model"], summary["dataset"], summary["device"]]
        texts += summary.get("undefined", {}).values()
        marks, shapes = [], [len(summary["members"]) > 0]
        for made in summary.get("evaluations", ()):
            numbers.append(made["step"])
            texts += [made["date"], *made["tags"]]
            made["settings"].items()
            is_last = made["step"] == summary["num_steps"]
            shapes.append(is_last or len(made["members"]) == len(summary["members"]))
            for values in made.get("members", ()):
                numbers += [x for x in values.values() if x is not None]
            for why in made.get("undefined", ()):
                texts += why.values()
        for member in summary["members"]:
            numbers += [member[field] for field in Member._fields]
            numbers += [x for x in member["metrics"].values() if x is not None]
            marks.append(member["finite"])
            texts += member.get("undefined", {}).values()
    except (AttributeError, KeyError, TypeError):
        return False
    return (
        all(isinstance(number, (int, float)) for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(mark, bool) for mark in marks)
        and all(shapes)
    )


def undefined(parts: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Tag -> the reasons of NaNs in parts of a summary.json: itself, its members."""
    return joined_reasons(part.get("undefined", {}) for part in parts)


def joined_reasons(members: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Tag -> the different reasons, of tag -> reason for each member."""
    found: dict[str, dict[str, None]] = {}
    for why in members:
        for tag, reason in why.items():
            found.setdefault(tag, {})[reason] = None
    return {tag: list(own) for tag, own in found.items()}


def additions(
    config: Mapping[str, Any], summary: Mapping[str, Any], step: int
) -> list[tuple[str, list[str]]]:
    """The origin of values that were added to a finished run.

    Args:
      config: content of config.json.
      summary: content of summary.json.
      step: step of the evaluation.

    Returns:
      (a line with date and settings, its tags) for each addition, in order.
    """
    latest: dict[str, int] = {}
    entries = summary.get("evaluations", ())
    for n, made in enumerate(entries):
        if made["step"] == step:
            latest |= dict.fromkeys(made["tags"], n)
    return [
        (how_added(config, made), [tag for tag, own in latest.items() if own == n])
        for n, made in enumerate(entries)
        if n in latest.values()
    ]


def how_added(config: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """One line with the date and the settings of an added evaluation."""
    theirs = _flatten({name: config.get(name, {}) for name in made["settings"]})
    ours = _flatten(dict(made["settings"]))
    changed = [
        f"{name} = {_show(value)}"
        for name, value in sorted(ours.items())
        if theirs.get(name) != value and name != "config.eval.metrics"
    ]
    settings = ", ".join(changed) or "the settings of the run"
    return f"added on {made['date']} with {settings}"


def trained_as(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json for the training of all members."""
    left_out = (*_EVALUATION, *_ELSEWHERE, "config.sweep.")
    fields = _flatten(dict(config)).items()
    return {name: x for name, x in fields if not name.startswith(left_out)}


def is_evaluated_otherwise(workdir: Path, config: Any) -> bool:
    """Whether a config has other evaluation settings than an existing run."""
    ours = _flatten(resolved(config))
    theirs = _flatten(old_configs.upgraded(read_json(workdir / trained.CONFIG)))
    return any(
        ours.get(name) != theirs.get(name)
        for name in ours.keys() | theirs.keys()
        if name.startswith(_EVALUATION)
    )


def resolved(config: Any) -> dict:
    """A config as in JSON, with lists instead of tuples."""
    return json.loads(json.dumps(log.jsonable(config.to_dict())))


def read_json(path: Path) -> Any:
    """Reads a JSON file of this project, of at most _MAX_JSON_BYTES."""
    try:
        if (size := path.stat().st_size) > _MAX_JSON_BYTES:
            raise ValueError(f"{size} bytes, {_MAX_JSON_BYTES} is the limit")
        return json.loads(path.read_text())
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UsageError(
            f"{path} is no JSON of this project ({error}); choose another --workdir, "
            "or move the file away"
        ) from error


def compare(
    workdir: Path, config: Any, found: Any, *, is_finished: bool = False
) -> None:
    """Refuses a directory whose run was started with another config.

    Args:
      workdir: the directory, for the message.
      config: the requested config.
      found: content of config.json.
      is_finished: whether the run is only read; it may then lack newer fields.

    Raises:
      UsageError: the configs differ.
    """
    ours, theirs = _flatten(resolved(config)), _flatten(found)
    names = ours.keys() & theirs.keys() if is_finished else ours.keys() | theirs.keys()
    _refuse(workdir, ours, theirs, names - _unread(config))


def compare_training(workdir: Path, config: Any, found: Any) -> None:
    """Refuses a directory whose run was trained with another config.

    Evaluation settings may differ, and the number of steps may be larger.

    Args:
      workdir: the directory, for the message.
      config: the requested config.
      found: content of config.json.

    Raises:
      UsageError: the configs differ.
    """
    ours, theirs = _flatten(resolved(config)), _flatten(found)
    names = {x for x in ours.keys() | theirs.keys() if not x.startswith(_EVALUATION)}
    names -= _unread(config)
    steps = "config.train.num_steps"
    before, now = theirs.get(steps), ours[steps]
    if isinstance(before, int) and now > before:
        if ours.get(_SCHEDULE) == theirs.get(_SCHEDULE) == "cosine":
            raise UsageError(
                f"{workdir} holds a run whose learning rate falls until step {before} "
                f"({_SCHEDULE} is 'cosine'): it cannot be extended to {now}; choose "
                "another --workdir"
            )
        names.remove(steps)
    _refuse(workdir, ours, theirs, names)


def _unread(config: Any) -> set[str]:
    """Fields that the data set does not read: older runs may have any value of them."""
    return {f"config.data.{field}" for field in datasets.unread(config.data)}


def require_length(workdir: Path, sweep: Sweep) -> None:
    """Refuses more steps if they would change steps already taken.

    Raises:
      UsageError: the stages of the model depend on the number of steps with which the
        run was started.
    """
    path = workdir / trained.CONFIG
    if not sweep.model.stages or not path.exists():
        return
    before, now = read_json(path)["train"]["num_steps"], sweep.config.train.num_steps
    if stages.is_lengthened(sweep.model, before, now):
        raise UsageError(
            f"{workdir} holds a run of {before} steps, divided into the stages of "
            f"{sweep.config.model.name!r}: it cannot be extended to "
            f"config.train.num_steps={now}; choose another --workdir"
        )


_SCHEDULE = "config.train.learning_rate_schedule"
# Sections of evaluation settings, which do not affect training.
EVALUATION = ("eval", "classifier", "matcher")
_EVALUATION = tuple(f"config.{section}." for section in EVALUATION)
# Fields that may change when a run is resumed.
_ELSEWHERE = ("config.train.mesh", "config.train.data_on", "config.log.")


def _refuse(
    workdir: Path, ours: dict[str, Any], theirs: dict[str, Any], names: Iterable[str]
) -> None:
    """Raises a UsageError that names the first different field."""
    differing = sorted(
        name
        for name in names
        if not name.startswith(_ELSEWHERE)
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    )
    if not differing:
        return
    name = differing[0]  # shortened in the message, because a file may hold anything
    more = f" (and {len(differing) - 1} more fields)" if len(differing) > 1 else ""
    advice = "choose another --workdir"
    if all(name.startswith("config.sweep.") for name in differing):
        advice = (
            "train further members in a folder of their own beside it, --workdir="
            f"{workdir}{MORE} with their values alone: report, figures and claims of "
            "the folder that holds both read them as one sweep"
        )
    if name == "config.train.num_steps":
        advice = (
            f"its run is one of {_show(theirs.get(name))} steps, give as many or more"
        )
    raise UsageError(
        f"{workdir} holds a run with another config: {_show(name)} is "
        f"{_show(theirs.get(name, 'absent'))} there and "
        f"{_show(ours.get(name, 'absent'))} here{more}; {advice}"
    )


def _flatten(tree: Any, prefix: str = "config") -> dict[str, Any]:
    """Flattens nested dictionaries to dotted names."""
    flat: dict[str, Any] = {}
    left = [(prefix, tree)]
    while left:  # no recursion, because a file may be nested very deeply
        name, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{name}.{key}", item) for key, item in value.items()]
        else:
            flat[name] = value
    return flat


def _show(value: Any) -> str:
    """A value as text of limited length."""
    text = value if isinstance(value, str) else _REPR.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
