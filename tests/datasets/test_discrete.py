"""The data set with a known joint pmf: the table, the examples, the options."""

import itertools
import math

import numpy as np
import pytest
from dataset_errors import DatasetError
from discrete import options, pmf
from hypothesis import given
from hypothesis import strategies as st

from configs import discrete
from experiments.drawing import theorem
from experiments.running import datasets
from mmvae_jax.data import prepared
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import subsets, theory

SMALL = {"num_modalities": 2, "shared_bits": 1, "specific_bits": 1, "one_in": 3}
FINGERPRINT = "cbf64e4ef13159145211787d1778a66979186fadf9c35640fe4752d5a84ea94b"
recipes = st.fixed_dictionaries(
    {
        "num_modalities": st.integers(1, 3),
        "shared_bits": st.integers(0, 2),
        "specific_bits": st.integers(0, 2),
        "one_in": st.integers(1, 4),
    }
)


def data_config(data_dir, **changes):
    config = discrete.get_config().data
    config.update({"data_dir": str(data_dir), "repeats": 2, **SMALL, **changes})
    return config


def by_hand(num_modalities, shared_bits, specific_bits, one_in):
    """The pmf from its description, one outcome of all draws at a time."""
    size = 1 << shared_bits + specific_bits
    table = np.zeros((size,) * num_modalities)
    words = num_modalities * specific_bits
    for label in range(1 << shared_bits):
        for bits in itertools.product((0, 1), repeat=words):
            ones = sum(bits)
            probability = (1 / one_in) ** ones * (1 - 1 / one_in) ** (words - ones)
            index = []
            for m in range(num_modalities):
                value = ((2 * m + 1) * label + m) % (1 << shared_bits)
                for bit in bits[m * specific_bits : (m + 1) * specific_bits]:
                    value = 2 * value + bit
                index.append(value)
            table[tuple(index)] += probability / (1 << shared_bits)
    return table


@given(recipes)
def test_the_table_is_that_of_the_description(recipe):
    table = pmf.joint_pmf(**recipe)
    assert table.sum() == pytest.approx(1)
    np.testing.assert_allclose(table, by_hand(**recipe), atol=1e-12)
    counts = pmf.joint_counts(**recipe)
    words = recipe["num_modalities"] * recipe["specific_bits"]
    assert counts.sum() == (1 << recipe["shared_bits"]) * recipe["one_in"] ** words


@given(recipes)
def test_entropies_in_closed_form(recipe):
    table = pmf.joint_pmf(**recipe)
    num, p = recipe["num_modalities"], 1 / recipe["one_in"]
    coin = theory.entropy(np.array([p, 1 - p]))
    shared = recipe["shared_bits"] * math.log(2)
    specific = recipe["specific_bits"] * coin
    assert theory.entropy(table) == pytest.approx(shared + num * specific)
    for m in range(num):
        assert theory.entropy(theory.marginal(table, [m])) == pytest.approx(
            shared + specific
        )
    # A mixture lacks what is specific to the modalities outside of its subsets.
    for make in (subsets.full_set, subsets.unimodal_subsets, subsets.powerset):
        mixture = make(num)
        lacking = float(np.sum(mixture.weights @ ~mixture.masks)) * specific
        assert theory.generative_discrepancy(table, mixture) == pytest.approx(
            lacking, abs=1e-6
        )


@pytest.mark.parametrize("shared_bits", range(9))
def test_class_codes_are_permutations_that_differ(shared_bits):
    codes = [pmf.class_codes(m, shared_bits) for m in range(4)]
    for code in codes:
        assert sorted(code) == list(range(1 << shared_bits))
    np.testing.assert_array_equal(codes[0], np.arange(1 << shared_bits))
    if shared_bits > 1:
        assert len({tuple(code) for code in codes}) == 4


@given(st.integers(1, 6), st.integers(1, 3))
def test_images_show_their_values(num_bits, patch):
    values = np.arange(1 << num_bits)
    pictures = pmf.images(values, num_bits, patch)
    assert pictures.shape == (len(values), patch, num_bits * patch, 1)
    assert pictures.dtype == np.uint8 and set(np.unique(pictures)) == {0, 255}
    np.testing.assert_array_equal(pmf.values(pictures, num_bits), values)
    # Each digit is one square of one colour.
    squares = pictures.reshape(len(values), patch, num_bits, patch)
    assert (squares == squares[:, :1, :, :1]).all()


def test_a_picture_written_out():
    (picture,) = pmf.images(np.array([0b10]), 2, 2)
    np.testing.assert_array_equal(picture[..., 0], [[255, 255, 0, 0]] * 2)


@pytest.mark.parametrize(
    "changes", [{}, {"patch": 2}, {"num_modalities": 3, "one_in": 2}, {"one_in": 1}]
)
def test_the_prepared_set_has_the_proportions_of_the_pmf(tmp_path, changes):
    config = data_config(tmp_path, **changes)
    dataset = prepared.load(datasets.prepare(config))
    counts = pmf.joint_counts(**{name: config[name] for name in SMALL})
    table = theorem.discrete_pmf(config)
    np.testing.assert_array_equal(table, counts / counts.sum())
    num_bits = config.shared_bits + config.specific_bits
    assert list(dataset.train.modalities) == [f"m{m}" for m in range(counts.ndim)]
    for split in (dataset.train, dataset.test):
        shown = [pmf.values(x, num_bits) for x in split.modalities.values()]
        found = np.zeros_like(counts)
        np.add.at(found, tuple(shown), 1)
        np.testing.assert_array_equal(found, config.repeats * counts)
        # Every modality tells the class, in its own code.
        for m, values in enumerate(shown):
            code = pmf.class_codes(m, config.shared_bits)
            np.testing.assert_array_equal(
                values >> config.specific_bits, code[split.labels]
            )


def test_prepared_bytes_are_pinned(tmp_path):
    directory = datasets.prepare(data_config(tmp_path))
    assert directory.parent.name == "m2-1shared-1specific-1in3-1px-2repeats"
    # The same on every machine; changes only together with Builder.VERSION.
    assert prepared.load(directory).fingerprint == FINGERPRINT


def test_the_first_modalities_have_the_marginal_pmf(tmp_path):
    config = data_config(tmp_path, num_modalities=3)
    table = theorem.discrete_pmf(config)
    config.use_modalities = 2
    np.testing.assert_allclose(theorem.discrete_pmf(config), table.sum(axis=2))
    np.testing.assert_allclose(
        theorem.discrete_pmf(config), pmf.joint_pmf(**SMALL), atol=1e-12
    )


def test_every_option_is_in_the_name():
    base = options.Options(**SMALL)
    others = [
        options.Options(**{**SMALL, field: getattr(base, field) + 1})
        for field in datasets.option_names("discrete")
    ]
    assert len({config.name for config in (base, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_modalities": 0}, r"num_modalities=0 must be in 1\.\.20"),
        ({"shared_bits": 9}, r"shared_bits=9 must be in 0\.\.8"),
        ({"specific_bits": -1}, r"specific_bits=-1 must be in 0\.\.20"),
        ({"one_in": 0}, r"one_in=0 must be in 1\.\.16"),
        ({"patch": 0}, r"patch=0 must be in 1\.\.16"),
        ({"repeats": 0}, r"repeats=0 must be in"),
        ({"shared_bits": 0, "specific_bits": 0}, "leave no bit to show"),
        ({"num_modalities": 11}, "make 4194304 cells .* lower config.data.num_mod"),
        ({"repeats": 1 << 20}, "examples are more than .* lower config.data.repeats"),
    ],
)
def test_impossible_options(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        options.Options(**{**SMALL, **changes})
    for use in (datasets.prepare, theorem.discrete_pmf):
        with pytest.raises(UsageError, match=message) as caught:
            use(data_config(tmp_path, **changes))
        assert len(str(caught.value).splitlines()) == 1


def test_a_config_of_another_data_set_lacks_options(tmp_path):
    config = data_config(tmp_path)
    del config.one_in
    message = "needs config.data.one_in; start from configs/discrete.py"
    with pytest.raises(UsageError, match=message):
        datasets.prepare(config)
