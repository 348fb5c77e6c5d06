"""One rectified flow over the latents of unimodal VAEs, given any of them.

Bounoua et al. (2024) train a diffusion of the codes of unimodal autoencoders, with a
time for each modality; given modalities have the time of data. Here the autoencoders
are VAEs, whose beta may be small, and the diffusion is a rectified flow (`latent_flows`
has both stages). The velocity is v(w, t_1, ..., t_M) of the concatenated whitened
latents, where t_m = 1 for given modalities, t_m = 0 for absent ones, whose w_m is
noise, and t_m = t for modalities to draw. The loss is the squared error for the
modalities to draw, with random given subsets. Sampling uses a common time t. Training
drops the given modalities of some examples (condition_dropped), so that sampling can
use the velocity

    v(w, absent) + g (v(w, given) - v(w, absent)),   g = guidance.

There is no code: the flow of all latents is p(w), and the bound is

    sum_m E log p(x_m|w_m) - E [sum_m log q(w_m|x_m) - log p(w)].
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import distributions, elbo, flows
from mmvae_jax.models import latent_flows
from mmvae_jax.models.latent_flows import Parts
from mmvae_jax.models.options import Options, number, one_of
from mmvae_jax.models.parts import (
    assemble,
    by_modality,
    drawing,
    encode,
    end_to_end,
    make_networks,
    standard_latents,
    wide,
)
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

OPTIONS: Options = {
    **latent_flows.FLOW_OPTIONS,
    "flow_width": number(256, 1),  # width of the one flow of all modalities
    # Training times of the modalities to draw: "shared", as published and as in
    # sampling; or one for "each", as in UniDiffuser.
    "times": one_of("shared", "each"),
    "stage_shares": latent_flows.shares(0.5),  # of the VAEs
}


def latent_flow_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """Model of the equations above; beta is that of the first stage.

    Args:
      config: as for `make_model`; model.latent_dim is d, the dimension of each w_m.
      shapes: modality -> shape of one example.
      options: those of OPTIONS.

    Raises:
      UsageError: a flow that is never trained, or a Transformer without tokens to
        attend to.
    """
    latent_flows.check(options, is_joint=True)
    size = config.model.latent_dim
    nets = make_networks(config, shapes, size)
    base = assemble(
        nets,
        standard_latents((len(shapes) * size,)),
        partial(by_modality, shapes),
    )
    network = latent_flows.velocity_network(
        options, latent_flows.latent_shapes(config, nets)
    )
    own = Parts(nets, base, network, size, options)
    return drawing(base, partial(_posterior, own), partial(_proposal, own))._replace(
        init=partial(_init, own),
        objective=partial(_objective, own),
        sample_prior=partial(_sample_prior, own),
        log_prior=partial(latent_flows.log_prior, own, partial(_log_density, own)),
        latent_parts=tuple((m, size) for m in shapes),
        stages=(
            latent_flows.vae_stage(own),
            latent_flows.flow_stage(own, partial(_flow_objective, own)),
        ),
    )


def _init(own: Parts, key: PRNGKey) -> Params:
    """Parameters before the first stage."""
    own_key, flow_key = jax.random.split(key)
    w, times = jnp.zeros((1, own.num * own.size)), jnp.zeros((own.num, 1))
    velocities = own.network.init(flow_key, w, times)
    return own.base.init(own_key) | latent_flows.unlearned(own, velocities)


def _velocity(
    own: Parts, velocities: Params, given: Array, absent: Array | None = None
) -> flows.Velocity:
    """Velocity of latents [B, M d]; given and absent modalities are bool [M, B]."""
    # An MLP tells given modalities by their times alone.
    is_told = own.options["flow_network"] == latent_flows.TRANSFORMER
    marks = {"given": given} if is_told else {}

    def velocity(x: Array, t: Array) -> Array:
        times = jnp.where(given, 1.0, t)
        if absent is not None:
            times = jnp.where(absent, 0.0, times)
        return own.network.apply(velocities, x, times, **marks)

    return velocity


def _guided(
    own: Parts, velocities: Params, given: Array, noise: Array, mask: Array
) -> flows.Velocity:
    """The guided velocity; noise and mask as in `latent_flows.draw`."""
    conditional = _velocity(own, velocities, given)
    strength = own.options["guidance"]
    if strength == 1:
        return conditional
    alone = _velocity(own, velocities, jnp.zeros_like(given), given)

    def free(x: Array, t: Array) -> Array:
        return alone(jnp.where(mask, noise, x), t)

    guided = flows.guided(conditional, free, strength)
    # If nothing is given, both velocities are equal.
    return lambda x, t: jax.lax.cond(jnp.any(given), guided, conditional, x, t)


def _draw(own: Parts, params: Params, key: PRNGKey, w: Array, given: Array) -> Array:
    """Latents [B, M d]: w if given (bool [M, B]), else draws of the flow."""

    def move(r: Array, noise: Array, mask: Array) -> Array:
        velocity = _guided(own, params["flows_average"], given, noise, mask)
        return latent_flows.moved(own, velocity, r, given, mask)

    return latent_flows.draw(own, params, key, w, given, move)


def _posterior(
    own: Parts, params: Params, experts: Gaussian, subset: AnyArray, key: PRNGKey
) -> Gaussian:
    """q(w|x_A); the flow draws w_m of missing modalities."""
    return latent_flows.posterior(
        own, experts, subset, partial(_draw, own, params, key)
    )


def _proposal(
    own: Parts, params: Params, experts: Gaussian, subset: AnyArray
) -> Gaussian:
    """q(w_m|x_m) of observed modalities, else N(0, I)."""
    del params  # the experts are enough
    return latent_flows.proposal(own, experts, subset)


def _sample_prior(own: Parts, params: Params, key: PRNGKey, count: int) -> Array:
    """Latent vectors [count, M d]."""
    w = jnp.zeros((count, own.num * own.size))
    return _draw(own, params, key, w, jnp.zeros((own.num, count), bool))


def _log_density(
    own: Parts, params: Params, w: Array, key: PRNGKey, absent: Array | None
) -> Array:
    """log p(w) [B], without absent modalities (bool [M, B])."""
    noise_key, sign_key = jax.random.split(key)
    nothing = jnp.zeros((own.num, len(w)), bool)
    velocity = _velocity(own, params["flows_average"], nothing, absent)
    noise = latent_flows.noise_of_rows(noise_key, w)
    return latent_flows.log_density(own, params, velocity, w, sign_key, absent, noise)


def _objective(
    own: Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, ObjectiveTerms]:
    """The bound on log p(X), for evaluation only."""
    own_key, density_key = jax.random.split(key)
    latents = encode(own.nets, params, batch)

    def log_prior(w: Array, observed: Array) -> Array:
        return _log_density(own, params, w, density_key, ~observed)

    return latent_flows.bound(own, params, batch, latents, own_key, log_prior, beta)


def _flow_objective(
    own: Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, dict[str, Array]]:
    """The last stage: the flow of the observed latents that are not given."""
    del beta  # no KL term
    keys = jax.random.split(key, 5)
    latents = encode(own.nets, params, batch)
    observed = wide(elbo.observed_of(batch, own.num), latents.mean.shape[1])
    latents, observed = latent_flows.drawn_again(own, latents, observed)
    num = observed.shape[1]
    w = end_to_end(distributions.sample(latents, keys[0]))
    r = flows.whiten(latent_flows.whitening(params), w)
    given = flows.random_subsets(keys[1], observed, own.options["empty_share"])
    is_learned = observed & ~given
    given &= ~jax.random.bernoulli(keys[2], own.options["condition_dropped"], (num,))
    count = num if own.options["times"] == "shared" else own.num * num
    t = flows.sample_times(keys[3], count).reshape(-1, num)
    t = jnp.broadcast_to(t, (own.num, num))
    velocity = _velocity(own, params["flows"], given, ~(given | is_learned))
    loss = flows.flow_matching_loss(
        lambda x, _: velocity(x, t),
        r,
        jax.random.normal(keys[4], r.shape),
        flows.dimensions_of(t, own.sizes),
        flows.dimensions_of(given, own.sizes),
        flows.dimensions_of(is_learned, own.sizes),
    )
    loss = jnp.mean(loss)
    return loss, {"flow": loss}
