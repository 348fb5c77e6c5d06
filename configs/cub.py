"""CUB: photographs of birds with captions, as in the paper's App. C.

    python -m experiments.prepare --config=configs/cub.py --config.data.cub_dir=FOLDER

Two modalities, `image` and `caption`; FOLDER holds the photographs and the captions in
one of the layouts of datasets/cub/README.md.
"""

from configs import base


def get_config(arg: str = "mopoe"):
    """Whole images, classes apart, ten captions an image."""
    config = base.get_config()
    config.data.name = "cub"
    config.data.image_size = 64  # pixels
    # Of this data set alone; datasets/cub/README.md.
    config.data.cub_dir = ""  # photographs and captions
    config.data.crop = "whole"  # or "box": the bird's bounding box
    # "classes": 150 classes to train, the 50 others to test; "original": that of the
    # photographs, every class in both.
    config.data.split = "classes"
    config.data.captions_per_image = 10  # each makes an example of its own
    config.data.caption_length = 32  # tokens
    config.data.min_count = 4  # how often a word must occur among training captions
    # No class of the default's test split occurs in training, and nobody has annotated
    # what images and captions share: coherence without labels.
    config.eval.metrics = ("elbo", "captions", "matching", "swd", "log_likelihood")
    return base.parse_arg(config, arg)
