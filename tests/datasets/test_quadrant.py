"""Digits in quarters, and modalities that show the digit or the quarter alone."""

import itertools

import numpy as np
import pytest
from polymnist import backgrounds, digits, labels, options, recipe

from configs import quadrant
from experiments.running import datasets
from mmvae_jax.data import prepared
from mmvae_jax.data.dataset import LABEL, shows
from mmvae_jax.errors import UsageError

# The same on every machine; they change only together with Builder.VERSION.
FINGERPRINTS = {
    "shared": "023e45cc6114de84e6a9b36bf73da0022f965bcd59250dfee83e77b87dd44af8",
    "private": "33bc1608ee22da48f57faf964cd7c5f7e6cf7e7b99a1e13d57231162d0b7b738",
}


def data_config(data_dir, **changes):
    """config.data of configs/quadrant.py, two images and each digit once."""
    config = quadrant.get_config().data
    config.data_dir = str(data_dir)
    config.update({"num_modalities": 2, "pairings": 1, **changes})
    return config


def open_split(kind, side=8):
    """(digits of the training split, SplitSource of two modalities of 16 pixels)."""
    source = digits.load_sklearn(side)["train"]
    opened = recipe.open_split(
        source,
        backgrounds.load("", 2, 16),
        split="train",
        num_modalities=2,
        side=side,
        repeated=False,
        pairings=2,
        seed=3,
        image_size=16,
        quadrant=kind,
    )
    return source, opened


@pytest.mark.parametrize("kind", ["shared", "private"])
def test_a_digit_is_in_its_quarter_at_its_own_size(kind):
    """A crop is inverted where an image of 8 pixels has ink, and nowhere else."""
    source, opened = open_split(kind)
    scenes = backgrounds.load("", 2, 16)
    plan = recipe.make_plan(
        source.labels,
        scenes,
        split="train",
        image_size=16,
        side=8,
        pairings=2,
        seed=3,
        quadrant=kind,
    )
    modalities, _ = opened.read(0, 60)
    for m, i in itertools.product(range(2), range(60)):
        y, x = plan.crops[m, i]
        crop = scenes[m][y : y + 16, x : x + 16]
        is_ink = (modalities[f"m{m}"][i] != crop).any(-1)
        down, right = divmod(opened.quadrants[m, i], 2)
        wanted = np.zeros((16, 16), bool)
        ink = source.images[plan.digits[m, i]] > recipe.THRESHOLD
        wanted[8 * down : 8 * down + 8, 8 * right : 8 * right + 8] = ink
        np.testing.assert_array_equal(is_ink, wanted)


def test_quarters_are_shared_or_of_each_modality_and_of_no_digit():
    (source, shared), (_, private) = (
        open_split(kind) for kind in ("shared", "private")
    )
    np.testing.assert_array_equal(shared.quadrants[0], shared.quadrants[1])
    np.testing.assert_array_equal(shared.quadrants[0], private.quadrants[0])
    agree = (private.quadrants[0] == private.quadrants[1]).mean()
    assert agree == pytest.approx(0.25, abs=0.03)
    # Every digit in every quarter, as often as chance has it.
    digit = shared.read(0, shared.num_examples)[1]
    counts = np.zeros((10, 4), int)
    np.add.at(counts, (digit, shared.quadrants[0]), 1)
    expected = np.bincount(digit)[:, None] / 4
    assert abs(counts - expected).max() < 5 * np.sqrt(expected.max())
    assert np.bincount(digit).sum() == 2 * len(source.labels)


def test_handwriting_and_crops_are_those_of_digits_in_place():
    place = {
        kind: recipe.make_plan(
            digits.load_sklearn(8)["train"].labels,
            backgrounds.load("", 2, 16),
            split="train",
            image_size=16,
            side=8,
            pairings=1,
            seed=0,
            quadrant=kind,
        )
        for kind in ("", "shared")
    }
    for field in ("labels", "digits", "crops"):
        one, other = (getattr(plan, field) for plan in place.values())
        np.testing.assert_array_equal(one, other)
    assert not place[""].quadrants.any()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return prepared.load(datasets.prepare(data_config(folder)))


def test_attributes_and_label_modalities_of_a_shared_quarter(shared):
    test = shared.test
    assert list(test.modalities) == ["m0", "m1", "digit", "quadrant"]
    for name, values in labels.VALUES.items():
        tokens = test.modalities[name]
        assert tokens.shape == (test.num_examples, 1) and tokens.dtype == np.int32
        np.testing.assert_array_equal(tokens[:, 0], test.attributes[name])
        assert shared.words[name] == shared.attributes[name] == values
        assert shared.meanings[name] == {name: {word: word for word in values}}
    np.testing.assert_array_equal(test.attributes["digit"], test.labels)
    assert shared.fingerprint == FINGERPRINTS["shared"]
    assert "sharedquadrant-digitlabel-quadrantlabel" in shared.name
    shown = {
        name: [m for m in test.modalities if shows(shared.shown, m, name)]
        for name in ("digit", "quadrant", LABEL, "anything else")
    }
    assert shown == {
        "digit": ["m0", "m1", "digit"],
        "quadrant": ["m0", "m1", "quadrant"],
        LABEL: ["m0", "m1", "digit"],
        "anything else": ["m0", "m1", "digit", "quadrant"],
    }


def test_a_private_quarter_is_an_attribute_of_each_modality(tmp_path):
    config = data_config(tmp_path, quadrant="private", label_modalities=("digit",))
    dataset = prepared.load(datasets.prepare(config))
    assert list(dataset.train.modalities) == ["m0", "m1", "digit"]
    assert dataset.shown == {"quadrant_m0": ("m0",), "quadrant_m1": ("m1",)}
    assert set(dataset.train.attributes) == set(dataset.shown)
    first, second = dataset.train.attributes.values()
    assert 0.2 < (first == second).mean() < 0.3
    assert dataset.words == {"digit": labels.VALUES["digit"]}
    assert dataset.meanings == {}
    assert dataset.fingerprint == FINGERPRINTS["private"]


def test_images_of_a_shared_quarter_do_not_depend_on_the_label_modalities(
    shared, tmp_path
):
    config = data_config(tmp_path, label_modalities=())
    alone = prepared.load(datasets.prepare(config))
    for m, images in alone.train.modalities.items():
        np.testing.assert_array_equal(images, shared.train.modalities[m])
    assert alone.words == {} and set(alone.attributes) == {"digit", "quadrant"}
    assert alone.fingerprint != shared.fingerprint and alone.name != shared.name


def test_data_without_quarters_have_the_names_that_they_had():
    assert options.Options(digits="sklearn").name == "sklearn-m5-28px-seed0"
    moved = options.Options(digits="sklearn", translate_scale=0.5)
    assert moved.name == "sklearn-m5-28px-translated14px-seed0"
    assert labels.describe(["m0"], (), "") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quadrant": "all"}, "config.data.quadrant='all' must be one of '', 'shared'"),
        ({"image_size": 17}, "needs an even config.data.image_size, got 17"),
        ({"translate_scale": 0.5}, r"leave config.data.translate_scale=1.0, got 0.5"),
        (
            {"label_modalities": ("digit", "size")},
            "must be some of 'digit', 'quadrant'",
        ),
        ({"label_modalities": ("digit", "digit")}, "'quadrant', each once"),
        ({"quadrant": "private"}, 'needs one quarter .* set config.data.quadrant="sha'),
        ({"quadrant": ""}, 'or leave out "quadrant"'),
        (
            {"digits": "published", "published_dir": "x"},
            r"takes the images as they are: .*label_modalities=\(\)",
        ),
    ],
)
def test_quarters_that_cannot_be(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message) as refused:
        datasets.prepare(data_config(tmp_path, **changes))
    assert len(str(refused.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
