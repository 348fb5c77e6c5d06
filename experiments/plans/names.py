"""Names, colours and markers of models, the same in every figure."""

from mmvae_jax import models

# Fixed colours; `model_colour` assigns colours to other models.
_COLOURS = {
    "unimodal": "0.45",
    "mvae": "C0",
    "mvae_plus": "C9",
    "mmvae": "C1",
    "mopoe": "C2",
    "mmvae_official": "C3",
    "unimodal_official": "0.65",
    "mmvae_plus": "C5",
    "dmvae": "C6",
    "jmvae": "#9ecae1",
    "jmvae_kl": "#08306b",
    "telbo": "#98df8a",
    "mvtcae": "C8",
    "crmvae": "k",
    "mmjsd": "#fdae6b",
    "mmvm": "#006d5b",
    "wb_vae": "#c7b299",
    "mwb_vae": "#a6761d",
    "code_vae": "#e7ba52",
    "helvae": "#9e9ac8",
    "mohelvae": "#54278f",
    "contrastive": "#e7298a",
    "cmvae": "#8c2d04",
    "code_flow": "#6a51a3",
    "jnf": "#41ab5d",
    "jnf_shared": "#74c476",
    "latent_flow": "#b15928",
    "nexus": "#5ab4ac",
    "custom": "C4",
}
_MARKERS = {
    **{"unimodal": "D", "mvae_plus": "P", "mmvae": "s", "mopoe": "^", "mmjsd": "h"},
    **{"mvtcae": "v", "crmvae": "*", "jmvae": "H", "jmvae_kl": "<", "telbo": ">"},
    **{"mmvae_plus": "p", "dmvae": "d", "mmvm": "X", "contrastive": "8"},
}
# Colours of other models, in the order of MODELS.
_PALETTE = ("#225ea8", "#bfa100", "#ce6dbd", "#ad494a", "#393b79", "#8c6d31")
_UNKNOWN = "0.2"


def model_label(model: str) -> str:
    """Label of a model; the name of a model that no longer exists."""
    return models.MODELS[model].label if model in models.MODELS else str(model)


def model_colour(model: str) -> str:
    """Colour of a model, for matplotlib."""
    if model in _COLOURS:
        return _COLOURS[model]
    others = [name for name in models.MODELS if name not in _COLOURS]
    if model not in others:
        return _UNKNOWN
    return _PALETTE[others.index(model) % len(_PALETTE)]


def model_marker(model: str) -> str:
    """Marker of a model, for matplotlib."""
    return _MARKERS.get(model, "o")


def model_rank(model: str) -> int:
    """Position of a model in lists and legends; unknown models are last."""
    order = list(models.MODELS)
    return order.index(model) if model in order else len(order)
