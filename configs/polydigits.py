"""PolyDigits: the paper's trade-off in minutes, on digits without a download.

    python -m experiments.run --config=configs/polydigits.py:mopoe

PolyMNIST's recipe on the 1,797 handwritten digits of scikit-learn: three modalities of
16 x 16 pixels with procedural backgrounds. `make demo` runs this config for unimodal,
mvae, mmvae and mopoe.
"""

from configs import base

# Fractions of the steps for the VAEs (and the code); flows have the rest.
_SHARES = {"code_flow": (0.52, 0.06), "latent_flow": (0.5,)}


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
    if (arg or "").partition(",")[0].strip() in _SHARES:
        _set_flows(config)
    config = base.parse_arg(config, arg)
    if config.model.name in _SHARES:
        config.model.options.stage_shares = _SHARES[config.model.name]
        # Several draws per encoding, which takes most of the time of a step.
        config.model.options.flow_draws = 4
        # Few steps, because coherence draws for every subset of every example.
        config.model.options.ode_steps = 12
    return config


def _set_flows(config):
    """Sets spatial latents, the stages, and beta of the first stage."""
    config.model.latent_dim = 96  # 4 x 4 positions x 6
    config.modality.network = "spatial"
    config.modality.network_options = {}
    config.sweep.beta = (0.05,)
    config.train.num_steps = 7_000
    config.train.checkpoint_every_steps = 1_000
    # log p(X) is left out, because each sample solves an ODE; `python -m
    # experiments.evaluate` can add it to a finished run.
    config.eval.metrics = ("elbo", "coherence", "frechet", "swd", "linear_probe")
