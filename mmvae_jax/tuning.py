"""How a sweep is executed: by rule, within the device's memory, and by measurement.

The rule knows which mapping of members is fast on which backend, and is all that a
short run needs. A long one tries the others too, once, before its first step. Members
that do not fit the device's memory at once are taken in chunks.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from mmvae_jax import meshes, sweeps, train
from mmvae_jax.errors import UsageError
from mmvae_jax.train import MAX_STEPS_PER_CALL, Execution, Task, TrainState
from mmvae_jax.types import Batch, PRNGKey

# Runs of fewer steps end before the compilation of other mappings would have paid.
MEASURED_FROM_STEPS = 10_000
# Written out for each member, programs of more take too long to compile for a trial.
MOST_UNROLLED = 4
# A call that is timed lasts about this long.
MEASURED_SECONDS = 0.5
# The rule's mapping is left only for one that takes at most this part of its time:
# less may be chance.
WORTH_A_CHANGE = 0.95


def choose_execution(
    mapping: str, steps_per_call: int, has_convolution: bool, backend: str
) -> Execution:
    """The one decision on how members are mapped and steps are grouped.

    On CPU the gradients of XLA's convolutions in their kernels are far slower inside
    a loop; everything else is fastest there one member after the other, and on
    accelerators all members at once.

    Args:
      mapping: "auto" or one of `sweeps.MAPPINGS`.
      steps_per_call: 0 for automatic.
      has_convolution: whether the step holds a convolution that loops slow down.
      backend: "cpu", "gpu" or "tpu".

    Raises:
      UsageError: the mapping is unknown.
    """
    if mapping not in ("auto", *sweeps.MAPPINGS):
        raise UsageError(
            f"unknown config.train.mapping {mapping!r}; choose one of "
            f"{', '.join(('auto', *sweeps.MAPPINGS))}"
        )
    is_cpu = backend == "cpu"
    if mapping == "auto":
        mapping = ("unroll" if has_convolution else "map") if is_cpu else "vmap"
    if steps_per_call == 0:
        steps_per_call = 1 if is_cpu and has_convolution else MAX_STEPS_PER_CALL
    return Execution(mapping, steps_per_call)


def has_convolution(task: Task, hyper: Any, batch: Batch) -> bool:
    """Whether the gradient of a task's loss holds a convolution that loops slow down.

    On CPU those are the gradients of kernels as JAX writes them: convolutions
    that take the channels for the batch (form "lax" of `layers`).
    """
    key = jax.random.key(0)
    params = jax.eval_shape(task.init, key)
    gradient = jax.grad(task.loss, has_aux=True)
    jaxpr = jax.make_jaxpr(gradient)(params, hyper, key, batch)
    # The first number is the axis of the input that is taken for the batch.
    return re.search(r"lhs_spec=\([1-9]", str(jaxpr)) is not None


def require_precision(
    precision: str, task: Task, hyper: Any, batch: Batch, backend: str
) -> None:
    """Checks that a task's network can be computed in config.train.precision.

    On GPUs no algorithm can be named for a convolution, so that it would be computed
    in another precision.

    Raises:
      UsageError: it cannot.
    """
    if precision != "bfloat16" or backend != "gpu":
        return
    params = jax.eval_shape(task.init, jax.random.key(0))
    jaxpr = jax.make_jaxpr(task.loss)(params, hyper, jax.random.key(0), batch)
    if "conv_general_dilated" in str(jaxpr):
        raise UsageError(
            "config.train.precision='bfloat16' is of matrix products, and this network "
            "has convolutions, which a GPU would compute in TF32: choose "
            "'tensorfloat32' or 'default'"
        )


class Prepared(NamedTuple):
    """What a run is executed with.

    Attributes:
      program: of `train.compile_steps`, or the same already compiled.
      execution: the one chosen.
      state: of all members before the first step.
      data: as given, on the devices already where programs were compiled for it.
      seconds: mapping -> seconds a step of those that were measured.
    """

    program: Callable
    execution: Execution
    state: TrainState
    data: Batch
    seconds: dict[str, float]


def alternatives(
    wanted: str, execution: Execution, num_members: int, num_steps: int
) -> list[str]:
    """The mappings that are worth a measurement beside the rule's.

    Args:
      wanted: config.train.mapping.
      execution: by `choose_execution`.
      num_members: K.
      num_steps: still to be taken.

    Returns:
      None of them if a mapping is asked for, if a device has a single member, if the
      run is short, or if several processes would have to agree; none either where the
      rule is "unroll", since it knows then that all others are far slower.
    """
    is_open = wanted == "auto" and execution.mapping != "unroll"
    num_on_device = num_members // execution.layout[0]
    is_long = num_steps >= MEASURED_FROM_STEPS
    if not (is_open and num_on_device > 1 and is_long) or jax.process_count() > 1:
        return []
    return [
        name
        for name in sweeps.MAPPINGS
        if name != execution.mapping
        and (name != "unroll" or num_on_device <= MOST_UNROLLED)
    ]


def prepare(
    task: Task,
    execution: Execution,
    hyper: Any,
    keys: PRNGKey,
    data: Batch,
    *,
    batch_size: int,
    others: Iterable[str] = (),
    memory: int | None = None,
) -> Prepared:
    """The program of a sweep, and the states that it starts from.

    Args:
      task: what is trained.
      execution: by `choose_execution`.
      hyper: fields [K].
      keys: key [K].
      data: name -> [N, ...], in host memory.
      batch_size: B.
      others: mappings to measure beside that of `execution`.
      memory: bytes of a device; None leaves it to the device.

    Raises:
      UsageError: the members do not fit the memory even one at a time.
    """
    first = {name: leaf[:batch_size] for name, leaf in data.items()}
    layout = execution.layout

    def make_states() -> TrainState:
        return train.init_states(task, hyper, keys, first, layout)

    state, others = make_states(), list(others)
    if execution.mapping != "vmap" and not others:
        program = train.compile_steps(task, execution)
        return Prepared(program, execution, state, data, {})
    num_examples = len(next(iter(data.values())))
    data = meshes.put_shared(data, layout)
    placed = (*meshes.put_members((hyper, keys), layout), data)
    rows = np.arange(execution.steps_per_call * batch_size, dtype=np.int32)
    rows = rows.reshape(-1, batch_size) % num_examples
    programs, seconds = {}, {}
    for mapping in [execution.mapping, *others]:
        tried = execution._replace(mapping=mapping)
        arguments = (state, *placed, rows)
        program, tried = compile_within(task, tried, arguments, memory)
        programs[mapping] = (program, tried)
        if others:
            seconds[mapping], state = seconds_a_step(program, *arguments)
    chosen = execution.mapping
    if others:
        state = make_states()
        fastest = min(seconds, key=seconds.get)
        if seconds[fastest] <= WORTH_A_CHANGE * seconds[chosen]:
            chosen = fastest
    return Prepared(*programs[chosen], state, data, seconds)


def compile_within(
    task: Task, execution: Execution, arguments: tuple, memory: int | None
) -> tuple[Callable, Execution]:
    """Compiles the steps of a sweep so that they fit a device's memory.

    Args:
      task: what is trained.
      execution: how; `members_at_once` is lowered if need be, unless it is given.
      arguments: of the program, but for the number of steps.
      memory: bytes; None for the device's own.

    Returns:
      (the compiled program, the execution).

    Raises:
      UsageError: nothing fits.
    """
    memory = device_memory() if memory is None else memory
    num = len(arguments[0].step) // execution.layout[0]
    is_given = execution.members_at_once > 0
    while True:
        program = train.compile_steps(task, execution)
        compiled = program.lower(*arguments, 1).compile()
        needed = peak_bytes(compiled)
        if needed <= memory:
            return compiled, execution
        at_once = execution.members_at_once or num
        if execution.mapping != "vmap" or is_given or at_once == 1:
            raise UsageError(
                f"training {num} members on a device needs {needed / 2**30:.2f} GiB, "
                f"even {at_once if execution.mapping == 'vmap' else 1} at a time, and "
                f"it has {memory / 2**30:.2f} GiB; take fewer members, or smaller "
                "batches or networks"
            )
        # What a step needs beside its arguments is in proportion to the members.
        extra = compiled.memory_analysis().temp_size_in_bytes
        left = max(memory - (needed - extra), 0)
        most = min(at_once - 1, at_once * left // max(extra, 1))
        at_once = max([c for c in range(1, most + 1) if num % c == 0], default=1)
        execution = execution._replace(members_at_once=at_once)


def peak_bytes(compiled: Any) -> int:
    """The most memory that a compiled program needs on a device, in bytes.

    0 where the backend does not say.
    """
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
    """What a device holds, in bytes; of a CPU, what the machine has."""
    of_device = jax.local_devices()[0].memory_stats() or {}
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return of_device.get("bytes_limit", of_machine)


def seconds_a_step(
    program: Callable, state: TrainState, hyper: Any, keys: PRNGKey, data: Batch, rows
) -> tuple[float, TrainState]:
    """Times a program, in calls of more and more steps.

    Args:
      program: of `train.compile_steps`.
      state: used up.
      hyper: fields [K].
      keys: key [K].
      data: name -> [N, ...].
      rows: int32 [most steps of a call, B].

    Returns:
      (seconds a step of all members, the last state).
    """
    num, seconds = 0, 0.0
    while True:
        start = time.perf_counter()
        state, done = program(state, hyper, keys, data, rows, max(1, num))
        jax.block_until_ready(done)
        seconds = time.perf_counter() - start
        # The first call may be that of the compilation.
        if num == len(rows) or (num and seconds >= MEASURED_SECONDS):
            return seconds / num, state
        num = min(4 * num or 1, len(rows))
