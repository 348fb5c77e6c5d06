"""Models with a latent vector for each modality beside the shared one.

The latent vector of a model is z = [shared, w_1, ..., w_M] end to end, and modality m
is decoded from [shared, w_m]. So whatever is computed for a model with one latent
vector is computed for these. What is generated of a modality that is not observed has
w_m from its prior p(w). The linear probe sees the w_m too: it is not a probe of the
shared vector alone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax import distributions, importance, objectives, posteriors
from mmvae_jax.models.official import centred, experts_of, importance_weighting
from mmvae_jax.models.parts import (
    Latents,
    Networks,
    assemble,
    encode,
    log_likelihoods,
    make_networks,
    own_or_prior,
    standard_latents,
)
from mmvae_jax.types import (
    Array,
    Batch,
    Distribution,
    Gaussian,
    MultimodalVAE,
    Params,
    PRNGKey,
)

PRIVATE_DRAWS = ("own", "shared")


def mmvae_plus_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> MultimodalVAE:
    """MMVAE+ of Palumbo et al. (2023), the equation in `private_importance_weighted`.

    Two disjoint encoders a modality, for z and for w; p(z) and p(w) with scale 1;
    auxiliary priors r_n of mean 0 for what is reconstructed across modalities, in
    training only. Given a subset, z is of the mixture of the observed experts.
    Networks, likelihoods and Adam are those of all other models.

    Args:
      config: as for `make_model`. Its fields model.posterior ("laplace": scales d
        times a softmax, of z and of w apart, as for the official MMVAE; "gaussian"),
        model.learned_prior (whether the scales of r_n, which sum to their dimension,
        are learned; else r_n = p(w)), and num_samples, form and estimator of the
        objective.
      shapes: modality -> shape of one example.
    """
    shared_dim, private_dim = dimensions(config)
    nets = make_networks(config, shapes, shared_dim, private_dim)
    family, is_learned = config.model.posterior, config.model.learned_prior
    auxiliary_shape = (len(shapes), private_dim)
    options = importance_weighting(config) | {"form": config.objective.form}

    def experts(emitted: Gaussian) -> Distribution:
        parts = distributions.split(emitted, shared_dim)
        return distributions.join(*(experts_of(part, family) for part in parts))

    def init() -> dict[str, Array]:
        return {"auxiliary_priors": jnp.zeros(auxiliary_shape)} if is_learned else {}

    def prior(params: Params) -> Distribution:
        del params  # it is fixed
        return centred(jnp.zeros(shape), family)

    shape = (shared_dim + len(shapes) * private_dim,)
    latents = Latents(shape, experts, init, prior)

    def objective(params: Params, batch: Batch, key: PRNGKey, beta: Array):
        logits = (
            params["auxiliary_priors"] if is_learned else jnp.zeros(auxiliary_shape)
        )
        # p(w) is the same for all modalities.
        own, _ = distributions.split(prior(params), shared_dim + private_dim)
        return importance.private_importance_weighted(
            experts(encode(nets, params, batch)),
            batch,
            key,
            beta,
            shared_dim=shared_dim,
            prior=own,
            auxiliary_priors=centred(logits, family),
            log_likelihoods=log_likelihoods(nets, params),
            **options,
        )

    def shared_components(
        shared: Distribution, observed: Array
    ) -> tuple[Distribution, Array]:
        return shared, posteriors.uniform_weights(posteriors.append_axes(observed, 2))

    return private_model(
        config, nets, latents, posteriors.expert_component, shared_components
    )._replace(objective=objective)


def dmvae_model(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> MultimodalVAE:
    """DMVAE of Lee & Pavlovic (2021), the equation in `private_shared_elbos`.

    Gaussian posteriors, and N(0, I) for z and all w_m. One encoder a modality, whose
    outputs are divided among z and w_m, as released. Given a subset, z is of the
    product of the observed experts, with the prior as one of them (for a single
    modality: without it; config.model.prior_expert "always" and "never" are the other
    choices).

    The released code of two modalities differs: it counts KL(q(z|x_A)||p(z)) once for
    every modality decoded from it, so M times, where a bound on log p(X) has it once,
    and its last version leaves out what is reconstructed from the product.
    Likelihoods have no weights here.

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
    """
    shared_dim, private_dim = dimensions(config)
    nets = make_networks(config, shapes, shared_dim + private_dim)
    latents = standard_latents((shared_dim + len(shapes) * private_dim,))
    choice = config.model.prior_expert
    is_with_prior = choice != "never"
    is_single_with_prior = choice == "always"

    def objective(params: Params, batch: Batch, key: PRNGKey, beta: Array):
        experts = encode(nets, params, batch)
        observed = objectives.observed_of(batch, len(shapes))
        shared, _ = distributions.split(experts, shared_dim)
        terms = objectives.private_shared_elbos(
            experts,
            batch,
            key,
            joint=shared_posterior(None, shared, observed),
            shared_dim=shared_dim,
            is_single_with_prior=is_single_with_prior,
            log_likelihoods=log_likelihoods(nets, params),
        )
        return objectives.loss(terms, beta), terms

    def shared_posterior(key: PRNGKey, shared: Gaussian, subset: Array) -> Gaussian:
        del key  # not a mixture
        is_single = jnp.sum(jnp.asarray(subset), axis=0) == 1
        prior_expert = jnp.where(is_single, is_single_with_prior, is_with_prior)
        return posteriors.product_of_experts(shared, subset, prior_expert)

    def shared_components(shared: Gaussian, observed: Array) -> tuple[Gaussian, Array]:
        joint = shared_posterior(None, shared, observed)
        return jax.tree.map(lambda field: field[None], joint), jnp.ones((1, 1))

    return private_model(
        config, nets, latents, shared_posterior, shared_components
    )._replace(objective=objective)


def dimensions(config: Any) -> tuple[int, int]:
    """Latent dimensions that are shared, and of each modality."""
    shared_dim = config.model.latent_dim
    return shared_dim, config.model.private_dim or shared_dim


def private_model(
    config: Any,
    nets: Networks,
    latents: Latents,
    shared_posterior: Callable[[PRNGKey, Distribution, Array], Distribution],
    shared_components: Callable[[Distribution, Array], tuple[Distribution, Array]],
) -> MultimodalVAE:
    """All but the objective of a model whose latent vector is [shared, w_1, ...].

    Args:
      config: as for `make_model`.
      nets: of all modalities, their experts being [shared, w_m].
      latents: experts, and the prior of the whole latent vector.
      shared_posterior: (key, shared experts [M, B, d], subset) -> [B, d].
      shared_components: (shared experts, subset) -> [S, B, d], the components of
        the shared posterior, and their weights [S, 1 or B].
    """
    shared_dim, private_dim = dimensions(config)
    split = partial(distributions.split, size=shared_dim)
    num_modalities = len(nets.shapes)

    def parts(z: Array) -> dict[str, Array]:
        shared, private = split(z)
        own = jnp.split(private, num_modalities, axis=-1)
        pairs = zip(nets.shapes, own, strict=True)
        return {m: distributions.join(shared, w) for m, w in pairs}

    def private_posterior(
        params: Params, private: Distribution, subset: Array
    ) -> Distribution:
        _, prior = split(latents.prior(params))
        prior = jax.tree.map(lambda field: field.reshape(-1, private_dim), prior)
        return own_or_prior(private, prior, subset)

    def posterior(
        params: Params, experts: Distribution, subset: Array, key: PRNGKey
    ) -> Distribution:
        shared, private = split(experts)
        return distributions.join(
            shared_posterior(key, shared, subset),
            private_posterior(params, private, subset),
        )

    def mixture_posterior(
        params: Params, experts: Distribution, observed: Array
    ) -> tuple[Distribution, Array]:
        shared, private = split(experts)
        components, weights = shared_components(shared, observed)
        own = private_posterior(params, private, observed)
        num = len(components.mean)
        own = jax.tree.map(
            lambda field: jnp.broadcast_to(field, (num, *field.shape)), own
        )
        return distributions.join(components, own), weights

    model = assemble(nets, latents, parts)

    def sample_prior(params: Params, key: PRNGKey, num: int) -> Array:
        z = model.sample_prior(params, key, num)
        if config.model.private_draw == "own":
            return z
        shared, private = split(z)
        repeated = jnp.tile(private[:, :private_dim], (1, num_modalities))
        return distributions.join(shared, repeated)

    return model._replace(
        posterior=posterior,
        mixture_posterior=mixture_posterior,
        sample_prior=sample_prior,
    )
