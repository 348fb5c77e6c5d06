"""Linen layers for captions: what encoders have before their heads, and decoders.

Captions are tokens int32 [B, T], a decoder's output is logits [B, T, V].
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from mmvae_jax import layers, tokens
from mmvae_jax.types import Array

# Of the convolutional pair, as published.
EMBEDDING_DIM = 128
# Of every GroupNorm.
NUM_GROUPS = 8
# Layers of the convolutional pair that halve the positions; as many follow that
# leave them alone, but for one.
NUM_HALVINGS = 3
# Units of a Transformer's dense layers, relative to its width.
EXPANSION = 4


class TextConvTrunk(nn.Module):
    """The convolutions of the published caption encoder, tokens to features [B, F].

    Embeddings are an image of T x 128 pixels with one channel; five convolutions
    halve it three times, and then twice along the embedding alone. `networks` has
    what is published of the pair, and what differs.
    """

    num_words: int
    channels: tuple[int, ...]
    form: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, T] to [B, ceil(T / 8) * 4 * channels[-1]]."""
        normal = nn.initializers.normal(1.0)
        x = nn.Embed(self.num_words, EMBEDDING_DIM, embedding_init=normal)(x)[..., None]
        for i, features in enumerate(self.channels):
            axes = (1, 2) if i < NUM_HALVINGS else (2,)
            x = layers.StridedConv(
                features, kernel_size=4, axes=axes, use_bias=False, form=self.form
            )(x)
            x = nn.relu(nn.GroupNorm(num_groups=math.gcd(NUM_GROUPS, features))(x))
        return x.reshape(x.shape[0], -1)


class TextConvDecoder(nn.Module):
    """The mirror of `networks.TextConvEncoder`, then a dense layer to the words.

    426,496 parameters at T = 32 and D = 64 in the transposed convolutions, as
    published, and 960 in the normalisation; 205,110 in the last layer for V = 1590.
    """

    shape: tuple[int, ...]
    channels: tuple[int, ...] = (32, 64, 128, 128, 128)
    form: str = "auto"

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, D] to logits [B, T, V]."""
        length, num_words = self.shape
        sizes, width = [(length, EMBEDDING_DIM)], self.channels[-1]
        for i in range(len(self.channels)):
            rows, columns = sizes[-1]
            rows = math.ceil(rows / 2) if i < NUM_HALVINGS else rows
            sizes.append((rows, math.ceil(columns / 2)))
        # On one pixel, a transposed convolution without bias is a dense layer. Its
        # fan is counted by the output channels.
        area = math.prod(sizes[-1])
        init = layers.fan_in_uniform(area * width)
        x = nn.Dense(area * width, use_bias=False, kernel_init=init)(z)
        x = x.reshape(-1, *sizes[-1], width)
        features = (1, *self.channels[:-1])
        for i in reversed(range(len(self.channels))):
            groups = math.gcd(NUM_GROUPS, x.shape[-1])
            x = layers.StridedConvTranspose(
                features[i],
                sizes[i],
                kernel_size=4,
                axes=(1, 2) if i < NUM_HALVINGS else (2,),
                use_bias=False,
                form=self.form,
            )(nn.relu(nn.GroupNorm(num_groups=groups)(x)))
        h = nn.relu(x[..., 0])
        return layers.dense(num_words, EMBEDDING_DIM)(h)


class TransformerTrunk(nn.Module):
    """A Transformer over a caption; what it makes of a first, learned token [B, F].

    Positions after the first `<eos>` are seen by nobody.
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

    Not autoregressive: p(x|z) is a product over positions, as for all other
    decoders, so that what the words have in common must be in z. Every position
    starts from a learned vector plus a linear map of z, and attends to all others.
    """

    shape: tuple[int, ...]
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

    Vaswani et al. (2017), with the normalisation first.
    """

    num_heads: int

    @nn.compact
    def __call__(self, h: Array, mask: Array | None = None) -> Array:
        """Maps [B, T, F] to [B, T, F]; mask: bool, broadcast to [B, heads, T, T]."""
        width = h.shape[-1]
        attention = nn.MultiHeadDotProductAttention(self.num_heads)
        h += attention(nn.LayerNorm()(h), mask=mask)
        hidden = layers.dense(EXPANSION * width, width)(nn.LayerNorm()(h))
        return h + layers.dense(width, EXPANSION * width)(nn.gelu(hidden))
