"""Parts of models: networks, latents, and functions that several models share."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax import networks
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, elbo, posteriors
from mmvae_jax.mathematics.distributions import LIKELIHOODS, Likelihood
from mmvae_jax.networks import vectors
from mmvae_jax.types import (
    OBSERVED,
    SHARED,
    AnyArray,
    Array,
    Batch,
    Distribution,
    Family,
    Gaussian,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
    TokenShape,
)

# Log-variance around a drawn latent vector, which is practically a point.
DRAWN = -20.0
# Draws that represent a posterior without a known density as a mixture.
_NUM_DRAWS = 8


class Networks(NamedTuple):
    """The encoders, decoders and likelihoods of all modalities, by name.

    Attributes:
      encoders: modality -> Linen module, x [B, ...] -> Gaussian [B, D].
      decoders: modality -> Linen module, z [B, D] -> likelihood parameters.
      likelihoods: modality -> Likelihood.
      weights: modality -> weight of its log-likelihood in the loss.
      shapes: modality -> shape of one example.
      latent_dim: D of every encoder and decoder.
      counts: the modalities of counts; their encoders get log(1 + x).
    """

    encoders: Mapping[str, Any]
    decoders: Mapping[str, Any]
    likelihoods: Mapping[str, Likelihood]
    weights: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    latent_dim: int
    counts: frozenset[str] = frozenset()


def make_networks(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    latent_dim: int,
    private_dim: int = 0,
    is_paired: bool = True,
) -> Networks:
    """The networks of all modalities, by config.modality and config.modalities.

    If `private_dim` is not 0, latent vectors have that many additional dimensions. If
    `is_paired`, each modality has a second, separate encoder for them.
    """
    sizes = (latent_dim, private_dim) if private_dim else (latent_dim,)
    encoders: dict[str, Any] = {}
    decoders, likelihoods = {}, {}
    for modality, shape in shapes.items():
        options = options_of(config, modality)
        likelihoods[modality] = _likelihood(modality, shape, options)
        made = [
            networks.make_networks(
                options["network"], shape, size, **options["network_options"]
            )
            for size in sizes
        ]
        (encoder, decoder), *second = made
        if second and is_paired:
            encoders[modality] = vectors.PairedEncoder(encoder, second[0][0])
        else:
            encoder = encoder.clone(latent_dim=sum(sizes))
            encoders[modality] = networks.in_parts(encoder, sizes)
        decoders[modality] = networks.in_parts(decoder, sizes)
        parameter_shape = likelihoods[modality].parameter_shape
        if parameter_shape is not None:
            decoders[modality] = vectors.ParameterDecoder(
                decoders[modality], parameter_shape(tuple(shape))
            )
    weights = likelihood_weights(config, shapes)
    counts = frozenset(m for m in shapes if has_counts(config, m))
    return Networks(
        encoders, decoders, likelihoods, weights, dict(shapes), sum(sizes), counts
    )


def _likelihood(
    modality: str, shape: tuple[int, ...], options: Mapping[str, Any]
) -> Likelihood:
    """The likelihood of a modality.

    Raises:
      UsageError: the likelihood does not fit arrays of this shape, or is invalid.
    """
    name = options["likelihood"]
    likelihood = distributions.make_likelihood(
        name,
        options["likelihood_scale"],
        options["count_padding"],
        options.get("library_size", 0.0),
    )
    types = ("int",) if isinstance(shape, TokenShape) else ("uint8", "float")
    if mistake := distributions.misfit(name, modality, types):
        raise UsageError(mistake)
    return likelihood


def has_counts(config: Any, modality: str) -> bool:
    """Whether a modality has counts, int [N, F], by its likelihood."""
    name = options_of(config, modality)["likelihood"]
    return name in LIKELIHOODS and LIKELIHOODS[name].is_of_counts


def shapes_of_counts(
    config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes, with (F,) for counts, int [N, F]."""
    return {
        m: (shape.length,)
        if isinstance(shape, TokenShape) and has_counts(config, m)
        else shape
        for m, shape in shapes.items()
    }


def options_of(config: Any, modality: str) -> dict[str, Any]:
    """Settings of one modality: config.modality, updated by config.modalities."""
    own = config.modalities.get(modality, {})
    options = dict(config.modality.items()) | dict(own.items())
    if "network" in own and "network_options" not in own:
        options["network_options"] = {}  # config.modality's are of another network
    return options


def takes_specials(config: Any, modality: str) -> bool:
    """Whether token 2 of a modality is treated as the end of a text."""
    options = options_of(config, modality)
    is_cut = options["likelihood"] == "categorical" and not options["count_padding"]
    return is_cut or networks.NETWORKS[options["network"]].is_up_to_eos


def likelihood_weights(config: Any, modalities: Iterable[str]) -> dict[str, float]:
    """modality -> weight of its log-likelihood in the loss.

    Raises:
      UsageError: a weight is not positive and finite.
    """
    weights = {m: options_of(config, m)["likelihood_weight"] for m in modalities}
    for modality, weight in weights.items():
        if not 0 < weight < math.inf:
            raise UsageError(
                f"likelihood_weight of {modality} must be > 0 and finite, got {weight}"
            )
    return weights


def unweighted(terms: ObjectiveTerms, weights: Mapping[str, float]) -> ObjectiveTerms:
    """Divides the log-likelihood terms by their weights, back to nats."""
    log_likelihood = {
        m: value if weights[m] == 1 else value / weights[m]
        for m, value in terms.log_likelihood.items()
    }
    return terms._replace(log_likelihood=log_likelihood)


class Latents(NamedTuple):
    """The family of a model's experts, and its prior.

    Attributes:
      shape: shape of the prior's fields: (D,), or (M, d) for M unimodal VAEs.
      experts: output of the encoders, Gaussian [M, B, D] -> the experts.
      init: () -> the prior's entries of the parameters.
      prior: params -> Distribution.
    """

    shape: tuple[int, ...]
    experts: Callable[[Gaussian], Distribution]
    init: Callable[[], dict[str, Array]]
    prior: Callable[[Params], Distribution]


def standard_latents(shape: tuple[int, ...]) -> Latents:
    """Gaussian experts and the prior N(0, I), of a given shape."""

    def prior(params: Params) -> Gaussian:
        del params  # it is fixed
        return Gaussian(jnp.zeros(shape), jnp.zeros(shape))

    return Latents(shape, lambda emitted: emitted, dict, prior)


def encode(nets: Networks, params: Params, batch: Batch) -> Gaussian:
    """Encodes all modalities to means and log-variances, fields [M, B, D].

    Missing modalities have zeros: no gradient and no overflow.
    """

    def seen(m: str, x: AnyArray) -> AnyArray:
        return jnp.log1p(x) if m in nets.counts else x

    emitted = [
        encoder.apply(params["encoders"][m], seen(m, batch[m]))
        for m, encoder in nets.encoders.items()
    ]
    stacked = jax.tree.map(lambda *fields: jnp.stack(fields), *emitted)
    if OBSERVED not in batch:
        return stacked
    observed = batch[OBSERVED].T[:, :, None]
    return jax.tree.map(lambda field: jnp.where(observed, field, 0.0), stacked)


def without_missing(modalities: Sequence[str], batch: Batch) -> Batch:
    """Replaces missing values, which may be NaN, by zeros."""
    if OBSERVED not in batch:
        return batch
    observed = batch[OBSERVED]

    def kept(x: AnyArray, row: AnyArray) -> Array:
        is_there = posteriors.append_axes(jnp.asarray(row), x.ndim)
        return jnp.where(is_there, x, jnp.zeros_like(x))

    pairs = zip(modalities, observed.T, strict=True)
    clean: dict[str, AnyArray] = {m: kept(batch[m], row) for m, row in pairs}
    return clean | {OBSERVED: observed}


def _output(nets: Networks, params: Params, modality: str, z: Array) -> Any:
    """Output of one modality's decoder: the parameters of its likelihood."""
    return nets.decoders[modality].apply(params["decoders"][modality], z)


def decode(nets: Networks, params: Params, modality: str, z: Array) -> Array:
    """The likelihood's mean of one modality, [B, ...]."""
    return nets.likelihoods[modality].mean(_output(nets, params, modality, z))


def _log_likelihood(
    nets: Networks, params: Params, modality: str, z: Array, x: AnyArray
) -> Array:
    """log p(x|z) [N] of one modality, z [N, D], x [N, ...]; nats."""
    output = _output(nets, params, modality, z)
    return nets.likelihoods[modality].log_prob(output, jnp.asarray(x))


def log_likelihoods(nets: Networks, params: Params) -> elbo.LogLikelihoods:
    """The weighted log-likelihoods of an objective.

    Modality -> function (z [N, D], x [N, ...]) -> [N], log p(x|z) times the modality's
    weight in the loss. `models.make_model` divides logged terms by the weights again.
    """

    def weighted(modality: str, z: Array, x: AnyArray) -> Array:
        weight = nets.weights[modality]
        value = _log_likelihood(nets, params, modality, z, x)
        return value if weight == 1 else weight * value

    return {m: partial(weighted, m) for m in nets.decoders}


def undefined(*args: Any) -> Any:
    """Placeholder of a function that the model's file must define."""
    raise NotImplementedError("the model does not have this function")


def assemble(
    nets: Networks,
    latents: Latents,
    parts: Callable[[Array], Mapping[str, Array]] | None = None,
) -> MultimodalVAE:
    """The functions that all models share; the others are `undefined`.

    Args:
      nets: networks of all modalities.
      latents: experts and prior.
      parts: z [..., D] -> modality -> the part of z from which the modality is decoded;
        default: all of z.
    """
    parts = parts or (lambda z: dict.fromkeys(nets.shapes, z))

    def init(key: PRNGKey) -> Params:
        keys = iter(jax.random.split(key, 2 * len(nets.shapes)))
        z = jnp.zeros((1, nets.latent_dim))
        return {
            "encoders": {
                m: nets.encoders[m].init(next(keys), networks.blank(shape))
                for m, shape in nets.shapes.items()
            },
            "decoders": {m: nets.decoders[m].init(next(keys), z) for m in nets.shapes},
            **latents.init(),
        }

    def prior(params: Params) -> Distribution:
        """Prior of the whole latent vector, fields [D]."""
        return jax.tree.map(lambda field: field.reshape(-1), latents.prior(params))

    def log_likelihood_of(params: Params, z: Array, batch: Batch) -> dict[str, Array]:
        own = parts(z)
        values = {
            m: _log_likelihood(nets, params, m, own[m], batch[m]) for m in nets.shapes
        }
        observed = elbo.observed_of(batch, len(values))
        return elbo.observed_terms(values, observed)

    def deviation(params: Params, z: Array) -> dict[str, Array]:
        return {
            m: own(_output(nets, params, m, z_m))
            for m, z_m in parts(z).items()
            if (own := nets.likelihoods[m].deviation) is not None
        }

    def sample_likelihood(params: Params, z: Array, key: PRNGKey) -> dict[str, Array]:
        keys = jax.random.split(key, len(nets.shapes))
        return {
            m: nets.likelihoods[m].sample(_output(nets, params, m, z_m), own)
            for (m, z_m), own in zip(parts(z).items(), keys, strict=True)
        }

    return MultimodalVAE(
        modalities=tuple(nets.shapes),
        latent_dim=math.prod(latents.shape),
        init=init,
        objective=undefined,
        encode=lambda params, batch: latents.experts(encode(nets, params, batch)),
        posterior=undefined,
        mixture_posterior=undefined,
        posterior_components=undefined,
        decode=lambda params, z: {
            m: decode(nets, params, m, own) for m, own in parts(z).items()
        },
        log_likelihood=log_likelihood_of,
        sample_prior=lambda params, key, num: distributions.sample(
            prior(params), key, (num,)
        ),
        log_prior=lambda params, z: distributions.log_prob(prior(params), z),
        convolutions=networks.convolution_forms(
            *nets.encoders.values(), *nets.decoders.values()
        ),
        latent_parts=((SHARED, math.prod(latents.shape)),),
        supports={m: own.support for m, own in nets.likelihoods.items()},
        deviation=deviation,
        sample_likelihood=sample_likelihood,
    )


def wide(observed: AnyArray, num: int) -> Array:
    """Broadcasts observed [M], [M, 1] or [M, B] to `num` = B examples, [M, B]."""
    rows = jnp.asarray(observed)
    return jnp.broadcast_to(rows.reshape(len(rows), -1), (len(rows), num))


def by_modality(shapes: Mapping[str, Any], w: Array) -> dict[str, Array]:
    """Splits latents [..., M d] by modality."""
    return dict(zip(shapes, jnp.split(w, len(shapes), axis=-1), strict=True))


def end_to_end(x: Array) -> Array:
    """Concatenates the latents of all modalities, [M, B, d] -> [B, M d]."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)


def own_or_other(experts: Family, other: Family, subset: AnyArray) -> Family:
    """Latents of all modalities, end to end: experts if observed, else others.

    Args:
      experts: fields [M, B, d].
      other: fields that broadcast to these.
      subset: bool [M] or [M, B], the observed modalities; may be traced.

    Returns:
      A distribution with fields [B, M d].
    """
    is_own = posteriors.append_axes(jnp.asarray(subset), 3)
    kept = jax.tree.map(partial(jnp.where, is_own), experts, other)
    return jax.tree.map(end_to_end, kept)


def only_component(posterior: Family) -> tuple[Family, Array]:
    """A distribution [B, D] as a mixture: fields [1, B, D], and its weight [1, 1]."""
    return jax.tree.map(lambda field: field[None], posterior), jnp.ones((1, 1))


def drawing(
    base: MultimodalVAE,
    posterior: Callable[..., Gaussian],
    proposal: Callable[..., Gaussian],
) -> MultimodalVAE:
    """A model whose posterior draws missing latents without a known density.

    Args:
      base: the model without its posteriors; its log_prior takes a subset.
      posterior: (params, experts, subset, key) -> q(z|x_A).
      proposal: (params, experts, subset) -> the distribution of z in the ELBO of x_A,
        without draws.
    """

    def mixture_posterior(
        params: Params, experts: Gaussian, subset: AnyArray
    ) -> tuple[Gaussian, Array]:
        return only_component(proposal(params, experts, subset))

    return base._replace(
        posterior=posterior,
        mixture_posterior=mixture_posterior,
        posterior_components=partial(draws, posterior),
        draws_missing=True,
    )


def draws(
    posterior: Callable[..., Gaussian],
    params: Params,
    experts: Gaussian,
    subset: AnyArray,
) -> tuple[Gaussian, Array]:
    """Some draws of a posterior, with fixed keys."""
    drawn = jax.lax.map(
        lambda key: posterior(params, experts, subset, key),
        jax.random.split(jax.random.key(0), _NUM_DRAWS),
    )
    return drawn, jnp.full((_NUM_DRAWS, 1), 1 / _NUM_DRAWS)
