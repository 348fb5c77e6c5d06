"""Logs of a run: metrics.jsonl, samples, and trackers.

The methods are those of clu's MetricWriter, with the member as an additional argument.
metrics.jsonl, which all other code reads, has one line per logged step and member.
TensorBoard and other trackers are sinks (`training.sinks`). A tracker that fails gets
no more, with one warning: training is worth more than what a server shows of it.
"""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmvae_jax.errors import UsageError, first_line
from mmvae_jax.files import file_name, write_whole
from mmvae_jax.training import sinks
from mmvae_jax.training.sweep import Member

# Field of lines of evaluations that were added after a run.
DATE = "date"


class RunWriter:
    """Writes the metrics and samples of all members of a run.

    Attributes:
      workdir: the folder of the run.
      members: the members of the sweep.
      date: date of evaluations that are added after a run; "" during the run.
    """

    def __init__(
        self,
        workdir: Path,
        members: Sequence[Member],
        step: int | None,
        date: str = "",
        *,
        is_logged: bool = True,
        trackers: Mapping[str, str] | None = None,
    ):
        """Opens the files of a run that continues at `step` (0 = a new run).

        Lines after `step` and evaluations at `step` are dropped, because the run will
        log them again. Without `is_logged`, all lines of `step` are dropped: the
        earlier run logged it as its last step, but a longer run does not log it.

        With `step` None, for evaluations that are added after a run, only an incomplete
        line is dropped. These evaluations have a `date`, and are not dropped at `step`.

        `trackers`: arguments of `sinks.open_sinks`; default: only TensorBoard.

        Raises:
          UsageError: a tracker cannot be opened.
        """
        self.workdir = workdir
        self.members = members
        self.date = date
        self._path = workdir / "metrics.jsonl"
        _drop_lines_to_come(self._path, step, is_logged)
        self._file = open(self._path, "a")  # noqa: SIM115 (closed by close())
        self._sinks: list[list[sinks.Sink]] = []
        self._failed: set[str] = set()  # trackers
        try:
            for member in members:
                name = member_name(member, members)
                one = sinks.Member(workdir, name, member._asdict(), step)
                self._sinks.append(sinks.open_sinks(one, **(trackers or {})))
        except BaseException:
            self.close()
            raise

    def write_scalars(self, step: int, scalars: Sequence[Mapping[str, float]]) -> None:
        """Writes tag -> value of each member at a step, immediately to the disk.

        The field "undefined" of a line has the reasons (attribute `reason`) of NaNs.
        """
        lines = []
        for k, (member, values) in enumerate(zip(self.members, scalars, strict=True)):
            head = {"step": step, "member": k, **member._asdict()}
            head |= {DATE: self.date} if self.date else {}
            why = {t: x.reason for t, x in values.items() if hasattr(x, "reason")}
            line = {**head, **values, **({"undefined": why} if why else {})}
            lines.append(json.dumps(jsonable(line), allow_nan=False))
        self._file.write("".join(line + "\n" for line in lines))
        self.flush()
        for k, values in enumerate(scalars):
            tagged = {sinks.tag_of(tag): x for tag, x in values.items()}
            self._send(k, "scalars", step, tagged)

    def write_images(self, step: int, k: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes name -> uint8 [H, W, 1 or 3] of member k as PNG and to its sinks."""
        folder = self.workdir / "samples"
        folder.mkdir(exist_ok=True)
        prefix = member_name(self.members[k], self.members)
        for name, image in images.items():
            squeezed = image[..., 0] if image.shape[-1] == 1 else image
            Image.fromarray(squeezed).save(folder / f"{prefix}_{file_name(name)}.png")
            self._send(k, "image", step, sinks.tag_of(name), image)

    def write_texts(self, step: int, k: int, texts: Mapping[str, str]) -> None:
        """Writes name -> lines of member k to text files and its sinks."""
        folder = self.workdir / "samples"
        folder.mkdir(exist_ok=True)
        prefix = member_name(self.members[k], self.members)
        for name, text in texts.items():
            (folder / f"{prefix}_{name}.txt").write_text(text, encoding="utf-8")
            self._send(k, "text", step, sinks.tag_of(name), text)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the resolved config to the sinks of all members."""
        for k in range(len(self._sinks)):
            self._send(k, "config", hparams)

    def flush(self) -> None:
        """Writes buffered lines to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes all files and sinks."""
        self.flush()
        self._file.close()
        for k in range(len(self._sinks)):
            self._send(k, "close")

    def _send(self, k: int, what: str, *values: Any) -> None:
        """Calls the function `what` of the sinks of member k.

        After an error, its tracker gets no more of any member: a server that does not
        answer would stop the training for minutes at each call. TensorBoard's files are
        in the run's folder, and their errors those of its disk.
        """
        for sink in self._sinks[k]:
            if sink.tracker in self._failed:
                continue
            try:
                getattr(sink, what)(*values)
            except Exception as error:  # trackers raise many types
                if sink.tracker == sinks.TENSORBOARD:
                    raise
                self._failed.add(sink.tracker)
                warnings.warn(
                    f"{sink.tracker} gets no more of this run, because it failed: "
                    f"{first_line(error)}; {self._path.name} and "
                    "TensorBoard go on",
                    stacklevel=3,
                )


def member_name(member: Member, members: Sequence[Member]) -> str:
    """A file name for a member: the hyper-parameters that identify it in its sweep."""
    name = f"beta={_short(member.beta)},seed={member.seed}"
    if len({other.learning_rate for other in members}) > 1:
        name += f",learning_rate={_short(member.learning_rate)}"
    return name


def _short(value: float) -> str:
    """A number in six digits, or in all digits if six are not exact."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl.

    Raises:
      UsageError: a complete line is invalid.
    """
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise UsageError(
                f"{path}: line {len(lines) + 1} is not of the log of a run; move the "
                "file away"
            )
        lines.append(line)
    return lines


def jsonable(value: Any) -> Any:
    """Converts a value for JSON: plain numbers, None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(jsonable(value), indent=2, allow_nan=False)
    write_whole(path, text + "\n")


def _drop_lines_to_come(path: Path, step: int | None, is_logged: bool) -> None:
    """Drops the lines of a metrics.jsonl that a run continued at `step` logs again.

    An incomplete line is always dropped. `is_logged`: whether the run logs `step`.
    """
    if not path.exists():
        return

    def is_kept(line: Mapping[str, Any]) -> bool:
        if step is None or line["step"] != step:
            return step is None or line["step"] < step
        # The log of a step is complete before its checkpoint; an evaluation may have
        # been interrupted between two members.
        return DATE in line or (is_logged and not _is_evaluation(line))

    kept = [line for line in read_metrics(path) if is_kept(line)]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    """Whether a line of metrics.jsonl has values of metrics."""
    return any(tag.startswith("eval/") for tag in line)
