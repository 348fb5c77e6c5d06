"""Nexus: VAEs of the modalities, and above them one of their latent codes.

Vasco et al. (2022). Every modality has a bottom VAE with a code z_m. The top VAE sees
messages h_m = f_m(z_m), a layer of each modality, whose mean over the modalities that
are given is all that its encoder knows, and it reconstructs the codes:

    sum_m E log p(x_m|z_m) - b beta KL(q(z_m|x_m) || N(0, I))
      + gamma sum_m E log N(z_m; g_m(z), I) - beta KL(q(z|mean of h_m) || N(0, I)).

The codes are constants of the second line: what is above trains no bottom VAE. Forced
perceptual dropout lets some examples keep the messages of a random part of their
modalities alone, while all of them are reconstructed.

The latent vector of the model is z. Every modality, given or not, is decoded from it:
z -> g_m(z) -> the bottom decoder. The bound that is logged is of this,
E_q log p(x_m|g_m(z)) - KL(q(z|X) || N(0, I)); the loss has none of its terms.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import distributions, elbo, flows
from mmvae_jax.mathematics.elbo import TermWeights
from mmvae_jax.models import parts
from mmvae_jax.models.options import Options, number
from mmvae_jax.models.parts import (
    assemble,
    by_modality,
    draws,
    encode,
    end_to_end,
    make_networks,
    standard_latents,
    wide,
)
from mmvae_jax.networks import vectors
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

# Dropout, messages and widths are those of the authors' code.
OPTIONS: Options = {
    "bottom_dim": number(0, 0),  # of each z_m; 0 = latent_dim, that of z
    "message_dim": number(512, 1),
    "top_width": number(512, 1),  # units of the two hidden layers of the top encoder
    # Share of the training examples of which some messages are dropped.
    "perceptual_dropout": number(0.2, 0, 1),
    "bottom_beta": number(1.0, 0),  # b
    "gamma": number(1.0, 0),
}


class _Parts(NamedTuple):
    """Networks of one model, which its functions share.

    Attributes:
      nets: of the bottom VAEs.
      bottom: their functions, of all codes end to end, [B, M d].
      message: f_m, of the parameters of any modality.
      encoder: of the mean of messages.
      decoder: g_m, likewise.
      options: those of the model.
    """

    nets: parts.Networks
    bottom: MultimodalVAE
    message: Any
    encoder: Any
    decoder: Any
    options: Mapping[str, Any]


def nexus_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """Model of the equations above.

    Args:
      config: as for `make_model`; model.latent_dim is that of z.
      shapes: modality -> shape of one example.
      options: those of OPTIONS.
    """
    dim, width = config.model.latent_dim, options["top_width"]
    bottom_dim, message_dim = options["bottom_dim"] or dim, options["message_dim"]
    nets = make_networks(config, shapes, bottom_dim)
    own = _Parts(
        nets,
        assemble(
            nets,
            standard_latents((len(shapes) * bottom_dim,)),
            partial(by_modality, shapes),
        ),
        vectors.MLPDecoder((message_dim,), ()),
        vectors.MLPEncoder(dim, (width, width)),
        vectors.MLPDecoder((bottom_dim,), (message_dim, width, width)),
        options,
    )
    posterior = partial(_posterior, own)

    def codes(params: Params, z: Array) -> Array:
        return end_to_end(_codes(own, params, z))

    return assemble(nets, standard_latents((dim,)))._replace(
        init=partial(_init, own, dim),
        objective=partial(_objective, own),
        posterior=posterior,
        mixture_posterior=partial(draws, posterior),
        posterior_components=partial(draws, posterior),
        decode=lambda params, z: own.bottom.decode(params, codes(params, z)),
        log_likelihood=lambda params, z, batch: own.bottom.log_likelihood(
            params, codes(params, z), batch
        ),
        deviation=lambda params, z: own.bottom.deviation(params, codes(params, z)),
        sample_likelihood=lambda params, z, key: own.bottom.sample_likelihood(
            params, codes(params, z), key
        ),
    )


def _init(own: _Parts, dim: int, key: PRNGKey) -> Params:
    """Parameters of the bottom VAEs, and of what is above."""
    own_key, message_key, encoder_key, decoder_key = jax.random.split(key, 4)
    code, z = jnp.zeros((1, own.nets.latent_dim)), jnp.zeros((1, dim))
    message = jnp.zeros((1, own.options["message_dim"]))

    def of_each(network: Any, key: PRNGKey, x: Array) -> dict[str, Params]:
        keys = jax.random.split(key, len(own.nets.shapes))
        pairs = zip(own.nets.shapes, keys, strict=True)
        return {m: network.init(own_key, x) for m, own_key in pairs}

    return own.bottom.init(own_key) | {
        "messages": of_each(own.message, message_key, code),
        "top_encoder": own.encoder.init(encoder_key, message),
        "top_decoders": of_each(own.decoder, decoder_key, z),
    }


def _top(own: _Parts, params: Params, codes: Array, given: Array) -> Gaussian:
    """q(z|z_1, ..., z_M) [B, D] of codes [M, B, d], of which some are given, [M, B]."""
    messages = jnp.stack(
        [
            own.message.apply(params["messages"][m], code)
            for m, code in zip(own.nets.shapes, codes, strict=True)
        ]
    )
    total = elbo.observed_sum(messages, given[..., None])
    mean = total / jnp.sum(given, axis=0)[:, None]
    return own.encoder.apply(params["top_encoder"], mean)


def _codes(own: _Parts, params: Params, z: Array) -> Array:
    """g_m(z) of all modalities, [M, B, d], of z [B, D]."""
    decoders = params["top_decoders"]
    return jnp.stack([own.decoder.apply(decoders[m], z) for m in own.nets.shapes])


def _posterior(
    own: _Parts, params: Params, experts: Gaussian, subset: AnyArray, key: PRNGKey
) -> Gaussian:
    """q(z|x_A), given a draw of the codes of A: a mixture over all draws."""
    codes = distributions.sample(experts, key)
    return _top(own, params, codes, wide(subset, codes.shape[1]))


def kept_messages(key: PRNGKey, observed: AnyArray, rate: float) -> Array:
    """The modalities that forced perceptual dropout keeps of each example.

    With probability `rate`, of n observed modalities k are kept, k uniform in
    1..n - 1 and each choice of k as likely; otherwise, and where n is 1, all of them.

    Args:
      key: random key.
      observed: bool [M, B].
      rate: in [0, 1].

    Returns:
      bool [M, B], in every column at least one.
    """
    given = flows.random_subsets(key, observed, 1 - rate)
    return jnp.where(jnp.any(given, axis=0), given, observed)


def _objective(
    own: _Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, ObjectiveTerms]:
    """The loss, and the bound that it does not have as its own terms."""
    code_key, drop_key, top_key, bound_key = jax.random.split(key, 4)
    experts = encode(own.nets, params, batch)
    bottom = elbo.unimodal_elbos(
        experts,
        batch,
        code_key,
        log_likelihoods=parts.log_likelihoods(own.nets, params),
    )
    # The draws of the bottom VAEs.
    codes = jax.lax.stop_gradient(distributions.sample(experts, code_key))
    observed = wide(elbo.observed_of(batch, len(codes)), codes.shape[1])
    kept = kept_messages(drop_key, observed, own.options["perceptual_dropout"])
    top = _top(own, params, codes, kept)
    found = _codes(own, params, distributions.sample(top, top_key))
    matches = distributions.log_prob(Gaussian(found, jnp.zeros_like(found)), codes)
    gain = own.options["gamma"] * elbo.observed_sum(matches, observed)

    constant = jax.lax.stop_gradient(params)
    joint = _top(own, constant, codes, observed)
    z = _codes(own, constant, distributions.sample(joint, bound_key))
    values = elbo.own_terms(z, batch, parts.log_likelihoods(own.nets, constant))
    terms = ObjectiveTerms(
        elbo.observed_terms(values, observed),
        distributions.kl_to_standard_gaussian(joint),
        elbo.total(bottom.log_likelihood.values()) + gain,
        own.options["bottom_beta"] * bottom.kl
        + distributions.kl_to_standard_gaussian(top),
    )
    return elbo.loss(terms, beta, TermWeights(log_likelihood=0.0, kl=0.0)), terms
