"""Shapes: small drawings with English captions that share shape and colour.

    python -m experiments.prepare --config=configs/shapes.py

Two modalities of different kinds, `image` and `caption`, in which all that is shared
is known: coherence can be measured on captions as on images.
"""

from configs import base


def get_config(arg: str = "mopoe"):
    """12,000 pairs of 32 x 32 pixels and 16 tokens."""
    config = base.get_config()
    config.data.name = "shapes"
    config.data.image_size = 32  # pixels
    # Of the data sets with captions; datasets/shapes/README.md.
    config.data.num_train = 12_000  # pairs
    config.data.num_test = 2_400
    config.data.held_out = 0  # combinations of the 48 that only the test split shows
    config.data.caption_length = 16  # tokens
    config.eval.metrics = (
        "elbo",
        "attributes",
        "captions",
        "matching",
        "swd",
        "log_likelihood",
    )
    return base.parse_arg(config, arg)
