import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvae_jax import tokens

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=6)
TEXTS = st.one_of(st.text(), st.lists(WORDS).map(" ".join))


@pytest.mark.parametrize(
    "text, words",
    [
        ("This bird is Red.", ["this", "bird", "is", "red"]),
        ("the bird's crown, the birds\u2019 tails", "the birds crown the birds tails"),
        ("black-and-white; 3.5 inches", "black and white 3 5 inches"),
        ("<eos> <pad> a_b", "eos pad a b"),
        ("\u00c9toile \ufffd blanche\r\n", "\u00e9toile blanche"),
        (" . - ' ", []),
        ("", []),
    ],
)
def test_words_of_a_text(text, words):
    assert tokens.tokenize(text) == (words.split() if isinstance(words, str) else words)


@given(TEXTS)
def test_words_are_words_of_their_own(text):
    words = tokens.tokenize(text)
    assert tokens.tokenize(" ".join(words)) == words
    assert not set(words) & set(tokens.SPECIALS)
    assert all(word and not set(word) & set(" '-.,\n") for word in words)


@given(st.lists(TEXTS, max_size=5), st.integers(0, 4))
def test_what_was_encoded_is_decoded(texts, spare):
    words = tokens.build_vocabulary(texts)
    longest = max([len(tokens.tokenize(text)) for text in texts], default=0)
    rows = tokens.encode(texts, words, longest + 1 + spare)
    assert rows.dtype == np.int32 and rows.shape == (len(texts), longest + 1 + spare)
    for text, row in zip(texts, rows, strict=True):
        assert tokens.decode(row, words) == " ".join(tokens.tokenize(text))
        assert (row == tokens.EOS).sum() == 1
        assert not (row == tokens.EXC).any()


@given(st.lists(TEXTS, max_size=8), st.integers(1, 4))
def test_the_vocabulary_holds_what_occurs_often_enough(texts, min_count):
    found = [word for text in texts for word in tokens.tokenize(text)]
    words = tokens.build_vocabulary(texts, min_count)
    assert tuple(words[:3]) == tokens.SPECIALS and len(set(words)) == len(words)
    kept = words[3:]
    assert set(kept) == {w for w in found if found.count(w) >= min_count}
    assert kept == sorted(kept, key=lambda w: (-found.count(w), w))


def test_a_row_written_out():
    words = [*tokens.SPECIALS, "a", "red", "bird"]
    rows = tokens.encode(["A red bird!", "a blue bird", "", "a a a a a a"], words, 5)
    np.testing.assert_array_equal(
        rows, [[3, 4, 5, 2, 1], [3, 0, 5, 2, 1], [2, 1, 1, 1, 1], [3, 3, 3, 3, 2]]
    )
    assert tokens.decode(rows[1], words) == "a <exc> bird"


def test_generated_rows_may_be_anything():
    words = [*tokens.SPECIALS, "a", "bird"]
    assert tokens.decode([1, 3, 1, 4, 2, 0, 3], words) == "a bird"
    assert tokens.decode([3, 3, 4], words) == "a a bird"
    assert tokens.decode([2, 3], words) == tokens.decode([], words) == ""


def test_a_vocabulary_without_special_words():
    words = ["empty", "light", "grey", "dark", "<pad>"]
    assert tokens.decode([0, 1, 2, 3, 4, 4], words) == "empty light grey dark"


def test_attributes_are_read_from_words():
    meanings = {
        "size": {"big": "large", "huge": "large", "tiny": "small"},
        "colour": {"red": "red"},
    }

    def read(text):
        return tuple(tokens.read_attributes(text.split(), meanings).values())

    assert read("a huge red bird") == ("large", "red")
    assert read("big huge") == ("large", None)
    assert read("red big tiny red") == (None, "red")
    assert read("") == (None, None)
