"""The pure train step of one sweep member."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmvae_jax.data.dataset import to_unit_interval
from mmvae_jax.mathematics import elbo
from mmvae_jax.training.schedules import Factors
from mmvae_jax.types import (
    Array,
    Batch,
    Hyper,
    MultimodalVAE,
    Params,
    PRNGKey,
    Schedule,
)

# Adam's step is at most (1 - b1) / sqrt(1 - b2) = 3.2 learning rates long (Kingma &
# Ba, 2015, Sec. 2.1): up to this rate none reaches infinity from parameters whose
# loss is finite.
_LARGEST_LEARNING_RATE = 1e36
# The square of a larger gradient, which Adam takes, is no float32.
LARGEST_GRADIENT = 1.8e19


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
      scheduled: (hyper, steps taken) -> hyper of the next step.
      schedule: of the model itself; the train step keeps to its stages.
    """

    init: Callable[[PRNGKey], Params]
    loss: Callable[..., tuple[Array, Mapping[str, Array]]]
    clip_norm: float = 0.0
    convolutions: frozenset[str] = frozenset()
    scheduled: Callable[[Any, Array], Any] = lambda hyper, step: hyper
    schedule: Schedule | None = None


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


def vae_task(
    model: MultimodalVAE,
    clip_norm: float = 0.0,
    factors: Factors = Factors(),  # noqa: B008 (a NamedTuple is immutable)
) -> Task:
    """Training of a multimodal VAE on its objective.

    Args:
      model: its objective is given the step if it has a schedule.
      clip_norm: as in `Task`.
      factors: of beta and the learning rate of every member.
    """

    def scheduled(hyper: Hyper, step: Array) -> Hyper:
        beta, rate, _ = hyper
        if factors.beta is not None:
            beta = beta * factors.beta(step)
        if factors.learning_rate is not None:
            rate = rate * factors.learning_rate(step)
        return Hyper(beta, rate, None if model.schedule is None else step)

    def loss(
        params: Params, hyper: Hyper, key: PRNGKey, batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        # Masks, if there are any, go through unchanged.
        scaled_batch = {name: to_unit_interval(x) for name, x in batch.items()}
        at = () if hyper.step is None else (hyper.step,)
        value, terms = model.objective(params, scaled_batch, key, hyper.beta, *at)
        metrics = {
            "train/loss": value,
            "train/elbo": jnp.mean(elbo.elbo(terms)),
            "train/kl": jnp.mean(terms.kl),
        }
        for modality, log_likelihood in terms.log_likelihood.items():
            metrics[f"train/log_likelihood/{modality}"] = jnp.mean(log_likelihood)
        return value, metrics

    return Task(
        model.init, loss, clip_norm, model.convolutions, scheduled, model.schedule
    )


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
    hyper = task.scheduled(hyper, state.step)
    step_key = jax.random.fold_in(key, state.step)
    gradient, metrics = jax.grad(task.loss, has_aux=True)(
        state.params, hyper, step_key, batch
    )
    stages = task.schedule if task.schedule and task.schedule.later else None
    if stages is not None:
        state = _restarted(stages, state)
        gradient = _of_stage(
            stages, state, gradient, jax.tree.map(jnp.zeros_like, gradient)
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
    if stages is not None:  # momentum goes on without a gradient
        params = _of_stage(stages, state, params, state.params)
    return TrainState(
        step=state.step + 1,
        params=params,
        optimizer=optimizer,
        finite=finite,
        totals={tag: state.totals[tag] + metrics[tag] for tag in state.totals},
        num_logged=state.num_logged + 1,
    )


def _of_stage(
    schedule: Schedule, state: TrainState, trained: Params, others: Params
) -> Params:
    """`trained` where this stage trains parameters, `others` elsewhere."""
    is_later = state.step >= schedule.num_steps
    return {
        name: jax.tree.map(
            partial(jnp.where, is_later == (name in schedule.later)), own, others[name]
        )
        for name, own in trained.items()
    }


def _restarted(schedule: Schedule, state: TrainState) -> TrainState:
    """The state; where the second stage begins, Adam counts its steps from 0.

    Its moments are 0 there, of parameters without a gradient in the first.
    """
    count = jnp.where(
        state.step == schedule.num_steps, 0, jnp.asarray(state.optimizer.count)
    )
    return state._replace(optimizer=state.optimizer._replace(count=count))


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

    def kept(new: Any, old: Any) -> Any:
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
