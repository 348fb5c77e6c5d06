import itertools
import re

import numpy as np
import pytest

from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import subsets

FAMILY = {
    "mvae": subsets.full_set,
    "mmvae": subsets.unimodal_subsets,
    "mopoe": subsets.powerset,
}


def as_tuples(masks):
    return [tuple(np.flatnonzero(row)) for row in masks]


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_all_subsets_are_there_once_by_size_full_set_last(num):
    masks = subsets.all_subsets(num)
    assert masks.shape == (2**num - 1, num) and masks.dtype == bool
    listed = as_tuples(masks)
    assert len(set(listed)) == len(listed)
    sizes = [len(subset) for subset in listed]
    assert sizes == sorted(sizes) and 0 not in sizes
    assert listed[:num] == [(m,) for m in range(num)]
    assert listed[-1] == tuple(range(num))
    assert listed == sorted(listed, key=lambda subset: (len(subset), subset))


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_the_family_differs_in_its_subsets_alone(num):
    expected = {
        "mvae": [tuple(range(num))],
        "mmvae": [(m,) for m in range(num)],
        "mopoe": [
            subset
            for size in range(1, num + 1)
            for subset in itertools.combinations(range(num), size)
        ],
    }
    for name, build in FAMILY.items():
        mixture = build(num)
        assert as_tuples(mixture.masks) == expected[name]
        assert mixture.weights.dtype == np.float32
        np.testing.assert_allclose(mixture.weights, 1 / len(expected[name]), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "choice", "with_prior"),
    [
        ("mvae", "paper", {(0, 1, 2)}),
        ("mvae", "released", {(0, 1, 2)}),
        ("mmvae", "paper", set()),
        ("mmvae", "released", set()),
        ("mopoe", "paper", set()),
        ("mopoe", "released", {(0, 1, 2)}),
    ],
)
def test_where_the_prior_is_an_expert(name, choice, with_prior):
    mixture = FAMILY[name](3, choice)
    assert set(as_tuples(mixture.masks[mixture.prior_expert])) == with_prior
    assert FAMILY[name](3).prior_expert.tolist() == (
        FAMILY[name](3, "paper").prior_expert.tolist()
    )


@pytest.mark.parametrize("name", FAMILY)
def test_the_prior_can_be_an_expert_always_or_never(name):
    assert FAMILY[name](3, "always").prior_expert.all()
    assert not FAMILY[name](3, "never").prior_expert.any()


def test_custom_subsets():
    mixture = subsets.custom_subsets(3, ((0,), (1, 2), (0, 1, 2)), (0.5, 0.2, 0.3))
    assert as_tuples(mixture.masks) == [(0,), (1, 2), (0, 1, 2)]
    np.testing.assert_allclose(mixture.weights, [0.5, 0.2, 0.3], rtol=1e-6)
    assert not mixture.prior_expert.any()
    released = subsets.custom_subsets(3, ((0,), (0, 1, 2)), (), "released")
    assert released.prior_expert.tolist() == [False, True]
    assert released.weights.tolist() == [0.5, 0.5]


def test_a_custom_subset_of_one_may_be_a_bare_index():
    mixture = subsets.custom_subsets(3, (0, (1, 2)))
    assert as_tuples(mixture.masks) == [(0,), (1, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (),
            "no subsets are given; name the modalities of each, for instance "
            "((0,), (0, 1))",
        ),
        (
            (((0, 3),),),
            "no modality 3 for subset (0, 3); there are 3, counted from 0",
        ),
        (
            (((-1,),),),
            "no modality -1 for subset (-1,); there are 3, counted from 0",
        ),
        ((((0,), ()),), "subset 1 is empty"),
        (
            (((0, 1), (1, 0)),),
            "a subset is listed twice; add its weights up instead",
        ),
        (
            (((0,), (1,)), (1.0,)),
            "a subset mixture needs one weight a subset: 2 subsets, 1 weights",
        ),
        (
            (((0,), (1,)), (0.5, 0.6)),
            "subset weights must be >= 0 and sum to 1, got [0.5, 0.6] (sum 1.1)",
        ),
        (
            (((0,), (1,)), (1.5, -0.5)),
            "subset weights must be >= 0 and sum to 1, got [1.5, -0.5] (sum 1)",
        ),
        (
            (((0,), (1,)), (float("nan"), 0.5)),
            "subset weights must be >= 0 and sum to 1, got [nan, 0.5] (sum nan)",
        ),
        (
            (((0,),), (), "sometimes"),
            "unknown prior_expert 'sometimes'; choose one of "
            "paper, released, always, never",
        ),
    ],
)
def test_errors_of_custom_subsets(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        subsets.custom_subsets(3, *(arguments or ((),)))


@pytest.mark.parametrize("name", FAMILY)
def test_unknown_prior_expert(name):
    with pytest.raises(UsageError, match="unknown prior_expert 'yes'"):
        FAMILY[name](2, "yes")


def test_prior_flags_belong_to_subsets():
    with pytest.raises(UsageError, match="prior_expert needs one entry a subset"):
        subsets.subset_mixture(np.eye(2), np.full(2, 0.5), np.zeros(3))
