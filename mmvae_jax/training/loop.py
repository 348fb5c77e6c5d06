"""The only train loop: `fit`, for sweeps, resumed runs and judges.

`step.train_step` is a pure function of one member. `execution.compile_steps` makes the
program of all members from it, and `fit` calls that program.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.training import devices, examples
from mmvae_jax.training.execution import MAX_STEPS_PER_CALL, Execution
from mmvae_jax.training.step import TrainState
from mmvae_jax.types import Array, Batch, PRNGKey

# Target duration of a call, so that signals are handled soon.
TARGET_SECONDS_PER_CALL = 2.0


class Events(NamedTuple):
    """Callbacks of the loop and their periods; 0 steps = never.

    Attributes:
      log_every_steps: steps between two calls of `log`; the last step is also logged.
      log: (step, metrics: tag -> float [K], finite: bool [K]) -> None; means over the
        steps since the last call. Called in order, one call of the program later.
      eval_every_steps: steps between two calls of `evaluate`.
      evaluate: (step, state) -> None.
      save_every_steps: steps between two calls of `save`.
      save: (step, state) -> None; must copy the state, which is donated.
      progress: (step, seconds per step, is first) -> None, after every call. The time
        of the first call of a program includes its compilation and the begin of its
        stage: a rate leaves it out.
      is_stopping: () -> bool; True ends the loop after the current call.
    """

    log_every_steps: int = 0
    log: Callable = lambda step, metrics, finite: None
    eval_every_steps: int = 0
    evaluate: Callable = lambda step, state: None
    save_every_steps: int = 0
    save: Callable = lambda step, state: None
    progress: Callable = lambda step, seconds, is_first: None
    is_stopping: Callable[[], bool] = lambda: False

    def steps_to_boundary(self, step: int) -> int:
        """Number of steps from `step` to the next callback."""
        periods = (self.log_every_steps, self.eval_every_steps, self.save_every_steps)
        return min([p - step % p for p in periods if p], default=MAX_STEPS_PER_CALL)


class _Call(NamedTuple):
    """A call of the compiled program that may still be running."""

    step: int
    num: int
    done: Any  # an array; its declared type lacks `is_ready`
    totals: tuple | None


class _Clock:
    """Waits for calls, measures their time, and limits the steps of the next one."""

    def __init__(self, execution: Execution, events: Events):
        self.longest = 1  # largest number of steps of the next call
        self.call: _Call | None = None  # the running call
        self._execution, self._events = execution, events
        self._is_first = True  # no call has finished
        self._last_done = time.perf_counter()

    def finish_if_done(self) -> None:
        """Reports the running call if it has finished, as on CPUs at its return."""
        if self.call is not None and self.call.done.is_ready():
            self.finish()

    def finish(self) -> None:
        """Waits for the running call, if any, and reports it."""
        call, self.call = self.call, None
        if call is None:
            return
        jax.block_until_ready(call.done)
        now = time.perf_counter()
        seconds, self._last_done = (now - self._last_done) / call.num, now
        if call.totals is not None:
            self._events.log(call.step, *_means(*call.totals))
        self._events.progress(call.step, seconds, self._is_first)
        self._is_first = False
        wanted = int(TARGET_SECONDS_PER_CALL / max(seconds, 1e-9))
        most = self._execution.steps_per_call
        self.longest = max(1, min(most, wanted, 4 * call.num))

    def restart(self) -> None:
        """Excludes the time since the last call from the next measurement."""
        self._last_done = time.perf_counter()


def fit(
    program: Callable,
    state: TrainState,
    hyper: Any,
    keys: PRNGKey,
    data: Batch,
    *,
    num_steps: int,
    batch_size: int,
    data_seed: int,
    execution: Execution,
    events: Events = Events(),  # noqa: B008 (a NamedTuple is immutable)
) -> TrainState:
    """Trains all members up to step `num_steps`: the only train loop.

    The order of the data is a pure function of (data_seed, step), so that a resumed run
    needs only a state. The number of steps per call adapts to their time, which changes
    no bit of the result. The next call is dispatched before the last one has finished,
    so that an accelerator is never idle.

    Args:
      program: result of `compile_steps`.
      state: fields [K, ...]; donated.
      hyper: fields [K].
      keys: PRNG keys [K].
      data: modality -> [num_examples, ...]; moved to the devices, or with
        `execution.window` sent there in windows.
      num_steps: the step at which to stop.
      batch_size: examples per step.
      data_seed: seed of the order of the data.
      execution: as in `compile_steps`.
      events: callbacks, called by all processes in the same order.

    Returns:
      The state after `num_steps` steps, or earlier if `is_stopping` returned True.

    Raises:
      UsageError: batch_size is larger than the data.
    """
    layout = execution.layout
    hyper, keys = devices.put_members((hyper, keys), layout)
    step = int(devices.first(state.step))
    clock = _Clock(execution, events)
    with examples.opened(
        examples.put(data, execution.window, layout),
        execution.window,
        layout,
        num_steps=num_steps,
        batch_size=batch_size,
        data_seed=data_seed,
        steps_per_call=execution.steps_per_call,
    ) as take:
        while step < num_steps:
            clock.finish_if_done()
            is_stopping, longest = devices.agree(
                events.is_stopping(), clock.longest, layout
            )
            if is_stopping:
                break
            num = min(longest, num_steps - step, events.steps_to_boundary(step))
            taken, indices, num = take(step, num)
            state, done = program(state, hyper, keys, taken, indices, num)
            step += num
            clock.finish()  # the previous call
            totals, every = None, events.log_every_steps
            if _is_at(step, every):
                state, totals = _take_totals(state, layout)
            elif every and step == num_steps:
                # Not set to zero, so that a run that continues from here has the same
                # logs as an uninterrupted run.
                _, totals = _take_totals(state, layout)
            clock.call = _Call(step, num, done, totals)
            _save_and_evaluate(clock, events, step, state)
        clock.finish()
    return state


def _save_and_evaluate(
    clock: _Clock, events: Events, step: int, state: TrainState
) -> None:
    """Saves and evaluates the state if due, outside of the measured time."""
    is_save = _is_at(step, events.save_every_steps)
    is_eval = _is_at(step, events.eval_every_steps)
    if not (is_save or is_eval):
        return
    clock.finish()
    if is_save:  # first, because an evaluation may take long
        events.save(step, state)
    if is_eval:
        events.evaluate(step, state)
    clock.restart()


def _is_at(step: int, period: int) -> bool:
    """Whether a callback with this period (0: never) is due."""
    return period > 0 and step % period == 0


def _take_totals(state: TrainState, layout: devices.Layout) -> tuple[TrainState, tuple]:
    """Returns the sums of the metrics, and the state with zeros instead."""
    # Copies, because the state's arrays are donated to the next call.
    taken = devices.gather((state.totals, state.num_logged, state.finite), layout)
    zeros = jax.tree.map(jnp.zeros_like, (state.totals, state.num_logged))
    return state._replace(totals=zeros[0], num_logged=zeros[1]), taken


def _means(
    totals: Mapping[str, Array], num: Array, finite: Array
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Means over the logged steps: tag -> float [K], and finite [K]."""
    sums, counts, is_finite = jax.device_get((totals, num, finite))
    return {tag: total / counts for tag, total in sums.items()}, is_finite
