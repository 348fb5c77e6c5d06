"""Mixture-based multimodal VAEs: MVAE, MVAE+, MMVAE, MoPoE-VAE and others.

The same builder is used for WB-VAE, MWB-VAE, CoDE-VAE and HELVAE, whose pools of
experts are not products.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax.errors import UsageError, fields_of
from mmvae_jax.mathematics import components, elbo, posteriors, subsets
from mmvae_jax.mathematics.subsets import Pooling, SubsetMixture
from mmvae_jax.models.options import Option, number, one_of
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

# Subsets that have the prior as an expert: as in the "paper" (MVAE), as "released" (the
# full subset of MoPoE too), "always", "never".
PRIOR_EXPERT = one_of(*subsets.PRIOR_EXPERT_CHOICES)
# Estimator of the expectation over subsets: one decoding per example, with subsets
# balanced over the batch ("stratified") or not ("random"); or one decoding per example
# and subset ("exact").
SUBSET_ESTIMATOR = one_of(*elbo.SUBSET_ESTIMATORS)

OPTIONS = {"prior_expert": PRIOR_EXPERT, "subset_estimator": SUBSET_ESTIMATOR}
SUBSAMPLED_OPTIONS = {"prior_expert": PRIOR_EXPERT}
POOLED_OPTIONS = {"subset_estimator": SUBSET_ESTIMATOR}
# HELVAE pools densities of the whole latent "vector", or of each of its "dimensions".
HELVAE_OPTIONS = {"pooled_over": one_of(*subsets.POOLED_OVER)}
MOHELVAE_OPTIONS = HELVAE_OPTIONS | POOLED_OPTIONS
# Correlation rho of the errors of two experts.
CORRELATION = Option(0.5, lambda value: 0 <= value < 1, "{} must be in [0, 1), got {}")
CODE_OPTIONS = {
    "correlation": CORRELATION,
    # "exact", as released, decodes all subsets; learned weights need it.
    "subset_estimator": one_of("exact", "stratified", "random"),
    "learned_weights": Option(True),  # whether the weights of subsets are parameters
    "entropy_weight": number(1000.0, 0),  # of these weights' entropy, as released
}
CUSTOM_OPTIONS = OPTIONS | {
    "subsets": Option(()),  # tuples of modality indices, ((0,), (0, 1))
    "subset_weights": Option(()),  # omega_A, summing to 1; () = uniform
    "pooling": one_of(*subsets.POOLINGS),  # of the experts of a subset
    "correlation": CORRELATION,
    **HELVAE_OPTIONS,
}


def mixture_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any],
    *,
    mixture: Callable[[int, str], SubsetMixture],
    is_subsampled: bool = False,
    pooling: str = "product",
) -> MultimodalVAE:
    """A mixture-based multimodal VAE (Definition 3), or MVAE+ (Eq. 84).

    With learned weights (CoDE-VAE), `entropy_weight` times the entropy of the subset
    weights, in nats, is subtracted from the loss.

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      options: those of the model's row in `MODELS`; in models without the option
        prior_expert, the prior is not an expert.
      mixture: (M, prior_expert choice) -> the model's subsets and weights.
      is_subsampled: whether the unimodal ELBOs are added (MVAE+).
      pooling: how the experts of a subset are pooled, one of `subsets.POOLINGS`.

    Raises:
      UsageError: learned weights with an estimator other than "exact", or the prior as
        an expert of a pooling other than the product.
    """
    nets = make_networks(config, shapes, config.model.latent_dim)
    read = {x: options[x] for x in ("correlation", "pooled_over") if x in options}
    with fields_of("config.model.options"):
        how = Pooling(pooling, **read)
    fixed = subsets.pooled(
        mixture(len(shapes), options.get("prior_expert", "never")), how
    )
    estimator = options.get("subset_estimator", "stratified")
    is_learned = options.get("learned_weights", False)
    if is_learned and estimator != "exact":
        raise UsageError(
            "config.model.options.learned_weights = True needs subset_estimator = "
            f"'exact', got {estimator!r}: the gradient of the weights needs all "
            "subsets; set learned_weights = False or 'exact'"
        )
    bound = (
        elbo.subsampled_elbo
        if is_subsampled
        else partial(elbo.subset_elbo, estimator=estimator)
    )

    def subset_mixture(params: Params) -> SubsetMixture:
        if not is_learned:
            return fixed
        return fixed._replace(weights=jax.nn.softmax(params["subset_logits"]))

    def init() -> dict[str, Array]:
        return {"subset_logits": jnp.zeros(len(fixed.weights))} if is_learned else {}

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        terms = bound(
            encode(nets, params, batch),
            batch,
            key,
            mixture=subset_mixture(params),
            log_likelihoods=log_likelihoods(nets, params),
        )
        loss = elbo.loss(terms, beta)
        if is_learned:
            logs = jax.nn.log_softmax(params["subset_logits"])
            loss += options["entropy_weight"] * jnp.sum(jnp.exp(logs) * logs)
        return loss, terms

    def posterior(
        params: Params, experts: Gaussian, subset: Array, key: PRNGKey
    ) -> Gaussian:
        given = posteriors.available_subsets(
            subset_mixture(params), subset, is_exact_preferred=True
        )
        return components.posterior_component(key, experts, given)

    def mixture_posterior(
        params: Params, experts: Gaussian, observed: Array
    ) -> tuple[Gaussian, AnyArray]:
        return posteriors.observed_mixture(experts, subset_mixture(params), observed)

    def posterior_components(
        params: Params, experts: Gaussian, subset: Array
    ) -> tuple[Gaussian, AnyArray]:
        return posteriors.observed_mixture(
            experts, subset_mixture(params), subset, is_exact_preferred=True
        )

    latents = standard_latents((config.model.latent_dim,))._replace(init=init)
    return assemble(nets, latents)._replace(
        objective=objective,
        posterior=posterior,
        mixture_posterior=mixture_posterior,
        posterior_components=posterior_components,
    )


def custom_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """Mixture of any subsets with any weights, by CUSTOM_OPTIONS."""

    def mixture(num_modalities: int, prior_expert: str) -> SubsetMixture:
        return subsets.custom_subsets(
            num_modalities,
            options["subsets"],
            options["subset_weights"],
            prior_expert,
        )

    pooling = options["pooling"]
    return mixture_model(config, shapes, options, mixture=mixture, pooling=pooling)
