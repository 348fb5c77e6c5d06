"""Quadrant: digits in one of four quarters, with digit and quarter as modalities too.

    python -m experiments.run --config=configs/quadrant.py:mopoe

PolyDigits in which a tuple shares a second attribute, the quarter that the digit is in.
The modalities `digit` and `quadrant` show one of both alone, so that they leave the
other one open: is what is generated from them of one mind (`one_to_many`)? After
PolyMNIST-Quadrant-Labels of Yeo et al. (2026). A quarter for each image, as
PolyMNIST-Quadrant of Zhang et al. (2026) has it, is a variant of the configs without
labels:

    python -m experiments.run --config=configs/polydigits.py:mmvae_plus \\
        --config.data.quadrant=private
"""

from configs import polydigits


def get_config(arg: str = "mopoe"):
    """configs/polydigits.py with two labels, and the metrics that they are for."""
    config = polydigits.get_config(arg)
    config.data.quadrant = "shared"
    config.data.label_modalities = ("digit", "quadrant")
    for name in config.data.label_modalities:
        config.modalities[name] = dict(
            network="mlp",
            network_options=dict(widths=(64,)),
            likelihood="categorical",
            # A token beside the 768 values of an image: with the weight 1, 1,500 steps
            # of MoPoE-VAE did not even reconstruct the digit.
            likelihood_weight=100.0,
        )
    config.eval.metrics += ("attributes", "one_to_many")
    return config
