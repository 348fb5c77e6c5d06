"""Shapes: small drawings with English captions that share shape and colour.

    python -m experiments.prepare --config=configs/shapes.py

Two modalities of different types, `image` and `caption`, with known shared attributes:
coherence can be measured for captions as for images.

    python -m experiments.run --config=configs/shapes.py:mopoe

trains for about four minutes on two idle cores (a step takes 57 ms of one core).
"""

from configs import base


def get_config(arg: str = "mopoe"):
    """12,000 pairs of 32 x 32 pixels and 16 tokens; small networks, one member."""
    config = base.get_config()
    config.model.latent_dim = 32
    config.modalities.caption = dict(
        network="transformer",  # or text_conv, mlp
        network_options=dict(width=64),
        likelihood="categorical",
    )
    config.data.name = "shapes"
    config.data.image_size = 32  # pixels
    # Options of this data set; see datasets/shapes/README.md.
    config.data.num_train = 12_000  # pairs
    config.data.num_test = 2_400
    config.data.held_out = 0  # number of the 48 combinations only in the test split
    config.data.caption_length = 16  # tokens
    config.sweep.learning_rate = (1e-3,)
    config.train.num_steps = 7_480  # 40 epochs
    config.train.batch_size = 64
    config.train.log_every_steps = 187  # an epoch
    config.train.checkpoint_every_steps = 1_870
    config.eval.metrics = (
        "elbo",
        "attributes",
        "captions",
        "matching",
        "swd",
        "log_likelihood",
    )
    return base.parse_arg(config, arg)
