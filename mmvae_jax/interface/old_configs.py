"""Configs of runs that older versions started, with the fields of today.

Newer fields get the values that reproduce the older behaviour. In old configs,
config.model and config.objective held the settings of all models, and a model ignored
those that it did not read.
"""

from typing import Any

from mmvae_jax import models

# Option -> what it was called: for the models named, or else for all that read it.
_FORMER = {
    "alpha": {
        "jmvae_kl": "jmvae_alpha",
        "mvtcae": "mvtcae_alpha",
        "mmvm": "mmvm_alpha",
    },
    "weights": {"crmvae": "crmvae"},
    "decoder_gradients": {"telbo": "telbo"},
    "decode_prior": {"mmjsd": "mmjsd_decode_prior"},
}

# Section -> its later fields, with what they were before.
_LATER: dict[str, dict[str, Any]] = {
    "data": {"validation": 0, "quadrant": "", "label_modalities": []},
    "modality": {"library_size": 0.0},
    "train": {
        "beta_warmup_steps": 0,
        "learning_rate_schedule": "constant",
        "learning_rate_warmup_steps": 0,
        "learning_rate_final": 0.0,
    },
    "eval": {
        "sampler": "prior",
        "sampler_components": [10, 25, 50],
        "sampler_steps": 2_000,
    },
}
# Model -> its later options, likewise.
_LATER_OPTIONS: dict[str, dict[str, Any]] = {
    "mmvm": {"alpha_steps": 0},
    "custom": {"pooling": "product", "correlation": 0.5, "pooled_over": "vector"},
    "telbo": {"joint_steps": 0},
    "mmvae_plus": {"self_gradient": True, "prior_components": 0},
    "contrastive": {"code_network": "same"},
    "code_flow": {"single_stage": False, "flow_draws": 1},
    "latent_flow": {"flow_draws": 1},
}


def upgraded(config: Any) -> Any:
    """A config.json as it would be written today.

    Args:
      config: the content of any config.json, or of any other file.

    Returns:
      The same without config.objective, and with config.model.options, those settings
      that the model reads, and with the fields that came later; what is no config is
      returned as it is.
    """
    section = config.get("model") if isinstance(config, dict) else None
    if not isinstance(section, dict):
        return config
    name = section.get("name")
    if not isinstance(name, str) or name not in models.MODELS:
        return config
    if "options" not in section:
        section = _with_options(name, section, config.get("objective"))
        config = {field: x for field, x in config.items() if field != "objective"}
    if isinstance(section["options"], dict):
        options = _LATER_OPTIONS.get(name, {}) | section["options"]
        section = section | {"options": options}
    config = config | {"model": section}
    return config | {
        part: later | config[part]
        for part, later in _LATER.items()
        if isinstance(config.get(part), dict)
    }


def upgraded_scale(scale: Any) -> Any:
    """The scale in a plan.json as it would be written today.

    What it changes for one model alone has the settings of `upgraded`; so has what it
    changes for those of Figure 12, under names that have not changed.
    """
    try:
        changes, by_model = scale["official"]["changes"], scale["models"]
        official = _upgraded_change("mmvae_official", changes)
        others = {name: _upgraded_change(name, own) for name, own in by_model.items()}
    except (AttributeError, KeyError, TypeError):
        return scale
    return scale | {
        "official": scale["official"] | {"changes": official},
        "models": others,
    }


def _upgraded_change(name: str, change: dict[str, Any]) -> dict[str, Any]:
    """Changes that a scale makes for a model, by the fields of today."""
    section = change.get("model", {})
    if name not in models.MODELS or "options" in section:
        return change
    kept = {field: x for field, x in change.items() if field != "objective"}
    section = _with_options(name, section, change.get("objective"))
    if not section["options"]:
        del section["options"]
    return kept | ({"model": section} if section else {})


def _with_options(name: str, section: dict[str, Any], objective: Any) -> dict[str, Any]:
    """config.model of today from config.model and config.objective of that time."""
    objective = objective if isinstance(objective, dict) else {}
    given = objective | section
    former = {
        option: _FORMER.get(option, {}).get(name, option)
        for option in models.MODELS[name].options
    }
    options = {
        option: given[field] for option, field in former.items() if field in given
    }
    common = {x: section[x] for x in ("name", "latent_dim") if x in section}
    return common | {"options": options}
