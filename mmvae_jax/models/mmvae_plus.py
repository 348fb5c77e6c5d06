"""MMVAE+: a mixture of experts with shared and private latent vectors.

Importance-weighted, with auxiliary priors for cross-modal reconstruction: the objective
of Palumbo et al. (2023), as released.

The expert of modality m is q_m(z|x_m) q_m(w|x_m), with a shared vector z and a private
vector w. With K samples z_mk, w_mk of it and w~_n ~ r_n(w) of auxiliary priors,

    log w_mk = log p(x_m|z, w_m) + sum_{n != m} log p(x_n|z, w~_n)
        + beta (log p(z) + log p(w_m) - log (1/M) sum_j q_j(z|x_j)
                - log q_m(w_m|x_m)),

the objective is (1/M) sum_m log (1/K) sum_k w_mk, with the mean over modalities outside
the logarithm ("loose"). For K = 1 it is the ELBO of Palumbo et al. Only z carries
information of modality m about the others: z_mk is never decoded with their own w.

The gradient estimators are those of `importance.importance_weighted`: in "dreg", the
densities of z and w_m have constant parameters, and the gradients with respect to z_mk
and w_mk are weighted again. (The first release does neither, against its intention: its
log q keeps the encoders' parameters.) No density of the objective contains r_n; it
learns through its samples, by the plain derivative.

Two variants are options. With `self_gradient` False, z_mk is a constant in the
reconstruction of modality m, so that the shared vector learns only from reconstruction
across modalities (Märtens and Yau, 2024, MMVAE++). With `prior_components` S > 0,
p(z) = sum_c pi_c N(z; mu_c, I) over c = 1..S with learned mu and pi (Palumbo et al.,
2024, CMVAE). This is the exact sum over clusters, q(c|z) = p(c|z); unlike theirs,
clusters are not pruned after training.

Because no density contains r_n, the objective is a bound on log p(X) only for r_n = p.
The returned terms are always those of a bound: w~_n is a sample of a proposal r_n,
`kl` contains log r_n(w~_n) - log p(w~_n), and `auxiliary_kl` subtracts it again. Hence
the loss for K = 1 is `loss` of the terms.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import (
    components,
    distributions,
    elbo,
    importance,
    posteriors,
)
from mmvae_jax.models import official
from mmvae_jax.models.options import Option, number, one_of
from mmvae_jax.models.parts import (
    Latents,
    encode,
    log_likelihoods,
    make_networks,
)
from mmvae_jax.models.private import (
    PRIVATE_OPTIONS,
    log_mixture_prob,
    private_model,
    with_mixture_prior,
)
from mmvae_jax.types import (
    Array,
    Batch,
    Distribution,
    Gaussian,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
)

# The prior is fixed. learned_prior: whether the scales of the auxiliary priors are
# learned; they sum to the dimension.
OPTIONS = {
    **official.OPTIONS,
    **PRIVATE_OPTIONS,
    # Whether z also learns from the reconstruction of its own modality.
    "self_gradient": Option(True),
    # Gaussians in the prior of z; 0: one distribution of the posteriors' family.
    "prior_components": number(0, 0),
}
# One sample, and Gaussian posteriors.
CLUSTERED_OPTIONS = OPTIONS | {
    "posterior": one_of("gaussian", "laplace"),
    "num_samples": number(1, 1),
    "prior_components": number(40, 0),
}
# Largest initial mean of a component of p(z) in each dimension.
_LARGEST_MEAN = 1.0


def mmvae_plus_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """MMVAE+ of Palumbo et al. (2023), the equation above.

    Each modality has separate encoders for z and w. p(z) and p(w) have scale 1. The
    auxiliary priors r_n have mean 0; they are used only in training, for reconstruction
    across modalities. Given a subset, q(z|x_A) is the mixture of the observed experts.
    Networks, likelihoods and Adam are those of all other models.

    Args:
      config: as for `make_model`; model.latent_dim is the dimension of z.
      shapes: modality -> shape of one example.
      options: those of OPTIONS; posterior is "laplace" (scales d times a softmax, for z
        and w separately, as in the official MMVAE) or "gaussian". Without
        learned_prior, r_n is p(w).
    """
    shared_dim = config.model.latent_dim
    private_dim = options["private_dim"] or shared_dim
    nets = make_networks(config, shapes, shared_dim, private_dim)
    family, is_learned = options["posterior"], options["learned_prior"]
    auxiliary_shape = (len(shapes), private_dim)

    latents = _latents(shared_dim, auxiliary_shape, family, is_learned)
    num_components = options["prior_components"]

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        logits = (
            params["auxiliary_priors"] if is_learned else jnp.zeros(auxiliary_shape)
        )
        # p(w) is the same for all modalities.
        own, _ = distributions.split(latents.prior(params), shared_dim + private_dim)
        return private_importance_weighted(
            latents.experts(encode(nets, params, batch)),
            batch,
            key,
            beta,
            shared_dim=shared_dim,
            prior=own,
            auxiliary_priors=official.centred(logits, family),
            log_likelihoods=log_likelihoods(nets, params),
            num_samples=options["num_samples"],
            form=options["form"],
            estimator=options["estimator"],
            log_shared_prior=partial(log_mixture_prob, params["clusters"])
            if num_components
            else None,
            has_self_gradient=options["self_gradient"],
        )

    def init(key: PRNGKey) -> Params:
        own_key, mean_key = jax.random.split(key)
        shape, most = (num_components, shared_dim), _LARGEST_MEAN
        return model.init(own_key) | {
            "clusters": {
                "mean": jax.random.uniform(mean_key, shape, minval=-most, maxval=most),
                "log_weight": jnp.zeros(num_components),
            }
        }

    model = private_model(
        nets, latents, shared_dim, options["private_draw"], components.expert_component
    )

    def mixture_posterior(
        params: Params, experts: Distribution, observed: Array
    ) -> tuple[Distribution, Array]:
        # The drawn component affects only the shared part.
        drawn = model.posterior(params, experts, observed, jax.random.key(0))
        shared, _ = distributions.split(experts, shared_dim)
        _, private = distributions.split(drawn, shared_dim)
        own = jax.tree.map(
            lambda field: jnp.broadcast_to(field, (len(shapes), *field.shape)), private
        )
        weights = posteriors.uniform_weights(posteriors.append_axes(observed, 2))
        return distributions.join(shared, own), weights

    made = model._replace(objective=objective, mixture_posterior=mixture_posterior)
    if not num_components:
        return made
    return with_mixture_prior(made, latents, shared_dim, "clusters")._replace(init=init)


def _latents(
    shared_dim: int, private_shape: tuple[int, int], family: str, is_learned: bool
) -> Latents:
    """Separate experts of z and w, a fixed prior, and the auxiliary priors.

    Args:
      shared_dim: dimensions of z.
      private_shape: (M, dimensions of w).
      family: "laplace" or "gaussian".
      is_learned: whether the auxiliary priors have parameters.
    """
    shape = (shared_dim + math.prod(private_shape),)

    def experts(emitted: Gaussian) -> Distribution:
        parts = distributions.split(emitted, shared_dim)
        return distributions.join(
            *(official.experts_of(part, family) for part in parts)
        )

    def init() -> dict[str, Array]:
        return {"auxiliary_priors": jnp.zeros(private_shape)} if is_learned else {}

    def prior(params: Params) -> Distribution:
        del params  # it is fixed
        return official.centred(jnp.zeros(shape), family)

    return Latents(shape, experts, init, prior)


def private_importance_weighted(
    experts: Distribution,
    batch: Batch,
    key: PRNGKey,
    beta: Array,
    *,
    shared_dim: int,
    prior: Distribution,
    auxiliary_priors: Distribution,
    log_likelihoods: elbo.LogLikelihoods,
    num_samples: int,
    form: str = "loose",
    estimator: str = "dreg",
    log_shared_prior: Callable[[Array], Array] | None = None,
    has_self_gradient: bool = True,
) -> tuple[Array, ObjectiveTerms]:
    """The objective of the released MMVAE+ (equation at the top of this file).

    Args:
      experts: fields [M, B, d + e], shared dimensions first.
      batch: modality -> [B, ...].
      key: random key.
      beta: float [].
      shared_dim: d.
      prior: p(z) p(w), fields [d + e].
      auxiliary_priors: r_n(w), fields [M, e].
      log_likelihoods: modality -> function (z and w, [N, d + e], x_n) -> [N].
      num_samples: K.
      form: one of `importance.FORMS`; "tight" is unpublished.
      estimator: one of `importance.ESTIMATORS`.
      log_shared_prior: z [..., d] -> log p(z) [...]; None: that of `prior`.
      has_self_gradient: whether z also learns from its own modality.

    Returns:
      The loss [], and ObjectiveTerms, fields [B], of the single-sample bound (beta =
      K = 1), averaged over the M K samples.
    """
    num_modalities = len(log_likelihoods)
    observed = elbo.observed_of(batch, num_modalities)
    uniform = posteriors.uniform_weights(observed)
    own_key, auxiliary_key = jax.random.split(key)
    samples = distributions.sample(experts, own_key, (num_samples,))
    # One w~ per sample, example and pair of modalities: [K, M, B, M, e].
    shape = samples.shape[:-1]
    auxiliary = distributions.sample(auxiliary_priors, auxiliary_key, shape)
    private_prior = distributions.split(prior, shared_dim)[1]
    is_other = ~jnp.eye(num_modalities, dtype=bool)[:, None]
    excess = distributions.log_prob(auxiliary_priors, auxiliary)
    excess -= distributions.log_prob(private_prior, auxiliary)
    excess = jnp.sum(jnp.where(is_other & observed.T, excess, 0.0), axis=-1)

    def log_weights(z: Array, experts: Distribution) -> tuple[Array, Any]:
        """log w, log-likelihoods, log q - log p, log r - log p: all [K, M, B]."""
        shared, private = distributions.split(z, shared_dim)
        values = {}
        for n, (m, f) in enumerate(log_likelihoods.items()):
            w = jnp.where(is_other[..., n, None], auxiliary[..., n, :], private)
            z_n = shared
            if not has_self_gradient:
                constant = jax.lax.stop_gradient(shared)
                z_n = jnp.where(is_other[..., n, None], shared, constant)
            own = distributions.join(z_n, w)
            values[m] = elbo.fold_samples(f, own, batch[m])
        log_likelihood = elbo.observed_terms(values, observed)
        shared_experts, private_experts = distributions.split(experts, shared_dim)
        kl = posteriors.mixture_log_prob(shared_experts, uniform, shared)
        kl += distributions.log_prob(private_experts, private)
        if log_shared_prior is None:
            kl -= distributions.log_prob(prior, z)
        else:
            kl -= log_shared_prior(shared)
            kl -= distributions.log_prob(private_prior, private)
        value = elbo.total(log_likelihood.values()) - beta * kl
        return value, (log_likelihood, kl, excess)

    value, (log_likelihood, kl, excess) = importance.weighted_loss(
        log_weights, samples, experts, uniform, form, estimator
    )
    return value, ObjectiveTerms(
        log_likelihood, kl + excess, jnp.zeros_like(kl), -excess
    )
