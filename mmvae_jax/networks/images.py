"""Convolutional encoders, decoders and classifiers of images."""

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mmvae_jax.networks import layers, vectors
from mmvae_jax.types import Array, Gaussian, Shape


class ConvEncoder(nn.Module):
    """The convolutional encoder of the published PolyMNIST code.

    Three 3 x 3 convolutions of stride 2, a dense layer, and the heads; 1,667,648
    parameters at 28 x 28 x 3 and D = 512.
    """

    latent_dim: int
    channels: tuple[int, ...] = (32, 64, 128)
    form: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps images [B, H, H, C] to a Gaussian [B, D]."""
        for features in self.channels:
            x = nn.relu(layers.StridedConv(features, form=self.form)(x))
        h = x.reshape(x.shape[0], -1)
        h = nn.relu(layers.dense(self.latent_dim, h.shape[-1])(h))
        return vectors.GaussianHead(self.latent_dim)(h)


class ConvDecoder(nn.Module):
    """The convolutional decoder of the published PolyMNIST code.

    1,143,747 parameters at 28 x 28 x 3 and D = 512.
    """

    shape: Shape
    channels: tuple[int, ...] = (32, 64, 128)
    form: str = "auto"

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, D] to the likelihood's parameters [B, H, H, C]."""
        sizes = _halvings(self.shape[0], len(self.channels))
        start = (sizes[-1], sizes[-1], self.channels[-1])
        h = nn.relu(layers.dense(math.prod(start), z.shape[-1])(z))
        x = h.reshape(-1, *start)
        features = (*self.channels[-2::-1], self.shape[-1])
        for i, (width, size) in enumerate(zip(features, sizes[-2::-1], strict=True)):
            x = layers.StridedConvTranspose(width, size, form=self.form)(
                nn.relu(x) if i else x
            )
        return x


class SpatialEncoder(nn.Module):
    """Convolutions of stride 2, with latent dimensions at positions of the image.

    latent_dim is H' * H' * c, where H' is the size after the convolutions. A 1 x 1
    layer gives the means and log-variances [H', H', c], which are flattened. Kernels
    are 3 x 3, except `outer_kernel` next to the image. Each of the latent `parts`,
    whose dimensions sum to latent_dim, has channels of its own at all positions; () is
    one part.
    """

    latent_dim: int
    channels: tuple[int, ...] = (32, 64)
    outer_kernel: int = 6
    form: str = "auto"
    parts: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps images [B, H, H, C] to a Gaussian [B, D]."""
        for i, features in enumerate(self.channels):
            kernel_size = 3 if i else self.outer_kernel
            x = layers.StridedConv(features, kernel_size, form=self.form)(x)
            x = nn.relu(x)
        places = x.shape[1] * x.shape[2]
        head = vectors.GaussianHead(self.latent_dim // places)(x)
        ends = [n // places for n in itertools.accumulate(self.parts[:-1])]

        def flat(field: Array) -> Array:
            maps = jnp.split(field, ends, axis=-1)
            return jnp.concatenate([own.reshape(len(x), -1) for own in maps], axis=-1)

        return Gaussian(*map(flat, head))


class SpatialDecoder(nn.Module):
    """The mirror of SpatialEncoder."""

    shape: Shape
    channels: tuple[int, ...] = (32, 64)
    outer_kernel: int = 6
    form: str = "auto"
    parts: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, D] to the likelihood's parameters [B, H, H, C]."""
        sizes = _halvings(self.shape[0], len(self.channels))
        own = jnp.split(z, list(itertools.accumulate(self.parts[:-1])), axis=-1)
        maps = [part.reshape(len(z), sizes[-1], sizes[-1], -1) for part in own]
        x = jnp.concatenate(maps, axis=-1)
        # With this name, parameters that were learned when parts were rows of the map
        # are refused.
        name = "maps" if len(own) > 1 else None
        x = layers.dense(self.channels[-1], x.shape[-1], name=name)(x)
        features = (*self.channels[-2::-1], self.shape[-1])
        for i, (width, size) in enumerate(zip(features, sizes[-2::-1], strict=True), 1):
            kernel_size = 3 if i < len(features) else self.outer_kernel
            x = layers.StridedConvTranspose(width, size, kernel_size, form=self.form)(
                nn.relu(x)
            )
        return x


class ConvClassifier(nn.Module):
    """The digit classifier published with PolyMNIST, dropout included."""

    num_classes: int
    form: str = "auto"

    @nn.compact
    def __call__(self, x: Array, is_training: bool = False) -> tuple[Array, Array]:
        """Maps images [B, H, H, C] to penultimate features [B, 128] and logits."""
        for features in (10, 20):
            x = layers.StridedConv(features, kernel_size=4, form=self.form)(x)
            # Drops whole feature maps, as published.
            x = nn.Dropout(0.5, broadcast_dims=(1, 2))(x, deterministic=not is_training)
            x = nn.relu(x)
        h = x.reshape(x.shape[0], -1)
        h = nn.relu(layers.dense(128, h.shape[-1])(h))
        dropped = nn.Dropout(0.5)(h, deterministic=not is_training)
        return h, layers.dense(self.num_classes, 128)(dropped)


class ResNetEncoder(nn.Module):
    """The ResNet of the paper's experiments, without normalisation layers.

    The blocks have 64, 128, ... (at most max_width) channels at 28, 14, 7 pixels. The
    size is halved while it stays at or above `min_size`. Defaults are for 28 pixels.
    For CUB at 64 pixels, min_size is 2 and max_width 256: six blocks, 1024 features;
    4,341,824 parameters with D = 64, 4,276,931 in the decoder.
    """

    form: ClassVar[str] = "lax"

    latent_dim: int
    width: int = 64
    max_width: int = 1024
    min_size: int = 7

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps images [B, H, H, C] to a Gaussian [B, D]."""
        h = _resnet_trunk(x, self.width, self.max_width, self.min_size)
        return vectors.GaussianHead(self.latent_dim)(h)


class ResNetDecoder(nn.Module):
    """The mirror of ResNetEncoder, upsampling by nearest neighbours."""

    form: ClassVar[str] = "lax"

    shape: Shape
    width: int = 64
    max_width: int = 512
    min_size: int = 7

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, D] to the likelihood's parameters [B, H, H, C]."""
        stages = _num_stages(self.shape[0], self.min_size)
        sizes = _halvings(self.shape[0], stages)
        widths = [min(self.width * 2**i, self.max_width) for i in range(stages + 1)]
        start = (sizes[-1], sizes[-1], widths[-1])
        x = layers.dense(math.prod(start), z.shape[-1])(z).reshape(-1, *start)
        for width, size in zip(widths[-2::-1], sizes[-2::-1], strict=True):
            x = layers.double(layers.ResidualBlock(width)(x), size)
        x = layers.ResidualBlock(self.width)(x)
        return layers.conv3x3(self.shape[-1], self.width)(nn.leaky_relu(x, 0.2))


class ResNetClassifier(nn.Module):
    """The ResNet encoder's trunk with a dense layer, for translated digits."""

    form: ClassVar[str] = "lax"

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, is_training: bool = False) -> tuple[Array, Array]:
        """Maps images [B, H, H, C] to penultimate features [B, F] and logits."""
        del is_training  # no dropout
        h = nn.leaky_relu(_resnet_trunk(x, 64, 1024, 7), 0.2)
        return h, layers.dense(self.num_classes, h.shape[-1])(h)


def _resnet_trunk(x: Array, width: int, max_width: int, min_size: int) -> Array:
    """The convolutional part of the ResNet encoder: images to features [B, F].

    It is called in a compact Linen method, whose module gets the parameters.
    """
    x = layers.conv3x3(width, x.shape[-1])(x)
    x = layers.ResidualBlock(width)(x)
    for stage in range(1, _num_stages(x.shape[1], min_size) + 1):
        x = layers.ResidualBlock(min(width * 2**stage, max_width))(layers.halve(x))
    return x.reshape(x.shape[0], -1)


def latent_shape(encoder: SpatialEncoder, shape: Shape) -> Shape:
    """Shape (H', H', c) of a latent vector for images of this shape.

    Raises:
      ValueError: the positions do not divide the latent dimensions.
    """
    places, latent_dim = num_places(shape[0], encoder.channels), encoder.latent_dim
    if latent_dim % places:
        raise ValueError(
            f"the latent dimensions, {latent_dim}, must be a multiple of the {places} "
            f"places that images of {shape[0]} pixels have after "
            f"{len(encoder.channels)} convolutions"
        )
    side = math.isqrt(places)
    return (side, side, latent_dim // places)


def num_places(size: int, channels: Sequence[int]) -> int:
    """Positions of a spatial latent vector: H' * H' for an image of H * H pixels."""
    return _halvings(size, len(channels))[-1] ** 2


def _halvings(size: int, num: int) -> list[int]:
    """The sizes after 0 to `num` halvings, rounded up: 28, 14, 7, 4."""
    sizes = [size]
    for _ in range(num):
        sizes.append(math.ceil(sizes[-1] / 2))
    return sizes


def _num_stages(size: int, min_size: int) -> int:
    """Number of halvings (rounding up) after which a size is still >= min_size."""
    stages = 0
    while math.ceil(size / 2) >= min_size:
        size = math.ceil(size / 2)
        stages += 1
    return stages
