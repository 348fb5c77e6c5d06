"""A network that infers the joint posterior from all modalities at once."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from mmvae_jax import networks
from mmvae_jax.mathematics.posteriors import append_axes
from mmvae_jax.models.parts import Networks, encode
from mmvae_jax.networks import vectors
from mmvae_jax.types import AnyArray, Array, Batch, Gaussian, Params, PRNGKey


class _JointEncoder(NamedTuple):
    """q(z|X) as a network, by its own parameters.

    Attributes:
      init: key -> params.
      features: (params, batch) -> fields [M, B, D], one row a modality.
      posterior: (params, features) -> Gaussian [B, D].
      of_subset: (params, features, subset bool [M] or [M, B]) -> the same, of inputs
        that are zero where a modality is missing.
    """

    init: Callable[[PRNGKey], Params]
    features: Callable[[Params, Batch], Gaussian]
    posterior: Callable[[Params, Gaussian], Gaussian]
    of_subset: Callable[[Params, Gaussian, AnyArray], Gaussian]


def make_joint_encoder(nets: Networks) -> _JointEncoder:
    """The simplest joint encoder that any mixture of networks allows.

    Every modality goes through an encoder like its own, with parameters of its own;
    the 2 D numbers that each emits are features here, rectified: a hidden layer
    shared by all modalities, from which the mean and log-variance are read (Suzuki
    et al. (2016) join networks of each modality likewise). Nothing is shared with the
    unimodal encoders, so that the joint ELBO and what is fitted to it have no
    parameters in common but the decoders'.
    """
    head = vectors.GaussianHead(nets.latent_dim)
    names = tuple(nets.shapes)

    def zeros() -> dict[str, Array]:
        return {m: networks.blank(shape) for m, shape in nets.shapes.items()}

    def init(key: PRNGKey) -> Params:
        *keys, head_key = jax.random.split(key, len(names) + 1)
        encoders = {
            m: nets.encoders[m].init(own_key, x)
            for own_key, (m, x) in zip(keys, zeros().items(), strict=True)
        }
        width = len(names) * 2 * nets.latent_dim
        return {
            "encoders": encoders,
            "head": head.init(head_key, jnp.zeros((1, width))),
        }

    def features(params: Params, batch: Batch) -> Gaussian:
        return encode(nets, params, batch)

    def posterior(params: Params, features: Gaussian) -> Gaussian:
        rows = jax.nn.relu(jnp.concatenate(features, axis=-1))
        joined = jnp.concatenate(list(rows), axis=-1)
        return cast(Gaussian, head.apply(params["head"], joined))

    def of_subset(params: Params, own: Gaussian, subset: AnyArray) -> Gaussian:
        observed = append_axes(jnp.asarray(subset), 3)
        absent = features(params, zeros())
        kept = jax.tree.map(lambda a, b: jnp.where(observed, a, b), own, absent)
        return posterior(params, kept)

    return _JointEncoder(init, features, posterior, of_subset)
