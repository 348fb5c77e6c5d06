import jax
import numpy as np
import pytest
from toy_models import label_classifier, toy_model, toy_split

from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation import generate, metric
from mmvae_jax.tokens import SPECIALS
from mmvae_jax.types import OBSERVED


@pytest.mark.parametrize(
    ("num", "batch_size", "counts"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 8, [3])],
)
def test_batches_cover_the_split_once_in_constant_shapes(num, batch_size, counts):
    images = np.arange(num, dtype=np.uint8).reshape(num, 1, 1, 1)
    seen = list(generate.batches(toy_split({"m0": images}, range(num)), batch_size))
    assert [count for _, count in seen] == counts
    assert all(batch["m0"].shape == (batch_size, 1, 1, 1) for batch, _ in seen)
    assert all(batch["m0"].dtype == np.float32 for batch, _ in seen)
    rows = np.concatenate([batch["m0"][:count].ravel() for batch, count in seen])
    np.testing.assert_allclose(rows, np.arange(num) / 255, rtol=1e-6)


def test_batches_are_on_the_device_and_what_is_observed_on_the_host():
    observed = np.array([[True, False], [True, True]])
    modalities = {
        "m0": np.arange(4, dtype=np.uint8).reshape(2, 2, 1, 1),
        "m1": np.arange(6, dtype=np.int32).reshape(2, 3),
    }
    split = toy_split(modalities, [0, 1])._replace(observed=observed)
    ((batch, _),) = generate.batches(split, 2)
    with jax.transfer_guard("disallow"):  # no call sends them again
        found = jax.jit(lambda x, y: (x, y))(batch["m0"], batch["m1"])
    assert found[0].dtype == np.float32 and found[1].dtype == np.int32
    assert isinstance(batch[OBSERVED], np.ndarray)
    np.testing.assert_array_equal(found[0], modalities["m0"] / np.float32(255))
    np.testing.assert_array_equal(found[1], modalities["m1"])
    np.testing.assert_array_equal(batch[OBSERVED], observed)


def test_prior_images_are_clipped_counted_and_all_different():
    model = toy_model(
        ("m0",),
        1,
        sample_prior=lambda params, key, num: jax.random.normal(key, (num, 1)),
        decode=lambda params, z: {"m0": params * z},
    )
    split = toy_split({"m0": np.zeros((1, 1), np.uint8)}, [0])
    data = metric.EvaluationData(split, split, None, 4)
    seen = list(generate.prior_examples(model, 10.0, data, jax.random.key(0), 10))
    assert [count for _, count in seen] == [4, 4, 2]
    values = np.concatenate([images["m0"] for images, _ in seen])
    assert values.min() == 0 and values.max() == 1
    seen = list(generate.prior_examples(model, 1e-3, data, jax.random.key(0), 400))
    values = np.concatenate([images["m0"] for images, _ in seen])
    assert len(np.unique(values[values > 0])) == (values > 0).sum()


def test_bytes_are_the_nearest_level():
    levels = np.arange(256) / 255
    for error in (-0.49, 0.0, 0.49):
        rounded = generate.to_bytes(np.float32(levels + error / 255))
        np.testing.assert_array_equal(rounded, np.arange(256, dtype=np.uint8))


@pytest.mark.parametrize("classifiers", [None, {"m0": label_classifier()}])
def test_a_missing_classifier_is_named(classifiers):
    data = metric.EvaluationData(None, None, classifiers, 4)
    with pytest.raises(UsageError, match="coherence.*m1"):
        metric.require_classifiers(data, ("m0", "m1"), "coherence")


def test_what_is_not_finite_is_seen_in_tokens_too():
    mean = np.zeros((3, 4, 5), np.float32)
    mean[1, 2, 3] = np.nan
    mean[2, 0, 0] = -np.inf
    assert generate.is_finite(mean).tolist() == [True, False, False]
    features = np.ones((3, 2), np.float32)
    tokens = np.zeros((1, 4), np.int32)
    found = generate.nan_if_not_finite(tokens, mean, features)
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, True])
    # The argmax over nan is a token like others.
    assert (
        generate.to_examples(toy_split({"m": tokens}, [0]), {"m": mean})["m"][1, 0] == 0
    )
    images = np.zeros((1, 4, 5), np.uint8)
    assert generate.nan_if_not_finite(images, mean, features) is features


def test_captions_are_tokens_with_words():
    split = toy_split(
        {"m0": np.zeros((1, 2), np.uint8), "m1": np.zeros((1, 2), np.int32)}, [0]
    )
    assert metric.captions_of(split, {"m1": ("a",)}, "captions") == ("m1",)
    with pytest.raises(UsageError, match="'captions' needs captions"):
        metric.captions_of(split, {}, "captions")


def test_generated_captions_end_as_real_ones_do():
    rows = np.array([[3, 2, 4, 2], [3, 4, 4, 3], [2, 2, 1, 0]])
    mean = np.eye(5, dtype=np.float32)[rows]
    split = toy_split({"m": np.zeros((1, 4), np.int32)}, [0])
    words = {"m": (*SPECIALS, "a", "bird")}
    found = generate.to_examples(split, {"m": mean}, words)["m"]
    assert found.tolist() == [[3, 2, 1, 1], [3, 4, 4, 3], [2, 1, 1, 1]]
    # Other tokens have no end.
    for own in ({}, {"m": ("a", "b", "c", "d", "e")}):
        found = generate.to_examples(split, {"m": mean}, own)["m"]
        assert found.tolist() == rows.tolist()
