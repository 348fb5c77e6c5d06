"""The compiled program of a sweep, and its initial states.

Only `compile_steps` applies jit, the mapping of members, loops over steps and several
devices to the train step. `Execution` says how.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax.errors import ArgumentError
from mmvae_jax.training import devices, examples, step, sweep
from mmvae_jax.types import Array, Batch, PRNGKey

# Largest number of steps of one call of the compiled program.
MAX_STEPS_PER_CALL = 256
# Precision -> backend -> JAX's name. "default" is that of the device: float32 on CPUs,
# which have no other, TF32 on recent GPUs, bfloat16 on TPUs. For GPUs these are names
# of algorithms, because JAX's "bfloat16" is TF32 there.
_MATMUL_PRECISIONS = {
    "default": {},
    "float32": {"cpu": "float32", "gpu": "float32", "tpu": "float32"},
    "tensorfloat32": {"gpu": "TF32_TF32_F32"},
    "bfloat16": {"gpu": "BF16_BF16_F32", "tpu": "bfloat16"},
}
PRECISIONS = tuple(_MATMUL_PRECISIONS)


def matmul_precision(precision: str, backend: str) -> str | None:
    """The argument of `jax.default_matmul_precision` for one of PRECISIONS.

    Raises:
      ArgumentError: the precision is unknown, or the backend ("cpu", "gpu" or "tpu")
        does not have it and would silently use another.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(
            "unknown {precision} {!r}; choose one of {}",
            precision,
            ", ".join(PRECISIONS),
        )
    of_backend = _MATMUL_PRECISIONS[precision]
    if precision != "default" and backend not in of_backend:
        raise ArgumentError(
            "{precision}={!r}: a {} computes no matrix products of that kind; leave it "
            "'default'",
            precision,
            backend,
        )
    return of_backend.get(backend)


def jit_precisely(function: Callable, **options: Any) -> Callable:
    """`jax.jit` of a function whose matrix products are in float32.

    For evaluation: GPUs and TPUs otherwise round the factors to fewer bits, whatever
    config.train.precision was.

    Args:
      function: function to compile.
      **options: options of `jax.jit`.
    """

    @wraps(function)
    def precisely(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("float32"):  # in tracing
            return function(*args, **kwargs)

    return jax.jit(precisely, **options)


class Execution(NamedTuple):
    """How steps and members are executed, and on which devices.

    Attributes:
      mapping: one of `sweep.MAPPINGS`, for the members on a device.
      steps_per_call: largest number of steps of one call; 1: no loop.
      precision: one of PRECISIONS, for the networks' matrix products.
      layout: numbers of devices for members and for batches.
      members_at_once: members that "vmap" maps at a time on a device, a divisor of
        their number there; 0 = all.
      window: steps whose examples are sent to the devices together; 0 = all examples
        are on the devices (`examples.window_steps`).
    """

    mapping: str
    steps_per_call: int
    precision: str = "default"
    layout: devices.Layout = devices.ONE_DEVICE
    members_at_once: int = 0
    window: int = 0


def compile_steps(task: step.Task, execution: Execution) -> jax.stages.Wrapped:
    """The compiled program of a sweep: `num` steps of all members in one call.

    One trace is enough for all numbers of steps, because the number is an argument.

    Returns:
      (state [K], hyper [K], keys [K], data, indices [N, B], num []) ->
      (state [K], step [K]); data: modality -> [num_examples, ...]. `state` is donated;
      callers wait for the second output. On several devices, `devices` must have placed
      state, hyper, keys and data.

    Raises:
      ValueError: the task has stages, which need one program each.
    """
    if task.stages:
        raise ValueError("a task with stages has a program for each of its tasks()")
    layout = execution.layout

    def steps(
        state: step.TrainState,
        hyper: Any,
        key: PRNGKey,
        data: Batch,
        indices: Array,
        num: Array,
    ) -> tuple[step.TrainState, Array]:
        def body(i: int | Array, state: step.TrainState) -> step.TrainState:
            batch = devices.take_batch(data, indices[i], layout)
            return step.train_step(task, state, hyper, key, batch)

        if execution.steps_per_call == 1:
            state = body(0, state)
        else:
            state = jax.lax.fori_loop(0, num, body, state)
        return state, jnp.copy(state.step)

    return _compile(steps, execution, num_shared=3)


def compile_begin(
    stage: step.StageTask, execution: Execution, batch_size: int, data: Batch
) -> Callable[[step.TrainState], step.TrainState]:
    """The compiled program that begins a stage, before its first step.

    Args:
      stage: the stage of every member.
      execution: execution of members.
      batch_size: examples per batch in a pass over all examples; the last batch may be
        smaller.
      data: result of `examples.put`.

    Returns:
      state [K] -> state [K], placed as in `compile_steps`; the state is donated.
    """
    num_examples = len(next(iter(data.values())))
    num = num_examples // batch_size

    def begin(state: step.TrainState, held: Batch) -> step.TrainState:
        def read(start: int | Array, count: int) -> Batch:
            if execution.window:
                return examples.fetch(data, start, count)
            rows = start + jnp.arange(count)
            return jax.tree.map(lambda leaf: leaf[rows], held)

        def fold(f: Callable, first: Any) -> Any:
            def body(i: Array, carry: Any) -> Any:
                return f(carry, read(i * batch_size, batch_size))

            carry = jax.lax.fori_loop(0, num, body, first)
            left = num_examples - num * batch_size
            return f(carry, read(num * batch_size, left)) if left else carry

        return step.begin_stage(stage, state, fold)

    program = _compile(begin, execution, num_shared=1)
    return lambda state: program(state, {} if execution.window else data)


def _compile(fn: Callable, execution: Execution, num_shared: int) -> Any:
    """Compiles a function of one member for all members; donates its first argument."""
    layout = execution.layout

    def precisely(*args: Any) -> Any:
        # Applies in tracing to all products without an explicit precision (products of
        # experts have one).
        precision = matmul_precision(execution.precision, jax.default_backend())
        with jax.default_matmul_precision(precision):
            return fn(*args)

    mapped = sweep.map_members(
        precisely, execution.mapping, num_shared, execution.members_at_once
    )
    sharded = devices.shard_members(mapped, layout, num_shared=num_shared)
    return jax.jit(sharded, donate_argnums=0, **devices.jit_options(layout))


def init_states(
    task: step.Task,
    hyper: Any,
    keys: PRNGKey,
    batch: Batch,
    layout: devices.Layout = devices.ONE_DEVICE,
) -> step.TrainState:
    """The initial states of all members, fields [K, ...].

    Members are initialised one by one, so that a member's parameters have the bits of
    its run alone.
    """
    init = jax.jit(partial(step.init_state, task))
    return devices.stack_members(
        lambda k: init(sweep.member(hyper, k), keys[k], batch), len(keys), layout
    )
