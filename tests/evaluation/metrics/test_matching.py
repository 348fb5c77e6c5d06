"""Matching: 0 for what is generated regardless, 1 for what is real."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import NUM_CLASSES, label_images, toy_model, toy_split

from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import EvaluationData, Matchers
from mmvae_jax.evaluation.metrics import matching, retrieval
from mmvae_jax.types import Gaussian

MODALITIES = ("m0", "m1", "m2")
LABELS = np.random.default_rng(0).integers(0, NUM_CLASSES, 237)
SCALE = 4.0


def embed(images):
    """One direction a class, read off `label_images`."""
    labels = jnp.round(images.reshape(len(images), -1).mean(1) * 255 / 20)
    return jnp.where(
        jnp.isnan(labels)[:, None],
        jnp.nan,
        jax.nn.one_hot(labels.astype(int), NUM_CLASSES),
    )


def make_matchers(embed=embed, scale=SCALE):
    pairs = matching._ordered_pairs(MODALITIES)
    return Matchers(dict.fromkeys(MODALITIES, embed), dict.fromkeys(pairs, scale))


def make_data(labels=LABELS, batch_size=50, **options):
    split = toy_split(dict.fromkeys(MODALITIES, label_images(labels)), labels)
    return EvaluationData(None, split, None, batch_size, make_matchers(**options))


def model_of(generate):
    """Generates m0, m1, m2 from (the observed label [B], rng) -> labels [B, 3]."""
    rng = np.random.default_rng(7)

    def encode(params, batch):
        values = jnp.stack([batch[m][:, 0, 0, :] for m in MODALITIES])
        return Gaussian(values + params, jnp.full_like(values, -60.0))

    def posterior(params, experts, subset, key):
        first = np.argmax(np.asarray(subset))
        return Gaussian(experts.mean[first], experts.log_variance[first])

    def decode(params, z):
        labels = generate(np.round(np.asarray(z[:, 0]) * 255 / 20), rng)
        images = (20 / 255 * labels).astype(np.float32)[:, :, None, None, None]
        images = np.broadcast_to(images + params, (len(z), 3, 2, 2, 1))
        return {m: images[:, i] for i, m in enumerate(MODALITIES)}

    def sample_prior(params, key, num):
        return rng.integers(0, NUM_CLASSES, (num, 1)) * 20 / 255

    return toy_model(
        MODALITIES,
        1,
        encode=encode,
        posterior=posterior,
        decode=decode,
        sample_prior=sample_prior,
    )


def repeat(labels):
    return np.repeat(labels[:, None], 3, axis=1)


def right(labels, rng):
    return repeat(labels)


def partly(share):
    """Right with this probability, else random."""

    def generate(labels, rng):
        is_right = rng.random((len(labels), 3)) < share
        random = rng.integers(0, NUM_CLASSES, (len(labels), 3))
        return np.where(is_right, repeat(labels), random)

    return generate


def run(generate, params=0.0, **options):
    data = make_data(**options)
    return matching.matching(model_of(generate), params, data, jax.random.key(0))


SCORES = (
    "matching/leave_one_out",
    "matching/leave_one_out/m0",
    "matching/leave_one_out/m1",
    "matching/leave_one_out/m2",
    "matching/size_1",
    "matching/joint",
)


def test_all_tags_and_no_others():
    tags = run(right)
    accuracies = {f"matching/accuracy{m}" for m in ("", "/m0", "/m1", "/m2")}
    recalls = {
        f"matching/{name}_at_{k}{pair}"
        for k in retrieval.RANKS
        for name in ("recall", "real_recall")
        for pair in (
            "",
            *(f"/{y}_to_{x}" for x, y in matching._ordered_pairs(MODALITIES)),
        )
    } | {f"matching/recall_at_{k}/chance" for k in retrieval.RANKS}
    assert tags.keys() == {*SCORES, *accuracies, "matching/lift", *recalls}
    assert all(type(value) is float for value in tags.values())


def test_generated_as_real_ones_are():
    tags = run(right)
    for tag in SCORES[:-1]:
        assert tags[tag] == pytest.approx(1, abs=1e-6), tag
    # The prior's classes have other frequencies than the test labels.
    assert tags["matching/joint"] == pytest.approx(1, abs=0.1)


def test_what_it_was_generated_from_is_retrieved():
    """By networks that know each of 12 examples; and by classes, of which many are."""

    def direction(images):
        place = jnp.round(images.reshape(len(images), -1).mean(1) * 255 / 20)
        return jax.nn.one_hot(place.astype(int), 12)

    def recalls(generate, name="recall", **options):
        tags = run(generate, **options)
        return [tags[f"matching/{name}_at_{k}"] for k in retrieval.RANKS]

    known = dict(labels=np.arange(12), embed=direction)
    for name in ("recall", "real_recall"):
        assert recalls(right, name, **known) == [1, 1, 1]
    # Of another example: one candidate is ahead of the partner, which ties with 10.
    wrong = lambda labels, rng: repeat((labels + 1) % 12)  # noqa: E731
    assert recalls(wrong, **known) == pytest.approx([0, 4 / 11, 9 / 11])
    assert recalls(wrong, "real_recall", **known) == [1, 1, 1]
    # Each is found by chance among those of its class: C / N at 1.
    classes = NUM_CLASSES / len(LABELS)
    expected = [k * classes for k in retrieval.RANKS]
    assert recalls(right) == recalls(right, "real_recall") == pytest.approx(expected)
    tags = run(lambda labels, rng: np.full((len(labels), 3), 2))
    for k in retrieval.RANKS:
        chance = tags[f"matching/recall_at_{k}/chance"]
        assert chance == k / len(LABELS)
        assert tags[f"matching/recall_at_{k}"] == pytest.approx(chance)


def test_recall_is_of_single_given_modalities():
    """m0 and m2 are right, m1 is of the next of five classes."""

    def generate(labels, rng):
        return np.stack([labels, (labels + 1) % 5, labels], axis=1)

    tags = run(generate, labels=np.arange(5))
    assert tags["matching/recall_at_1/m0_to_m1"] == 1
    assert tags["matching/recall_at_1/m1_to_m0"] == 0
    assert tags["matching/recall_at_1"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_share_of_right_classes(share):
    labels = np.arange(2_000) % NUM_CLASSES
    tags = run(partly(share), labels=labels, batch_size=500)
    for tag in SCORES[:-1]:
        assert tags[tag] == pytest.approx(share, abs=0.04), tag
    # Both are right, or they match by chance.
    assert tags["matching/joint"] == pytest.approx(share**2, abs=0.04)


def test_what_is_generated_regardless_scores_exactly_zero():
    tags = run(lambda labels, rng: np.full((len(labels), 3), 2))
    for tag in SCORES[:-1]:
        assert tags[tag] == pytest.approx(0, abs=1e-5), tag
    # But they agree, as for the labelled joint coherence.
    assert tags["matching/joint"] == pytest.approx(1, abs=0.1)


def test_wrong_classes_score_below_zero():
    tags = run(lambda labels, rng: repeat((labels + 1) % NUM_CLASSES))
    assert tags["matching/leave_one_out"] < -0.15
    # Its own modalities agree.
    assert tags["matching/joint"] == pytest.approx(1, abs=0.1)


def test_targets_are_averaged_over_what_they_were_given():
    """m2 is always the same; m0 and m1 are right."""
    tags = run(lambda labels, rng: repeat(labels) * [1, 1, 0])
    assert tags["matching/leave_one_out/m0"] == pytest.approx(1, abs=1e-6)
    assert tags["matching/leave_one_out/m2"] == pytest.approx(0, abs=1e-5)
    assert tags["matching/leave_one_out"] == pytest.approx(2 / 3, abs=1e-5)
    assert tags["matching/size_1"] == pytest.approx(4 / 6, abs=1e-5)
    assert tags["matching/joint"] == pytest.approx(2 / 6, abs=0.1)


def unit(rng, num):
    values = rng.normal(size=(num, 6)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_shuffled_pairs_have_a_lift_of_one():
    """Exactly, over all shuffles, whatever the features are."""
    rng = np.random.default_rng(0)
    x, y = unit(rng, 23), unit(rng, 23)
    lifts = [matching.pair_statistics(np.roll(x, k, 0), y, 9.0)[0] for k in range(23)]
    np.testing.assert_allclose(np.mean(lifts, axis=0), 1.0, rtol=1e-5)
    real = 1 + rng.exponential(size=23)
    assert matching.calibrate(np.ones(23), real) == 0.0
    assert matching.calibrate(real, real) == 1.0


def test_lifts_and_wins_in_closed_form():
    counts = np.bincount(LABELS, minlength=NUM_CLASSES)
    x = np.eye(NUM_CLASSES, dtype=np.float32)[LABELS]
    lifts, wins = matching.pair_statistics(x, x, SCALE)
    num, own = len(LABELS), counts[LABELS]
    expected = num * np.exp(SCALE) / (own * np.exp(SCALE) + num - own)
    np.testing.assert_allclose(lifts, expected, rtol=1e-5)
    np.testing.assert_allclose(wins, (num - own + 0.5 * (own - 1)) / (num - 1))
    # The tags are the means of these.
    tags = run(right)
    assert tags["matching/lift"] == pytest.approx(expected.mean(), rel=1e-5)
    assert tags["matching/accuracy/m1"] == pytest.approx(wins.mean())


def test_joint_lifts_in_closed_form():
    directions = np.eye(NUM_CLASSES, dtype=np.float32)
    real = directions[LABELS]
    x, y = directions[[0, 1, 0]], directions[[0, 1, 3]]
    lifts = matching.joint_lifts(x, y, real, SCALE)
    counts, num = np.bincount(LABELS, minlength=NUM_CLASSES), len(LABELS)
    for i, (first, second) in enumerate(((0, 0), (1, 1), (0, 3))):
        own = np.exp(SCALE * (first == second))
        among = counts[second] * np.exp(SCALE) + num - counts[second]
        assert lifts[i] == pytest.approx((num + 1) * own / (own + among), rel=1e-5)


def test_rows_are_taken_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = unit(rng, 57), unit(rng, 57)
    whole = matching.pair_statistics(x, y, 3.0)
    joint = matching.joint_lifts(x, y, x, 3.0)
    monkeypatch.setattr(matching, "_ROWS_AT_ONCE", 20)
    np.testing.assert_allclose(matching.joint_lifts(x, y, x, 3.0), joint, rtol=1e-5)
    for part, all_at_once in zip(
        matching.pair_statistics(x, y, 3.0), whole, strict=True
    ):
        np.testing.assert_allclose(part, all_at_once, rtol=1e-5)


def test_the_batch_size_does_not_matter():
    small, large = run(right, batch_size=16), run(right, batch_size=500)
    for tag in set(small) - {"matching/joint"}:
        assert small[tag] == pytest.approx(large[tag], rel=1e-5), tag


def test_matchers_that_tell_nothing_have_no_scale():
    constant = jnp.ones(NUM_CLASSES) / np.sqrt(NUM_CLASSES)
    tags = run(right, embed=lambda images: jnp.tile(constant, (len(images), 1)))
    assert all(np.isnan(tags[tag]) for tag in SCORES)
    assert tags["matching/accuracy"] == 0.5
    assert tags["matching/lift"] == pytest.approx(1)


def test_scores_of_noise_are_not_a_number():
    rng = np.random.default_rng(0)
    lifts = 1 + rng.normal(size=400)
    assert np.isnan(matching.calibrate(lifts, lifts - lifts.mean() + 1.1))
    assert np.isfinite(matching.calibrate(lifts, lifts - lifts.mean() + 1.3))


def test_a_diverged_model_has_no_score():
    tags = run(right, params=jnp.nan)
    assert all(np.isnan(tags[tag]) for tag in SCORES)
    assert tags["matching/accuracy"] > 0.8


def test_one_modality_has_nothing_to_match():
    model = toy_model(("m0",), 1)
    assert matching.matching(model, None, make_data(), jax.random.key(0)) == {}


def test_without_matchers():
    data = make_data()._replace(matchers=None)
    with pytest.raises(UsageError, match="'matching' needs.*m0, m1, m2"):
        matching.matching(model_of(right), 0.0, data, jax.random.key(0))
    with pytest.raises(UsageError, match="all modalities, at least 2, got 1"):
        run(right, labels=LABELS[:1])


def test_modalities_that_share_nothing_are_no_pair():
    """m2 is of another class than m0 and m1, and matches neither."""
    other = np.random.default_rng(1).integers(0, NUM_CLASSES, len(LABELS))
    data = make_data()
    data.test.modalities["m2"] = label_images(other)
    mixed = matching.matching(model_of(right), 0.0, data, jax.random.key(0))
    assert np.isnan(mixed["matching/leave_one_out"])  # nothing tells real pairs of m2
    own = data._replace(shown={"label": ("m0", "m1")})
    tags = matching.matching(model_of(right), 0.0, own, jax.random.key(0))
    assert tags["matching/size_1"] == pytest.approx(1, abs=1e-6)
    assert not any(tag.endswith("/m2") for tag in tags)
    assert np.isfinite(list(tags.values())).all()
    split = data.test._replace(attributes={"size": LABELS})
    sized = own._replace(test=split, shown={"label": ("m0", "m1"), "colour": ("m2",)})
    assert sized.share("m0", "m2")  # the size is not listed: all show it
    nothing = own._replace(shown={"label": ()})
    assert matching.matching(model_of(right), 0.0, nothing, jax.random.key(0)) == {}
