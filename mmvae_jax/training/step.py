"""The pure train step of one sweep member."""

from collections.abc import Callable, Mapping
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
    ObjectiveTerms,
    Params,
    PRNGKey,
    Stage,
)

# Adam's step is at most (1 - b1) / sqrt(1 - b2) = 3.2 learning rates long (Kingma & Ba,
# 2015, Sec. 2.1). Up to this rate, parameters with a finite loss stay finite.
_LARGEST_LEARNING_RATE = 1e36
# Adam squares gradients; larger ones overflow float32.
LARGEST_GRADIENT = 1.8e19


class Task(NamedTuple):
    """The training of one member.

    Attributes:
      init: key -> params.
      loss: (params, hyper, key, batch) -> (loss [], metrics), metrics: tag -> [].
        `hyper` has a field learning_rate and other inputs of the loss; `batch` has the
        raw data, images as uint8.
      clip_norm: largest norm of a member's gradient, over all its parameters; 0 = no
        limit.
      convolutions: forms in which the networks execute convolutions
        (`networks.convolution_forms`), for the choice of the mapping.
      scheduled: (hyper, steps taken) -> hyper of the next step.
      learns: the entries of the parameters to train; () = all.
      after_step: (params, batch, steps taken before) -> params, after every step; None:
        unchanged.
      stages: stages of the training; () = one stage with `loss`.
    """

    init: Callable[[PRNGKey], Params]
    loss: Callable[..., tuple[Array, Mapping[str, Array]]]
    clip_norm: float = 0.0
    convolutions: frozenset[str] = frozenset()
    scheduled: Callable[[Any, Array], Any] = lambda hyper, step: hyper
    learns: tuple[str, ...] = ()
    after_step: Callable[[Params, Batch, Array], Params] | None = None
    stages: tuple["StageTask", ...] = ()

    def tasks(self) -> tuple["Task", ...]:
        """The tasks of the stages; without stages, this task."""
        return tuple(stage.task for stage in self.stages) or (self,)


class StageTask(NamedTuple):
    """The training of one member in one stage.

    Attributes:
      name: name of the stage.
      start: the step at which the stage begins.
      end: the step at which the stage ends.
      begin: as in `types.Stage`.
      task: the training in the stage.
    """

    name: str
    start: int
    end: int
    begin: Callable[..., Params] | None
    task: Task


class TrainState(NamedTuple):
    """The whole state of one member ([K, ...] for a sweep), enough to resume.

    Attributes:
      step: int32 [], number of steps taken.
      params: parameters of the model.
      optimizer: state of Adam.
      finite: bool [], False after the first loss, gradient or step that is not finite.
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
    num_steps: int = 0,
) -> Task:
    """Training of a multimodal VAE on its objective, or in its stages.

    Args:
      model: the model; with a schedule, its objective gets the step.
      clip_norm: as in `Task`.
      factors: factors of beta and the learning rate of every member.
      num_steps: steps of the whole run, required for models with stages.

    Raises:
      ValueError: `num_steps` is missing for a model with stages.
    """

    def scheduled(hyper: Hyper, step: Array) -> Hyper:
        beta, rate, _ = hyper
        if factors.beta is not None:
            beta = beta * factors.beta(step)
        if factors.learning_rate is not None:
            rate = rate * factors.learning_rate(step)
        return Hyper(beta, rate, None if model.schedule is None else step)

    whole = Task(
        model.init,
        _scaled_loss(model.objective),
        clip_norm,
        model.convolutions,
        scheduled,
    )
    if not model.stages:
        return whole
    if num_steps < 1:
        raise ValueError("a model with stages is trained for a number of steps")
    ends = [stage.end(num_steps) for stage in model.stages]
    return whole._replace(
        stages=tuple(
            _stage_task(whole, stage, start, end)
            for stage, start, end in zip(
                model.stages, [0, *ends[:-1]], ends, strict=True
            )
        )
    )


def _scaled_loss(objective: Callable[..., tuple[Array, Any]]) -> Callable:
    """`Task.loss` of an objective: scales bytes, and names the metrics."""

    def loss(
        params: Params, hyper: Hyper, key: PRNGKey, batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        at = () if hyper.step is None else (hyper.step,)
        value, terms = objective(params, _scaled(batch), key, hyper.beta, *at)
        metrics = {"train/loss": value}
        if not isinstance(terms, ObjectiveTerms):
            return value, metrics | {f"train/{name}": x for name, x in terms.items()}
        metrics |= {
            "train/elbo": jnp.mean(elbo.elbo(terms)),
            "train/kl": jnp.mean(terms.kl),
        }
        for modality, log_likelihood in terms.log_likelihood.items():
            metrics[f"train/log_likelihood/{modality}"] = jnp.mean(log_likelihood)
        return value, metrics

    return loss


def _scaled(batch: Batch) -> Batch:
    """The batch with images in [0, 1]; masks are unchanged."""
    return {name: to_unit_interval(x) for name, x in batch.items()}


def _stage_task(whole: Task, stage: Stage, start: int, end: int) -> StageTask:
    """The training in one stage, steps [start, end)."""

    def scheduled(hyper: Hyper, step: Array) -> Hyper:
        hyper = whole.scheduled(hyper, step)
        if stage.learning_rate is None:
            return hyper
        factor = stage.learning_rate(step - start, end - start)
        return hyper._replace(learning_rate=factor * hyper.learning_rate)

    def after_step(params: Params, batch: Batch, step: Array) -> Params:
        if stage.after_step is None:
            return params
        return stage.after_step(params, _scaled(batch), step - start)

    task = whole._replace(
        loss=_scaled_loss(stage.objective),
        scheduled=scheduled,
        learns=stage.learns,
        after_step=after_step,
    )
    return StageTask(stage.name, start, end, stage.begin, task)


def tags(task: Task, params: Params, hyper: Any, key: PRNGKey, batch: Batch) -> tuple:
    """The names of the metrics of a task's loss, by tracing it."""
    return tuple(jax.eval_shape(task.loss, params, hyper, key, batch)[1])


def init_state(task: Task, hyper: Any, key: PRNGKey, batch: Batch) -> TrainState:
    """The state of one member before the first step."""
    params = task.init(key)
    # All stages share one structure, with the metrics of all stages.
    names = [tags(own, params, hyper, key, batch) for own in task.tasks()]
    return TrainState(
        step=jnp.int32(0),
        params=params,
        optimizer=optax.scale_by_adam().init(params),
        finite=jnp.bool_(True),
        totals={tag: jnp.float32(0) for own in names for tag in own},
        num_logged=jnp.int32(0),
    )


def train_step(
    task: Task, state: TrainState, hyper: Any, key: PRNGKey, batch: Batch
) -> TrainState:
    """One step of Adam for one member: pure, not jitted, not mapped.

    If the loss of a member is not finite, or its gradient or learning rate could make
    moments or parameters overflow float32, the member keeps its last parameters in this
    and all later steps.

    Args:
      task: the training of the member.
      state: state before the step.
      hyper: hyper-parameters for `task.loss`; fields [].
      key: random key of the member; the step is folded in.
      batch: modality -> [B, ...].

    Returns:
      The next state, with the metrics added to `totals`.
    """
    hyper = task.scheduled(hyper, state.step)
    step_key = jax.random.fold_in(key, state.step)
    own, merged = _learning(task.learns, state)
    gradient, metrics = jax.grad(
        lambda params: task.loss(merged(params), hyper, step_key, batch), has_aux=True
    )(own.params)
    norm = gradient_norm(gradient)
    # The comparison is False for NaN.
    finite = state.finite & (norm <= LARGEST_GRADIENT)
    finite &= hyper.learning_rate <= _LARGEST_LEARNING_RATE
    for value in metrics.values():
        finite &= jnp.isfinite(value)
    if task.clip_norm:
        shrink = jnp.minimum(1.0, task.clip_norm / jnp.maximum(norm, 1e-30))
        gradient = jax.tree.map(lambda g: shrink * g, gradient)
    trained, moments = _adam(own, gradient, hyper.learning_rate, finite)
    params = merged(trained)
    optimizer = _in_place(task.learns, state.optimizer, moments)
    if task.after_step is not None:
        params = _kept(finite, task.after_step(params, batch, state.step), params)
    return TrainState(
        step=state.step + 1,
        params=params,
        optimizer=optimizer,
        finite=finite,
        # Metrics of other stages are unchanged.
        totals={
            tag: total + metrics[tag] if tag in metrics else total
            for tag, total in state.totals.items()
        },
        num_logged=state.num_logged + 1,
    )


def begin_stage(stage: StageTask, state: TrainState, fold: Callable) -> TrainState:
    """The initial state of a stage: new Adam, zero sums, parameters by `begin`.

    It is pure, for one member, and idempotent. If `begin` gives parameters that are not
    finite, the member keeps its last parameters.

    Args:
      stage: the stage.
      state: state at the end of the previous stage.
      fold: as in `types.Stage`, but over raw batches.
    """
    empty = jax.tree.map(
        jnp.zeros_like, (state.optimizer, state.totals, state.num_logged)
    )
    params, finite = state.params, state.finite
    if stage.begin is not None:

        def scaled(f: Callable, first: Any) -> Any:
            return fold(lambda carry, batch: f(carry, _scaled(batch)), first)

        params = stage.begin(params, scaled)
        for leaf in jax.tree.leaves(params):
            finite &= jnp.all(jnp.isfinite(leaf))
        params = _kept(finite, params, state.params)
    return TrainState(state.step, params, empty[0], finite, *empty[1:])


def _learning(
    learns: tuple[str, ...], state: TrainState
) -> tuple[TrainState, Callable[[Params], Params]]:
    """The trained part of a state, and a function that merges its parameters."""
    if not learns:
        return state, lambda params: params
    own, mu, nu = (
        {name: tree[name] for name in learns}
        for tree in (state.params, state.optimizer.mu, state.optimizer.nu)
    )
    optimizer = state.optimizer._replace(mu=mu, nu=nu)
    part = state._replace(params=own, optimizer=optimizer)
    return part, lambda params: {**state.params, **params}


def _in_place(
    learns: tuple[str, ...], old: optax.OptState, new: optax.OptState
) -> optax.OptState:
    """The state of Adam, with the new state of the trained part."""
    if not learns:
        return new
    return new._replace(mu={**old.mu, **new.mu}, nu={**old.nu, **new.nu})


def _kept(finite: Array, new: Any, old: Any) -> Any:
    """The new tree if `finite`, else the old one."""
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def gradient_norm(gradient: Params) -> Array:
    """Euclidean norm over all parameters, [], finite for gradients of up to 1e28.

    Squares without scaling would overflow float32 from 1e19 on.
    """
    # Powers of two avoid rounding.
    scaled_down = jax.tree.map(lambda g: g * 2.0**-32, gradient)
    return optax.tree.norm(scaled_down) * 2.0**32


def _adam(
    state: TrainState, gradient: Params, learning_rate: Array, finite: Array
) -> tuple[Params, optax.OptState]:
    """Parameters and moments after one step of Adam if `finite`, else the old ones.

    The arithmetic and the state are those of `optax.scale_by_adam`. The barrier makes
    XLA compute the parameters from the stored moments; otherwise it would compute the
    moments twice and could not overwrite the old ones.
    """

    b1, b2, epsilon = 0.9, 0.999, 1e-8
    old = state.optimizer
    new = optax.ScaleByAdamState(
        count=optax.safe_increment(old.count),
        mu=optax.tree.update_moment(gradient, old.mu, b1, 1),
        nu=optax.tree.update_moment_per_elem_norm(gradient, old.nu, b2, 2),
    )
    new = jax.lax.optimization_barrier(_kept(finite, new, old))
    mean = optax.tree.bias_correction(new.mu, b1, new.count)
    square = optax.tree.bias_correction(new.nu, b2, new.count)
    params = jax.tree.map(
        lambda p, m, v: p - learning_rate * (m / (jnp.sqrt(v) + epsilon)),
        state.params,
        mean,
        square,
    )
    return _kept(finite, params, state.params), new
