"""PolyDigits: the paper's trade-off in minutes, on real digits that need no download.

    python -m experiments.run --config=configs/polydigits.py:mopoe

PolyMNIST's recipe on the 1,797 handwritten digits inside scikit-learn: three
modalities of 16 x 16 pixels with procedural backgrounds. `make demo` runs this
config for unimodal, mvae, mmvae and mopoe.
"""

from configs import base


def get_config(arg: str = "mopoe"):
    """Small networks, three betas and three seeds in one program."""
    config = base.get_config()
    config.model.latent_dim = 48
    config.modality.network = "mlp"
    config.modality.network_options.widths = (256,)
    config.data.digits = "sklearn"
    config.data.num_modalities = 3
    config.data.image_size = 16
    config.data.pairings = 8
    config.sweep.beta = (0.3, 1.0, 3.0)
    config.sweep.seed = (0, 1, 2)
    config.sweep.learning_rate = (2e-3,)
    config.train.num_steps = 2_500
    config.train.batch_size = 64
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 500
    config.classifier.num_steps = 1_500
    config.matcher.num_steps = 800
    return base.parse_arg(config, arg)
