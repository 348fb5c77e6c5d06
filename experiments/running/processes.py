"""Several processes that make up one run, on JAX's own distributed runtime.

Every process runs the same program on the same config. The first one writes what a
run leaves behind and prepares what is prepared once; all of them train, evaluate the
members that their devices hold, and write their parts of the checkpoints. With one
process, each function here does the plain thing.
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

from mmvae_jax.errors import UsageError

T = TypeVar("T")

# A process that says nothing for so long is taken to be dead.
_HEARTBEAT_SECONDS = 40
# How long a process waits for the others to start, and for what the first prepares.
_START_SECONDS = 300
WAIT_SECONDS = 24 * 3_600

_barriers = itertools.count()


def define_flags() -> None:
    """Defines the flags that make a process one of several."""
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
    """Joins the other processes; before anything asks JAX for a device.

    Args:
      is_distributed: whether JAX is to find out about the others.
      coordinator: "HOST:PORT" of the first process; "" if it is to be found out, or
        if there is one process only.
      num_processes: of all; with a coordinator.
      process_id: of this one; with a coordinator.

    Raises:
      UsageError: contradictory flags, no cluster, or not all processes came.
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
    # Signals are for experiments.run to answer: JAX's service would take SIGTERM away.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX ends a process that has lost another by SIGABRT, after saying why: the stacks
    # of all threads would bury that line.
    faulthandler.disable()
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"the processes of this run did not find one another ({reason}): give "
            "--coordinator, --num_processes and --process_id to each"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def silence_others() -> Iterator[None]:
    """Silences all processes but the first; what they raise is still reported."""
    if is_first():
        yield
        return
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def exchange(value: T) -> list[T]:
    """Values of all processes, in their order: all of them must call it.

    Args:
      value: anything that can be pickled.
    """
    if jax.process_count() == 1:
        return [value]
    # Where one is late by minutes, it is waited for here, since collectives of a
    # device may have a short patience.
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
    """Calls a function in the first process; all return or raise what it did.

    Also what is no Exception: a signal that stops the first stops all.
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

    For what is made once and then found: data, classifiers. What the first process
    raises, the others raise too.
    """
    made: list[T] = []
    run_on_first(lambda: made.append(do()))
    return made[0] if made else do()


def _are_several() -> bool:
    """Whether there is any other process."""
    return jax.process_count() > 1


def _sendable(error: BaseException) -> BaseException:
    """An exception that can be pickled, or its text as one."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def end_after_a_loss(error: jax.errors.JaxRuntimeError) -> None:
    """Ends this process, because another one of the run is gone.

    Raises:
      JaxRuntimeError: the error given, if there is no other process.
    """
    if not _are_several():
        raise error
    reason = str(error).splitlines()[0]
    print(
        f"error: a process of this run is gone ({reason[:200]}); start them all again, "
        "and the run continues at its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    # Not sys.exit: on its way out JAX would wait for the process that is gone.
    os._exit(1)
