"""Your own data: a .npz file with one array a modality (`mmvae_jax.data.arrays`).

    python -m experiments.run --config=configs/arrays.py:mopoe --config.data.path=F.npz

For images and vectors. Tokens, and likelihoods that differ, are said modality by
modality in a config of your own that starts from this one: docs/adding.md has one.
"""

from configs import base


def get_config(arg: str = "mopoe"):
    """Dense networks for any shape; one member; metrics that need no labels."""
    config = base.get_config()
    config.model.latent_dim = 16
    config.modality.network = "mlp"
    config.modality.network_options.widths = (256,)
    config.data.name = "arrays"
    config.data.path = ""
    config.data.test_path = ""  # "" = some of the examples of `path`, ...
    config.data.test_fraction = 0.2  # ... this share of them
    config.sweep.learning_rate = (1e-3,)
    config.train.num_steps = 5_000
    config.train.batch_size = 64
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 1_000
    # With labels: coherence, frechet, linear_probe too; with images: swd.
    config.eval.metrics = ("elbo", "log_likelihood")
    return base.parse_arg(config, arg)
