"""Joint log-likelihood log p(X), by importance sampling.

The estimate of Daunhawer et al. (2022), Fig. 7, after Sutter et al. (2021): the
proposal is the posterior given *all* modalities, so it measures reconstruction
as much as generation (their App. C.2).

The published code has an error: it writes samples importance-major but reads them
example-major. Each log-mean-exp is then over one sample of L different examples, which
biases it upwards. Here it is over the L weights of one example.
"""

from collections.abc import Iterator
from functools import partial, singledispatch

import jax
import numpy as np
from scipy.special import logsumexp

from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.generate import batches, observed_subset
from mmvae_jax.evaluation.metric import EvaluationData, Undefined
from mmvae_jax.mathematics import distributions
from mmvae_jax.types import (
    Batch,
    Distribution,
    Gaussian,
    Laplace,
    MultimodalVAE,
    Params,
    PRNGKey,
)

_Draws = Iterator[tuple[np.ndarray, np.ndarray]]


def log_likelihood(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_samples: int = 12,
    proposal: str = "joint",
) -> dict[str, float]:
    """Mean over test examples of the importance-weighted estimate of log p(X).

    Burda et al. (2016), Eq. (8): log (1/L) sum_l p(X|z_l) p(z_l) / q(z_l), a lower
    bound in expectation that tightens with L, if p(z) has a closed form. If p(z) is a
    flow, log p(z) has the error of an ODE solver, and the bound holds up to it. If its
    divergence is estimated too (`flows.log_density`), p(z) is too large in expectation,
    and the value for L > 1 is no bound. Only the observed modalities of an example
    count.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split.
      key: random key of the samples.
      num_samples: L; 12 as published.
      proposal: "joint": z ~ model.posterior given all modalities, with the density of
        the drawn component; "mixture": z from the mixture of all components, with the
        density of the mixture.

    Returns:
      log_likelihood, nats per example, and log_likelihood/standard_error, the standard
      error of this mean over the test examples.

    Raises:
      UsageError: `proposal` is unknown or `num_samples` is not positive.
    """
    estimates = np.concatenate(
        list(
            estimate_batches(
                model,
                params,
                data.test,
                data.batch_size,
                key,
                num_samples=num_samples,
                proposal=proposal,
            )
        )
    )
    error: float = Undefined("one test example has no standard error")
    if estimates.size > 1:
        with np.errstate(invalid="ignore"):  # values may not be finite
            error = float(estimates.std(ddof=1) / np.sqrt(estimates.size))
    return {
        "log_likelihood": float(estimates.mean()),
        "log_likelihood/standard_error": error,
    }


def estimate_batches(
    model: MultimodalVAE,
    params: Params,
    split: Split,
    batch_size: int,
    key: PRNGKey,
    *,
    num_samples: int = 12,
    proposal: str = "joint",
) -> Iterator[np.ndarray]:
    """The estimate of each example, batch by batch; arguments of `log_likelihood`.

    Yields:
      float64 [B] in nats; the last batch may be smaller.

    Raises:
      UsageError: as `log_likelihood`.
    """
    if proposal not in PROPOSALS:
        raise UsageError(
            f"log_likelihood proposal {proposal!r} is none of {', '.join(PROPOSALS)}"
        )
    if num_samples < 1:
        raise UsageError(f"log_likelihood num_samples must be >= 1, not {num_samples}")
    is_complete = split.observed is None or split.observed.all()
    is_drawn = model.draws_missing and not is_complete
    # The posterior then has no density, but the mixture's only component has.
    draw = PROPOSALS["mixture" if is_drawn else proposal]
    for index, (batch, num_valid) in enumerate(batches(split, batch_size)):
        batch_key = jax.random.fold_in(key, index)
        experts = model.encode(params, batch)
        subset = observed_subset(model, batch)
        draws = draw(model, params, experts, subset, batch_key, num_samples)
        own = model
        if is_drawn:
            own = model._replace(log_prior=partial(model.log_prior, subset=subset))
        yield importance_estimate(own, params, batch, draws)[:num_valid]


def importance_estimate(
    model: MultimodalVAE, params: Params, batch: Batch, draws: _Draws
) -> np.ndarray:
    """log of the mean importance weight of each example.

    Args:
      model: for one sweep member.
      params: parameters.
      batch: modality -> float [B, ...].
      draws: L pairs (z [B, D], log q(z) [B]), used one at a time: memory does not grow
        with L, and the decoder keeps its compiled batch size.

    Returns:
      float64 [B], nats.
    """
    log_sum, num = np.array(-np.inf), 0
    for z, log_proposal in draws:
        log_likelihoods = model.log_likelihood(params, z, batch)
        log_joint = np.asarray(model.log_prior(params, z), np.float64)
        for values in log_likelihoods.values():
            log_joint = log_joint + np.asarray(values, np.float64)
        # A running log-sum-exp, because log-weights are in the thousands.
        with np.errstate(invalid="ignore"):  # NaN if the model has diverged
            log_sum = np.logaddexp(log_sum, log_joint - log_proposal)
        num += 1
    return log_sum - np.log(num)


def joint_draws(
    model: MultimodalVAE,
    params: Params,
    experts: Distribution,
    subset: np.ndarray,
    key: PRNGKey,
    num_samples: int,
) -> _Draws:
    """Samples of the posterior given all observed modalities.

    If the posterior is a mixture, each sample is drawn from one component and has the
    density of that component: its weight then has the expectation p(X).

    Args:
      model: for one sweep member.
      params: parameters.
      experts: of its encoder, [M, B, D].
      subset: bool [M] or [M, B], the observed modalities.
      key: random key of the samples.
      num_samples: L.

    Yields:
      (z float [B, D], log q(z) float64 [B] in nats), L times.
    """
    for sample in range(num_samples):
        keys = jax.random.split(jax.random.fold_in(key, sample))
        posterior = model.posterior(params, experts, subset, keys[0])
        z = np.asarray(distributions.sample(posterior, keys[1]))
        yield z, log_density(_on_host(posterior), z)


def mixture_draws(
    model: MultimodalVAE,
    params: Params,
    experts: Distribution,
    subset: np.ndarray,
    key: PRNGKey,
    num_samples: int,
) -> _Draws:
    """Samples of the mixture of all components, stratified over the L samples.

    Each example takes the components in order from a random offset, so that each
    component gets L times its weight samples, up to rounding.

    Args:
      model: for one sweep member.
      params: parameters.
      experts: of its encoder, [M, B, D].
      subset: bool [M] or [M, B], the observed modalities.
      key: random key of the samples.
      num_samples: L.

    Yields:
      (z float [B, D], log of the mixture density float64 [B] in nats), L times.
    """
    components, shares = model.mixture_posterior(params, experts, subset)
    components = _on_host(components)
    weights = np.asarray(shares, np.float64)
    weights = weights / weights.sum(axis=0)
    with np.errstate(divide="ignore"):  # a weight may be zero
        log_weights = np.log(weights)
    edges = np.cumsum(weights, axis=0)
    # A sum may round to less than 1.
    last = len(weights) - 1 - np.argmax(weights[::-1] > 0, axis=0)
    rows = np.arange(components.mean.shape[1])
    offset_key, noise_key = jax.random.split(key)
    offsets = np.asarray(jax.random.uniform(offset_key, rows.shape), np.float64)
    for sample in range(num_samples):
        quantiles = (sample + offsets) / num_samples
        chosen = np.minimum((edges <= quantiles).sum(axis=0), last)
        component = type(components)(*(field[chosen, rows] for field in components))
        sample_key = jax.random.fold_in(noise_key, sample)
        z = np.asarray(distributions.sample(component, sample_key))
        yield z, logsumexp(log_weights + log_density(components, z), axis=0)


@singledispatch
def log_density(q: Distribution, z: np.ndarray) -> np.ndarray:
    """Log-density of a diagonal distribution, in float64.

    `distributions.log_prob` in NumPy: sums in float32 would lose digits that
    differences of large log-densities need.

    Args:
      q: Gaussian or Laplace, fields [..., D], broadcast with `z`.
      z: float [..., D].

    Returns:
      float64 [...], nats.
    """
    raise TypeError(f"not a distribution: {type(q)}")


@log_density.register
def _(q: Gaussian, z: np.ndarray) -> np.ndarray:
    mean, log_variance = (np.asarray(field, np.float64) for field in q)
    squares = (z - mean) ** 2 * np.exp(-log_variance)
    return -0.5 * (squares + log_variance + np.log(2 * np.pi)).sum(axis=-1)


@log_density.register
def _(q: Laplace, z: np.ndarray) -> np.ndarray:
    mean, log_scale = (np.asarray(field, np.float64) for field in q)
    distances = np.abs(z - mean) * np.exp(-log_scale)
    return -(distances + log_scale + np.log(2)).sum(axis=-1)


def _on_host(q: Distribution) -> Distribution:
    """A distribution as NumPy arrays in host memory."""
    return jax.tree.map(np.asarray, q)


PROPOSALS = {"joint": joint_draws, "mixture": mixture_draws}
