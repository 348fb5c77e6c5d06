"""Samplers: densities fitted to latents, for unconditional examples.

A decoder is trained on the aggregate posterior q(z) = 1/N sum_n q(z|x_n), but the prior
p(z) may have mass elsewhere. A density fitted to samples of q(z) after training does
not change the model (Ghosh et al., 2020). For each part z_k of the latent vector
(`latent_parts`) it maximises the likelihood of z_n ~ q(z|x_n), with one sample per
training example, given its observed modalities:

    r_k = (z_k - mean) / deviation,   p(z) = prod_k p_k(r_k) / deviation

"gmm"   p_k is a mixture of Gaussians
"flow"  p_k is a rectified flow (`mathematics.flows`)

Parts are independent, as in the priors of the models. A joint density would add
dependence that the model lacks: coherence of unimodal VAEs, and dependence of private
vectors on the shared one.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import ArgumentError
from mmvae_jax.evaluation.generate import batches, latents_given, observed_subset
from mmvae_jax.evaluation.judges import training
from mmvae_jax.mathematics import flows
from mmvae_jax.networks.flows import MLPFlow
from mmvae_jax.training import loop, step, sweep
from mmvae_jax.training.execution import jit_precisely
from mmvae_jax.types import (
    PRIOR,
    SHARED,
    Array,
    Batch,
    MultimodalVAE,
    Params,
    PRNGKey,
)

# Largest number of (random) training examples; more hardly change a density.
_MOST_EXAMPLES = 10_000
_HELD_OUT = 0.1  # share of the latents that select the mixture
# Largest number of dimensions for full covariances, which are slow.
_MOST_FULL = 64
_SMALLEST_VARIANCE = 1e-4  # added to the variances of a mixture of whitened latents
_TOLERANCE = 1e-2  # of the likelihood of a mixture, in nats
_FITTING = threading.Lock()  # the limit on threads is global in the process
_WIDTH, _DEPTH, _BATCH = 128, 3, 256  # of flows; the width is at least that of latents
_LEARNING_RATE = 1e-3
_AVERAGED = 0.05  # share of the steps in the average of a flow's parameters
_SOLVER = (25, "heun")


class Sampler(NamedTuple):
    """A kind of density.

    Attributes:
      label: name in headings.
      fit: (r [P, N, d], seed, settings) -> a fitted density for each of P parts, None
        if the fit diverged; settings: the section `eval` of configs/base.py.
      draw: (fitted, key, num, d) -> r [num, d].
      citations: keys of its sources in references.bib.
    """

    label: str
    fit: Callable[[np.ndarray, int, Any], Sequence[Any]]
    draw: Callable[[Any, PRNGKey, int, int], Array]
    citations: tuple[str, ...]


class Mixture(NamedTuple):
    """A mixture of K Gaussians.

    Attributes:
      log_weights: float [K].
      means: float [K, d].
      factors: float [K, d, d], square roots of covariances (factor times transpose); or
        [K, d], standard deviations.
    """

    log_weights: Array
    means: Array
    factors: Array


class _FlowHyper(NamedTuple):
    """Hyper-parameters of the flows of P parts, each a field [P]."""

    learning_rate: Array
    part: Array  # index of the part


class _FlowSettings(NamedTuple):
    """Settings of the training of flows, as `training.fit_members` reads them."""

    num_steps: int
    seed: int
    batch_size: int = _BATCH


class _Part(NamedTuple):
    """A fitted density of one part of the latent vector, and its whitening."""

    fitted: Any
    moments: flows.Moments


def check(settings: Any, model: MultimodalVAE, train: Split) -> None:
    """Refuses a sampler that cannot be fitted.

    Args:
      settings: the section `eval` of configs/base.py.
      model: model of every member.
      train: the training split.

    Raises:
      ArgumentError: the model's latents cannot be fitted, or there are too few
        examples.
    """
    name = settings.sampler
    if name == PRIOR:
        return
    if model.draws_missing and len(model.latent_parts) > 1:
        raise ArgumentError(
            "{sampler}={!r} is not for this model, whose prior is a flow over all "
            "parts of the latent vector: a density for each part alone would lose what "
            "they share; leave it {!r}",
            name,
            PRIOR,
        )
    fewest = min(int(rows.sum()) for rows in _rows_of_parts(model, train))
    num = round(fewest * min(1.0, _MOST_EXAMPLES / train.num_examples))
    num_fitted = num - _num_held_out(num)
    most = max(settings.sampler_components)
    if name == "gmm" and most > num_fitted:
        raise ArgumentError(
            "{sampler}={!r} is fitted to {} training examples, which are fewer than "
            "the {} of {sampler_components}; give smaller numbers",
            name,
            num_fitted,
            most,
        )


def fit(
    settings: Any, model: MultimodalVAE, params: Params, train: Split, key: PRNGKey
) -> MultimodalVAE:
    """Replaces the prior of a model by a fitted density.

    Args:
      settings: the section `eval` of configs/base.py; `sampler` is not the prior.
      model: from `compile_model`.
      params: parameters of one member; the result is only for these.
      train: the training split.
      key: random key of the examples, the latents and the fit.

    Returns:
      The model whose `sample_prior` draws from the density, and whose `sampler` is its
      name. If a latent is not finite or the fit diverges, all draws are NaN.
    """
    sampler = SAMPLERS[settings.sampler]
    row_key, latent_key, seed_key = jax.random.split(key, 3)
    if train.num_examples > _MOST_EXAMPLES:
        rows = jax.random.permutation(row_key, train.num_examples)[:_MOST_EXAMPLES]
        train = train.take(np.sort(np.asarray(rows)))
    z = latents(model, params, train, latent_key, settings.batch_size)
    seed = int(jax.random.randint(seed_key, (), 0, np.iinfo(np.int32).max))
    sizes = [size for _, size in model.latent_parts] or [model.latent_dim]
    ends = np.cumsum(sizes)[:-1]
    own = zip(np.split(z, ends, 1), _rows_of_parts(model, train), strict=True)
    parts = _fit_parts(sampler, [part[rows] for part, rows in own], seed, settings)

    def sample_prior(params: Params, key: PRNGKey, num: int) -> Array:
        if parts is None:
            return jnp.full((num, sum(sizes)), jnp.nan)
        return _draw(parts, key, settings.sampler, num, tuple(sizes))

    return model._replace(sample_prior=sample_prior, sampler=settings.sampler)


def latents(
    model: MultimodalVAE, params: Params, split: Split, key: PRNGKey, batch_size: int
) -> np.ndarray:
    """One posterior sample per example, given its observed modalities.

    Args:
      model: from `compile_model`.
      params: parameters of one member.
      split: N examples.
      key: random key of the samples.
      batch_size: B.

    Returns:
      float [N, D].
    """
    found = []
    for index, (batch, num_valid) in enumerate(batches(split, batch_size)):
        keys = jax.random.split(jax.random.fold_in(key, index))
        experts = model.encode(params, batch)
        subset = observed_subset(model, batch)
        z = latents_given(model, params, experts, subset, keys)
        found.append(z[:num_valid])
    return np.concatenate(jax.device_get(found))


def _rows_of_parts(model: MultimodalVAE, split: Split) -> list[np.ndarray]:
    """The examples whose latents a part is fitted to, bool [N] for each part.

    For a part of one modality they are those that have it: the others have a draw of
    the prior there, or of another modality's posterior.
    """
    everything = np.ones(split.num_examples, bool)
    return [
        split.is_observed(name) if name in split.modalities else everything
        for name, _ in model.latent_parts or ((SHARED, model.latent_dim),)
    ]


def _fit_parts(
    sampler: Sampler, parts: Sequence[np.ndarray], seed: int, settings: Any
) -> list[_Part] | None:
    """Fits the densities of parts [N, d], any N and d.

    Returns:
      The density of each part; None if latents are not finite or a fit diverged.
    """
    moments = [flows.moments(z) for z in parts]
    pairs = zip(moments, map(jnp.asarray, parts), strict=True)
    whitened = [np.asarray(flows.whiten(*pair)) for pair in pairs]
    if not all(np.isfinite(r).all() for r in whitened):
        return None
    fitted: list[Any] = [None] * len(parts)
    for shape in dict.fromkeys(r.shape for r in whitened):
        places = [k for k, r in enumerate(whitened) if r.shape == shape]
        alike = np.stack([whitened[k] for k in places])
        for k, own in zip(places, sampler.fit(alike, seed, settings), strict=True):
            fitted[k] = own
    if any(own is None for own in fitted):
        return None
    return [_Part(*own) for own in zip(fitted, moments, strict=True)]


@partial(jit_precisely, static_argnames=("name", "num", "sizes"))
def _draw(
    parts: Sequence[_Part], key: PRNGKey, name: str, num: int, sizes: tuple[int, ...]
) -> Array:
    """Latent vectors [num, D] of all parts."""
    keys = jax.random.split(key, len(parts))
    drawn = [
        flows.unwhiten(part.moments, SAMPLERS[name].draw(part.fitted, own, num, size))
        for part, own, size in zip(parts, keys, sizes, strict=True)
    ]
    return jnp.concatenate(drawn, axis=-1)


# ---- mixtures of Gaussians


def _num_held_out(num: int) -> int:
    """Number of held-out latents, which select the mixture."""
    return max(1, round(_HELD_OUT * num))


def _fit_mixtures(r: np.ndarray, seed: int, settings: Any) -> list[Mixture]:
    """Fits the mixture of each part."""
    return [_fit_mixture(own, seed, settings.sampler_components) for own in r]


def _fit_mixture(r: np.ndarray, seed: int, sizes: Sequence[int]) -> Mixture:
    """Fits mixtures to latents [N, d]; returns the best on held-out latents.

    For diagonal and for full covariances, the numbers of components are tried in order
    until the likelihood decreases.
    """
    num, size = r.shape
    order = np.random.default_rng(seed).permutation(num)
    held_out, kept = np.split(np.float32(r[order]), [_num_held_out(num)])
    found: list[tuple[float, GaussianMixture]] = []
    for kind in ("diag", "full") if size <= _MOST_FULL else ("diag",):
        before = -np.inf
        for num_components in sorted(sizes):
            mixture = GaussianMixture(
                num_components,
                covariance_type=kind,
                tol=_TOLERANCE,
                reg_covar=_SMALLEST_VARIANCE,
                random_state=seed,
            )
            # The same bits on any number of cores, and faster on a busy machine.
            with _FITTING, threadpool_limits(1), warnings.catch_warnings():
                # Convergence does not matter: held-out latents judge the result.
                warnings.simplefilter("ignore", ConvergenceWarning)
                value = mixture.fit(kept).score(held_out)
            found.append((value, mixture))
            if value <= before:
                break
            before = value
    _, best = max(found, key=lambda one: one[0])
    is_full = best.covariance_type == "full"
    root = np.linalg.cholesky if is_full else np.sqrt
    parameters = (np.log(best.weights_), best.means_, root(best.covariances_))
    return Mixture(*(jnp.asarray(x, jnp.float32) for x in parameters))


def _draw_mixture(of: Mixture, key: PRNGKey, num: int, size: int) -> Array:
    """Samples r [num, d] of a mixture."""
    component_key, noise_key = jax.random.split(key)
    rows = jax.random.categorical(component_key, of.log_weights, shape=(num,))
    noise = jax.random.normal(noise_key, (num, size))
    if of.factors.ndim == 2:
        return of.means[rows] + of.factors[rows] * noise
    return of.means[rows] + jnp.einsum("nij,nj->ni", of.factors[rows], noise)


# ---- rectified flows


def _network(size: int) -> MLPFlow:
    """The network of the velocity of latents of d dimensions."""
    return MLPFlow(max(_WIDTH, size), _DEPTH)


def _velocity(params: Params, size: int) -> flows.Velocity:
    """The velocity of latents of d dimensions."""
    apply: Any = _network(size).apply
    return lambda r, t: apply(params, r, t)


def _fit_flows(r: np.ndarray, seed: int, settings: Any) -> list[Params]:
    """Trains the flows of all parts.

    Returns:
      The average of the parameters of each flow; None for a flow that diverged.
    """
    num_parts, _, size = r.shape
    network = _network(size)

    def init(key: PRNGKey) -> Params:
        params = network.init(key, jnp.zeros((1, size)), jnp.zeros(1))
        return {"flow": params, "average": params}

    def loss(
        params: Params, hyper: _FlowHyper, key: PRNGKey, batch: Any
    ) -> tuple[Array, dict[str, Array]]:
        data = batch["r"][:, hyper.part]
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, data.shape)
        times = flows.sample_times(time_key, len(data))
        velocity = _velocity(params["flow"], size)
        value = jnp.mean(flows.flow_matching_loss(velocity, data, noise, times))
        return value, {"train/loss": value}

    def scheduled(hyper: _FlowHyper, at: Array) -> _FlowHyper:
        factor = 0.5 * (1 + jnp.cos(jnp.pi * at / settings.sampler_steps))
        return hyper._replace(learning_rate=factor * hyper.learning_rate)

    decay = max(0.0, 1 - 1 / (_AVERAGED * settings.sampler_steps))

    def average(params: Params, batch: Batch, at: Array) -> Params:
        del batch
        now = flows.moving_average(params["flow"], params["average"], decay, at)
        return params | {"average": now}

    task = step.Task(
        init, loss, scheduled=scheduled, learns=("flow",), after_step=average
    )
    found, finite = training.fit_members(
        task,
        _FlowHyper(jnp.full(num_parts, _LEARNING_RATE), jnp.arange(num_parts)),
        {"r": np.moveaxis(np.asarray(r), 0, 1)},
        _FlowSettings(settings.sampler_steps, seed),
        loop.Events(),
    )
    return [
        sweep.member(found["average"], k) if finite[k] else None
        for k in range(num_parts)
    ]


def _draw_flow(params: Params, key: PRNGKey, num: int, size: int) -> Array:
    """Samples r [num, d] of a flow."""
    noise = jax.random.normal(key, (num, size))
    return flows.integrate(_velocity(params, size), noise, *_SOLVER)


# The table of fitted samplers; config.eval.sampler is one of them, or PRIOR.
SAMPLERS = {
    "gmm": Sampler("GMM", _fit_mixtures, _draw_mixture, ("ghosh2020variational",)),
    "flow": Sampler(
        "flow",
        _fit_flows,
        _draw_flow,
        ("ghosh2020variational", "liu2023flow", "lipman2023flow"),
    ),
}
