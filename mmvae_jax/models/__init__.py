"""A model is a NamedTuple of pure functions, built from a config.

To add a model of the family, write its subsets in `subsets.py` and one line in
MODELS; for another objective, write it in `objectives.py` and a builder in a file
here. `parts` holds what builders share.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from mmvae_jax import importance, objectives, subsets
from mmvae_jax.errors import UsageError
from mmvae_jax.models import coordination, parts
from mmvae_jax.models.contrastive import contrastive_model
from mmvae_jax.models.coordination import coordination_model
from mmvae_jax.models.jensen_shannon import jensen_shannon_model
from mmvae_jax.models.mixtures import custom_model, mixture_model
from mmvae_jax.models.mmvm import mixture_prior_model
from mmvae_jax.models.official import POSTERIORS, official_mixture_model
from mmvae_jax.models.private import PRIVATE_DRAWS, dmvae_model, mmvae_plus_model
from mmvae_jax.models.unimodal import unimodal_model
from mmvae_jax.types import Array, Batch, MultimodalVAE, Params, PRNGKey

MODELS = {
    "unimodal": unimodal_model,
    "mvae": partial(mixture_model, mixture=subsets.full_set),
    "mvae_plus": partial(mixture_model, mixture=subsets.full_set, is_subsampled=True),
    "mmvae": partial(mixture_model, mixture=subsets.unimodal_subsets),
    "mopoe": partial(mixture_model, mixture=subsets.powerset),
    "mmvae_official": official_mixture_model,
    "unimodal_official": partial(unimodal_model, is_official=True),
    "mmvae_plus": mmvae_plus_model,
    "dmvae": dmvae_model,
    "jmvae": partial(coordination_model, kind=coordination.JMVAE),
    "jmvae_kl": partial(coordination_model, kind=coordination.JMVAE_KL),
    "telbo": partial(coordination_model, kind=coordination.TELBO),
    "mvtcae": partial(coordination_model, kind=coordination.MVTCAE),
    "crmvae": partial(coordination_model, kind=coordination.CRMVAE),
    "mmjsd": jensen_shannon_model,
    "mmvm": mixture_prior_model,
    "contrastive": contrastive_model,
    "custom": custom_model,
}
PRIVATE = ("mmvae_plus", "dmvae", "contrastive")


def check(config: Any) -> None:
    """Checks what can be said of a model before there are any data.

    Raises:
      UsageError: the model or one of its options is unknown.
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


def make_model(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> MultimodalVAE:
    """The model that a config describes.

    Args:
      config: with the fields `model`, `objective`, `modality` and `modalities` of
        configs/base.py.
      shapes: modality -> shape of one example, in the order of the M axis.

    Raises:
      UsageError: the model or one of its parts is unknown.
    """
    check(config)
    name = config.model.name
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
    weights = parts.likelihood_weights(config, shapes)
    return _with_missing(_in_nats(MODELS[name](config, shapes), weights))


def _in_nats(model: MultimodalVAE, weights: Mapping[str, float]) -> MultimodalVAE:
    """The model, its terms without the weights that its log-likelihoods have."""

    def objective(params: Params, batch: Batch, key: PRNGKey, beta: Array):
        value, terms = model.objective(params, batch, key, beta)
        return value, parts.unweighted(terms, weights)

    return model._replace(objective=objective)


def _with_missing(model: MultimodalVAE) -> MultimodalVAE:
    """The model, for batches in which modalities may be missing."""
    clean = partial(parts.without_missing, model.modalities)
    return model._replace(
        objective=lambda params, batch, *rest: model.objective(
            params, clean(batch), *rest
        ),
        encode=lambda params, batch: model.encode(params, clean(batch)),
        log_likelihood=lambda params, z, batch: model.log_likelihood(
            params, z, clean(batch)
        ),
    )


def _check_choices(config: Any, name: str) -> None:
    """Checks the choices that some models never look at, for all of them."""
    for section, field, choices in (
        ("objective", "subset_estimator", objectives.SUBSET_ESTIMATORS),
        ("objective", "form", importance.FORMS),
        ("objective", "estimator", importance.ESTIMATORS),
        ("model", "prior_expert", subsets.PRIOR_EXPERT_CHOICES),
        ("model", "posterior", POSTERIORS),
        ("model", "crmvae", coordination.CRMVAE_FORMS),
        ("model", "telbo", coordination.TELBO_MODES),
        ("model", "private_draw", PRIVATE_DRAWS),
    ):
        value = config[section][field]
        if value not in choices:
            raise UsageError(
                f"unknown config.{section}.{field} {value!r}; choose one of "
                f"{', '.join(choices)}"
            )
    for field, high in (
        ("jmvae_alpha", math.inf),
        ("mvtcae_alpha", 1.0),
        ("mmvm_alpha", 1.0),
        ("consistency", math.inf),
    ):
        if not 0 <= config.model[field] <= high:
            limits = ">= 0" if high == math.inf else f"in [0, {high:g}]"
            raise UsageError(
                f"config.model.{field} must be {limits}, got {config.model[field]}"
            )
    if not 0 < config.model.code_variance < 1:
        raise UsageError(
            "config.model.code_variance must be in (0, 1), got "
            f"{config.model.code_variance}"
        )
    if config.model.code_components < 1:
        raise UsageError(
            "config.model.code_components must be >= 1, got "
            f"{config.model.code_components}"
        )
    if config.objective.num_samples < 1:
        raise UsageError(
            "config.objective.num_samples must be >= 1, got "
            f"{config.objective.num_samples}"
        )
    private_dim = config.model.private_dim
    if private_dim < 0:
        raise UsageError(f"config.model.private_dim must be >= 0, got {private_dim}")
    if private_dim and name not in PRIVATE:
        raise UsageError(
            f"config.model.private_dim is for the models {', '.join(PRIVATE)}, not "
            f"for {name!r}"
        )
    is_listed = len(config.model.subsets) or len(config.model.subset_weights)
    if is_listed and name != "custom":
        raise UsageError(
            f"config.model.subsets and .subset_weights are for the model 'custom', "
            f"not for {name!r}"
        )
