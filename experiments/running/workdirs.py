"""The working directory of a run: one run, one config, one process at a time."""

import contextlib
import fcntl
import itertools
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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

# Ends the name of a folder of further members of the sweep in the folder beside it.
MORE = "_more"
# Files of a run that was killed before it had its config.json.
_BEFORE_CONFIG = (
    ".lock",
    "config.partial",
    "description.partial",
    trained.DESCRIPTION,
)


@contextlib.contextmanager
def locked(workdir: Path, config: Any) -> Iterator[None]:
    """Makes a working directory this run's own while the context lasts.

    Args:
      workdir: created if it is not there.
      config: compared with the config.json that is there.

    Raises:
      UsageError: the directory holds another config or other files, is used by
        another process, or cannot be created.
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
    """Writes config.json and description.json, once what they describe is there.

    A run that goes on for more steps than it was started for has the config of now; its
    former summary is kept under the name summary_STEPS.json.
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
        log.write_json(path, content)  # the last: it makes the folder a run


def describe(workdir: Path, dataset: Dataset) -> None:
    """Writes description.json where it is not there.

    Raises:
      UsageError: it is there, and of other data.
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

    Earlier versions tried the mappings and kept the fastest in execution.json. Another
    mapping has other bits, so that such a run has to be continued with the same.

    Args:
      workdir: the run's.
      device: kind of its devices; a choice on others does not count.
      layout: numbers of its devices, likewise.

    Raises:
      UsageError: the file is none of those versions'.
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
    """Content of summary.json; None while the run is not finished."""
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
    """Whether this is what summary.json holds: experiments.run writes it."""
    try:
        times = ("wall_seconds", "step_seconds", "num_parameters")
        numbers = [summary["num_steps"], *(summary.get(name) or 0 for name in times)]
        texts = [summary["model"], summary["dataset"], summary["device"]]
        marks, shapes = [], [len(summary["members"]) > 0]
        for made in summary.get("evaluations", ()):
            numbers.append(made["step"])
            texts += [made["date"], *made["tags"]]
            made["settings"].items()
            is_last = made["step"] == summary["num_steps"]
            shapes.append(is_last or len(made["members"]) == len(summary["members"]))
            for values in made.get("members", ()):
                numbers += [x for x in values.values() if x is not None]
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


def undefined(members: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Tag -> the reasons for which it is nan for some members of a summary.json."""
    found: dict[str, dict[str, None]] = {}
    for member in members:
        for tag, reason in member.get("undefined", {}).items():
            found.setdefault(tag, {})[reason] = None
    return {tag: list(own) for tag, own in found.items()}


def additions(
    config: Mapping[str, Any], summary: Mapping[str, Any], step: int
) -> list[tuple[str, list[str]]]:
    """Where values that were added to a finished run come from.

    Args:
      config: content of its config.json.
      summary: content of its summary.json.
      step: at which they were computed.

    Returns:
      (a line with the date and the settings, tags that it is of), as they were added.
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
    """The date of an evaluation that was added, and its settings, as one line."""
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
    """The fields of a config.json that all members of a sweep are trained with."""
    left_out = (*_EVALUATION, *_ELSEWHERE, "config.sweep.")
    fields = _flatten(dict(config)).items()
    return {name: x for name, x in fields if not name.startswith(left_out)}


def is_evaluated_otherwise(workdir: Path, config: Any) -> bool:
    """Whether a run is asked for with other settings of evaluation than it has."""
    ours = _flatten(resolved(config))
    theirs = _flatten(old_configs.upgraded(read_json(workdir / trained.CONFIG)))
    return any(
        ours.get(name) != theirs.get(name)
        for name in ours.keys() | theirs.keys()
        if name.startswith(_EVALUATION)
    )


def resolved(config: Any) -> dict:
    """A config as JSON has it: tuples are lists."""
    return json.loads(json.dumps(log.jsonable(config.to_dict())))


def read_json(path: Path) -> Any:
    """Reads a JSON file that this project wrote, of at most _MAX_JSON_BYTES."""
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
      config: the one asked for.
      found: what config.json holds.
      is_finished: a run that is only read may lack fields that came later.

    Raises:
      UsageError: they differ.
    """
    ours, theirs = _flatten(resolved(config)), _flatten(found)
    names = ours.keys() & theirs.keys() if is_finished else ours.keys() | theirs.keys()
    _refuse(workdir, ours, theirs, names)


def compare_training(workdir: Path, config: Any, found: Any) -> None:
    """Refuses a directory whose run was trained with another config.

    How a run is evaluated is no part of what it is, and it may go on for more steps.

    Args:
      workdir: the directory, for the message.
      config: the one asked for.
      found: what config.json holds.

    Raises:
      UsageError: they differ.
    """
    ours, theirs = _flatten(resolved(config)), _flatten(found)
    names = {x for x in ours.keys() | theirs.keys() if not x.startswith(_EVALUATION)}
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


def require_length(workdir: Path, sweep: Sweep) -> None:
    """Refuses to go on for more steps where that changes steps that have been taken.

    Raises:
      UsageError: the run was started for another number of steps, by which the stages
        of its model are divided.
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
# Sections that say how a run is evaluated, and no part of how it is trained.
EVALUATION = ("eval", "classifier", "matcher")
_EVALUATION = tuple(f"config.{section}." for section in EVALUATION)
# A run may be continued on other devices, and with other trackers.
_ELSEWHERE = ("config.train.mesh", "config.train.data_on", "config.log.")


def _refuse(
    workdir: Path, ours: dict[str, Any], theirs: dict[str, Any], names: Iterable[str]
) -> None:
    """Raises a UsageError that names the first of the fields that differ."""
    differing = sorted(
        name
        for name in names
        if not name.startswith(_ELSEWHERE)
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    )
    if not differing:
        return
    name = differing[0]  # cut in the message: what is read may be anything
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
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    left = [(prefix, tree)]
    while left:  # what is read may be nested as deep as functions can call
        name, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{name}.{key}", item) for key, item in value.items()]
        else:
            flat[name] = value
    return flat


def _show(value: Any) -> str:
    """A value as a part of a line, however long it is."""
    text = value if isinstance(value, str) else _REPR.repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
