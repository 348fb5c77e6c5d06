import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmvae_jax.errors import UsageError
from mmvae_jax.networks import layers


def normal(seed, *shape):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def values_and_gradients(make, x):
    """Outputs and gradients, with respect to parameters and input, of all forms."""
    params = make("lax").init(jax.random.key(0), x)

    @jax.jit
    def all_forms(params, x):
        def result(form):
            def loss(params, x):
                y = make(form).apply(params, x)
                weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32))
                return jnp.sum(y * weights.reshape(y.shape)), y

            (_, y), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
            return y, gradient

        return [result(form) for form in ("matmul", "mixed", "lax")]

    return all_forms(params, x)


def assert_trees_close(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other
    )


@pytest.mark.parametrize("kernel_size", [3, 4])
@pytest.mark.parametrize("size", [4, 5, 14, 15])
def test_the_forms_of_the_convolution_agree(kernel_size, size):
    def make(form):
        return layers.StridedConv(3, kernel_size, form=form)

    *ours, xla = values_and_gradients(make, normal(1, 2, size, size, 2))
    assert xla[0].shape == (2, math.ceil(size / 2), math.ceil(size / 2), 3)
    for one in ours:
        assert_trees_close(one, xla)


@pytest.mark.parametrize(("size", "out_size"), [(2, 4), (3, 5), (7, 14), (8, 15)])
def test_the_forms_of_the_transposed_convolution_agree(size, out_size):
    def make(form):
        return layers.StridedConvTranspose(3, out_size, form=form)

    *ours, xla = values_and_gradients(make, normal(2, 2, size, size, 2))
    assert xla[0].shape == (2, out_size, out_size, 3)
    for one in ours:
        assert_trees_close(one, xla)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(1, 2), (2,)])
@pytest.mark.parametrize("size", [5, 8])
def test_the_forms_agree_for_four_taps_and_one_axis(axes, size):
    half = math.ceil(size / 2)
    small = (half if 1 in axes else size, half)
    options = {"kernel_size": 4, "axes": axes, "use_bias": False}

    def conv(form):
        return layers.StridedConv(3, form=form, **options)

    def transpose(form):
        return layers.StridedConvTranspose(3, (size, size), form=form, **options)

    for make, shape, expected in (
        (conv, (size, size), small),
        (transpose, small, (size, size)),
    ):
        *ours, xla = values_and_gradients(make, normal(7, 2, *shape, 2))
        assert xla[0].shape == (2, *expected, 3)
        for one in ours:
            assert_trees_close(one, xla)


@pytest.mark.parametrize(
    "kernel_size", [*(pytest.param(k, marks=pytest.mark.slow) for k in (4, 5)), 6]
)
@pytest.mark.parametrize("axes", [(1, 2), (2,)])
@pytest.mark.parametrize("form", ["matmul", "mixed", "lax"])
def test_more_transposed_taps_are_the_adjoint(form, axes, kernel_size):
    rows = 3 if 1 in axes else 6
    window = (kernel_size if 1 in axes else 1, kernel_size)
    x, y = normal(8, 1, 6, 7, 2), normal(9, 1, rows, 4, 5)
    kernel = normal(10, *window, 2, 5)
    options = {
        "kernel_size": kernel_size,
        "axes": axes,
        "use_bias": False,
        "form": form,
    }
    forward = layers.StridedConv(5, **options).apply({"params": {"kernel": kernel}}, x)
    backward = layers.StridedConvTranspose(2, (6, 7), **options).apply(
        {"params": {"kernel": kernel.transpose(0, 1, 3, 2)}}, y
    )
    inner_products = np.vdot(forward, y), np.vdot(x, backward)
    assert inner_products[0] == pytest.approx(inner_products[1], rel=1e-4)


@pytest.mark.parametrize("kernel_size", [3, 4, 6])
def test_the_convolution_by_its_definition(kernel_size):
    """y[i] = sum_k x[2 i + k - low] w[k] with zeros outside, low = (k - 1) // 2."""
    shape = (6, 9)
    x = normal(3, 1, *shape, 2)
    layer = layers.StridedConv(2, kernel_size)
    params = layer.init(jax.random.key(1), x)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    low = (kernel_size - 1) // 2
    out = [math.ceil(n / 2) for n in shape]
    expected = np.zeros((1, *out, 2)) + np.asarray(bias)
    padded = np.zeros((1, shape[0] + 8, shape[1] + 8, 2))
    padded[:, low : low + shape[0], low : low + shape[1]] = x
    for i in range(out[0]):
        for j in range(out[1]):
            rows, columns = slice(2 * i, 2 * i + kernel_size), slice(2 * j, None)
            window = padded[0, rows, columns][:, :kernel_size]
            expected[0, i, j] += np.einsum("klc,klcf->f", window, kernel)
    np.testing.assert_allclose(layer.apply(params, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("form", ["matmul", "mixed", "lax"])
def test_the_transposed_convolution_is_the_adjoint(size, form):
    """<conv(x), y> = <x, transposed(y)> with the channels of the kernel swapped."""
    x, kernel = normal(4, 1, size, size, 2), normal(5, 3, 3, 2, 5)
    y = normal(6, 1, math.ceil(size / 2), math.ceil(size / 2), 5)
    forward = layers.StridedConv(5, 3, form=form).apply(
        {"params": {"kernel": kernel, "bias": jnp.zeros(5)}}, x
    )
    backward = layers.StridedConvTranspose(2, size, form=form).apply(
        {"params": {"kernel": kernel.transpose(0, 1, 3, 2), "bias": jnp.zeros(2)}}, y
    )
    inner_products = np.vdot(forward, y), np.vdot(x, backward)
    assert inner_products[0] == pytest.approx(inner_products[1], rel=1e-4)


def test_all_sizes():
    key = jax.random.key(0)
    for size in range(4, 17):
        half = math.ceil(size / 2)
        x = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
        for kernel_size in (3, 4, 6):
            layer = layers.StridedConv(2, kernel_size)
            y, _ = jax.eval_shape(layer.init_with_output, key, x)
            assert y.shape == (1, half, half, 2)
        back, _ = jax.eval_shape(
            layers.StridedConvTranspose(1, size).init_with_output, key, y
        )
        assert back.shape == x.shape


def test_an_unknown_form():
    with pytest.raises(UsageError, match="unknown form 'gemm'; choose one of auto, "):
        x = normal(1, 1, 4, 4, 1)
        layers.StridedConv(2, form="gemm").init(jax.random.key(0), x)


@pytest.mark.parametrize("out_size", [4, 7])
def test_impossible_sizes_of_the_transposed_convolution(out_size):
    with pytest.raises(ValueError, match=f"cannot map size 3 to size {out_size}"):
        layers.StridedConvTranspose(1, out_size).init(
            jax.random.key(0), jnp.zeros((1, 3, 3, 1))
        )


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [
        (layers.StridedConv(64, 3), (1, 4, 4, 8), 9 * 8),
        (layers.StridedConv(64, 4), (1, 4, 4, 8), 16 * 8),
        (layers.StridedConvTranspose(64, 8), (1, 4, 4, 8), 9 * 64),
        (layers.conv3x3(64, 8), (1, 4, 4, 8), 9 * 8),
        (layers.dense(64, 32), (1, 32), 32),
    ],
)
def test_initial_parameters_fill_the_published_bounds(layer, shape, fan_in):
    params = layer.init(jax.random.key(0), jnp.zeros(shape))["params"]
    bound = 1 / math.sqrt(fan_in)
    for name, least in (("kernel", 0.99), ("bias", 0.85)):
        values = np.asarray(params[name])
        assert least * bound < np.abs(values).max() <= bound
        assert values.min() < -0.8 * bound and values.max() > 0.8 * bound
    assert params["kernel"].var() == pytest.approx(bound**2 / 3, rel=0.1)


def test_halving_averages_and_counts_the_padding():
    ones = layers.halve(jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_allclose(ones, np.array([[4, 6], [6, 9]]) / 9, rtol=1e-6)
    x = normal(7, 1, 5, 5, 2)
    y = layers.halve(x)
    assert y.shape == (1, 3, 3, 2)
    np.testing.assert_allclose(y[0, 1, 1], x[0, 1:4, 1:4].mean((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("out_size", [3, 4])
def test_doubling_repeats_pixels(out_size):
    x = normal(8, 1, 2, 2, 3)
    y = layers.double(x, out_size)
    assert y.shape == (1, out_size, out_size, 3)
    for i in range(out_size):
        for j in range(out_size):
            np.testing.assert_array_equal(y[0, i, j], x[0, i // 2, j // 2])


def test_the_residual_branch_is_scaled_by_a_tenth():
    x = normal(9, 1, 4, 4, 1)
    block = layers.ResidualBlock(1)
    params = block.init(jax.random.key(0), x)
    # Kernels that pass the centre pixel through leave the two leaky ReLUs.
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    params = jax.tree.map(
        lambda leaf: centre if leaf.ndim == 4 else jnp.zeros_like(leaf), params
    )
    expected = x + 0.1 * nn.leaky_relu(nn.leaky_relu(x, 0.2), 0.2)
    np.testing.assert_allclose(block.apply(params, x), expected, rtol=1e-6)


@pytest.mark.parametrize(("channels", "features"), [(4, 4), (4, 6), (6, 4)])
def test_the_residual_block_has_a_shortcut_where_channels_change(channels, features):
    x = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
    y, params = jax.eval_shape(
        layers.ResidualBlock(features).init_with_output, jax.random.key(0), x
    )
    assert y.shape == (1, 4, 4, features)
    hidden = min(channels, features)
    expected = 9 * channels * hidden + hidden + 9 * hidden * features + features
    expected += channels * features if channels != features else 0
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
