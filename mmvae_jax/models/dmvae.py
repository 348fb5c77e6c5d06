"""DMVAE: a product of experts, and a private latent vector for each modality."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import distributions, elbo, posteriors
from mmvae_jax.models import parts
from mmvae_jax.models.mixtures import PRIOR_EXPERT
from mmvae_jax.models.parts import (
    encode,
    make_networks,
    standard_latents,
)
from mmvae_jax.models.private import PRIVATE_OPTIONS, private_model
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

# By default the prior is an expert of products, but not for a single modality.
OPTIONS = {"prior_expert": PRIOR_EXPERT} | PRIVATE_OPTIONS


def dmvae_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """DMVAE of Lee & Pavlovic (2021), with the objective `private_shared_elbos`.

    Posteriors are Gaussian; z and all w_m have the prior N(0, I). As released, one
    encoder per modality gives z and w_m. Given a subset, q(z|x_A) is the product of the
    observed experts and the prior; for a single modality, without the prior
    (prior_expert can be "always" or "never").

    The released code for two modalities differs: it counts KL(q(z|x_A)||p(z)) once per
    decoded modality, where a bound on log p(X) has it once, and its last version omits
    reconstructions from the product. Its weights of likelihoods are
    config.modality.likelihood_weight, here 1 by default.

    Args:
      config: as for `make_model`; model.latent_dim is the dimension of z.
      shapes: modality -> shape of one example.
      options: those of OPTIONS.
    """
    shared_dim = config.model.latent_dim
    private_dim = options["private_dim"] or shared_dim
    nets = make_networks(config, shapes, shared_dim, private_dim, is_paired=False)
    latents = standard_latents((shared_dim + len(shapes) * private_dim,))
    choice = options["prior_expert"]
    is_with_prior = choice != "never"
    is_single_with_prior = choice == "always"

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        experts = encode(nets, params, batch)
        observed = elbo.observed_of(batch, len(shapes))
        shared, _ = distributions.split(experts, shared_dim)
        terms = private_shared_elbos(
            experts,
            batch,
            key,
            joint=shared_posterior(None, shared, observed),
            shared_dim=shared_dim,
            is_single_with_prior=is_single_with_prior,
            log_likelihoods=parts.log_likelihoods(nets, params),
        )
        return elbo.loss(terms, beta), terms

    def shared_posterior(
        key: PRNGKey | None, shared: Gaussian, subset: AnyArray
    ) -> Gaussian:
        del key  # not a mixture
        is_single = jnp.sum(jnp.asarray(subset), axis=0) == 1
        prior_expert = jnp.where(is_single, is_single_with_prior, is_with_prior)
        return posteriors.product_of_experts(shared, subset, prior_expert)

    return private_model(
        nets, latents, shared_dim, options["private_draw"], shared_posterior
    )._replace(objective=objective)


def private_shared_elbos(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    joint: Gaussian,
    shared_dim: int,
    is_single_with_prior: bool,
    log_likelihoods: elbo.LogLikelihoods,
) -> ObjectiveTerms:
    """The objective of DMVAE, Lee & Pavlovic (2021): a sum of ELBOs.

    Each modality has a private latent vector w_m in addition to the shared z. The sum
    of

        E [sum_m log p(x_m|z, w_m)] - KL(q(z|x_A)||p(z)) - sum_m KL(q_m(w|x_m)||p(w))

    is over A = all modalities (a product of experts), and A = each single modality.
    Each summand is a bound on log p(X) that decodes every modality with its own
    w_m ~ q_m(w|x_m); as released, all summands use the same sample of w_m. `elbo` of
    the terms is the bound for all modalities; the others are auxiliary.

    Args:
      experts: fields [M, B, d + e], q_m(z|x_m) q_m(w|x_m), shared dimensions first.
      batch: modality -> [B, ...].
      key: random key.
      joint: q(z|X), fields [B, d], given the observed modalities of each example.
      shared_dim: d.
      is_single_with_prior: whether q(z|x_m) is the product of expert and prior.
      log_likelihoods: modality -> function (z and w, [N, d + e], x_m) -> [N].

    Returns:
      ObjectiveTerms, fields [B].
    """
    shared_key, private_key = jax.random.split(key)
    shared, private = distributions.split(experts, shared_dim)
    observed = elbo.observed_of(batch, len(log_likelihoods))
    singles = elbo.single_posteriors(shared, is_single_with_prior)
    components = jax.tree.map(
        lambda row, rows: jnp.concatenate([row[None], rows]), joint, singles
    )
    z = distributions.sample(components, shared_key)
    w = distributions.sample(private, private_key)
    values: dict[str, Array] = {}
    for i, (m, f) in enumerate(log_likelihoods.items()):
        own = jnp.broadcast_to(w[i], (len(z), *w[i].shape))
        values[m] = elbo.fold_samples(f, distributions.join(z, own), batch[m])
    values = elbo.observed_terms(values, observed)
    kl = distributions.kl_to_standard_gaussian(components)
    kl += elbo.observed_sum(distributions.kl_to_standard_gaussian(private), observed)
    gains = [elbo.observed_sum(x[1:], observed) for x in values.values()]
    return ObjectiveTerms(
        log_likelihood={m: x[0] for m, x in values.items()},
        kl=kl[0],
        auxiliary_log_likelihood=elbo.total(gains),
        auxiliary_kl=elbo.observed_sum(kl[1:], observed),
    )
