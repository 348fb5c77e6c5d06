"""JNF: a joint VAE, and a normalizing flow for the posterior of each modality.

Senellart et al. (2023). Two stages:

1  the ELBO of JMVAE, with a joint encoder q(z|X):
   E log p(X|z) - beta KL(q(z|X)||N(0, I))
2  with joint encoder and decoders fixed, E_{q(z|X)} sum_m log q_m(z|x_m), where q_m
   transforms the Gaussian of the encoder of x_m by a flow f_m:

       log q_m(z|x_m) = log N(f_m(z); mu_m, s_m^2) + log |det df_m/dz|

The posterior is q(z|X) given all modalities, q_m given one, and given other subsets A

    p(z)^(1 - |A|) prod_{m in A} q_m(z|x_m),

up to a constant. To sample it, each expert gives one draw; importance resampling, with
the mixture of the experts as the proposal, selects one of these, and hmc_steps of
Hamiltonian Monte Carlo start from it.

JNF-Shared (Senellart & Allassonniere, 2025) first trains a code e_m of each modality by
contrastive learning (`codes`), which the other stages do not change. mu_m and s_m are
functions of e_m, so that an expert has only shared information.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax import networks
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, elbo, flows, hmc
from mmvae_jax.models import codes, parts
from mmvae_jax.models.coordination import coordinated_elbo
from mmvae_jax.models.joint_encoder import make_joint_encoder
from mmvae_jax.models.options import Options, number, share
from mmvae_jax.models.parts import (
    DRAWN,
    assemble,
    drawing,
    encode,
    make_networks,
    standard_latents,
    wide,
)
from mmvae_jax.networks import vectors
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
    # Steps of HMC and gradients per step, for subsets of several modalities. Published:
    # 100 steps of 10 gradients with step size 0.01; here step sizes adapt.
    "hmc_steps": number(10, 0),
    "hmc_leapfrogs": number(4, 1),
    # Fraction of the run's steps for the joint VAE.
    "joint_share": share(0.5),
}

SHARED_OPTIONS: Options = {
    **codes.OPTIONS,
    **OPTIONS,
    "code_share": share(0.1),  # fraction of the steps for the code, before the VAE
}


class _Parts(NamedTuple):
    """Networks and options of one model.

    Attributes:
      nets: networks of all modalities, with the encoders inside the joint encoder.
      experts: the same with the encoders of the experts, of modalities or codes.
      coders: in JNF-Shared, modality -> the encoder of its code.
      joint: the joint encoder.
      flow: the flow of a modality.
      options: options of the model.
    """

    nets: parts.Networks
    experts: parts.Networks
    coders: Mapping[str, Any]
    joint: Any
    flow: Any
    options: Mapping[str, Any]

    @property
    def num(self) -> int:
        """M, the number of modalities."""
        return len(self.nets.shapes)


def jnf_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any],
    *,
    is_shared: bool = False,
) -> MultimodalVAE:
    """Model of the equations above; beta applies to the joint VAE.

    The published flows are autoregressive (MAF), whose inverse needs one pass per
    latent dimension; the flows here are couplings. In all stages, the joint encoder
    gets zeros for missing modalities.

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      options: those of OPTIONS, or of SHARED_OPTIONS.
      is_shared: whether experts encode a code (JNF-Shared).

    Raises:
      UsageError: the fractions of the steps leave no step for the last stage.
    """
    own = _parts(config, shapes, options, is_shared)
    base = assemble(own.experts, standard_latents((config.model.latent_dim,)))
    forms = networks.convolution_forms(
        *own.nets.encoders.values(), *own.coders.values()
    )
    return drawing(base, partial(_posterior, own), _proposal)._replace(
        init=partial(_init, own, base),
        objective=partial(_objective, own),
        encode=partial(_encode, own),
        # All modalities share the latents: the prior does not depend on the subset.
        log_prior=lambda params, z, subset=None: base.log_prior(params, z),
        convolutions=base.convolutions | forms,
        stages=_stages(own),
    )


def _parts(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any],
    is_shared: bool,
) -> _Parts:
    """The networks of a model."""
    size = config.model.latent_dim
    nets = make_networks(config, shapes, size)
    experts, coders = nets, {}
    if is_shared:
        code_size = options["code_dim"]
        coders = codes.code_networks(options["code_network"], nets, code_size)
        of_code = vectors.MLPEncoder(size, (options["flow_width"],))
        experts = nets._replace(
            encoders=dict.fromkeys(shapes, of_code),
            shapes=dict.fromkeys(shapes, (code_size,)),
            counts=frozenset(),  # codes are not counts
        )
    flow = CouplingFlow(options["flow_layers"], options["flow_width"])
    return _Parts(nets, experts, coders, make_joint_encoder(nets), flow, options)


def _stages(own: _Parts) -> tuple[Stage, ...]:
    """The two stages, or three."""
    before = own.options["code_share"] if own.coders else 0.0
    end = before + own.options["joint_share"]
    if end >= 1:
        raise UsageError(
            "config.model.options.code_share and joint_share must have a sum below 1, "
            f"got {before:g} and {own.options['joint_share']:g}: what is left is of "
            "the flows"
        )
    stages = (
        Stage(
            "joint",
            lambda n: round(end * n),
            partial(_objective, own),
            ("decoders", "joint"),
        ),
        Stage(
            "flows",
            lambda n: n,
            partial(_flow_objective, own),
            ("encoders", "flows"),
            has_beta=False,
        ),
    )
    if not own.coders:
        return stages
    return (codes.stage(own.nets, own.coders, lambda n: round(before * n)), *stages)


def _init(own: _Parts, base: MultimodalVAE, key: PRNGKey) -> Params:
    """Parameters before the first stage."""
    own_key, joint_key, flow_key, code_key = jax.random.split(key, 4)
    z = jnp.zeros((1, own.nets.latent_dim))
    flow_keys = jax.random.split(flow_key, own.num)
    params = base.init(own_key) | {
        "joint": own.joint.init(joint_key),
        "flows": jax.vmap(lambda key: own.flow.init(key, z))(flow_keys),
    }
    if own.coders:
        params["code"] = codes.init(own.nets, own.coders, code_key)
    return params


def _joint(own: _Parts, params: Params, batch: Batch) -> Gaussian:
    """q(z|X) [B, D], with zeros as inputs for missing modalities."""
    features = own.joint.features(params["joint"], batch)
    if OBSERVED not in batch:
        return own.joint.posterior(params["joint"], features)
    return own.joint.of_subset(params["joint"], features, batch[OBSERVED].T)


def _experts(own: _Parts, params: Params, batch: Batch) -> Gaussian:
    """N(mu_m, s_m^2) of each modality before its flow, [M, B, D]."""
    if own.coders:
        found = codes.encode(own.nets, own.coders, params, batch)
        batch = dict(batch) | dict(zip(own.coders, found, strict=True))
    return encode(own.experts, params, batch)


def _encode(own: _Parts, params: Params, batch: Batch) -> Gaussian:
    """The experts before their flows, and q(z|X): [M + 1, B, D]."""
    return jax.tree.map(
        lambda rows, row: jnp.concatenate([rows, row[None]]),
        _experts(own, params, batch),
        _joint(own, params, batch),
    )


def _objective(
    own: _Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, ObjectiveTerms]:
    """The joint ELBO, for the stage of the joint VAE and for evaluation."""
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
    """The last stage: the experts' log-density of samples of q(z|X)."""
    del beta  # no KL term
    z = distributions.sample(_joint(own, params, batch), key)
    experts = _experts(own, params, batch)
    values = _log_experts(own, params, experts, z)
    total = elbo.observed_sum(values, elbo.observed_of(batch, own.num))
    gain = jnp.mean(total)
    return -gain, {"experts": gain}


def _log_experts(own: _Parts, params: Params, experts: Gaussian, z: Array) -> Array:
    """log q_m(z|x_m) [M, B] of z [B, D]; experts [M, B, D] are before their flows."""

    def one(own_params: Params, expert: Gaussian) -> Array:
        return flows.log_pushed(partial(own.flow.apply, own_params), expert, z)

    return jax.vmap(one)(params["flows"], experts)


def _posterior(
    own: _Parts, params: Params, experts: Gaussian, subset: AnyArray, key: PRNGKey
) -> Gaussian:
    """q(z|X) for complete examples, else a Gaussian around a draw for the subset."""
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


def _proposal(params: Params, experts: Gaussian, subset: AnyArray) -> Gaussian:
    """q(z|X); missing modalities of the encoded batch had zeros as inputs."""
    del params, subset
    return jax.tree.map(lambda field: field[-1], experts)


def _draw(
    own: _Parts, params: Params, experts: Gaussian, given: Array, key: PRNGKey
) -> Array:
    """A sample [B, D] of the posterior of the given subset, bool [M, B]."""
    sample_key, choice_key, chain_key = jax.random.split(key, 3)
    num = jnp.sum(given, axis=0)

    def inverse(own_params: Params, x: Array) -> Array:
        return own.flow.apply(own_params, x, is_inverse=True)[0]

    def log_densities(z: Array) -> tuple[Array, Array]:
        """Log-densities of the subset's posterior and of its experts' mixture, [B]."""
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
    # Approximates the standard deviation of the product.
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

    # A single expert is sampled exactly and needs no HMC.
    is_several = num > 1
    end = jax.lax.cond(jnp.any(is_several), moved, lambda: start)
    return jnp.where(is_several[:, None], end, start)
