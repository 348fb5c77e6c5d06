"""The paper's figures at the paper's scale: hundreds of models, for GPUs.

    make figures SCALE=paper

The paper's data, ResNets, epochs, grid of beta and three seeds (App. C.1). Start with
`--dry_run`, which estimates the cost on your machine. Images with captions are CUB,
from --cub_dir. For FID add "fid" to `metrics`, `metrics_by_modalities` and
`pairs.datasets.cub.metrics`.
"""

from configs.scales import demo


def get_config():
    """The fields of demo.py with the paper's values."""
    scale = demo.get_config()
    scale.description = "paper scale"
    scale.datasets.polymnist.update(title="PolyMNIST", config="polymnist")
    scale.datasets.translated.update(
        title="Translated-PolyMNIST", config="translated_polymnist", changes=dict()
    )
    scale.changes = dict(
        modality=dict(network="resnet", network_options=dict()),
        eval=dict(num_examples=0),
    )
    scale.datasets.translated.changes = dict(classifier=dict(network="resnet"))
    # K = 30 and batches of 128, as Shi et al. (2019) for their digits; the paper states
    # no numbers. With half the batch size, its 500 epochs have twice the steps.
    scale.official = dict(
        num_modalities=5,
        changes=dict(
            model=dict(options=dict(num_samples=30)),
            train=dict(
                num_steps=234_000,
                batch_size=128,
                log_every_steps=468,
                checkpoint_every_steps=4_680,
            ),
        ),
    )
    # 32 shared and 32 private dimensions, as Palumbo et al. (2023).
    for name in ("mmvae_plus", "cmvae", "dmvae", "contrastive"):
        scale.models[name].model.update(latent_dim=32, options=dict(private_dim=32))
    # The dimensions of Bounoua et al. (2024), with the networks of all models.
    for name in ("latent_flow", "code_flow"):
        scale.models[name] = dict(model=dict(latent_dim=160))
    scale.pairs.description = "CUB at paper scale"
    scale.pairs.columns = ("cub",)
    scale.pairs.datasets = dict(
        cub=dict(
            title="CUB",
            config="cub",
            beta=(3e-4, 3e-3, 0.3, 1.0, 3.0, 9.0, 32.0),
            seed=(0, 1, 2),
            metrics=("elbo", "captions", "matching", "swd", "log_likelihood"),
            changes=dict(
                modality=dict(
                    network="resnet", network_options=dict(min_size=2, max_width=256)
                ),
                matcher=dict(network="conv", num_steps=2_000),
                eval=dict(num_examples=0),
            ),
            beta_of_samples=1.0,
        )
    )
    return scale
