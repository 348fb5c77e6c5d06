"""The prior p(s) of a code as a rectified flow, for models that share one.

The flow moves N(0, I) to the codes s ~ q(s|X), whose gradients are stopped: a code does
not learn from its prior. q(s|X) is a Gaussian around a point of a sphere, so that codes
have a density in all dimensions. Their mean squared length is their number of
dimensions, as that of N(0, I): they are not whitened.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import flows
from mmvae_jax.networks.flows import MLPFlow
from mmvae_jax.types import Array, Params, PRNGKey

# Largest number of dimensions for the exact divergence of a velocity.
MOST_EXACT = 32


class FlowPrior(NamedTuple):
    """The flow of a code.

    Attributes:
      network: its velocity, a Linen module.
      size: c, dimensions of the code.
      num_steps: steps of the ODE.
      method: method of the ODE.
    """

    network: Any
    size: int
    num_steps: int
    method: str


def make(options: Mapping[str, Any], size: int) -> FlowPrior:
    """The flow of a code of `size` dimensions, by `latent_flows.FLOW_OPTIONS`.

    Its network is an MLP for any `flow_network`: a code is one token.
    """
    network = MLPFlow(options["flow_width"], options["flow_depth"])
    return FlowPrior(network, size, options["ode_steps"], options["ode_method"])


def init(own: FlowPrior, key: PRNGKey) -> Params:
    """The initial parameters; the velocity is 0."""
    return own.network.init(key, jnp.zeros((1, own.size)), jnp.zeros(1))


def _velocity(own: FlowPrior, params: Params) -> flows.Velocity:
    return lambda s, t: own.network.apply(params, s, t)


def loss(
    own: FlowPrior, params: Params, s: Array, noise_key: PRNGKey, time_key: PRNGKey
) -> Array:
    """The loss of the velocity [B] on codes s [B, c], constants."""
    return flows.flow_matching_loss(
        _velocity(own, params),
        jax.lax.stop_gradient(s),
        jax.random.normal(noise_key, s.shape),
        flows.sample_times(time_key, len(s)),
    )


def sample(own: FlowPrior, params: Params, key: PRNGKey, num: int) -> Array:
    """Codes [num, c]."""
    noise = jax.random.normal(key, (num, own.size))
    return flows.integrate(_velocity(own, params), noise, own.num_steps, own.method)


def log_prob(own: FlowPrior, params: Params, s: Array, key: PRNGKey) -> Array:
    """log p(s) [...] of codes s [..., c], by Heun's method; nats.

    `key`: of the divergence, estimated for more than MOST_EXACT dimensions.
    """
    rows = s.reshape(-1, own.size)
    signs = key if own.size > MOST_EXACT else None
    found = flows.log_density(_velocity(own, params), rows, own.num_steps, key=signs)
    return found.reshape(s.shape[:-1])
