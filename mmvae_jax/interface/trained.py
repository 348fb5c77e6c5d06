"""A trained model, and loading one from the folder of a run or of an export."""

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation import evaluate
from mmvae_jax.interface import description as descriptions
from mmvae_jax.interface import exports, old_configs, settings
from mmvae_jax.interface.description import Description
from mmvae_jax.training import checkpoints, devices, sweep
from mmvae_jax.training import step as training_step
from mmvae_jax.training.log import member_name
from mmvae_jax.training.step import TrainState
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import MultimodalVAE, Params

CONFIG, DESCRIPTION = "config.json", "description.json"
_MAX_JSON_BYTES = 64 << 20


class Trained(NamedTuple):
    """A trained model of one member.

    Attributes:
      model: the jitted functions of the model (`evaluate.compile_model`).
      params: parameters, on the device.
      config: as `settings.get_config`.
      description: description of the training data.
      member: hyperparameters.
      step: number of training steps.
      history: one mapping per logged step, tag -> value, with "step"; empty if loaded
        from an export.
      is_finite: False if training diverged; `params` are then the last finite ones.
    """

    model: MultimodalVAE
    params: Params
    config: ConfigDict
    description: Description
    member: Member
    step: int
    history: tuple[Mapping[str, float], ...] = ()
    is_finite: bool = True


def build(
    config: Any,
    description: Description,
    params: Params,
    member: Member,
    step: int,
    history: Sequence[Mapping[str, float]] = (),
    is_finite: bool = True,
) -> Trained:
    """Builds a Trained; the config determines the model."""
    model = evaluate.compile_model(models.make_model(config, description.shapes()))
    return Trained(
        model, params, config, description, member, step, tuple(history), is_finite
    )


def load(
    path: str | Path,
    *,
    beta: float | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    step: int | None = None,
) -> Trained:
    """Loads a trained model from the folder of a run or an export, or from a hub.

    The folder is not changed; its run may continue.

    Args:
      path: working directory of experiments.run, folder of `export`, or
        "hub:USER/NAME" or "hub:USER/NAME@REVISION" (extra `hub`).
      beta: selects the member of a sweep, together with learning_rate and seed;
        required if the sweep has several values.
      learning_rate: as beta.
      seed: as beta.
      step: step of a run's checkpoint; default: the last one.

    Returns:
      Trained.

    Warns:
      UserWarning: training of the member diverged.

    Raises:
      UsageError: the model does not exist, is damaged, or is of another version; or
        there is no device.
    """
    devices.require_devices()
    if str(path).startswith(exports.HUB):
        path = exports.download(str(path))
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}: give a run's --workdir, or an export")
    asked = Member(beta, learning_rate, seed)  # type: ignore[arg-type]
    is_export = (folder / exports.MANIFEST).exists()
    loaded = (_load_export if is_export else _load_run)(folder, asked, step)
    if not loaded.is_finite:
        name = member_name(loaded.member, sweep.grid(loaded.config.sweep))
        warnings.warn(f"{folder}: {diverged(name)}", stacklevel=2)
    return loaded


def diverged(name: str) -> str:
    """The warning of a member that diverged.

    Args:
      name: `log.member_name`.
    """
    return f"training of {name} diverged: its parameters are the last finite ones"


def _load_export(folder: Path, asked: Member, step: int | None) -> Trained:
    """The member of an export."""
    found = exports.read(folder)
    config = config_of(found.config, folder)
    choose_member([found.member], asked, folder)
    if step not in (None, found.step):
        raise UsageError(f"{folder} holds only step {found.step}, not {step}")
    description = _description(found.description, folder / DESCRIPTION)
    one = build(
        config,
        description,
        None,
        found.member,
        found.step,
        is_finite=found.is_finite,
    )
    params = exports.unflatten(_like(one), found.params, folder)
    return one._replace(params=jax.device_put(params))


def _load_run(folder: Path, asked: Member, step: int | None) -> Trained:
    """One member of a run."""
    if not (folder / CONFIG).exists():
        raise UsageError(
            f"{folder} holds no run ({CONFIG}) and no export ({exports.MANIFEST})"
        )
    config = config_of(read_json(folder / CONFIG), folder)
    if not (folder / DESCRIPTION).exists():
        raise UsageError(
            f"{folder} has no {DESCRIPTION}: an earlier version started its run; "
            f"`python -m experiments.evaluate --workdir={folder}` writes it"
        )
    description = read_description(folder / DESCRIPTION)
    members = sweep.grid(config.sweep)
    k = choose_member(members, asked, folder)
    model = models.make_model(config, description.shapes())
    like = like_state(config, description, model)
    found = checkpoints.read(folder / "checkpoints", like, step)
    if found is None:
        raise UsageError(f"{folder} holds no checkpoint yet: nothing to load")
    at, state = found
    params = jax.device_put(sweep.member(state.params, k))
    history = _history(folder, k, up_to=at)
    is_finite = bool(state.finite[k])
    return build(config, description, params, members[k], at, history, is_finite)


def like_state(config: Any, shown: Description, model: MultimodalVAE) -> TrainState:
    """Shapes and types of the train state of all members, without computing it.

    Args:
      config: as `settings.get_config`.
      shown: description of the data.
      model: the model of the config.
    """
    members = sweep.grid(config.sweep)
    settings = config.train
    task = training_step.vae_task(
        model, settings.clip_norm, num_steps=settings.num_steps
    )
    batch = descriptions.blank_batch(shown, 1)
    make = jax.vmap(partial(training_step.init_state, task, batch=batch))
    return jax.eval_shape(
        lambda hyper, key: make(hyper=hyper, key=key),
        sweep.stack_hyper(members),
        sweep.stack_keys(members),
    )


def _like(trained: Trained) -> Params:
    """Shapes of the parameters."""
    return jax.eval_shape(trained.model.init, jax.random.key(0))


def choose_member(members: Sequence[Member], asked: Member, where: Any) -> int:
    """The index of the only member with the given values.

    Args:
      members: members of the sweep.
      asked: values of the member; None matches any value.
      where: the folder, for the error.

    Raises:
      UsageError: no member or several members match; the line lists them.
    """
    fitting = [
        k
        for k, member in enumerate(members)
        if all(b is None or a == b for a, b in zip(member, asked, strict=True))
    ]
    if len(fitting) == 1:
        return fitting[0]
    wanted = ", ".join(
        f"{f}={x:g}" for f, x in asked._asdict().items() if x is not None
    )
    listed = "; ".join(
        ", ".join(f"{f}={x:g}" for f, x in member._asdict().items())
        for member in members[:12]
    ) + ("; ..." if len(members) > 12 else "")
    number = f"no member with {wanted}" if not fitting else f"{len(fitting)} members"
    with_them = f" with {wanted}" if fitting and wanted else ""
    raise UsageError(f"{where} has {number}{with_them}; choose one of: {listed}")


def config_of(found: Any, folder: Path) -> ConfigDict:
    """The config of a config.json, with newer fields at their defaults.

    Raises:
      UsageError: the config has unknown fields, of another version.
    """
    config = settings.get_config()
    try:
        _update(config, old_configs.upgraded(found), "config")
        models.check(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder / CONFIG} is of another version of mmvae_jax: {error}"
        ) from error
    return config


# Sections whose fields depend on the data set, the model or the network.
_OPEN = ("config.data", "config.model.options", "config.modalities")


def _update(config: ConfigDict, found: Any, name: str) -> None:
    """Sets the fields of a section to the values from JSON."""
    for field, value in found.items():
        own = f"{name}.{field}"
        is_open = name.startswith(_OPEN) or name.endswith("network_options")
        if field not in config and not is_open:
            raise ValueError(f"it has the field {own}, which is unknown here")
        if isinstance(value, dict):
            if field not in config:
                config[field] = ConfigDict()
            _update(config[field], value, own)
        else:
            with config.ignore_type():
                config[field] = _tuples(value)


def _tuples(value: Any) -> Any:
    """Converts lists from JSON to tuples."""
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value


def read_json(path: Path) -> Any:
    """The content of a JSON file of this project.

    Raises:
      UsageError: the file is missing, too large, or not JSON.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES} bytes")
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def read_description(path: Path) -> Description:
    """Reads a description.json.

    Raises:
      UsageError: the file cannot be read, or is not a description of data.
    """
    return _description(read_json(path), path)


def _description(found: Any, path: Path) -> Description:
    """The description in the content of a file."""
    try:
        return descriptions.from_json(found)
    except ValueError as error:
        raise UsageError(f"{path} describes no data: {error}") from error


def _history(folder: Path, k: int, up_to: int) -> list[dict[str, float]]:
    """Training lines of metrics.jsonl for member k."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    with open(path) as lines:
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
    kept = [row for row in rows if row["member"] == k and row["step"] <= up_to]
    return [
        {tag: x for tag, x in row.items() if tag == "step" or "/" in tag}
        for row in kept
        if any(tag.startswith("train/") for tag in row)
    ]
