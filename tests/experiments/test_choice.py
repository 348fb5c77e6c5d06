"""Beta is chosen without the seed that it is judged by."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.judging import paper, statistics
from experiments.plans import choice

NUM_TRIALS = 1_000
# Of t with 4 degrees of freedom, for three seeds of each of two models.
NOMINAL = 0.058


def test_each_seed_is_judged_where_the_others_are_best():
    values = np.array([[9.0, 1.0, 2.0], [5.0, 6.0, 4.0]])
    # Without seed 0 the means are 1.5 and 5, without 1 5.5 and 4.5, without 2 5, 5.5.
    found = choice.estimate(values, values)
    assert found.places == (1, 0, 1)
    assert found.mean == pytest.approx((5 + 1 + 4) / 3)
    assert found.std == pytest.approx(np.std([5, 1, 4], ddof=1))
    # Of two seeds, each is judged where the other one is best.
    without = [(6 + 4) / 2, (5 + 2) / 2, (5 + 1) / 2]
    error = np.sqrt(2 / 3 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert found.error == pytest.approx(error)


@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=6),
    st.integers(0, 5),
)
def test_a_clear_choice_has_the_mean_and_its_standard_error(values, others):
    own = np.array(values)
    worse = np.full((others, len(own)), -1e6)
    if others and len(own) < choice.LEAST_SEEDS:
        worse = worse[:0]  # two seeds cannot say what a choice without one is
    table = np.concatenate([worse, own[None]])
    found = choice.estimate(table, table)
    assert found.mean == pytest.approx(own.mean())
    expected = own.std(ddof=1) / math.sqrt(len(own))
    assert found.error == pytest.approx(expected, abs=1e-6)
    assert set(found.places) == {len(worse)}


def test_what_a_seed_says_of_itself_does_not_choose_its_beta():
    values = np.random.default_rng(0).normal(size=(6, 4))
    places = choice.choose(values)
    for seed in range(4):
        changed = values.copy()
        changed[:, seed] = np.random.default_rng(seed).normal(size=6) * 100
        assert choice.choose(changed)[seed] == places[seed]


def test_members_that_diverged_neither_choose_nor_are_judged():
    nan = np.nan
    values = np.array([[1.0, 2.0, 3.0], [9.0, nan, 8.0]])
    found = choice.estimate(values, values)
    assert found.places == (1, 1, 1) and found.num == 2
    assert found.mean == pytest.approx(8.5)


def test_one_seed_chooses_nothing():
    values = np.array([[1.0], [2.0]])
    found = choice.estimate(values, values)
    assert found.places == (-1,) and found.num == 0
    assert math.isnan(found.mean) and math.isnan(found.error)
    only = choice.estimate(values[:1], values[:1])
    assert only.mean == 1.0 and math.isnan(only.error)  # no choice, and no error


def test_scores_may_be_others_than_what_is_judged():
    scores = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    values = np.array([[7.0, 8.0, 9.0], [1.0, 2.0, 3.0]])
    assert choice.estimate(values, scores).mean == pytest.approx(2.0)


def _point(values):
    found = choice.estimate(values, values)
    return statistics.Point("", math.nan, *found[:4])


def _best_mean(values):
    """The way of before: the beta with the best mean, judged by that mean."""
    own = values[values.mean(axis=1).argmax()]
    mean, std = own.mean(), own.std(ddof=1)
    return statistics.at_one_beta("", math.nan, mean, std, len(own))


def _false_claims(seed, means, point):
    """How often a model seems ahead, or behind, of one with a single good beta."""
    rng = np.random.default_rng(seed)
    z = []
    for _ in range(NUM_TRIALS):
        own = point(rng.normal(size=(len(means), 3)) + np.array(means)[:, None])
        other = point(rng.normal(size=(1, 3)))
        z.append(statistics.combine([(1, own), (-1, other)])[2])
    z = np.array(z)
    return np.mean(z >= paper.THRESHOLD), np.mean(z <= -paper.THRESHOLD)


def test_betas_that_are_alike_gain_nothing_by_their_number():
    """Six betas alike and three seeds; the model has no advantage that is true."""
    flat, peaked = [0.0] * 6, [0.0] + [-50.0] * 5
    ahead, _ = _false_claims(0, flat, _best_mean)
    assert 0.15 < ahead < 0.21  # three times too often
    ahead, behind = _false_claims(0, flat, _point)
    assert 0.03 < ahead < NOMINAL + 0.01
    assert 0.02 < behind < NOMINAL + 0.01
    # Where there is nothing to choose, both are what they were.
    assert _false_claims(0, peaked, _point) == _false_claims(0, peaked, _best_mean)
    assert _false_claims(0, peaked, _point)[0] == pytest.approx(NOMINAL, abs=0.02)


def test_the_standard_error_holds_what_the_choice_adds():
    """The spread over seeds alone is half of the variance for betas alike."""
    rng = np.random.default_rng(1)
    found = [choice.estimate(v, v) for v in rng.normal(size=(2_000, 6, 3))]
    variance = np.var([f.mean for f in found])
    of_spread = np.mean([f.std**2 / f.num for f in found])
    of_jackknife = np.mean([f.error**2 for f in found])
    assert np.mean([f.mean for f in found]) == pytest.approx(0, abs=0.05)
    assert of_spread < 0.6 * variance  # and so it is not used
    assert variance < of_jackknife < 2 * variance
