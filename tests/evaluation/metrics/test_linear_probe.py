import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import label_images, toy_model, toy_split

from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import linear_probe
from mmvae_jax.types import Gaussian


def one_hot_model():
    """Embeds `label_images` as a one-hot vector, scaled by the parameters."""

    def encode(params, batch):
        labels = jnp.round(batch["m0"][:, 0, 0, 0] * 255 / 20).astype(int)
        mean = params * jax.nn.one_hot(labels, 5)[None]
        return Gaussian(mean, jnp.full_like(mean, 20.0))

    def posterior(params, experts, subset, key):
        assert np.asarray(subset).all()
        return Gaussian(*(field[0] for field in experts))

    return toy_model(("m0",), 5, encode=encode, posterior=posterior)


def data_of(train_labels, test_labels, train_shown=None):
    shown = train_labels if train_shown is None else train_shown
    train = toy_split({"m0": label_images(shown)}, train_labels)
    test = toy_split({"m0": label_images(test_labels)}, test_labels)
    return EvaluationData(train, test, None, 16)


def test_separable_embeddings_are_classified_on_the_whole_test_split():
    rng = np.random.default_rng(0)
    data = data_of(rng.integers(0, 5, 200), rng.integers(0, 5, 90))
    tags = linear_probe.linear_probe(one_hot_model(), 5.0, data, jax.random.key(0))
    assert tags == {"linear_probe": 1.0}


def test_accuracy_counts_the_test_examples_that_match():
    # Class 1 of the training split looks like class 0: what shows 1 is never learnt.
    train = np.repeat([0, 2, 3], 50)
    test = np.repeat([0, 1, 2], [30, 20, 10])
    tags = linear_probe.linear_probe(
        one_hot_model(), 5.0, data_of(train, test), jax.random.key(0)
    )
    assert tags["linear_probe"] == pytest.approx(40 / 60)


def test_one_class_is_what_everything_is_taken_for():
    data = data_of(np.zeros(50, int), np.repeat([0, 1], [30, 10]))
    tags = linear_probe.linear_probe(one_hot_model(), 5.0, data, jax.random.key(0))
    assert tags["linear_probe"] == pytest.approx(30 / 40)


def test_unrelated_embeddings_are_at_chance():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 5, 500)
    data = data_of(train, rng.integers(0, 5, 1000), rng.permutation(train))
    tags = linear_probe.linear_probe(one_hot_model(), 5.0, data, jax.random.key(0))
    assert tags["linear_probe"] == pytest.approx(0.2, abs=0.08)


@pytest.mark.parametrize(("num_train", "expected"), [(7, 7), (500, 40)])
def test_training_rows_are_drawn_without_replacement(monkeypatch, num_train, expected):
    seen = []

    def record(train_features, train_labels, *rest):
        seen.append((train_features, train_labels))
        return 0.5

    monkeypatch.setattr(linear_probe, "probe_accuracy", record)
    labels = np.arange(40)  # all different, though the images show label modulo 5
    train = toy_split({"m0": label_images(labels % 5)}, labels)
    data = EvaluationData(train, train, None, 16)
    for seed in (0, 1):
        linear_probe.linear_probe(
            one_hot_model(), 1.0, data, jax.random.key(seed), num_train=num_train
        )
    for features, rows in seen:
        assert len(np.unique(rows)) == len(rows) == expected
        np.testing.assert_array_equal(features.argmax(1), rows % 5)
    assert not np.array_equal(seen[0][1], seen[1][1])


def test_embeddings_are_in_order_and_without_the_filling():
    labels = np.array([3, 1, 4, 1, 0, 2, 0])
    split = toy_split({"m0": label_images(labels)}, labels)
    means = linear_probe.embed(one_hot_model(), 1.0, split, jax.random.key(0), 4)
    np.testing.assert_array_equal(means, np.eye(5)[labels])


def test_running_out_of_iterations_is_silent():
    rng = np.random.default_rng(0)
    features = 100 * rng.standard_normal((60, 20))
    labels = rng.integers(0, 3, 60)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        value = linear_probe.probe_accuracy(
            features, labels, features, labels, max_iter=1
        )
    assert not shown
    assert 0 <= value <= 1


def test_a_diverged_model_has_no_accuracy():
    labels = np.arange(20) % 5
    tags = linear_probe.linear_probe(
        one_hot_model(), np.nan, data_of(labels, labels), jax.random.key(0)
    )
    assert np.isnan(tags["linear_probe"])
