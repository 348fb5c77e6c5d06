"""Checkpoints: orbax behind a few functions.

A checkpoint holds the TrainState of all members, which is all that a resumed run needs,
and notes, which do not affect it.
Checkpoints are written in the background to a temporary folder, which is then renamed.
The newest few are kept.

Each checkpoint has a digest of its state. orbax 0.12 detects missing and truncated
files and flipped bytes in the metadata, but the arrays have no checksum on the disk:
most flipped bytes in them would be read as other numbers.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mmvae_jax.errors import UsageError, first_line

# Errors that do not mean that the checkpoint is damaged.
_NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
_DIGEST_BYTES = hashlib.sha256().digest_size


def open_checkpoints(directory: str | Path, num_kept: int) -> ocp.CheckpointManager:
    """Opens (and creates) a folder of checkpoints.

    Args:
      directory: folder of the checkpoints.
      num_kept: number of the newest checkpoints to keep, at least 1.
    """
    logging.getLogger("absl").addFilter(_is_not_raised_too)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=num_kept, enable_async_checkpointing=True
    )
    return ocp.CheckpointManager(
        Path(directory).absolute(),
        options=options,
        # Without a handler, a new manager cannot read metadata.
        item_handlers=ocp.StandardCheckpointHandler(),
    )


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: Any,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Saves a state in the background, unless its step is already saved.

    The state is first copied to the host, because the train loop donates its buffers to
    the next call; on CPUs the arrays would be those buffers. Processes that share a
    state all call this, and each writes its part. The notes, of JSON's types, are those
    of the first process.

    Raises:
      OSError: the disk is full, or was full for the previous checkpoint.
    """
    if step in checkpoints.all_steps():
        return
    copy = jax.tree.map(_copy, state)
    content = {"digest": _digest(copy), "state": copy}
    with _full_disk_named(checkpoints):
        checkpoints.save(
            step,
            args=ocp.args.StandardSave(content),
            custom_metadata=dict(notes or {}),
        )


def notes(checkpoints: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The notes of a checkpoint; {} if it has none, or if they cannot be read."""
    return dict(checkpoints.metadata(step).custom_metadata or {})


def restore(
    checkpoints: ocp.CheckpointManager, like: Any, num_kept: int
) -> tuple[int, Any] | None:
    """Restores the newest readable checkpoint.

    A damaged checkpoint is skipped with a warning and renamed to STEP.damaged. An
    unfinished checkpoint of a killed process is skipped, and removed after another one
    has been read.

    Args:
      checkpoints: the folder.
      like: a state of the expected structure and shapes.
      num_kept: as in `open_checkpoints`; older checkpoints, which a killed process may
        leave, are removed after the newest has been read.

    Returns:
      (step, state), or None if there is no checkpoint.

    Raises:
      UsageError: a checkpoint has arrays of other names or shapes, or no existing
        checkpoint can be read.
    """
    unfinished = _unfinished(checkpoints)
    steps = sorted(checkpoints.all_steps(), reverse=True)
    digest = jnp.zeros(_DIGEST_BYTES, jnp.uint8)
    arrays = {"digest": digest, "state": like}
    template = jax.tree.map(ocp.tree.to_shape_dtype_struct, arrays)
    for step in steps:
        try:
            state = _read(checkpoints, step, template)
        except _Damaged as damage:
            _set_aside(checkpoints, step, damage)
            continue
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
        for old in sorted(checkpoints.all_steps())[:-num_kept]:
            checkpoints.delete(old)
        return step, state
    if steps:
        raise UsageError(
            f"none of the checkpoints in {checkpoints.directory} could be read; they "
            "were set aside there, and the same command starts from the beginning"
        )
    return None


def read(
    directory: str | Path, like: Any, step: int | None = None
) -> tuple[int, Any] | None:
    """Reads a checkpoint of a run, which may be in progress; changes no file.

    Args:
      directory: folder of the checkpoints.
      like: shapes and types of a state, of the expected structure.
      step: step of the checkpoint; None: the newest readable one, with a warning if it
        is not the last.

    Returns:
      (step, state on the first device), or None if there is no checkpoint.

    Raises:
      UsageError: a checkpoint has arrays of other names or shapes, there is none of
        `step`, or no checkpoint can be read.
    """
    if not Path(directory).is_dir():
        return None
    logging.getLogger("absl").addFilter(_is_not_raised_too)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        {"digest": jax.ShapeDtypeStruct((_DIGEST_BYTES,), jnp.uint8), "state": like},
    )
    with contextlib.closing(
        ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(create=False),
            item_handlers=ocp.StandardCheckpointHandler(),
        )
    ) as checkpoints:
        steps = sorted(checkpoints.all_steps(), reverse=True)
        kept = ", ".join(str(one) for one in reversed(steps)) or "none"
        if step is not None and step not in steps:
            raise UsageError(f"{directory} has no checkpoint {step}, it keeps {kept}")
        for one in steps if step is None else [step]:
            try:
                return one, _read(checkpoints, one, template)
            except _Damaged as damage:
                if step is not None:
                    raise UsageError(
                        f"checkpoint {step} in {directory} cannot be read: {damage}; "
                        f"it keeps {kept}"
                    ) from damage
                reason = damage
                warnings.warn(
                    f"checkpoint {one} in {directory} cannot be read ({damage})",
                    stacklevel=2,
                )
    if steps:
        raise UsageError(f"no checkpoint in {directory} can be read: {reason}")
    return None


def close(checkpoints: ocp.CheckpointManager) -> None:
    """Waits until all checkpoints are written, and closes the folder."""
    with _full_disk_named(checkpoints):
        checkpoints.wait_until_finished()
        checkpoints.close()


class _Damaged(Exception):
    """A damaged checkpoint, with the reason in one line."""


def _read(checkpoints: ocp.CheckpointManager, step: int, template: Any) -> Any:
    """The state of a step's checkpoint, in the shapes and shardings of a template.

    Raises:
      UsageError: its arrays have other names or shapes, for which orbax would raise the
        same type of error as for damage.
      _Damaged: the checkpoint cannot be read, or its digest differs.
    """
    found = _together(lambda: _shapes(checkpoints.item_metadata(step)))
    expected = _shapes(template)
    for name in sorted(found.keys() | expected.keys()):
        there, here = found.get(name, "absent"), expected.get(name, "absent")
        if there != here:
            raise UsageError(
                f"checkpoint {step} in {checkpoints.directory} is of another shape: "
                f"{name.removeprefix('state/')} is {there} there and {here} here; "
                "choose another --workdir"
            )
    arguments = ocp.args.StandardRestore(template)
    content = _together(lambda: checkpoints.restore(step, args=arguments))
    _together(lambda: _require_digest(content))
    return content["state"]


def _together(read: Callable[[], Any]) -> Any:
    """Calls a function that reads a part of a checkpoint.

    If several processes read a checkpoint, an error in one raises _Damaged in all, so
    that they continue in the same way.
    """
    value, reason = None, ""
    try:
        value = read()
    except _NOT_DAMAGE:
        raise
    except Exception as error:  # orbax raises many types for damage
        reason = first_line(error)
    if jax.process_count() > 1:
        if multihost_utils.process_allgather(np.array(reason != "")).any():
            reason = reason or "another process cannot read it"
    if reason:
        raise _Damaged(reason)
    return value


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays of a tree."""
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if not shapes:
        raise ValueError("it has no arrays")
    return shapes


def _require_digest(content: dict) -> None:
    """Raises ValueError if the digest of a state differs."""
    if not np.array_equal(_digest(content["state"]), content["digest"]):
        raise ValueError("its content is not what was saved")


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """False for tracebacks that orbax both logs and raises."""
    return not (record.exc_info and "orbax" in record.pathname)


def _unfinished(checkpoints: ocp.CheckpointManager) -> list[Path]:
    """Folders of unfinished checkpoints, with a warning for each."""
    pattern = f"*{ocp.utils.TMP_DIR_SUFFIX}*"
    folders = sorted(Path(checkpoints.directory).glob(pattern))
    for folder in folders:
        step = folder.name.partition(ocp.utils.TMP_DIR_SUFFIX)[0]
        warnings.warn(
            f"checkpoint {step} in {checkpoints.directory} was never finished; it is "
            "passed over",
            stacklevel=3,
        )
    return folders


@contextlib.contextmanager
def _full_disk_named(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Converts orbax's error for a full disk to an OSError."""
    try:
        yield
    except ValueError as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            reason = os.strerror(number)
            if reason in str(error):
                raise OSError(number, reason, str(checkpoints.directory)) from error
        raise


def _copy(leaf: Any) -> Any:
    """A copy on the host, or on the devices if no process has the whole array."""
    return np.array(leaf, copy=True) if _is_here(leaf) else jnp.copy(leaf)


def _is_here(leaf: Any) -> bool:
    """Whether this process has the whole array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _digest(state: Any) -> np.ndarray:
    """The sha256 of all arrays of a state, uint8 [32]."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        if not _is_here(leaf):  # One array at a time, to save host memory.
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.ascontiguousarray(leaf).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _set_aside(checkpoints: ocp.CheckpointManager, step: int, reason: object) -> None:
    """Renames a damaged checkpoint, so that its step can be saved again."""
    folder = Path(checkpoints.directory) / str(step)
    if folder.exists() and jax.process_index() == 0:
        num = sum(1 for _ in folder.parent.glob(f"{step}.damaged*"))
        folder.rename(folder.with_name(f"{step}.damaged" + (f".{num}" if num else "")))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{folder} is set aside")
    checkpoints.reload()
    warnings.warn(
        f"checkpoint {step} in {checkpoints.directory} cannot be read ({reason}); it "
        "is set aside, trying the one before it",
        stacklevel=3,
    )
