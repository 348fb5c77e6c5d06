"""Finished runs as data: the agreement of two measures."""

import numpy as np
import pytest
import scipy.stats

from experiments import results


def test_rank_agreement_is_spearmans_correlation():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 40)  # with ties
    y = x + rng.normal(0, 2, 40)
    found = results.rank_agreement(x, y, seed=0)
    assert found.rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert found.low < found.rho < found.high
    reference = scipy.stats.bootstrap(
        (x, y),
        lambda x, y: scipy.stats.spearmanr(x, y).statistic,
        n_resamples=1_000,
        paired=True,
        vectorized=False,
        method="percentile",
        random_state=1,
    ).confidence_interval
    assert found[1:] == pytest.approx(tuple(reference), abs=0.05)


def test_rank_agreement_knows_ranks_only():
    x = np.array([0.1, 0.5, 0.2, 0.9, 0.3])
    assert results.rank_agreement(x, np.exp(9 * x)) == (1.0, 1.0, 1.0)
    assert results.rank_agreement(x, -(x**3)) == (-1.0, -1.0, -1.0)


def test_rank_agreement_depends_on_its_seed_alone():
    x, y = np.random.default_rng(0).normal(size=(2, 12))
    found = results.rank_agreement(x, y, seed=3)
    assert found == results.rank_agreement(x, y, seed=3)
    other = results.rank_agreement(x, y, seed=4)
    assert other.rho == found.rho and other[1:] != found[1:]


def test_the_interval_covers_the_true_correlation():
    # Of a normal pair with correlation r, Spearman's is 6 / pi asin(r / 2).
    rng = np.random.default_rng(0)
    truth, covered = 6 / np.pi * np.arcsin(0.6 / 2), 0
    for seed in range(100):
        x, noise = rng.normal(size=(2, 40))
        y = 0.6 * x + 0.8 * noise
        found = results.rank_agreement(x, y, seed, num_resamples=400)
        covered += found.low <= truth <= found.high
    assert 85 <= covered <= 99


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([], [])]
)
def test_no_correlation_is_defined(x, y):
    assert np.isnan(results.rank_agreement(x, y)).all()


def test_runs_without_a_value_are_left_out():
    x, y = np.random.default_rng(0).normal(size=(2, 10))
    found = results.rank_agreement(
        np.append(x, [np.nan, 5.0]), np.append(y, [9.0, np.inf])
    )
    assert found == results.rank_agreement(x, y)
    with pytest.raises(ValueError, match="shapes differ"):
        results.rank_agreement(x, y[:-1])
