"""A code by contrast, and rectified flows over the latents of unimodal VAEs.

Three stages, of which each leaves the parameters of the others alone:

1  a VAE of each modality, by itself:
   sum_m E log p(x_m|w_m) - beta KL(q(w_m|x_m)||N(0, I))
2  a code e_m of each modality, of length one, by the contrast of all pairs of
   modalities (`contrastive.contrast`): what modalities have in common
3  flows over what the first two stages found. The code of a subset is the direction of
   the sum of its codes; with v = code_variance and c = code_dim,

       q(s|x_A) = N(sqrt(c (1 - v)) e_A, v I),   e_A = sum_{m in A} e_m / |...|,

   and p(s) prod_m p(w_m|s) are rectified flows, of the whitened w_m, of a random subset
   A (the empty one: s of all modalities) and with s dropped at times, for guidance.

A modality that is given keeps its q(w_m|x_m). One that is missing is drawn by its flow,
given s; and unconditional examples are s by the prior flow and w_m given s. Both have
the velocity v(w|0) + g (v(w|s) - v(w|0)), g = guidance, and so has the density p(w_m|s)
of the evaluated bound

    sum_m E log p(x_m|w_m) - E [log q(s|X) - log p(s)]
      - sum_m E [log q(w_m|x_m) - log p(w_m|s)].

No label trains anything. Cousins are the latent diffusion of Bounoua et al. (2024),
which has no code ("joint_without_code", by a flow), and IDMVAE (Zhang et al., 2026),
whose code is learned with the VAE.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmvae_jax import networks
from mmvae_jax.mathematics import distributions, elbo, flows, posteriors
from mmvae_jax.models import parts
from mmvae_jax.models.contrastive import AUTO, code_networks, contrast, unit
from mmvae_jax.models.options import Option, Options, number, one_of
from mmvae_jax.models.parts import assemble, encode, make_networks, standard_latents
from mmvae_jax.networks.flows import MLPFlow
from mmvae_jax.types import (
    SHARED,
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

# Initial logit scale of a pair of modalities; cosines lie in -1..1.
_INITIAL_SCALE = 5.0
# log of the variance around a latent vector that the flow has drawn: it is a sample.
_DRAWN = -20.0
# Latent dimensions up to which the divergence of a velocity is exact.
_MOST_EXACT = 32
# Draws that stand for the posterior of what is missing, where all of it is asked for.
_NUM_COMPONENTS = 8
_FLOWS = ("modality", "joint", "joint_without_code")
_SHARES = "{} must be two shares of the steps whose sum is below 1, got {}"

OPTIONS: Options = {
    "code_dim": number(16, 2),  # c
    "code_variance": Option(0.01, lambda x: 0 < x < 1, "{} must be in (0, 1), got {}"),
    # Encoder of the code: "auto" is "conv" for images, and "mlp" for all else.
    "code_network": one_of(AUTO, *networks.CLASSIFIERS),
    # Flow of each "modality" given the code; or one of all latents, given some and
    # the code, or without it.
    "flow": one_of(*_FLOWS),
    "guidance": number(2.0, 0),  # g; 1 = none
    "condition_dropped": number(0.1, 0, 1),  # share of examples without a code
    "empty_share": number(0.2, 0, 1),  # share of examples with no modality given
    "flow_width": number(128, 1),
    "flow_depth": number(3, 1),
    "ode_steps": number(25, 1),
    "ode_method": one_of("euler", "heun"),
    "ema": number(0.998, 0, 1),  # decay of the average of the flows' parameters
    # Shares of the steps of the run: the first two stages.
    "stage_shares": Option(
        (0.5, 0.1),
        lambda x: len(x) == 2 and min(x) > 0 and sum(x) < 1,
        _SHARES,
    ),
}


class _Parts(NamedTuple):
    """Networks and numbers of one model, which its functions share.

    Attributes:
      nets: of the VAEs.
      base: functions of the VAEs alone.
      coders: modality -> Linen module, x [B, ...] -> (features, output [B, c]).
      network: velocity of every flow, a Linen module.
      size: d, latent dimensions of a modality.
      options: those of OPTIONS.
    """

    nets: parts.Networks
    base: MultimodalVAE
    coders: Mapping[str, Any]
    network: Any
    size: int
    options: Mapping[str, Any]

    @property
    def num(self) -> int:
        """M, the number of modalities."""
        return len(self.nets.shapes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Latent dimensions of all modalities."""
        return (self.size,) * self.num

    @property
    def solver(self) -> tuple[int, str]:
        """Steps and method of the ODE."""
        return self.options["ode_steps"], self.options["ode_method"]

    def split(self, z: Any) -> tuple[Any, Any]:
        """The code and the rest, of a latent vector or a distribution of it."""
        return distributions.split(z, self.options["code_dim"])


def code_flow_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """Model of the equations above; beta is that of the first stage.

    Args:
      config: as for `make_model`; model.latent_dim is d, of the w_m of each modality.
      shapes: modality -> shape of one example.
      options: those of OPTIONS.
    """
    size, code_size = config.model.latent_dim, options["code_dim"]
    nets = make_networks(config, shapes, size)
    coders = code_networks(options["code_network"], nets, code_size)

    def latents_of(z: Array) -> dict[str, Array]:
        own = jnp.split(z[..., code_size:], len(shapes), axis=-1)
        return dict(zip(shapes, own, strict=True))

    base = assemble(
        nets, standard_latents((code_size + len(shapes) * size,)), latents_of
    )
    network = MLPFlow(options["flow_width"], options["flow_depth"])
    own = _Parts(nets, base, coders, network, size, options)
    forms = networks.convolution_forms(*coders.values())
    return base._replace(
        init=partial(_init, own),
        objective=partial(_objective, own),
        encode=partial(_encode, own),
        posterior=partial(_posterior, own),
        mixture_posterior=partial(_components, own, 1),
        posterior_components=partial(_components, own, _NUM_COMPONENTS),
        sample_prior=partial(_sample_prior, own),
        log_prior=partial(_log_prior, own),
        convolutions=base.convolutions | forms,
        latent_parts=((SHARED, code_size), *((m, size) for m in shapes)),
        draws_missing=True,
        stages=_stages(own),
    )


def _stages(own: _Parts) -> tuple[Stage, ...]:
    """The three stages."""
    first, second = own.options["stage_shares"]
    return (
        Stage(
            "vae",
            lambda steps: round(first * steps),
            partial(_vae_objective, own),
            ("encoders", "decoders"),
            learning_rate=_cosine,
        ),
        Stage(
            "code",
            lambda steps: round((first + second) * steps),
            partial(_code_objective, own),
            ("code",),
            learning_rate=lambda step, steps: jnp.float32(0.5),
        ),
        Stage(
            "flow",
            lambda steps: steps,
            partial(_flow_objective, own),
            ("flows",),
            partial(_whiten, own),
            partial(_average, own),
            lambda step, steps: 0.5 * _cosine(step, steps),
        ),
    )


def _init(own: _Parts, key: PRNGKey) -> Params:
    """Parameters before the first stage."""
    num, size, network = own.num, own.size, own.network
    own_key, code_key, flow_key = jax.random.split(key, 3)
    code_keys = jax.random.split(code_key, num)
    flow_keys = jax.random.split(flow_key, num + 1)
    code_size = own.options["code_dim"]
    t, s = jnp.zeros(1), jnp.zeros((1, code_size))
    velocities = {"prior": network.init(flow_keys[0], s, t)}
    if own.options["flow"] != "modality":
        inputs = jnp.zeros((1, num * size)), t, jnp.zeros((1, code_size + num))
        velocities["joint"] = network.init(flow_keys[1], *inputs)
    else:
        velocities["modality"] = jax.vmap(
            lambda key: network.init(key, jnp.zeros((1, size)), t, s)
        )(flow_keys[1:])
    coded = {
        m: coder.init(key, networks.blank(own.nets.shapes[m]))
        for key, (m, coder) in zip(code_keys, own.coders.items(), strict=True)
    }
    zeros = jnp.zeros(num * size)
    return own.base.init(own_key) | {
        "code": {
            "encoders": coded,
            "log_scale": jnp.full(1, math.log(_INITIAL_SCALE)),
        },
        "flows": velocities,
        "flows_average": velocities,
        # The variance is one, until the third stage measures it.
        "whitening": {"num": zeros + 1.0, "mean": zeros, "squares": zeros + 1.0},
    }


def _codes(own: _Parts, params: Params, batch: Batch) -> Array:
    """The codes [M, B, c], of length one; zeros where a modality is missing."""
    codes = []
    for m, coder in own.coders.items():
        x = jnp.asarray(batch[m])
        if m in own.nets.counts:
            x = jnp.log1p(x)
        elif len(own.nets.shapes[m]) == 3:
            # Around 1/2 the contrast may never leave its plateau.
            x = 2.0 * x - 1.0
        codes.append(unit(coder.apply(params["code"]["encoders"][m], x)[1]))
    observed = jnp.asarray(elbo.observed_of(batch, own.num))
    return jnp.where(observed[..., None], jnp.stack(codes), 0.0)


def _around(own: _Parts, direction: Array) -> Gaussian:
    """q(s) of a code of length one."""
    variance, code_size = own.options["code_variance"], own.options["code_dim"]
    radius = math.sqrt(code_size * (1 - variance))
    return Gaussian(radius * direction, jnp.full_like(direction, math.log(variance)))


def _encode(own: _Parts, params: Params, batch: Batch) -> Gaussian:
    """q(s|x_m) and q(w_m|x_m), end to end [M, B, c + d]."""
    latents = encode(own.nets, params, batch)
    return distributions.join(_around(own, _codes(own, params, batch)), latents)


def _code_posterior(own: _Parts, experts: Gaussian, subset: AnyArray) -> Gaussian:
    """q(s|x_A) [B, c], of experts [M, B, c + d]."""
    codes = own.split(experts)[0].mean
    observed = posteriors.append_axes(jnp.asarray(subset), 3)
    return _around(own, unit(elbo.observed_sum(codes, observed)))


def _velocity(
    own: _Parts, velocities: Params, s: Array, given: Array
) -> flows.Velocity:
    """Velocity of latents [B, M d], given a code [B, c] and some of them, [M, B]."""
    is_coded = own.options["flow"] in _FLOWS[:2]

    def joint(x: Array, t: Array) -> Array:
        code = s if is_coded else jnp.zeros_like(s)
        condition = jnp.concatenate([code, given.T.astype(x.dtype)], axis=-1)
        return own.network.apply(velocities["joint"], x, t, condition)

    def apart(x: Array, t: Array) -> Array:
        rows = jnp.moveaxis(x.reshape(len(x), own.num, own.size), 1, 0)
        apply = jax.vmap(own.network.apply, (0, 0, None, None))
        return _end_to_end(apply(velocities["modality"], rows, t, s))

    return apart if own.options["flow"] == "modality" else joint


def _guided(own: _Parts, params: Params, s: Array, given: Array) -> flows.Velocity:
    """The velocity that latents are drawn by."""
    velocities = params["flows_average"]
    conditional = _velocity(own, velocities, s, given)
    return _guide(
        own, conditional, _velocity(own, velocities, jnp.zeros_like(s), given)
    )


def _guided_alone(own: _Parts, velocities: Params, s: Array) -> flows.Velocity:
    """As `_guided`, of the latents [B, d] of one modality, at a time shared by all."""

    def conditional(x: Array, t: Array) -> Array:
        return own.network.apply(velocities, x, t, s)

    def free(x: Array, t: Array) -> Array:
        # One row of time and condition does for all examples.
        return own.network.apply(velocities, x, t[:1], jnp.zeros_like(s[:1]))

    return _guide(own, conditional, free)


def _guide(
    own: _Parts, conditional: flows.Velocity, free: flows.Velocity
) -> flows.Velocity:
    """The velocities with and without a code, as the options weigh them."""
    strength = own.options["guidance"]
    if strength == 1 or own.options["flow"] not in _FLOWS[:2]:
        return conditional  # the other one is not computed
    return flows.guided(conditional, free, strength)


def _prior_velocity(own: _Parts, velocities: Params) -> flows.Velocity:
    """Velocity of codes."""
    return lambda s, t: own.network.apply(velocities["prior"], s, t)


def _moments(params: Params) -> flows.Moments:
    """The moments of all latents, for whitening."""
    return flows.Moments(**params["whitening"])


def _draw(
    own: _Parts, params: Params, key: PRNGKey, s: Array, w: Array, given: Array
) -> Array:
    """Latents w [B, M d], where they are not given (bool [M, B]) by the flow."""
    mask = flows.dimensions_of(given, own.sizes)
    r = flows.whiten(_moments(params), w)
    r = jnp.where(mask, r, jax.random.normal(key, w.shape, w.dtype))
    if own.options["flow"] == "modality":
        r = _moved_apart(own, params["flows_average"]["modality"], s, r, given)
    else:
        r = _moved(own, _guided(own, params, s, given), r, given, mask)
    return jnp.where(mask, w, flows.unwhiten(_moments(params), r))


def _moved_apart(
    own: _Parts, velocities: Params, s: Array, r: Array, given: Array
) -> Array:
    """Latents r [B, M d], each modality moved by its own flow."""
    rows = jnp.moveaxis(r.reshape(len(r), own.num, own.size), 1, 0)

    def move(arguments: tuple[Params, Array, Array]) -> Array:
        velocity, *latents = arguments
        return _moved(own, _guided_alone(own, velocity, s), *latents)

    return _end_to_end(jax.lax.map(move, (velocities, rows, given)))


def _moved(
    own: _Parts,
    velocity: flows.Velocity,
    r: Array,
    given: Array,
    mask: Array | None = None,
) -> Array:
    """Latents moved from noise by a flow; as they are where nothing is missing."""
    return jax.lax.cond(
        jnp.all(given),
        lambda: r,
        lambda: flows.integrate(velocity, r, *own.solver, mask),
    )


def _posterior(
    own: _Parts, params: Params, experts: Gaussian, subset: AnyArray, key: PRNGKey
) -> Gaussian:
    """q(s, w|x_A), of which w_m of what is missing is drawn by the flow."""
    code_key, draw_key = jax.random.split(key)
    code = _code_posterior(own, experts, subset)
    s = distributions.sample(code, code_key)
    latents = jax.tree.map(_end_to_end, own.split(experts)[1])
    given = jnp.broadcast_to(
        posteriors.append_axes(jnp.asarray(subset), 2), (own.num, len(s))
    )
    mask = flows.dimensions_of(given, own.sizes)
    mean = _draw(own, params, draw_key, s, latents.mean, given)
    spread = jnp.where(mask, latents.log_variance, _DRAWN)
    return distributions.join(code, Gaussian(mean, spread))


def _components(
    own: _Parts, count: int, params: Params, experts: Gaussian, subset: AnyArray
) -> tuple[Gaussian, Array]:
    """Some draws of the posterior, whose keys are always the same."""
    drawn = jax.lax.map(
        lambda key: _posterior(own, params, experts, subset, key),
        jax.random.split(jax.random.key(0), count),
    )
    return drawn, jnp.full((count, 1), 1 / count)


def _sample_prior(own: _Parts, params: Params, key: PRNGKey, count: int) -> Array:
    """Latent vectors [count, c + M d]: a code, and latents given it."""
    code_key, draw_key = jax.random.split(key)
    s = jax.random.normal(code_key, (count, own.options["code_dim"]))
    velocity = _prior_velocity(own, params["flows_average"])
    s = flows.integrate(velocity, s, *own.solver)
    w = jnp.zeros((count, own.num * own.size))
    nothing = jnp.zeros((own.num, count), bool)
    return jnp.concatenate([s, _draw(own, params, draw_key, s, w, nothing)], axis=-1)


def _log_densities(
    own: _Parts,
    params: Params,
    s: Array,
    w: Array,
    key: PRNGKey,
    observed: AnyArray | None = None,
) -> Array:
    """log p(s) + sum_m log p(w_m|s) [B], over the modalities observed, [M, B].

    `key` is of the estimates of what has too many dimensions for the exact one.
    """
    velocity = _prior_velocity(own, params["flows_average"])
    signs = key if s.shape[-1] > _MOST_EXACT else None
    code = flows.log_density(velocity, s, *own.solver, key=signs)
    nothing = jnp.zeros((own.num, len(s)), bool)
    absent = None
    r = flows.whiten(_moments(params), w)
    velocity = _guided(own, params, s, nothing)
    jacobian = -jnp.log(flows.deviation(_moments(params)))
    if observed is not None:
        absent = ~jnp.broadcast_to(flows.dimensions_of(observed, own.sizes), r.shape)
        r, jacobian = jnp.where(absent, 0.0, r), jnp.where(absent, 0.0, jacobian)
    signs = key if w.shape[-1] > _MOST_EXACT else None
    latents = flows.log_density(velocity, r, *own.solver, absent, signs)
    return code + latents + jnp.sum(jacobian, axis=-1)


def _log_prior(own: _Parts, params: Params, z: Array) -> Array:
    """log p(s) + sum_m log p(w_m|s) of latent vectors [..., c + M d]."""
    rows = z.reshape(-1, z.shape[-1])
    found = _log_densities(own, params, *own.split(rows), jax.random.key(0))
    return found.reshape(z.shape[:-1])


def _objective(
    own: _Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, ObjectiveTerms]:
    """The bound on log p(X), which is evaluated and trains nothing."""
    code_key, own_key, sign_key = jax.random.split(key, 3)
    experts = _encode(own, params, batch)
    observed = jnp.asarray(elbo.observed_of(batch, own.num))
    code, latents = _code_posterior(own, experts, observed), own.split(experts)[1]
    s = distributions.sample(code, code_key)
    w = distributions.sample(latents, own_key)
    decoders = parts.log_likelihoods(own.nets, params)
    values = elbo.own_terms(w, batch, decoders)
    kl = distributions.log_prob(code, s)
    kl += elbo.observed_sum(distributions.log_prob(latents, w), observed)
    wide = jnp.broadcast_to(observed.reshape(own.num, -1), (own.num, len(s)))
    kl -= _log_densities(own, params, s, _end_to_end(w), sign_key, wide)
    zeros = jnp.zeros_like(kl)
    terms = ObjectiveTerms(elbo.observed_terms(values, observed), kl, zeros, zeros)
    return elbo.loss(terms, beta), terms


def _vae_objective(
    own: _Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, ObjectiveTerms]:
    """The first stage: the ELBO of each modality."""
    terms = elbo.unimodal_elbos(
        encode(own.nets, params, batch),
        batch,
        key,
        log_likelihoods=parts.log_likelihoods(own.nets, params),
    )
    return elbo.loss(terms, beta), terms


def _code_objective(
    own: _Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, dict[str, Array]]:
    """The second stage: the contrast of all pairs of modalities."""
    del key, beta  # it has no noise and no KL term
    observed = elbo.observed_of(batch, own.num)
    scale = jnp.exp(params["code"]["log_scale"])
    gain = jnp.mean(contrast(_codes(own, params, batch), scale, observed))
    return -gain, {"contrast": gain}


def _whiten(own: _Parts, params: Params, fold: Callable) -> Params:
    """Mean and variance of q(w_m|x_m) over all examples; the average begins."""

    def add(so_far: flows.Moments, batch: Batch) -> flows.Moments:
        latents = encode(own.nets, params, batch)
        observed = jnp.asarray(elbo.observed_of(batch, own.num))[..., None]
        counted = _end_to_end(jnp.broadcast_to(observed, latents.mean.shape))
        found = flows.moments(_end_to_end(latents.mean), counted)
        noise = jnp.where(counted, jnp.exp(_end_to_end(latents.log_variance)), 0.0)
        squares = found.squares + jnp.sum(noise, axis=0)
        return flows.merge_moments(so_far, found._replace(squares=squares))

    empty = flows.Moments(*(jnp.zeros(own.num * own.size) for _ in range(3)))
    return params | {
        "whitening": fold(add, empty)._asdict(),
        "flows_average": params["flows"],
    }


def _flow_objective(
    own: _Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, dict[str, Array]]:
    """The third stage: rectified flows of the latents, and of the code."""
    del beta  # no KL term
    keys = jax.random.split(key, 8)
    experts = _encode(own, params, batch)
    observed = jnp.broadcast_to(
        elbo.observed_of(batch, own.num).reshape(own.num, -1), experts.mean.shape[:2]
    )
    w = _end_to_end(distributions.sample(own.split(experts)[1], keys[0]))
    r = flows.whiten(_moments(params), w)
    given = flows.random_subsets(keys[1], observed, own.options["empty_share"])
    known = jnp.where(jnp.any(given, axis=0), given, observed)
    s = distributions.sample(_code_posterior(own, experts, known), keys[2])
    s = flows.drop_condition(keys[3], s, own.options["condition_dropped"])
    everything = distributions.sample(_code_posterior(own, experts, observed), keys[4])
    t = flows.sample_times(keys[5], len(s))
    noise_keys = jax.random.split(keys[6])
    flow = flows.flow_matching_loss(
        _velocity(own, params["flows"], s, given),
        r,
        jax.random.normal(noise_keys[0], r.shape),
        t,
        flows.dimensions_of(given, own.sizes),
        flows.dimensions_of(observed & ~given, own.sizes),
    )
    prior = flows.flow_matching_loss(
        _prior_velocity(own, params["flows"]),
        everything,
        jax.random.normal(noise_keys[1], s.shape),
        flows.sample_times(keys[7], len(s)),
    )
    flow, prior = jnp.mean(flow), jnp.mean(prior)
    return flow + prior, {"flow": flow, "prior_flow": prior}


def _average(own: _Parts, params: Params) -> Params:
    """Parameters after a step of the third stage, with the average of the flows."""
    rate = 1 - own.options["ema"]
    return params | {
        "flows_average": optax.incremental_update(
            params["flows"], params["flows_average"], rate
        )
    }


def _end_to_end(x: Array) -> Array:
    """Latents of all modalities as one vector, [M, B, d] -> [B, M d]."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)


def _cosine(step: Array, num_steps: int) -> Array:
    """Factor of the learning rate, from 1 to 0 over a stage."""
    return 0.5 * (1 + jnp.cos(jnp.pi * step / num_steps))
