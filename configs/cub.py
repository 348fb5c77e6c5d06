"""CUB: photographs of birds with captions, as in the paper's App. C.

    python -m experiments.prepare --config=configs/cub.py --config.data.cub_dir=FOLDER

The two modalities are `image` and `caption`. FOLDER has the photographs and captions in
one of the layouts of datasets/cub/README.md. Then, with the same `cub_dir`,

    python -m experiments.run --config=configs/cub.py:mopoe --config.data.cub_dir=FOLDER

The argument is the model. By default, images have small convolutional networks,
suitable for CPUs. `:mopoe,network=resnet` uses ResNets as in the paper, which does not
state their sizes; these are those of Palumbo et al. (2023) for CUB, with several times
the computation. Captions have the convolutional networks of Shi et al. (2019), or
`--config.modalities.caption.network=transformer`. The paper's sweep is

    --config.sweep.beta="(3e-4,3e-3,3e-1,1.,3.,9.,32.)" --config.sweep.seed="(0,1,2)"

Training is the paper's; `--config.train.num_steps=200` is a quick test.

The evaluation is reduced for CPUs: 400 test captions, and small dense networks for
coherence without labels. `configs/scales/paper.py` uses convolutional networks and the
whole test split, as do

    --config.eval.num_examples=0 --config.matcher.network=conv \\
        --config.matcher.num_steps=2000
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "mopoe"):
    """Disjoint classes, ten captions per image; D = 64, batch 256, 150 epochs."""
    config = base.parse_arg(base.get_config(), arg)
    config.model.latent_dim = 64
    if config.modality.network == "resnet":
        config.modality.network_options = ConfigDict(dict(min_size=2, max_width=256))
    elif config.modality.network == "conv":
        # The channels of Shi et al. (2019) for these images.
        config.modality.network_options.channels = (64, 128, 256, 512)
    # The paper does not state weights and scales for CUB; these are those of its
    # PolyMNIST. Other published values are in mmvae_jax/interface/settings.py.
    config.modalities.image = dict(likelihood_scale=0.75, likelihood_weight=1.0)
    config.modalities.caption = dict(
        network="text_conv",  # or transformer
        likelihood="categorical",
        likelihood_weight=1.0,
        count_padding=True,
    )
    config.data.name = "cub"
    config.data.image_size = 64  # pixels
    # Options of this data set; see datasets/cub/README.md.
    config.data.cub_dir = ""  # folder of photographs and captions
    # "whole" photographs, the bounding "box", or "auto": whichever the folder has.
    config.data.crop = "auto"
    # "classes": 150 classes to train, 50 others to test; "original": the split of the
    # photographs, with every class in both.
    config.data.split = "classes"
    config.data.captions_per_image = 10  # each gives one example
    config.data.caption_length = 32  # tokens
    config.data.min_count = 4  # smallest count of a word in the training captions
    config.train.num_steps = 51_750  # 150 epochs of 345 steps, 88,550 captions
    config.train.log_every_steps = 69
    config.train.checkpoint_every_steps = 3_450
    config.eval.batch_size = 100
    config.eval.num_examples = 400  # of the test split
    # The paper has no such measure; see above.
    config.matcher.network = "mlp"
    config.matcher.num_steps = 1_000
    # Coherence without labels ("matching"), because test classes do not occur in
    # training and shared attributes are not annotated.
    config.eval.metrics = ("elbo", "captions", "matching", "swd", "log_likelihood")
    return config
