import jax
import numpy as np
import pytest
from toy_models import averaging_model, toy_split

from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import retrieval
from mmvae_jax.types import SHARED

MODALITIES = ("m0", "m1")


def test_ranks_by_angle():
    angles = np.deg2rad([0, 10, 40, 90, 180])
    codes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lengths = np.array([[1], [5], [0.1], [2], [3]])
    assert retrieval.partner_recall(codes, lengths * codes, (1,)) == [1]
    # Partners shifted by one have the ranks 2, 3, 4, 4 or 5 (a tie), and 5.
    shifted = np.roll(codes, -1, axis=0)
    found = retrieval.partner_recall(codes, shifted, range(1, 6))
    np.testing.assert_allclose(found, [0, 0.2, 0.4, 0.7, 1])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_codes_that_are_all_the_same_find_it_by_chance(value):
    codes = np.full((1200, 3), value)
    for rank in retrieval.RANKS:
        (found,) = retrieval.partner_recall(codes, codes, (rank,))
        assert found == pytest.approx(rank / 1200)


def measure(images, params=0.0, observed=None, parts=None):
    split = toy_split(images, np.zeros(60))._replace(observed=observed)
    model = averaging_model(tuple(images), (2, 2, 1))
    model = model._replace(latent_parts=parts or model.latent_parts)
    data = EvaluationData(None, split, None, 16)
    return retrieval.retrieval(model, params, data, jax.random.key(0))


def make_images(seed=0):
    return np.random.default_rng(seed).integers(1, 250, (60, 2, 2, 1), dtype=np.uint8)


def test_partners_that_share_a_code_are_found():
    tags = measure(dict.fromkeys(MODALITIES, make_images()))
    assert [tags[f"recall_at_{rank}"] for rank in retrieval.RANKS] == [1, 1, 1]
    assert tags["recall_at_1/chance"] == 1 / 60
    tags = measure({"m0": make_images(), "m1": make_images(1)})
    assert tags["recall_at_1"] < 0.1 and tags["recall_at_10"] < 0.4
    mean = (tags["recall_at_5/m0_to_m1"] + tags["recall_at_5/m1_to_m0"]) / 2
    assert tags["recall_at_5"] == pytest.approx(mean)


def test_parts_that_are_compared():
    """Pixels 0 and 1 differ between the modalities, 2 and 3 do not."""
    images = make_images()
    other = images.copy()
    other[:, 0] = make_images(1)[:, 0]
    both = {"m0": images, "m1": other}
    assert measure(both, parts=(("m0", 2), (SHARED, 2)))["recall_at_1"] > 0.9
    assert measure(both, parts=((SHARED, 2), ("m0", 2)))["recall_at_1"] < 0.3
    # Without a shared part it is pixels 0 and 1 of m0, and 2 and 3 of m1.
    swapped = {"m0": images, "m1": images[:, ::-1]}
    assert measure(swapped, parts=(("m0", 2), ("m1", 2)))["recall_at_1"] > 0.9


def test_incomplete_examples_are_left_out_and_nan_is_nan():
    observed = np.ones((60, 2), bool)
    observed[10:, 0] = False
    tags = measure(dict.fromkeys(MODALITIES, make_images()), observed=observed)
    assert tags["recall_at_1/chance"] == 0.1 and tags["recall_at_1"] == 1
    tags = measure(dict.fromkeys(MODALITIES, make_images()), params=np.nan)
    assert np.isnan(tags["recall_at_1"])
    assert measure({"m0": make_images()}) == {}
