import jax
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from toy_models import averaging_model, label_classifier, toy_split

from mmvae_jax.evaluation.metric import EvaluationData, Undefined
from mmvae_jax.evaluation.metrics import variation

MODALITIES = ("m0", "m1")


def make_data(labels, spread=8):
    """Two classes of images, around 60 and 160 by as much."""
    rng = np.random.default_rng(0)
    labels = np.asarray(labels)
    noise = rng.normal(size=(len(labels), 4, 4, 1)) * spread
    images = np.uint8(60 + 100 * labels[:, None, None, None] + noise)
    split = toy_split(dict.fromkeys(MODALITIES, images), labels)
    classifiers = dict.fromkeys(MODALITIES, label_classifier())
    return EvaluationData(None, split, classifiers, 32)


def measure(data, log_variance, params=0.0, modalities=MODALITIES):
    model = averaging_model(modalities, (4, 4, 1), log_variance=log_variance)
    return variation.variation(model, params, data, jax.random.key(0))


LABELS = np.arange(80) % 2


def test_draws_that_vary_as_a_class_does():
    deviation = np.sqrt(8**2 + 1 / 12) / 255  # rounding adds a twelfth
    tags = measure(make_data(LABELS), 2 * np.log(deviation))
    assert tags["variation/leave_one_out"] == pytest.approx(1, abs=0.04)
    half = measure(make_data(LABELS), 2 * np.log(deviation / 2))
    assert half["variation/leave_one_out/m0"] == pytest.approx(0.5, abs=0.03)
    assert measure(make_data(LABELS), -60.0)["variation/leave_one_out"] == 0


def test_means_over_pairs_and_classes():
    features = np.random.default_rng(0).normal(size=(4, 3, 5))
    expected = np.mean([pdist(features[:, i]).mean() for i in range(3)])
    assert variation.spread_of_draws(features) == pytest.approx(expected)
    x = np.array([[0.0], [1.0], [10.0], [13.0], [50.0]])
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 1, 2])
    assert variation.spread_of_classes(x, labels, rng) == pytest.approx(2)


def test_undefined_and_nan():
    tags = measure(make_data(np.arange(3) % 2)._replace(), -60.0)
    assert np.isfinite(tags["variation/leave_one_out"])
    tags = measure(make_data([0, 1]), -60.0)
    assert "no class has two" in tags["variation/leave_one_out"].reason
    tags = measure(make_data(LABELS, spread=0), -60.0)
    assert "are alike in all" in tags["variation/leave_one_out"].reason
    rng = np.random.default_rng(0)
    alike = variation.spread_of_classes(np.ones((4, 1)), np.array([0, 0, 1, 1]), rng)
    assert "the same features" in alike.reason
    tags = measure(make_data(LABELS), -60.0, params=np.nan)
    assert not isinstance(tags["variation/leave_one_out"], Undefined)
    assert np.isnan(tags["variation/leave_one_out"])
    assert measure(make_data(LABELS), -60.0, modalities=("m0",)) == {}


def test_a_modality_that_shows_the_class_alone_has_nothing_to_vary():
    data = make_data(LABELS)
    data.test.modalities["m1"] = make_data(LABELS, spread=0).test.modalities["m1"]
    tags = measure(data, -4.0)
    assert set(tags) == {"variation/leave_one_out", "variation/leave_one_out/m0"}
    assert np.isfinite(tags["variation/leave_one_out"])
    x = np.array([[1], [1], [2], [2]])
    assert variation.shows_class_alone(x, np.array([5, 5, 7, 7]))
    assert not variation.shows_class_alone(x, np.array([5, 7, 5, 7]))
    assert not variation.shows_class_alone(x[1:], np.array([5, 7, 7]))  # of 5 but one
    assert not variation.shows_class_alone(x[:0], np.array([], int))
