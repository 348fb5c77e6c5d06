import jax
import numpy as np
import pytest
import scipy.ndimage
from toy_models import replaying_model, toy_split

from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import swd


def textures(num, seed=0, size=16):
    """Smooth random colour images, float32 [N, size, size, 3] in [0.1, 0.7]."""
    noise = np.random.default_rng(seed).standard_normal((num, size, size, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, 0.7, 0.7, 0))
    return np.float32(np.clip(0.4 + 0.3 * smooth, 0.1, 0.7))


def blur(images, sigma):
    return scipy.ndimage.gaussian_filter(images, (0, sigma, sigma, 0))


def distance(real, generated, seed=0, **options):
    rng = np.random.default_rng(seed)
    return np.mean(swd.level_distances(real, generated, rng, **options))


@pytest.mark.parametrize("normalisation", swd.NORMALISATIONS)
def test_zero_for_identical_sets_in_any_order(normalisation):
    images = textures(40)
    order = np.random.default_rng(1).permutation(40)
    other = blur(textures(40, seed=1), 1)
    options = {"normalisation": normalisation}
    assert distance(images, images, **options) == 0
    assert distance(images, images[order], **options) < 1e-5
    assert distance(images[order], other, **options) == pytest.approx(
        distance(images, other, **options), rel=1e-4
    )


def test_grows_with_blur_and_not_between_halves():
    images, others = textures(400), textures(400, seed=1)
    halves, little, much = (
        distance(images, x) for x in (others, blur(others, 0.5), blur(others, 1.0))
    )
    assert 2 * halves < little
    assert 2 * little < much
    halves, much = (
        distance(images, x, normalisation="own") for x in (others, blur(others, 1.5))
    )
    assert 1.3 * halves < much


@pytest.mark.parametrize(("normalisation", "factor"), [("real", 5), ("own", 1.3)])
def test_grows_with_the_variety_of_colours(normalisation, factor):
    # Each image tinted by itself: no normalisation of the set takes that away.
    images, others = textures(400), textures(400, seed=1)
    tints = np.random.default_rng(2).standard_normal((400, 1, 1, 3)).astype(np.float32)
    halves, little, much = (
        distance(images, others + s * tints, normalisation=normalisation)
        for s in (0, 0.1, 0.4)
    )
    assert factor * halves < little
    assert 1.3 * little < much


def test_a_colour_shift_shows_in_the_unit_of_the_real_set_only():
    images = textures(50)
    shift = np.float32([0.1, 0.0, -0.1])
    little, much = (
        distance(images, images + shift),
        distance(images, images + 2 * shift),
    )
    assert 0.01 < little < 0.6 * much
    assert distance(images, images + shift, normalisation="own") < 1e-4


def test_sliced_distance_of_a_translation():
    # A translation by t is at distance |t . direction|, whatever the points.
    points = np.random.default_rng(0).standard_normal((30, 2, 2))
    directions = np.float64([[1, 0, 0, 0], [0, 0.6, 0.8, 0], [0, 0, 0, 1]])
    moved = points + np.float64([[3, 1], [-2, 0]])
    value = swd.sliced_wasserstein(
        np.float32(points), np.float32(moved[::-1]), directions
    )
    assert value == pytest.approx((3 + 1 + 0) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        ((28, 28), [(28, 28), (14, 14), (7, 7)]),
        ((16, 16), [(16, 16), (8, 8)]),
        ((13, 25), [(13, 25), (7, 13)]),
        ((12, 40), [(12, 40)]),
        ((8, 8), [(8, 8)]),
        ((5, 7), [(7, 7)]),
    ],
)
def test_pyramid_of_a_constant_is_in_the_coarsest_level(size, levels):
    images = np.full((2, *size, 3), 0.3, np.float32)
    pyramid = swd.laplacian_pyramid(images)
    assert [level.shape[1:3] for level in pyramid] == levels
    for level in pyramid[:-1]:
        np.testing.assert_allclose(level, np.zeros_like(level), atol=1e-6)
    np.testing.assert_allclose(pyramid[-1], np.full_like(pyramid[-1], 0.3), atol=1e-6)


def test_pyramid_separates_frequencies():
    y, x = np.mgrid[:16, :16]
    fine = np.float32((x + y) % 2)[None, :, :, None]  # the finest checkerboard
    coarse = np.float32(x / 15)[None, :, :, None]
    detail, rest = swd.laplacian_pyramid(fine)
    assert detail.std() > 0.4 and rest.std() < 0.02
    detail, rest = swd.laplacian_pyramid(coarse)
    assert detail.std() < 0.03 and rest.std() > 0.25


def test_patches_are_different_and_where_their_corners_are():
    images = np.arange(2 * 9 * 10, dtype=np.float32).reshape(2, 9, 10, 1)
    corners = swd.patch_corners((9, 10), 100, np.random.default_rng(0))
    assert len(np.unique(corners, axis=0)) == len(corners) == 3 * 4
    values = swd.patches(images, corners)
    assert values.shape == (24, 7, 7, 1)
    first = images[:, corners[:, 0], corners[:, 1], 0]
    np.testing.assert_array_equal(np.sort(values[:, 0, 0, 0]), np.sort(first.ravel()))
    assert len(swd.patch_corners((9, 10), 5, np.random.default_rng(0))) == 5


def test_normalised_channels_have_mean_zero_and_deviation_one():
    values = textures(20)[:, :7, :7] * np.float32([1, 2, 3])
    normal = swd.normalise(values, values)
    np.testing.assert_allclose(normal.mean((0, 1, 2)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(normal.std((0, 1, 2)), np.ones(3), rtol=1e-5)
    constant = np.ones((3, 7, 7, 1), np.float32)
    assert (swd.normalise(constant, constant) == 0).all()


@pytest.fixture(scope="module")
def data():
    images = np.uint8(255 * textures(30))
    split = toy_split({"m0": images, "m1": images}, [0] * 30)
    return EvaluationData(split, split, None, 8)


def test_metric_is_zero_for_the_test_images_and_in_thousandths(data):
    images = data.test.modalities["m0"]
    model = replaying_model(("m0", "m1"), images)
    blurred = model._replace(
        decode=lambda params, z: {
            "m0": model.decode(0.0, z)["m0"] + 0.3 / 255,  # gone in 8 bits
            "m1": blur(np.asarray(model.decode(0.0, z)["m1"]), 1.0),
        }
    )
    tags = swd.swd(blurred, None, data, jax.random.key(0))
    assert tags["swd/m0"] < 1e-2
    real = np.float32(images) / 255
    expected = 1e3 * distance(real, np.round(255 * blur(real, 1.0)) / 255)
    assert tags["swd/m1"] == pytest.approx(expected, rel=0.2)
    assert tags["swd"] == pytest.approx((tags["swd/m0"] + tags["swd/m1"]) / 2)


def test_metric_takes_as_many_images_as_it_is_told(data):
    calls = []
    model = replaying_model(("m0", "m1"), data.test.modalities["m0"])

    def decode(params, z):
        calls.append(len(z))
        return model.decode(params, z)

    counting = model._replace(decode=decode)
    tags = swd.swd(counting, 0.0, data, jax.random.key(0), num_images=10)
    assert calls == [8, 8]
    assert tags["swd"] > 1  # ten other images than the first ten


def test_a_diverged_model_has_no_distance(data):
    model = replaying_model(("m0", "m1"), data.test.modalities["m0"])
    tags = swd.swd(model, np.nan, data, jax.random.key(0))
    assert np.isnan(list(tags.values())).all()


def test_wrong_input_is_explained(data):
    with pytest.raises(UsageError, match="real, own"):
        swd.swd(None, None, data, jax.random.key(0), normalisation="both")
    with pytest.raises(ValueError, match="shapes differ"):
        distance(textures(3), textures(4))
