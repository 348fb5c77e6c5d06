"""Mixture-based multimodal VAEs: MVAE, MVAE+, MMVAE, MoPoE-VAE and all between."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mmvae_jax import objectives, posteriors, subsets
from mmvae_jax.models.parts import (
    assemble,
    encode,
    log_likelihoods,
    make_networks,
    standard_latents,
)
from mmvae_jax.subsets import SubsetMixture
from mmvae_jax.types import Array, Batch, Gaussian, MultimodalVAE, Params, PRNGKey


def mixture_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    mixture: Callable[[int, str], SubsetMixture],
    is_subsampled: bool = False,
) -> MultimodalVAE:
    """A mixture-based multimodal VAE (Definition 3), or MVAE+ (Eq. 84).

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      mixture: (M, prior_expert choice) -> the model's subsets and weights.
      is_subsampled: whether the unimodal ELBOs are added (MVAE+).
    """
    nets = make_networks(config, shapes, config.model.latent_dim)
    subset_mixture = mixture(len(shapes), config.model.prior_expert)
    bound = (
        objectives.subsampled_elbo
        if is_subsampled
        else partial(
            objectives.subset_elbo, estimator=config.objective.subset_estimator
        )
    )

    def objective(params: Params, batch: Batch, key: PRNGKey, beta: Array):
        terms = bound(
            encode(nets, params, batch),
            batch,
            key,
            mixture=subset_mixture,
            log_likelihoods=log_likelihoods(nets, params),
        )
        return objectives.loss(terms, beta), terms

    def posterior(
        params: Params, experts: Gaussian, subset: Array, key: PRNGKey
    ) -> Gaussian:
        del params
        given = posteriors.conditional_mixture(subset_mixture, subset)
        return posteriors.posterior_component(key, experts, given)

    def mixture_posterior(
        params: Params, experts: Gaussian, observed: Array
    ) -> tuple[Gaussian, Array]:
        del params
        return posteriors.observed_mixture(experts, subset_mixture, observed)

    return assemble(nets, standard_latents((config.model.latent_dim,)))._replace(
        objective=objective, posterior=posterior, mixture_posterior=mixture_posterior
    )


def custom_model(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> MultimodalVAE:
    """Any set of subsets and weights: config.model.subsets, .subset_weights."""

    def mixture(num_modalities: int, prior_expert: str) -> SubsetMixture:
        return subsets.custom_subsets(
            num_modalities,
            config.model.subsets,
            config.model.subset_weights,
            prior_expert,
        )

    return mixture_model(config, shapes, mixture=mixture)
