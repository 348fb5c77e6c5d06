"""The MMVAE with the official implementation of Shi et al. (2019)."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import components, importance, posteriors
from mmvae_jax.models.options import Option, number, one_of
from mmvae_jax.models.parts import (
    Latents,
    assemble,
    encode,
    log_likelihoods,
    make_networks,
)
from mmvae_jax.types import (
    Array,
    Batch,
    Distribution,
    Gaussian,
    Laplace,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
)

OPTIONS = {
    "posterior": one_of(
        "laplace", "gaussian"
    ),  # family of the posteriors and the prior
    # Whether the scales of the prior are learned; they sum to D.
    "learned_prior": Option(True),
    # K samples of every modality's posterior. Shi et al. (2019): 30 and 50.
    "num_samples": number(10, 1),
    # The mean over modalities is outside the logarithm, as released ("loose"), or
    # inside ("tight").
    "form": one_of(*importance.FORMS),
    # Estimator of the gradient: "dreg" as released, or "iwae".
    "estimator": one_of(*importance.ESTIMATORS),
}
# For one modality the two forms are equal.
UNIMODAL_OPTIONS = {name: OPTIONS[name] for name in OPTIONS if name != "form"}


def official_mixture_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """The MMVAE with the official implementation, Shi et al. (2019).

    A mixture of Laplace experts, a prior with learned scales, an importance-weighted
    objective (Daunhawer et al., 2022, App. C.2 and Fig. 12). Networks, likelihoods
    and Adam are those of all other models.

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      options: those of OPTIONS.
    """
    nets = make_networks(config, shapes, config.model.latent_dim)
    shape = (config.model.latent_dim,)
    latents = official_latents(shape, options["posterior"], options["learned_prior"])

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        return importance.importance_weighted(
            latents.experts(encode(nets, params, batch)),
            batch,
            key,
            beta,
            prior=latents.prior(params),
            log_likelihoods=log_likelihoods(nets, params),
            num_samples=options["num_samples"],
            form=options["form"],
            estimator=options["estimator"],
        )

    def posterior(
        params: Params, experts: Distribution, subset: Array, key: PRNGKey
    ) -> Distribution:
        del params
        return components.expert_component(key, experts, subset)

    def mixture_posterior(
        params: Params, experts: Distribution, observed: Array
    ) -> tuple[Distribution, Array]:
        del params
        return experts, posteriors.uniform_weights(posteriors.append_axes(observed, 2))

    return assemble(nets, latents)._replace(
        objective=objective, posterior=posterior, mixture_posterior=mixture_posterior
    )


def official_latents(shape: tuple[int, ...], family: str, is_learned: bool) -> Latents:
    """Experts and prior as released by Shi et al. (2019).

    The scales of the Laplace experts are D times a softmax of the encoder's output,
    plus 1e-6. The Laplace prior has mean 0 and scales of D times a softmax of
    parameters (initially 1). Both scales sum to D, so that a model cannot shrink its
    whole latent space. The encoder's output is softly bounded to +-20.

    Args:
      shape: shape of the prior's fields; the last axis is D.
      family: "laplace"; or "gaussian", with experts as in all other models, and a
        normal prior of the same scales.
      is_learned: whether the prior has parameters.
    """

    def prior(params: Params) -> Distribution:
        logits = params["prior"] if is_learned else jnp.zeros(shape)
        return centred(logits, family)

    def init() -> dict[str, Array]:
        return {"prior": jnp.zeros(shape)} if is_learned else {}

    return Latents(shape, lambda emitted: experts_of(emitted, family), init, prior)


def experts_of(emitted: Gaussian, family: str) -> Distribution:
    """Experts of a family, from the encoders' output."""
    if family == "gaussian":
        return emitted
    log_scale = _softmax_log_scale(emitted.log_variance)
    return Laplace(emitted.mean, jnp.logaddexp(log_scale, math.log(1e-6)))


def centred(logits: Array, family: str) -> Distribution:
    """Distribution of mean 0 and scales D softmax(logits), logits [..., D]."""
    log_scale, mean = _softmax_log_scale(logits), jnp.zeros(logits.shape)
    if family == "gaussian":
        return Gaussian(mean, 2 * log_scale)
    return Laplace(mean, log_scale)


def _softmax_log_scale(logits: Array) -> Array:
    """Logarithm of scales that sum to D, of logits [..., D]."""
    return jax.nn.log_softmax(logits) + math.log(logits.shape[-1])
