"""Converts configs of runs of older versions to the current fields.

Newer fields get the values that reproduce the older behaviour. In old configs,
config.model and config.objective held the settings of all models, and each model
ignored the settings of the others.
"""

from typing import Any

from mmvae_jax import models

# Option -> model -> the former name of the option.
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

# Section -> newer field -> the value that reproduces the older behaviour.
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
# Model -> newer option -> value, likewise.
_LATER_OPTIONS: dict[str, dict[str, Any]] = {
    "mmvm": {"alpha_steps": 0},
    "custom": {"pooling": "product", "correlation": 0.5, "pooled_over": "vector"},
    "telbo": {"joint_steps": 0},
    "mmvae_plus": {"self_gradient": True, "prior_components": 0},
    "contrastive": {
        "code_network": "same",
        "code_prior": "mixture",
        "flow_width": 128,
        "flow_depth": 3,
        "ode_steps": 25,
        "ode_method": "euler",
        "ema": 0.998,
    },
    "code_flow": {"single_stage": False, "flow_draws": 1, "flow_network": "mlp"},
    "latent_flow": {"flow_draws": 1, "flow_network": "mlp"},
}


def upgraded(config: Any) -> Any:
    """Converts the content of a config.json to the current fields.

    Args:
      config: the content of a config.json, or of any other file.

    Returns:
      The config without config.objective, with the model's settings in
      config.model.options, and with newer fields. Other content is returned unchanged.
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
    """Converts the scale in a plan.json to the current fields.

    Changes for one model, and for the models of Figure 12, are converted as in
    `upgraded`.
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
    """Converts a scale's changes for one model."""
    section = change.get("model", {})
    if name not in models.MODELS or "options" in section:
        return change
    kept = {field: x for field, x in change.items() if field != "objective"}
    section = _with_options(name, section, change.get("objective"))
    if not section["options"]:
        del section["options"]
    return kept | ({"model": section} if section else {})


def _with_options(name: str, section: dict[str, Any], objective: Any) -> dict[str, Any]:
    """The current config.model, from the old config.model and config.objective."""
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
