"""Trackers of a run: TensorBoard, Weights & Biases, and MLflow.

`training.log.RunWriter` writes values, pictures, texts and the config to sinks, one per
member and tracker. TensorBoard's files are always written; Weights & Biases and MLflow
are optional, with packages in extras. A resumed run continues the same tracker runs.
"""

import hashlib
import html
import importlib.util
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorboardX

from mmvae_jax.errors import ArgumentError, UsageError, first_line
from mmvae_jax.files import cut

PROJECT = "mmvae_jax"  # project of all runs in a tracker
TENSORBOARD = "TensorBoard"
WANDB_MODES = ("", "offline", "online")
# MLflow allows 250 characters, and its file systems 255 bytes with ".png"; a digest and
# its mark take nine.
_MAX_TAG_BYTES = 241
_MAX_BATCH = 1_000  # MLflow's limit on the metrics of a request
# tensorboardX warns of every NaN, which is normal in a run's values.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)


class Sink(NamedTuple):
    """Functions that write to one tracker for one member.

    Attributes:
      tracker: TENSORBOARD, or the field of config.log.
      scalars: (step, tag -> value) -> None.
      image: (step, tag, uint8 [H, W, 1 or 3]) -> None.
      text: (step, tag, lines) -> None.
      config: (the resolved config) -> None; once, at the start of a run.
      close: () -> None.
    """

    tracker: str
    scalars: Callable[[int, Mapping[str, float]], None]
    image: Callable[[int, str, np.ndarray], None]
    text: Callable[[int, str, str], None]
    config: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]


class Member(NamedTuple):
    """A member of a run, for opening its sinks.

    Attributes:
      workdir: the folder of the run.
      name: file name of the member in its sweep.
      values: hyper-parameters.
      step: step at which a resumed run continues; 0 or None: not resumed.
    """

    workdir: Path
    name: str
    values: Mapping[str, float]
    step: int | None

    @property
    def identity(self) -> str:
        """A unique identifier of the member, equal for every start of the run."""
        place = f"{self.workdir.absolute()}/{self.name}"
        return hashlib.sha256(place.encode()).hexdigest()[:16]


def require_wandb(wandb: str) -> None:
    """Refuses an unknown mode, or a missing package.

    Args:
      wandb: one of WANDB_MODES; "" = not used.

    Raises:
      ArgumentError: the mode is unknown, or wandb is not installed.
    """
    if wandb not in WANDB_MODES:
        raise ArgumentError(
            "unknown {wandb} {!r}; choose offline, online, or nothing", wandb
        )
    if wandb and not _is_installed("wandb"):
        raise ArgumentError(
            "{wandb}={} needs the package wandb: install the extra, mmvae_jax[wandb]",
            wandb,
        )


def require_mlflow(mlflow: str) -> None:
    """Refuses an address if the package is missing.

    Args:
      mlflow: address for MLflow, for instance "sqlite:///FILE"; "" = not used.

    Raises:
      ArgumentError: mlflow is not installed.
    """
    if mlflow and not _is_installed("mlflow"):
        raise ArgumentError(
            "{mlflow}={} needs the package mlflow: install the extra, "
            "mmvae_jax[mlflow]",
            mlflow,
        )


def open_sinks(member: Member, wandb: str = "", mlflow: str = "") -> list[Sink]:
    """Opens the sinks of a member: TensorBoard, and the requested trackers.

    Args:
      member: the member.
      wandb: as in `require_wandb`.
      mlflow: as in `require_mlflow`.

    Raises:
      UsageError: a tracker cannot be opened; sinks opened before are closed.
    """
    wanted: list[tuple[str, Callable[[], Sink]]] = [
        (TENSORBOARD, lambda: _tensorboard(member)),
        *([("wandb", lambda: _wandb(member, wandb))] if wandb else []),
        *([("mlflow", lambda: _mlflow(member, mlflow))] if mlflow else []),
    ]
    sinks: list[Sink] = []
    for name, make in wanted:
        try:
            sinks.append(make())
        except Exception as error:  # trackers raise many types
            for sink in sinks:
                sink.close()
            if name == TENSORBOARD or isinstance(error, OSError):
                raise
            reason = first_line(error)
            raise UsageError(f"config.log.{name} cannot be opened: {reason}") from error
    return sinks


def tag_of(name: str) -> str:
    """A tag that all sinks accept, unique for each name.

    MLflow refuses keys that are no normal relative path, or longer than 250 characters.
    Other characters than those of words, "-", "." and "/" are escaped, and so are parts
    "." and "..", and every "/" at an end or after another. A long tag is cut.
    """
    for escaped in (r"[^-/\w.]", r"(?<![^/])\.{1,2}(?![^/])", r"(?<![^/])/|/\Z"):
        name = re.sub(escaped, _escape, name)
    return cut(name, _MAX_TAG_BYTES, "_")


def _escape(found: re.Match) -> str:
    """The code points of what was found."""
    return "".join(f"_{ord(c):02X}" for c in found[0])


def _tensorboard(member: Member) -> Sink:
    """TensorBoard files in the run's folder."""
    board = tensorboardX.SummaryWriter(
        str(member.workdir / "tensorboard" / member.name),
        purge_step=member.step + 1 if member.step else None,
    )

    def scalars(step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            board.add_scalar(tag, value, step)

    def config(found: Mapping[str, Any]) -> None:
        board.add_text("config", f"```json\n{json.dumps(found, indent=2)}\n```")

    return Sink(
        TENSORBOARD,
        scalars,
        lambda step, tag, image: board.add_image(tag, image, step, dataformats="HWC"),
        # TensorBoard renders Markdown, in which "<eos>" would disappear.
        lambda step, tag, text: board.add_text(tag, f"```\n{text}\n```", step),
        config,
        board.close,
    )


def _wandb(member: Member, mode: str) -> Sink:
    """A run of Weights & Biases; offline files are in the run's folder."""
    import wandb

    run = wandb.init(
        project=PROJECT,
        group=member.workdir.name,
        name=f"{member.workdir.name} {member.name}",
        id=member.identity,
        config=dict(member.values),
        mode=mode,
        dir=str(member.workdir),
        resume="allow" if mode == "online" else None,
        reinit="create_new",  # the runs of several members are open together
        settings=wandb.Settings(silent=True),
    )
    return Sink(
        "wandb",
        lambda step, values: run.log(dict(values), step=step),
        lambda step, tag, image: run.log({tag: wandb.Image(image)}, step=step),
        lambda step, tag, text: run.log(
            {tag: wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step
        ),
        lambda found: run.config.update(dict(found), allow_val_change=True),
        run.finish,
    )


def _mlflow(member: Member, uri: str) -> Sink:
    """A run of MLflow, on a server or in a file."""
    import mlflow
    import mlflow.entities

    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(PROJECT)
    experiment = found.experiment_id if found else client.create_experiment(PROJECT)
    former = client.search_runs([experiment], f"tags.member = '{member.identity}'")
    if former:
        run_id = former[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        name = f"{member.workdir.name} {member.name}"
        tags = {"member": member.identity}
        run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    for key, value in member.values.items():
        client.log_param(run_id, key, value)

    def scalars(step: int, values: Mapping[str, float]) -> None:
        now = int(1_000 * time.time())
        metrics = [
            mlflow.entities.Metric(tag, float(value), now, step)
            for tag, value in values.items()
        ]
        for start in range(0, len(metrics), _MAX_BATCH):
            client.log_batch(run_id, metrics[start : start + _MAX_BATCH])

    return Sink(
        "mlflow",
        scalars,
        lambda step, tag, image: client.log_image(
            run_id, image, artifact_file=f"samples/{tag}.png"
        ),
        lambda step, tag, text: client.log_text(run_id, text, f"samples/{tag}.txt"),
        lambda found: client.log_dict(run_id, dict(found), "config.json"),
        lambda: client.set_terminated(run_id),
    )


def _is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # an imported module without a spec
        return True
