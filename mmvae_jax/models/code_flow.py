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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmvae_jax import networks
from mmvae_jax.mathematics import distributions, elbo, flows, posteriors
from mmvae_jax.models import parts
from mmvae_jax.models.contrastive import contrast, unit
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
    "code_network": one_of("auto", *networks.CLASSIFIERS),
    # Of each "modality" given the code; or one of all latents, given those of a subset
    # and the code, or without it.
    "flow": one_of(*_FLOWS),
    "guidance": number(2.0, 0),  # g; 1 = none
    "condition_dropped": number(0.1, 0, 1),  # share of examples without a code
    "empty_share": number(0.2, 0, 1),  # share of examples with no modality given
    "flow_width": number(128, 1),
    "flow_depth": number(3, 1),
    "ode_steps": number(25, 1),
    "ode_method": one_of("euler", "heun"),
    "ema": number(0.998, 0, 1),  # decay of the average of the flows' parameters
    # Of the steps of the run: the first two stages.
    "stage_shares": Option(
        (0.5, 0.1),
        lambda x: len(x) == 2 and min(x) > 0 and sum(x) < 1,
        _SHARES,
    ),
}


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
    names, num = tuple(shapes), len(shapes)
    nets = make_networks(config, shapes, size)
    coders: dict[str, Any] = {
        m: networks.make_classifier(_code_network(options, nets, m), shape, code_size)
        for m, shape in nets.shapes.items()
    }
    variance = options["code_variance"]
    radius, log_variance = math.sqrt(code_size * (1 - variance)), math.log(variance)
    network: Any = MLPFlow(options["flow_width"], options["flow_depth"])
    is_joint, is_coded = options["flow"] != "modality", options["flow"] in _FLOWS[:2]
    steps, method = options["ode_steps"], options["ode_method"]

    def split(z: Array) -> tuple[Array, Array]:
        return z[..., :code_size], z[..., code_size:]

    def parts_of(z: Array) -> dict[str, Array]:
        own = jnp.split(split(z)[1], num, axis=-1)
        return dict(zip(names, own, strict=True))

    base = assemble(nets, standard_latents((code_size + num * size,)), parts_of)

    def init(key: PRNGKey) -> Params:
        own_key, code_key, flow_key = jax.random.split(key, 3)
        code_keys = jax.random.split(code_key, num)
        flow_keys = jax.random.split(flow_key, num + 1)
        t, s = jnp.zeros(1), jnp.zeros((1, code_size))
        velocities = {"prior": network.init(flow_keys[0], s, t)}
        if is_joint:
            inputs = jnp.zeros((1, num * size)), t, jnp.zeros((1, code_size + num))
            velocities["joint"] = network.init(flow_keys[1], *inputs)
        else:
            velocities["modality"] = jax.vmap(
                lambda own: network.init(own, jnp.zeros((1, size)), t, s)
            )(flow_keys[1:])
        coded = {
            m: coders[m].init(own, networks.blank(nets.shapes[m]))
            for own, m in zip(code_keys, names, strict=True)
        }
        zeros = jnp.zeros(num * size)
        return base.init(own_key) | {
            "code": {
                "encoders": coded,
                "log_scale": jnp.full(1, math.log(_INITIAL_SCALE)),
            },
            "flows": velocities,
            "flows_average": velocities,
            # Of a variance of one, until the third stage measures it.
            "whitening": {"num": zeros + 1.0, "mean": zeros, "squares": zeros + 1.0},
        }

    def codes_of(params: Params, batch: Batch) -> Array:
        """The codes [M, B, c], of length one; zeros where a modality is missing."""
        codes = []
        for m, coder in coders.items():
            x = jnp.asarray(batch[m])
            if m in nets.counts:
                x = jnp.log1p(x)
            elif (
                len(shapes[m]) == 3
            ):  # around 1/2, contrast may never leave its plateau
                x = 2.0 * x - 1.0
            codes.append(unit(coder.apply(params["code"]["encoders"][m], x)[1]))
        observed = jnp.asarray(elbo.observed_of(batch, num))
        return jnp.where(observed[..., None], jnp.stack(codes), 0.0)

    def around(direction: Array) -> Gaussian:
        return Gaussian(radius * direction, jnp.full_like(direction, log_variance))

    def encode_all(params: Params, batch: Batch) -> Gaussian:
        own = encode(nets, params, batch)
        return distributions.join(around(codes_of(params, batch)), own)

    def code_posterior(experts: Gaussian, subset: AnyArray) -> Gaussian:
        """q(s|x_A) [B, c], of experts [M, B, c + d]."""
        codes = distributions.split(experts, code_size)[0].mean
        observed = posteriors.append_axes(jnp.asarray(subset), 3)
        return around(unit(elbo.observed_sum(codes, observed)))

    def velocity_of(velocities: Params, s: Array, given: Array) -> flows.Velocity:
        """Of latents [B, M d], given a code [B, c] and some of them, bool [M, B]."""

        def joint(x: Array, t: Array) -> Array:
            code = s if is_coded else jnp.zeros_like(s)
            condition = jnp.concatenate([code, given.T.astype(x.dtype)], axis=-1)
            return network.apply(velocities["joint"], x, t, condition)

        def apart(x: Array, t: Array) -> Array:
            own = jnp.moveaxis(x.reshape(len(x), num, size), 1, 0)
            apply = jax.vmap(network.apply, (0, 0, None, None))
            return _end_to_end(apply(velocities["modality"], own, t, s))

        return joint if is_joint else apart

    def guided(params: Params, s: Array, given: Array) -> flows.Velocity:
        conditional = velocity_of(params["flows_average"], s, given)
        if options["guidance"] == 1 or not is_coded:
            return conditional
        free = velocity_of(params["flows_average"], jnp.zeros_like(s), given)
        return flows.guided(conditional, free, options["guidance"])

    def prior_velocity(velocities: Params) -> flows.Velocity:
        return lambda s, t: network.apply(velocities["prior"], s, t)

    def moments_of(params: Params) -> flows.Moments:
        return flows.Moments(**params["whitening"])

    def draw(
        params: Params, key: PRNGKey, s: Array, w: Array, given: AnyArray
    ) -> Array:
        """Latents w [B, M d], where they are not given (bool [M, B]) by the flow."""
        mask = flows.dimensions_of(given, (size,) * num)
        r = flows.whiten(moments_of(params), w)
        r = jnp.where(mask, r, jax.random.normal(key, w.shape, w.dtype))
        velocity = guided(params, s, jnp.asarray(given))
        r = flows.integrate(velocity, r, steps, method, mask)
        return jnp.where(mask, w, flows.unwhiten(moments_of(params), r))

    def posterior(
        params: Params, experts: Gaussian, subset: AnyArray, key: PRNGKey
    ) -> Gaussian:
        code_key, draw_key = jax.random.split(key)
        code = code_posterior(experts, subset)
        s = distributions.sample(code, code_key)
        _, own = distributions.split(experts, code_size)
        own = jax.tree.map(_end_to_end, own)
        given = jnp.broadcast_to(
            posteriors.append_axes(jnp.asarray(subset), 2), (num, len(s))
        )
        mask = flows.dimensions_of(given, (size,) * num)
        mean = jax.lax.cond(  # nothing is drawn where nothing is missing
            jnp.all(given),
            lambda: own.mean,
            lambda: draw(params, draw_key, s, own.mean, given),
        )
        spread = jnp.where(mask, own.log_variance, _DRAWN)
        return distributions.join(code, Gaussian(mean, spread))

    def components(
        count: int, params: Params, experts: Gaussian, subset: AnyArray
    ) -> tuple[Gaussian, Array]:
        """Some draws of the posterior, whose keys are always the same."""
        drawn = jax.lax.map(
            lambda key: posterior(params, experts, subset, key),
            jax.random.split(jax.random.key(0), count),
        )
        return drawn, jnp.full((count, 1), 1 / count)

    def sample_prior(params: Params, key: PRNGKey, count: int) -> Array:
        code_key, draw_key = jax.random.split(key)
        s = jax.random.normal(code_key, (count, code_size))
        s = flows.integrate(prior_velocity(params["flows_average"]), s, steps, method)
        w = jnp.zeros((count, num * size))
        nothing = np.zeros((num, count), bool)
        return jnp.concatenate([s, draw(params, draw_key, s, w, nothing)], axis=-1)

    def log_densities(
        params: Params,
        s: Array,
        w: Array,
        key: PRNGKey,
        observed: AnyArray | None = None,
    ) -> Array:
        """log p(s) + sum_m log p(w_m|s) [B], over the modalities observed, [M, B].

        With `key`, estimates of what has too many dimensions for the exact one.
        """
        velocity = prior_velocity(params["flows_average"])
        signs = key if code_size > _MOST_EXACT else None
        code = flows.log_density(velocity, s, steps, method, key=signs)
        nothing = jnp.zeros((num, len(s)), bool)
        absent = None
        r = flows.whiten(moments_of(params), w)
        velocity = guided(params, s, nothing)
        jacobian = -jnp.log(flows.deviation(moments_of(params)))
        if observed is not None:
            absent = ~jnp.broadcast_to(
                flows.dimensions_of(observed, (size,) * num), r.shape
            )
            r, jacobian = jnp.where(absent, 0.0, r), jnp.where(absent, 0.0, jacobian)
        signs = key if num * size > _MOST_EXACT else None
        own = flows.log_density(velocity, r, steps, method, absent, signs)
        return code + own + jnp.sum(jacobian, axis=-1)

    def log_prior(params: Params, z: Array) -> Array:
        rows = z.reshape(-1, z.shape[-1])
        found = log_densities(params, *split(rows), jax.random.key(0))
        return found.reshape(z.shape[:-1])

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        code_key, own_key, sign_key = jax.random.split(key, 3)
        experts = encode_all(params, batch)
        observed = jnp.asarray(elbo.observed_of(batch, num))
        code, own = code_posterior(experts, observed), _own(experts)
        s = distributions.sample(code, code_key)
        w = distributions.sample(own, own_key)
        decoders = parts.log_likelihoods(nets, params)
        log_likelihood = elbo.observed_terms(
            elbo.own_terms(w, batch, decoders), observed
        )
        kl = distributions.log_prob(code, s)
        kl += elbo.observed_sum(distributions.log_prob(own, w), observed)
        wide = jnp.broadcast_to(observed.reshape(num, -1), (num, len(s)))
        kl -= log_densities(params, s, _end_to_end(w), sign_key, wide)
        zeros = jnp.zeros_like(kl)
        terms = ObjectiveTerms(log_likelihood, kl, zeros, zeros)
        return elbo.loss(terms, beta), terms

    def _own(experts: Gaussian) -> Gaussian:
        return distributions.split(experts, code_size)[1]

    def vae_objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        terms = elbo.unimodal_elbos(
            encode(nets, params, batch),
            batch,
            key,
            log_likelihoods=parts.log_likelihoods(nets, params),
        )
        return elbo.loss(terms, beta), terms

    def code_objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, dict[str, Array]]:
        del key, beta  # it has no noise and no KL term
        observed = elbo.observed_of(batch, num)
        scale = jnp.exp(params["code"]["log_scale"])
        gain = jnp.mean(contrast(codes_of(params, batch), scale, observed))
        return -gain, {"contrast": gain}

    def whiten(params: Params, fold: Callable) -> Params:
        """Mean and variance of q(w_m|x_m) over all examples; the average begins."""

        def add(so_far: flows.Moments, batch: Batch) -> flows.Moments:
            own = encode(nets, params, batch)
            observed = jnp.asarray(elbo.observed_of(batch, num))[..., None]
            counted = _end_to_end(jnp.broadcast_to(observed, own.mean.shape))
            found = flows.moments(_end_to_end(own.mean), counted)
            noise = jnp.where(counted, jnp.exp(_end_to_end(own.log_variance)), 0.0)
            squares = found.squares + jnp.sum(noise, axis=0)
            return flows.merge_moments(so_far, found._replace(squares=squares))

        empty = flows.Moments(*(jnp.zeros(num * size) for _ in range(3)))
        return params | {
            "whitening": fold(add, empty)._asdict(),
            "flows_average": params["flows"],
        }

    def flow_objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, dict[str, Array]]:
        del beta  # no KL term
        keys = jax.random.split(key, 8)
        experts = encode_all(params, batch)
        observed = jnp.broadcast_to(
            elbo.observed_of(batch, num).reshape(num, -1), experts.mean.shape[:2]
        )
        w = _end_to_end(distributions.sample(_own(experts), keys[0]))
        r = flows.whiten(moments_of(params), w)
        given = flows.random_subsets(keys[1], observed, options["empty_share"])
        known = jnp.where(jnp.any(given, axis=0), given, observed)
        s = distributions.sample(code_posterior(experts, known), keys[2])
        s = flows.drop_condition(keys[3], s, options["condition_dropped"])
        everything = distributions.sample(code_posterior(experts, observed), keys[4])
        t = flows.sample_times(keys[5], len(s))
        sizes = (size,) * num
        noise_keys = jax.random.split(keys[6])
        flow = flows.flow_matching_loss(
            velocity_of(params["flows"], s, given),
            r,
            jax.random.normal(noise_keys[0], r.shape),
            t,
            flows.dimensions_of(given, sizes),
            flows.dimensions_of(observed & ~given, sizes),
        )
        prior = flows.flow_matching_loss(
            prior_velocity(params["flows"]),
            everything,
            jax.random.normal(noise_keys[1], s.shape),
            flows.sample_times(keys[7], len(s)),
        )
        flow, prior = jnp.mean(flow), jnp.mean(prior)
        return flow + prior, {"flow": flow, "prior_flow": prior}

    def average(params: Params) -> Params:
        rate = 1 - options["ema"]
        return params | {
            "flows_average": optax.incremental_update(
                params["flows"], params["flows_average"], rate
            )
        }

    first, second = options["stage_shares"]
    return base._replace(
        init=init,
        objective=objective,
        encode=encode_all,
        posterior=posterior,
        mixture_posterior=lambda *args: components(1, *args),
        posterior_components=lambda *args: components(_NUM_COMPONENTS, *args),
        sample_prior=sample_prior,
        log_prior=log_prior,
        convolutions=base.convolutions | networks.convolution_forms(*coders.values()),
        latent_parts=((SHARED, code_size), *((m, size) for m in names)),
        draws_missing=True,
        stages=(
            Stage(
                "vae",
                lambda steps: round(first * steps),
                vae_objective,
                ("encoders", "decoders"),
                learning_rate=_cosine,
            ),
            Stage(
                "code",
                lambda steps: round((first + second) * steps),
                code_objective,
                ("code",),
                learning_rate=lambda step, steps: jnp.float32(0.5),
            ),
            Stage(
                "flow",
                lambda steps: steps,
                flow_objective,
                ("flows",),
                whiten,
                average,
                lambda step, steps: 0.5 * _cosine(step, steps),
            ),
        ),
    )


def _end_to_end(x: Array) -> Array:
    """Latents of all modalities as one vector, [M, B, d] -> [B, M d]."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)


def _cosine(step: Array, num_steps: int) -> Array:
    """Factor of the learning rate, from 1 to 0 over a stage."""
    return 0.5 * (1 + jnp.cos(jnp.pi * step / num_steps))


def _code_network(options: Mapping[str, Any], nets: parts.Networks, m: str) -> str:
    """Name of the encoder of the code of a modality."""
    name = options["code_network"]
    if name != "auto":
        return name
    is_image = len(nets.shapes[m]) == 3 and m not in nets.counts
    return "conv" if is_image else "mlp"
