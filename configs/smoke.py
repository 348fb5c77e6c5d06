"""Smoke: all parts of a run in seconds; the results have no meaning.

    python -m experiments.run --config=configs/smoke.py --workdir=runs/smoke

For checking an installation, and for the tests: PolyDigits with two modalities of 8 x 8
pixels, three members, and the default metrics; --config.eval.metrics=all computes all
that the data allow.
"""

from configs import polydigits


def get_config(arg: str = "mopoe"):
    """PolyDigits with the smallest networks and a few steps."""
    config = polydigits.get_config(arg)
    config.model.latent_dim = 4
    if config.modality.network == "mlp":
        config.modality.network_options.widths = (16,)
    config.data.num_modalities = 2
    config.data.image_size = 8
    config.data.pairings = 1
    config.sweep.beta = (0.0, 1.0, 9.0)
    config.sweep.seed = (0,)
    config.train.num_steps = 24
    config.train.batch_size = 16
    config.train.log_every_steps = 4
    config.train.eval_every_steps = 12
    config.train.checkpoint_every_steps = 6
    config.classifier.num_steps = 60
    config.classifier.batch_size = 64
    config.matcher.num_steps = 60
    config.matcher.batch_size = 64
    config.eval.batch_size = 100
    config.eval.num_examples = 100
    config.eval.importance_samples = 2
    return config
