import jax
import numpy as np
import pytest
from toy_models import averaging_model, toy_split

from mmvae_jax.evaluation import conditionals
from mmvae_jax.evaluation.metric import EvaluationData, Undefined

MODALITIES = ("m0", "m1", "m2", "m3")
NUM = 400


def make_split(observed=None):
    images = np.random.default_rng(0).integers(0, 200, (NUM, 2, 2, 1), dtype=np.uint8)
    split = toy_split(dict.fromkeys(MODALITIES, images), np.zeros(NUM))
    return split._replace(observed=observed)


def rng():
    return np.random.default_rng(1)


def test_each_example_is_given_one_of_the_subsets_of_a_size():
    one = conditionals.given_others(make_split(), "m1", 2, rng())
    assert one.name == "size_2"
    assert (one.given.sum(axis=1) == 2).all() and not one.given[:, 1].any()
    subsets, counts = np.unique(one.given, axis=0, return_counts=True)
    assert len(subsets) == 3
    assert abs(counts - NUM / 3).max() < 5 * np.sqrt(NUM * 2 / 9)


def test_conditions_of_a_modality():
    found = conditionals.conditions(make_split(), "m2", rng())
    names = ["reconstruction", "size_1", "size_2", "leave_one_out"]
    assert [one.name for one in found] == names
    assert found[0].given.all()
    np.testing.assert_array_equal(found[-1].given, [[True, True, False, True]] * NUM)
    few = conditionals.conditions(make_split(), "m2", rng(), 7)
    assert all(len(set(one.rows)) == len(one.given) == 7 for one in few)


def test_nothing_is_given_that_is_missing():
    observed = np.random.default_rng(0).random((NUM, 4)) < 0.5
    observed[:, 3] |= ~observed.any(axis=1)
    for one in conditionals.conditions(make_split(observed), "m0", rng()):
        assert observed[one.rows, 0].all()
        assert not (one.given & ~observed[one.rows]).any()
    everything = np.flatnonzero(observed.all(axis=1))
    np.testing.assert_array_equal(one.rows, everything)


def test_one_modality_is_reconstructed_alone():
    split = make_split()._replace(modalities={"m0": make_split().modalities["m0"]})
    (one,) = conditionals.conditions(split, "m0", rng())
    assert one.name == "reconstruction"


@pytest.mark.parametrize("batch_size", [64, 500])
def test_draws_are_of_what_is_given_in_the_order_of_the_rows(batch_size):
    model = averaging_model(MODALITIES, (2, 2, 1), shift=1 / 255)
    data = EvaluationData(None, make_split(), None, batch_size)
    for one in conditionals.conditions(data.test, "m1", rng(), 150):
        found = conditionals.draw(model, 0.0, data, one, jax.random.key(0))
        real = data.test.modalities["m1"][one.rows].astype(int)
        missing = 4 - one.given.sum(axis=1)[:, None, None, None]
        np.testing.assert_allclose(255 * found.examples, real + missing, atol=1e-3)
        assert found.is_finite.all()
    diverged = conditionals.draw(model, np.nan, data, one, jax.random.key(0))
    assert not diverged.is_finite.any()


def test_summary_has_means_and_modalities():
    values = {("size_1", "a"): 1.0, ("size_1", "b"): 3.0}
    values |= {("leave_one_out", "a"): 2.0, ("leave_one_out", "b"): 6.0}
    assert conditionals.summarise("x", values, 3) == {
        "x/size_1": 2.0,
        "x/leave_one_out": 4.0,
        "x/leave_one_out/a": 2.0,
        "x/leave_one_out/b": 6.0,
        "x/size_2": 4.0,
    }
    del values["size_1", "a"], values["size_1", "b"]
    assert "x/size_2" not in conditionals.summarise("x", values, 3)
    one = conditionals.given_others(make_split(), "m1", 2, rng())
    why = conditionals.no_example(one)
    tags = conditionals.summarise("x", {("size_2", "m1"): why}, 4)
    assert isinstance(tags["x/size_2"], Undefined)
    assert why.reason.startswith("m1 (size_2): too few test examples")
