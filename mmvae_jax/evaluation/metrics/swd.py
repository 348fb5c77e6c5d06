"""Sliced Wasserstein distance between generated and real image patches.

Karras et al. (2018), "Progressive Growing of GANs", Sec. 5: 7x7 patches at every
level of a Laplacian pyramid, so that each level compares one band of frequencies. No
network is needed. Unlike theirs, the real images normalise both sets by default, see
`normalise`. Everything is NumPy, float32 except sums.
"""

import functools

import jax
import numpy as np

from mmvae_jax.data.dataset import to_unit_interval
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.draws import draws_of
from mmvae_jax.evaluation.metric import (
    EvaluationData,
    images_of,
    mean,
    too_few_observed,
)
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

_PATCH_SIZE = 7
NORMALISATIONS = ("real", "own")
# Smallest divisor, a quarter of an 8-bit grey level: fainter detail is not scaled up.
_MIN_STD = 1e-3


def swd(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_images: int = 2048,
    patches_per_image: int = 16,
    num_projections: int = 128,
    normalisation: str = "real",
) -> dict[str, float]:
    """Sliced Wasserstein distance of prior samples to real test images.

    Only images are compared, and only observed ones.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split.
      key: random key of the images, the patches and the projections.
      num_images: images of each kind; all test images, if there are fewer.
      patches_per_image: patches at every level, or all if there are fewer (published:
        128, of larger images).
      num_projections: number of random directions (published: 512).
      normalisation: see `normalise`.

    Returns:
      swd/m0, ..., mean over the levels of the pyramid, and swd, their mean; times
      1e3 as usual; lower is better; NaN if a parameter is not finite, Undefined
      if all images are missing.

    Raises:
      UsageError: `normalisation` is unknown, or no modality has images.
    """
    if normalisation not in NORMALISATIONS:
        raise UsageError(
            f"swd normalisation {normalisation!r} is none of "
            f"{', '.join(NORMALISATIONS)}"
        )
    row_key, prior_key, patch_key = jax.random.split(key, 3)
    modalities = images_of(data.test, "swd")
    num_test = data.test.num_examples
    num = min(num_images, num_test)
    rows = np.asarray(jax.random.choice(row_key, num_test, (num,), replace=False))
    draws = draws_of(model, params, data, prior_key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(patch_key)).ravel())
    taken = data.test.take(rows)
    tags: dict[str, float] = {}
    for name in modalities:
        undefined = too_few_observed(taken, name)
        if undefined is not None:
            tags[f"swd/{name}"] = undefined
            continue
        kept = taken.is_observed(name)
        distances = level_distances(
            to_unit_interval(taken.modalities[name][kept]),
            draws.prior(name, num).values()[kept],
            rng,
            patches_per_image,
            num_projections,
            normalisation,
        )
        tags[f"swd/{name}"] = 1e3 * float(np.mean(distances))
    return {"swd": mean(tags.values()), **tags}


def level_distances(
    real: np.ndarray,
    generated: np.ndarray,
    rng: np.random.Generator,
    patches_per_image: int = 16,
    num_projections: int = 128,
    normalisation: str = "real",
) -> list[float]:
    """Sliced Wasserstein distance at every level of the Laplacian pyramid.

    All images of both sets have patches at the same positions: other positions would
    only add noise to the difference.

    Args:
      real: float32 [N, H, W, C] in [0, 1].
      generated: float32 [N, H, W, C] in [0, 1].
      rng: generator of the patches and projections.
      patches_per_image: patches at every level, or all if there are fewer.
      num_projections: number of random directions.
      normalisation: see `normalise`.

    Returns:
      Distances in standard deviations of a channel, from fine to coarse.

    Raises:
      ValueError: the two sets differ in shape.
    """
    if real.shape != generated.shape:
        raise ValueError(f"shapes differ: {real.shape} and {generated.shape}")
    distances = []
    for level in zip(
        laplacian_pyramid(real), laplacian_pyramid(generated), strict=True
    ):
        corners = patch_corners(level[0].shape[1:3], patches_per_image, rng)
        real_patches, generated_patches = (patches(x, corners) for x in level)
        reference = real_patches if normalisation == "real" else generated_patches
        generated_patches = normalise(generated_patches, reference)
        real_patches = normalise(real_patches, real_patches)
        directions = rng.standard_normal((num_projections, real_patches[0].size))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        distances.append(
            sliced_wasserstein(real_patches, generated_patches, directions)
        )
    return distances


def laplacian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """Band-pass levels, from fine to coarse; the last one is the remaining low-pass.

    Burt & Adelson (1983). Each level has half the size of the previous one, rounded up,
    while a patch fits; smaller images are padded to one patch.

    Args:
      images: float32 [N, H, W, C].

    Returns:
      Levels, float32 [N, h, w, C].
    """
    missing = [max(_PATCH_SIZE - size, 0) for size in images.shape[1:3]]
    widths = [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)]
    images = np.pad(images, widths, mode="edge")
    levels = [images]
    while (min(levels[-1].shape[1:3]) + 1) // 2 >= _PATCH_SIZE:
        fine = levels[-1]
        coarse = _blur(fine)[:, ::2, ::2]
        enlarged = np.zeros_like(fine)
        enlarged[:, ::2, ::2] = 4.0 * coarse  # three of four pixels are 0
        levels[-1] = fine - _blur(enlarged)
        levels.append(coarse)
    return levels


def patch_corners(
    size: tuple[int, int], num: int, rng: np.random.Generator
) -> np.ndarray:
    """Top left corners [P, 2] of P different patches, P = num or all."""
    height, width = (n - _PATCH_SIZE + 1 for n in size)
    places = rng.permutation(height * width)[:num]
    return np.stack(np.unravel_index(places, (height, width)), axis=-1)


def patches(images: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Patches [N * P, 7, 7, C] of images [N, H, W, C] at corners [P, 2]."""
    return np.concatenate(
        [images[:, y : y + _PATCH_SIZE, x : x + _PATCH_SIZE] for y, x in corners]
    )


def normalise(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Normalises patches by the mean and deviation of each channel of a reference.

    The paper normalises each set by itself ("own"), which hides a constant shift or
    gain of a channel, and almost hides mild blur. With the real patches as the
    reference of both sets ("real"), wrong colours and missing contrast count, and the
    distances of different models have the same unit.

    Args:
      values: float32 [N, 7, 7, C].
      reference: likewise.

    Returns:
      float32 [N, 7, 7, C].
    """
    mean = reference.mean(axis=(0, 1, 2), dtype=np.float64)
    std = reference.std(axis=(0, 1, 2), dtype=np.float64)
    scale = 1.0 / np.maximum(std, _MIN_STD)
    return (values - mean.astype(np.float32)) * scale.astype(np.float32)


def sliced_wasserstein(
    first: np.ndarray, second: np.ndarray, directions: np.ndarray
) -> float:
    """Mean over directions of the 1-Wasserstein distance of the projections.

    Rabin et al. (2011). In one dimension the optimal transport is between values of the
    same rank.

    Args:
      first: float [N, ...], flattened to vectors of length F.
      second: float [N, ...], likewise.
      directions: float [P, F], unit vectors.

    Returns:
      A number >= 0, in the unit of the vectors.
    """
    directions = directions.astype(np.float32)
    ranked = [
        np.sort(directions @ vectors.reshape(len(vectors), -1).T, axis=1)
        for vectors in (first, second)
    ]
    return float(np.abs(ranked[0] - ranked[1]).mean(dtype=np.float64))


def _blur(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] filtered with the binomial kernel of width 5."""
    for axis in (1, 2):
        size = images.shape[axis]
        widths = [(2, 2) if a == axis else (0, 0) for a in range(4)]
        # Mirrored without the edge pixel, so that the zeros of an enlarged level keep
        # their pattern and a constant image stays constant.
        padded = np.moveaxis(np.pad(images, widths, mode="reflect"), axis, 0)
        parts = [
            np.float32(weight) * padded[shift : shift + size]
            for shift, weight in enumerate((1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16))
        ]
        images = np.moveaxis(functools.reduce(np.add, parts), 0, axis)
    return images
