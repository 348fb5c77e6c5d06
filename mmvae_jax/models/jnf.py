"""JNF: a joint VAE, and a normalizing flow for the posterior of each modality.

Senellart et al. (2023). Two stages:

1  the ELBO of JMVAE, with a joint encoder q(z|X):
   E log p(X|z) - beta KL(q(z|X)||N(0, I))
2  with joint encoder and decoders fixed, E_{q(z|X)} sum_m log q_m(z|x_m), where q_m is
   a Gaussian of the encoder of x_m under a flow f_m:

       log q_m(z|x_m) = log N(f_m(z); mu_m, s_m^2) + log |det df_m/dz|

The posterior given all modalities is q(z|X), given one q_m, and given other subsets A

    p(z)^(1 - |A|) prod_{m in A} q_m(z|x_m),

up to a constant. To sample it, one draw of each expert is taken, one of these is chosen
by importance resampling against their mixture, and hmc_steps of Hamiltonian Monte Carlo
start from there.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import distributions, elbo, flows, hmc
from mmvae_jax.models import parts
from mmvae_jax.models.coordination import coordinated_elbo
from mmvae_jax.models.joint_encoder import make_joint_encoder
from mmvae_jax.models.options import Option, Options, number
from mmvae_jax.models.parts import (
    DRAWN,
    assemble,
    drawing,
    encode,
    make_networks,
    standard_latents,
    wide,
)
from mmvae_jax.networks.flows import CouplingFlow
from mmvae_jax.types import (
    OBSERVED,
    AnyArray,
    Array,
    Batch,
    Gaussian,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
    Stage,
)

OPTIONS: Options = {
    "flow_layers": number(4, 1),  # couplings of each modality's flow
    "flow_width": number(128, 1),
    # Of several modalities, not all: momenta of HMC, and gradients of each. Published:
    # 100 steps of 10 gradients, of size 0.01; here sizes adapt.
    "hmc_steps": number(10, 0),
    "hmc_leapfrogs": number(4, 1),
    # Share of the steps of the run that the joint VAE has.
    "joint_share": Option(0.5, lambda x: 0 < x < 1, "{} must be in (0, 1), got {}"),
}


class _Parts(NamedTuple):
    """Networks of one model, which its functions share."""

    nets: parts.Networks
    joint: Any
    flow: Any
    options: Mapping[str, Any]

    @property
    def num(self) -> int:
        """M, the number of modalities."""
        return len(self.nets.shapes)


def jnf_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """Model of the equations above; beta is that of the first stage.

    The published flows are autoregressive (MAF), whose inverse takes as many passes as
    there are latent dimensions; here they are couplings. An example that misses
    modalities has zeros for them in the joint encoder, in both stages.

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      options: those of OPTIONS.
    """
    nets = make_networks(config, shapes, config.model.latent_dim)
    base = assemble(nets, standard_latents((config.model.latent_dim,)))
    flow = CouplingFlow(options["flow_layers"], options["flow_width"])
    own = _Parts(nets, make_joint_encoder(nets), flow, options)

    def init(key: PRNGKey) -> Params:
        own_key, joint_key, flow_key = jax.random.split(key, 3)
        z = jnp.zeros((1, config.model.latent_dim))
        flow_keys = jax.random.split(flow_key, own.num)
        return base.init(own_key) | {
            "joint": own.joint.init(joint_key),
            "flows": jax.vmap(lambda key: flow.init(key, z))(flow_keys),
        }

    objective = partial(_objective, own)
    share = options["joint_share"]
    return drawing(base, partial(_posterior, own))._replace(
        init=init,
        objective=objective,
        encode=partial(_encode, own),
        stages=(
            Stage(
                "joint", lambda n: round(share * n), objective, ("decoders", "joint")
            ),
            Stage(
                "flows",
                lambda n: n,
                partial(_flow_objective, own),
                ("encoders", "flows"),
            ),
        ),
    )


def _joint(own: _Parts, params: Params, batch: Batch) -> Gaussian:
    """q(z|X) [B, D], with inputs of zeros for what is missing."""
    features = own.joint.features(params["joint"], batch)
    if OBSERVED not in batch:
        return own.joint.posterior(params["joint"], features)
    return own.joint.of_subset(params["joint"], features, batch[OBSERVED].T)


def _encode(own: _Parts, params: Params, batch: Batch) -> Gaussian:
    """N(mu_m, s_m^2) of each modality before its flow, and q(z|X): [M + 1, B, D]."""
    return jax.tree.map(
        lambda rows, row: jnp.concatenate([rows, row[None]]),
        encode(own.nets, params, batch),
        _joint(own, params, batch),
    )


def _objective(
    own: _Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, ObjectiveTerms]:
    """The first stage, which is what is evaluated: the joint ELBO."""
    terms = coordinated_elbo(
        _joint(own, params, batch),
        None,
        batch,
        key,
        log_likelihoods=parts.log_likelihoods(own.nets, params),
    )
    return elbo.loss(terms, beta), terms


def _flow_objective(
    own: _Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, dict[str, Array]]:
    """The second stage: the experts' log-density of samples of q(z|X)."""
    del beta  # no KL term
    z = distributions.sample(_joint(own, params, batch), key)
    experts = encode(own.nets, params, batch)
    values = _log_experts(own, params, experts, z)
    total = elbo.observed_sum(values, elbo.observed_of(batch, own.num))
    gain = jnp.mean(total)
    return -gain, {"experts": gain}


def _log_experts(own: _Parts, params: Params, experts: Gaussian, z: Array) -> Array:
    """log q_m(z|x_m) [M, B] of z [B, D], by experts [M, B, D] before their flows."""

    def one(own_params: Params, expert: Gaussian) -> Array:
        return flows.log_pushed(partial(own.flow.apply, own_params), expert, z)

    return jax.vmap(one)(params["flows"], experts)


def _posterior(
    own: _Parts, params: Params, experts: Gaussian, subset: AnyArray, key: PRNGKey
) -> Gaussian:
    """q(z|X) where all is observed; elsewhere around a draw of the subset's."""
    joint = jax.tree.map(lambda field: field[-1], experts)
    given = wide(subset, len(joint.mean))
    is_complete = jnp.all(given, axis=0)[:, None]

    def drawn() -> Gaussian:
        rows = jax.tree.map(lambda field: field[:-1], experts)
        z = _draw(own, params, rows, given, key)
        return Gaussian(
            jnp.where(is_complete, joint.mean, z),
            jnp.where(is_complete, joint.log_variance, DRAWN),
        )

    return jax.lax.cond(jnp.all(is_complete), lambda: joint, drawn)


def _draw(
    own: _Parts, params: Params, experts: Gaussian, given: Array, key: PRNGKey
) -> Array:
    """A sample [B, D] of the posterior of the subset given, bool [M, B]."""
    sample_key, choice_key, chain_key = jax.random.split(key, 3)
    num = jnp.sum(given, axis=0)

    def inverse(own_params: Params, x: Array) -> Array:
        return own.flow.apply(own_params, x, is_inverse=True)[0]

    def log_densities(z: Array) -> tuple[Array, Array]:
        """log of the posterior of the subset, and of its experts' mixture, [B]."""
        values = _log_experts(own, params, experts, z)
        log_prior = distributions.log_prob(
            Gaussian(jnp.zeros(z.shape[-1]), jnp.zeros(z.shape[-1])), z
        )
        product = (1 - num) * log_prior + elbo.observed_sum(values, given)
        return product, jax.nn.logsumexp(jnp.where(given, values, -jnp.inf), axis=0)

    candidates = jax.vmap(inverse)(
        params["flows"], distributions.sample(experts, sample_key)
    )
    product, mixture = jax.lax.map(log_densities, candidates)
    weights = jnp.where(given, product - mixture, -jnp.inf)
    chosen = jax.random.categorical(choice_key, weights, axis=0)
    start = jnp.take_along_axis(candidates, chosen[None, :, None], axis=0)[0]
    # About the deviation of their product.
    precision = elbo.observed_sum(jnp.exp(-experts.log_variance), given[..., None])

    def moved() -> Array:
        return hmc.hamiltonian(
            lambda z: log_densities(z)[0],
            start,
            chain_key,
            own.options["hmc_steps"],
            own.options["hmc_leapfrogs"],
            jax.lax.rsqrt(precision),
        )

    # One expert alone has been sampled from.
    is_several = num > 1
    end = jax.lax.cond(jnp.any(is_several), moved, lambda: start)
    return jnp.where(is_several[:, None], end, start)
