"""A model is a NamedTuple of pure functions, built from a config.

To add a model of the family, write its subsets in `subsets.py` and one line in
MODELS; for another objective, write it in `objectives.py` and a builder here.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax import distributions, networks, objectives, posteriors, subsets
from mmvae_jax.distributions import Likelihood
from mmvae_jax.errors import UsageError
from mmvae_jax.subsets import SubsetMixture
from mmvae_jax.types import (
    Array,
    Batch,
    Distribution,
    Gaussian,
    Laplace,
    MultimodalVAE,
    Params,
    PRNGKey,
)

POSTERIORS = ("laplace", "gaussian")  # of the official models


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
    for section, field, choices in (
        ("objective", "subset_estimator", objectives.SUBSET_ESTIMATORS),
        ("objective", "form", objectives.FORMS),
        ("objective", "estimator", objectives.ESTIMATORS),
        ("model", "prior_expert", subsets.PRIOR_EXPERT_CHOICES),
        ("model", "posterior", POSTERIORS),
    ):
        value = config[section][field]
        if value not in choices:
            raise UsageError(
                f"unknown config.{section}.{field} {value!r}; choose one of "
                f"{', '.join(choices)}"
            )
    if config.objective.num_samples < 1:
        raise UsageError(
            "config.objective.num_samples must be >= 1, got "
            f"{config.objective.num_samples}"
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

    def objective(params: Params, batch: Batch, key: PRNGKey, beta: Array):
        terms = bound(
            encode(nets, params, batch),
            batch,
            key,
            mixture=subset_mixture,
            log_likelihoods=log_likelihoods(nets, params),
        )
        return objectives.loss(terms, beta), terms

    def posterior(
        params: Params, experts: Gaussian, subset: Array, key: PRNGKey
    ) -> Gaussian:
        del params
        given = posteriors.conditional_mixture(subset_mixture, subset)
        return posteriors.posterior_component(key, experts, given)

    def mixture_posterior(params: Params, experts: Gaussian) -> tuple[Gaussian, Array]:
        del params
        components = posteriors.subset_posteriors(experts, subset_mixture)
        return components, jnp.asarray(subset_mixture.weights)

    return _assemble(nets, standard_latents((config.model.latent_dim,)))._replace(
        objective=objective, posterior=posterior, mixture_posterior=mixture_posterior
    )


def official_mixture_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> MultimodalVAE:
    """The MMVAE with the official implementation, Shi et al. (2019).

    A mixture of Laplace experts, a prior with learned scales, an importance-weighted
    objective (Daunhawer et al., 2022, App. C.2 and Fig. 12). Networks, likelihoods
    and Adam are those of all other models.
    """
    nets = make_networks(config, shapes, config.model.latent_dim)
    latents = official_latents(config, (config.model.latent_dim,))
    options = _importance_weighting(config) | {"form": config.objective.form}

    def objective(params: Params, batch: Batch, key: PRNGKey, beta: Array):
        return objectives.importance_weighted(
            latents.experts(encode(nets, params, batch)),
            batch,
            key,
            beta,
            prior=latents.prior(params),
            log_likelihoods=log_likelihoods(nets, params),
            **options,
        )

    def posterior(
        params: Params, experts: Distribution, subset: Array, key: PRNGKey
    ) -> Distribution:
        del params
        return posteriors.expert_component(key, experts, subset)

    def mixture_posterior(
        params: Params, experts: Distribution
    ) -> tuple[Distribution, Array]:
        del params
        return experts, jnp.full(len(shapes), 1 / len(shapes))

    return _assemble(nets, latents)._replace(
        objective=objective, posterior=posterior, mixture_posterior=mixture_posterior
    )


def unimodal_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], *, is_official: bool = False
) -> MultimodalVAE:
    """M unimodal VAEs of D // M latent dimensions each, side by side.

    The paper's baseline: capacity reduced in proportion to the number of
    modalities. The latent vector is the M of them end to end, so that whatever
    is computed for a multimodal model is computed for this one; generating a
    modality that is not observed means drawing it from its own prior.

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      is_official: whether objective, posteriors and prior are those of the official
        MMVAE (the baseline of the paper's Figure 12).
    """
    size = config.model.latent_dim // len(shapes)
    if size < 1:
        raise UsageError(
            f"config.model.latent_dim = {config.model.latent_dim} leaves no latent "
            f"dimension for each of {len(shapes)} unimodal VAEs"
        )
    nets = make_networks(config, shapes, size)
    make_latents = (
        partial(official_latents, config) if is_official else standard_latents
    )
    latents = make_latents((len(shapes), size))

    def split(z: Array) -> dict[str, Array]:
        return {m: z[..., i * size : (i + 1) * size] for i, m in enumerate(shapes)}

    def objective(params: Params, batch: Batch, key: PRNGKey, beta: Array):
        experts = latents.experts(encode(nets, params, batch))
        decoders = log_likelihoods(nets, params)
        if is_official:
            return objectives.unimodal_importance_weighted(
                experts,
                batch,
                key,
                beta,
                prior=latents.prior(params),
                log_likelihoods=decoders,
                **_importance_weighting(config),
            )
        terms = objectives.unimodal_elbos(experts, batch, key, log_likelihoods=decoders)
        return objectives.loss(terms, beta), terms

    def posterior(
        params: Params, experts: Distribution, subset: Array, key: PRNGKey
    ) -> Distribution:
        del key  # not a mixture
        observed = jnp.asarray(subset)[:, None, None]
        # Where a modality is not observed, its VAE is left with its prior.
        kept = jax.tree.map(
            lambda own, prior: jnp.where(observed, own, prior[:, None]),
            experts,
            latents.prior(params),
        )
        return jax.tree.map(lambda field: jnp.concatenate(list(field), -1), kept)

    def mixture_posterior(
        params: Params, experts: Distribution
    ) -> tuple[Distribution, Array]:
        everything = jnp.ones(len(shapes), bool)
        joint = posterior(params, experts, everything, None)
        return jax.tree.map(lambda field: field[None], joint), jnp.ones(1)

    def decode_all(params: Params, z: Array) -> dict[str, Array]:
        return {m: decode(nets, params, m, part) for m, part in split(z).items()}

    def log_likelihood(params: Params, z: Array, batch: Batch) -> dict[str, Array]:
        parts = split(z)
        functions = log_likelihoods(nets, params)
        return {m: f(parts[m], batch[m]) for m, f in functions.items()}

    return _assemble(nets, latents)._replace(
        objective=objective,
        posterior=posterior,
        mixture_posterior=mixture_posterior,
        decode=decode_all,
        log_likelihood=log_likelihood,
    )


class Latents(NamedTuple):
    """The family of a model's experts, and its prior.

    Attributes:
      shape: of the prior's fields: (D,), or (M, d) for M unimodal VAEs.
      experts: what the encoders emit, Gaussian [M, B, D] -> the experts.
      init: () -> the prior's own entries of the parameters.
      prior: params -> Distribution.
    """

    shape: tuple[int, ...]
    experts: Callable[[Gaussian], Distribution]
    init: Callable[[], dict[str, Array]]
    prior: Callable[[Params], Distribution]


def standard_latents(shape: tuple[int, ...]) -> Latents:
    """Gaussian experts and the prior N(0, I), of this shape."""
    prior = Gaussian(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    return Latents(shape, lambda emitted: emitted, dict, lambda params: prior)


def official_latents(config: Any, shape: tuple[int, ...]) -> Latents:
    """Experts and prior as Shi et al. (2019) released them.

    Laplace experts whose scales are D times a softmax of what the encoder emits,
    plus 1e-6, and a Laplace prior of mean 0 whose scales are D times a softmax of
    parameters (1 at the start): scales of either sum to D, so a model cannot shrink
    its whole latent space. What encoders emit is softly bounded to +-20.

    Args:
      config: its fields model.posterior ("gaussian": experts as all other models
        have them, and the same prior but normal) and model.learned_prior.
      shape: of the prior's fields; the last axis is D.
    """
    is_laplace = config.model.posterior == "laplace"
    is_learned = config.model.learned_prior

    def experts(emitted: Gaussian) -> Distribution:
        if not is_laplace:
            return emitted
        log_scale = _softmax_log_scale(emitted.log_variance)
        return Laplace(emitted.mean, jnp.logaddexp(log_scale, math.log(1e-6)))

    def prior(params: Params) -> Distribution:
        logits = params["prior"] if is_learned else jnp.zeros(shape)
        log_scale, mean = _softmax_log_scale(logits), jnp.zeros(shape)
        return Laplace(mean, log_scale) if is_laplace else Gaussian(mean, 2 * log_scale)

    def init() -> dict[str, Array]:
        return {"prior": jnp.zeros(shape)} if is_learned else {}

    return Latents(shape, experts, init, prior)


def _softmax_log_scale(logits: Array) -> Array:
    """Logarithm of scales that sum to D, of logits [..., D]."""
    return jax.nn.log_softmax(logits) + math.log(logits.shape[-1])


def _importance_weighting(config: Any) -> dict[str, Any]:
    """What both importance-weighted objectives take from the config."""
    return {
        "num_samples": config.objective.num_samples,
        "estimator": config.objective.estimator,
    }


def encode(nets: Networks, params: Params, batch: Batch) -> Gaussian:
    """What the encoders of all modalities emit, fields [M, B, D]."""
    emitted = [
        encoder.apply(params["encoders"][m], batch[m])
        for m, encoder in nets.encoders.items()
    ]
    return jax.tree.map(lambda *fields: jnp.stack(fields), *emitted)


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


def _assemble(nets: Networks, latents: Latents) -> MultimodalVAE:
    """The functions that objectives do not differ in; the others are None."""

    def init(key: PRNGKey) -> Params:
        keys = iter(jax.random.split(key, 2 * len(nets.shapes)))
        z = jnp.zeros((1, nets.latent_dim))
        return {
            "encoders": {
                m: nets.encoders[m].init(next(keys), jnp.zeros((1, *shape)))
                for m, shape in nets.shapes.items()
            },
            "decoders": {m: nets.decoders[m].init(next(keys), z) for m in nets.shapes},
            **latents.init(),
        }

    def prior(params: Params) -> Distribution:
        """Of the whole latent vector, fields [D]."""
        return jax.tree.map(lambda field: field.reshape(-1), latents.prior(params))

    def log_likelihood(params: Params, z: Array, batch: Batch) -> dict[str, Array]:
        return {m: f(z, batch[m]) for m, f in log_likelihoods(nets, params).items()}

    return MultimodalVAE(
        modalities=tuple(nets.shapes),
        latent_dim=math.prod(latents.shape),
        init=init,
        objective=None,
        encode=lambda params, batch: latents.experts(encode(nets, params, batch)),
        posterior=None,
        mixture_posterior=None,
        decode=lambda params, z: {m: decode(nets, params, m, z) for m in nets.shapes},
        log_likelihood=log_likelihood,
        sample_prior=lambda params, key, num: distributions.sample(
            prior(params), key, (num,)
        ),
        log_prior=lambda params, z: distributions.log_prob(prior(params), z),
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
    "mmvae_official": official_mixture_model,
    "unimodal_official": partial(unimodal_model, is_official=True),
    "custom": _custom,
}
