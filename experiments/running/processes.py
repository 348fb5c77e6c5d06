"""Several processes of one run, on JAX's distributed runtime.

All processes run the same program with the same config. The first one prepares data and
judges and writes the files of the run. All train, evaluate the members on their
devices, and write their parts of the checkpoints. With one process, these functions
have no additional effect.
"""

import contextlib
import faulthandler
import io
import itertools
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from jax.experimental import multihost_utils

from mmvae_jax.errors import UsageError, first_line

T = TypeVar("T")

# A process without a heartbeat for this time is considered dead.
_HEARTBEAT_SECONDS = 40
# Time to wait for the start of other processes, and for the first one's preparations.
_START_SECONDS = 300
WAIT_SECONDS = 24 * 3_600

_barriers = itertools.count()


def define_flags() -> None:
    """Defines the flags for several processes."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "one of several processes, as JAX finds them: SLURM, Kubernetes, MPI, TPUs",
    )
    flags.DEFINE_string("coordinator", "", "HOST:PORT of the first process")
    flags.DEFINE_integer("num_processes", 0, "how many there are, with --coordinator")
    flags.DEFINE_integer("process_id", -1, "which one this is, from 0")


def connect(
    is_distributed: bool, coordinator: str, num_processes: int, process_id: int
) -> None:
    """Connects the processes; call it before JAX's devices are used.

    Args:
      is_distributed: whether JAX detects the other processes.
      coordinator: "HOST:PORT" of the first process; "" to detect it, or for one
        process.
      num_processes: total number of processes, with a coordinator.
      process_id: index of this process, with a coordinator.

    Raises:
      UsageError: contradictory flags, no cluster, or a process did not connect.
    """
    if not coordinator:
        if num_processes or process_id >= 0:
            raise UsageError("--num_processes and --process_id need --coordinator")
        if not is_distributed:
            return
        given = {}
    else:
        if not 0 <= process_id < num_processes:
            raise UsageError(
                "--coordinator needs --num_processes >= 1 and a --process_id in "
                f"0..num_processes - 1, got {num_processes} and {process_id}"
            )
        given = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    # experiments.run handles signals; JAX's service would intercept SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    # After the loss of a process, JAX prints the reason and ends with SIGABRT; stacks
    # of all threads would hide that line.
    faulthandler.disable()
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise UsageError(
            f"the processes of this run did not find one another ({reason}): give "
            "--coordinator, --num_processes and --process_id to each"
        ) from error


def is_first() -> bool:
    """Whether this is the first process, which writes files."""
    return jax.process_index() == 0


@contextlib.contextmanager
def silence_others() -> Iterator[None]:
    """Silences all processes except the first; exceptions are still reported."""
    if is_first():
        yield
        return
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def exchange(value: T) -> list[T]:
    """The values of all processes, in order; all must call it.

    Args:
      value: any value that can be pickled.
    """
    if jax.process_count() == 1:
        return [value]
    # Waits here for a process that is minutes late, because collectives of devices may
    # have a short timeout.
    ocp.multihost.get_barrier_sync_fn()(
        key=f"mmvae_jax_{next(_barriers)}", timeout_ms=1_000 * WAIT_SECONDS
    )
    body = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(body)], np.int32))[:, 0]
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(body)] = body
    bodies = multihost_utils.process_allgather(padded)
    return [
        pickle.loads(other[:size].tobytes())
        for other, size in zip(bodies, sizes, strict=True)
    ]


def run_on_first(do: Callable[[], T]) -> T:
    """Calls a function in the first process; all return its result or raise its error.

    This includes Stopped: a signal to the first process stops all.
    """
    value, error = None, None
    if is_first():
        try:
            value = do()
        except BaseException as raised:
            if not _are_several():
                raise
            error = _sendable(raised)
    value, error = exchange((value, error))[0]
    if error is not None:
        raise error
    return value


def run_first_then_others(do: Callable[[], T]) -> T:
    """Calls a function in the first process, and then in the others.

    For data and classifiers, which the first process makes and the others load. All
    raise an error of the first process.
    """
    made: list[T] = []
    run_on_first(lambda: made.append(do()))
    return made[0] if made else do()


def _are_several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def _sendable(error: BaseException) -> BaseException:
    """The exception, or a RuntimeError with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def end_after_a_loss(error: jax.errors.JaxRuntimeError) -> None:
    """Ends this process, because another process of the run has died.

    Raises:
      JaxRuntimeError: the given error, if there are no other processes.
    """
    if not _are_several():
        raise error
    reason = first_line(error)
    print(
        f"error: a process of this run is gone ({reason[:200]}); start them all again, "
        "and the run continues at its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    # Not sys.exit, in which JAX would wait for the dead process.
    os._exit(1)
