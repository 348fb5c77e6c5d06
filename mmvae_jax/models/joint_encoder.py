"""A joint encoder: a network for the posterior given all modalities."""

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
    """q(z|X) as a network.

    Attributes:
      init: key -> params.
      features: (params, batch) -> fields [M, B, D], one row per modality.
      posterior: (params, features) -> Gaussian [B, D].
      of_subset: (params, features, subset bool [M] or [M, B]) -> Gaussian [B, D], with
        zeros as inputs for missing modalities.
    """

    init: Callable[[PRNGKey], Params]
    features: Callable[[Params, Batch], Gaussian]
    posterior: Callable[[Params, Gaussian], Gaussian]
    of_subset: Callable[[Params, Gaussian, AnyArray], Gaussian]


def make_joint_encoder(nets: Networks) -> _JointEncoder:
    """A joint encoder for any networks of the modalities.

    Each modality has another encoder of the same architecture as its unimodal one. The
    2 D outputs of all encoders, after a ReLU, are the features of an output layer
    for the mean and log-variance (similar to Suzuki et al., 2016). The joint encoder
    shares no parameters with the unimodal encoders.
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
