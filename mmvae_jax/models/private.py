"""Private latent vectors of modalities, with or without a shared vector."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import distributions
from mmvae_jax.models.options import number, one_of
from mmvae_jax.models.parts import Latents, Networks, assemble, own_or_other
from mmvae_jax.types import (
    SHARED,
    Array,
    Distribution,
    Gaussian,
    MultimodalVAE,
    Params,
    PRNGKey,
)

# Options of models with private vectors; their latent_dim is the shared dimension.
PRIVATE_OPTIONS = {
    # Private dimensions of each modality; 0 = latent_dim. Palumbo et al. (2023): 32
    # each, 32 shared.
    "private_dim": number(0, 0),
    # Private vectors of unconditional samples: each modality's "own", or one that is
    # "shared" by all.
    "private_draw": one_of("own", "shared"),
}


def private_model(
    nets: Networks,
    latents: Latents,
    shared_dim: int,
    private_draw: str,
    shared_posterior: Callable[..., Distribution],
) -> MultimodalVAE:
    """A model with shared and private latent vectors, without an objective.

    The latent vector is z = [shared, w_1, ..., w_M], and modality m is decoded from
    [shared, w_m]. For a missing modality, w_m is drawn from its prior p(w). The linear
    probe uses the private vectors too.

    Args:
      nets: networks of all modalities, whose experts are [shared, w_m].
      latents: experts, and the prior of the whole latent vector.
      shared_dim: d, dimensions of the shared vector.
      private_draw: see PRIVATE_OPTIONS.
      shared_posterior: (key, shared experts [M, B, d], subset) -> [B, d].
    """
    split = partial(distributions.split, size=shared_dim)
    num_modalities = len(nets.shapes)
    private_dim = nets.latent_dim - shared_dim

    def parts_of(z: Array) -> dict[str, Array]:
        shared, private = split(z)
        own = jnp.split(private, num_modalities, axis=-1)
        pairs = zip(nets.shapes, own, strict=True)
        return {m: distributions.join(shared, w) for m, w in pairs}

    def private_posterior(
        params: Params, private: Distribution, subset: Array
    ) -> Distribution:
        _, prior = split(latents.prior(params))
        rows = jax.tree.map(lambda field: field.reshape(-1, 1, private_dim), prior)
        return own_or_other(private, rows, subset)

    def posterior(
        params: Params, experts: Distribution, subset: Array, key: PRNGKey
    ) -> Distribution:
        shared, private = split(experts)
        return distributions.join(
            shared_posterior(key, shared, subset),
            private_posterior(params, private, subset),
        )

    model = assemble(nets, latents, parts_of)

    def sample_prior(params: Params, key: PRNGKey, num: int) -> Array:
        z = model.sample_prior(params, key, num)
        if private_draw == "own":
            return z
        shared, private = split(z)
        repeated = jnp.tile(private[:, :private_dim], (1, num_modalities))
        return distributions.join(shared, repeated)

    return model._replace(
        posterior=posterior,
        sample_prior=sample_prior,
        latent_parts=((SHARED, shared_dim), *((m, private_dim) for m in nets.shapes)),
    )


def with_mixture_prior(
    base: MultimodalVAE, latents: Latents, shared_dim: int, name: str
) -> MultimodalVAE:
    """Replaces the prior of the shared vector by a mixture of Gaussians.

    Args:
      base: result of `private_model`.
      latents: latents of `base`; the private vectors keep their prior.
      shared_dim: d, dimensions of the shared vector.
      name: entry of the parameters with the mixture: "mean" [S, d], "log_weight" [S]
        (up to a constant), and optionally "log_variance" [S, d], else 0.
    """
    return with_shared_prior(
        base,
        latents,
        shared_dim,
        lambda params, key, num: sample_mixture(params[name], key, num),
        lambda params, s: log_mixture_prob(params[name], s),
    )


def with_shared_prior(
    base: MultimodalVAE,
    latents: Latents,
    shared_dim: int,
    sample_shared: Callable[[Params, PRNGKey, int], Array],
    log_shared: Callable[[Params, Array], Array],
) -> MultimodalVAE:
    """Replaces the prior of the shared vector by any other.

    Args:
      base: result of `private_model`.
      latents: latents of `base`; the private vectors keep their prior.
      shared_dim: d, dimensions of the shared vector.
      sample_shared: (params, key, num) -> [num, d].
      log_shared: (params, s [..., d]) -> log p(s) [...], nats.
    """

    def sample_prior(params: Params, key: PRNGKey, num: int) -> Array:
        shared_key, private_key = jax.random.split(key)
        shared = sample_shared(params, shared_key, num)
        private = base.sample_prior(params, private_key, num)[:, shared_dim:]
        return distributions.join(shared, private)

    def log_prior(params: Params, z: Array) -> Array:
        shared, private = distributions.split(z, shared_dim)
        _, prior = distributions.split(latents.prior(params), shared_dim)
        return log_shared(params, shared) + distributions.log_prob(prior, private)

    return base._replace(sample_prior=sample_prior, log_prior=log_prior)


def log_mixture_prob(mixture: Mapping[str, Array], s: Array) -> Array:
    """Log-density of a mixture of S diagonal Gaussians; s [..., d] -> [...], nats."""
    components = _components(mixture)
    by_component = jax.vmap(distributions.log_prob, (0, None), -1)(components, s)
    log_weights = jax.nn.log_softmax(mixture["log_weight"])
    return jax.nn.logsumexp(by_component + log_weights, axis=-1)


def sample_mixture(mixture: Mapping[str, Array], key: PRNGKey, num: int) -> Array:
    """Samples [num, d] of a mixture of S diagonal Gaussians."""
    component_key, noise_key = jax.random.split(key)
    rows = jax.random.categorical(component_key, mixture["log_weight"], shape=(num,))
    chosen = jax.tree.map(lambda field: field[rows], _components(mixture))
    return distributions.sample(chosen, noise_key)


def _components(mixture: Mapping[str, Array]) -> Gaussian:
    """The Gaussians of a mixture, fields [S, d]; the default variance is 1."""
    mean = mixture["mean"]
    return Gaussian(mean, mixture.get("log_variance", jnp.zeros_like(mean)))
