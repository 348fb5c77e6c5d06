import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from toy_models import label_classifier, replaying_model, toy_model, toy_split

from mmvae_jax.evaluation.metric import EvaluationData, Reader
from mmvae_jax.evaluation.metrics import frechet

IMAGES = np.random.default_rng(0).integers(0, 120, (30, 2, 2, 1), dtype=np.uint8)
MODALITIES = ("m0", "m1")


def random_covariance(rng, size, rank):
    factor = rng.standard_normal((size, rank))
    return factor @ factor.T / rank


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_zero_for_identical(rng):
    for rank in (3, 40):
        mean, cov = rng.standard_normal(20), random_covariance(rng, 20, rank)
        assert frechet.frechet_distance(mean, cov, mean, cov) < 1e-10


def test_symmetric(rng):
    first = rng.standard_normal(8), random_covariance(rng, 8, 20)
    second = rng.standard_normal(8), random_covariance(rng, 8, 5)
    forward = frechet.frechet_distance(*first, *second)
    assert forward > 1
    assert frechet.frechet_distance(*second, *first) == pytest.approx(forward)


def test_commuting_gaussians_in_closed_form(rng):
    # |m1 - m2|^2 plus the squared differences of the standard deviations.
    basis, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    std1, std2 = rng.random((2, 6)) + 0.1
    mean1, mean2 = rng.standard_normal((2, 6))
    value = frechet.frechet_distance(
        mean1, (basis * std1**2) @ basis.T, mean2, (basis * std2**2) @ basis.T
    )
    expected = ((mean1 - mean2) ** 2).sum() + ((std1 - std2) ** 2).sum()
    assert value == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_matrix_square_root(seed):
    rng = np.random.default_rng(seed)
    cov1, cov2 = (random_covariance(rng, 10, 50) for _ in range(2))
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    expected = np.trace(cov1 + cov2 - 2 * root.real)
    value = frechet.frechet_distance(np.zeros(10), cov1, np.zeros(10), cov2)
    assert value == pytest.approx(expected, rel=1e-8)


def test_rank_deficient_covariances_in_closed_form():
    # Two lines at right angles share nothing; a line with itself, all but scale.
    line1, line2 = np.zeros((2, 50, 50))
    line1[0, 0], line2[1, 1] = 9.0, 4.0
    zero = np.zeros(50)
    assert frechet.frechet_distance(zero, line1, zero, line2) == pytest.approx(13)
    assert frechet.frechet_distance(zero, line1, zero, line1 / 9) == pytest.approx(4)


def test_negative_eigenvalues_from_rounding_are_harmless(rng):
    cov = random_covariance(rng, 40, 3)
    noise = 1e-15 * rng.standard_normal((40, 40))
    value = frechet.frechet_distance(
        np.zeros(40), cov + noise + noise.T, np.ones(40), cov
    )
    assert value == pytest.approx(40, rel=1e-6)


def test_square_root_squares_to_the_matrix(rng):
    cov = random_covariance(rng, 12, 5)
    root = frechet._symmetric_square_root(cov)
    np.testing.assert_allclose(root @ root, cov, atol=1e-12)


@pytest.fixture(scope="module")
def data():
    split = toy_split({name: IMAGES for name in MODALITIES}, [0] * len(IMAGES))
    classifiers = {name: label_classifier() for name in MODALITIES}
    return EvaluationData(split, split, classifiers, 8)


@pytest.mark.parametrize("error", [0.0, 0.4 / 255, -0.4 / 255])
def test_images_equal_to_eight_bits_are_at_no_distance(data, error):
    model = replaying_model(MODALITIES, IMAGES, lambda x: x + error)
    tags = frechet.frechet(model, 0.0, data, jax.random.key(0))
    assert set(tags) == {
        "frechet_classifier",
        *(f"frechet_classifier/{m}" for m in MODALITIES),
    }
    assert max(tags.values()) < 1e-10


def test_a_shift_of_all_pixels_is_its_squared_length(data):
    model = replaying_model(MODALITIES, IMAGES)
    shifted = model._replace(
        decode=lambda params, z: {
            "m0": model.decode(0.0, z)["m0"] + 51 / 255,
            "m1": model.decode(0.0, z)["m1"],
        }
    )
    tags = frechet.frechet(shifted, None, data, jax.random.key(0))
    assert tags["frechet_classifier/m0"] == pytest.approx(4 * 0.2**2, rel=1e-5)
    assert tags["frechet_classifier/m1"] < 1e-10
    assert tags["frechet_classifier"] == pytest.approx(2 * 0.2**2, rel=1e-5)


def test_generated_images_are_clipped(data):
    model = replaying_model(MODALITIES, IMAGES, lambda x: x + 7.0)
    tags = frechet.frechet(model, 0.0, data, jax.random.key(0), num_samples=12)
    real = IMAGES.reshape(-1, 4) / 255
    expected = ((1 - real.mean(0)) ** 2).sum() + np.trace(np.cov(real.T))
    assert tags["frechet_classifier"] == pytest.approx(expected, rel=1e-5)


def test_a_diverged_model_has_no_distance(data):
    model = replaying_model(MODALITIES, IMAGES)
    tags = frechet.frechet(model, jnp.float32(jnp.nan), data, jax.random.key(0))
    assert np.isnan(list(tags.values())).all()


def test_captions_of_a_model_that_diverged_have_no_distance():
    """The most probable of words without a probability would be the first."""
    tokens = np.random.default_rng(0).integers(0, 5, (30, 4)).astype(np.int32)
    data = EvaluationData(
        None,
        toy_split({"m0": tokens}, np.zeros(30)),
        {"m0": Reader(lambda x: (jnp.asarray(x, jnp.float32), x), 1.0)},
        10,
    )
    model = toy_model(
        ("m0",),
        1,
        sample_prior=lambda params, key, num: jnp.zeros((num, 1)),
        decode=lambda params, z: {"m0": jnp.full((len(z), 4, 5), params)},
    )
    assert np.isfinite(
        frechet.frechet(model, 0.2, data, jax.random.key(0))["frechet_classifier"]
    )
    assert np.isnan(
        frechet.frechet(model, np.nan, data, jax.random.key(0))["frechet_classifier"]
    )
