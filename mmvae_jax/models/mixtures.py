"""Mixture-based multimodal VAEs: MVAE, MVAE+, MMVAE, MoPoE-VAE and all between."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mmvae_jax.mathematics import components, elbo, posteriors, subsets
from mmvae_jax.mathematics.subsets import SubsetMixture
from mmvae_jax.models.options import Option, one_of
from mmvae_jax.models.parts import (
    assemble,
    encode,
    log_likelihoods,
    make_networks,
    standard_latents,
)
from mmvae_jax.types import (
    AnyArray,
    Array,
    Batch,
    Gaussian,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
)

# Where the prior is one of the product's experts: "paper" (MVAE), "released" (MoPoE's
# full subset too), "always", "never".
PRIOR_EXPERT = one_of(*subsets.PRIOR_EXPERT_CHOICES)
# How the expectation over subsets is taken: one decoding per example, the batch
# balanced over subsets ("stratified") or not ("random"); or one decoding per example
# and subset ("exact").
SUBSET_ESTIMATOR = one_of(*elbo.SUBSET_ESTIMATORS)

OPTIONS = {"prior_expert": PRIOR_EXPERT, "subset_estimator": SUBSET_ESTIMATOR}
SUBSAMPLED_OPTIONS = {"prior_expert": PRIOR_EXPERT}
CUSTOM_OPTIONS = OPTIONS | {
    "subsets": Option(()),  # tuples of modality indices, ((0,), (0, 1))
    "subset_weights": Option(()),  # omega_A, summing to 1; () = uniform
}


def mixture_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any],
    *,
    mixture: Callable[[int, str], SubsetMixture],
    is_subsampled: bool = False,
) -> MultimodalVAE:
    """A mixture-based multimodal VAE (Definition 3), or MVAE+ (Eq. 84).

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      options: those of OPTIONS; of SUBSAMPLED_OPTIONS for MVAE+.
      mixture: (M, prior_expert choice) -> the model's subsets and weights.
      is_subsampled: whether the unimodal ELBOs are added (MVAE+).
    """
    nets = make_networks(config, shapes, config.model.latent_dim)
    subset_mixture = mixture(len(shapes), options["prior_expert"])
    bound = (
        elbo.subsampled_elbo
        if is_subsampled
        else partial(elbo.subset_elbo, estimator=options["subset_estimator"])
    )

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        terms = bound(
            encode(nets, params, batch),
            batch,
            key,
            mixture=subset_mixture,
            log_likelihoods=log_likelihoods(nets, params),
        )
        return elbo.loss(terms, beta), terms

    def posterior(
        params: Params, experts: Gaussian, subset: Array, key: PRNGKey
    ) -> Gaussian:
        del params
        given = posteriors.available_subsets(
            subset_mixture, subset, is_exact_preferred=True
        )
        return components.posterior_component(key, experts, given)

    def mixture_posterior(
        params: Params, experts: Gaussian, observed: Array
    ) -> tuple[Gaussian, AnyArray]:
        del params
        return posteriors.observed_mixture(experts, subset_mixture, observed)

    def posterior_components(
        params: Params, experts: Gaussian, subset: Array
    ) -> tuple[Gaussian, AnyArray]:
        del params
        return posteriors.observed_mixture(
            experts, subset_mixture, subset, is_exact_preferred=True
        )

    return assemble(nets, standard_latents((config.model.latent_dim,)))._replace(
        objective=objective,
        posterior=posterior,
        mixture_posterior=mixture_posterior,
        posterior_components=posterior_components,
    )


def custom_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """Mixture over any subsets with any weights, the options of CUSTOM_OPTIONS."""

    def mixture(num_modalities: int, prior_expert: str) -> SubsetMixture:
        return subsets.custom_subsets(
            num_modalities,
            options["subsets"],
            options["subset_weights"],
            prior_expert,
        )

    return mixture_model(config, shapes, options, mixture=mixture)
