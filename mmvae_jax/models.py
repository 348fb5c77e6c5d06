"""A model is a NamedTuple of pure functions, built from a config.

To add a model of the family, write its subsets in `subsets.py` and one line in
MODELS; for another objective, write it in `objectives.py` and a builder here.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax import distributions, networks, objectives, posteriors, subsets
from mmvae_jax.distributions import Likelihood
from mmvae_jax.errors import UsageError
from mmvae_jax.subsets import SubsetMixture
from mmvae_jax.types import Array, Batch, Gaussian, MultimodalVAE, Params, PRNGKey


class Networks(NamedTuple):
    """The encoders, decoders and likelihoods of all modalities, by name.

    Attributes:
      encoders: modality -> Linen module, x [B, ...] -> Gaussian [B, D].
      decoders: modality -> Linen module, z [B, D] -> likelihood parameters.
      likelihoods: modality -> Likelihood.
      shapes: modality -> shape of one example.
      latent_dim: D of every encoder and decoder.
    """

    encoders: Mapping[str, Any]
    decoders: Mapping[str, Any]
    likelihoods: Mapping[str, Likelihood]
    shapes: Mapping[str, tuple[int, ...]]
    latent_dim: int


def make_model(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> MultimodalVAE:
    """The model that a config describes.

    Args:
      config: with the fields `model`, `objective`, `modality` and `modalities` of
        configs/base.py.
      shapes: modality -> shape of one example, in the order of the M axis.

    Raises:
      UsageError: the model or one of its parts is unknown.
    """
    name = config.model.name
    if name not in MODELS:
        raise UsageError(
            f"unknown model {name!r} in config.model.name; choose one of "
            f"{', '.join(MODELS)}"
        )
    if config.model.latent_dim < 1:
        raise UsageError(
            f"config.model.latent_dim must be >= 1, got {config.model.latent_dim}"
        )
    _check_choices(config, name)
    for modality, options in config.modalities.items():
        if modality not in shapes:
            raise UsageError(
                f"config.modalities names {modality}, but the data have "
                f"{', '.join(shapes)}"
            )
        unknown = sorted(set(options) - set(config.modality))
        if unknown:
            raise UsageError(
                f"config.modalities.{modality} has no field {unknown[0]!r}; choose "
                f"from {', '.join(config.modality)}"
            )
    return MODELS[name](config, shapes)


def _check_choices(config: Any, name: str) -> None:
    """Checks the choices that some models never look at, for all of them."""
    estimator = config.objective.subset_estimator
    if estimator not in objectives.SUBSET_ESTIMATORS:
        raise UsageError(
            f"unknown config.objective.subset_estimator {estimator!r}; choose one of "
            f"{', '.join(objectives.SUBSET_ESTIMATORS)}"
        )
    prior_expert = config.model.prior_expert
    if prior_expert not in subsets.PRIOR_EXPERT_CHOICES:
        raise UsageError(
            f"unknown config.model.prior_expert {prior_expert!r}; choose one of "
            f"{', '.join(subsets.PRIOR_EXPERT_CHOICES)}"
        )
    is_listed = len(config.model.subsets) or len(config.model.subset_weights)
    if is_listed and name != "custom":
        raise UsageError(
            f"config.model.subsets and .subset_weights are for the model 'custom', "
            f"not for {name!r}"
        )


def make_networks(
    config: Any, shapes: Mapping[str, tuple[int, ...]], latent_dim: int
) -> Networks:
    """The networks of all modalities: config.modality, refined by modality."""
    encoders, decoders, likelihoods = {}, {}, {}
    for modality, shape in shapes.items():
        own = config.modalities.get(modality, {})
        options = dict(config.modality.items()) | dict(own.items())
        if "network" in own and "network_options" not in own:
            options["network_options"] = {}  # the others are of another network
        if options["likelihood"] == "categorical":
            raise UsageError(
                f"likelihood 'categorical' of {modality} is for tokens, and images "
                "are no tokens; choose laplace, gaussian or bernoulli"
            )
        encoders[modality], decoders[modality] = networks.make_networks(
            options["network"], shape, latent_dim, **options["network_options"]
        )
        likelihoods[modality] = distributions.make_likelihood(
            options["likelihood"], options["likelihood_scale"]
        )
    return Networks(encoders, decoders, likelihoods, dict(shapes), latent_dim)


def mixture_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    mixture: Callable[[int, str], SubsetMixture],
    is_subsampled: bool = False,
) -> MultimodalVAE:
    """A mixture-based multimodal VAE (Definition 3), or MVAE+ (Eq. 84).

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      mixture: (M, prior_expert choice) -> the model's subsets and weights.
      is_subsampled: whether the unimodal ELBOs are added (MVAE+).
    """
    nets = make_networks(config, shapes, config.model.latent_dim)
    subset_mixture = mixture(len(shapes), config.model.prior_expert)
    bound = (
        objectives.subsampled_elbo
        if is_subsampled
        else partial(
            objectives.subset_elbo, estimator=config.objective.subset_estimator
        )
    )

    def objective(params: Params, batch: Batch, key: PRNGKey):
        return bound(
            encode(nets, params, batch),
            batch,
            key,
            mixture=subset_mixture,
            log_likelihoods=log_likelihoods(nets, params),
        )

    def posterior(experts: Gaussian, subset: Array, key: PRNGKey) -> Gaussian:
        given = posteriors.conditional_mixture(subset_mixture, subset)
        return posteriors.posterior_component(key, experts, given)

    def mixture_posterior(experts: Gaussian) -> tuple[Gaussian, Array]:
        components = posteriors.subset_posteriors(experts, subset_mixture)
        return components, jnp.asarray(subset_mixture.weights)

    def log_likelihood(params: Params, z: Array, batch: Batch) -> dict[str, Array]:
        return {m: f(z, batch[m]) for m, f in log_likelihoods(nets, params).items()}

    return _assemble(nets, config.model.latent_dim)._replace(
        objective=objective,
        posterior=posterior,
        mixture_posterior=mixture_posterior,
        decode=lambda params, z: {m: decode(nets, params, m, z) for m in shapes},
        log_likelihood=log_likelihood,
    )


def unimodal_model(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> MultimodalVAE:
    """M unimodal VAEs of D // M latent dimensions each, side by side.

    The paper's baseline: capacity reduced in proportion to the number of
    modalities. The latent vector is the M of them end to end, so that whatever
    is computed for a multimodal model is computed for this one; generating a
    modality that is not observed means drawing it from its own prior.
    """
    size = config.model.latent_dim // len(shapes)
    if size < 1:
        raise UsageError(
            f"config.model.latent_dim = {config.model.latent_dim} leaves no latent "
            f"dimension for each of {len(shapes)} unimodal VAEs"
        )
    nets = make_networks(config, shapes, size)

    def split(z: Array) -> dict[str, Array]:
        return {m: z[..., i * size : (i + 1) * size] for i, m in enumerate(shapes)}

    def objective(params: Params, batch: Batch, key: PRNGKey):
        return objectives.unimodal_elbos(
            encode(nets, params, batch),
            batch,
            key,
            log_likelihoods=log_likelihoods(nets, params),
        )

    def posterior(experts: Gaussian, subset: Array, key: PRNGKey) -> Gaussian:
        del key  # not a mixture
        observed = jnp.asarray(subset)[:, None, None]
        # Where a modality is not observed, its VAE is left with its prior N(0, I).
        kept = jax.tree.map(lambda field: jnp.where(observed, field, 0.0), experts)
        return jax.tree.map(lambda field: jnp.concatenate(list(field), -1), kept)

    def mixture_posterior(experts: Gaussian) -> tuple[Gaussian, Array]:
        everything = jnp.ones(len(shapes), bool)
        joint = posterior(experts, everything, None)
        return jax.tree.map(lambda field: field[None], joint), jnp.ones(1)

    def decode_all(params: Params, z: Array) -> dict[str, Array]:
        return {m: decode(nets, params, m, part) for m, part in split(z).items()}

    def log_likelihood(params: Params, z: Array, batch: Batch) -> dict[str, Array]:
        parts = split(z)
        functions = log_likelihoods(nets, params)
        return {m: f(parts[m], batch[m]) for m, f in functions.items()}

    return _assemble(nets, size * len(shapes))._replace(
        objective=objective,
        posterior=posterior,
        mixture_posterior=mixture_posterior,
        decode=decode_all,
        log_likelihood=log_likelihood,
    )


def encode(nets: Networks, params: Params, batch: Batch) -> Gaussian:
    """The experts of all modalities, fields [M, B, D]."""
    experts = [
        encoder.apply(params["encoders"][m], batch[m])
        for m, encoder in nets.encoders.items()
    ]
    return jax.tree.map(lambda *fields: jnp.stack(fields), *experts)


def decode(nets: Networks, params: Params, modality: str, z: Array) -> Array:
    """The likelihood's mean of one modality, [B, ...]."""
    output = nets.decoders[modality].apply(params["decoders"][modality], z)
    return nets.likelihoods[modality].mean(output)


def log_likelihoods(
    nets: Networks, params: Params
) -> dict[str, Callable[[Array, Array], Array]]:
    """modality -> function (z [N, D], x [N, ...]) -> log p(x|z) [N], nats."""

    def log_likelihood(modality: str, z: Array, x: Array) -> Array:
        output = nets.decoders[modality].apply(params["decoders"][modality], z)
        return nets.likelihoods[modality].log_prob(output, x)

    return {m: partial(log_likelihood, m) for m in nets.decoders}


def _assemble(nets: Networks, latent_dim: int) -> MultimodalVAE:
    """The functions that do not depend on the objective; the others are None."""

    def init(key: PRNGKey) -> Params:
        keys = iter(jax.random.split(key, 2 * len(nets.shapes)))
        z = jnp.zeros((1, nets.latent_dim))
        return {
            "encoders": {
                m: nets.encoders[m].init(next(keys), jnp.zeros((1, *shape)))
                for m, shape in nets.shapes.items()
            },
            "decoders": {m: nets.decoders[m].init(next(keys), z) for m in nets.shapes},
        }

    return MultimodalVAE(
        modalities=tuple(nets.shapes),
        latent_dim=latent_dim,
        init=init,
        objective=None,
        encode=partial(encode, nets),
        posterior=None,
        mixture_posterior=None,
        decode=None,
        log_likelihood=None,
        sample_prior=lambda key, num: jax.random.normal(key, (num, latent_dim)),
        log_prior=distributions.standard_gaussian_log_prob,
    )


def _custom(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> MultimodalVAE:
    """Any set of subsets and weights: config.model.subsets, .subset_weights."""

    def mixture(num_modalities: int, prior_expert: str) -> SubsetMixture:
        return subsets.custom_subsets(
            num_modalities,
            config.model.subsets,
            config.model.subset_weights,
            prior_expert,
        )

    return mixture_model(config, shapes, mixture=mixture)


MODELS = {
    "unimodal": unimodal_model,
    "mvae": partial(mixture_model, mixture=subsets.full_set),
    "mvae_plus": partial(mixture_model, mixture=subsets.full_set, is_subsampled=True),
    "mmvae": partial(mixture_model, mixture=subsets.unimodal_subsets),
    "mopoe": partial(mixture_model, mixture=subsets.powerset),
    "custom": _custom,
}
