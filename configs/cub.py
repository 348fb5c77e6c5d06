"""CUB: photographs of birds with captions, as in the paper's App. C.

    python -m experiments.prepare --config=configs/cub.py --config.data.cub_dir=FOLDER

Two modalities, `image` and `caption`; FOLDER holds the photographs and the captions in
one of the layouts of datasets/cub/README.md. Then, with the same `cub_dir`,

    python -m experiments.run --config=configs/cub.py:mopoe --config.data.cub_dir=FOLDER

The argument is the model. The default image networks are a convolutional pair that a
CPU can carry; `:mopoe,network=resnet` takes ResNets, as the paper did (it does not
state their sizes; these are those of Palumbo et al. (2023) for CUB, several times
the computation). Captions have the convolutional pair of Shi et al. (2019), or
`--config.modalities.caption.network=transformer`. The paper's sweep is

    --config.sweep.beta="(3e-4,3e-3,3e-1,1.,3.,9.,32.)" --config.sweep.seed="(0,1,2)"

Training is the paper's; `--config.train.num_steps=200` is a look at it.
What comes after it is sized for a CPU: 400 test captions, and for coherence without
labels small dense networks. `configs/scales/paper.py` has the convolutional ones and
the whole test split, as has

    --config.eval.num_examples=0 --config.matcher.network=conv \\
        --config.matcher.num_steps=2000
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "mopoe"):
    """Classes apart, ten captions an image; D = 64, batch 256, 150 epochs."""
    config = base.parse_arg(base.get_config(), arg)
    config.model.latent_dim = 64
    if config.modality.network == "resnet":
        config.modality.network_options = ConfigDict(dict(min_size=2, max_width=256))
    elif config.modality.network == "conv":
        # The channels of Shi et al. (2019) for these images.
        config.modality.network_options.channels = (64, 128, 256, 512)
    # Weights and scales as published: configs/base.py. The paper does not state its
    # own for CUB; here they are those of its PolyMNIST.
    config.modalities.image = dict(likelihood_scale=0.75, likelihood_weight=1.0)
    config.modalities.caption = dict(
        network="text_conv",  # or transformer
        likelihood="categorical",
        likelihood_weight=1.0,
        count_padding=True,
    )
    config.data.name = "cub"
    config.data.image_size = 64  # pixels
    # Of this data set alone; datasets/cub/README.md.
    config.data.cub_dir = ""  # photographs and captions
    # "whole" photographs, the "box" around the bird, or what the folder has ("auto").
    config.data.crop = "auto"
    # "classes": 150 classes to train, the 50 others to test; "original": that of the
    # photographs, every class in both.
    config.data.split = "classes"
    config.data.captions_per_image = 10  # each makes an example of its own
    config.data.caption_length = 32  # tokens
    config.data.min_count = 4  # how often a word must occur among training captions
    config.train.num_steps = 51_750  # 150 epochs of 345 steps, 88,550 captions
    config.train.log_every_steps = 69
    config.train.checkpoint_every_steps = 3_450
    config.eval.batch_size = 100
    config.eval.num_examples = 400  # of the test split
    # Not the paper's, which has no such measure; see above.
    config.matcher.network = "mlp"
    config.matcher.num_steps = 1_000
    # No class of the default's test split occurs in training, and nobody has annotated
    # what images and captions share: coherence without labels.
    config.eval.metrics = ("elbo", "captions", "matching", "swd", "log_likelihood")
    return config
