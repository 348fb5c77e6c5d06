"""Checkpoints: orbax behind four functions.

A checkpoint holds the TrainState of all members, and so all that a resumed run
needs, with a digest of it: the arrays on the disk have no checksum of their own.
Checkpoints are written to a temporary folder and renamed, in the background, and
the newest few are kept.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mmvae_jax.errors import UsageError

# What may go wrong with a good checkpoint: it must not be set aside for that.
_NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
_DIGEST_BYTES = hashlib.sha256().digest_size


def open_checkpoints(directory: str | Path, num_kept: int) -> ocp.CheckpointManager:
    """Opens (and creates) a folder of checkpoints.

    Args:
      directory: where they are.
      num_kept: how many of the newest ones to keep, at least 1.
    """
    logging.getLogger("absl").addFilter(_is_not_raised_too)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=num_kept, enable_async_checkpointing=True
    )
    return ocp.CheckpointManager(
        Path(directory).absolute(),
        options=options,
        # Named, or a manager that has not saved yet cannot read metadata.
        item_handlers=ocp.StandardCheckpointHandler(),
    )


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Saves a state in the background, unless that step has been saved.

    The state is copied to the host first: the train loop donates its buffers to
    the next call, and on CPU an array handed over would still be those buffers.
    Where several processes share a state, each writes what it holds, and all call this.

    Raises:
      OSError: the disk is full, now or when the checkpoint before was written.
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

    Args:
      checkpoints: the folder.
      like: a state of the expected structure and shapes.
      num_kept: as given to `open_checkpoints`; older ones, of which a process died
        before it removed them, are removed once the newest has been read.

    Returns:
      (step, state), or None if there is no checkpoint. A damaged one is passed
      over with a warning, and kept under the name STEP.damaged. One that was being
      written when the process died is passed over likewise, and removed once there
      is another to go on from.

    Raises:
      UsageError: a checkpoint holds arrays of other names or shapes, or none of
        the existing ones can be read.
    """
    unfinished = _unfinished(checkpoints)
    steps = sorted(checkpoints.all_steps(), reverse=True)
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        ),
        {"digest": jnp.zeros(_DIGEST_BYTES, jnp.uint8), "state": like},
    )
    for step in steps:
        found, error = _together(lambda: _shapes_in(checkpoints, step))  # noqa: B023
        if error is None:
            _check_shapes(checkpoints, step, found, template)
            arguments = ocp.args.StandardRestore(template)
            content, error = _together(
                lambda: checkpoints.restore(step, args=arguments)  # noqa: B023
            )
        if error is None:
            _, error = _together(lambda: _require_digest(content))  # noqa: B023
        if error is not None:
            _set_aside(checkpoints, step, error)
            continue
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
        for old in sorted(checkpoints.all_steps())[:-num_kept]:
            checkpoints.delete(old)
        return step, content["state"]
    if steps:
        raise UsageError(
            f"none of the checkpoints in {checkpoints.directory} could be read; they "
            "were set aside there, and the same command starts from the beginning"
        )
    return None


def close(checkpoints: ocp.CheckpointManager) -> None:
    """Waits until everything has been written."""
    with _full_disk_named(checkpoints):
        checkpoints.wait_until_finished()
        checkpoints.close()


def _together(read: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """(what a function returns, why that must not be used).

    Where several processes read a checkpoint, an error of one is an error of all: what
    they do next, they do together.
    """
    value = error = None
    try:
        value = read()
    except _NOT_DAMAGE:
        raise
    except Exception as found:  # orbax raises many kinds for a damaged one
        error = found
    if jax.process_count() > 1:
        is_wrong = np.array(error is not None)
        if multihost_utils.process_allgather(is_wrong).any() and error is None:
            error = ValueError("another process cannot read it")
    return value, error


def _shapes_in(checkpoints, step: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays of a checkpoint."""
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            checkpoints.item_metadata(step)
        )
    }
    if not found:
        raise ValueError("it has no arrays")
    return found


def _require_digest(content: dict) -> None:
    """Raises a ValueError if a state is not the one that was saved."""
    if not np.array_equal(_digest(content["state"]), content["digest"]):
        raise ValueError("its content is not what was saved")


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Leaves out what orbax logs, a full traceback a thread, and raises as well."""
    return not (record.exc_info and "orbax" in record.pathname)


def _unfinished(checkpoints) -> list[Path]:
    """The folders of saves that a kill or a full disk cut off; says so."""
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
def _full_disk_named(checkpoints):
    """Turns what orbax raises for a full disk into the error of the system."""
    try:
        yield
    except ValueError as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            reason = os.strerror(number)
            if reason in str(error):
                raise OSError(number, reason, str(checkpoints.directory)) from error
        raise


def _check_shapes(checkpoints, step: int, found: dict, template: Any) -> None:
    """Compares the arrays of a checkpoint with the expected ones."""
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(template)
    }
    differing = sorted(
        name
        for name in found.keys() | expected.keys()
        if tuple(found.get(name) or ()) != tuple(expected.get(name) or ())
        or (name in found) != (name in expected)
    )
    if differing:
        name = differing[0]
        raise UsageError(
            f"checkpoint {step} in {checkpoints.directory} is of another shape: "
            f"{name.removeprefix('state/')} is {found.get(name, 'absent')} there and "
            f"{expected.get(name, 'absent')} here; choose another --workdir"
        )


def _copy(leaf: Any) -> Any:
    """A copy on the host; of what no process holds whole, on the devices."""
    return np.array(leaf, copy=True) if _is_here(leaf) else jnp.copy(leaf)


def _is_here(leaf: Any) -> bool:
    """Whether this process holds all of an array."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _digest(state: Any) -> np.ndarray:
    """The sha256 of all arrays of a state, uint8 [32], wherever they are."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        if not _is_here(leaf):  # one at a time: the state may not fit a host
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(np.ascontiguousarray(leaf).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _set_aside(checkpoints, step: int, error: Exception) -> None:
    """Renames a damaged checkpoint, so that its step can be saved again."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
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
