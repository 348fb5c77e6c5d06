"""The KL terms of Eq. 2 over all subsets, in a fast and a plain form.

Posteriors here are products of experts; `posteriors` has the other poolings.
`plain_mixture_kl` is the equation in two lines. `mixture_kl` computes the same value
and gradient with less memory, in blocks and with a hand-written gradient.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax.mathematics import distributions
from mmvae_jax.mathematics.subsets import SubsetMixture
from mmvae_jax.types import AnyArray, Array, Gaussian

# Cache of one CPU core, in bytes, for the arrays of all subsets in a block.
CACHE_BYTES = 2**20


def subset_posteriors(experts: Gaussian, mixture: SubsetMixture) -> Gaussian:
    """The posteriors of all S subsets, fields [S, B, D], in one product of matrices.

    The values equal `product_of_experts` for every row of masks. Each expert's
    precision is exponentiated once instead of once per subset (`_scaled_precisions`);
    the mask matrix sums the precisions of each subset.

    Args:
      experts: fields [M, B, D].
      mixture: S subsets of M modalities, not traced.
    """
    masks, prior = _experts_of(mixture, experts.mean.dtype)
    centre, precision, prior_precision = _scaled_precisions(experts)
    total = _subset_sums(masks, precision) + prior * prior_precision
    mean = _subset_sums(masks, precision * experts.mean) / total
    return Gaussian(mean, -(centre + jnp.log(total)))


def plain_mixture_kl(
    experts: Gaussian, mixture: SubsetMixture, weights: Array
) -> Array:
    """The KL terms of Eq. 2 as in the paper; the reference for `mixture_kl`.

    sum_A omega_A KL(q(z|x_A) || N(0, I)) of Daunhawer et al. (2022). It has the
    arguments and the result of `mixture_kl`, and keeps all posteriors in memory.
    """
    terms = distributions.kl_to_standard_gaussian(subset_posteriors(experts, mixture))
    return jnp.sum(weights * terms, axis=0)


def mixture_kl(experts: Gaussian, mixture: SubsetMixture, weights: AnyArray) -> Array:
    """The KL terms of Eq. 2, sum_A omega_A KL(q(z|x_A) || N(0, I)), in fast form.

    Computes the value and gradient of `plain_mixture_kl`, which moves the posteriors of
    all subsets, and a dozen arrays of their size, through memory: for the 31 subsets of
    5 modalities that takes a fifth of the time of the networks. Here, latent dimensions
    are processed in blocks whose arrays stay in the cache (on CPUs), and a hand-written
    gradient is computed together with the value, so that only arrays of the experts'
    size are kept for the backward pass.

    Args:
      experts: fields [M, B, D].
      mixture: S subsets of M modalities, not traced.
      weights: [S, 1] or [S, B]; constants without a gradient.

    Returns:
      float [B], nats.
    """
    centre, precision, prior_precision = _scaled_precisions(experts)
    sums = _kl_sums(
        precision,
        precision * experts.mean,
        centre,
        prior_precision,
        jnp.asarray(weights),
        *_experts_of(mixture, experts.mean.dtype),
    )
    return 0.5 * jnp.sum(sums, axis=-1)


@jax.custom_vjp
def _kl_sums(precision: Array, product: Array, *constants: Array) -> Array:
    """Twice the weighted KL terms of each dimension, [B, D]; see `_kl_and_gradient`."""
    return _kl_and_gradient(precision, product, *constants)[0]


def _kl_sums_forward(*args: Array) -> tuple[Array, tuple[Array, Array]]:
    value, by_precision, by_product = _kl_and_gradient(*args)
    return value, (by_precision, by_product)


def _kl_sums_backward(gradient: tuple[Array, Array], cotangent: Array) -> tuple:
    # Masks, weights and the scale of the precisions are constants.
    return (*(cotangent * part for part in gradient), *(None,) * 5)


_kl_sums.defvjp(_kl_sums_forward, _kl_sums_backward)


def _kl_and_gradient(
    precision: Array,
    product: Array,
    centre: Array,
    prior_precision: Array,
    weights: Array,
    masks: Array,
    prior: Array,
) -> tuple[Array, Array, Array]:
    """sum_A omega_A (mean^2 + variance - 1 - log variance) of each dimension.

    Args:
      precision: scaled precisions of the experts, [M, B, D].
      product: precision times mean, [M, B, D].
      centre: log of the scale of the precisions, [B, D].
      prior_precision: scaled precision of the prior, [B, D].
      weights: [S, 1] or [S, B].
      masks: 1 for the experts of a subset, 0 for others, [S, M].
      prior: 1 if the prior is an expert of the subset, else 0, [S, 1, 1].

    Returns:
      The sums [B, D], and their gradients with respect to the first two arguments.
    """
    weights = weights[:, :, None]

    def block(fields: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        precision, product, centre, prior_precision = fields
        total = _subset_sums(masks, precision) + prior * prior_precision
        scale = 1 / total
        mean = _subset_sums(masks, product) * scale
        variance = jnp.exp(-centre) * scale
        squares = jnp.square(mean)
        sums = weights * (squares + variance - 1 + centre + jnp.log(total))
        weighted = weights * scale
        by_total = weighted * (1 - variance - 2 * squares)
        return (
            jnp.sum(sums, axis=0),
            _subset_sums(masks.T, by_total),
            _subset_sums(masks.T, 2 * weighted * mean),
        )

    *_, dim = fields_shape = (len(masks), *centre.shape)
    num_blocks = _num_blocks(math.prod(fields_shape) * centre.dtype.itemsize, dim)
    fields = (precision, product, centre, prior_precision)
    if num_blocks == 1:
        return block(fields)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], num_blocks, -1), -2, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], dim)

    return jax.tree.map(join, jax.lax.map(block, jax.tree.map(split, fields)))


def _num_blocks(num_bytes: int, dim: int) -> int:
    """Number of blocks of the dimensions, so that a block fits the cache; divides dim.

    1 if dim has no suitable divisor (a prime, for instance), and on accelerators, where
    consecutive blocks are slower than the memory traffic.
    """
    if jax.default_backend() != "cpu":
        return 1
    least = -(-num_bytes // CACHE_BYTES)
    fitting = [n for n in range(least, 4 * least + 1) if dim % n == 0]
    return fitting[0] if fitting else 1


def _scaled_precisions(experts: Gaussian) -> tuple[Array, Array, Array]:
    """Precisions divided by the middle of their range, so that they can be added.

    Log-precisions are clipped to 40 from the middle, so that gradients stay finite in
    float32; those of encoders are within 20.

    Args:
      experts: fields [M, B, D].

    Returns:
      (the middle log-precision of each dimension, [B, D]; the scaled precisions of the
      experts, [M, B, D]; that of the prior, [B, D]).
    """
    log_precision = -experts.log_variance
    low = jnp.minimum(jnp.min(log_precision, axis=0), 0.0)
    high = jnp.maximum(jnp.max(log_precision, axis=0), 0.0)
    centre = jax.lax.stop_gradient((low + high) / 2)
    precision = jnp.exp(jnp.clip(log_precision - centre, -40.0, 40.0))
    return centre, precision, jnp.exp(jnp.clip(-centre, -40.0, 40.0))


def _subset_sums(masks: Array, values: Array) -> Array:
    """Sums over the members of each subset: [S, M], [M, ...] -> [S, ...]."""
    # Full float32, also on devices that round the factors of products by default.
    return jnp.tensordot(masks, values, axes=1, precision="highest")


def _experts_of(mixture: SubsetMixture, dtype: Any) -> tuple[Array, Array]:
    """The experts of each subset as 0 or 1: modalities [S, M], the prior [S, 1, 1].

    Raises:
      ValueError: the pooling is not the product.
    """
    if mixture.pooling.name != "product":
        raise ValueError(
            f"subset_kl has products of experts alone, got {mixture.pooling}; "
            "posteriors.subset_posteriors has the others"
        )
    prior = jnp.asarray(mixture.prior_expert, dtype)[:, None, None]
    return jnp.asarray(mixture.masks, dtype), prior
