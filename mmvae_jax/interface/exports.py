"""A trained model as a folder to share, without code or pickles.

config.json          the config of the run
description.json     a description of the training data
params.safetensors   parameters, by name
export.json          member, step, whether it is finite, version, sha256 of the others
README.md            a model card
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from mmvae_jax import __version__
from mmvae_jax.errors import UsageError, first_line
from mmvae_jax.files import write_whole
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import Params

MANIFEST = "export.json"
PARAMS = "params.safetensors"
HUB = "hub:"
FORMAT = 1
_FILES = ("config.json", "description.json", PARAMS, "README.md")
_MAX_JSON_BYTES = 64 << 20


class Export(NamedTuple):
    """Content of an export.

    Attributes:
      config: content of config.json.
      description: content of description.json.
      params: name -> array.
      member: hyperparameters.
      step: number of training steps.
      is_finite: False if training diverged.
    """

    config: Any
    description: Any
    params: dict[str, np.ndarray]
    member: Member
    step: int
    is_finite: bool = True


def write(folder: Path, content: Export, card: str) -> None:
    """Writes an export atomically.

    Args:
      folder: folder of the export; must not exist.
      content: content of the export.
      card: the text of README.md.

    Raises:
      UsageError: the folder exists, or cannot be created.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another folder for the export")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # from an export that was killed
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        files = {
            "config.json": _json(content.config),
            "description.json": _json(content.description),
            PARAMS: safetensors.numpy.save(
                {name: np.ascontiguousarray(x) for name, x in content.params.items()}
            ),
            "README.md": card.encode(),
        }
        manifest = {
            "format": FORMAT,
            "mmvae_jax": __version__,
            "member": content.member._asdict(),
            "step": content.step,
            "is_finite": content.is_finite,
            "sha256": {name: _digest(data) for name, data in files.items()},
        }
        for name, data in (files | {MANIFEST: _json(manifest)}).items():
            write_whole(partial / name, data)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read(folder: Path) -> Export:
    """Reads an export.

    Raises:
      UsageError: the export is damaged, or has a newer format.
    """
    try:
        manifest = json.loads(_bytes(folder / MANIFEST))
        if manifest["format"] != FORMAT:
            raise UsageError(
                f"{folder} has the format {manifest['format']}, and this version of "
                f"mmvae_jax ({__version__}) reads {FORMAT}; it was "
                f"written by {manifest.get('mmvae_jax')}"
            )
        files = {name: _bytes(folder / name) for name in _FILES}
        for name in _FILES[:-1]:  # users may edit the card
            if _digest(files[name]) != manifest["sha256"][name]:
                raise ValueError(f"{name} is not what was exported")
        member = Member(**manifest["member"])
        if not all(isinstance(x, int | float) for x in member):
            raise ValueError(f"{MANIFEST} has no hyperparameters")
        is_finite = manifest.get("is_finite", True)  # absent in earlier exports
        if not isinstance(is_finite, bool):
            raise ValueError(f"is_finite of {MANIFEST} is no bool")
        return Export(
            json.loads(files["config.json"]),
            json.loads(files["description.json"]),
            safetensors.numpy.load(files[PARAMS]),
            member,
            int(manifest["step"]),
            is_finite,
        )
    except UsageError:
        raise
    except (
        AttributeError,
        KeyError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
        safetensors.SafetensorError,
    ) as error:
        reason = first_line(error)
        raise UsageError(f"{folder} is a damaged export: {reason}") from error


def flatten(params: Params) -> dict[str, np.ndarray]:
    """Parameters by names such as "encoders/m0/params/Dense_0/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def unflatten(like: Params, found: Mapping[str, np.ndarray], folder: Path) -> Params:
    """The inverse of `flatten`, in the structure of `like`.

    Raises:
      UsageError: names or shapes differ, because the export is of another version.
    """
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    for name in sorted(expected.keys() | found.keys()):
        there = (found[name].shape, found[name].dtype) if name in found else "absent"
        leaf = expected.get(name)
        here = "absent" if leaf is None else (leaf.shape, leaf.dtype)
        if there != here:
            raise UsageError(
                f"{folder} is of another version of mmvae_jax: the parameter {name} is "
                f"{_show(there)} there and {_show(here)} here"
            )
    leaves = [jax.numpy.asarray(found[name]) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def download(address: str) -> Path:
    """Downloads a model from a hub and returns its folder in huggingface_hub's cache.

    Args:
      address: "hub:USER/NAME" or "hub:USER/NAME@REVISION".

    Raises:
      UsageError: the model does not exist, or there is no network.
    """
    name, _, revision = address.removeprefix(HUB).partition("@")
    hub = _hub()
    try:
        return Path(
            hub.snapshot_download(
                name, revision=revision or None, allow_patterns=[*_FILES, MANIFEST]
            )
        )
    except Exception as error:  # the library raises many kinds
        raise UsageError(f"{address} cannot be read: {first_line(error)}") from error


def push(folder: Path, name: str) -> str:
    """Uploads an export to a hub, as a new repository or a new revision of it.

    Args:
      folder: folder of the export.
      name: "USER/NAME".

    Returns:
      The address of the uploaded model.

    Raises:
      UsageError: the folder is not an export; there is no network, token or permission.
    """
    require_pushable(name)
    read(folder)
    hub = _hub()
    try:
        api = hub.HfApi()
        api.create_repo(name, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=[*_FILES, MANIFEST]
        )
    except Exception as error:  # the library raises many kinds
        raise UsageError(
            f"{name} cannot be pushed: {first_line(error)}; the export is in {folder}"
        ) from error
    return str(done)


def require_pushable(name: str) -> None:
    """Checks name, library and token before an export is pushed.

    Raises:
      UsageError: the name is invalid, or the library or the token is missing.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(f"a model of a hub is called USER/NAME, got {name!r}")
    if _hub().get_token() is None:
        raise UsageError(
            "no token of the hub: set HF_TOKEN, or call `hf auth login`, and repeat"
        )


def _hub() -> Any:
    """The library huggingface_hub."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise UsageError(
            "hubs need huggingface_hub: install the extra `hub`, mmvae_jax[hub]"
        ) from error
    return huggingface_hub


def _json(content: Any) -> bytes:
    """JSON, encoded for a file."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _bytes(path: Path) -> bytes:
    """The content of a file; raises for large JSON files."""
    if path.suffix == ".json" and path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has more than {_MAX_JSON_BYTES} bytes")
    return path.read_bytes()


def _digest(data: bytes) -> str:
    """The sha256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _show(shape: Any) -> str:
    """Shape and type in words."""
    return shape if isinstance(shape, str) else f"{shape[1]} {list(shape[0])}"
