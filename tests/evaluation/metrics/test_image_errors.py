import jax
import numpy as np
import pytest
from toy_models import averaging_model, toy_split

from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import image_errors

MODALITIES = ("m0", "m1", "m2")


def by_definition(x, y):
    """SSIM of one channel [H, W]: a loop over windows."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for i in range(5, x.shape[0] - 5):
        for j in range(5, x.shape[1] - 5):
            a, b = (z[i - 5 : i + 6, j - 5 : j + 6] for z in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a = (weights * (a - mean_a) ** 2).sum()
            var_b = (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * both + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
    return np.mean(values)


def test_similarity_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    x = rng.random((2, 13, 15, 2))
    y = np.clip(x + 0.2 * rng.normal(size=x.shape), 0, 1)
    expected = [
        np.mean([by_definition(x[i, :, :, c], y[i, :, :, c]) for c in range(2)])
        for i in range(2)
    ]
    np.testing.assert_allclose(image_errors.structural_similarity(x, y), expected)
    np.testing.assert_allclose(image_errors.structural_similarity(x, x), 1)


def test_similarity_of_constant_images_in_closed_form():
    x, y = np.full((1, 12, 12, 1), 0.2), np.full((1, 12, 12, 1), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    found = image_errors.structural_similarity(x, y)
    np.testing.assert_allclose(found, expected)


def test_signal_to_noise():
    found = image_errors.signal_to_noise(np.array([1.0, 0.01, 0.0]))
    np.testing.assert_allclose(found, [0, 20, 20 * np.log10(255) + 10 * np.log10(12)])


def measure(shape, params=0.0, modalities=MODALITIES):
    images = np.random.default_rng(0).integers(0, 200, (20, *shape), dtype=np.uint8)
    split = toy_split(dict.fromkeys(modalities, images), np.zeros(20))
    model = averaging_model(modalities, shape, shift=5 / 255)
    data = EvaluationData(None, split, None, 8)
    return image_errors.image_errors(model, params, data, jax.random.key(0))


def test_errors_of_what_is_shifted_by_each_missing_modality():
    tags = measure((12, 12, 1))
    for name, missing in {"leave_one_out/m1": 1, "size_2": 1, "size_1": 2}.items():
        error = (5 * missing / 255) ** 2
        assert tags[f"image_errors/mse/{name}"] == pytest.approx(error, rel=1e-3)
        decibels = -10 * np.log10(error)
        assert tags[f"image_errors/psnr/{name}"] == pytest.approx(decibels, rel=1e-3)
    assert tags["image_errors/mse/reconstruction"] < 1e-12
    assert tags["image_errors/ssim/reconstruction"] == pytest.approx(1)
    names = ("size_1", "leave_one_out", "reconstruction")
    values = [tags[f"image_errors/ssim/{name}"] for name in names]
    assert values == sorted(values) and values[0] < values[1] < values[2]


def test_small_images_have_no_similarity():
    tags = measure((8, 8, 1), modalities=("m0", "m1"))
    reason = "SSIM takes windows of 11 x 11 pixels, m0 has 8 x 8"
    assert tags["image_errors/ssim/leave_one_out"].reason == reason
    assert np.isfinite(tags["image_errors/psnr/leave_one_out"])


def test_what_diverged_is_nan():
    values = measure((12, 12, 1), params=np.nan, modalities=("m0",)).values()
    assert len(values) == 6 and all(np.isnan(value) for value in values)
