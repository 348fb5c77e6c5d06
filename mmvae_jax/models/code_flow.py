"""A contrastive code, and rectified flows over the latents of unimodal VAEs.

Three stages, each with its own parameters:

1  a VAE of each modality:
   sum_m E log p(x_m|w_m) - beta KL(q(w_m|x_m)||N(0, I))
2  a code e_m of each modality, of length one, by contrastive learning on all pairs of
   modalities (`codes.contrast`): the shared information
3  flows over the codes and latents. The code of a subset is the normalised sum of its
   codes; with v = code_variance and c = code_dim,

       q(s|x_A) = N(sqrt(c (1 - v)) e_A, v I),   e_A = sum_{m in A} e_m / |...|,

   and p(s) prod_m p(w_m|s) are rectified flows of the whitened w_m. In training, A is
   a random subset (if it is empty, s is the code of all modalities). For guidance, s is
   dropped for some examples.

A given modality keeps its q(w_m|x_m). A missing w_m is drawn from its flow, given s.
For unconditional examples, the prior flow draws s, and then the flows draw w_m given s.
Both cases use the velocity v(w|0) + g (v(w|s) - v(w|0)), g = guidance, as does the
density p(w_m|s) of the evaluated bound

    sum_m E log p(x_m|w_m) - E [log q(s|X) - log p(s)]
      - sum_m E [log q(w_m|x_m) - log p(w_m|s)].

With single_stage all three are trained at once. The flows get latents and codes with
stopped gradients, whitened by running moments, so that they do not affect the VAEs and
the code.

Training uses no labels. Related models are the latent diffusion of Bounoua et al.
(2024), which has no code (`latent_flow`), and IDMVAE (Zhang et al., 2026), which learns
the code together with the VAE.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax import networks
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, elbo, flows, posteriors
from mmvae_jax.models import code_priors, codes, latent_flows
from mmvae_jax.models.latent_flows import Parts
from mmvae_jax.models.options import Option, Options, one_of
from mmvae_jax.models.parts import (
    Networks,
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

# Decay of the running moments per step, an average over about a hundred batches, in
# which latents change little and variances are precise.
_KEPT = 0.99

OPTIONS: Options = {
    **codes.OPTIONS,
    "code_variance": Option(0.01, lambda x: 0 < x < 1, "{} must be in (0, 1), got {}"),
    # One flow per "modality" given the code; or one "joint" flow of all latents, given
    # the code and the latents of given modalities. It is told which modalities are
    # absent, and reads noise in their place, as latent_flow does.
    "flow": one_of("modality", "joint")._replace(
        words="unknown {} {!r}; choose one of modality, joint; a flow without a code "
        "is the model latent_flow"
    ),
    **latent_flows.FLOW_OPTIONS,
    "stage_shares": latent_flows.shares(0.5, 0.1),  # of VAEs and code
    # Whether everything is trained at once; `stage_shares` is then not used.
    "single_stage": Option(False),
}


def code_flow_model(
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
    latent_flows.check(options, is_joint=options["flow"] == "joint")
    size, code_size = config.model.latent_dim, options["code_dim"]
    nets = make_networks(config, shapes, size)
    coders = codes.code_networks(options["code_network"], nets, code_size)
    base = assemble(
        nets,
        standard_latents((code_size + len(shapes) * size,)),
        lambda z: by_modality(shapes, z[..., code_size:]),
    )
    network = _velocity_network(config, nets, options)
    own = Parts(nets, base, network, size, options, coders)
    forms = networks.convolution_forms(*coders.values())
    density = partial(_log_densities, own)
    return drawing(base, partial(_posterior, own), partial(_proposal, own))._replace(
        init=partial(_init, own),
        objective=partial(_objective, own),
        encode=partial(_encode, own),
        sample_prior=partial(_sample_prior, own),
        log_prior=partial(latent_flows.log_prior, own, density),
        convolutions=base.convolutions | forms,
        latent_parts=((SHARED, code_size), *((m, size) for m in shapes)),
        stages=_stages(own),
    )


def _velocity_network(config: Any, nets: Networks, options: Mapping[str, Any]) -> Any:
    """The velocity of the joint flow, or of each modality's flow."""
    shapes = latent_flows.latent_shapes(config, nets)
    if options["flow"] == "joint":
        return latent_flows.velocity_network(options, shapes)
    m, shape = next(iter(shapes.items()))
    if options["flow_network"] == latent_flows.TRANSFORMER:
        for other, own in shapes.items():
            if own != shape:
                raise UsageError(
                    f"config.model.options.flow_network={latent_flows.TRANSFORMER!r} "
                    "with flow='modality' needs latent vectors of one shape, and those "
                    f"of {m} and {other} are {shape} and {own}: set flow to 'joint', "
                    "or config.modality.network for all"
                )
    return latent_flows.velocity_network(
        options, {m: shape}, ", flow to 'joint' (one token for each modality)"
    )


def _stages(own: Parts) -> tuple[Stage, ...]:
    """The three stages, or one with single_stage."""
    if own.options["single_stage"]:
        learned = ("encoders", "decoders", "code", "flows")
        objective, after_step = partial(_at_once, own), partial(_after_step, own)
        rate = latent_flows.cosine
        return (
            Stage(
                "all", lambda steps: steps, objective, learned, None, after_step, rate
            ),
        )
    share = sum(own.options["stage_shares"])
    return (
        latent_flows.vae_stage(own),
        codes.stage(own.nets, own.coders, lambda steps: round(share * steps)),
        latent_flows.flow_stage(own, partial(_flow_objective, own)),
    )


def _split(own: Parts, z: Any) -> tuple[Any, Any]:
    """The code and the rest, of a latent vector or a distribution of it."""
    return distributions.split(z, own.options["code_dim"])


def _init(own: Parts, key: PRNGKey) -> Params:
    """Parameters before the first stage."""
    num, size, network = own.num, own.size, own.network
    own_key, code_key, flow_key = jax.random.split(key, 3)
    flow_keys = jax.random.split(flow_key, num + 1)
    code_size = own.options["code_dim"]
    t, s = jnp.zeros(1), jnp.zeros((1, code_size))
    velocities = {"prior": code_priors.init(own.prior, flow_keys[0])}
    if own.options["flow"] == "joint":
        inputs = jnp.zeros((1, num * size)), t, s, jnp.zeros((num, 1), bool)
        velocities["joint"] = network.init(flow_keys[1], *inputs)
    else:
        velocities["modality"] = jax.vmap(
            lambda key: network.init(key, jnp.zeros((1, size)), t, s)
        )(flow_keys[1:])
    code = codes.init(own.nets, own.coders, code_key)
    flows_alone = latent_flows.unlearned(own, velocities)
    return own.base.init(own_key) | {"code": code} | flows_alone


def _around(own: Parts, direction: Array) -> Gaussian:
    """q(s) of a code of length one."""
    variance, code_size = own.options["code_variance"], own.options["code_dim"]
    radius = math.sqrt(code_size * (1 - variance))
    return Gaussian(radius * direction, jnp.full_like(direction, math.log(variance)))


def _encode(own: Parts, params: Params, batch: Batch) -> Gaussian:
    """q(s|x_m) and q(w_m|x_m), concatenated, [M, B, c + d]."""
    latents = encode(own.nets, params, batch)
    directions = codes.encode(own.nets, own.coders, params, batch)
    return distributions.join(_around(own, directions), latents)


def _code_posterior(own: Parts, experts: Gaussian, subset: AnyArray) -> Gaussian:
    """q(s|x_A) [B, c], from experts [M, B, c + d]."""
    directions = _split(own, experts)[0].mean
    observed = posteriors.append_axes(jnp.asarray(subset), 3)
    return _around(own, codes.unit(elbo.observed_sum(directions, observed)))


def _velocity(
    own: Parts,
    velocities: Params,
    s: Array,
    given: Array,
    absent: Array | None = None,
) -> flows.Velocity:
    """Velocity of latents [B, M d], given a code [B, c]; masks are bool [M, B]."""
    has_times = own.options["flow_network"] == latent_flows.TRANSFORMER

    def joint(x: Array, t: Array) -> Array:
        marks = given
        if absent is not None and has_times:
            t = jnp.where(absent, 0.0, t)
        elif absent is not None:
            marks = given.astype(x.dtype) - absent
        return own.network.apply(velocities["joint"], x, t, s, marks)

    def apart(x: Array, t: Array) -> Array:
        rows = jnp.moveaxis(x.reshape(len(x), own.num, own.size), 1, 0)
        apply = jax.vmap(own.network.apply, (0, 0, None, None))
        return end_to_end(apply(velocities["modality"], rows, t, s))

    return joint if own.options["flow"] == "joint" else apart


def _guided(
    own: Parts, params: Params, s: Array, given: Array, absent: Array | None = None
) -> flows.Velocity:
    """The guided velocity of latents; arguments as of `_velocity`."""
    velocities = params["flows_average"]
    conditional = _velocity(own, velocities, s, given, absent)
    free = _velocity(own, velocities, jnp.zeros_like(s), given, absent)
    return _guide(own, conditional, free)


def _guided_alone(own: Parts, velocities: Params, s: Array) -> flows.Velocity:
    """`_guided` for the latents [B, d] of one modality, at the same time for all."""

    def conditional(x: Array, t: Array) -> Array:
        return own.network.apply(velocities, x, t, s)

    def free(x: Array, t: Array) -> Array:
        # Time and condition are equal for all examples: one row is enough.
        return own.network.apply(velocities, x, t[:1], jnp.zeros_like(s[:1]))

    return _guide(own, conditional, free)


def _guide(
    own: Parts, conditional: flows.Velocity, free: flows.Velocity
) -> flows.Velocity:
    """Combines the velocities with and without a code, by the option `guidance`."""
    strength = own.options["guidance"]
    if strength == 1:
        return conditional  # without computing the other one
    return flows.guided(conditional, free, strength)


def _draw(
    own: Parts, params: Params, key: PRNGKey, s: Array, w: Array, given: Array
) -> Array:
    """Latents [B, M d]: w if given (bool [M, B]), else draws of the flow."""

    def move(r: Array, noise: Array, mask: Array) -> Array:
        if own.options["flow"] == "modality":
            velocities = params["flows_average"]["modality"]
            return _moved_apart(own, velocities, s, r, given)
        velocity = _guided(own, params, s, given)
        return latent_flows.moved(own, velocity, r, given, mask)

    return latent_flows.draw(own, params, key, w, given, move)


def _moved_apart(
    own: Parts, velocities: Params, s: Array, r: Array, given: Array
) -> Array:
    """Latents r [B, M d], each modality moved by its own flow."""
    rows = jnp.moveaxis(r.reshape(len(r), own.num, own.size), 1, 0)

    def move(arguments: tuple[Params, Array, Array]) -> Array:
        velocity, *latents = arguments
        return latent_flows.moved(own, _guided_alone(own, velocity, s), *latents)

    return end_to_end(jax.lax.map(move, (velocities, rows, given)))


def _posterior(
    own: Parts, params: Params, experts: Gaussian, subset: AnyArray, key: PRNGKey
) -> Gaussian:
    """q(s, w|x_A); the flow draws w_m of missing modalities."""
    code_key, draw_key = jax.random.split(key)
    code = _code_posterior(own, experts, subset)
    s = distributions.sample(code, code_key)
    latents = _split(own, experts)[1]
    drawn = partial(_draw, own, params, draw_key, s)
    return distributions.join(code, latent_flows.posterior(own, latents, subset, drawn))


def _proposal(
    own: Parts, params: Params, experts: Gaussian, subset: AnyArray
) -> Gaussian:
    """q(s|x_A), and q(w_m|x_m) of observed modalities."""
    latents = latent_flows.proposal(own, _split(own, experts)[1], subset)
    return distributions.join(_code_posterior(own, experts, subset), latents)


def _sample_prior(own: Parts, params: Params, key: PRNGKey, count: int) -> Array:
    """Latent vectors [count, c + M d]: a code, and latents given it."""
    code_key, draw_key = jax.random.split(key)
    velocities = params["flows_average"]["prior"]
    s = code_priors.sample(own.prior, velocities, code_key, count)
    w = jnp.zeros((count, own.num * own.size))
    nothing = jnp.zeros((own.num, count), bool)
    return jnp.concatenate([s, _draw(own, params, draw_key, s, w, nothing)], axis=-1)


def _log_densities(
    own: Parts, params: Params, z: Array, key: PRNGKey, absent: Array | None
) -> Array:
    """log p(s) + sum_m log p(w_m|s) [B], without absent modalities (bool [M, B])."""
    s, w = _split(own, z)
    velocities = params["flows_average"]["prior"]
    code = code_priors.log_prob(own.prior, velocities, s, key)
    velocity = _guided(own, params, s, jnp.zeros((own.num, len(s)), bool), absent)
    noise = latent_flows.noise_of_rows(jax.random.fold_in(key, 1), w)
    # The flow of a modality does not depend on the other modalities.
    blocks = own.sizes if own.options["flow"] == "modality" else ()
    return code + latent_flows.log_density(
        own, params, velocity, w, key, absent, noise, blocks
    )


def _objective(
    own: Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, ObjectiveTerms]:
    """The bound on log p(X), for evaluation only."""
    code_key, own_key, sign_key = jax.random.split(key, 3)
    experts = _encode(own, params, batch)
    observed = jnp.asarray(elbo.observed_of(batch, own.num))
    code = _code_posterior(own, experts, observed)
    s = distributions.sample(code, code_key)

    def log_prior(w: Array, observed: Array) -> Array:
        z = jnp.concatenate([s, w], axis=-1)
        found = _log_densities(own, params, z, sign_key, ~observed)
        return found - distributions.log_prob(code, s)

    latents = _split(own, experts)[1]
    return latent_flows.bound(own, params, batch, latents, own_key, log_prior, beta)


def _flow_objective(
    own: Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, dict[str, Array]]:
    """The third stage: rectified flows of the latents, and of the code."""
    del beta  # no KL term
    keys = jax.random.split(key, 8)
    experts = jax.lax.stop_gradient(_encode(own, params, batch))
    observed = wide(elbo.observed_of(batch, own.num), experts.mean.shape[1])
    experts, observed = latent_flows.drawn_again(own, experts, observed)
    w = end_to_end(distributions.sample(_split(own, experts)[1], keys[0]))
    r = flows.whiten(latent_flows.whitening(params), w)
    given = flows.random_subsets(keys[1], observed, own.options["empty_share"])
    known = jnp.where(jnp.any(given, axis=0), given, observed)
    s = distributions.sample(_code_posterior(own, experts, known), keys[2])
    s = flows.drop_condition(keys[3], s, own.options["condition_dropped"])
    everything = distributions.sample(_code_posterior(own, experts, observed), keys[4])
    t = flows.sample_times(keys[5], len(s))
    noise_keys = jax.random.split(keys[6])
    flow = flows.flow_matching_loss(
        _velocity(own, params["flows"], s, given, ~observed),
        r,
        jax.random.normal(noise_keys[0], r.shape),
        t,
        flows.dimensions_of(given, own.sizes),
        flows.dimensions_of(observed & ~given, own.sizes),
    )
    velocities = params["flows"]["prior"]
    prior = code_priors.loss(own.prior, velocities, everything, noise_keys[1], keys[7])
    flow, prior = jnp.mean(flow), jnp.mean(prior)
    return flow + prior, {"flow": flow, "prior_flow": prior}


def _at_once(
    own: Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, dict[str, Array]]:
    """The sum of the three objectives, which share no parameters."""
    vae_key, flow_key = jax.random.split(key)
    vae, _ = latent_flows.vae_objective(own, params, batch, vae_key, beta)
    code, coded = codes.objective(own.nets, own.coders, params, batch, key, beta)
    flow, flowed = _flow_objective(own, params, batch, flow_key, beta)
    return vae + code + flow, {"vae": vae} | coded | flowed


def _after_step(own: Parts, params: Params, batch: Batch, step: Array) -> Params:
    """The average of the flows, and the running moments of the latents."""
    so_far = latent_flows.whitening(params)
    faded = so_far._replace(num=_KEPT * so_far.num, squares=_KEPT * so_far.squares)
    now = flows.merge_moments(faded, latent_flows.moments_of(own, params, batch))
    averaged = latent_flows.average(own.options, params, "flows", step)
    return averaged | {"whitening": now._asdict()}
