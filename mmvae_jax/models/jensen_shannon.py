"""mmJSD: a Jensen-Shannon divergence with a dynamic prior."""

from collections.abc import Mapping
from typing import Any

from mmvae_jax import objectives, posteriors
from mmvae_jax.models.parts import (
    assemble,
    encode,
    log_likelihoods,
    make_networks,
    standard_latents,
)
from mmvae_jax.objectives import TermWeights
from mmvae_jax.types import Array, Batch, Gaussian, MultimodalVAE, Params, PRNGKey

# The divergence from the dynamic prior stands where the KL to the prior would.
WEIGHTS = TermWeights(kl=0.0)


def jensen_shannon_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> MultimodalVAE:
    """mmJSD without modality-specific subspaces (Sutter et al., 2020).

    The posterior of any subset is the mixture of its experts, as published; the
    prior, a component of the training objective, is none of it.

    Args:
      config: as for `make_model`; model.mmjsd_decode_prior.
      shapes: modality -> shape of one example.
    """
    nets = make_networks(config, shapes, config.model.latent_dim)
    decode_prior = config.model.mmjsd_decode_prior
    estimator = config.objective.subset_estimator

    def objective(params: Params, batch: Batch, key: PRNGKey, beta: Array):
        terms = objectives.jensen_shannon_elbo(
            encode(nets, params, batch),
            batch,
            key,
            log_likelihoods=log_likelihoods(nets, params),
            decode_prior=decode_prior,
            estimator=estimator,
        )
        return objectives.loss(terms, beta, WEIGHTS), terms

    def posterior(
        params: Params, experts: Gaussian, subset: Array, key: PRNGKey
    ) -> Gaussian:
        del params
        return posteriors.expert_component(key, experts, subset)

    def mixture_posterior(
        params: Params, experts: Gaussian, observed: Array
    ) -> tuple[Gaussian, Array]:
        del params
        return experts, posteriors.uniform_weights(posteriors.append_axes(observed, 2))

    return assemble(nets, standard_latents((config.model.latent_dim,)))._replace(
        objective=objective, posterior=posterior, mixture_posterior=mixture_posterior
    )
