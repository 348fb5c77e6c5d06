"""Discrete: a few bits with a known joint pmf, for comparing models with the theory.

    python -m experiments.run --config=configs/discrete.py:mopoe

Each of the three modalities has 1 x 4 pixels: two bits of a shared class and two
private bits. E[log p(x)], the generative discrepancy and all entropies are known
exactly (`mmvae_jax.mathematics.theory`, docs/theory.md). `experiments.drawing.theorem`
compares the training of mvae, mmvae and mopoe with them.
"""

from configs import base


def get_config(arg: str = "mopoe"):
    """Two betas, 1 (the bound) and a small one, and three seeds."""
    config = base.get_config()
    config.model.latent_dim = 16
    config.modality.network = "mlp"
    config.modality.network_options.widths = (64,)
    # Pixels are 0 or 1: the likelihood is a pmf, so that the bound is on log p(x).
    config.modality.likelihood = "bernoulli"
    config.data.name = "discrete"
    config.data.num_modalities = 3
    # Options of this data set; see datasets/discrete/README.md.
    config.data.shared_bits = 2  # bits of the class, shown by every modality
    config.data.specific_bits = 2  # private bits of each modality
    config.data.one_in = 2  # a private bit is 1 with probability 1 / one_in
    config.data.patch = 1  # side of the square that shows a bit, in pixels
    config.data.repeats = 16  # copies of the smallest set with exact proportions
    config.sweep.beta = (0.1, 1.0)
    config.sweep.seed = (0, 1, 2)
    config.sweep.learning_rate = (2e-3,)
    config.train.num_steps = 6_000
    config.train.batch_size = 128
    config.train.log_every_steps = 64  # two epochs
    config.train.checkpoint_every_steps = 2_000
    # Metrics of images are not useful here.
    config.eval.metrics = ("elbo",)
    return base.parse_arg(config, arg)
