"""How a dense layer, a convolution and its transpose are executed.

The only place that decides it. A strided convolution and a transposed
convolution exist in two forms with the same parameters and the same values:

"lax"     XLA's convolution. Under vmap over weights (a sweep) it becomes a
          grouped convolution, and inside a loop on CPU it loses its fast kernel.
"matmul"  the taps as strided slices and one matrix product. As fast alone, and
          fast under vmap, scan and map; for a stride of 1 it would move k*k
          times the bytes, so there it is not used.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmvae_jax.types import Array

FORMS = ("matmul", "lax")


def fan_in_uniform(fan_in: int):
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), that of the published code.

    LeCun et al. (2012), "Efficient BackProp", in the form PyTorch uses for the
    weights and biases of its linear and convolutional layers.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def dense(features: int, fan_in: int, name: str | None = None) -> nn.Dense:
    """A dense layer of `fan_in` inputs with the published initialisation."""
    init = fan_in_uniform(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)


class StridedConv(nn.Module):
    """k x k convolution, stride 2, output size ceil(size / 2).

    Padding is (k - 1) // 2 on every side: for k = 3 and k = 4 the layer of the
    published encoders.

    Attributes:
      features: output channels.
      kernel_size: k, 3 or 4.
      axes: those that are halved; along the other one k and the stride are 1.
      use_bias: whether it has one.
      form: "matmul" or "lax" (module docstring).
    """

    features: int
    kernel_size: int = 3
    axes: tuple[int, ...] = (1, 2)
    use_bias: bool = True
    form: str = "matmul"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H/2), ceil(W/2), features]."""
        sizes, channels = x.shape[1:3], x.shape[-1]
        window, strides = _window(self.kernel_size, self.axes)
        init = fan_in_uniform(math.prod(window) * channels)
        kernel = self.param("kernel", init, (*window, channels, self.features))
        bias = self.param("bias", init, (self.features,)) if self.use_bias else 0.0
        out_size = [math.ceil(n / s) for n, s in zip(sizes, strides, strict=True)]
        padding = []
        for k, s, n, o in zip(window, strides, sizes, out_size, strict=True):
            low = (k - 1) // 2
            # Enough zeros at the far side for the last output's taps.
            padding.append((low, max(0, s * (o - 1) + k - low - n)))
        if self.form == "lax":
            y = jax.lax.conv_general_dilated(
                x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return y + bias
        x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
        spans = [s * (o - 1) + 1 for s, o in zip(strides, out_size, strict=True)]
        taps = [
            x[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]]
            for i in range(window[0])
            for j in range(window[1])
        ]
        patches = jnp.concatenate(taps, axis=-1)
        return patches @ kernel.reshape(-1, self.features) + bias


class StridedConvTranspose(nn.Module):
    """k x k transposed convolution, stride 2: the adjoint of StridedConv.

    Attributes:
      features: output channels.
      out_size: output height and width, 2 * size - 1 or 2 * size; one number for
        both, or one for each.
      kernel_size: k, 3 or 4.
      axes: those that are doubled; along the other one k and the stride are 1.
      use_bias: whether it has one.
      form: "matmul" or "lax" (module docstring).
    """

    features: int
    out_size: int | tuple[int, int]
    kernel_size: int = 3
    axes: tuple[int, ...] = (1, 2)
    use_bias: bool = True
    form: str = "matmul"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, *out_size, features]."""
        sizes, channels = x.shape[1:3], x.shape[-1]
        window, strides = _window(self.kernel_size, self.axes)
        out_size = self.out_size
        if isinstance(out_size, int):
            out_size = (out_size, out_size)
        for n, s, o in zip(sizes, strides, out_size, strict=True):
            if o not in (s * n - s + 1, s * n):
                raise ValueError(f"cannot map size {n} to size {o}")
        # PyTorch counts the fan of a transposed layer by its output channels.
        init = fan_in_uniform(math.prod(window) * self.features)
        kernel = self.param("kernel", init, (*window, channels, self.features))
        bias = self.param("bias", init, (self.features,)) if self.use_bias else 0.0
        if self.form == "lax":
            # Output o = 2 i + k - 1 of input i and tap k; dilating the input and
            # flipping the taps turns this into a plain convolution.
            y = jax.lax.conv_general_dilated(
                x,
                kernel[::-1, ::-1],
                (1, 1),
                [
                    (k - s, o - s * n + 2 * s - 2)
                    for k, s, n, o in zip(window, strides, sizes, out_size, strict=True)
                ],
                lhs_dilation=strides,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            return y + bias
        taps = x @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
        y = taps.reshape(*x.shape[:3], *window, self.features)
        for axis in (1, 2):
            y = _overlap_add(y, axis, 3) if axis in self.axes else jnp.squeeze(y, 3)
        return y[:, : out_size[0], : out_size[1]] + bias


def _window(
    kernel_size: int, axes: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel size and stride along height and width."""
    window = tuple(kernel_size if axis in axes else 1 for axis in (1, 2))
    return window, tuple(2 if axis in axes else 1 for axis in (1, 2))


def _overlap_add(taps: Array, axis: int, tap_axis: int) -> Array:
    """Adds up three or four taps along one axis at output positions 2 i + k - 1.

    Even positions get tap 1 of their own input and tap 3 of the one before; odd
    ones get tap 2 of theirs and tap 0 of the next. No scatter: pads, additions and
    an interleaving.
    """
    first, centre, last, *fourth = (
        jnp.squeeze(tap, tap_axis)
        for tap in jnp.split(taps, taps.shape[tap_axis], tap_axis)
    )
    size = taps.shape[axis]

    def shifted(tap: Array, before: int) -> Array:
        """The tap of the input before (1) or after (0), zeros where there is none."""
        padding = [(0, 0)] * tap.ndim
        padding[axis] = (before, 1 - before)
        start = 1 - before
        return jax.lax.slice_in_dim(
            jnp.pad(tap, padding), start, start + size, axis=axis
        )

    if fourth:
        centre += shifted(fourth[0], 1)
    pairs = jnp.stack([centre, shifted(first, 0) + last], axis=axis + 1)
    return pairs.reshape(*pairs.shape[:axis], 2 * size, *pairs.shape[axis + 2 :])


def conv3x3(features: int, fan_in: int, name: str | None = None) -> nn.Conv:
    """3 x 3 convolution of stride 1 over `fan_in` channels, size kept."""
    init = fan_in_uniform(9 * fan_in)
    return nn.Conv(
        features, (3, 3), padding=1, kernel_init=init, bias_init=init, name=name
    )


class ResidualBlock(nn.Module):
    """Pre-activation residual block without normalisation, branch scaled by 0.1.

    The block of the ResNets in the code that followed the paper: two 3 x 3
    convolutions behind leaky ReLUs, min(C_in, C_out) hidden channels, and a 1 x 1
    convolution without bias as shortcut where the channels change.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, H, W, features]."""
        channels = x.shape[-1]
        hidden = min(channels, self.features)
        branch = conv3x3(hidden, channels)(nn.leaky_relu(x, 0.2))
        branch = conv3x3(self.features, hidden)(nn.leaky_relu(branch, 0.2))
        if channels != self.features:
            init = fan_in_uniform(channels)
            x = nn.Conv(self.features, (1, 1), use_bias=False, kernel_init=init)(x)
        return x + 0.1 * branch


def halve(x: Array) -> Array:
    """3 x 3 average pooling of stride 2 and padding 1: size to ceil(size / 2)."""
    return nn.avg_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])


def double(x: Array, out_size: int) -> Array:
    """Nearest-neighbour upsampling by 2, cropped to out_size (2 size or one less)."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, :out_size, :out_size]


def displace(images: Array, offsets: Array) -> Array:
    """Images moved by fractions of pixels, zeros moving in: bilinear interpolation.

    Args:
      images: [B, H, W].
      offsets: [B, 2], pixels down and to the right.

    Returns:
      [B, H, W], image[i - offset_0, j - offset_1] at (i, j).
    """

    def weights(size: int, offset: Array) -> Array:
        """[B, size, size]: of every input position at every output position."""
        places = jnp.arange(size, dtype=images.dtype)
        sources = places[:, None] - offset[:, None, None]
        return jnp.maximum(1 - jnp.abs(sources - places), 0.0)

    rows = weights(images.shape[1], offsets[:, 0])
    columns = weights(images.shape[2], offsets[:, 1])
    return jnp.einsum("bik,bkl,bjl->bij", rows, images, columns)
