"""Linen networks for captions.

Captions are tokens int32 [B, T]; the output of a decoder is logits [B, T, V].
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from mmvae_jax import tokens
from mmvae_jax.networks import layers, vectors
from mmvae_jax.types import Array, Gaussian, Shape

# Embedding dimensions of the convolutional encoder and decoder, as published.
_EMBEDDING_DIM = 128
# Largest number of groups of a GroupNorm.
_NUM_GROUPS = 8
# Convolutions that halve the number of positions; others halve only the embedding.
_NUM_HALVINGS = 3
# Units of a Transformer's dense layers, relative to its width.
_EXPANSION = 4


class TextConvTrunk(nn.Module):
    """The convolutions of the published caption encoder, tokens to features [B, F].

    The embeddings are an image of T x 128 pixels with one channel. Three convolutions
    halve both axes, and two more halve the embedding axis. `TextConvEncoder` lists the
    differences from the published code.
    """

    num_words: int
    channels: tuple[int, ...]
    form: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, T] to [B, ceil(T / 8) * 4 * channels[-1]]."""
        normal = nn.initializers.normal(1.0)
        x = nn.Embed(self.num_words, _EMBEDDING_DIM, embedding_init=normal)(x)
        x = x[..., None]
        for i, features in enumerate(self.channels):
            axes = (1, 2) if i < _NUM_HALVINGS else (2,)
            x = layers.StridedConv(
                features, kernel_size=4, axes=axes, use_bias=False, form=self.form
            )(x)
            x = nn.relu(nn.GroupNorm(num_groups=math.gcd(_NUM_GROUPS, features))(x))
        return x.reshape(x.shape[0], -1)


class TextConvDecoder(nn.Module):
    """The mirror of `TextConvEncoder`, then a dense layer to the words.

    426,496 parameters at T = 32 and D = 64 in the transposed convolutions, as
    published, and 960 in the normalisation; 205,110 in the last layer for V = 1590.
    """

    shape: Shape
    channels: tuple[int, ...] = (32, 64, 128, 128, 128)
    form: str = "auto"

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, D] to logits [B, T, V]."""
        length, num_words = self.shape
        sizes, width = [(length, _EMBEDDING_DIM)], self.channels[-1]
        for i in range(len(self.channels)):
            rows, columns = sizes[-1]
            rows = math.ceil(rows / 2) if i < _NUM_HALVINGS else rows
            sizes.append((rows, math.ceil(columns / 2)))
        # On one pixel, a transposed convolution without bias is a dense layer, whose
        # fan is given by the output channels.
        area = math.prod(sizes[-1])
        init = layers.fan_in_uniform(area * width)
        x = nn.Dense(area * width, use_bias=False, kernel_init=init)(z)
        x = x.reshape(-1, *sizes[-1], width)
        features = (1, *self.channels[:-1])
        for i in reversed(range(len(self.channels))):
            groups = math.gcd(_NUM_GROUPS, x.shape[-1])
            x = layers.StridedConvTranspose(
                features[i],
                sizes[i],
                kernel_size=4,
                axes=(1, 2) if i < _NUM_HALVINGS else (2,),
                use_bias=False,
                form=self.form,
            )(nn.relu(nn.GroupNorm(num_groups=groups)(x)))
        h = nn.relu(x[..., 0])
        return layers.dense(num_words, _EMBEDDING_DIM)(h)


class TransformerTrunk(nn.Module):
    """A Transformer over a caption: its output [B, F] at an additional first token.

    Positions after the first `<eos>` are masked.
    """

    num_words: int
    width: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, T] to [B, width]."""
        normal = nn.initializers.normal(1.0)
        h = nn.Embed(self.num_words, self.width, embedding_init=normal)(x)
        # The first token has only the embedding of its position.
        h = jnp.pad(h, [(0, 0), (1, 0), (0, 0)])
        h += self.param("positions", normal, h.shape[1:])
        is_seen = jnp.pad(tokens.until_eos(x), [(0, 0), (1, 0)], constant_values=True)
        for _ in range(self.depth):
            h = TransformerBlock(self.num_heads)(h, is_seen[:, None, None])
        return nn.LayerNorm()(h[:, 0])


class TransformerDecoder(nn.Module):
    """A Transformer that decodes all words of a caption at once from z.

    It is not autoregressive: as in all decoders here, p(x|z) is a product over
    positions, so that z must explain all dependence between words. The input of each
    position is a learned vector plus a linear map of z; positions attend to all others.
    """

    shape: Shape
    width: int = 128
    depth: int = 2
    num_heads: int = 4

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, D] to logits [B, T, V]."""
        length, num_words = self.shape
        normal = nn.initializers.normal(1.0)
        positions = self.param("positions", normal, (length, self.width))
        h = layers.dense(self.width, z.shape[-1])(z)[:, None] + positions
        for _ in range(self.depth):
            h = TransformerBlock(self.num_heads)(h)
        return layers.dense(num_words, self.width)(nn.LayerNorm()(h))


class TransformerBlock(nn.Module):
    """Self-attention and two dense layers, each after a LayerNorm, without dropout.

    The block of Vaswani et al. (2017), with pre-normalisation.
    """

    num_heads: int

    @nn.compact
    def __call__(self, h: Array, mask: Array | None = None) -> Array:
        """Maps [B, T, F] to [B, T, F]; mask: bool, broadcast to [B, heads, T, T]."""
        width = h.shape[-1]
        attention = nn.MultiHeadDotProductAttention(self.num_heads)
        h += attention(nn.LayerNorm()(h), mask=mask)
        hidden = layers.dense(_EXPANSION * width, width)(nn.LayerNorm()(h))
        return h + layers.dense(width, _EXPANSION * width)(nn.gelu(hidden))


class TextConvEncoder(nn.Module):
    """The convolutional caption encoder of Shi et al. (2019), with Gaussian heads.

    Embeddings of 128 dimensions as an image T x 128, at T = 32: convolutions 4 x 4
    of stride 2 to 32, 64 and 128 channels (16 x 64, 8 x 32, 4 x 16), 1 x 4 of stride
    (1, 2) to 128 channels twice (4 x 8, 4 x 4), each without bias, with normalisation
    and ReLU, then the heads on all 2048 features. 762,176 parameters at D = 64 for
    the 1590 words of the published vocabulary (the published one has 762,048).

    Differences: GroupNorm, with as many parameters, replaces BatchNorm, so that
    examples of a batch are encoded independently; heads have biases, and log-variances
    their soft bound; `<exc>` has an embedding, whereas the published code fixes that of
    token 0 at zero (and leaves `<exc>` out of its loss); and the decoder's last layer
    has its own weights, as in the later code of MMVM, instead of the transposed
    embedding. Other lengths are halved and rounded up.
    """

    latent_dim: int
    num_words: int
    channels: tuple[int, ...] = (32, 64, 128, 128, 128)
    form: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps tokens [B, T] to a Gaussian [B, D]."""
        h = TextConvTrunk(self.num_words, self.channels, self.form)(x)
        return vectors.GaussianHead(self.latent_dim)(h)


class TransformerEncoder(nn.Module):
    """A small Transformer over a caption up to its `<eos>`, with Gaussian heads."""

    latent_dim: int
    num_words: int
    width: int = 128
    depth: int = 2
    num_heads: int = 4

    def __post_init__(self) -> None:
        """Raises ValueError if the heads do not divide the width."""
        super().__post_init__()
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} is no multiple of num_heads {self.num_heads}"
            )

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps tokens [B, T] to a Gaussian [B, D]."""
        trunk = TransformerTrunk(self.num_words, self.width, self.depth, self.num_heads)
        return vectors.GaussianHead(self.latent_dim)(trunk(x))
