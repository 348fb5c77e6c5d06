"""PolyMNIST with modalities that are missing at random in training.

    python -m experiments.run --config=configs/missing_polymnist.py:mopoe

Each modality of a training example is missing with probability 0.3, but each example
keeps at least one. Test examples are complete, unless `--config.data.missing_test` is
set.
"""

from configs import polymnist


def get_config(arg: str = "mopoe"):
    """configs/polymnist.py with missing modalities."""
    config = polymnist.get_config(arg)
    config.data.missing = 0.3
    return config
