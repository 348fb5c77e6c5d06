"""Dense layers, convolutions and their transposes, and how they are executed.

Only this module decides on the execution. A strided convolution and a transposed
convolution have three forms with the same parameters and the same values:

"lax"     XLA's convolution. Under vmap over weights (a sweep) it becomes a
          grouped convolution, and inside a loop on CPU the gradient of its kernel
          is far slower than outside.
"matmul"  One matrix product of the taps, which are strided slices. Fast under vmap,
          scan and map. Not used for stride 1, where it would move k*k times the bytes.
"mixed"   XLA's convolution for the transposed layer and for the derivative of the
          strided layer with respect to its input, which are fast in loops too; matrix
          products elsewhere. The fastest form on CPUs, unless members are mapped by
          vmap.
"auto"    "mixed" on CPUs, "matmul" elsewhere.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mmvae_jax.errors import UsageError
from mmvae_jax.types import Array, PRNGKey, Shape

FORMS = ("auto", "matmul", "lax", "mixed")
_NHWC = ("NHWC", "HWIO", "NHWC")
# (height, width).
_Pair = tuple[int, int]


def fan_in_uniform(fan_in: int) -> Callable[..., Array]:
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as in the published code.

    LeCun et al. (2012), "Efficient BackProp"; PyTorch's default for weights and biases
    of linear and convolutional layers.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key: PRNGKey, shape: Shape, dtype: DTypeLike = jnp.float32) -> Array:
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
      kernel_size: k, 3 or more.
      axes: axes to halve; along other axes, k and the stride are 1.
      use_bias: whether a bias is added.
      form: one of FORMS (module docstring).
    """

    features: int
    kernel_size: int = 3
    axes: tuple[int, ...] = (1, 2)
    use_bias: bool = True
    form: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to [B, ceil(H/2), ceil(W/2), features]."""
        _, height, width, channels = x.shape
        window, strides = _window(self.kernel_size, self.axes)
        init = fan_in_uniform(math.prod(window) * channels)
        kernel = self.param("kernel", init, (*window, channels, self.features))
        bias = self.param("bias", init, (self.features,)) if self.use_bias else 0.0
        form = choose_form(self.form)
        if form == "matmul":
            return _conv_by_matmul(x, kernel, strides) + bias
        if form == "mixed":
            return _mixed_conv(x, kernel, strides, (height, width)) + bias
        padding = _padding(window, strides, (height, width))
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=_NHWC
        )
        return y + bias


class StridedConvTranspose(nn.Module):
    """k x k transposed convolution, stride 2: the adjoint of StridedConv.

    Attributes:
      features: output channels.
      out_size: output height and width, 2 * size - 1 or 2 * size; one number for
        both, or one for each.
      kernel_size: k, 3 or more.
      axes: axes to double; along other axes, k and the stride are 1.
      use_bias: whether a bias is added.
      form: one of FORMS (module docstring).
    """

    features: int
    out_size: int | _Pair
    kernel_size: int = 3
    axes: tuple[int, ...] = (1, 2)
    use_bias: bool = True
    form: str = "auto"

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
        # PyTorch uses the output channels for the fan of a transposed layer.
        init = fan_in_uniform(math.prod(window) * self.features)
        kernel = self.param("kernel", init, (*window, channels, self.features))
        bias = self.param("bias", init, (self.features,)) if self.use_bias else 0.0
        form = choose_form(self.form)
        if form != "matmul":
            spread = _spread if form == "lax" else _mixed_transpose
            return spread(x, kernel, strides, out_size) + bias
        taps = x @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
        y = taps.reshape(*x.shape[:3], *window, self.features)
        for axis in (1, 2):
            y = _overlap_add(y, axis, 3) if axis in self.axes else jnp.squeeze(y, 3)
        return y[:, : out_size[0], : out_size[1]] + bias


def choose_form(form: str) -> str:
    """The form of a layer; the backend decides "auto".

    Raises:
      UsageError: the form is not in FORMS.
    """
    if form not in FORMS:
        raise UsageError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    if form != "auto":
        return form
    return "mixed" if jax.default_backend() == "cpu" else "matmul"


def _padding(
    window: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> list[tuple[int, int]]:
    """Zeros before and after: enough for the taps of output ceil(size / stride)."""
    lows = [(k - 1) // 2 for k in window]
    return [
        (low, max(0, s * (math.ceil(n / s) - 1) + k - low - n))
        for low, k, s, n in zip(lows, window, strides, sizes, strict=True)
    ]


def _patches(x: Array, window: Sequence[int], strides: Sequence[int]) -> Array:
    """The taps of every output: [B, H, W, C] to [B, h, w, k * k * C]."""
    padding = _padding(window, strides, x.shape[1:3])
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    ends = [n - k + 1 for n, k in zip(x.shape[1:3], window, strict=True)]
    taps = [
        x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(window[0])
        for j in range(window[1])
    ]
    return jnp.concatenate(taps, axis=-1)


def _conv_by_matmul(x: Array, kernel: Array, strides: _Pair) -> Array:
    """A strided convolution with kernel [k, k, C, F]."""
    patches = _patches(x, kernel.shape[:2], strides)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _spread(x: Array, kernel: Array, strides: _Pair, out_size: _Pair) -> Array:
    """The transposed convolution with kernel [k, k, C, F].

    Dilating the input and flipping the taps turns it into a plain convolution.
    """
    padding = [
        (k - 1 - (k - 1) // 2, o - s * n + (k - 1) // 2 + 1) if s > 1 else (0, 0)
        for k, s, n, o in zip(
            kernel.shape[:2], strides, x.shape[1:3], out_size, strict=True
        )
    ]
    return jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        padding,
        lhs_dilation=strides,
        dimension_numbers=_NHWC,
    )


def _kernel_gradient(patches: Array, g: Array) -> Array:
    """patches [B, h, w, K] and g [B, h, w, F] to [K, F].

    On CPUs, XLA makes a transposed copy of the first operand of this product, which
    should be the smaller one.
    """
    axes = ((0, 1, 2), (0, 1, 2))
    if patches.shape[-1] > g.shape[-1]:
        return jax.lax.dot_general(g, patches, (axes, ((), ()))).T
    return jax.lax.dot_general(patches, g, (axes, ((), ())))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mixed_conv(x: Array, kernel: Array, strides: _Pair, sizes: _Pair) -> Array:
    """A strided convolution of x [B, *sizes, C] with kernel [k, k, C, F]."""
    return _conv_by_matmul(x, kernel, strides)


def _mixed_conv_fwd(
    x: Array, kernel: Array, strides: _Pair, sizes: _Pair
) -> tuple[Array, tuple[Array, Array]]:
    patches = _patches(x, kernel.shape[:2], strides)
    return patches @ kernel.reshape(-1, kernel.shape[-1]), (patches, kernel)


def _mixed_conv_bwd(
    strides: _Pair, sizes: _Pair, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    patches, kernel = residuals
    dx = _spread(g, kernel.transpose(0, 1, 3, 2), strides, sizes)
    return dx, _kernel_gradient(patches, g).reshape(kernel.shape)


_mixed_conv.defvjp(_mixed_conv_fwd, _mixed_conv_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mixed_transpose(x: Array, kernel: Array, strides: _Pair, out_size: _Pair) -> Array:
    """`_spread`, with derivatives as products with patches of the output's gradient."""
    return _spread(x, kernel, strides, out_size)


def _mixed_transpose_fwd(
    x: Array, kernel: Array, strides: _Pair, out_size: _Pair
) -> tuple[Array, tuple[Array, Array]]:
    return _spread(x, kernel, strides, out_size), (x, kernel)


def _mixed_transpose_bwd(
    strides: _Pair, out_size: _Pair, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    patches = _patches(g, kernel.shape[:2], strides)
    adjoint = kernel.transpose(0, 1, 3, 2)
    dx = patches @ adjoint.reshape(-1, x.shape[-1])
    gradient = _kernel_gradient(patches, x).reshape(adjoint.shape)
    return dx, gradient.transpose(0, 1, 3, 2)


_mixed_transpose.defvjp(_mixed_transpose_fwd, _mixed_transpose_bwd)


def _window(kernel_size: int, axes: tuple[int, ...]) -> tuple[_Pair, _Pair]:
    """Kernel size and stride along height and width."""
    high, wide = (kernel_size if axis in axes else 1 for axis in (1, 2))
    down, across = (2 if axis in axes else 1 for axis in (1, 2))
    return (high, wide), (down, across)


def _overlap_add(taps: Array, axis: int, tap_axis: int) -> Array:
    """Sums k taps along one axis at output positions 2 i + tap - (k - 1) // 2.

    Uses pads, additions, and interleaving of even and odd positions, no scatter.
    """
    num, size = taps.shape[tap_axis], taps.shape[axis]

    def shifted(tap: Array, by: int) -> Array:
        """Shifts a tap by `by` positions, with zero padding."""
        if by == 0:
            return tap
        padding = [(0, 0)] * tap.ndim
        padding[axis] = (max(by, 0), max(-by, 0))
        start = max(-by, 0)
        return jax.lax.slice_in_dim(
            jnp.pad(tap, padding), start, start + size, axis=axis
        )

    sums: list[Any] = [0.0, 0.0]
    for i, tap in enumerate(jnp.split(taps, num, tap_axis)):
        by, parity = divmod(i - (num - 1) // 2, 2)
        sums[parity] += shifted(jnp.squeeze(tap, tap_axis), by)
    pairs = jnp.stack(sums, axis=axis + 1)
    return pairs.reshape(*pairs.shape[:axis], 2 * size, *pairs.shape[axis + 2 :])


def conv3x3(features: int, fan_in: int, name: str | None = None) -> nn.Conv:
    """3 x 3 convolution of stride 1 over `fan_in` channels, size kept."""
    init = fan_in_uniform(9 * fan_in)
    return nn.Conv(
        features, (3, 3), padding=1, kernel_init=init, bias_init=init, name=name
    )


class ResidualBlock(nn.Module):
    """Pre-activation residual block without normalisation, branch scaled by 0.1.

    The block of the ResNets in the code that followed the paper: two 3 x 3 convolutions
    after leaky ReLUs, min(C_in, C_out) hidden channels, and a 1 x 1 convolution without
    bias as the shortcut if the number of channels changes.
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
