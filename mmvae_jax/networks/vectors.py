"""Dense encoders, decoders and classifiers."""

import math

import flax.linen as nn
import jax.numpy as jnp

from mmvae_jax.networks import layers
from mmvae_jax.types import Array, Gaussian, Shape

# Log-variances stay within +-20 (standard deviations from 5e-5 to 2e4). Experts of a
# product with the prior have no separate penalty: at large beta their log-variances
# could grow without bound, and exp() overflows beyond 88. Within +-5 the bound changes
# a value by at most 2.1 %.
LOG_VARIANCE_BOUND = 20.0
# Embedding dimensions of a token, before dense layers.
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
        del is_training  # no dropout
        h = _flattened(x, self.num_words)
        for width in self.widths:
            h = nn.relu(layers.dense(width, h.shape[-1])(h))
        return h, layers.dense(self.num_classes, h.shape[-1])(h)


def _flattened(x: Array, num_words: int) -> Array:
    """Flattens examples to [B, F]; embeds tokens, in the module of the caller."""
    if num_words:
        x = nn.Embed(num_words, _EMBEDDING_DIM)(x)
    return x.reshape(x.shape[0], -1)


class ParameterDecoder(nn.Module):
    """A decoder with a parameter of its likelihood, shared by all examples."""

    decoder: nn.Module
    parameter_shape: Shape

    @nn.compact
    def __call__(self, z: Array) -> tuple[Array, Array]:
        """Maps z [B, D] to the decoder's output and the parameter, initially 0."""
        zeros = nn.initializers.zeros
        return self.decoder(z), self.param("likelihood", zeros, self.parameter_shape)


class MeanEncoder(nn.Module):
    """A classifier as an encoder: its outputs are the means, with variance 1."""

    network: nn.Module

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps [B, ...] to a Gaussian [B, D]."""
        _, outputs = self.network(x)
        return Gaussian(outputs, jnp.zeros_like(outputs))


class PairedEncoder(nn.Module):
    """Two separate encoders of one input, with concatenated outputs."""

    first: nn.Module
    second: nn.Module

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        """Maps [B, ...] to a Gaussian [B, D_1 + D_2]."""
        pairs = zip(self.first(x), self.second(x), strict=True)
        return Gaussian(*(jnp.concatenate(pair, axis=-1) for pair in pairs))
