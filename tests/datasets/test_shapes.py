"""Drawings with captions: what is shared, what is not, and how it is drawn."""

import itertools
import math

import numpy as np
import prepared
import pytest
from dataset_errors import DatasetError
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from shapes import captions, drawing, options, recipe

from configs.shapes import get_config
from experiments.running import datasets
from mmvae_jax import tokens
from mmvae_jax.data.prepared import load
from mmvae_jax.errors import UsageError
from mmvae_jax.types import TokenShape

FINGERPRINT = "9a0d40ea4106c504227472e1910d590948c410d32fce11a4f93b757c27d8fd0f"
SHAPES, COLOURS = tuple(captions.SHAPES), tuple(captions.COLOURS)
COMBINATIONS = len(SHAPES) * len(COLOURS)


def data_config(data_dir, **changes):
    config = get_config().data
    small = {"data_dir": str(data_dir), "num_train": 96, "num_test": 48}
    config.update({**small, **changes})
    return config


def plain_plan(shape=0, colour=0, num=1, **fields):
    """Upright drawings in the middle, of half the image, on plain grey."""
    values = {
        "shape": np.full(num, shape),
        "colour": np.full(num, colour),
        "radius": np.full(num, 1024),
        "centre": np.full((num, 2), drawing.SIDE // 2),
        "turn": np.zeros(num, int),
        "paint": np.zeros((num, 3), int),
        "light": np.zeros((num, 2), int),
        "texture": np.zeros(num, int),
        "lattice": np.zeros((num, 256), np.uint8),
        "ground": np.full((num, 2, 3), 100),
    }
    return drawing.Plan(**{**values, **fields})


# ---- captions


def test_every_caption_says_shape_and_colour_in_words_of_its_own():
    seen = set()
    for shape, colour in itertools.product(SHAPES, COLOURS):
        for wording in range(captions.NUM_WORDINGS):
            text = captions.write_caption(shape, colour, wording)
            words = tokens.tokenize(text)
            assert " ".join(words) == text
            assert captions.parse_caption(words) == {"shape": shape, "colour": colour}
            seen.add(text)
    # No two draws make the same sentence: the entropy is the logarithm.
    assert len(seen) == COMBINATIONS * captions.NUM_WORDINGS
    assert captions.most_words() == max(len(text.split()) for text in seen)


def test_no_caption_depends_on_more_than_its_wording():
    """The words without those of shape and colour are the same for all of them."""
    named = {word for meaning in captions.MEANINGS.values() for word in meaning}
    for wording in range(captions.NUM_WORDINGS):
        rests = {
            " ".join(
                "a" if word == "an" else word
                for word in captions.write_caption(shape, colour, wording).split()
                if word not in named
            )
            for shape, colour in itertools.product(SHAPES, COLOURS)
        }
        assert len(rests) == 1


def test_every_word_has_one_meaning_and_every_value_as_many_words():
    assert {len(words) for words in captions.SHAPES.values()} == {2}
    assert {len(words) for words in captions.COLOURS.values()} == {3}
    sizes = [len(meaning) for meaning in captions.MEANINGS.values()]
    assert sizes == [2 * len(SHAPES), 3 * len(COLOURS)]
    assert not set.intersection(*map(set, captions.MEANINGS.values()))
    # The other words of the sentences mean nothing.
    filled = " ".join([*captions.TEMPLATES, *captions.OPINIONS])
    assert captions.parse_caption(filled.split()) == {"shape": None, "colour": None}


def test_articles_are_right():
    texts = {
        captions.write_caption(shape, colour, wording)
        for shape, colour in itertools.product(SHAPES, COLOURS)
        for wording in range(captions.NUM_WORDINGS)
    }
    assert "an azure disc" in texts and "a nice azure disc" in texts
    pairs = [pair for text in texts for pair in itertools.pairwise(text.split())]
    for article, word in pairs:
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou"), word


@pytest.mark.parametrize(
    "text, shape, colour",
    [
        ("a scarlet valentine", "heart", "red"),
        ("box box emerald green jade box", "square", "green"),
        ("heart star red", None, "red"),
        ("disc circle red blue", "circle", None),
        ("<exc> <pad> zebra", None, None),
        ("", None, None),
    ],
)
def test_captions_of_models_are_read_too(text, shape, colour):
    found = captions.parse_caption(text.split())
    assert found == {"shape": shape, "colour": colour}


# ---- drawings


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_shapes_cover_their_area(shape, size):
    """The coverage of the pixels against that of a fine grid."""
    (image,) = drawing.draw(plain_plan(shape, colour=7), size)
    fine = (np.arange(1024) + 0.5) / 1024 * 4 - 2
    v, u = np.meshgrid(fine, fine, indexing="ij")
    grid = (np.rint(axis * drawing.RADIUS).astype(np.int32) for axis in (v, u))
    inside = drawing.INSIDE[shape](*grid)
    block = 1024 // size
    covered = inside.reshape(size, block, size, block).mean((1, 3))
    paint = drawing.PAINTS[7][0]
    expected = 100 + covered * (paint - 100)
    assert np.abs(image[..., 0] - expected).max() < 0.25 * (100 - paint)
    assert np.abs(image[..., 0] - expected).mean() < 0.8
    # Edges are smooth: some pixels are neither ground nor paint.
    assert ((image[..., 0] > paint + 9) & (image[..., 0] < 91)).any()


def test_shapes_do_not_look_alike():
    masks = [
        drawing.draw(plain_plan(shape, 7), 32)[0, ..., 0] < 60
        for shape in range(len(SHAPES))
    ]
    for first, second in itertools.combinations(masks, 2):
        assert (first ^ second).sum() > 0.12 * (first | second).sum()


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_shapes_are_whole_wherever_they_are(shape):
    """No window and no border cuts one: the area does not depend on the place."""
    turns = np.arange(-drawing.STEEPEST, drawing.STEEPEST + 1)
    num = len(turns)
    for radius in (drawing.SMALLEST, drawing.LARGEST):
        reach = radius * drawing.REACH // drawing.RADIUS
        areas = []
        for down, right in itertools.product((reach, drawing.SIDE - reach), repeat=2):
            plan = plain_plan(
                shape,
                7,
                num,
                turn=turns,
                radius=np.full(num, radius),
                centre=np.tile([down, right], (num, 1)),
            )
            areas.append(100.0 - drawing.draw(plan, 32)[..., 0].astype(float))
        areas = np.array(areas).sum((2, 3))
        assert np.ptp(areas) / areas.mean() < 0.08


def test_a_turned_drawing_is_turned():
    """Half a turn of the plan is half a turn of the pixels."""
    for shape in range(len(SHAPES)):
        upright, turned = (
            drawing.draw(plain_plan(shape, 2, turn=np.array([turn])), 48)[0]
            for turn in (0, 180)
        )
        assert np.abs(upright - turned[::-1, ::-1].astype(int)).mean() < 1.5


def test_colours_differ_from_each_other_and_from_the_ground():
    paints = drawing.PAINTS
    for first, second in itertools.combinations(paints, 2):
        # Even when both are changed as far as they may be.
        assert np.abs(first - second).max() > 4 * drawing.JITTER
    pairs = recipe.make_pairs("train", 480, 0, 0)
    ground = pairs.plan.ground
    tinge = np.ptp(ground, axis=2).max()
    assert ground.min() >= 60 and ground.max() <= 185
    for paint in paints[:6]:
        assert np.ptp(paint) - 2 * drawing.JITTER > tinge
    assert paints[6].min() - drawing.JITTER > 185
    assert paints[7].max() + drawing.JITTER < 60


def test_drawings_are_the_same_at_any_size():
    """What is drawn at 64 pixels is what is drawn at 32, but finer."""
    plan = recipe.make_pairs("train", 96, 0, 3).plan
    small = drawing.draw(plan, 32).astype(float)
    large = drawing.draw(plan, 64).reshape(-1, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(small - large).mean() < 3


def test_drawings_do_not_depend_on_their_company():
    pairs = recipe.make_pairs("train", 300, 0, 0)
    images = drawing.draw(pairs.plan, 32)
    some = np.array([5, 17, 130, 299])
    alone = drawing.Plan(*(field[some] for field in pairs.plan))
    np.testing.assert_array_equal(drawing.draw(alone, 32), images[some])


# ---- pairs


@pytest.mark.parametrize("held_out", [0, 1, 6, 7, 24])
def test_combinations_are_held_out(held_out):
    train, test = (recipe.combinations(split, held_out) for split in recipe.SPLITS)
    if held_out == 0:
        np.testing.assert_array_equal(train, np.arange(COMBINATIONS))
        np.testing.assert_array_equal(test, train)
        return
    assert len(test) == held_out and not set(train) & set(test)
    assert sorted([*train, *test]) == list(range(COMBINATIONS))
    # Whatever the test split shows, training shows in other company.
    assert set(train // len(COLOURS)) == set(range(len(SHAPES)))
    assert set(train % len(COLOURS)) == set(range(len(COLOURS)))
    if held_out == len(SHAPES):
        assert len(set(test // len(COLOURS))) == len(set(test % len(COLOURS))) == 6


@given(st.integers(1, 500), st.integers(0, 24), st.sampled_from(recipe.SPLITS))
def test_attributes_are_balanced(num, held_out, split):
    pairs = recipe.make_pairs(split, num, held_out, seed=0)
    allowed = recipe.combinations(split, held_out)
    counts = np.bincount(pairs.labels, minlength=COMBINATIONS)
    assert set(np.flatnonzero(counts)) <= set(allowed)
    assert np.ptp(counts[allowed]) <= 1
    np.testing.assert_array_equal(
        pairs.labels, pairs.plan.shape * len(COLOURS) + pairs.plan.colour
    )


def dependence(first, second):
    """p-value of the chi-squared test of independence."""
    return stats.chi2_contingency(stats.contingency.crosstab(first, second)[1]).pvalue


def test_nothing_else_is_shared():
    """What is the image's alone tells nothing of the caption's, nor of the label."""
    num = 8_000
    pairs = recipe.make_pairs("train", num, 0, 0)
    plan = pairs.plan
    middle = np.median(plan.ground[:, 0, 0])
    of_image = {
        "radius": plan.radius // 150,
        "down": plan.centre[:, 0] // 512,
        "right": plan.centre[:, 1] // 512,
        "turn": plan.turn // 9,
        "texture": plan.texture,
        "ground": plan.ground[:, 0, 0] > middle,
        "paint": plan.paint[:, 0] // 11,
        "light": plan.light[:, 1] > 0,
    }
    wording = pairs.wording
    of_caption = {
        "template": wording % len(captions.TEMPLATES),
        "opinion": wording // len(captions.TEMPLATES) % len(captions.OPINIONS),
        "synonyms": wording // len(captions.TEMPLATES) // len(captions.OPINIONS),
    }
    shared = {"shape": plan.shape, "colour": plan.colour}
    tests = [
        dependence(first, second)
        for group, other in itertools.combinations((of_image, of_caption, shared), 2)
        for first in group.values()
        for second in other.values()
    ]
    assert min(tests) > 0.05 / len(tests)
    # The test would find it: the radius and the place are both the image's.
    edge = np.abs(plan.centre[:, 0] - drawing.SIDE // 2) // 256
    assert dependence(of_image["radius"], edge) < 1e-6


def test_captions_are_as_random_as_they_can_be():
    pairs = recipe.make_pairs("train", 24_000, 0, 0)
    _, counts = np.unique(pairs.wording, return_counts=True)
    share = counts / counts.sum()
    entropy = -(share * np.log(share)).sum()
    assert entropy == pytest.approx(math.log(captions.NUM_WORDINGS), abs=0.01)


def test_splits_and_seeds_differ():
    plans = [
        recipe.make_pairs(split, 200, 0, seed).plan
        for split, seed in (("train", 0), ("test", 0), ("train", 1))
    ]
    for first, second in itertools.combinations(plans, 2):
        same = (first.radius == second.radius) & (first.turn == second.turn)
        assert same.mean() < 0.05


# ---- the prepared set


def test_prepared_set(tmp_path):
    config = data_config(tmp_path)
    directory = datasets.prepare(config)
    splits, metadata = prepared.read(directory)
    assert metadata["modalities"] == ["image", "caption"]
    assert metadata["num_examples"] == {"train": 96, "test": 48}
    words = metadata["words"]["caption"]
    assert metadata["attributes"] == {"shape": list(SHAPES), "colour": list(COLOURS)}
    for split in splits.values():
        assert split["image"].dtype == np.uint8
        assert split["caption"].dtype == split["label"].dtype == np.int32
        shape, colour = split["attribute/shape"], split["attribute/colour"]
        np.testing.assert_array_equal(split["label"], shape * 8 + colour)
        for row, s, c in zip(split["caption"], shape, colour, strict=True):
            text = tokens.decode(row, words)
            said = tokens.read_attributes(text.split(), metadata["meanings"]["caption"])
            assert said == captions.parse_caption(text.split())
            if "<exc>" not in text:
                assert said == {"shape": SHAPES[s], "colour": COLOURS[c]}
    shown = "".join(tokens.decode(row, words) for row in splits["train"]["caption"])
    assert "<exc>" not in shown


def test_prepared_sets_are_loaded(tmp_path):
    config = data_config(tmp_path)
    shapes = datasets.shapes(config)  # prepares them, for the vocabulary
    directory = datasets.prepare(config)
    dataset, (splits, metadata) = load(directory), prepared.read(directory)
    assert list(dataset.train.modalities) == ["image", "caption"]
    for name, array in dataset.test.modalities.items():
        np.testing.assert_array_equal(array, splits["test"][name])
    np.testing.assert_array_equal(dataset.train.labels, splits["train"]["label"])
    words = metadata["words"]["caption"]
    assert list(dataset.words["caption"]) == words
    assert shapes == dataset.shapes()
    assert shapes == {"image": (32, 32, 3), "caption": TokenShape(16, len(words))}


def test_prepared_bytes_are_pinned(tmp_path):
    directory = datasets.prepare(data_config(tmp_path))
    assert directory.parent.name == "32px-96train-48test-0heldout-16tokens-seed0"
    # The same on every machine; changes only together with Builder.VERSION.
    _, metadata = prepared.read(directory)
    assert metadata["fingerprint"] == FINGERPRINT


def test_held_out_combinations_are_not_prepared_for_training(tmp_path):
    splits, metadata = prepared.read(
        datasets.prepare(data_config(tmp_path, held_out=6))
    )
    train, test = (set(splits[name]["label"]) for name in ("train", "test"))
    assert len(train) == COMBINATIONS - 6 and len(test) == 6 and not train & test
    assert metadata["fingerprint"] != FINGERPRINT


def test_every_option_is_in_the_name():
    base = options.Options()
    others = [
        options.Options(**{field: getattr(base, field) + 1})
        for field in datasets.option_names("shapes")
    ]
    assert len({config.name for config in (base, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 8}, r"image_size=8 must be in 16\.\.256"),
        ({"num_train": 0}, r"num_train=0 must be in 1\.\."),
        ({"num_test": 1 << 21}, r"num_test=2097152 must be in 1\.\."),
        ({"held_out": 25}, r"held_out=25 must be in 0\.\.24"),
        ({"caption_length": 11}, "caption_length=11 would cut .* needs 12 tokens"),
        ({"seed": -1}, r"seed=-1 must be in 0\.\."),
    ],
)
def test_impossible_options(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        options.Options(**changes)
    with pytest.raises(UsageError, match=message) as caught:
        datasets.prepare(data_config(tmp_path, **changes))
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_config_of_another_data_set_lacks_options(tmp_path):
    config = data_config(tmp_path)
    del config.held_out
    message = "needs config.data.held_out; start from configs/shapes.py"
    with pytest.raises(UsageError, match=message):
        datasets.prepare(config)
