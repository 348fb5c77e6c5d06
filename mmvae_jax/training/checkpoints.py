"""Checkpoints: orbax behind four functions.

A checkpoint holds the TrainState of all members, and so all that a resumed run needs.
Checkpoints are written to a temporary folder and renamed, in the background, and the
newest few are kept.

Each holds a digest of its state too. orbax 0.12 refuses files that are missing or cut
off and flipped bytes in what describes the arrays; but the arrays have no checksum on
the disk, and most bytes flipped in them would come back as other numbers.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mmvae_jax.errors import UsageError

# Errors that a good checkpoint may meet: it must not be set aside for them.
_NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
_DIGEST_BYTES = hashlib.sha256().digest_size


def open_checkpoints(directory: str | Path, num_kept: int) -> ocp.CheckpointManager:
    """Opens (and creates) a folder of checkpoints.

    Args:
      directory: of the checkpoints.
      num_kept: number of the newest checkpoints to keep, at least 1.
    """
    logging.getLogger("absl").addFilter(_is_not_raised_too)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=num_kept, enable_async_checkpointing=True
    )
    return ocp.CheckpointManager(
        Path(directory).absolute(),
        options=options,
        # Without a handler, a manager that has not saved yet cannot read metadata.
        item_handlers=ocp.StandardCheckpointHandler(),
    )


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Saves a state in the background, unless that step has been saved.

    The state is copied to the host first: the train loop donates its buffers to
    the next call, and on CPU an array handed over would still be those buffers.
    Where several processes share a state, all call this, and each writes its part.

    Raises:
      OSError: the disk is full, now or while the checkpoint before was written.
    """
    if step in checkpoints.all_steps():
        return
    copy = jax.tree.map(_copy, state)
    content = {"digest": _digest(copy), "state": copy}
    with _full_disk_named(checkpoints):
        checkpoints.save(step, args=ocp.args.StandardSave(content))


def restore(
    checkpoints: ocp.CheckpointManager, like: Any, num_kept: int
) -> tuple[int, Any] | None:
    """The newest checkpoint that can be read.

    A damaged checkpoint is passed over with a warning, and kept under the name
    STEP.damaged. A checkpoint that was being written when the process died is passed
    over likewise, and removed once another one could be read.

    Args:
      checkpoints: the folder.
      like: a state of the expected structure and shapes.
      num_kept: as given to `open_checkpoints`. A process that was killed may have left
        older ones; they are removed once the newest has been read.

    Returns:
      (step, state), or None if there is no checkpoint.

    Raises:
      UsageError: a checkpoint holds arrays of other names or shapes, or none of
        the existing ones can be read.
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
    """A checkpoint of a run that may be going on: nothing in its folder is changed.

    Args:
      directory: of the checkpoints.
      like: shapes and types of a state, of the expected structure.
      step: of the checkpoint; None: the newest that can be read, with a warning where
        it is not the last.

    Returns:
      (step, state on the first device), or None if there is no checkpoint.

    Raises:
      UsageError: a checkpoint holds arrays of other names or shapes, that of `step` is
        not there, or none can be read.
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
    """Waits until everything has been written."""
    with _full_disk_named(checkpoints):
        checkpoints.wait_until_finished()
        checkpoints.close()


class _Damaged(Exception):
    """A checkpoint must not be used; its text is the reason, in one line."""


def _read(checkpoints: ocp.CheckpointManager, step: int, template: Any) -> Any:
    """The state of the checkpoint of a step, in the shapes and shardings of a template.

    Raises:
      UsageError: its arrays have other names or shapes; orbax would raise the same kind
        of error as for damage.
      _Damaged: it cannot be read, or is not what was saved.
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
    """Calls a function that reads a part of a checkpoint, and returns what it returns.

    Where several processes read a checkpoint, an error of one raises _Damaged in all:
    what they do next, they do together.
    """
    value, reason = None, ""
    try:
        value = read()
    except _NOT_DAMAGE:
        raise
    except Exception as error:  # orbax raises many kinds for a damaged one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
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
    """Raises a ValueError if a state is not the one that was saved."""
    if not np.array_equal(_digest(content["state"]), content["digest"]):
        raise ValueError("its content is not what was saved")


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Whether a record is not one of the tracebacks that orbax logs and raises too."""
    return not (record.exc_info and "orbax" in record.pathname)


def _unfinished(checkpoints: ocp.CheckpointManager) -> list[Path]:
    """Folders of saves that a kill or a full disk cut off, with a warning for each."""
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
    """Turns the error that orbax raises for a full disk into that of the system."""
    try:
        yield
    except ValueError as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            reason = os.strerror(number)
            if reason in str(error):
                raise OSError(number, reason, str(checkpoints.directory)) from error
        raise


def _copy(leaf: Any) -> Any:
    """A copy on the host, or on the devices if no process holds the whole array."""
    return np.array(leaf, copy=True) if _is_here(leaf) else jnp.copy(leaf)


def _is_here(leaf: Any) -> bool:
    """Whether this process holds all of an array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _digest(state: Any) -> np.ndarray:
    """The sha256 of all arrays of a state, uint8 [32], wherever they are."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        if not _is_here(leaf):  # One array at a time: a host may not hold them all.
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
