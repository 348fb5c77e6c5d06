"""Importance-weighted objective of the released MMVAE.

beta is inside the logarithm, so that an objective returns its loss in addition to its
terms. The published code has no beta, and Daunhawer et al. (2022), who vary it in
Fig. 12, do not say where it is; here it is where MMVAE+ and MultiVae have it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import distributions, posteriors
from mmvae_jax.mathematics.elbo import (
    LogLikelihoods,
    fold_samples,
    observed_of,
    observed_terms,
    total,
)
from mmvae_jax.types import (
    OBSERVED,
    Array,
    Batch,
    Distribution,
    ObjectiveTerms,
    PRNGKey,
)

FORMS = ("loose", "tight")
ESTIMATORS = ("dreg", "iwae")


def importance_weighted(
    experts: Distribution,
    batch: Batch,
    key: PRNGKey,
    beta: Array,
    *,
    prior: Distribution,
    log_likelihoods: LogLikelihoods,
    num_samples: int,
    form: str = "loose",
    estimator: str = "dreg",
) -> tuple[Array, ObjectiveTerms]:
    """The objective of the official MMVAE of Shi et al. (2019).

    With K samples z_mk ~ q_m(z|x_m) of every expert and

        log w = sum_n log p(x_n|z) + beta (log p(z) - log (1/M) sum_j q_j(z|x_j)),

    it is (1/M) sum_m log (1/K) sum_k w_mk ("loose", as released) or
    log 1/(MK) sum_mk w_mk ("tight"). The denominator is the density of the whole
    mixture, not of the sampled component. For beta != 1 the loss is not a bound on
    log p(X); the terms still are.

    The estimator changes the gradient, not the value. "iwae" is the unbiased derivative
    of the loss. "dreg" is the doubly reparameterised gradient of Tucker et al. (2018)
    as in the official code: the encoders' parameters are constants in log q, and the
    gradient with respect to z is multiplied by the normalised weight again. Both are
    equal for decoders and prior. For the encoders, "dreg" has less variance, and none
    if the posterior is exact. It is unbiased if beta = 1 and either M = 1, or the form
    is loose and K = 1, or all experts agree. Otherwise it is biased, for two reasons:
    its identity holds for samples of the density in the denominator, but z_mk are
    samples of one component; and with beta the factor would be 1 - beta (1 - weight).

    Args:
      experts: fields [M, B, D].
      batch: modality -> [B, ...].
      key: random key.
      beta: float [].
      prior: p(z), fields [D].
      log_likelihoods: one function per modality, called once for all M K samples;
        "dreg" calls it again with the same values, which XLA merges.
      num_samples: K.
      form: one of FORMS.
      estimator: one of ESTIMATORS.

    Returns:
      The loss [], and ObjectiveTerms, fields [B], of the single-sample bound (beta =
      K = 1), averaged over the M K samples.
    """
    observed = observed_of(batch, len(log_likelihoods))
    uniform = posteriors.uniform_weights(observed)
    # Finite also if nothing is observed and all shares are 0.
    density_weights = jnp.where(jnp.any(observed, axis=0), uniform, 1.0)

    def log_weights(z: Array, experts: Distribution) -> tuple[Array, Any]:
        """log w, log-likelihoods, log q - log p: all [K, M, B]."""
        values = {m: fold_samples(f, z, batch[m]) for m, f in log_likelihoods.items()}
        log_likelihood = observed_terms(values, observed)
        log_q = posteriors.mixture_log_prob(experts, density_weights, z)
        kl = log_q - distributions.log_prob(prior, z)
        return total(log_likelihood.values()) - beta * kl, (log_likelihood, kl)

    z = distributions.sample(experts, key, (num_samples,))
    value, (log_likelihood, kl) = weighted_loss(
        log_weights, z, experts, uniform, form, estimator
    )
    zeros = jnp.zeros_like(kl)
    return value, ObjectiveTerms(log_likelihood, kl, zeros, zeros)


def weighted_loss(
    log_weights: Callable[[Array, Distribution], tuple[Array, Any]],
    z: Array,
    experts: Distribution,
    shares: Array,
    form: str,
    estimator: str,
) -> tuple[Array, Any]:
    """The importance-weighted loss of samples.

    Args:
      log_weights: (z, experts) -> log w [K, M, B], and other values of that shape.
      z: [K, M, B, D], samples of the experts.
      experts: fields [M, B, D].
      shares: [M, 1 or B], weights of the experts: equal for the observed ones, summing
        to 1.
      form: one of FORMS.
      estimator: one of ESTIMATORS.

    Returns:
      The loss [], and the means [B] of the other values over the samples of all
      observed experts.
    """
    values, others = log_weights(z, experts)
    axes: tuple[int, ...] = (0,)
    logits = values
    if form == "tight":
        # The mean over experts is inside the logarithm.
        is_used = shares > 0
        log_shares = jnp.log(jnp.where(is_used, shares, 1.0))
        axes, logits = (0, 1), jnp.where(is_used, values + log_shares, -jnp.inf)
    bound = jax.nn.logsumexp(logits, axes) - math.log(len(values))
    if estimator == "dreg":
        normalised = jax.lax.stop_gradient(jax.nn.softmax(logits, axes))
        scaled = scale_gradient(z, normalised[..., None])
        again, _ = log_weights(scaled, jax.lax.stop_gradient(experts))
        surrogate = jnp.sum(normalised * again, axes)
        # The value is that of the bound, the gradient that of the surrogate.
        bound = jax.lax.stop_gradient(bound - surrogate) + surrogate

    def mean_over_experts(x: Array) -> Array:
        return jnp.sum(shares * x, axis=0)

    if form == "loose":
        bound = mean_over_experts(bound)
    means = jax.tree.map(lambda x: mean_over_experts(jnp.mean(x, axis=0)), others)
    return -jnp.mean(bound), means


def unimodal_importance_weighted(
    experts: Distribution,
    batch: Batch,
    key: PRNGKey,
    beta: Array,
    *,
    prior: Distribution,
    log_likelihoods: LogLikelihoods,
    **options: Any,
) -> tuple[Array, ObjectiveTerms]:
    """The sum of the `importance_weighted` objectives of M independent VAEs.

    Args:
      experts: fields [M, B, d], q(z_m|x_m); d is the latent size of one VAE.
      batch: modality -> [B, ...].
      key: random key.
      beta: float [].
      prior: fields [M, d], the prior of every VAE.
      log_likelihoods: modality -> function (z_m [N, d], x_m) -> [N].
      **options: num_samples and estimator of `importance_weighted`; for one modality
        its two forms are equal.

    Returns:
      The sums over the M VAEs of their losses [] and terms, fields [B].
    """
    keys = jax.random.split(key, len(log_likelihoods))
    observed = observed_of(batch, len(log_likelihoods))
    losses, terms = [], []
    for i, (modality, own) in enumerate(log_likelihoods.items()):
        own_loss, own_terms = importance_weighted(
            jax.tree.map(lambda field, i=i: field[i : i + 1], experts),
            {modality: batch[modality], OBSERVED: observed[i : i + 1].T},
            keys[i],
            beta,
            prior=jax.tree.map(lambda field, i=i: field[i], prior),
            log_likelihoods={modality: own},
            **options,
        )
        losses.append(own_loss)
        terms.append(own_terms)
    log_likelihood = {m: x for one in terms for m, x in one.log_likelihood.items()}
    kl = total(one.kl for one in terms)
    zeros = jnp.zeros_like(kl)
    return total(losses), ObjectiveTerms(log_likelihood, kl, zeros, zeros)


@jax.custom_vjp
def scale_gradient(z: Array, scale: Array) -> Array:
    """Returns z; multiplies its gradient by `scale` (a constant, broadcast to z)."""
    del scale
    return z


def _scale_gradient_forward(z: Array, scale: Array) -> tuple[Array, Array]:
    return z, scale


def _scale_gradient_backward(scale: Array, gradient: Array) -> tuple[Array, Array]:
    return gradient * scale, jnp.zeros_like(scale)


scale_gradient.defvjp(_scale_gradient_forward, _scale_gradient_backward)
