"""Linen encoders, decoders and classifiers, and the names they are called by.

An encoder maps x [B, ...] to a Gaussian [B, D]; a decoder maps z [B, D] to the
parameters of a likelihood [B, *shape]. Images are square and in [0, 1]. Tokens are
int32 [B, T], and their likelihood's parameters are logits [B, T, V].

A network with convolutions says in `form` how they are executed: one of
`layers.FORMS`, a field if its layers are those of `layers`, and "lax" if some are
Linen's.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mmvae_jax import layers
from mmvae_jax.errors import UsageError
from mmvae_jax.text_networks import (
    TextConvDecoder,
    TextConvTrunk,
    TransformerDecoder,
    TransformerTrunk,
)
from mmvae_jax.types import Array, Gaussian, Shape, TokenShape

# Log-variances stay within +-20 (standard deviations from 5e-5 to 2e4). Experts
# of a product with the prior have no penalty of their own: at large beta nothing
# keeps their log-variances from growing, and exp() overflows beyond 88. Inside
# +-5 the bound changes a value by at most 2.1 %.
LOG_VARIANCE_BOUND = 20.0
# Dimensions that a token is embedded in, before dense layers.
_EMBEDDING_DIM = 32


class GaussianHead(nn.Module):
    """Two dense layers to the mean and the (softly bounded) log-variance."""

    latent_dim: int

    @nn.compact
    def __call__(self, h: Array) -> Gaussian:
        """Maps [B, F] to a Gaussian [B, D]."""
        fan_in = h.shape[-1]
        mean = layers.dense(self.latent_dim, fan_in, "mean")(h)
        raw = layers.dense(self.latent_dim, fan_in, "log_variance")(h)
        bounded = LOG_VARIANCE_BOUND * jnp.tanh(raw / LOG_VARIANCE_BOUND)
        return Gaussian(mean, bounded)


class MLPEncoder(nn.Module):
    """Dense layers with ReLUs on the flattened input, then the heads."""

    latent_dim: int
    widths: tuple[int, ...] = (512, 256)
    num_words: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps [B, ...] to a Gaussian [B, D]."""
        h = _flattened(x, self.num_words)
        for width in self.widths:
            h = nn.relu(layers.dense(width, h.shape[-1])(h))
        return GaussianHead(self.latent_dim)(h)


class MLPDecoder(nn.Module):
    """The mirror of MLPEncoder."""

    shape: Shape
    widths: tuple[int, ...] = (512, 256)

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, D] to the likelihood's parameters [B, *shape]."""
        h = z
        for width in reversed(self.widths):
            h = nn.relu(layers.dense(width, h.shape[-1])(h))
        out = layers.dense(math.prod(self.shape), h.shape[-1])(h)
        return out.reshape(-1, *self.shape)


class MLPClassifier(nn.Module):
    """Dense layers, for vectors and tokens."""

    num_classes: int
    widths: tuple[int, ...] = (256, 128)
    num_words: int = 0

    @nn.compact
    def __call__(self, x: Array, is_training: bool = False) -> tuple[Array, Array]:
        """Maps [B, ...] to penultimate features [B, F] and logits."""
        del is_training  # it has no dropout
        h = _flattened(x, self.num_words)
        for width in self.widths:
            h = nn.relu(layers.dense(width, h.shape[-1])(h))
        return h, layers.dense(self.num_classes, h.shape[-1])(h)


def _flattened(x: Array, num_words: int) -> Array:
    """Examples as vectors [B, F]; tokens by embeddings, learned in the caller."""
    if num_words:
        x = nn.Embed(num_words, _EMBEDDING_DIM)(x)
    return x.reshape(x.shape[0], -1)


class PairedEncoder(nn.Module):
    """Two disjoint encoders of one input, their outputs end to end."""

    first: nn.Module
    second: nn.Module

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps [B, ...] to a Gaussian [B, D_1 + D_2]."""
        pairs = zip(self.first(x), self.second(x), strict=True)
        return Gaussian(*(jnp.concatenate(pair, axis=-1) for pair in pairs))


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
        return GaussianHead(self.latent_dim)(h)


class ConvDecoder(nn.Module):
    """The convolutional decoder of the published PolyMNIST code, mirrored.

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


class ConvClassifier(nn.Module):
    """The digit classifier published with PolyMNIST, dropout included."""

    num_classes: int
    form: str = "auto"

    @nn.compact
    def __call__(self, x: Array, is_training: bool = False) -> tuple[Array, Array]:
        """Maps images [B, H, H, C] to penultimate features [B, 128] and logits."""
        for features in (10, 20):
            x = layers.StridedConv(features, kernel_size=4, form=self.form)(x)
            # Whole feature maps are dropped, as the published layer does.
            x = nn.Dropout(0.5, broadcast_dims=(1, 2))(x, deterministic=not is_training)
            x = nn.relu(x)
        h = x.reshape(x.shape[0], -1)
        h = nn.relu(layers.dense(128, h.shape[-1])(h))
        dropped = nn.Dropout(0.5)(h, deterministic=not is_training)
        return h, layers.dense(self.num_classes, 128)(dropped)


class ResNetEncoder(nn.Module):
    """The ResNet of the paper's family of experiments, no normalisation layers.

    Its blocks have 64, 128, ... (at most max_width) channels at 28, 14, 7 pixels: it
    halves the size while that stays at or above `min_size`. The defaults are those
    for 28 pixels. For CUB at 64 pixels, min_size is 2 and max_width 256 there: six
    blocks, 1024 features; 4,341,824 parameters with D = 64, 4,276,931 in the decoder.
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
        return GaussianHead(self.latent_dim)(h)


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
        del is_training  # it has no dropout
        h = nn.leaky_relu(_resnet_trunk(x, 64, 1024, 7), 0.2)
        return h, layers.dense(self.num_classes, h.shape[-1])(h)


def _resnet_trunk(x: Array, width: int, max_width: int, min_size: int) -> Array:
    """The convolutional part of the ResNet encoder: images to features [B, F].

    Called inside a compact Linen method, whose parameters it adds to.
    """
    x = layers.conv3x3(width, x.shape[-1])(x)
    x = layers.ResidualBlock(width)(x)
    for stage in range(1, _num_stages(x.shape[1], min_size) + 1):
        x = layers.ResidualBlock(min(width * 2**stage, max_width))(layers.halve(x))
    return x.reshape(x.shape[0], -1)


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


class LayeredDecoder(nn.Module):
    """A background, and in front of it an object that is put in its place.

    The image is (1 - a) b + a f: the background b, the foreground f, coarse in squares
    of 4 x 4 pixels, and the mask a are dense layers of z, and a is moved by a
    displacement that is a function of z too. So a shape is learned once, and not once
    for every place. The layers are those of Wang & Adelson (1994), displacements by
    bilinear interpolation those of the spatial transformers of Jaderberg et al. (2015).

    Attributes:
      shape: shape of the image, (H, H, C).
      widths: hidden units of the background and foreground; the mask has half of them.
      reach: the largest displacement, as a fraction of H.
    """

    shape: Shape
    widths: tuple[int, ...] = (512,)
    reach: float = 0.1875

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, D] to the likelihood's parameters [B, H, H, C]."""
        size, _, channels = self.shape
        coarse = math.ceil(size / 4)
        h = self._hidden(z, self.widths)
        background = layers.dense(size * size * channels, h.shape[-1])(h)
        foreground = layers.dense(coarse * coarse * channels, h.shape[-1])(h)
        foreground = foreground.reshape(-1, coarse, coarse, channels) + 0.5
        foreground = jnp.repeat(jnp.repeat(foreground, 4, axis=1), 4, axis=2)
        h = self._hidden(z, [math.ceil(width / 2) for width in self.widths])
        mask = layers.dense(size * size, h.shape[-1])(h).reshape(-1, size, size)
        place = jnp.tanh(layers.dense(2, 32)(self._hidden(z, (32,))))
        moved = displace(mask, self.reach * size * place)[..., None]
        # Where the mask is 0, an eighth of the foreground is seen.
        mask = nn.sigmoid(3.0 * moved - 2.0)
        background = background.reshape(-1, *self.shape)
        return (1 - mask) * background + mask * foreground[:, :size, :size]

    def _hidden(self, h: Array, widths: Sequence[int]) -> Array:
        """Dense layers with ReLUs, the last width first: [B, F] to [B, widths[0]]."""
        for width in reversed(widths):
            h = nn.relu(layers.dense(width, h.shape[-1])(h))
        return h


def displace(images: Array, offsets: Array) -> Array:
    """Images moved by fractions of pixels, zeros moving in: bilinear interpolation.

    Args:
      images: [B, H, W].
      offsets: [B, 2], pixels down and to the right.

    Returns:
      [B, H, W], image[i - offset_0, j - offset_1] at (i, j).
    """

    def weights(size: int, offset: Array) -> Array:
        """Weights of every input position at every output position, [B, out, in]."""
        places = jnp.arange(size, dtype=images.dtype)
        sources = places[:, None] - offset[:, None, None]
        return jnp.maximum(1 - jnp.abs(sources - places), 0.0)

    rows = weights(images.shape[1], offsets[:, 0])
    columns = weights(images.shape[2], offsets[:, 1])
    return jnp.einsum("bik,bkl,bjl->bij", rows, images, columns)


class TextConvEncoder(nn.Module):
    """The convolutional caption encoder of Shi et al. (2019), and its heads.

    Embeddings of 128 dimensions as an image T x 128, at T = 32: convolutions 4 x 4
    of stride 2 to 32, 64 and 128 channels (16 x 64, 8 x 32, 4 x 16), 1 x 4 of stride
    (1, 2) to 128 channels twice (4 x 8, 4 x 4), each without bias, with normalisation
    and ReLU, then the heads on all 2048 features. 762,176 parameters at D = 64 for
    the 1590 words of the published vocabulary (the published one has 762,048).

    What differs: GroupNorm, with as many parameters, stands where BatchNorm does, so
    that an example is not encoded by the others of its batch; heads have biases, and
    log-variances their soft bound; `<exc>` has an embedding, where the published code
    fixes that of token 0 at zero (and leaves `<exc>` out of its loss); and the
    decoder's last layer has weights of its own, as in the later code of MMVM, where
    it is the transposed embedding. Other lengths are halved and rounded up.
    """

    latent_dim: int
    num_words: int
    channels: tuple[int, ...] = (32, 64, 128, 128, 128)
    form: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps tokens [B, T] to a Gaussian [B, D]."""
        h = TextConvTrunk(self.num_words, self.channels, self.form)(x)
        return GaussianHead(self.latent_dim)(h)


class TransformerEncoder(nn.Module):
    """A small Transformer over a caption up to its `<eos>`, and the heads."""

    latent_dim: int
    num_words: int
    width: int = 128
    depth: int = 2
    num_heads: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps tokens [B, T] to a Gaussian [B, D]."""
        trunk = TransformerTrunk(self.num_words, self.width, self.depth, self.num_heads)
        return GaussianHead(self.latent_dim)(trunk(x))


NETWORKS = {
    "conv": (ConvEncoder, ConvDecoder),
    "resnet": (ResNetEncoder, ResNetDecoder),
    "mlp": (MLPEncoder, MLPDecoder),
    "layered": (MLPEncoder, LayeredDecoder),
    "text_conv": (TextConvEncoder, TextConvDecoder),
    "transformer": (TransformerEncoder, TransformerDecoder),
}
CLASSIFIERS = {
    "conv": ConvClassifier,
    "resnet": ResNetClassifier,
    "mlp": MLPClassifier,
}
FOR_TOKENS = ("text_conv", "transformer", "mlp")
FOR_IMAGES = ("conv", "resnet", "layered")
# Options that are numbers of units, layers or pixels.
_SIZES = ("width", "max_width", "min_size", "depth", "num_heads")


def blank(shape: Shape, num: int = 1) -> Array:
    """`num` examples of this shape, all zeros; int32 [num, T] for a TokenShape."""
    if isinstance(shape, TokenShape):
        return jnp.zeros((num, shape.length), jnp.int32)
    return jnp.zeros((num, *shape))


def make_classifier(name: str, shape: Shape, num_outputs: int) -> nn.Module:
    """The network called `name`, a key of CLASSIFIERS, for examples of this shape."""
    options = {"num_words": shape.num_words} if isinstance(shape, TokenShape) else {}
    return CLASSIFIERS[name](num_outputs, **options)


def convolution_forms(*modules: nn.Module) -> frozenset[str]:
    """Forms of `layers` in which networks execute their convolutions on this backend.

    Returns:
      Of "matmul", "mixed" and "lax" those in use; empty if nothing is convolved.
    """
    forms: set[str] = set()
    for module in modules:
        if isinstance(module, PairedEncoder):
            forms |= convolution_forms(module.first, module.second)
        elif hasattr(module, "form"):
            forms.add(layers.choose_form(module.form))
    return frozenset(forms)


def make_networks(
    network: str, shape: Shape, latent_dim: int, **options: Any
) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder of one modality.

    Args:
      network: a key of NETWORKS.
      shape: shape of one example: (H, W, C) for images, a TokenShape for tokens.
      latent_dim: D.
      **options: fields of both modules (channels, widths, form, ...).

    Raises:
      UsageError: the network or one of its options is unknown, or an image is
        not square.
    """
    if network not in NETWORKS:
        raise UsageError(
            f"unknown network {network!r}; choose one of {', '.join(NETWORKS)}"
        )
    is_tokens = isinstance(shape, TokenShape)
    if is_tokens and network not in FOR_TOKENS:
        raise UsageError(
            f"network {network!r} is not for tokens; choose one of "
            f"{', '.join(FOR_TOKENS)}"
        )
    if not is_tokens and network in FOR_TOKENS and network != "mlp":
        raise UsageError(f"network {network!r} is for tokens, got shape {shape}")
    if network in FOR_IMAGES and (len(shape) != 3 or shape[0] != shape[1]):
        raise UsageError(f"network {network!r} needs square images, got shape {shape}")
    if options.get("form", "matmul") not in layers.FORMS:
        raise UsageError(
            f"unknown network_options.form {options['form']!r}; choose one of "
            f"{', '.join(layers.FORMS)}"
        )
    sizes = [n for name in ("widths", "channels") for n in options.get(name, ())]
    sizes += [options[name] for name in _SIZES if name in options]
    if any(not isinstance(n, int) or n < 1 for n in sizes):
        raise UsageError(f"network {network!r}: layers need >= 1 unit, got {sizes}")
    width, num_heads = options.get("width", 128), options.get("num_heads", 4)
    if network == "transformer" and width % num_heads:
        raise UsageError(
            f"network 'transformer': width {width} is no multiple of num_heads "
            f"{num_heads}"
        )
    encoder, decoder = NETWORKS[network]
    own = {"num_words": shape.num_words} if isinstance(shape, TokenShape) else {}
    try:
        return (
            encoder(latent_dim=latent_dim, **own, **options),
            decoder(shape=tuple(shape), **options),
        )
    except TypeError as error:
        raise UsageError(f"network {network!r}: {error}") from error
