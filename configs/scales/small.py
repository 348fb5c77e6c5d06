"""The papers' figures on the runs of `make demo`: minutes for one data set.

PolyDigits as in configs/polydigits.py, with three modalities and three betas. `make
demo` trains the four models of the first paper's Figure 2 and judges `paper.TRADEOFF`;
figures of other runs show "not measured".
"""

from ml_collections import ConfigDict

from configs.scales import demo


def get_config() -> ConfigDict:
    """The first column of the demo scale with the networks of its config file."""
    scale = demo.get_config()
    scale.description = (
        "small scale: 16 x 16 pixels, small networks; not the paper's data"
    )
    scale.beta = (0.3, 1.0, 3.0)
    scale.num_modalities = (2, 3)
    # Its claims need no matching networks.
    scale.metrics = tuple(name for name in scale.metrics if name != "matching")
    scale.columns = ("polymnist",)
    scale.datasets.polymnist.beta_of_samples = 1.0
    scale.changes = ConfigDict()
    scale.models = dict(
        mmvae_plus=dict(
            model=dict(
                latent_dim=12,
                options=dict(private_dim=12, num_samples=1, estimator="iwae"),
            ),
        ),
        cmvae=dict(
            model=dict(latent_dim=12, options=dict(private_dim=12, estimator="iwae"))
        ),
        dmvae=dict(model=dict(latent_dim=12, options=dict(private_dim=12))),
        contrastive=dict(model=dict(latent_dim=12, options=dict(private_dim=12))),
    )
    for name in ("latent_flow", "code_flow"):
        scale.models[name] = dict(
            model=dict(latent_dim=16),
            modality=dict(network="mlp", network_options=dict(widths=(256,))),
            train=dict(num_steps=2_500, checkpoint_every_steps=500),
        )
    scale.pairs.columns = ()
    return scale
