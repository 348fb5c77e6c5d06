"""The pure train step of one sweep member."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmvae_jax.data.dataset import to_unit_interval
from mmvae_jax.mathematics import elbo
from mmvae_jax.types import Array, Batch, Hyper, MultimodalVAE, Params, PRNGKey

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

    def loss(
        params: Params, hyper: Hyper, key: PRNGKey, batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        # Masks, if there are any, go through unchanged.
        scaled_batch = {name: to_unit_interval(x) for name, x in batch.items()}
        value, terms = model.objective(params, scaled_batch, key, hyper.beta)
        metrics = {
            "train/loss": value,
            "train/elbo": jnp.mean(elbo.elbo(terms)),
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
