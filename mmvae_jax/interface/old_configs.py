"""Converts configs of runs of older versions to the current fields.

Newer fields and options get their defaults, which reproduce the older behaviour: a
default that no longer does so needs a row here. In old configs, config.model and
config.objective held the settings of all models, and each model ignored the settings of
the others.
"""

import json
from typing import Any

from mmvae_jax import models
from mmvae_jax.interface import settings

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


def upgraded(config: Any) -> Any:
    """Converts the content of a config.json to the current fields.

    Args:
      config: the content of a config.json, or of any other file.

    Returns:
      The config without config.objective, with the model's settings in
      config.model.options, and with newer fields of its sections. Other content is
      returned unchanged.
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
        given = _with_share(name, section["options"], config.get("train"))
        options = json.loads(json.dumps(models.default_options(name))) | given
        section = section | {"options": options}
    later = json.loads(settings.get_config().to_json())
    sections = {
        part: fields | config[part]
        for part, fields in later.items()
        if part != "model" and isinstance(config.get(part), dict)
    }
    return config | sections | {"model": section}


def _with_share(name: str, options: dict[str, Any], train: Any) -> dict[str, Any]:
    """TELBO's former `joint_steps` as a fraction of the run's steps."""
    match options, train:
        case {"joint_steps": int(steps), **kept}, {"num_steps": int(num)}:
            if name == "telbo" and num > 0 and "joint_share" not in kept:
                return kept | {"joint_share": steps / num}
    return options


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
