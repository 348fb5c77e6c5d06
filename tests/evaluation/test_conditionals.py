import numpy as np
from toy_models import toy_split

from mmvae_jax.evaluation import conditionals
from mmvae_jax.evaluation.metric import Undefined

MODALITIES = ("m0", "m1", "m2", "m3")
NUM = 400


def make_split(observed=None):
    images = np.random.default_rng(0).integers(0, 200, (NUM, 2, 2, 1), dtype=np.uint8)
    split = toy_split(dict.fromkeys(MODALITIES, images), np.zeros(NUM))
    return split._replace(observed=observed)


def test_each_example_is_given_one_of_the_subsets_of_a_size():
    one = conditionals.given_others(make_split(), "m1", 2)
    assert one.name == "size_2"
    assert (one.given.sum(axis=1) == 2).all() and not one.given[:, 1].any()
    subsets, counts = np.unique(one.given, axis=0, return_counts=True)
    assert len(subsets) == 3
    assert abs(counts - NUM / 3).max() < 5 * np.sqrt(NUM * 2 / 9)


def test_conditions_of_a_modality():
    found = conditionals.conditions(make_split(), "m2")
    names = ["reconstruction", "size_1", "size_2", "leave_one_out"]
    assert [one.name for one in found] == names
    assert found[0].given.all()
    np.testing.assert_array_equal(found[-1].given, [[True, True, False, True]] * NUM)
    for one in found:
        assert sorted(one.rows) == list(range(NUM))
        np.testing.assert_array_equal(one.rows, conditionals.order_of(NUM))
        assert (one.rows != range(NUM)).any()


def test_nothing_is_given_that_is_missing():
    observed = np.random.default_rng(0).random((NUM, 4)) < 0.5
    observed[:, 3] |= ~observed.any(axis=1)
    for one in conditionals.conditions(make_split(observed), "m0"):
        assert observed[one.rows, 0].all()
        assert not (one.given & ~observed[one.rows]).any()
    everything = np.flatnonzero(observed.all(axis=1))
    np.testing.assert_array_equal(sorted(one.rows), everything)


def test_one_modality_is_reconstructed_alone():
    split = make_split()._replace(modalities={"m0": make_split().modalities["m0"]})
    (one,) = conditionals.conditions(split, "m0")
    assert one.name == "reconstruction"


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
    one = conditionals.given_others(make_split(), "m1", 2)
    why = conditionals.no_example(one)
    tags = conditionals.summarise("x", {("size_2", "m1"): why}, 4)
    assert isinstance(tags["x/size_2"], Undefined)
    assert why.reason.startswith("m1 (size_2): too few test examples")
