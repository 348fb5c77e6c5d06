"""The paper's figures on MNIST at 28 x 28 pixels: hours of training on a CPU.

    make figures SCALE=cpu

The data are the paper's PolyMNIST and Translated-PolyMNIST (with procedural
backgrounds, unless a folder of images is given), with three modalities instead of five.
Networks are small, there are two betas instead of six, and training is short. With beta
above 0.3, these few steps learn only the backgrounds.
"""

from configs.scales import demo


def get_config():
    """The demo's figures on 60,000 digits, with networks with one hidden layer."""
    scale = demo.get_config()
    scale.description = (
        "cpu scale: MNIST at 28 x 28 pixels, three modalities, networks with one "
        "hidden layer, 4 epochs; not the paper's scale"
    )
    scale.beta = (0.003, 0.3)
    scale.num_modalities = (2, 3)
    names = {"polymnist": "PolyMNIST", "translated": "Translated-PolyMNIST"}
    for dataset, title in names.items():
        scale.datasets[dataset].title = title
        scale.datasets[dataset].beta_by_modalities = 0.3
    changes = dict(
        model=dict(latent_dim=96),
        modality=dict(network_options=dict(widths=(256,))),
        data=dict(digits="mnist", image_size=28, pairings=1, num_modalities=3),
        train=dict(num_steps=2_000, batch_size=128, checkpoint_every_steps=1_000),
        eval=dict(num_examples=2_000),
    )
    scale.changes = changes
    scale.official.changes = dict(model=dict(options=dict(num_samples=3)))
    for name in ("mmvae_plus", "cmvae", "dmvae", "contrastive"):
        scale.models[name].model.update(latent_dim=24, options=dict(private_dim=24))
    for name in ("latent_flow", "code_flow"):
        scale.models[name].model.latent_dim = 32
        scale.models[name].modality.network_options.widths = (256,)
    scale.pairs.description = (
        "pairs of images and captions: Shapes of 32 x 32 pixels, small convolutions "
        "and Transformers, 10 epochs; CUB, if any, a third of an epoch"
    )
    scale.pairs.datasets.shapes.changes = dict(
        train=dict(num_steps=1_870, checkpoint_every_steps=935),
        eval=dict(num_examples=2_000),
    )
    return scale
