"""Makes inception_features.npz and inception_legacy.pth, with PyTorch.

    pip install torch pytorch-fid torchvision
    python tests/golden/make_inception_golden.py

The features are those of pytorch-fid's network in float64, with the random weights
that `random_weights` gives both sides in place of the published ones. The tests
that use these files need none of those packages.
"""

import collections
import sys
import types
import zlib
from pathlib import Path
from unittest import mock

import numpy as np

FOLDER = Path(__file__).parent
SHAPES = ((28, 28), (64, 48), (300, 420))  # enlarged, and made smaller


def random_weights(shapes):
    """name -> shape of a state dict -> name -> array; activations stay O(1).

    Of numpy's RandomState, whose streams never change, with the name as seed.
    """
    weights = {}
    for name, shape in shapes.items():
        rng = np.random.RandomState(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            weights[name] = np.int64(7)
            continue
        values = rng.standard_normal(shape).astype(np.float32)
        if name.endswith(("conv.weight", "fc.weight")):
            values *= np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("running_var"):
            values = 0.5 + values**2
        elif name.endswith("bn.weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        weights[name] = values.astype(np.float32)
    return weights


def random_images():
    """uint8 [2, H, W, 3] for every shape: noise around gradients."""
    images = []
    for seed, (height, width) in enumerate(SHAPES):
        rng = np.random.RandomState(seed)
        ramp = np.linspace(0, 1, height)[:, None, None] * rng.rand(2, 1, width, 3)
        noise = rng.rand(2, height, width, 3)
        images.append(np.uint8(127 * ramp + 128 * noise))
    return images


def reference_network():
    """pytorch-fid's network, without its weights."""
    import pytorch_fid.inception as reference
    import torch

    with (
        mock.patch.object(reference, "load_state_dict_from_url"),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        return reference, reference.fid_inception_v3()


def make_features(torch):
    """inception_features.npz: what the state dict holds, and the features."""
    reference, network = reference_network()
    shapes = {name: tuple(v.shape) for name, v in network.state_dict().items()}
    weights = random_weights(shapes)
    network.load_state_dict({n: torch.tensor(v) for n, v in weights.items()})
    with mock.patch.object(reference, "fid_inception_v3", lambda: network):
        extractor = reference.InceptionV3().double().eval()
    features, resized = [], []
    for images in random_images():
        batch = torch.tensor(images).permute(0, 3, 1, 2).double() / 255
        features.append(extractor(batch)[0][:, :, 0, 0].numpy())
        small = torch.nn.functional.interpolate(
            batch, size=(299, 299), mode="bilinear", align_corners=False
        )
        resized.append(small[:, :, ::23, ::23].permute(0, 2, 3, 1).numpy())
    np.savez_compressed(
        FOLDER / "inception_features.npz",
        names=list(shapes),
        shapes=[" ".join(map(str, shape)) for shape in shapes.values()],
        features=np.float32(features),
        resized=np.float32(resized),
    )


def small_state():
    """What inception_legacy.pth holds, as numpy arrays."""
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    return {
        "layer.weight": grid.transpose(2, 0, 1),
        "layer.row": grid[1, 2],
        "layer.count": np.int64(7),
        "layer.empty": np.zeros((0, 2), np.float32),
    }


def make_state(torch):
    """inception_legacy.pth: a small state dict in the format of the published one."""
    grid = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = collections.OrderedDict(
        {
            "layer.weight": grid.permute(2, 0, 1),  # strided
            "layer.row": torch.nn.Parameter(grid[1, 2]),  # a part of its storage
            "layer.count": torch.tensor(7),
            "layer.empty": torch.zeros((0, 2)),
        }
    )
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    path = FOLDER / "inception_legacy.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)


def main():
    # Registers operators of torchvision's compiled part, which a torch without
    # CUDA cannot load, and which the network does not need.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("unused")
    import torch

    make_features(torch)
    make_state(torch)


if __name__ == "__main__":
    main()
