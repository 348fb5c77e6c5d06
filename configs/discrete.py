"""Discrete: a few bits with a known joint pmf, the models against their ceilings.

    python -m experiments.run --config=configs/discrete.py:mopoe

Three modalities of 1 x 4 pixels, two bits of a shared class and two of their own:
E[log p(x)], the generative discrepancy and every entropy are known exactly
(`mmvae_jax.mathematics.theory`, docs/theory.md), and `experiments.drawing.theorem`
draws the training of mvae, mmvae and mopoe against them.
"""

from configs import base


def get_config(arg: str = "mopoe"):
    """Two betas, the bound itself and one where the rate is cheap, and three seeds."""
    config = base.get_config()
    config.model.latent_dim = 16
    config.modality.network = "mlp"
    config.modality.network_options.widths = (64,)
    # Pixels are 0 or 1: the likelihood is a pmf, and the bound one on log p(x).
    config.modality.likelihood = "bernoulli"
    config.data.name = "discrete"
    config.data.num_modalities = 3
    # Of this data set alone; datasets/discrete/README.md.
    config.data.shared_bits = 2  # of the class, shown by every modality
    config.data.specific_bits = 2  # of one modality alone
    config.data.one_in = 2  # a specific bit is 1 once in so many times
    config.data.patch = 1  # side of the square that shows a bit, in pixels
    config.data.repeats = 16  # of the smallest set with exact proportions
    config.sweep.beta = (0.1, 1.0)
    config.sweep.seed = (0, 1, 2)
    config.sweep.learning_rate = (2e-3,)
    config.train.num_steps = 6_000
    config.train.batch_size = 128
    config.train.log_every_steps = 64  # two epochs
    config.train.checkpoint_every_steps = 2_000
    # Digits, backgrounds and their features mean nothing here.
    config.eval.metrics = ("elbo",)
    return base.parse_arg(config, arg)
