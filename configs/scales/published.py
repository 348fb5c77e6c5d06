"""The papers' data, networks and beta on MNIST at 28 x 28 pixels, with fewer epochs.

    python -m experiments.figures --scale=published --figure=family,inputs \\
        --models=mopoe,mvtcae,code_flow

PolyMNIST in five modalities, the convolutional networks of Sutter et al. (2021),
D = 512, beta = 2.5 and batches of 256, as for the published coherences; 34 epochs
instead of 300, one seed, and 2,000 of the 10,000 test examples. MoPoE-VAE
took 101 minutes on two CPU cores beside other programs, MVTCAE 0.4 seconds a step
(2026-11-28); docs/figures.md has what came out.
"""

from configs.scales import paper

# Steps of ten epochs.
_TEN_EPOCHS = 2_340


def get_config():
    """The fields of demo.py; models are evaluated every ten epochs."""
    scale = paper.get_config()
    scale.description = (
        "published scale: the published data, networks and beta = 2.5, but 34 epochs "
        "of 300 and one seed"
    )
    scale.beta, scale.seed = (2.5,), (0,)
    scale.metrics = ("elbo", "coherence", "frechet", "swd", "conditional_swd")
    scale.datasets.polymnist.update(beta_by_modalities=2.5, beta_of_samples=2.5)
    scale.datasets.translated.update(beta_by_modalities=2.5, beta_of_samples=2.5)
    scale.datasets.translated.changes = dict(data=dict(translate_scale=0.75))
    scale.changes = dict(
        sweep=dict(learning_rate=(1e-3,)),
        train=dict(
            num_steps=8_000,
            eval_every_steps=_TEN_EPOCHS,
            checkpoint_every_steps=_TEN_EPOCHS // 10,
        ),
        eval=dict(num_examples=2_000),
    )
    scale.pairs.columns = ()
    # Latent dimensions are at 4 x 4 positions.
    scale.models.code_flow = dict(
        model=dict(latent_dim=128),
        modality=dict(network="spatial", network_options=dict(channels=(32, 64, 64))),
        sweep=dict(beta=(0.1,)),
    )
    return scale
