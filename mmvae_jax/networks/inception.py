"""The Inception network of the Frechet inception distance.

FIDs are comparable only with the same network and the same resizing. Here they are the
Inception-v3 that Google released on 2015-12-05, in pytorch-fid's port to PyTorch, and
the resizing of pytorch-fid. TensorFlow's first implementation resizes differently
(docs/models.md). The network differs from that of Szegedy et al. (2016), "Rethinking
the Inception architecture", and from torchvision's: average pooling does not count
padding, the last block has max pooling instead of average pooling, and there are 1008
classes (the features are the input of that last layer, which is left out here).

Layers have the names of the port, for `to_variables`. `inception_weights` loads the
weights.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.errors import UsageError
from mmvae_jax.types import Array, Params

SIZE = 299  # height and width of the network's input
NUM_FEATURES = 2048

# Suffix of a name in the state dict -> collection, and suffix of the name in Linen.
_LEAVES = {
    "conv.weight": ("params", "conv", "kernel"),
    "bn.weight": ("params", "bn", "scale"),
    "bn.bias": ("params", "bn", "bias"),
    "bn.running_mean": ("batch_stats", "bn", "mean"),
    "bn.running_var": ("batch_stats", "bn", "var"),
}
_UNUSED = ("fc.weight", "fc.bias", "bn.num_batches_tracked")


def make_extractor(variables: Params) -> Callable[[Array], Array]:
    """The compiled function images -> features (see `features`)."""
    return jax.tree_util.Partial(jax.jit(features), jax.device_put(variables))


def features(variables: Params, images: Array) -> Array:
    """Features pool3 of images, with the preprocessing of the reference.

    Args:
      variables: from `to_variables`.
      images: float [B, H, W, 1 or 3] in [0, 1]; a grey image becomes three equal
        channels. Rounding to 8 bits is up to the caller.

    Returns:
      float [B, 2048].
    """
    images = jnp.broadcast_to(images, (*images.shape[:3], 3))
    return cast(Array, Inception().apply(variables, resize(images) * 2 - 1))


def resize(images: Array) -> Array:
    """Bilinear resize of [B, H, W, C] to [B, 299, 299, C], corners not aligned.

    As in pytorch-fid, pixels are at their centres (not so in TensorFlow's graph), and
    shrinking applies no low-pass filter.
    """
    shape = (len(images), SIZE, SIZE, images.shape[-1])
    return jax.image.resize(images, shape, "bilinear", antialias=False)


def to_variables(state: Mapping[str, np.ndarray]) -> Params:
    """The variables of `Inception` from a state dict of the port to PyTorch.

    Args:
      state: name, such as Mixed_5b.branch_pool.conv.weight, -> array; kernels are
        [out, in, height, width].

    Returns:
      {"params": ..., "batch_stats": ...}, kernels [height, width, in, out].

    Raises:
      UsageError: names or shapes are not those of the network.
    """
    found = {}
    for name, array in state.items():
        if name.endswith(_UNUSED):
            continue
        *modules, layer, leaf = name.split(".")
        if f"{layer}.{leaf}" not in _LEAVES:
            raise UsageError(f"the Inception network has no parameter {name!r}")
        collection, *end = _LEAVES[f"{layer}.{leaf}"]
        kernel = leaf == "weight" and layer == "conv"
        found[collection, *modules, *end] = (
            np.transpose(array, (2, 3, 1, 0)) if kernel else array
        )
    expected = flax.traverse_util.flatten_dict(
        jax.eval_shape(
            Inception().init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3))
        )
    )
    for path in expected.keys() | found.keys():
        wanted = expected[path].shape if path in expected else "none"
        got = found[path].shape if path in found else "none"
        if wanted != got:
            raise UsageError(
                f"not the weights of the Inception network: {'.'.join(path[1:])} has "
                f"the shape {got}, not {wanted}"
            )
    return flax.traverse_util.unflatten_dict(found)


class Inception(nn.Module):
    """Inception-v3 up to its last pooling."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps images [B, 299, 299, 3] in [-1, 1] to features [B, 2048]."""
        x = _ConvNorm(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = _ConvNorm(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _halve(x)
        x = _ConvNorm(80, name="Conv2d_3b_1x1")(x)
        x = _ConvNorm(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = _halve(x)
        x = _Mixed(partial(_block_a, pooled=32), name="Mixed_5b")(x)
        x = _Mixed(partial(_block_a, pooled=64), name="Mixed_5c")(x)
        x = _Mixed(partial(_block_a, pooled=64), name="Mixed_5d")(x)
        x = _Mixed(_block_b, name="Mixed_6a")(x)
        x = _Mixed(partial(_block_c, width=128), name="Mixed_6b")(x)
        x = _Mixed(partial(_block_c, width=160), name="Mixed_6c")(x)
        x = _Mixed(partial(_block_c, width=160), name="Mixed_6d")(x)
        x = _Mixed(partial(_block_c, width=192), name="Mixed_6e")(x)
        x = _Mixed(_block_d, name="Mixed_7a")(x)
        x = _Mixed(partial(_block_e, pool=_average), name="Mixed_7b")(x)
        x = _Mixed(partial(_block_e, pool=_maximum), name="Mixed_7c")(x)
        return jnp.mean(x, axis=(1, 2))


class _Mixed(nn.Module):
    """A block of parallel branches, whose channels are concatenated.

    Attributes:
      branches: x [B, H, W, C] -> the arrays to concatenate, one of the functions
        _block_*; called in the module, which gets the parameters.
    """

    branches: Callable[[Array], list[Array]]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, H', W', C']."""
        return jnp.concatenate(self.branches(x), axis=-1)


def _block_a(x: Array, pooled: int) -> list[Array]:
    """35 x 35 pixels."""
    return [
        _chain(x, "branch1x1", (64, 1, 1)),
        _chain(x, "branch5x5", (48, 1, 1), (64, 5, 5)),
        _chain(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        _chain(_average(x), "branch_pool", (pooled, 1, 1)),
    ]


def _block_b(x: Array) -> list[Array]:
    """From 35 to 17 pixels."""
    double = _chain(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3, 2))
    return [_chain(x, "branch3x3", (384, 3, 3, 2)), double, _halve(x)]


def _block_c(x: Array, width: int) -> list[Array]:
    """17 x 17 pixels."""
    across, down = (width, 1, 7), (width, 7, 1)
    return [
        _chain(x, "branch1x1", (192, 1, 1)),
        _chain(x, "branch7x7", (width, 1, 1), across, (192, 7, 1)),
        _chain(x, "branch7x7dbl", (width, 1, 1), down, across, down, (192, 1, 7)),
        _chain(_average(x), "branch_pool", (192, 1, 1)),
    ]


def _block_d(x: Array) -> list[Array]:
    """From 17 to 8 pixels."""
    seven = _chain(
        x, "branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)
    )
    return [_chain(x, "branch3x3", (192, 1, 1), (320, 3, 3, 2)), seven, _halve(x)]


def _block_e(x: Array, pool: Callable[[Array], Array]) -> list[Array]:
    """8 x 8 pixels."""
    single = _ConvNorm(384, name="branch3x3_1")(x)
    double = _ConvNorm(448, name="branch3x3dbl_1")(x)
    double = _ConvNorm(384, (3, 3), name="branch3x3dbl_2")(double)
    return [
        _chain(x, "branch1x1", (320, 1, 1)),
        _ConvNorm(384, (1, 3), name="branch3x3_2a")(single),
        _ConvNorm(384, (3, 1), name="branch3x3_2b")(single),
        _ConvNorm(384, (1, 3), name="branch3x3dbl_3a")(double),
        _ConvNorm(384, (3, 1), name="branch3x3dbl_3b")(double),
        _chain(pool(x), "branch_pool", (192, 1, 1)),
    ]


def _chain(x: Array, name: str, *layers: tuple[int, ...]) -> Array:
    """Layers (features, height, width) called name_1, name_2, ..., or just name.

    A fourth number is a stride, without padding.
    """
    for i, (features, height, width, *stride) in enumerate(layers, start=1):
        own = name if len(layers) == 1 else f"{name}_{i}"
        padded = (stride[0], "VALID") if stride else ()
        x = _ConvNorm(features, (height, width), *padded, name=own)(x)
    return x


class _ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation with fixed moments, ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        x = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            self.padding,
            use_bias=False,
            precision=jax.lax.Precision.HIGHEST,  # GPUs would round to 10 bits
            name="conv",
        )(x)
        return nn.relu(nn.BatchNorm(True, epsilon=1e-3, name="bn")(x))


def _average(x: Array) -> Array:
    """3 x 3 average pooling of stride 1; padding does not count."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x: Array) -> Array:
    """3 x 3 max pooling of stride 1."""
    return nn.max_pool(x, (3, 3), padding="SAME")


def _halve(x: Array) -> Array:
    """3 x 3 max pooling of stride 2 without padding."""
    return nn.max_pool(x, (3, 3), (2, 2))
