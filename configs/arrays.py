"""Your own data: a .npz file with one array per modality (`mmvae_jax.data.arrays`).

    python -m experiments.run --config=configs/arrays.py:mopoe --config.data.path=F.npz

For images and vectors. For tokens, or different likelihoods per modality, write a
config that starts from this one; docs/adding.md has an example.
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
    config.data.test_path = ""  # file of test examples; "" = a part of `path`
    config.data.test_fraction = 0.2  # fraction of `path` for that part
    config.sweep.learning_rate = (1e-3,)
    config.train.num_steps = 5_000
    config.train.batch_size = 64
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 1_000
    # Labels also allow coherence, frechet and linear_probe; images allow swd.
    config.eval.metrics = ("elbo", "log_likelihood")
    return base.parse_arg(config, arg)
