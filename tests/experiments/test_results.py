"""Finished runs as data: their long table, and the agreement of two measures."""

import numpy as np
import pytest
import scipy.stats

from experiments.plans import runs


def summary(members, model="mvae"):
    """Members as (beta, seed, finite, metrics)."""
    names = ("beta", "seed", "finite", "metrics")
    rows = [dict(zip(names, m, strict=True)) | {"learning_rate": 0.1} for m in members]
    return {"model": model, "dataset": "digits", "members": rows}


MEMBERS = [
    (1.0, 0, True, {"a": 2.0, "b": 1.0}),
    (1.0, 1, True, {"a": 5.0, "b": None}),
    (3.0, 0, True, {"a": 7.0}),
    (3.0, 1, False, {"a": 1e9, "b": 3.0}),
    (9.0, 0, False, {"a": 1e9, "b": 3.0}),
]


def test_the_long_table_has_a_row_for_each_member_and_metric():
    table = runs.long_table({"x": summary(MEMBERS), "y": summary(MEMBERS[:1])})
    assert list(table.columns) == runs.COLUMNS
    assert list(table["run"]) == ["x"] * 10 + ["y"] * 2
    assert list(table["tag"]) == ["a", "b"] * 6
    first = table.iloc[0].to_dict()
    assert first == {
        **{"run": "x", "dataset": "digits", "model": "mvae", "beta": 1.0, "seed": 0},
        **{"learning_rate": 0.1, "finite": True, "tag": "a", "value": 2.0},
    }
    assert np.isnan(table["value"]).sum() == 2  # not measured, or not there


def test_spreads_leave_out_what_diverged_and_invent_nothing():
    found = runs.spreads(runs.long_table({"x": summary(MEMBERS)}))
    rows = {(row.beta, row.tag): list(row)[3:] for row in found.itertuples(index=False)}
    assert rows[1.0, "a"] == [3.5, pytest.approx(np.std([2, 5], ddof=1)), 2, 0]
    one, of_none = rows[3.0, "a"], [np.nan, np.nan]
    assert one[0] == 7.0 and np.isnan(one[1]) and one[2:] == [1, 1]
    np.testing.assert_equal(rows[1.0, "b"], [*of_none, 2, 0])  # one seed lacks it
    np.testing.assert_equal(rows[3.0, "b"], [*of_none, 1, 1])
    np.testing.assert_equal(rows[9.0, "a"], [*of_none, 0, 1])
    assert len(rows) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_has_no_mean(value):
    members = [(1.0, 0, True, {"a": value}), (1.0, 1, True, {"a": 1.0})]
    found = runs.spreads(runs.long_table({"x": summary(members)}))
    assert found[["mean", "std"]].isna().all(axis=None)


def test_no_runs_have_an_empty_table():
    table = runs.long_table({})
    assert table.empty and list(table.columns) == runs.COLUMNS
    assert runs.spreads(table).empty


def test_spreads_by_learning_rate():
    members = summary(MEMBERS[:2])
    members["members"][1]["learning_rate"] = 0.2
    by = ["learning_rate", "beta", "tag"]
    found = runs.spreads(runs.long_table({"x": members}), by)
    assert list(found[found["tag"] == "a"]["mean"]) == [2.0, 5.0]


def test_rank_agreement_is_spearmans_correlation():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 40)  # with ties
    y = x + rng.normal(0, 2, 40)
    found = runs.rank_agreement(x, y, seed=0)
    assert found.rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert found.low < found.rho < found.high
    rows = np.random.default_rng(1).integers(0, len(x), (1_000, len(x)))
    rhos = [scipy.stats.spearmanr(x[row], y[row]).statistic for row in rows]
    reference = np.quantile(rhos, [0.025, 0.975])
    assert found[1:] == pytest.approx(tuple(reference), abs=0.05)


@pytest.mark.filterwarnings("error")
def test_resamples_of_one_value_are_left_out():
    found = runs.rank_agreement([1, 2, 3], [1, 3, 2])
    assert found.low == -1.0 and found.high == 1.0


def test_rank_agreement_knows_ranks_only():
    x = np.array([0.1, 0.5, 0.2, 0.9, 0.3])
    assert runs.rank_agreement(x, np.exp(9 * x)) == pytest.approx((1.0, 1.0, 1.0))
    assert runs.rank_agreement(x, -(x**3)) == pytest.approx((-1.0, -1.0, -1.0))


def test_rank_agreement_depends_on_its_seed_alone():
    x, y = np.random.default_rng(0).normal(size=(2, 12))
    found = runs.rank_agreement(x, y, seed=3)
    assert found == runs.rank_agreement(x, y, seed=3)
    other = runs.rank_agreement(x, y, seed=4)
    assert other.rho == found.rho and other[1:] != found[1:]


def test_the_interval_covers_the_true_correlation():
    # Of a normal pair with correlation r, Spearman's is 6 / pi asin(r / 2).
    rng = np.random.default_rng(0)
    truth, covered = 6 / np.pi * np.arcsin(0.6 / 2), 0
    for seed in range(100):
        x, noise = rng.normal(size=(2, 40))
        y = 0.6 * x + 0.8 * noise
        found = runs.rank_agreement(x, y, seed, num_resamples=400)
        covered += found.low <= truth <= found.high
    assert 85 <= covered <= 99


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([], [])]
)
def test_no_correlation_is_defined(x, y):
    assert np.isnan(runs.rank_agreement(x, y)).all()


def test_runs_without_a_value_are_left_out():
    x, y = np.random.default_rng(0).normal(size=(2, 10))
    found = runs.rank_agreement(
        np.append(x, [np.nan, 5.0]), np.append(y, [9.0, np.inf])
    )
    assert found == runs.rank_agreement(x, y)
    with pytest.raises(ValueError, match="shapes differ"):
        runs.rank_agreement(x, y[:-1])
