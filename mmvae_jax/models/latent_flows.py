"""Flows over the latents of unimodal VAEs: parts that several models share.

The first stage is a VAE of each modality alone,

    sum_m E log p(x_m|w_m) - beta KL(q(w_m|x_m)||N(0, I)),

and the last stage flows of the w_m, whitened by their mean and variance over the
training set. A given modality keeps its q(w_m|x_m). A missing one is drawn by a flow,
with parameters averaged over the steps.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmvae_jax.mathematics import distributions, elbo, flows
from mmvae_jax.models import parts
from mmvae_jax.models.options import Option, Options, number, one_of
from mmvae_jax.models.parts import DRAWN, encode, wide
from mmvae_jax.types import (
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

# Latent dimensions up to which the divergence of a velocity is exact.
MOST_EXACT = 32
_WORDS = {1: "one share of the steps", 2: "two shares of the steps whose sum is"}

# Options of every model of this kind, whose flows are MLPs of this width.
FLOW_OPTIONS: Options = {
    "guidance": number(2.0, 0),  # g; 1 = none
    "condition_dropped": number(0.1, 0, 1),  # share of examples without a condition
    "empty_share": number(0.2, 0, 1),  # share of examples with no modality given
    # Times, noises and subsets of each example in a step, which is encoded once.
    "flow_draws": number(1, 1),
    "flow_width": number(128, 1),
    "flow_depth": number(3, 1),
    "ode_steps": number(25, 1),
    "ode_method": one_of("euler", "heun"),
    "ema": number(0.998, 0, 1),  # decay of the average of the flows' parameters
}


def shares(*default: float) -> Option:
    """Shares of the steps of the run that the stages before the last one have."""
    return Option(
        default,
        lambda x: len(x) == len(default) and min(x) > 0 and sum(x) < 1,
        "{} must be " + _WORDS[len(default)] + " below 1, got {}",
    )


class Parts(NamedTuple):
    """Networks and numbers of one model, which its functions share.

    Attributes:
      nets: of the VAEs.
      base: functions of the VAEs alone.
      network: velocity of every flow, a Linen module.
      size: d, latent dimensions of a modality.
      options: those of the model.
      coders: of a model with a code; modality -> Linen module,
        x [B, ...] -> (features, output [B, c]).
    """

    nets: parts.Networks
    base: MultimodalVAE
    network: Any
    size: int
    options: Mapping[str, Any]
    coders: Mapping[str, Any] = MappingProxyType({})

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


def by_modality(shapes: Mapping[str, Any], w: Array) -> dict[str, Array]:
    """Latents [..., M d] as those of each modality."""
    return dict(zip(shapes, jnp.split(w, len(shapes), axis=-1), strict=True))


def end_to_end(x: Array) -> Array:
    """Latents of all modalities as one vector, [M, B, d] -> [B, M d]."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)


def cosine(step: Array, num_steps: int) -> Array:
    """Factor of the learning rate, from 1 to 0 over a stage."""
    return 0.5 * (1 + jnp.cos(jnp.pi * step / num_steps))


def vae_stage(own: Parts) -> Stage:
    """The first stage, for the first of the model's shares of the steps."""
    share = own.options["stage_shares"][0]
    return Stage(
        "vae",
        lambda steps: round(share * steps),
        partial(vae_objective, own),
        ("encoders", "decoders"),
        learning_rate=cosine,
    )


def flow_stage(own: Parts, objective: Callable[..., tuple[Array, Any]]) -> Stage:
    """The last stage, of flows that have `objective`."""
    return Stage(
        "flow",
        lambda steps: steps,
        objective,
        ("flows",),
        partial(_whiten, own),
        lambda params, batch: average(own, params),
        cosine,
    )


def unlearned(own: Parts, velocities: Params) -> Params:
    """The flows' entries of the parameters at the start, where nothing is whitened."""
    zeros = jnp.zeros(own.num * own.size)
    return {
        "flows": velocities,
        "flows_average": velocities,
        # The variance is one, until it is measured.
        "whitening": {"num": zeros + 1.0, "mean": zeros, "squares": zeros + 1.0},
    }


def drawn_again(
    own: Parts, latents: Gaussian, observed: Array
) -> tuple[Gaussian, Array]:
    """Latents and observed modalities, [M, B, ...], for all draws of the flow's step.

    Both are end to end along the examples, [M, flow_draws B, ...].
    """

    def repeat(x: Array) -> Array:
        return jnp.concatenate([x] * own.options["flow_draws"], axis=1)

    return jax.tree.map(repeat, latents), repeat(observed)


def vae_objective(
    own: Parts, params: Params, batch: Batch, key: PRNGKey, beta: Array
) -> tuple[Array, ObjectiveTerms]:
    """The first stage: the ELBO of each modality."""
    terms = elbo.unimodal_elbos(
        encode(own.nets, params, batch),
        batch,
        key,
        log_likelihoods=parts.log_likelihoods(own.nets, params),
    )
    return elbo.loss(terms, beta), terms


def moments_of(own: Parts, params: Params, batch: Batch) -> flows.Moments:
    """Mean and variance of q(w_m|x_m) over a batch, of all latents [M d]."""
    latents = encode(own.nets, params, batch)
    observed = jnp.asarray(elbo.observed_of(batch, own.num))[..., None]
    counted = end_to_end(jnp.broadcast_to(observed, latents.mean.shape))
    found = flows.moments(end_to_end(latents.mean), counted)
    noise = jnp.where(counted, jnp.exp(end_to_end(latents.log_variance)), 0.0)
    return found._replace(squares=found.squares + jnp.sum(noise, axis=0))


def _whiten(own: Parts, params: Params, fold: Callable) -> Params:
    """Mean and variance of q(w_m|x_m) over all examples; the average begins."""

    def add(so_far: flows.Moments, batch: Batch) -> flows.Moments:
        return flows.merge_moments(so_far, moments_of(own, params, batch))

    empty = flows.Moments(*(jnp.zeros(own.num * own.size) for _ in range(3)))
    return params | {
        "whitening": fold(add, empty)._asdict(),
        "flows_average": params["flows"],
    }


def average(own: Parts, params: Params) -> Params:
    """Parameters after a step of the flows, with their average over the steps."""
    rate = 1 - own.options["ema"]
    return params | {
        "flows_average": optax.incremental_update(
            params["flows"], params["flows_average"], rate
        )
    }


def whitening(params: Params) -> flows.Moments:
    """The moments of all latents, for whitening."""
    return flows.Moments(**params["whitening"])


def draw(
    own: Parts,
    params: Params,
    key: PRNGKey,
    w: Array,
    given: Array,
    move: Callable[[Array, Array, Array], Array],
) -> Array:
    """Latents w [B, M d], where they are not given (bool [M, B]) by a flow.

    `move` is of whitened latents: (r, noise, mask) -> r, all [B, M d]; r is data where
    the mask says that they are given, and noise elsewhere.
    """
    mask = flows.dimensions_of(given, own.sizes)
    noise = jax.random.normal(key, w.shape, w.dtype)
    r = jnp.where(mask, flows.whiten(whitening(params), w), noise)
    r = move(r, noise, mask)
    return jnp.where(mask, w, flows.unwhiten(whitening(params), r))


def moved(
    own: Parts,
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


def posterior(
    own: Parts,
    latents: Gaussian,
    subset: AnyArray,
    drawn: Callable[[Array, Array], Array],
) -> Gaussian:
    """q(w|x_A) [B, M d] of experts [M, B, d]: around what is `drawn`, where missing.

    `drawn` is (means [B, M d], given [M, B]) -> latents [B, M d].
    """
    ends = jax.tree.map(end_to_end, latents)
    given = wide(subset, len(ends.mean))
    mask = flows.dimensions_of(given, own.sizes)
    mean = drawn(ends.mean, given)
    return Gaussian(mean, jnp.where(mask, ends.log_variance, DRAWN))


def proposal(own: Parts, latents: Gaussian, subset: AnyArray) -> Gaussian:
    """q(w_m|x_m) of what is observed, N(0, I) of the rest, [B, M d]."""
    ends = jax.tree.map(end_to_end, latents)
    mask = flows.dimensions_of(wide(subset, len(ends.mean)), own.sizes)
    return jax.tree.map(lambda field: jnp.where(mask, field, 0.0), ends)


def log_prior(
    own: Parts,
    density: Callable[..., Array],
    params: Params,
    z: Array,
    subset: AnyArray | None = None,
) -> Array:
    """log p(z) [...] of latent vectors [..., D], as `MultimodalVAE.log_prior`.

    `density` is (params, rows [N, D], key, absent [M, N] or None) -> [N], of what is
    not absent.
    """
    rows, absent = z.reshape(-1, z.shape[-1]), None
    rest = jnp.zeros(len(rows))
    if subset is not None:
        absent = ~wide(subset, len(rows))
        # The latents of modalities are the last ones; a code is always there.
        w = rows[:, -own.num * own.size :].reshape(-1, own.num, own.size)
        each = distributions.log_prob(Gaussian(jnp.zeros(()), jnp.zeros(())), w)
        rest = jnp.sum(jnp.where(absent.T, each, 0.0), axis=-1)
    found = density(params, rows, jax.random.key(0), absent)
    return (found + rest).reshape(z.shape[:-1])


def log_density(
    own: Parts,
    params: Params,
    velocity: flows.Velocity,
    w: Array,
    key: PRNGKey,
    absent: Array | None = None,
    fill: AnyArray | float = 0.0,
) -> Array:
    """log p(w) [B] of latents [B, M d], by the flow of the whitened ones; nats.

    Args:
      own: the model's parts.
      params: its parameters.
      velocity: of whitened latents.
      w: anything where a modality is absent.
      key: of the estimate, where dimensions are too many for the exact divergence.
      absent: bool [M, B], modalities without a part in the density; None: none is.
      fill: what the velocity sees in their place.
    """
    r = flows.whiten(whitening(params), w)
    jacobian = jnp.broadcast_to(-jnp.log(flows.deviation(whitening(params))), r.shape)
    mask = None
    if absent is not None:
        mask = flows.dimensions_of(absent, own.sizes)
        r, jacobian = jnp.where(mask, fill, r), jnp.where(mask, 0.0, jacobian)
    signs = key if w.shape[-1] > MOST_EXACT else None
    found = flows.log_density(velocity, r, *own.solver, mask, signs)
    return found + jnp.sum(jacobian, axis=-1)


def bound(
    own: Parts,
    params: Params,
    batch: Batch,
    latents: Gaussian,
    key: PRNGKey,
    log_prior: Callable[[Array, Array], Array],
    beta: Array,
) -> tuple[Array, ObjectiveTerms]:
    """The bound on log p(X), which is evaluated and trains nothing.

    Args:
      own: the model's parts.
      params: its parameters.
      batch: of examples.
      latents: q(w_m|x_m), fields [M, B, d].
      key: random key of the sample of w.
      log_prior: (w [B, M d], observed [M, B]) -> log p(w) of what is observed, [B];
        with a code, log p(s, w) - log q(s|X).
      beta: weight of the KL terms in the loss.
    """
    observed = jnp.asarray(elbo.observed_of(batch, own.num))
    w = distributions.sample(latents, key)
    values = elbo.own_terms(w, batch, parts.log_likelihoods(own.nets, params))
    kl = elbo.observed_sum(distributions.log_prob(latents, w), observed)
    kl -= log_prior(end_to_end(w), wide(observed, w.shape[1]))
    zeros = jnp.zeros_like(kl)
    terms = ObjectiveTerms(elbo.observed_terms(values, observed), kl, zeros, zeros)
    return elbo.loss(terms, beta), terms
