import tracemalloc

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from toy_models import averaging_model, label_classifier, toy_split

from mmvae_jax.evaluation.metric import EvaluationData, Undefined
from mmvae_jax.evaluation.metrics import precision_recall

MODALITIES = ("m0", "m1")


def brute_force(real, generated, k):
    """The definitions, with all distances at once."""

    def radii(x):
        return np.sort(cdist(x, x), axis=1)[:, k]

    distances = cdist(real, generated)
    inside = distances <= radii(real)[:, None]
    return (
        inside.any(axis=0).mean(),
        (distances <= radii(generated)[None]).any(axis=1).mean(),
        inside.sum() / (k * len(generated)),
        inside.any(axis=1).mean(),
    )


@pytest.mark.parametrize(("num_real", "num"), [(60, 60), (53, 90)])
@pytest.mark.parametrize("shift", [0.0, 0.7, 100.0])
def test_blocks_agree_with_all_distances(num_real, num, shift, monkeypatch):
    monkeypatch.setattr(precision_recall, "_ROWS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    real = rng.normal(size=(num_real, 4)) + 1e3
    generated = 0.8 * rng.normal(size=(num, 4)) + shift + 1e3
    found = precision_recall.manifold_scores(real, generated, k=3)
    np.testing.assert_allclose(found, brute_force(real, generated, 3))
    assert 0 < found.density < 2 or shift == 100


def test_known_scores_on_a_line():
    """Real 0..9: every ball of k = 1 reaches 1 to both sides, its end included."""
    real = np.arange(10.0)[:, None]
    scores = precision_recall.manifold_scores(real, real[:5] + 0.5, k=1)
    assert scores == (1.0, 0.6, 2.0, 0.6)
    far = precision_recall.manifold_scores(real, real + 100, k=1)
    assert far == (0.0, 0.0, 0.0, 0.0)


def test_copies_are_perfect_and_a_collapse_is_precise_only():
    real = np.random.default_rng(0).normal(size=(200, 5))
    copies = precision_recall.manifold_scores(real, real)
    assert copies[:2] == (1.0, 1.0) and copies.coverage == 1.0
    assert copies.density == pytest.approx(1.2, abs=1e-3)  # itself and k others
    collapsed = precision_recall.manifold_scores(real, np.repeat(real[:1], 50, 0))
    assert collapsed.precision == 1.0 and collapsed.recall == 1 / 200
    assert collapsed.coverage < 0.1


def test_equal_examples_are_at_distance_zero():
    x = np.random.default_rng(0).normal(size=(30, 7)) * 1e3
    assert (np.diag(precision_recall.squared_distances(x, x)) == 0).all()
    assert (precision_recall.squared_radii(np.repeat(x, 3, axis=0), 2) == 0).all()


def test_memory_grows_with_the_number_and_not_its_square():
    x = np.random.default_rng(0).normal(size=(3000, 4))
    tracemalloc.start()
    precision_recall.manifold_scores(x, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5.5 * 8 * 500 * 3000 < 8 * 3000**2


def make_data(num=40, observed=None):
    images = np.random.default_rng(0).integers(0, 200, (num, 2, 2, 1), dtype=np.uint8)
    split = toy_split(dict.fromkeys(MODALITIES, images), np.zeros(num))
    classifiers = dict.fromkeys(MODALITIES, label_classifier())
    return EvaluationData(None, split._replace(observed=observed), classifiers, 16)


def measure(data, params=0.0, **options):
    model = averaging_model(MODALITIES, (2, 2, 1))
    key = jax.random.key(0)
    return precision_recall.precision_recall(model, params, data, key, **options)


def test_conditional_copies_and_prior_noise():
    tags = measure(make_data())
    for name in ("precision", "recall", "coverage"):
        assert tags[f"precision_recall/leave_one_out/{name}"] == 1
        assert tags[f"precision_recall/leave_one_out/{name}/m1"] == 1
    assert tags["precision_recall/leave_one_out/density"] == pytest.approx(1.2, abs=0.1)
    # The prior also has values above 200 / 255.
    assert 0 < tags["precision_recall/prior/precision"] < 1
    assert len(tags) == 2 * 4 * 3


def test_missing_modalities_and_few_examples():
    observed = np.ones((40, 2), bool)
    observed[::2, 1] = False
    tags = measure(make_data(observed=observed))
    assert tags["precision_recall/leave_one_out/recall/m0"] == 1
    tags = measure(make_data(), num_examples=5)
    assert all(isinstance(value, Undefined) for value in tags.values())
    why = tags["precision_recall/prior/recall/m0"].reason
    assert why == "m0 (prior): more than 5 test examples are needed, there are 5"
    observed[:, 1] = False
    tags = measure(make_data(observed=observed))
    assert "there are 0" in tags["precision_recall/prior/recall/m1"].reason
    assert np.isfinite(tags["precision_recall/prior/recall/m0"])


def test_balls_without_a_size():
    """Of discrete data, of which every example has copies."""
    data = make_data()
    images = {m: np.repeat(x[:4], 10, axis=0) for m, x in data.test.modalities.items()}
    tags = measure(data._replace(test=data.test._replace(modalities=images)))
    for name in ("precision", "density", "coverage"):
        why = tags[f"precision_recall/prior/{name}/m0"].reason
        assert why == "m0 (prior): every test example has 5 copies: no ball has a size"
    assert np.isfinite(tags["precision_recall/prior/recall/m0"])


def test_what_diverged_is_nan():
    tags = measure(make_data(), params=np.nan)
    assert all(np.isnan(value) for value in tags.values())
    with pytest.raises(ValueError, match="more than 5 examples of each kind"):
        precision_recall.manifold_scores(np.zeros((9, 1)), np.zeros((5, 1)))
