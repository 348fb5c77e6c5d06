"""Faults of data sets: values, modalities, classes and words that do not fit."""

import jax
import numpy as np
import pytest

from mmvae_jax import models
from mmvae_jax.data import faults
from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics.distributions import make_likelihood
from mmvae_jax.types import Support

N = 60
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
VECTORS = RNG.normal(size=(N, 4)).astype(np.float32)
LABELS = np.arange(N, dtype=np.int32) % 3
COUNTS = Support("whole numbers >= 0", least=0, is_whole=True)
BERNOULLI, LAPLACE, CATEGORICAL = (
    make_likelihood(name).support for name in ("bernoulli", "laplace", "categorical")
)


def split_of(**arrays):
    return Split(arrays.pop("modalities", {"x": VECTORS, "y": VECTORS}), **arrays)


def data_of(train, test=None, **fields):
    return Dataset(train, train if test is None else test, "0", "own", **fields)


def alone(x, test=None):
    return data_of(split_of(modalities={"x": x}), test)


@pytest.mark.parametrize(
    ("x", "support"),
    [
        (VECTORS, LAPLACE),
        (np.abs(np.tanh(VECTORS)), BERNOULLI),
        (IMAGES, BERNOULLI),
        (IMAGES, LAPLACE),
        (np.floor(np.exp(VECTORS)), COUNTS),
        (IMAGES[..., 0] // 255 * np.uint8(255), COUNTS),  # 0 and 1, once scaled
        (LABELS[:, None], CATEGORICAL),
    ],
)
def test_values_that_a_likelihood_has_a_probability_for(x, support):
    faults.require_support(alone(x), "x", support)


@pytest.mark.parametrize("where", ["training", "test"])
@pytest.mark.parametrize(
    ("x", "support", "words"),
    [
        (VECTORS, BERNOULLI, r"numbers in \[0, 1\], and {} .* of x hold -"),
        (255 * np.abs(VECTORS), BERNOULLI, "and {} examples of x hold "),
        (np.where(VECTORS > 2, np.nan, VECTORS), LAPLACE, "finite numbers.*hold nan"),
        (VECTORS, COUNTS, "whole numbers >= 0, and {} examples"),
        (IMAGES, COUNTS, "whole numbers >= 0, and {} .*, bytes divided by 255"),
        (LABELS[:, None] - 1, CATEGORICAL, "tokens 0, 1, 2, ..., and {} .* hold -1"),
    ],
)
def test_values_outside_of_the_support_are_refused(x, support, words, where):
    good = np.zeros_like(x)
    pair = [split_of(modalities={"x": own}) for own in (good, x)]
    dataset = data_of(*(pair if where == "test" else pair[::-1]))
    with pytest.raises(
        UsageError, match="^likelihood is one of .*" + words.format(where)
    ) as error:
        faults.require_support(dataset, "x", support)
    assert "\n" not in str(error.value)


def test_all_parts_of_the_examples_are_looked_at(monkeypatch):
    monkeypatch.setattr(faults, "_NUM_AT_ONCE", 8)
    x = np.zeros_like(VECTORS)
    x[-1, -1] = 2
    with pytest.raises(UsageError, match="hold 2: "):
        faults.require_support(alone(x), "x", BERNOULLI)


def test_what_is_missing_may_be_anything():
    observed = np.stack([np.arange(N) > 0, np.ones(N, bool)], axis=1)
    x = np.where(observed[:, :1], 0.5, np.float32(np.nan)) * np.ones((N, 2))
    split = split_of(modalities={"x": x, "y": VECTORS}, observed=observed)
    faults.require_support(data_of(split), "x", BERNOULLI)


@pytest.mark.parametrize("name", ["mopoe", "mvtcae", "unimodal", "mmvae_plus", "mmvm"])
def test_models_say_what_their_likelihoods_are_of(name, tiny_config):
    config = tiny_config(name)
    config.modalities.y = {"likelihood": "bernoulli"}
    model = models.make_model(config, {"x": (4,), "y": (4,)})
    assert model.supports == {"x": LAPLACE, "y": BERNOULLI}


def test_without_the_check_the_log_likelihood_says_it(tiny_config):
    config = tiny_config("mopoe")
    config.modality.likelihood = "bernoulli"
    model = models.make_model(config, {"x": (4,), "y": (4,)})
    params = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": 0 * VECTORS, "y": VECTORS - 10}
    values = jax.jit(model.log_likelihood)(params, np.zeros((N, 6), np.float32), batch)
    assert np.isfinite(values["x"]).all() and np.isneginf(values["y"]).all()


def test_every_modality_is_in_some_training_example():
    observed = np.tile([True, False], (N, 1))
    dataset = data_of(split_of(observed=observed), split_of())
    with pytest.raises(UsageError, match="^no training example of own has y: "):
        faults.require_observed(dataset)
    faults.require_observed(data_of(split_of(), split_of(observed=observed)))
    observed[0] = True
    faults.require_observed(data_of(split_of(observed=observed)))


@pytest.mark.parametrize("kind", ["labels", "attributes"])
def test_classes_of_the_test_are_those_of_training(kind):
    def own(classes):
        return split_of(**{kind: classes if kind == "labels" else {"colour": classes}})

    name = kind if kind == "labels" else "attribute colour"
    faults.require_seen(data_of(own(LABELS)), kind, "coherence")
    faults.require_seen(data_of(own(LABELS), own(LABELS % 2)), kind, "coherence")
    faults.require_seen(data_of(split_of()), kind, "coherence")  # `needs` refuses it
    words = rf"'coherence' needs {name}, .* 3 of them that no .*\(5, 6, 7\).* metrics"
    with pytest.raises(UsageError, match=words):
        faults.require_seen(data_of(own(LABELS), own(LABELS + 5)), kind, "coherence")
    with pytest.raises(UsageError, match=f"{name} of .* only training examples have"):
        faults.require_seen(data_of(own(LABELS), split_of()), kind, "coherence")
    with pytest.raises(UsageError, match=f"{name} of .* only test examples have"):
        faults.require_seen(data_of(split_of(), own(LABELS)), kind, "coherence")


@pytest.mark.parametrize("kind", ["labels", "attributes"])
def test_classes_of_the_test_are_those_of_training_in_each_modality(kind):
    name, own = ("labels", "label") if kind == "labels" else ("attribute hue", "hue")
    classes = {"labels": LABELS} if kind == "labels" else {"attributes": {own: LABELS}}
    observed = np.stack([np.ones(N, bool), LABELS < 2], axis=1)
    train, test = split_of(observed=observed, **classes), split_of(**classes)

    def check(train, test, modalities=("x", "y"), **fields):
        dataset = data_of(train, test, **fields)
        faults.require_seen(dataset, kind, "coherence", modalities)

    words = rf"needs {name}, .* 1 of them that no training example with y has \(2\)"
    for other in (test, train):  # y is generated for examples without y too
        with pytest.raises(UsageError, match=words):
            check(train, other)
    check(test, train)
    observed[2] = True  # one example of the class is enough
    check(train, test)
    observed[2, 1] = False
    # No judge reads y, or y shows other classes, or its words name them.
    check(train, test, ("x",))
    check(train, test, shown={own: ("x",)})
    with pytest.raises(UsageError, match=words):
        check(train, test, shown={own: ("y",)})
    check(train, test, meanings={"y": {own: {}}})


def test_words_that_begin_with_the_special_ones():
    def data(words):
        return data_of(split_of(modalities={"x": LABELS[:, None]}), words={"x": words})

    faults.require_specials(data(("<exc>", "<pad>", "<eos>", "a")), "x")
    for words in ("abc", ("<pad>", "<exc>", "<eos>", "a"), ("<exc>", "<pad>")):
        with pytest.raises(UsageError, match="words of x do not begin with <exc>, "):
            faults.require_specials(data(tuple(words)), "x")


TOKENS = np.arange(2 * N, dtype=np.int32).reshape(N, 2) % 4
NOTES = {
    "nothing": (split_of(labels=LABELS), split_of(labels=LABELS), ""),
    "never in the test": (
        split_of(),
        split_of(observed=np.tile([True, False], (N, 1))),
        "no test example has y",
    ),
    "constant": (
        split_of(modalities={"x": VECTORS, "y": 0 * IMAGES + np.uint8(7)}),
        split_of(modalities={"x": VECTORS, "y": IMAGES}),
        "all training examples of y are alike",
    ),
    "words": (
        split_of(modalities={"x": TOKENS // 2}),
        split_of(modalities={"x": TOKENS}),
        "test examples of x have 2 words that no training example has (c, d)",
    ),
    "mask": (
        split_of(modalities={"x": VECTORS, "mask": np.float32(VECTORS[:, :1] > 0)}),
        split_of(modalities={"x": VECTORS, "mask": np.float32(VECTORS[:, :1] > 0)}),
        "mask holds a 0 or 1 for each other modality",
    ),
    "floats": (
        split_of(modalities={"x": np.float32(IMAGES / 255)}),
        split_of(modalities={"x": np.float32(IMAGES / 255)}),
        "x looks like images given as floats, and is taken for vectors",
    ),
    "labels": (
        split_of(labels=LABELS),
        split_of(),
        "only training examples have labels",
    ),
    "attributes": (
        split_of(),
        split_of(attributes={"colour": LABELS}),
        "only test examples have attribute colour",
    ),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_may_be_meant_is_said(case):
    train, test, expected = NOTES[case]
    lines = faults.notes(data_of(train, test, words={"x": tuple("abcd")}))
    assert len(lines) == bool(expected)
    assert all(line.startswith(expected) and "\n" not in line for line in lines)


LIKE_FLOATS, LIKE_CHANNELS = "x looks like images given", "x looks like images [N, C, H"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((16, 16), LIKE_FLOATS),
        ((16, 16, 3), LIKE_FLOATS),
        ((16, 16, 4), LIKE_FLOATS),
        ((3, 16, 16), LIKE_FLOATS),
        ((1, 28, 28), LIKE_FLOATS),
        ((4, 8, 20), LIKE_FLOATS),
        ((16, 16, 5), ""),
        ((5, 16, 16), ""),
        ((3, 7, 16), ""),
        ((16,), ""),
        ((3, 16), ""),
        ((3, 16, 16, 16), ""),
    ],
)
def test_floats_that_look_like_images_are_noted(shape, expected):
    x = RNG.random((N, *shape), np.float32)
    assert [line[: len(expected)] for line in faults.notes(alone(x))] == (
        [expected] if expected else []
    )
    assert faults.notes(alone(x - 0.5)) == []


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 16, 16), LIKE_CHANNELS),
        ((2, 8, 20), LIKE_CHANNELS),
        ((16, 16, 4), ""),
        ((4, 16, 7), ""),
        ((5, 16, 16), ""),
    ],
)
def test_images_that_look_transposed_are_noted(shape, expected):
    x = RNG.integers(0, 256, (N, *shape), dtype=np.uint8)
    assert [line[: len(expected)] for line in faults.notes(alone(x))] == (
        [expected] if expected else []
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize(
    ("shape", "words", "is_noted"),
    [
        ((2,), ("0", "1"), True),
        ((2,), ("no", "yes"), False),
        ((3,), ("0", "1"), False),
        ((2,), ("0", "1", "2"), False),
    ],
)
def test_masks_that_are_trained_on_are_noted(shape, words, is_noted, dtype):
    x = RNG.integers(0, len(words), (N, *shape)).astype(dtype)
    others = {"image": IMAGES, "y": VECTORS}
    own = {"mask": words} if dtype == np.int32 else {}
    lines = faults.notes(data_of(split_of(modalities=others | {"mask": x}), words=own))
    is_noted = is_noted or (not own and words == ("no", "yes"))
    assert [line[:18] for line in lines] == is_noted * ["mask holds a 0 or "]


def test_pairs_of_modalities_that_training_never_has_are_noted():
    def split(*rows):
        own = None if not rows else np.array(rows, bool)[np.arange(N) % len(rows)]
        modalities = {"a": VECTORS, "b": 2 * VECTORS, "c": 3 * VECTORS}
        return split_of(modalities=modalities, observed=own)

    def said(train, test):
        return [line.split(": ")[1] for line in faults.notes(data_of(train, test))]

    a_or_b, alone = split([1, 0, 1], [0, 1, 1]), split(*np.eye(3))
    assert said(a_or_b, split()) == ["a and b"]
    assert said(alone, split()) == ["a and b, a and c, b and c"]
    assert said(alone, split([1, 0, 0], [0, 1, 1])) == ["b and c"]
    assert said(a_or_b, a_or_b) == said(alone, alone) == said(split(), alone) == []
    assert said(split([1, 1, 0], [1, 0, 1], [0, 1, 1]), split()) == []
