"""Where a run's values, pictures, texts and config go beside its own files.

`training.log.RunWriter` writes to sinks, one a member and tracker. TensorBoard's files
are always written; Weights & Biases and MLflow are asked for, and their packages are
extras. A run that is taken up again goes on in the same runs of theirs.
"""

import hashlib
import html
import importlib.util
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorboardX

from mmvae_jax.errors import ArgumentError, UsageError

PROJECT = "mmvae_jax"  # of all runs there
WANDB_MODES = ("", "offline", "online")
# It warns of every nan, and of what is not said: nan is in all files of a run.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)


class Sink(NamedTuple):
    """Functions that write what belongs to one member.

    Attributes:
      scalars: (step, tag -> value) -> None.
      image: (step, tag, uint8 [H, W, 1 or 3]) -> None.
      text: (step, tag, lines) -> None.
      config: (the resolved config) -> None; once, at the start of a run.
      close: () -> None.
    """

    scalars: Callable[[int, Mapping[str, float]], None]
    image: Callable[[int, str, np.ndarray], None]
    text: Callable[[int, str, str], None]
    config: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]


class Member(NamedTuple):
    """A member of a run, as a sink is opened for it.

    Attributes:
      workdir: the folder of the run.
      name: of the member in its sweep, a file name.
      values: its hyper-parameters.
      step: at which the run goes on; 0 or None: it does not.
    """

    workdir: Path
    name: str
    values: Mapping[str, float]
    step: int | None

    @property
    def identity(self) -> str:
        """The same for every start of the run, and of no other member."""
        place = f"{self.workdir.absolute()}/{self.name}"
        return hashlib.sha256(place.encode()).hexdigest()[:16]


def require_wandb(wandb: str) -> None:
    """Refuses a mode that does not exist, or whose package is not installed.

    Args:
      wandb: one of WANDB_MODES; "" = it is not used.

    Raises:
      ArgumentError: it cannot be used.
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
    """Refuses an address where the package is not installed.

    Args:
      mlflow: as MLflow takes it, for instance "sqlite:///FILE"; "" = it is not used.

    Raises:
      ArgumentError: it cannot be used.
    """
    if mlflow and not _is_installed("mlflow"):
        raise ArgumentError(
            "{mlflow}={} needs the package mlflow: install the extra, "
            "mmvae_jax[mlflow]",
            mlflow,
        )


def open_sinks(member: Member, wandb: str = "", mlflow: str = "") -> list[Sink]:
    """The sinks of a member: TensorBoard's, and those that are asked for.

    Args:
      member: of a run.
      wandb: as of `require_wandb`.
      mlflow: as of `require_mlflow`.

    Raises:
      UsageError: one cannot be opened; those before it are closed.
    """
    wanted: list[tuple[str, Callable[[], Sink]]] = [
        ("TensorBoard", lambda: _tensorboard(member)),
        *([("wandb", lambda: _wandb(member, wandb))] if wandb else []),
        *([("mlflow", lambda: _mlflow(member, mlflow))] if mlflow else []),
    ]
    sinks: list[Sink] = []
    for name, make in wanted:
        try:
            sinks.append(make())
        except Exception as error:  # trackers raise many kinds of their own
            for sink in sinks:
                sink.close()
            if name == "TensorBoard" or isinstance(error, OSError):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(f"config.log.{name} cannot be opened: {reason}") from error
    return sinks


def tag_of(name: str) -> str:
    """A tag for all sinks: different where names are, which their own are not."""
    return re.sub(r"[^-/\w.]", lambda c: f"_{ord(c[0]):02X}", name)


def _tensorboard(member: Member) -> Sink:
    """Files in the run's folder."""
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
        scalars,
        lambda step, tag, image: board.add_image(tag, image, step, dataformats="HWC"),
        # It reads Markdown, in which "<eos>" would vanish.
        lambda step, tag, text: board.add_text(tag, f"```\n{text}\n```", step),
        config,
        board.close,
    )


def _wandb(member: Member, mode: str) -> Sink:
    """A run of Weights & Biases; offline it is in the run's folder."""
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
        reinit="create_new",  # the members' runs are open at the same time
        settings=wandb.Settings(silent=True),
    )
    return Sink(
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
        for tag, value in values.items():
            client.log_metric(run_id, tag, float(value), step=step)

    return Sink(
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
    except ValueError:  # of a module without a spec, which is there
        return True
