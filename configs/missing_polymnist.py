"""PolyMNIST of which modalities are missing at random, in training.

    python -m experiments.run --config=configs/missing_polymnist.py:mopoe

Every modality of a training example is missing with probability 0.3, but one is always
there; test examples are complete, unless `--config.data.missing_test` is given.
"""

from configs import polymnist


def get_config(arg: str = "mopoe"):
    """configs/polymnist.py, incomplete."""
    config = polymnist.get_config(arg)
    config.data.missing = 0.3
    return config
