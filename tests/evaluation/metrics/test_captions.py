"""How varied captions are and how close to real ones, on captions written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import toy_model

from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import captions
from mmvae_jax.tokens import SPECIALS, encode
from mmvae_jax.types import Gaussian

WORDS = (*SPECIALS, "a", "red", "blue", "bird", "with", "wings", "small", "and")
TEXTS = [
    # Three photographs, of which the first has three captions, the next two.
    "a red bird with small wings",
    "a small red bird",
    "a red bird with wings and a bird",
    "a blue bird with red wings",
    "a small blue bird",
    "a bird",
]
PHOTOGRAPHS = np.array([0, 0, 0, 1, 1, 2])
LENGTH = 9


def make_split(photographs=PHOTOGRAPHS, texts=TEXTS):
    images = np.asarray(photographs, np.uint8)[:, None, None, None]
    images = np.broadcast_to(images, (len(images), 2, 2, 3))
    return Split({"image": images, "caption": encode(texts, WORDS, LENGTH)})


def make_data(split, batch_size=4):
    return EvaluationData(split, split, None, batch_size, words={"caption": WORDS})


def speaking_model(texts, prior=("a bird",)):
    """Captions photograph i with texts[i]; unconditionally with those of the prior."""
    tokens = jnp.concatenate([encode(t, WORDS, LENGTH) for t in (texts, prior)])

    def encode_images(params, batch):
        values = jnp.round(batch["image"][:, 0, 0, :1] * 255)[None]
        return Gaussian(values, jnp.full_like(values, -60.0))

    def posterior(params, experts, subset, key):
        assert np.asarray(subset).tolist() == [True, False]
        return Gaussian(*(field[0] for field in experts))

    def decode(params, z):
        rows = jnp.round(z[:, 0]).astype(int)
        one_hot = jax.nn.one_hot(tokens[rows], len(WORDS))
        return {"image": jnp.zeros((len(z), 2, 2, 3)), "caption": one_hot + params}

    def sample_prior(params, key, num):
        return jnp.float32(len(texts) + jnp.arange(num) % len(prior))[:, None]

    return toy_model(
        ("image", "caption"),
        1,
        encode=encode_images,
        posterior=posterior,
        decode=decode,
        sample_prior=sample_prior,
    )


def measure(model, split, params=0.0, **options):
    key = jax.random.key(0)
    return captions.captions(model, params, make_data(split), key, **options)


@pytest.mark.parametrize(
    ("texts", "n", "wanted"),
    [
        (["a red bird", "a blue bird"], 1, 4 / 6),
        (["a red bird", "a blue bird"], 2, 1.0),
        (["a red bird", "a red bird"], 2, 0.5),
        (["a a a a"], 1, 0.25),
        (["a a a a"], 2, 1 / 3),
        # Pairs do not reach from one caption into the next.
        (["a", "red", "a red"], 2, 1.0),
        (["a", ""], 2, np.nan),
        ([""], 1, np.nan),
    ],
)
def test_distinct(texts, n, wanted):
    assert captions.distinct(texts, n) == pytest.approx(wanted, nan_ok=True)


def test_bleu_by_hand():
    # Of 5, 4, 3, 2 runs of one to four words, 4, 3, 2, 1 are in the reference, which
    # is a word longer.
    text, reference = "a red bird with wings", "a red bird with small wings"
    found = captions.bleu([text], ((reference,),))
    precisions = [5 / 5, 3 / 4, 2 / 3, 1 / 2]
    wanted = 100 * np.exp(1 - 6 / 5) * np.prod(precisions) ** 0.25
    assert found == pytest.approx(wanted)
    # One of several references is enough, and the number may differ.
    several = ((reference, text), (reference,))
    assert captions.bleu([text, reference], several) == pytest.approx(100)
    assert captions.bleu(["blue", "wings"], several) == 0
    assert captions.bleu(["", ""], several) == 0
    assert np.isnan(captions.bleu([], ())) and np.isnan(captions.bleu(None, several))


def test_references_are_those_of_the_same_image():
    split = make_split()
    rows, references = captions.references_of(split, split, "caption", WORDS)
    assert rows.tolist() == [0, 3, 5]
    assert references == (tuple(TEXTS[:3]), tuple(TEXTS[3:5]), tuple(TEXTS[5:]))
    # Wherever in the data its copies are.
    mixed = split.take(np.array([3, 0, 5, 1, 4, 2]))
    rows, references = captions.references_of(mixed, mixed, "caption", WORDS)
    assert rows.tolist() == [0, 1, 2]
    assert references[0] == (TEXTS[3], TEXTS[4]) and len(references[1]) == 3
    # Also those of examples that are not evaluated.
    part = split.take(np.array([1, 5]))
    rows, references = captions.references_of(part, split, "caption", WORDS)
    assert rows.tolist() == [0, 1]
    assert references == (tuple(TEXTS[:3]), tuple(TEXTS[5:]))


def test_a_part_of_the_test_split_has_all_references():
    part = make_split().take(np.array([1]))
    model, key = speaking_model(TEXTS[2:3]), jax.random.key(0)
    data = make_data(part)
    alone = captions.captions(model, 0.0, data, key)
    assert alone["captions/bleu"] < 100 and "captions/real/bleu" not in alone
    data = data._replace(whole_test=make_split())
    tags = captions.captions(model, 0.0, data, key)
    assert tags["captions/bleu"] == pytest.approx(100)
    assert tags["captions/real/bleu"] > 0


def test_a_model_that_repeats_real_captions():
    tags = measure(speaking_model([TEXTS[1], TEXTS[3], TEXTS[5]]), make_split())
    assert tags["captions/bleu"] == tags["captions/bleu/caption"]
    assert tags["captions/bleu"] == pytest.approx(100)
    said = ["a small red bird", "a blue bird with red wings", "a bird"]
    assert tags["captions/words"] == np.mean([4, 6, 2])
    assert tags["captions/distinct_1/caption"] == captions.distinct(said, 1) == 7 / 12
    assert tags["captions/distinct_2"] == captions.distinct(said, 2)
    # The prior says one thing, once for each photograph.
    assert tags["captions/prior/distinct_1"] == 2 / 6
    assert tags["captions/prior/words"] == 2
    # The first real captions of the two photographs that have others, against those.
    first = [TEXTS[0], TEXTS[3]]
    wanted = captions.bleu(first, (tuple(TEXTS[1:3]), (TEXTS[4],)))
    assert tags["captions/real/bleu"] == wanted and 0 < wanted < 100
    shown = [TEXTS[0], TEXTS[3], TEXTS[5]]
    assert tags["captions/real/distinct_2"] == captions.distinct(shown, 2)
    assert all(type(value) is float for value in tags.values())
    assert len(tags) == 2 * (1 + 3 * 3 + 1)


def test_one_reference_an_image():
    split = make_split().take(np.array([0, 3, 5]))
    tags = measure(speaking_model(TEXTS[:3]), split, num_prior_samples=5)
    assert "captions/real/bleu" not in tags and "captions/bleu" in tags
    assert tags["captions/prior/distinct_1"] == 2 / 10


def test_only_complete_examples_count():
    split = make_split()
    observed = np.ones((6, 2), bool)
    observed[[1, 5], [0, 1]] = False
    tags = measure(speaking_model(TEXTS), split._replace(observed=observed))
    wanted = measure(speaking_model(TEXTS), split.take(np.array([0, 2, 3, 4])))
    assert tags == wanted
    never = split._replace(observed=np.eye(2, dtype=bool)[np.arange(6) % 2])
    with pytest.raises(UsageError, match="with all modalities, at least 1, got 0"):
        measure(speaking_model(TEXTS), never)


def test_a_diverged_model_says_nothing():
    tags = measure(speaking_model(TEXTS), make_split(), params=np.nan)
    real = {tag for tag in tags if tag.startswith("captions/real")}
    assert all(np.isnan(tags[tag]) for tag in tags.keys() - real)
    assert np.isfinite([tags[tag] for tag in real]).all()


def test_one_modality_has_nothing_to_be_given():
    split = make_split()._replace(modalities={"caption": encode(TEXTS, WORDS, LENGTH)})
    both = speaking_model(TEXTS, ("a bird", "a red bird"))
    model = toy_model(
        ("caption",), 1, decode=both.decode, sample_prior=both.sample_prior
    )
    model = model._replace(
        decode=lambda params, z: {"caption": both.decode(params, z)["caption"]}
    )
    tags = measure(model, split)
    assert tags["captions/prior/words"] == 2.5
    assert not any("bleu" in tag for tag in tags) and "captions/words" not in tags


def test_data_without_captions():
    split = make_split()
    images = split._replace(modalities={"image": split.modalities["image"]})
    with pytest.raises(UsageError, match="'captions' needs captions, and no modality"):
        measure(None, images)
