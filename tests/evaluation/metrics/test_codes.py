import warnings

import jax
import numpy as np
import pytest
from toy_models import averaging_model, toy_split

from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import codes
from mmvae_jax.types import SHARED

MODALITIES = ("m0", "m1")


def test_cluster_accuracy_pairs_as_well_as_can_be():
    labels = np.array([5, 5, 5, 7, 7, 9])
    assert codes.cluster_accuracy(labels, np.array([1, 1, 1, 0, 0, 2])) == 1
    # The greedy pair (5, 0) would leave nothing for 7.
    labels, clusters = np.repeat([5, 7], [5, 4]), np.array([0] * 3 + [1] * 2 + [0] * 4)
    assert codes.cluster_accuracy(labels, clusters) == pytest.approx(6 / 9)
    assert codes.cluster_accuracy(labels, np.zeros(9)) == pytest.approx(5 / 9)


def make_split(num, seed, classes=3):
    """Pixels 0 and 1 tell the class, 2 the attribute up to noise, 3 nothing."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num, dtype=np.int32) % classes
    colour = np.int32(rng.integers(0, 2, num))
    images = rng.integers(0, 20, (num, 2, 2, 1))
    images[:, 0, :, 0] += 60 * labels[:, None]
    images[:, 1, 0, 0] += 100 * colour
    split = toy_split(dict.fromkeys(MODALITIES, np.uint8(images)), labels)
    return split._replace(attributes={"colour": colour})


PARTS = ((SHARED, 2), ("m0", 1), ("m1", 1))


def measure(
    parts=PARTS, params=0.0, train=None, test=None, modalities=MODALITIES, **others
):
    model = averaging_model(modalities, (2, 2, 1))._replace(latent_parts=parts)
    train = make_split(120, 0) if train is None else train
    test = make_split(90, 1) if test is None else test
    data = EvaluationData(train, test, None, 32, **others)
    return codes.codes(model, params, data, jax.random.key(0))


def test_each_part_tells_what_it_holds():
    tags = measure()
    for name in ("accuracy", "nmi", "ari"):
        assert tags[f"clusters/{name}"] == pytest.approx(1)
    for kind in ("linear", "neighbours", "mlp"):
        assert tags[f"probe/shared/label/{kind}"] == 1
        assert tags[f"probe/private/m0/attribute_colour/{kind}"] == 1
        assert tags[f"probe/private/m1/attribute_colour/{kind}"] < 0.75
        assert tags[f"probe/private/label/{kind}"] < 0.6
        assert tags[f"probe/all/attribute_colour/{kind}"] > 0.9
    assert tags["probe/majority/label"] == pytest.approx(1 / 3)
    assert not any("/own" in tag for tag in tags)  # both modalities show the colour


def test_the_mlp_predicts_what_is_not_linear():
    """Two coordinates differ in sign or not; the others are noise."""
    codes_of = np.random.default_rng(0).normal(size=(1300, 12))
    signs = np.int32((codes_of[:, 0] > 0) ^ (codes_of[:, 1] > 0))
    pairs = codes_of[:1000], signs[:1000], codes_of[1000:], signs[1000:]
    assert codes.mlp_accuracy(*pairs) > 0.9
    assert codes.mlp_accuracy(*pairs) == codes.mlp_accuracy(*pairs)
    assert codes.probe_accuracy(*pairs) < 0.6
    # The scale of codes does not matter; with labels of noise it guesses.
    small, labels, small_test, test_labels = (1e-4 * pairs[0], *pairs[1:])
    assert codes.mlp_accuracy(small, labels, 1e-4 * small_test, test_labels) > 0.9
    assert codes.mlp_accuracy(small, labels, small_test, test_labels[::-1]) < 0.6


def test_attributes_of_one_modality_are_told_by_its_part():
    def make(num, seed):
        split = make_split(num, seed)
        colour = split.attributes["colour"]
        own = {"colour": colour, "tilt": np.roll(colour, 1)}
        return split._replace(attributes=own)

    shown = {"colour": ("m0",), "tilt": ("m1",)}
    tags = measure(train=make(120, 0), test=make(90, 1), shown=shown)
    for kind in ("linear", "neighbours", "mlp"):
        for part, names in {
            "shared": ("shared/attribute_colour", "shared/attribute_tilt"),
            "private": ("private/m0/attribute_colour", "private/m1/attribute_tilt"),
        }.items():
            mean = np.mean([tags[f"probe/{name}/{kind}"] for name in names])
            assert tags[f"probe/{part}/own/{kind}"] == pytest.approx(mean)
        assert tags[f"probe/private/own/{kind}"] > 0.7
        assert tags[f"probe/shared/own/{kind}"] < 0.65
    assert "probe/majority/own" in tags


def test_models_of_one_part_and_of_private_parts():
    tags = measure(parts=((SHARED, 4),), shown={"colour": ("m0",)})
    assert "probe/shared/own/mlp" in tags and "probe/private/own/mlp" not in tags
    assert (
        "probe/shared/label/linear" in tags and "probe/private/label/linear" not in tags
    )
    assert "probe/all/label/linear" not in tags
    tags = measure(parts=(("m0", 2), ("m1", 2)))
    assert "probe/shared/label/linear" not in tags
    assert tags["probe/private/m0/label/linear"] == 1
    assert tags["probe/private/label/linear"] < tags["probe/all/label/linear"]


def test_a_private_part_is_probed_where_its_modality_is_observed():
    def incomplete(num, seed, has_none=False):
        split = make_split(num, seed)
        observed = np.ones((num, 2), bool)
        observed[::2, 0] = False
        images = split.modalities["m1"].copy()
        images[~observed[:, 0], 1, 0, 0] = 0  # the colour is not to be seen there
        if has_none:
            observed[:, 0] = False
        return split._replace(
            modalities=dict.fromkeys(MODALITIES, images), observed=observed
        )

    tags = measure(train=incomplete(240, 0), test=incomplete(180, 1))
    for kind in ("linear", "neighbours", "mlp"):
        assert tags[f"probe/private/m0/attribute_colour/{kind}"] == 1
        assert tags[f"probe/all/attribute_colour/{kind}"] < 0.9
    tags = measure(train=incomplete(240, 0), test=incomplete(180, 1, has_none=True))
    why = tags["probe/private/m0/label/linear"].reason
    assert why == "no example of a split has the modality"
    assert np.isfinite(tags["probe/private/m1/label/linear"])


def test_values_that_the_training_of_a_part_never_has():
    train, test = make_split(120, 0), make_split(90, 1)
    observed = np.ones((120, 2), bool)
    observed[train.labels == 2, 0] = False
    tags = measure(train=train._replace(observed=observed))
    odd = {t for t, x in tags.items() if np.isnan(x)}
    assert odd == {
        f"probe/{part}/label/{kind}"
        for part in ("private/m0", "private")
        for kind in ("linear", "neighbours", "mlp")
    }
    why = tags["probe/private/m0/label/linear"].reason
    assert "values of label that no such training example has, as 2" in why
    tags = measure(test=test._replace(attributes={"colour": test.labels}))
    assert {t.split("/")[-2] for t, x in tags.items() if np.isnan(x)} == {
        "attribute_colour"
    }
    assert np.isfinite(tags["probe/shared/label/linear"])


def test_odd_data():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = make_split(4, 0, classes=1)
        assert measure(train=one, test=one)["clusters/accuracy"] == 1
        each = make_split(5, 0, classes=5)
        assert 0 <= measure(train=each, test=each)["clusters/accuracy"] <= 1
        black = make_split(6, 0)
        black.modalities.update({m: 0 * x for m, x in black.modalities.items()})
        assert measure(train=black, test=black)["clusters/accuracy"] == pytest.approx(
            1 / 3
        )
    tags = measure(params=np.nan)
    shares = ("probe/majority/label", "probe/majority/attribute_colour")
    assert all(np.isnan(value) == (tag not in shares) for tag, value in tags.items())
    with pytest.raises(UsageError, match="'codes' needs labels"):
        measure(test=make_split(9, 0)._replace(labels=None))
