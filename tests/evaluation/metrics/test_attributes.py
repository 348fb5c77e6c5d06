"""Attribute coherence of models that say what they were told, in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import toy_model

from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.judges import readers
from mmvae_jax.evaluation.metric import EvaluationData, Reader
from mmvae_jax.evaluation.metrics import coherence
from mmvae_jax.tokens import SPECIALS, encode
from mmvae_jax.types import Gaussian

SHAPES, COLOURS = ("circle", "star"), ("red", "green", "blue")
WORDS = (*SPECIALS, "a", *SHAPES, *COLOURS)
MEANINGS = {"shape": {w: w for w in SHAPES}, "colour": {w: w for w in COLOURS}}
VALUES = {"shape": SHAPES, "colour": COLOURS}
MODALITIES = ("image", "caption", "sketch")
NUM = 37
LENGTH = 4


def pixels(shape, colour):
    """uint8 [N, 1, 1, 1]: the value is 50 * shape + 10 * colour + 5."""
    return np.uint8(50 * shape + 10 * colour + 5)[:, None, None, None]


def written(shape, colour):
    texts = [f"a {COLOURS[c]} {SHAPES[s]}" for s, c in zip(shape, colour, strict=True)]
    return encode(texts, WORDS, LENGTH)


def reads_pixels(attribute, accuracy):
    def read(images):
        value = np.round(np.asarray(images)[:, 0, 0, 0] * 255)
        return value // 50 if attribute == "shape" else value % 50 // 10

    return Reader(lambda images: (images, images), accuracy, read)


def parser(attribute):
    def read(rows):
        return readers.parse(rows, WORDS, MEANINGS[attribute], VALUES[attribute])

    return Reader(lambda rows: (rows, rows), 1.0, read)


def make_data(observed=None, batch_size=16):
    rng = np.random.default_rng(0)
    shape, colour = rng.integers(0, 2, NUM), rng.integers(0, 3, NUM)
    images = pixels(shape, colour)
    split = Split(
        {"image": images, "caption": written(shape, colour), "sketch": images},
        observed=observed,
        attributes={"shape": shape, "colour": colour},
    )
    found = {
        a: {m: reads_pixels(a, 0.9 + i / 10) for m in ("image", "sketch")}
        | {"caption": parser(a)}
        for i, a in enumerate(VALUES)
    }
    return EvaluationData(None, split, None, batch_size, readers=found)


def make_model(caption=lambda shape, colour: (shape, colour), params=0.0):
    """z is (shape, colour) of the first modality that is given.

    Images show both, sketches the shape alone and are always red; what captions say is
    `caption` of it, -1 for nothing.
    """

    def encode_all(params, batch):
        codes = [_code(batch[m]) for m in MODALITIES]
        means = jnp.stack(codes).astype(jnp.float32) + params
        return Gaussian(means, jnp.full_like(means, -60.0))

    def posterior(params, experts, subset, key):
        first = int(np.argmax(np.asarray(subset)))
        return Gaussian(*(field[first] for field in experts))

    def decode(params, z):
        shape, colour = np.nan_to_num(np.round(np.asarray(z))).astype(int).T
        said_shape, said_colour = caption(shape, colour)
        rows = np.full((len(z), LENGTH), 3)
        rows[:, 1] = np.where(said_shape < 0, 3, 4 + said_shape)
        rows[:, 2] = np.where(said_colour < 0, 3, 6 + said_colour)
        rows[:, 3] = 2
        return {
            "image": jnp.float32(pixels(shape, colour)) / 255 + params,
            "caption": jax.nn.one_hot(rows, len(WORDS)) + params,
            "sketch": jnp.float32(pixels(shape, 0 * colour)) / 255 + params,
        }

    def sample_prior(params, key, num):
        keys = jax.random.split(key)
        shape = jax.random.randint(keys[0], (num,), 0, 2)
        colour = jax.random.randint(keys[1], (num,), 0, 3)
        return jnp.stack([shape, colour], axis=1).astype(jnp.float32)

    return toy_model(
        MODALITIES,
        2,
        encode=encode_all,
        posterior=posterior,
        decode=decode,
        sample_prior=sample_prior,
    )


def _code(x):
    """(shape, colour) of examples of any modality, [B, 2]."""
    if x.ndim == 2:
        words = np.asarray(x)
        return np.stack([words[:, 2] - 4, words[:, 1] - 6], axis=1)
    value = np.round(np.asarray(x)[:, 0, 0, 0] * 255)
    return np.stack([value // 50, value % 50 // 10], axis=1)


def measure(model, data, params=0.0):
    return coherence.attributes(model, params, data, jax.random.key(0))


@pytest.fixture(scope="module")
def tags():
    return measure(make_model(), make_data())


def test_every_attribute_as_constructed(tags):
    red = np.mean(make_data().test.attributes["colour"] == 0)
    for given in ("image", "caption", "sketch", "image+caption", "caption+sketch"):
        for target in MODALITIES:
            prefix = "attribute_coherence"
            assert tags[f"{prefix}/shape/{target}_given_{given}"] == 1
            wanted = red if target == "sketch" else 1
            found = tags[f"{prefix}/colour/{target}_given_{given}"]
            assert found == pytest.approx(wanted), (target, given)


def test_averages(tags):
    red = np.mean(make_data().test.attributes["colour"] == 0)
    wanted = {
        "shape": 1.0,
        "colour": (2 + red) / 3,
        "leave_one_out/image": 1.0,
        "leave_one_out/sketch": (1 + red) / 2,
        "leave_one_out": (5 + red) / 6,
        "size_1": (5 + red) / 6,
        "reconstruction/caption": 1.0,
        "reconstruction/sketch": (1 + red) / 2,
        "shape/joint": 1.0,
    }
    for tag, value in wanted.items():
        assert tags[f"attribute_coherence/{tag}"] == pytest.approx(value), tag
    # All three agree on the colour where the prior draws red.
    joint = tags["attribute_coherence/colour/joint"]
    assert joint == pytest.approx(1 / 3, abs=0.25)
    assert tags["attribute_coherence/joint"] == pytest.approx((1 + joint) / 2)
    assert tags["attribute_accuracy/shape/image"] == 0.9
    assert tags["attribute_accuracy/image"] == pytest.approx(0.95)
    assert tags["attribute_accuracy/caption"] == 1.0
    assert all(type(value) is float for value in tags.values())


def test_captions_that_say_nothing_or_two_things_are_wrong():
    silent = measure(make_model(lambda s, c: (s, np.where(c == 1, -1, c))), make_data())
    green = np.mean(make_data().test.attributes["colour"] == 1)
    found = silent["attribute_coherence/colour/caption_given_image"]
    assert found == pytest.approx(1 - green)
    mute = measure(make_model(lambda s, c: (s, 0 * c - 1)), make_data())
    assert mute["attribute_coherence/colour/joint"] == 0
    assert mute["attribute_coherence/shape/joint"] == 1
    two = np.array([[3, 4, 5, 2], [4, 6, 4, 2], [4, 2, 5, 5], [1, 1, 1, 1]])
    assert parser("shape").read(two).tolist() == [-1, 0, 0, -1]


def test_only_what_is_observed_is_conditioned_on():
    observed = np.ones((NUM, 3), bool)
    observed[::2, 1] = False
    data = make_data(observed)
    # A missing caption holds anything: here the wrong words.
    data.test.modalities["caption"][::2] = written(
        1 - data.test.attributes["shape"][::2], data.test.attributes["colour"][::2]
    )
    tags = measure(make_model(), data)
    assert tags["attribute_coherence/shape/image_given_caption"] == 1
    assert tags["attribute_coherence/shape/caption_given_image"] == 1
    observed[:, 1] = False
    tags = measure(make_model(), make_data(observed))
    assert np.isnan(tags["attribute_coherence/shape/image_given_caption"])
    assert tags["attribute_coherence/shape/sketch_given_image"] == 1


def test_a_diverged_model_has_no_coherence():
    tags = measure(make_model(), make_data(), params=np.float32("nan"))
    found = {tag: v for tag, v in tags.items() if tag.startswith("attribute_coherence")}
    assert np.isnan(list(found.values())).all()
    assert tags["attribute_accuracy/image"] == pytest.approx(0.95)


def test_data_without_attributes_or_readers():
    data = make_data()
    with pytest.raises(UsageError, match="'attributes' needs attributes, and the data"):
        measure(make_model(), data._replace(test=data.test._replace(attributes={})))
    with pytest.raises(UsageError, match="none for shape of image, colour of image"):
        measure(make_model(), data._replace(readers={}))


def test_of_what_few_modalities_show_the_others_are_no_target(tags):
    data = make_data()
    images = ("image", "sketch")
    found = {
        "shape": dict.fromkeys(images, data.readers["shape"]["image"]),
        "colour": {"image": data.readers["colour"]["image"]},
    }
    shown = {a: tuple(own) for a, own in found.items()}
    own = measure(make_model(), data._replace(readers=found, shown=shown))
    prefix = "attribute_coherence"
    assert own[f"{prefix}/shape"] == own[f"{prefix}/leave_one_out"] == 1
    assert own[f"{prefix}/joint"] == own[f"{prefix}/shape/joint"] == 1
    assert f"{prefix}/colour" not in own and f"{prefix}/colour/joint" not in own
    assert own[f"{prefix}/colour/image_given_image"] == 1
    assert own[f"{prefix}/reconstruction/image"] == 1
    assert not any("caption" in t.rpartition("/")[2].split("_given")[0] for t in own)
    # A caption that shows neither is no condition.
    assert not any(t.endswith("_given_caption") for t in own)
    assert f"{prefix}/shape/image_given_caption" in tags
