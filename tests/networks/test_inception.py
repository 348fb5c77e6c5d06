from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from golden.make_inception_golden import random_images, random_weights

from mmvae_jax.errors import UsageError
from mmvae_jax.networks import inception

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "inception_features.npz")
SHAPES = {
    str(name): tuple(map(int, shape.split()))
    for name, shape in zip(GOLDEN["names"], GOLDEN["shapes"], strict=True)
}


@pytest.fixture(scope="module")
def weights():
    return random_weights(SHAPES)


@pytest.fixture(scope="module")
def extractor(weights):
    return inception.make_extractor(inception.to_variables(weights))


@pytest.mark.parametrize(
    "index",
    [
        0,
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
    ],
)
def test_features_equal_those_of_the_reference(extractor, index):
    images = np.float32(random_images()[index]) / 255
    features = extractor(images)
    assert features.shape == (2, inception.NUM_FEATURES)
    np.testing.assert_allclose(
        features, GOLDEN["features"][index], rtol=1e-4, atol=1e-5
    )
    # The images differ by far more than the tolerance.
    assert np.abs(GOLDEN["features"][index][0] - features[1]).mean() > 1e-2


# Far from the origin, float32 coordinates of source pixels have fewer digits left.
@pytest.mark.parametrize(("index", "atol"), [(0, 2e-6), (1, 4e-6), (2, 2e-5)])
def test_images_are_resized_as_the_reference_does(index, atol):
    images = np.float32(random_images()[index]) / 255
    resized = inception.resize(images)
    assert resized.shape == (2, inception.SIZE, inception.SIZE, 3)
    np.testing.assert_allclose(
        resized[:, ::23, ::23], GOLDEN["resized"][index], atol=atol
    )


def test_inputs_have_three_equal_channels_of_grey_between_plus_and_minus_one(
    monkeypatch,
):
    network = SimpleNamespace(apply=lambda variables, x: x)
    monkeypatch.setattr(inception, "Inception", lambda: network)
    grey = np.linspace(0, 1, 8, dtype=np.float32).reshape(1, 1, 8, 1)
    x = inception.features(None, grey)
    assert x.min() == -1 and x.max() == 1
    np.testing.assert_array_equal(x, inception.features(None, grey.repeat(3, axis=-1)))


def test_pooling_does_not_see_the_padding():
    x = -jnp.ones((1, 4, 4, 1))
    np.testing.assert_allclose(inception._average(x), x)
    np.testing.assert_array_equal(inception._maximum(x), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("Mixed_6a.branch3x3.conv.weight"), "none, not"),
        (lambda w: w.update({"Mixed_9z.conv.weight": np.zeros((1, 1, 1, 1))}), "none"),
        (lambda w: w.update({"AuxLogits.fc.wat": np.zeros(1)}), "AuxLogits.fc.wat"),
        (
            lambda w: w.update({"Conv2d_1a_3x3.bn.bias": np.zeros(9)}),
            r"\(9,\).*\(32,\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused(weights, change, message):
    changed = dict(weights)
    change(changed)
    with pytest.raises(UsageError, match=message):
        inception.to_variables(changed)
