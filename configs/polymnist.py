"""PolyMNIST, the paper's Figures 2, 3, 4, 6, 7, 8 (first column).

    python -m experiments.run --config=configs/polymnist.py:mopoe

The argument is the model, optionally with `network=resnet` for the ResNets of App. C.1.
The default is the convolutional networks of Sutter et al. (2021), with a thirtieth of
the computation; the authors found no significant difference on PolyMNIST. The paper's
sweep is

    --config=configs/polymnist.py:mopoe,network=resnet \\
        --config.sweep.beta="(3e-4,3e-3,3e-1,1.,3.,9.)" --config.sweep.seed="(0,1,2)"
"""

from configs import base


def get_config(arg: str = "mopoe"):
    """500 epochs, batch 256, D = 512, as in the paper; one beta and one seed."""
    return base.parse_arg(base.get_config(), arg)
