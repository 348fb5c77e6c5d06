"""Flows over the latents of unimodal VAEs: code that several models share.

The first stage trains a VAE of each modality,

    sum_m E log p(x_m|w_m) - beta KL(q(w_m|x_m)||N(0, I)),

and the last stage trains flows of the w_m, whitened by their mean and variance over the
training set. A given modality keeps its q(w_m|x_m). A flow, with parameters averaged
over the steps, draws the w_m of a missing modality.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, elbo, flows
from mmvae_jax.models import code_priors, parts
from mmvae_jax.models.code_priors import MOST_EXACT
from mmvae_jax.models.options import Option, Options, number, one_of
from mmvae_jax.models.parts import DRAWN, encode, end_to_end, own_or_other, wide
from mmvae_jax.networks import NETWORKS
from mmvae_jax.networks.flows import NUM_HEADS, MLPFlow, TransformerFlow
from mmvae_jax.types import (
    AnyArray,
    Array,
    Batch,
    Gaussian,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
    Shape,
    Stage,
)

_WORDS = {1: "one share of the steps", 2: "two shares of the steps whose sum is"}

TRANSFORMER = "transformer"

# Options of all models with flows.
FLOW_OPTIONS: Options = {
    # Network of the velocity of latents: "mlp", or a "transformer" of the places of
    # spatial latents, and of one token for each other latent vector.
    "flow_network": one_of("mlp", TRANSFORMER),
    "guidance": number(2.0, 0),  # g; 1 = none
    "condition_dropped": number(0.1, 0, 1),  # share of examples without a condition
    "empty_share": number(0.2, 0, 1),  # share of examples with no modality given
    # Draws of time, noise and subset per example and step; examples are encoded once.
    "flow_draws": number(1, 1),
    "flow_width": number(128, 1),
    "flow_depth": number(3, 1),
    "ode_steps": number(25, 1),
    "ode_method": one_of("euler", "heun"),
    # Largest decay of the average of the flows' parameters, min(ema, (1 + n)/(10 + n))
    # after n steps of the stage, so that nothing is left of the initial flow.
    "ema": Option(0.998, lambda x: 0 <= x < 1, "{} must be in [0, 1), got {}"),
}


def shares(*default: float) -> Option:
    """An option: fractions of the run's steps for all stages except the last."""
    return Option(
        default,
        lambda x: len(x) == len(default) and min(x) > 0 and sum(x) < 1,
        "{} must be " + _WORDS[len(default)] + " below 1, got {}",
    )


def check(options: Mapping[str, Any], is_joint: bool) -> None:
    """Refuses options with which a flow would be used that is never trained.

    Args:
      options: those of FLOW_OPTIONS.
      is_joint: whether one flow has the latents of all modalities, given some of them.

    Raises:
      UsageError: no training example is without a condition (for guidance), or has one;
        or none has no modality given (for samples of the prior), or some.
    """
    section = "config.model.options"
    if options["condition_dropped"] == 1:
        raise UsageError(
            f"{section}.condition_dropped=1 leaves no example with a condition, so "
            "that the flow given one is never trained: set it below 1"
        )
    if is_joint and options["empty_share"] in (0, 1):
        what, of, where = (
            ("nothing", "samples of the prior, given nothing,", "above 0")
            if options["empty_share"] == 0
            else ("a modality", "other modalities, given one,", "below 1")
        )
        raise UsageError(
            f"{section}.empty_share={options['empty_share']:g} leaves no example with "
            f"{what} given, so that the flow of {of} is never trained: set it {where}"
        )
    if options["guidance"] != 1 and options["condition_dropped"] == 0:
        raise UsageError(
            "config.model.options.guidance needs examples without a condition: "
            "config.model.options.condition_dropped must be above 0, or guidance 1"
        )


def velocity_network(
    options: Mapping[str, Any], shapes: Mapping[str, Shape], advice: str = ""
) -> Any:
    """The velocity of one flow of latents, a Linen module, by the options.

    Args:
      options: those of FLOW_OPTIONS.
      shapes: modality -> shape of its latent vector, see `latent_shapes`.
      advice: how to have more tokens, the end of a sentence.

    Raises:
      UsageError: a Transformer has one token only, or a width that its heads do not
        divide.
    """
    width, depth = options["flow_width"], options["flow_depth"]
    if options["flow_network"] != TRANSFORMER:
        return MLPFlow(width, depth)
    field = f"config.model.options.flow_network={TRANSFORMER!r}"
    if width % NUM_HEADS:
        raise UsageError(
            f"{field} needs config.model.options.flow_width to be a multiple of its "
            f"{NUM_HEADS} heads, got {width}"
        )
    if sum(math.prod(shape[:-1]) for shape in shapes.values()) == 1:
        raise UsageError(
            f"{field} attends to several tokens, and the latent vector of "
            f"{', '.join(shapes)} is a single one: set config.modality.network to "
            f"'spatial' (one token for each place){advice}, or flow_network to 'mlp'"
        )
    return TransformerFlow(tuple(shapes.values()), width, depth)


def latent_shapes(config: Any, nets: parts.Networks) -> dict[str, Shape]:
    """Modality -> shape of its latent vector, (d,) or, if spatial, (H', H', c)."""
    rows = {m: NETWORKS[parts.options_of(config, m)["network"]] for m in nets.shapes}
    return {
        m: row.latent_shape(nets.encoders[m], nets.shapes[m]) for m, row in rows.items()
    }


class Parts(NamedTuple):
    """Networks and options of one model.

    Attributes:
      nets: networks of the VAEs.
      base: functions of the VAEs.
      network: the velocity of each flow of latents, a Linen module.
      size: d, latent dimensions of each modality.
      options: options of the model.
      coders: modality -> encoder of its code, a Linen module x [B, ...] -> (features,
        output [B, c]); empty for models without a code.
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
    def prior(self) -> code_priors.FlowPrior:
        """The flow of the code, of models with one."""
        return code_priors.make(self.options, self.options["code_dim"])

    @property
    def solver(self) -> tuple[int, str]:
        """Steps and method of the ODE."""
        return self.options["ode_steps"], self.options["ode_method"]


def cosine(step: Array, num_steps: int) -> Array:
    """Factor of the learning rate, a cosine from 1 to 0 over a stage."""
    return 0.5 * (1 + jnp.cos(jnp.pi * step / num_steps))


def vae_stage(own: Parts) -> Stage:
    """The first stage, for the first of the fractions `stage_shares`."""
    share = own.options["stage_shares"][0]
    return Stage(
        "vae",
        lambda steps: round(share * steps),
        partial(vae_objective, own),
        ("encoders", "decoders"),
        learning_rate=cosine,
    )


def flow_stage(own: Parts, objective: Callable[..., tuple[Array, Any]]) -> Stage:
    """The last stage, which trains the flows on `objective`."""
    return Stage(
        "flow",
        lambda steps: steps,
        objective,
        ("flows",),
        partial(_whiten, own),
        lambda params, batch, step: average(own.options, params, "flows", step),
        cosine,
        has_beta=False,
    )


def unlearned(own: Parts, velocities: Params) -> Params:
    """The initial entries of the parameters for the flows, without whitening."""
    zeros = jnp.zeros(own.num * own.size)
    return {
        "flows": velocities,
        "flows_average": velocities,
        # The variance is 1 until it is measured.
        "whitening": {"num": zeros + 1.0, "mean": zeros, "squares": zeros + 1.0},
    }


def drawn_again(
    own: Parts, latents: Gaussian, observed: Array
) -> tuple[Gaussian, Array]:
    """Repeats latents and observed masks, [M, B, ...], for each of the `flow_draws`.

    The copies are concatenated along the examples, [M, flow_draws B, ...].
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
    """Moments [M d] of all latents w_m ~ q(w_m|x_m) over a batch."""
    latents = encode(own.nets, params, batch)
    observed = jnp.asarray(elbo.observed_of(batch, own.num))[..., None]
    counted = end_to_end(jnp.broadcast_to(observed, latents.mean.shape))
    found = flows.moments(end_to_end(latents.mean), counted)
    noise = jnp.where(counted, jnp.exp(end_to_end(latents.log_variance)), 0.0)
    return found._replace(squares=found.squares + jnp.sum(noise, axis=0))


def _whiten(own: Parts, params: Params, fold: Callable) -> Params:
    """Sets the moments of all training latents, and starts the flows' average."""

    def add(so_far: flows.Moments, batch: Batch) -> flows.Moments:
        return flows.merge_moments(so_far, moments_of(own, params, batch))

    empty = flows.Moments(*(jnp.zeros(own.num * own.size) for _ in range(3)))
    return params | {
        "whitening": fold(add, empty)._asdict(),
        "flows_average": params["flows"],
    }


def average(
    options: Mapping[str, Any], params: Params, name: str, step: Array
) -> Params:
    """Updates the average NAME_average of an entry of the parameters after a step."""
    kept, decay = f"{name}_average", options["ema"]
    now = flows.moving_average(params[name], params[kept], decay, step)
    return params | {kept: now}


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
    """Latents [B, M d]: w if given (bool [M, B]), else draws of a flow.

    `move` acts on whitened latents: (r, noise, mask) -> r, all [B, M d]. The mask marks
    given entries; r holds data there, and noise elsewhere.
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
    """Moves latents from noise to data by a flow; unchanged if all are given."""
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
    """q(w|x_A) [B, M d] from experts [M, B, d]; missing latents are drawn.

    `drawn`: (means [B, M d], given [M, B]) -> latents [B, M d]. Missing latents have
    Gaussians of tiny variance around their draws.
    """
    ends = jax.tree.map(end_to_end, latents)
    given = wide(subset, len(ends.mean))
    mask = flows.dimensions_of(given, own.sizes)
    mean = drawn(ends.mean, given)
    return Gaussian(mean, jnp.where(mask, ends.log_variance, DRAWN))


def proposal(own: Parts, latents: Gaussian, subset: AnyArray) -> Gaussian:
    """q(w_m|x_m) of observed modalities, N(0, I) of the others, [B, M d]."""
    prior = jax.tree.map(jnp.zeros_like, latents)
    return own_or_other(latents, prior, subset)


def log_prior(
    own: Parts,
    density: Callable[..., Array],
    params: Params,
    z: Array,
    subset: AnyArray | None = None,
) -> Array:
    """log p(z) [...] of latent vectors [..., D], as `MultimodalVAE.log_prior`.

    `density`: (params, rows [N, D], key, absent [M, N] or None) -> [N], the log-density
    without absent modalities.
    """
    rows, absent = z.reshape(-1, z.shape[-1]), None
    rest = jnp.zeros(len(rows))
    if subset is not None:
        absent = ~wide(subset, len(rows))
        # A code, if any, comes first and is never absent.
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
    blocks: tuple[int, ...] = (),
) -> Array:
    """log p(w) [B] of latents, by the flow of the whitened latents; nats.

    Args:
      own: the model's parts.
      params: parameters.
      velocity: velocity of whitened latents.
      w: latents [B, M d]; any values for absent modalities.
      key: random key of the divergence, which is estimated if the largest block has
        more than MOST_EXACT dimensions.
      absent: bool [M, B], modalities to leave out of the density; None: none.
      fill: whitened latents of absent modalities, inputs of the velocity.
      blocks: as in `flows.log_density`.
    """
    r = flows.whiten(whitening(params), w)
    jacobian = jnp.broadcast_to(-jnp.log(flows.deviation(whitening(params))), r.shape)
    mask = None
    if absent is not None:
        mask = flows.dimensions_of(absent, own.sizes)
        r, jacobian = jnp.where(mask, fill, r), jnp.where(mask, 0.0, jacobian)
    signs = key if max(blocks or w.shape[-1:]) > MOST_EXACT else None
    found = flows.log_density(velocity, r, own.solver[0], mask, signs, blocks=blocks)
    return found + jnp.sum(jacobian, axis=-1)


def noise_of_rows(key: PRNGKey, w: Array) -> Array:
    """Noise N(0, I) in the shape of w [B, M d], a function of the key and of the row.

    In place of absent latents. The density of the others is one for each value of the
    noise: the mean of its log is a bound.
    """
    keys = flows.keys_of_rows(key, w)
    return jax.vmap(lambda key: jax.random.normal(key, w.shape[1:], w.dtype))(keys)


def bound(
    own: Parts,
    params: Params,
    batch: Batch,
    latents: Gaussian,
    key: PRNGKey,
    log_prior: Callable[[Array, Array], Array],
    beta: Array,
) -> tuple[Array, ObjectiveTerms]:
    """The bound on log p(X), for evaluation only.

    Args:
      own: the model's parts.
      params: parameters.
      batch: modality -> [B, ...].
      latents: q(w_m|x_m), fields [M, B, d].
      key: random key of the sample of w.
      log_prior: (w [B, M d], observed [M, B]) -> log p(w) of observed modalities, [B];
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
