"""Errors of single images: MSE, PSNR and SSIM against the real image.

For reconstructions, and for images generated given other modalities. The latter make
sense if modalities determine each other (a depth map, another contrast of a scan). If
they do not, a good draw has a large error.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from mmvae_jax.data.dataset import to_unit_interval
from mmvae_jax.evaluation import conditionals
from mmvae_jax.evaluation.draws import draws_of
from mmvae_jax.evaluation.metric import EvaluationData, Undefined, images_of, mean
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

MEASURES = ("mse", "psnr", "ssim")
# Wang et al. (2004): windows of 11 x 11 pixels, weighted by a Gaussian.
_RADIUS, _SIGMA = 5, 1.5
_CONSTANTS = (0.01**2, 0.03**2)  # (K L)^2 of values in [0, L], L = 1
# Mean squared error of rounding to 8 bits.
_LEAST_ERROR = 1 / 12 / 255**2


def image_errors(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_images: int = 2048,
) -> dict[str, float]:
    """Mean MSE, PSNR and SSIM of images for each condition.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split.
      key: random key of the subsets and of the posterior samples, one an example.
      num_images: images of each condition; all, if there are fewer.

    Returns:
      image_errors/mse/reconstruction, mean over images of the next;
      image_errors/mse/reconstruction/m0, of m0 given all observed modalities;
      image_errors/mse/leave_one_out and /m0, of m0 given all other modalities;
      image_errors/mse/size_1, ..., given a random subset of others of that size.
      Likewise psnr, in dB, and ssim, in [-1, 1]. MSE: of values in [0, 1], lower is
      better; of the others, higher is. NaN if a parameter is not finite, Undefined
      if no example has what is needed or an image is too small for SSIM.

    Raises:
      UsageError: no modality has images.
    """
    names = images_of(data.test, "image_errors")
    draws = draws_of(model, params, data, key)
    found: dict[str, dict[tuple[str, str], float]] = {name: {} for name in MEASURES}
    for m in names:
        for one in conditionals.conditions(data.test, m):
            place = (one.name, m)
            if not len(one.rows):
                why = conditionals.no_example(one)
                found |= {name: own | {place: why} for name, own in found.items()}
                continue
            images = draws.conditional(one, num_images).values()
            real = to_unit_interval(data.test.modalities[m][one.rows[:num_images]])
            pair = np.asarray(real, np.float64), np.asarray(images, np.float64)
            errors = squared_errors(*pair)
            found["mse"][place] = mean(errors)
            found["psnr"][place] = mean(signal_to_noise(errors))
            found["ssim"][place] = _mean_similarity(*pair, m)
    tags: dict[str, float] = {}
    for name, values in found.items():
        tag = f"image_errors/{name}"
        tags |= conditionals.summarise(tag, values, len(model.modalities))
    return tags


def squared_errors(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean squared error of each image, [N], of images [N, H, W, C]."""
    return ((x - y) ** 2).reshape(len(x), -1).mean(axis=1)


def signal_to_noise(errors: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, in dB, from `squared_errors` [N].

    -10 log10(MSE) of values in [0, 1]. The MSE is at least that of rounding to 8 bits,
    so that a copy has 58.9 dB.
    """
    return -10 * np.log10(np.maximum(errors, _LEAST_ERROR))


def _mean_similarity(x: np.ndarray, y: np.ndarray, name: str) -> float:
    """Mean of `structural_similarity`; Undefined for small images."""
    size = 2 * _RADIUS + 1
    if min(x.shape[1:3]) < size:
        return Undefined(
            f"SSIM takes windows of {size} x {size} pixels, {name} has "
            f"{x.shape[1]} x {x.shape[2]}"
        )
    return mean(structural_similarity(x, y))


def structural_similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Structural similarity of each pair of images.

    Wang et al. (2004), Eq. 13 with the Gaussian window of their Sec. III.C: the mean
    over windows within the image, and over channels.

    Args:
      x: float64 [N, H, W, C] in [0, 1], at least 11 x 11 pixels.
      y: likewise.

    Returns:
      [N], values in [-1, 1], 1 for the same image.
    """

    def blur(images: np.ndarray) -> np.ndarray:
        sigma, radius = (0, _SIGMA, _SIGMA, 0), (0, _RADIUS, _RADIUS, 0)
        inside = slice(_RADIUS, -_RADIUS)
        return gaussian_filter(images, sigma, radius=radius)[:, inside, inside]

    mean_x, mean_y = blur(x), blur(y)
    variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance, contrast = _CONSTANTS
    values = (2 * mean_x * mean_y + luminance) * (2 * covariance + contrast)
    values /= (mean_x**2 + mean_y**2 + luminance) * (variances + contrast)
    return values.reshape(len(x), -1).mean(axis=1)
