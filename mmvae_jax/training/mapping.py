"""Choice of the execution of a sweep, for the backend and within the device's memory.

A rule gives the fast mapping of members for each backend. Members that do not fit the
memory together are mapped in chunks.
"""

import os
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.training import devices, examples, sweep
from mmvae_jax.training.execution import (
    MAX_STEPS_PER_CALL,
    Execution,
    compile_steps,
    init_states,
)
from mmvae_jax.training.step import Task, TrainState
from mmvae_jax.types import Batch, PRNGKey


def choose_execution(
    mapping: str, steps_per_call: int, convolutions: Collection[str], backend: str
) -> Execution:
    """Chooses how members are mapped and how many steps a call has.

    On CPUs, gradients of XLA's convolutions with respect to kernels are about 30 times
    slower inside a loop than outside. Everything else is fastest one member after the
    other on CPUs, and all members together on accelerators.

    Args:
      mapping: "auto" or one of `sweep.MAPPINGS`.
      steps_per_call: largest number of steps of a call; 0 = automatic.
      convolutions: `Task.convolutions` of the members.
      backend: "cpu", "gpu" or "tpu".

    Raises:
      ArgumentError: the mapping is unknown.
    """
    if mapping not in ("auto", *sweep.MAPPINGS):
        raise ArgumentError(
            "unknown {mapping} {!r}; choose one of {}",
            mapping,
            ", ".join(("auto", *sweep.MAPPINGS)),
        )
    is_cpu = backend == "cpu"
    is_slow_in_loops = is_cpu and "lax" in convolutions
    if mapping == "auto":
        mapping = ("unroll" if is_slow_in_loops else "map") if is_cpu else "vmap"
    if steps_per_call == 0:
        steps_per_call = 1 if is_slow_in_loops else MAX_STEPS_PER_CALL
    return Execution(mapping, steps_per_call)


def place_data(
    execution: Execution, place: str, data: Batch, batch_size: int
) -> Execution:
    """The execution with the chosen memory of the data, device or host.

    Args:
      execution: result of `choose_execution`.
      place: one of `examples.PLACES`.
      data: name -> [N, ...], in host memory.
      batch_size: B.

    Raises:
      ArgumentError: the place is unknown.
    """
    steps, memory = execution.steps_per_call, device_memory()
    window = examples.window_steps(place, data, batch_size, steps, memory)
    return execution._replace(window=window)


def require_precision(
    precision: str, convolutions: Collection[str], backend: str
) -> None:
    """Requires a precision that is possible for the networks.

    On GPUs, JAX can set the precision "bfloat16" only for matrix products; XLA's
    convolutions would have another.

    Args:
      precision: one of `execution.PRECISIONS`.
      convolutions: `Task.convolutions` of the members.
      backend: "cpu", "gpu" or "tpu".

    Raises:
      ArgumentError: the precision is not possible.
    """
    is_refused = precision == "bfloat16" and backend == "gpu"
    if is_refused and not {"lax", "mixed"}.isdisjoint(convolutions):
        raise ArgumentError(
            "{precision}='bfloat16' is of matrix products, and this network "
            "has convolutions, which a GPU would compute in TF32: choose "
            "'tensorfloat32' or 'default'"
        )


def require_chunks(
    members_at_once: int, num_members: int, layout: devices.Layout
) -> None:
    """Requires a chunk size that divides the members of a device.

    Args:
      members_at_once: members of a chunk on a device; 0 = any.
      num_members: K, on all devices.
      layout: numbers of devices.

    Raises:
      ArgumentError: the size is not a divisor.
    """
    on_device = num_members // layout[0]
    if members_at_once and on_device % members_at_once:
        raise ArgumentError(
            "{members_at_once}={} must divide the {} members of a device evenly",
            members_at_once,
            on_device,
        )


class Prepared(NamedTuple):
    """Programs, states and data at the start of a run.

    Attributes:
      programs: for each of `Task.tasks()`, the result of `execution.compile_steps`,
        possibly compiled already.
      execution: the chosen execution.
      state: initial states of all members, fields [K, ...].
      data: the given data; on the devices if the program was compiled for that and
        `Execution.window` is 0.
    """

    programs: tuple[Callable, ...]
    execution: Execution
    state: TrainState
    data: Batch


def prepare(
    task: Task,
    execution: Execution,
    hyper: Any,
    keys: PRNGKey,
    data: Batch,
    *,
    batch_size: int,
    memory: int | None = None,
) -> Prepared:
    """The programs of a sweep, one per stage, and its initial states.

    Programs with "vmap" are compiled here, in chunks if necessary. Mapping one by one
    needs the least memory and is not checked.

    Args:
      task: the training of one member.
      execution: result of `choose_execution`.
      hyper: fields [K].
      keys: PRNG keys [K].
      data: name -> [N, ...], in host memory.
      batch_size: B.
      memory: memory of a device in bytes; None: as reported by the device.

    Raises:
      UsageError: the memory is too small even for one member at a time.
    """
    first = {name: leaf[:batch_size] for name, leaf in data.items()}
    layout = execution.layout
    state = init_states(task, hyper, keys, first, layout)
    if execution.mapping != "vmap":
        lazily = tuple(compile_steps(own, execution) for own in task.tasks())
        return Prepared(lazily, execution, state, data)
    data = examples.put(data, execution.window, layout)
    taken = examples.first_window(data, execution.window, batch_size)
    taken = devices.put_shared(taken, layout)
    rows = np.zeros((execution.steps_per_call, batch_size), np.int32)
    arguments = (state, *devices.put_members((hyper, keys), layout), taken, rows)
    # A size that an earlier stage needed may be lowered further, one of the user not.
    is_given = execution.members_at_once > 0
    programs = []
    for own in task.tasks():
        program, execution = _compile_within(
            own, execution, arguments, memory, is_given=is_given
        )
        programs.append(program)
    return Prepared(tuple(programs), execution, state, data)


def _compile_within(
    task: Task,
    execution: Execution,
    arguments: tuple,
    memory: int | None,
    *,
    is_given: bool,
) -> tuple[Callable, Execution]:
    """Compiles the steps of a sweep by "vmap" so that they fit a device's memory.

    Args:
      task: the training of one member.
      execution: `members_at_once` is lowered if necessary, unless it is given.
      arguments: arguments of the program without the number of steps.
      memory: bytes; None: as reported by the device.
      is_given: whether the user has set `members_at_once`.

    Returns:
      (the compiled program, the execution).

    Raises:
      UsageError: the memory is too small.
    """
    memory = device_memory() if memory is None else memory
    num = len(arguments[0].step) // execution.layout[0]
    while True:
        program = compile_steps(task, execution)
        compiled = program.lower(*arguments, 1).compile()
        needed = peak_bytes(compiled)
        if needed <= memory:
            return compiled, execution
        at_once = execution.members_at_once or num
        if is_given or at_once == 1:
            raise UsageError(
                f"training {num} members on a device needs {needed / 2**30:.2f} GiB, "
                f"even {at_once} at a time, and it has {memory / 2**30:.2f} GiB; take "
                "fewer members, or smaller batches or networks"
            )
        # Memory without the arguments is proportional to the number of members.
        found = compiled.memory_analysis()
        extra = found.temp_size_in_bytes if found else 0
        left = max(memory - (needed - extra), 0)
        most = min(at_once - 1, at_once * left // max(extra, 1))
        at_once = max([c for c in range(1, most + 1) if num % c == 0], default=1)
        execution = execution._replace(members_at_once=at_once)


def peak_bytes(compiled: Any) -> int:
    """Peak memory of a compiled program on a device, in bytes; 0 if unknown."""
    found = compiled.memory_analysis()
    if found is None:
        return 0
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes  # outputs written over arguments
    )


def device_memory() -> int:
    """Memory of a device in bytes; on CPUs, that of the machine."""
    of_device = jax.local_devices()[0].memory_stats() or {}
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return of_device.get("bytes_limit", of_machine)
