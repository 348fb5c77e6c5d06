"""Linen networks for captions: the trunks of encoders, and decoders.

Captions are tokens int32 [B, T], a decoder's output is logits [B, T, V].
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from mmvae_jax import tokens
from mmvae_jax.networks import layers, vectors
from mmvae_jax.types import Array, Gaussian, Shape

# Dimensions of the convolutional pair's embedding, as published.
_EMBEDDING_DIM = 128
# Groups of channels that a GroupNorm normalises, at most.
_NUM_GROUPS = 8
# Layers of the convolutional pair that halve the number of positions; the others
# halve the embedding alone.
_NUM_HALVINGS = 3
# Units of a Transformer's dense layers, relative to its width.
_EXPANSION = 4


class TextConvTrunk(nn.Module):
    """The convolutions of the published caption encoder, tokens to features [B, F].

    Embeddings are an image of T x 128 pixels with one channel. Three convolutions
    halve it, and two more halve it along the embedding alone. `TextConvEncoder`
    tells what is published of the pair, and what differs.
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
        # On one pixel, a transposed convolution without bias is a dense layer. Its
        # fan is counted by the output channels.
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
    """A Transformer over a caption: its output at a first, learned token [B, F].

    No position sees those after the first `<eos>`.
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
        # The embedding of the first token is that of its position.
        h = jnp.pad(h, [(0, 0), (1, 0), (0, 0)])
        h += self.param("positions", normal, h.shape[1:])
        is_seen = jnp.pad(tokens.until_eos(x), [(0, 0), (1, 0)], constant_values=True)
        for _ in range(self.depth):
            h = TransformerBlock(self.num_heads)(h, is_seen[:, None, None])
        return nn.LayerNorm()(h[:, 0])


class TransformerDecoder(nn.Module):
    """A Transformer that writes all words of a caption at once, given z.

    It is not autoregressive: p(x|z) is a product over positions, as for all other
    decoders, so that z must hold all that the words have in common. Every position
    starts from a learned vector plus a linear map of z, and attends to all others.
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
    """Self-attention and two dense layers, each behind a LayerNorm, without dropout.

    The block of Vaswani et al. (2017), but with the normalisation first.
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
        return vectors.GaussianHead(self.latent_dim)(h)


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
        return vectors.GaussianHead(self.latent_dim)(trunk(x))
