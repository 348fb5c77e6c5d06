"""Quadrant: digits in one of four quarters, with digit and quarter as modalities too.

    python -m experiments.run --config=configs/quadrant.py:mopoe

PolyDigits in which a tuple shares a second attribute, the quarter of the digit. The
modalities `digit` and `quadrant` show only one of the two attributes. `one_to_many`
measures whether modalities generated from them agree on the other attribute. After
PolyMNIST-Quadrant-Labels of Yeo et al. (2026). A separate quarter per image, as in
PolyMNIST-Quadrant of Zhang et al. (2026), is a variant of the configs without labels:

    python -m experiments.run --config=configs/polydigits.py:mmvae_plus \\
        --config.data.quadrant=private
"""

from configs import polydigits


def get_config(arg: str = "mopoe"):
    """configs/polydigits.py with two label modalities and their metrics."""
    config = polydigits.get_config(arg)
    config.data.quadrant = "shared"
    config.data.label_modalities = ("digit", "quadrant")
    for name in config.data.label_modalities:
        config.modalities[name] = dict(
            network="mlp",
            network_options=dict(widths=(64,)),
            likelihood="categorical",
            # One token has little weight beside the 768 values of an image: with the
            # weight 1, MoPoE-VAE did not even reconstruct the digit in 1,500 steps.
            likelihood_weight=100.0,
        )
    config.eval.metrics += ("attributes", "one_to_many")
    return config
