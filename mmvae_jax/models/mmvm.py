"""Unimodal VAEs with a common data-dependent mixture prior (MMVM).

The model's latent vector concatenates the M latent vectors, M D dimensions:

* An observed modality has its own posterior. A missing one is generated as published,
  from the posterior of an observed modality, with a separate sample; each observed
  modality is used for an equal share of the examples.
* `elbo` and the log-likelihood are those of M VAEs with the prior N(0, I), as in the
  model `unimodal`: the data-dependent prior is not a density without the data.
* Prior samples are from N(0, I), independent for each modality; unconditional
  generation is not published. With a = 0, N(0, I) is not in the objective, so that
  joint coherence and prior samples say little.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmvae_jax.mathematics import components, distributions, elbo, posteriors
from mmvae_jax.mathematics.elbo import TermWeights
from mmvae_jax.models import parts
from mmvae_jax.models.options import number
from mmvae_jax.models.parts import (
    assemble,
    by_modality,
    encode,
    make_networks,
    only_component,
    own_or_other,
    standard_latents,
)
from mmvae_jax.types import (
    Array,
    Batch,
    Gaussian,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
    Schedule,
)

OPTIONS = {
    # Weight of N(0, I) against the data-dependent prior.
    "alpha": number(0.0, 0, 1),
    # Steps in which the weight falls from 1 to alpha. The released code: 150,000.
    "alpha_steps": number(0, 0),
}


def mixture_prior_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """MMVM: M VAEs of D latent dimensions each, with a common prior.

    Sutter et al. (2024). Each modality has its own latent vector z_m, whose prior is
    the mixture of all unimodal posteriors. This aligns the M latent spaces. The loss is

        sum_m -E_{q_m} log p(x_m|z_m) + beta {(1 - a) / M sum_mn KL(q_m || q_n)
                                              + a sum_m KL(q_m || N(0, I))},

    where a is the option alpha: 0 is the paper's objective, 1 unimodal VAEs. With the
    option alpha_steps, a falls linearly from 1 to alpha, as in the released code.

    Args:
      config: as for `make_model`; model.latent_dim is D.
      shapes: modality -> shape of one example.
      options: those of OPTIONS.
    """
    size, alpha = config.model.latent_dim, options["alpha"]
    num_steps = options["alpha_steps"]
    nets = make_networks(config, shapes, size)
    annealed = optax.linear_schedule(1.0, alpha, num_steps) if num_steps else None

    def objective(
        params: Params,
        batch: Batch,
        key: PRNGKey,
        beta: Array,
        step: Array | None = None,
    ) -> tuple[Array, ObjectiveTerms]:
        a = alpha if annealed is None or step is None else annealed(step)
        terms = mixture_prior_elbos(
            encode(nets, params, batch),
            batch,
            key,
            log_likelihoods=parts.log_likelihoods(nets, params),
        )
        weights = TermWeights(kl=a, auxiliary_kl=1 - a)
        return elbo.loss(terms, beta, weights), terms

    def posterior(
        params: Params, experts: Gaussian, subset: Array, key: PRNGKey
    ) -> Gaussian:
        del params
        other = components.expert_component(key, experts, subset)
        return own_or_other(experts, other, subset)

    def mixture_posterior(
        params: Params, experts: Gaussian, observed: Array
    ) -> tuple[Gaussian, Array]:
        del params
        # The latent vector of a missing modality has the prior.
        prior = jax.tree.map(jnp.zeros_like, experts)
        return only_component(own_or_other(experts, prior, observed))

    def posterior_components(
        params: Params, experts: Gaussian, subset: Array
    ) -> tuple[Gaussian, Array]:
        # One component per observed expert, which missing modalities use.
        del params
        rows = jax.vmap(own_or_other, (None, 0, None))(experts, experts, subset)
        weights = posteriors.uniform_weights(posteriors.append_axes(subset, 2))
        return rows, weights

    latents = standard_latents((len(shapes), size))
    return assemble(nets, latents, partial(by_modality, shapes))._replace(
        objective=objective,
        posterior=posterior,
        mixture_posterior=mixture_posterior,
        posterior_components=posterior_components,
        latent_parts=tuple((m, size) for m in shapes),
        schedule=(
            Schedule(
                num_steps, f"alpha falls from 1 to {alpha:g} over {num_steps:,} steps"
            )
            if num_steps
            else None
        ),
    )


def mixture_prior_elbos(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    log_likelihoods: elbo.LogLikelihoods,
) -> ObjectiveTerms:
    """The terms of M VAEs with the data-dependent MMVM prior (Sutter et al., 2024).

    The prior of every z_m is the mixture (1/M) sum_n q(z_m|x_n). As released,
    `auxiliary_kl` is an upper bound on its KL, by convexity:

        sum_m (1/M) sum_n KL(q_m || q_n)  >=  sum_m KL(q_m || (1/M) sum_n q_n).

    Args:
      experts: fields [M, B, D], q(z_m|x_m).
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: modality -> function (z_m [B, D], x_m) -> [B].

    Returns:
      ObjectiveTerms: the bound of `unimodal_elbos` (a prior that depends on the data
      gives no bound), and the divergence from the MMVM prior.
    """
    terms = elbo.unimodal_elbos(experts, batch, key, log_likelihoods=log_likelihoods)
    pairs = distributions.gaussian_kl(
        jax.tree.map(lambda field: field[:, None], experts),
        jax.tree.map(lambda field: field[None], experts),
    )
    observed = elbo.observed_of(batch, len(log_likelihoods))
    is_pair = observed[:, None] & observed[None]
    total = jnp.sum(jnp.where(is_pair, pairs, 0.0), axis=(0, 1))
    return terms._replace(auxiliary_kl=posteriors.share_of_each(observed) * total)
