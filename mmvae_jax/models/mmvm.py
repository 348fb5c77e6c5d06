"""Unimodal VAEs tied by a data-dependent mixture prior (MMVM).

The model's latent vector concatenates the M latent vectors, M D dimensions. It is used
as that of any multimodal model:

* An observed modality has its own posterior. A missing one is generated as published,
  from the posterior of an observed modality: each observed one serves an equal share
  of the examples, with its own sample.
* `elbo` and the log-likelihood are those of M VAEs with the prior N(0, I), as of the
  model `unimodal`: the data-dependent prior is no density before the data are seen.
* Prior samples are of N(0, I), independent for each modality. Unconditional generation
  is not published. If a is 0, nothing ties modalities or pulls posteriors to N(0, I),
  so joint coherence and prior samples say little.
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
from mmvae_jax.models.parts import assemble, encode, make_networks, standard_latents
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
    # Weight of N(0, I) against the data-dependent prior, ...
    "alpha": number(0.0, 0, 1),
    # ... which it falls to from 1 in so many steps. The released code: 150,000.
    "alpha_steps": number(0, 0),
}


def mixture_prior_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """MMVM: M VAEs of D latent dimensions each, tied by their prior.

    Sutter et al. (2024). Every modality has a latent vector z_m of its own, and the
    prior of each is the mixture of all unimodal posteriors, so that the M latent
    spaces come to mean the same. The loss is

        sum_m -E_{q_m} log p(x_m|z_m) + beta {(1 - a) / M sum_mn KL(q_m || q_n)
                                              + a sum_m KL(q_m || N(0, I))},

    a the option alpha: 0 is the paper's objective, 1 unimodal VAEs. With the option
    alpha_steps it falls linearly from 1 to alpha, as in the released code.

    Args:
      config: as for `make_model`; model.latent_dim is D.
      shapes: modality -> shape of one example.
      options: those of OPTIONS.
    """
    size, alpha = config.model.latent_dim, options["alpha"]
    num_steps = options["alpha_steps"]
    nets = make_networks(config, shapes, size)
    annealed = optax.linear_schedule(1.0, alpha, num_steps) if num_steps else None

    def split(z: Array) -> dict[str, Array]:
        return {m: z[..., i * size : (i + 1) * size] for i, m in enumerate(shapes)}

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
        observed = posteriors.append_axes(jnp.asarray(subset), 3)
        other = components.expert_component(key, experts, subset)
        kept = jax.tree.map(
            lambda own, field: jnp.where(observed, own, field), experts, other
        )
        return _end_to_end(kept)

    def mixture_posterior(
        params: Params, experts: Gaussian, observed: Array
    ) -> tuple[Gaussian, Array]:
        del params
        # A missing modality has the prior: its latent vector is not asked for.
        prior = jax.tree.map(jnp.zeros_like, experts)
        is_there = posteriors.append_axes(observed, 3)
        joint = _end_to_end(jax.tree.map(partial(jnp.where, is_there), experts, prior))
        return jax.tree.map(lambda field: field[None], joint), jnp.ones((1, 1))

    def posterior_components(
        params: Params, experts: Gaussian, subset: Array
    ) -> tuple[Gaussian, Array]:
        # A missing modality is drawn from each of the observed experts in turn.
        del params
        is_there = posteriors.append_axes(jnp.asarray(subset), 3)
        rows = [
            _end_to_end(
                jax.tree.map(
                    lambda field, n=n: jnp.where(is_there, field, field[n]), experts
                )
            )
            for n in range(len(shapes))
        ]
        weights = posteriors.uniform_weights(posteriors.append_axes(subset, 2))
        return jax.tree.map(lambda *fields: jnp.stack(fields), *rows), weights

    return assemble(nets, standard_latents((len(shapes), size)), split)._replace(
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


def _end_to_end(rows: Gaussian) -> Gaussian:
    """Fields [M, B, D] -> [B, M D]."""
    return jax.tree.map(lambda field: jnp.concatenate(list(field), -1), rows)


def mixture_prior_elbos(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    log_likelihoods: elbo.LogLikelihoods,
) -> ObjectiveTerms:
    """M VAEs, tied by the data-dependent MMVM prior (Sutter et al., 2024).

    The prior of every z_m is the mixture (1/M) sum_n q(z_m|x_n). As released, its KL
    is bounded from above by convexity: `auxiliary_kl` is

        sum_m (1/M) sum_n KL(q_m || q_n)  >=  sum_m KL(q_m || (1/M) sum_n q_n).

    Args:
      experts: fields [M, B, D], q(z_m|x_m), of one size for all.
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: modality -> function (z_m [B, D], x_m) -> [B].

    Returns:
      ObjectiveTerms: the bound of `unimodal_elbos` (a prior that knows the data
      bounds nothing), and the divergence from that prior.
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
