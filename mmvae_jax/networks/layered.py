"""The layered decoder: an image as a background and a foreground."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from mmvae_jax.networks import layers
from mmvae_jax.types import Array, Shape


class LayeredDecoder(nn.Module):
    """A background, and an object in front of it at a learned position.

    The image is (1 - a) b + a f. Dense layers of z give the background b, the
    foreground f (in squares of 4 x 4 pixels) and the mask a; a is moved by a
    displacement, also a function of z. So a shape is learned once for all positions.
    Layers follow Wang & Adelson (1994); displacements use bilinear interpolation as in
    the spatial transformers of Jaderberg et al. (2015).

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
        # With a mask of 0, an eighth of the foreground is visible.
        mask = nn.sigmoid(3.0 * moved - 2.0)
        background = background.reshape(-1, *self.shape)
        return (1 - mask) * background + mask * foreground[:, :size, :size]

    def _hidden(self, h: Array, widths: Sequence[int]) -> Array:
        """Dense layers with ReLUs, the last width first: [B, F] to [B, widths[0]]."""
        for width in reversed(widths):
            h = nn.relu(layers.dense(width, h.shape[-1])(h))
        return h


def displace(images: Array, offsets: Array) -> Array:
    """Moves images by bilinear interpolation, with zero padding.

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
