"""mmJSD: a mixture of experts with a Jensen-Shannon divergence between them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import distributions, elbo, posteriors
from mmvae_jax.mathematics.components import expert_component, gather_components
from mmvae_jax.mathematics.elbo import TermWeights
from mmvae_jax.models import parts
from mmvae_jax.models.mixtures import SUBSET_ESTIMATOR
from mmvae_jax.models.options import Option
from mmvae_jax.models.parts import assemble, encode, make_networks, standard_latents
from mmvae_jax.types import (
    Array,
    Batch,
    Gaussian,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
)

# The divergence from the dynamic prior replaces the KL from the prior.
_WEIGHTS = TermWeights(kl=0.0)

OPTIONS = {
    "subset_estimator": SUBSET_ESTIMATOR,  # of the expectation over components
    "decode_prior": Option(True),  # whether to decode prior samples too, as released
}


def jensen_shannon_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """mmJSD without modality-specific subspaces (Sutter et al., 2020).

    The posterior of a subset is the mixture of its experts, as published; the prior is
    a component only in the training objective.

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      options: those of OPTIONS.
    """
    nets = make_networks(config, shapes, config.model.latent_dim)

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        terms = jensen_shannon_elbo(
            encode(nets, params, batch),
            batch,
            key,
            log_likelihoods=parts.log_likelihoods(nets, params),
            decode_prior=options["decode_prior"],
            estimator=options["subset_estimator"],
        )
        return elbo.loss(terms, beta, _WEIGHTS), terms

    def posterior(
        params: Params, experts: Gaussian, subset: Array, key: PRNGKey
    ) -> Gaussian:
        del params
        return expert_component(key, experts, subset)

    def mixture_posterior(
        params: Params, experts: Gaussian, observed: Array
    ) -> tuple[Gaussian, Array]:
        del params
        return experts, posteriors.uniform_weights(posteriors.append_axes(observed, 2))

    return assemble(nets, standard_latents((config.model.latent_dim,)))._replace(
        objective=objective, posterior=posterior, mixture_posterior=mixture_posterior
    )


def jensen_shannon_elbo(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    log_likelihoods: elbo.LogLikelihoods,
    decode_prior: bool = True,
    estimator: str = "stratified",
) -> ObjectiveTerms:
    """The terms of mmJSD with its dynamic prior (Sutter et al., 2020).

    Instead of a KL from the prior, the loss has the Jensen-Shannon divergence

        sum_k w_k KL(q_k || f),   f proportional to prod_k q_k^{w_k},

    of the M experts and the prior N(0, I), all w_k = 1 / (M + 1). It is `auxiliary_kl`
    here. `kl` is the KL term of the decoded mixture, so that `elbo` is a bound on
    log p(X): that of MMVAE, with the prior as a component if `decode_prior`.

    Args:
      experts: fields [M, B, D].
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: one function per modality (`elbo.LogLikelihoods`).
      decode_prior: whether the prior is a component of the decoded mixture, as
        released: one example in M + 1 is then reconstructed from noise.
      estimator: of the expectation over components, as for `subset_elbo`.

    Returns:
      ObjectiveTerms, fields [B].
    """
    observed = elbo.observed_of(batch, len(log_likelihoods))
    prior = jax.tree.map(lambda field: jnp.zeros_like(field[:1]), experts)
    components = jax.tree.map(lambda *rows: jnp.concatenate(rows), experts, prior)
    is_component = jnp.concatenate([observed, jnp.ones_like(observed[:1])])
    uniform = posteriors.uniform_weights(is_component)
    dynamic_prior = posteriors.geometric_mean(components, uniform)
    divergences = distributions.gaussian_kl(components, dynamic_prior)
    divergence = jnp.sum(uniform * divergences, axis=0)
    decoded, weights = components, uniform
    if not decode_prior:
        decoded, weights = experts, posteriors.uniform_weights(observed)
    log_likelihood = elbo.mixture_log_likelihood(
        lambda: decoded,
        partial(gather_components, decoded),
        weights,
        batch,
        key,
        log_likelihoods,
        estimator,
    )
    kl = jnp.sum(weights * distributions.kl_to_standard_gaussian(decoded), axis=0)
    return ObjectiveTerms(log_likelihood, kl, jnp.zeros_like(kl), divergence)
