"""The train step, its compiled form, and the only train loop, in this order.

Step: `train_step` is pure and knows one member. Execution: `compile_steps` is the one
place where jit, vmap, map, loops over steps and several devices are applied to it.
Loop: `fit` calls what was compiled, for sweeps, resumed runs and classifiers alike.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmvae_jax import meshes, objectives, sweeps
from mmvae_jax.data import batch_indices, scaled
from mmvae_jax.errors import UsageError
from mmvae_jax.types import Array, Batch, Hyper, MultimodalVAE, Params, PRNGKey

# Adam's step is at most (1 - b1) / sqrt(1 - b2) = 3.2 learning rates long (Kingma &
# Ba, 2015, Sec. 2.1): up to this rate none reaches infinity from parameters whose
# loss is finite.
_LARGEST_LEARNING_RATE = 1e36
# The square of a larger gradient, which Adam takes, is no float32.
LARGEST_GRADIENT = 1.8e19
# Steps of one call of the compiled program at most.
MAX_STEPS_PER_CALL = 256
# config.train.precision -> backend -> JAX's name; "default" is the device's own:
# float32 on CPUs, which know no other, TF32 on recent GPUs, bfloat16 on TPUs. The
# algorithms of GPUs are named, because there JAX's "bfloat16" is TF32.
_MATMUL_PRECISIONS = {
    "default": {},
    "float32": {"cpu": "float32", "gpu": "float32", "tpu": "float32"},
    "tensorfloat32": {"gpu": "TF32_TF32_F32"},
    "bfloat16": {"gpu": "BF16_BF16_F32", "tpu": "bfloat16"},
}
PRECISIONS = tuple(_MATMUL_PRECISIONS)
# Time that a call is meant to take at most, so that a signal is answered soon.
TARGET_SECONDS_PER_CALL = 2.0


class Task(NamedTuple):
    """The training of one member.

    Attributes:
      init: key -> params.
      loss: (params, hyper, key, batch) -> (loss [], metrics), metrics: tag -> [].
        `hyper` has a field learning_rate and what else the loss asks for; `batch`
        is what the data hold, images as uint8.
      clip_norm: the largest norm of a member's gradient, over all its parameters; 0
        for any.
      convolutions: forms of `layers` in which its networks execute convolutions
        (`networks.convolution_forms`); they decide how it is mapped.
    """

    init: Callable[[PRNGKey], Params]
    loss: Callable[..., tuple[Array, Mapping[str, Array]]]
    clip_norm: float = 0.0
    convolutions: frozenset[str] = frozenset()


class TrainState(NamedTuple):
    """The whole state of one member ([K, ...] for a sweep): all that a resume needs.

    Attributes:
      step: int32 [], steps taken.
      params: the model's parameters.
      optimizer: state of Adam.
      finite: bool [], False from the first non-finite loss, gradient or step on.
      totals: tag -> float32 [], sums since the last logged step.
      num_logged: int32 [], number of steps in `totals`.
    """

    step: Array
    params: Params
    optimizer: optax.OptState
    finite: Array
    totals: Mapping[str, Array]
    num_logged: Array


def vae_task(model: MultimodalVAE, clip_norm: float = 0.0) -> Task:
    """Training of a multimodal VAE on its objective; clip_norm as in `Task`."""

    def loss(params: Params, hyper: Hyper, key: PRNGKey, batch: Batch):
        # Masks, if there are any, go through unchanged.
        scaled_batch = {name: scaled(x) for name, x in batch.items()}
        value, terms = model.objective(params, scaled_batch, key, hyper.beta)
        metrics = {
            "train/loss": value,
            "train/elbo": jnp.mean(objectives.elbo(terms)),
            "train/kl": jnp.mean(terms.kl),
        }
        for modality, log_likelihood in terms.log_likelihood.items():
            metrics[f"train/log_likelihood/{modality}"] = jnp.mean(log_likelihood)
        return value, metrics

    return Task(model.init, loss, clip_norm, model.convolutions)


def init_state(task: Task, hyper: Any, key: PRNGKey, batch: Batch) -> TrainState:
    """The state of one member before the first step."""
    params = task.init(key)
    # The loss is only traced, to learn the names of its metrics.
    _, metrics = jax.eval_shape(task.loss, params, hyper, key, batch)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        optimizer=optax.scale_by_adam().init(params),
        finite=jnp.bool_(True),
        totals={tag: jnp.float32(0) for tag in metrics},
        num_logged=jnp.int32(0),
    )


def train_step(
    task: Task, state: TrainState, hyper: Any, key: PRNGKey, batch: Batch
) -> TrainState:
    """One step of Adam for one member: pure, not jitted, not mapped.

    A member whose loss is not finite, or whose gradient or learning rate could take
    its moments or parameters out of float32, keeps the parameters it had and stays
    so: later steps leave it alone.

    Args:
      task: the loss, and how gradients are clipped.
      state: before the step.
      hyper: as `task.loss` takes it; fields [].
      key: the member's; the step's own key is folded from it.
      batch: modality -> [B, ...].

    Returns:
      The next state, its metrics added to `totals`.
    """
    step_key = jax.random.fold_in(key, state.step)
    gradient, metrics = jax.grad(task.loss, has_aux=True)(
        state.params, hyper, step_key, batch
    )
    norm = gradient_norm(gradient)
    # NaN is below nothing.
    finite = state.finite & (norm <= LARGEST_GRADIENT)
    finite &= hyper.learning_rate <= _LARGEST_LEARNING_RATE
    for value in metrics.values():
        finite &= jnp.isfinite(value)
    if task.clip_norm:
        shrink = jnp.minimum(1.0, task.clip_norm / jnp.maximum(norm, 1e-30))
        gradient = jax.tree.map(lambda g: shrink * g, gradient)
    params, optimizer = _adam(state, gradient, hyper.learning_rate, finite)
    return TrainState(
        step=state.step + 1,
        params=params,
        optimizer=optimizer,
        finite=finite,
        totals={tag: state.totals[tag] + metrics[tag] for tag in state.totals},
        num_logged=state.num_logged + 1,
    )


def gradient_norm(gradient: Params) -> Array:
    """Euclidean norm over all parameters, [], finite for gradients of up to 1e28.

    The squares themselves would leave float32 from 1e19 on.
    """
    # A power of two: nothing is rounded.
    scaled_down = jax.tree.map(lambda g: g * 2.0**-32, gradient)
    return optax.tree.norm(scaled_down) * 2.0**32


def _adam(
    state: TrainState, gradient: Params, learning_rate: Array, finite: Array
) -> tuple[Params, optax.OptState]:
    """Parameters and moments after one step of Adam; the old ones unless `finite`.

    The arithmetic and the state are those of `optax.scale_by_adam`. The barrier makes
    XLA compute the parameters from the moments that are kept: without it, XLA computes
    them twice, and cannot write them over the old ones.
    """

    def kept(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    b1, b2, epsilon = 0.9, 0.999, 1e-8
    old = state.optimizer
    new = optax.ScaleByAdamState(
        count=optax.safe_increment(old.count),
        mu=optax.tree.update_moment(gradient, old.mu, b1, 1),
        nu=optax.tree.update_moment_per_elem_norm(gradient, old.nu, b2, 2),
    )
    new = jax.lax.optimization_barrier(kept(new, old))
    mean = optax.tree.bias_correction(new.mu, b1, new.count)
    square = optax.tree.bias_correction(new.nu, b2, new.count)
    params = jax.tree.map(
        lambda p, m, v: p - learning_rate * (m / (jnp.sqrt(v) + epsilon)),
        state.params,
        mean,
        square,
    )
    return kept(params, state.params), new


def matmul_precision(precision: str, backend: str) -> str | None:
    """The argument of `jax.default_matmul_precision` for one of PRECISIONS.

    Raises:
      UsageError: it is none of PRECISIONS, or the backend ("cpu", "gpu" or "tpu") has
        no matrix products of that kind, and would compute others without a word.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown config.train.precision {precision!r}; choose one of "
            f"{', '.join(PRECISIONS)}"
        )
    of_backend = _MATMUL_PRECISIONS[precision]
    if precision != "default" and backend not in of_backend:
        raise UsageError(
            f"config.train.precision={precision!r}: a {backend} computes no matrix "
            "products of that kind; leave it 'default'"
        )
    return of_backend.get(backend)


class Execution(NamedTuple):
    """How steps and members are executed, and on which devices.

    Attributes:
      mapping: one of `sweeps.MAPPINGS`, for the members on a device.
      steps_per_call: the most steps one call may take; 1 means without a loop.
      precision: one of PRECISIONS, for the networks' matrix products.
      layout: numbers of devices over which members and batches are spread.
      members_at_once: members in parallel by "vmap" on a device, a divisor of their
        number there; 0 = all.
    """

    mapping: str
    steps_per_call: int
    precision: str = "default"
    layout: meshes.Layout = meshes.ONE_DEVICE
    members_at_once: int = 0


def compile_steps(task: Task, execution: Execution) -> Callable:
    """The compiled program of a sweep: `num` steps of all members in one call.

    One trace serves every number of steps, since the number is an argument.

    Returns:
      (state [K], hyper [K], keys [K], data, indices [N, B], num []) ->
      (state [K], step [K]); data: modality -> [num_examples, ...]. `state` is
      donated; the second output is there to be waited for. On several devices, state,
      hyper, keys and data are expected where `meshes` puts them.
    """
    layout = execution.layout

    def steps(state, hyper, key, data, indices, num):
        def body(i, state):
            batch = meshes.take_batch(data, indices[i], layout)
            return train_step(task, state, hyper, key, batch)

        if execution.steps_per_call == 1:
            state = body(0, state)
        else:
            state = jax.lax.fori_loop(0, num, body, state)
        return state, jnp.copy(state.step)

    def precisely(*args):
        # It holds while this is traced, for all products that name no precision of
        # their own (products of experts do).
        precision = matmul_precision(execution.precision, jax.default_backend())
        with jax.default_matmul_precision(precision):
            return steps(*args)

    mapped = sweeps.map_members(
        precisely, execution.mapping, 3, execution.members_at_once
    )
    sharded = meshes.shard_members(mapped, layout, num_shared=3)
    return jax.jit(sharded, donate_argnums=0, **meshes.jit_options(layout))


def init_states(
    task: Task,
    hyper: Any,
    keys: PRNGKey,
    batch: Batch,
    layout: meshes.Layout = meshes.ONE_DEVICE,
) -> TrainState:
    """The states of all members before the first step, fields [K, ...].

    Members are initialised one after the other, so that a member's parameters
    have the bits of its solo run.
    """
    init = jax.jit(partial(init_state, task))
    return meshes.stack_members(
        lambda k: init(sweeps.member(hyper, k), keys[k], batch), len(keys), layout
    )


class Events(NamedTuple):
    """Functions that a loop calls, and how often; 0 steps = never.

    Attributes:
      log_every_steps: steps between two calls of `log`; the last step is logged too.
      log: (step, metrics: tag -> float [K], finite: bool [K]) -> None; means over
        the steps since the last call. Called in order, one call late.
      eval_every_steps: steps between two calls of `evaluate`.
      evaluate: (step, state) -> None.
      save_every_steps: steps between two calls of `save`.
      save: (step, state) -> None; must copy what it keeps, the state is donated.
      progress: (step, seconds a step) -> None, after every call.
      is_stopping: () -> bool; True ends the loop after the call in flight.
    """

    log_every_steps: int = 0
    log: Callable = lambda step, metrics, finite: None
    eval_every_steps: int = 0
    evaluate: Callable = lambda step, state: None
    save_every_steps: int = 0
    save: Callable = lambda step, state: None
    progress: Callable = lambda step, seconds: None
    is_stopping: Callable[[], bool] = lambda: False

    def steps_to_boundary(self, step: int) -> int:
        """Steps from `step` to the next one at which something is called."""
        periods = (self.log_every_steps, self.eval_every_steps, self.save_every_steps)
        return min([p - step % p for p in periods if p], default=MAX_STEPS_PER_CALL)


class _Call(NamedTuple):
    """A call of the compiled program that may still be running."""

    step: int
    num: int
    done: Array
    totals: tuple | None


class _Clock:
    """Waits for calls, times them, and says how long the next one may be."""

    def __init__(self, execution: Execution, events: Events):
        self.longest = 1  # steps that the next call may take
        self.call: _Call | None = None  # in flight
        self._execution, self._events = execution, events
        self._last_done = time.perf_counter()

    def finish_if_done(self) -> None:
        """Reports the call in flight if it is done, as it is on CPUs by its return."""
        if self.call is not None and self.call.done.is_ready():
            self.finish()

    def finish(self) -> None:
        """Waits for the call in flight, if there is one, and reports it."""
        call, self.call = self.call, None
        if call is None:
            return
        jax.block_until_ready(call.done)
        now = time.perf_counter()
        seconds, self._last_done = (now - self._last_done) / call.num, now
        if call.totals is not None:
            self._events.log(call.step, *_means(*call.totals))
        self._events.progress(call.step, seconds)
        wanted = int(TARGET_SECONDS_PER_CALL / max(seconds, 1e-9))
        most = self._execution.steps_per_call
        self.longest = max(1, min(most, wanted, 4 * call.num))

    def restart(self) -> None:
        """Leaves out of the time what was done since the last call."""
        self._last_done = time.perf_counter()


def fit(
    program: Callable,
    state: TrainState,
    hyper: Any,
    keys: PRNGKey,
    data: Mapping[str, Array],
    *,
    num_steps: int,
    batch_size: int,
    data_seed: int,
    execution: Execution,
    events: Events = Events(),  # noqa: B008 (a NamedTuple is immutable)
) -> TrainState:
    """Trains all members up to step `num_steps`: the only train loop.

    The order of the data is a pure function of (data_seed, step), so a state is all
    that a resumed run needs. The number of steps in a call adapts to their time, which
    changes no bit of the result. The next call is dispatched before the last one is
    waited for, so an accelerator is never idle in between.

    Args:
      program: result of `compile_steps`.
      state: fields [K, ...]; donated.
      hyper: fields [K].
      keys: key [K].
      data: modality -> [num_examples, ...]; put on the devices.
      num_steps: the step at which to stop.
      batch_size: examples a step.
      data_seed: seed of the order of the data.
      execution: as given to `compile_steps`.
      events: functions called in between, by all processes in the same order.

    Returns:
      The state after `num_steps` steps, or earlier if `is_stopping` said so.

    Raises:
      UsageError: batch_size is larger than the data.
    """
    layout = execution.layout
    hyper, keys = meshes.put_members((hyper, keys), layout)
    data = meshes.put_shared(data, layout)
    num_examples = jax.tree.leaves(data)[0].shape[0]
    step = int(meshes.first(state.step))
    clock = _Clock(execution, events)
    while step < num_steps:
        clock.finish_if_done()
        is_stopping, longest = meshes.agree(events.is_stopping(), clock.longest, layout)
        if is_stopping:
            break
        num = min(longest, num_steps - step, events.steps_to_boundary(step))
        indices = np.zeros((execution.steps_per_call, batch_size), np.int32)
        indices[:num] = batch_indices(data_seed, step, num, num_examples, batch_size)
        state, done = program(state, hyper, keys, data, indices, num)
        step += num
        clock.finish()  # of the call before
        totals, every = None, events.log_every_steps
        if _is_at(step, every) or (every and step == num_steps):
            state, totals = _take_totals(state, layout)
        clock.call = _Call(step, num, done, totals)
        is_save = _is_at(step, events.save_every_steps)
        is_eval = _is_at(step, events.eval_every_steps)
        if is_save or is_eval:
            clock.finish()
            if is_save:  # first, since an evaluation may take long
                events.save(step, state)
            if is_eval:
                events.evaluate(step, state)
            clock.restart()
    clock.finish()
    return state


def _is_at(step: int, period: int) -> bool:
    """Whether something that happens every `period` steps (0: never) happens now."""
    return period > 0 and step % period == 0


def _take_totals(state: TrainState, layout: meshes.Layout) -> tuple[TrainState, tuple]:
    """Takes the sums of the metrics out of a state and sets them to zero."""
    # Copies, since the next call is given what stays in the state.
    taken = meshes.gather((state.totals, state.num_logged, state.finite), layout)
    zeros = jax.tree.map(jnp.zeros_like, (state.totals, state.num_logged))
    return state._replace(totals=zeros[0], num_logged=zeros[1]), taken


def _means(totals, num, finite) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Means over the logged steps: tag -> float [K], and finite [K]."""
    totals, num, finite = jax.device_get((totals, num, finite))
    return {tag: total / num for tag, total in totals.items()}, finite
