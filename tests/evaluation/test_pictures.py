"""Samples as pictures and text: captions are readable, cut, and where they belong."""

import numpy as np
import pytest

from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation import pictures
from mmvae_jax.tokens import SPECIALS, encode

WORDS = {"caption": (*SPECIALS, "a", "red", "blue", "bird", "sings")}
TEXTS = ["a red bird", "a blue bird sings", "a bird"]


def rows(texts):
    return encode(texts, WORDS["caption"], 6)


def make_samples(draws=2):
    """Three examples, four unconditional samples; images are of one colour."""
    images = np.full((3, 8, 8, 3), 200, np.uint8)
    images[:, :, :, 0] = np.array([0, 100, 255], np.uint8)[:, None, None]
    test = Split({"image": images, "caption": rows(TEXTS)})
    said = [rows([f"a {w} bird" for w in ("red", "blue", "sings")])] * draws
    drawn = [np.full((3, 8, 8, 3), 0.5 * k) for k in range(draws)]
    prior = {"image": np.zeros((4, 8, 8, 3)), "caption": rows([*TEXTS, ""])}
    conditional = [
        pictures.Draws("image", "caption", test, drawn),
        pictures.Draws("caption", "image", test, said),
    ]
    return pictures.Samples(prior, conditional), test


def num_lines(picture):
    """Lines of text that have ink."""
    lines = picture.reshape(-1, pictures._LINE, *picture.shape[1:])
    return int((lines < 128).any(axis=(1, 2, 3)).sum())


def test_captions_as_text():
    samples, test = make_samples()
    assert pictures.write_captions(samples, test, WORDS).splitlines() == [
        *("caption, unconditional", ""),
        *("1. a red bird", "2. a blue bird sings", "3. a bird", "4. ", ""),
        *("image given caption: what is given", ""),
        *("1. a red bird", "2. a blue bird sings", "3. a bird", ""),
        *("caption given image", ""),
        *("1. real: a red bird", "   - a red bird", "   - a red bird"),
        *("2. real: a blue bird sings", "   - a blue bird", "   - a blue bird"),
        *("3. real: a bird", "   - a sings bird", "   - a sings bird"),
    ]
    assert pictures.write_captions(samples, test, {}) == ""


def test_captions_end_with_their_sentence():
    samples, test = make_samples()
    long = np.array([[3, 4, 2, 5, 5, 5]] * 4)
    samples = samples._replace(prior={**samples.prior, "caption": long})
    text = pictures.write_captions(samples, test, WORDS)
    assert "\n1. a red\n2. a red\n" in text and "<eos>" not in text


def test_missing_captions_are_not_read():
    samples, test = make_samples()
    observed = np.array([[True, True], [True, False], [True, True]])
    missing = test._replace(observed=observed)
    conditional = [d._replace(examples=missing) for d in samples.conditional]
    samples = samples._replace(conditional=conditional)
    text = pictures.write_captions(samples, test, WORDS)
    assert text.count("(missing)") == 2 and "2. real: (missing)" in text
    assert "2. (missing)" in text


def test_pictures_show_images_and_captions():
    samples, test = make_samples()
    grids = pictures.draw_grids(samples, test, WORDS)
    assert list(grids) == ["prior", "image_given_caption", "caption_given_image"]
    for grid in grids.values():
        assert grid.dtype == np.uint8 and grid.shape[2] == 3
        # On white, with an edge.
        assert (grid[0] == 255).all() and (grid[:, -1] == 255).all()
    # Two columns of two, each an image 64 pixels wide.
    prior = grids["prior"]
    assert (prior[8:72, 8:72] == 0).all() and (prior[80:144, 8:72] == 0).all()
    # What is given is on the left, twice as large where a list stands beside it.
    given = grids["caption_given_image"]
    assert ((given == [100, 200, 200]).all(axis=2).sum()) == 128 * 128
    drawn = grids["image_given_caption"]
    assert ((drawn == 0).all(axis=2).sum()) >= 3 * 64 * 64
    assert ((drawn == 128).all(axis=2).sum()) >= 3 * 64 * 64
    assert not any((g == [100, 200, 200]).all(axis=2).any() for g in (prior, drawn))


def test_text_is_drawn_line_by_line():
    (block,) = pictures._texts([[("a bird", (0, 0, 0)), ("sings", (0, 0, 0))]], 200)
    assert num_lines(block) == 2 and block.shape[1] < 60
    (wrapped,) = pictures._texts([[("bird " * 30, (0, 0, 0))]], 200)
    assert wrapped.shape[1] <= 201 and num_lines(wrapped) > 3
    assert num_lines(wrapped) == wrapped.shape[0] // pictures._LINE
    (empty,) = pictures._texts([[("", (0, 0, 0))]], 200)
    assert (empty == 255).all()


@pytest.mark.parametrize("length", [1, 20, 300])
def test_no_word_is_lost_in_wrapping(length):
    font = pictures.ImageFont.load_default(13)
    text = " ".join(f"w{k}" for k in range(length))
    lines = pictures._wrap(text, font, 120)
    assert " ".join(" ".join(lines).split()) == text
    assert all(font.getlength(line) <= 135 for line in lines)


def test_tokens_without_words_are_left_out():
    samples, test = make_samples()
    grids = pictures.draw_grids(samples, test, {})
    assert {name: grid.shape for name, grid in grids.items()} == {
        "prior": (8, 32, 3),
        "image_given_caption": (16, 24, 3),
    }


def test_three_kinds_of_modalities():
    """A vector given a caption, a caption given another, an image given a vector."""
    samples, test = make_samples()
    vectors = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    modalities = {"vector": vectors, **test.modalities, "other": rows(TEXTS)}
    test = Split(modalities)
    prior = {m: x[:3] for m, x in modalities.items()} | {
        "image": np.zeros((3, 8, 8, 3))
    }
    said, drawn = (d.draws for d in reversed(samples.conditional))
    conditional = [
        pictures.Draws("vector", "caption", test, [vectors] * 2),
        pictures.Draws("caption", "other", test, said),
        pictures.Draws("image", "vector", test, drawn),
    ]
    words = {"caption": WORDS["caption"], "other": WORDS["caption"]}
    samples = pictures.Samples(prior, conditional)
    grids = pictures.draw_grids(samples, test, words)
    names = ["vector_given_caption", "caption_given_other", "image_given_vector"]
    assert list(grids) == ["prior", *names]
    text = pictures.write_captions(samples, test, words)
    assert "other, unconditional" in text and "caption given other" in text


@pytest.mark.parametrize("words", [{}, WORDS])
@pytest.mark.parametrize("channels", [(5,), (2,), (3, 4), (3, 2), (1, 5)])
def test_images_of_any_channels_are_drawn(channels, words):
    """Those of other than 1 or 3 are drawn by channel, each in grey."""
    images = {
        f"m{c}": np.full((3, 8, 8, c), 10 * np.arange(1, c + 1), np.uint8)
        for c in channels
    }
    test = Split(images | ({"caption": rows(TEXTS)} if words else {}))
    prior = {m: x / 255 for m, x in images.items()} | {"caption": rows(TEXTS)}
    target = f"m{channels[-1]}"
    given = pictures.Draws(target, target, test, [images[target] / 255])
    samples = pictures.Samples(prior, [given])
    grids = pictures.draw_grids(samples, test, words)
    assert list(grids) == ["prior", f"{target}_given_{target}"]
    for grid in grids.values():
        assert grid.dtype == np.uint8 and grid.shape[2] in (1, 3)
        if channels[-1] not in (1, 3):
            assert {10 * (k + 1) for k in range(channels[-1])} <= set(grid.flat)


def test_vectors_of_any_size_are_drawn_without_a_warning():
    real = np.array([[-3e38, 3e38]], np.float32)
    with np.errstate(all="raise"):
        tiles = pictures._tiles(real, np.array([[np.inf, np.nan]], np.float32))
    assert set(tiles.flat) == {0, 128, 255}


def test_a_short_word_does_not_cut_the_name_of_its_modality():
    name, words = "quadrant_of_it", ("x", "y")
    images = np.zeros((2, 8, 8, 3), np.uint8)
    test = Split({"image": images, name: np.array([[0], [1]], np.int32)})
    given = pictures.Draws("image", name, test, [np.zeros((2, 8, 8, 3))] * 3)
    prior = {"image": images / 255, name: test.modalities[name]}
    samples = pictures.Samples(prior, [given])
    grid = pictures.draw_grids(samples, test, {name: words})[f"image_given_{name}"]
    (whole,) = pictures._texts([[(name, pictures._REAL)]], pictures._TEXT_WIDTH)
    height, width, _ = whole.shape
    start = pictures._GAP
    found = grid[start : start + height, start : start + width]
    np.testing.assert_array_equal(found, whole)
