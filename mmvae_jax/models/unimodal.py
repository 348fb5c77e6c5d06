"""One VAE for each modality: the baseline without multimodal learning."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import elbo, importance
from mmvae_jax.models.official import official_latents
from mmvae_jax.models.parts import (
    assemble,
    by_modality,
    encode,
    log_likelihoods,
    make_networks,
    own_or_other,
    standard_latents,
)
from mmvae_jax.types import (
    Array,
    Batch,
    Distribution,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
)


def unimodal_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any],
    *,
    is_official: bool = False,
) -> MultimodalVAE:
    """M independent unimodal VAEs of D // M latent dimensions each.

    The paper's baseline: capacity is reduced in proportion to the number of modalities.
    The latent vector concatenates the M latent vectors, so that all metrics apply. A
    missing modality is generated from its own prior.

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      options: none, or those of `official.UNIMODAL_OPTIONS`.
      is_official: whether objective, posteriors and prior are those of the official
        MMVAE (the baseline in the paper's Figure 12).
    """
    latent_dim = config.model.latent_dim
    size = latent_dim // len(shapes)
    if size < 1:
        raise UsageError(
            f"latent_dim = {latent_dim} leaves no latent dimension for each of "
            f"{len(shapes)} unimodal VAEs"
        )
    nets = make_networks(config, shapes, size)
    shape = (len(shapes), size)
    latents = (
        official_latents(shape, options["posterior"], options["learned_prior"])
        if is_official
        else standard_latents(shape)
    )

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        emitted = encode(nets, params, batch)
        decoders = log_likelihoods(nets, params)
        if is_official:
            return importance.unimodal_importance_weighted(
                latents.experts(emitted),
                batch,
                key,
                beta,
                prior=latents.prior(params),
                log_likelihoods=decoders,
                num_samples=options["num_samples"],
                estimator=options["estimator"],
            )
        terms = elbo.unimodal_elbos(emitted, batch, key, log_likelihoods=decoders)
        return elbo.loss(terms, beta), terms

    def posterior(
        params: Params, experts: Distribution, subset: Array, key: PRNGKey
    ) -> Distribution:
        del key  # not a mixture
        prior = jax.tree.map(lambda field: field[:, None], latents.prior(params))
        return own_or_other(experts, prior, subset)

    return assemble(nets, latents, partial(by_modality, shapes))._replace(
        objective=objective,
        posterior=posterior,
        latent_parts=tuple((m, size) for m in shapes),
    )
