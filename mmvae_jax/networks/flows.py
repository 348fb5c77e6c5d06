"""Linen networks for the velocity of a flow over latents, and couplings.

Velocity networks map latents x [B, D] at times t to a velocity [B, D]. An optional
condition is [B, E]; zeros mean no condition. A function of time and condition shifts,
scales and gates each block, which is initially the identity, as in the diffusion
transformers of Peebles & Xie (2023). The initial velocity is 0.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mmvae_jax.networks import layers
from mmvae_jax.types import AnyArray, Array, Shape

# Number of sines and cosines of a time in [0, 1], and their highest frequency, in
# radians. Higher ones would make velocities rough in time, and ODEs need more steps.
_NUM_FREQUENCIES = 32
_HIGHEST_FREQUENCY = 100.0
# Bound on the log-scale of one coupling.
_MOST_SCALED = 2.0
# Units of a Transformer's dense layers, relative to its width.
_EXPANSION = 4
# Heads of a Transformer's attention; its width is a multiple of them.
NUM_HEADS = 4


class Context(nn.Module):
    """Embedding of times and an optional condition, which modulates the blocks.

    Attributes:
      width: F, size of the embedding.
      is_joined: whether times [M, B] have one common embedding [B, F].
    """

    width: int
    is_joined: bool = False

    @nn.compact
    def __call__(self, t: Array, condition: Array | None) -> Array:
        """Maps times [..., B] and a condition [B, E] to [..., B, F]."""
        frequencies = np.geomspace(1.0, _HIGHEST_FREQUENCY, _NUM_FREQUENCIES)
        angles = t[..., None] * frequencies.astype(np.float32)
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        if self.is_joined:
            waves = jnp.concatenate(list(waves), axis=-1)
        h = nn.silu(layers.dense(self.width, waves.shape[-1], "time")(waves))
        h = layers.dense(self.width, self.width, "time_out")(h)
        if condition is not None:
            h += layers.dense(self.width, condition.shape[-1], "condition")(condition)
        return nn.silu(h)


class ModulatedBlock(nn.Module):
    """Optional attention, and two dense layers, each modulated by a context.

    Attributes:
      num_tokens: number of tokens of [B, T, F] for each row of the context [B, M, F];
        () = the context has the shape of h.
      expansion: units of the hidden layer, relative to F.
      num_heads: heads of the attention; 0 = no attention.
    """

    num_tokens: tuple[int, ...] = ()
    expansion: int = 1
    num_heads: int = 0

    @nn.compact
    def __call__(self, h: Array, context: Array) -> Array:
        """Maps h [B, F], or tokens [B, T, F], to h's shape."""
        width = h.shape[-1]
        if self.num_heads:
            x, gate = _modulated(h, context, self.num_tokens)
            h += gate * nn.MultiHeadDotProductAttention(self.num_heads)(x)
        x, gate = _modulated(h, context, self.num_tokens)
        x = nn.silu(layers.dense(self.expansion * width, width)(x))
        return h + gate * layers.dense(width, self.expansion * width)(x)


def _modulated(
    h: Array, context: Array, num_tokens: tuple[int, ...], num_changes: int = 3
) -> list[Array]:
    """Normalises h, then shifts and scales it by the context; returns a gate too.

    With `num_changes` = 2 there is no gate. All are initially 0.
    """
    zeros, width = nn.initializers.zeros, h.shape[-1]
    changes = nn.Dense(num_changes * width, kernel_init=zeros)(context)
    if num_tokens:
        changes = _for_tokens(changes, num_tokens)
    shift, scale, *gate = jnp.split(changes, num_changes, axis=-1)
    normalised = nn.LayerNorm(use_bias=False, use_scale=False)(h)
    return [normalised * (1 + scale) + shift, *gate]


def _for_tokens(x: Array, num_tokens: tuple[int, ...]) -> Array:
    """Repeats the rows [B, M, F] for the tokens of each modality: [B, T, F]."""
    return x[:, np.repeat(np.arange(len(num_tokens)), num_tokens)]


class MLPFlow(nn.Module):
    """Velocity by dense blocks, for a code or for latents.

    Attributes:
      width: units of each layer.
      depth: number of blocks.
    """

    width: int = 128
    depth: int = 3

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        condition: Array | None = None,
        given: Array | None = None,
    ) -> Array:
        """The velocity of all entries.

        Args:
          x: [B, D].
          t: [B], or [M, B] for a time of each of M parts of x.
          condition: [B, E].
          given: bool [M, B], parts whose x is data: more entries of a condition.

        Returns:
          [B, D].
        """
        size = x.shape[-1]
        if given is not None:
            flags = given.T.astype(x.dtype)
            parts = [flags] if condition is None else [condition, flags]
            condition = jnp.concatenate(parts, axis=-1)
        context = Context(self.width, is_joined=t.ndim > 1)(t, condition)
        h = layers.dense(self.width, size)(x)
        for _ in range(self.depth):
            h = ModulatedBlock()(h, context)
        (h,) = _modulated(h, context, (), 2)
        return nn.Dense(size, kernel_init=nn.initializers.zeros)(h)


class TransformerFlow(nn.Module):
    """A Transformer over the latents of all modalities, given any of them.

    The last axis of a modality's latents is a token: latents (D,) are one token, and
    latents (H, W, C) one token per position. Tokens attend to those of all modalities.

    Attributes:
      shapes: shape of the latents of each modality; x concatenates the flat latents.
      width: units of each token, a multiple of num_heads.
      depth: number of blocks.
      num_heads: heads of the attention.
    """

    shapes: tuple[Shape, ...]
    width: int = 128
    depth: int = 3
    num_heads: int = NUM_HEADS

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        condition: Array | None = None,
        given: AnyArray | None = None,
    ) -> Array:
        """The velocity of all modalities; that of given modalities has no meaning.

        Args:
          x: [B, D], D being the total size of all shapes.
          t: [B], or [M, B] for a time of each modality; given modalities have time 1.
          condition: [B, E].
          given: bool [M, B] or [M], modalities whose x is data.

        Returns:
          [B, D].
        """
        sizes = [math.prod(shape) for shape in self.shapes]
        if x.shape[-1] != sum(sizes):
            raise ValueError(
                f"x has {x.shape[-1]} entries, and {self.shapes} have {sum(sizes)}"
            )
        num_tokens = tuple(math.prod(shape[:-1]) for shape in self.shapes)
        batch, num = len(x), len(self.shapes)
        if given is None:
            given = np.zeros(num, bool)
        given = jnp.broadcast_to(jnp.asarray(given).reshape(num, -1), (num, batch))
        times = jnp.where(given, 1.0, t)
        context = jnp.swapaxes(Context(self.width)(times, condition), 0, 1)
        normal, zeros = nn.initializers.normal(1.0), nn.initializers.zeros
        flags = self.param("given", normal, (num, self.width))
        h = _for_tokens(jnp.where(given.T[..., None], flags, 0.0), num_tokens)
        h += self.param("positions", normal, h.shape[1:])
        parts = jnp.split(x, np.cumsum(sizes)[:-1], axis=-1)
        pairs = zip(parts, self.shapes, strict=True)
        own = [part.reshape(batch, -1, shape[-1]) for part, shape in pairs]
        h += jnp.concatenate(
            [layers.dense(self.width, part.shape[-1])(part) for part in own], axis=1
        )
        for _ in range(self.depth):
            h = ModulatedBlock(num_tokens, _EXPANSION, self.num_heads)(h, context)
        (h,) = _modulated(h, context, num_tokens, 2)
        parts = jnp.split(h, np.cumsum(num_tokens)[:-1], axis=1)
        velocities = [
            nn.Dense(shape[-1], kernel_init=zeros)(part).reshape(batch, -1)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return jnp.concatenate(velocities, axis=-1)


class CouplingFlow(nn.Module):
    """Affine couplings: an invertible map with a closed form of its determinant.

    Dinh et al. (2017). Each layer shifts and scales one half of the entries by
    functions of the other half. The next layer exchanges the halves, and each pair of
    layers has different halves. The initial map is the identity.

    Attributes:
      num_layers: number of couplings.
      width: units of each of the two hidden layers of a coupling.
    """

    num_layers: int = 4
    width: int = 128

    @nn.compact
    def __call__(self, x: Array, is_inverse: bool = False) -> tuple[Array, Array]:
        """Maps x [B, D] to y [B, D] and log |det dy/dx| [B]; or the inverse."""
        size, zeros = x.shape[-1], nn.initializers.zeros
        log_volume = jnp.zeros(x.shape[:-1], x.dtype)
        layers_of = range(self.num_layers)
        for i in reversed(layers_of) if is_inverse else layers_of:
            order = np.random.default_rng(i // 2).permutation(size)
            is_moved = np.zeros(size, bool)
            is_moved[np.array_split(order, 2)[i % 2]] = True
            h = jnp.where(is_moved, 0.0, x)
            h = nn.relu(layers.dense(self.width, size, f"hidden_{i}")(h))
            h = nn.relu(layers.dense(self.width, self.width, f"second_{i}")(h))
            h = nn.Dense(2 * size, kernel_init=zeros, name=f"out_{i}")(h)
            shift, log_scale = jnp.split(jnp.where(np.tile(is_moved, 2), h, 0.0), 2, -1)
            log_scale = _MOST_SCALED * jnp.tanh(log_scale / _MOST_SCALED)
            if is_inverse:
                x = (x - shift) * jnp.exp(-log_scale)
                log_volume -= jnp.sum(log_scale, axis=-1)
            else:
                x = x * jnp.exp(log_scale) + shift
                log_volume += jnp.sum(log_scale, axis=-1)
        return x, log_volume
