"""Theorem 1 and its corollaries, on random joint pmfs and subset mixtures."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvae_jax.mathematics import subsets, theory

MAKERS = [subsets.full_set, subsets.unimodal_subsets, subsets.powerset]


def random_pmf(seed, num_modalities, num_values=3, sparsity=0.3):
    """A joint pmf with zeros in it."""
    generator = np.random.default_rng(seed)
    table = generator.gamma(0.5, size=(num_values,) * num_modalities)
    table *= generator.uniform(size=table.shape) > sparsity
    table.flat[0] += 1e-3
    return table / table.sum()


def random_mixture(seed, num_modalities):
    """Some of the subsets, with random weights."""
    generator = np.random.default_rng(seed)
    masks = subsets.all_subsets(num_modalities)
    kept = generator.permutation(len(masks))[: generator.integers(1, len(masks) + 1)]
    weights = generator.dirichlet(np.ones(len(kept)))
    return subsets.subset_mixture(masks[kept], weights, np.zeros(len(kept), bool))


seeds = st.integers(0, 2**31)
sizes = st.integers(1, 3)


def test_entropy_of_known_tables():
    assert theory.entropy(np.full((2, 4), 1 / 8)) == pytest.approx(math.log(8))
    assert theory.entropy(np.array([0.0, 1.0, 0.0])) == 0.0
    copies = np.eye(4) / 4
    assert theory.conditional_entropy(copies, [1], [0]) == pytest.approx(0)
    assert theory.conditional_entropy(copies, [1], []) == pytest.approx(math.log(4))
    independent = np.full((4, 3), 1 / 12)
    assert theory.conditional_entropy(independent, [1], [0]) == pytest.approx(
        math.log(3)
    )
    assert theory.conditional_information(copies, [0], [1], []) == pytest.approx(
        math.log(4)
    )


@given(seeds, sizes)
def test_chain_rule_and_non_negativity(seed, num_modalities):
    pmf = random_pmf(seed, num_modalities + 1)
    chain = sum(theory.conditional_entropy(pmf, [m], range(m)) for m in range(pmf.ndim))
    assert chain == pytest.approx(theory.entropy(pmf))
    for given_size in range(pmf.ndim):
        for observed in itertools.combinations(range(pmf.ndim), given_size):
            assert theory.conditional_entropy(pmf, [0], observed) >= -1e-12


def random_encoders(seed, pmf, mixture, num_codes):
    """p(z|x_A) for each subset, from nearly deterministic to nearly uniform."""
    generator = np.random.default_rng(seed)
    concentration = 10.0 ** generator.uniform(-2, 1)
    return [
        generator.dirichlet(
            np.full(num_codes, concentration), size=tuple(np.array(pmf.shape)[mask])
        )
        for mask in mixture.masks
    ]


def naming_encoders(pmf, mixture):
    """Codes that name the subset and the values of its modalities."""
    sizes = [int(np.prod(np.array(pmf.shape)[mask])) for mask in mixture.masks]
    starts = np.cumsum([0, *sizes])
    encoders = []
    for mask, size, start in zip(mixture.masks, sizes, starts, strict=False):
        encoder = np.zeros((*np.array(pmf.shape)[mask], starts[-1]))
        encoder.reshape(size, -1)[np.arange(size), start + np.arange(size)] = 1
        encoders.append(encoder)
    return encoders


@given(seeds, st.integers(2, 3), st.integers(1, 12))
def test_lemma_2(seed, num_modalities, num_codes):
    """H(X|Z_A) = H(X_rest|X_A) + H(X_A|Z_A) for a code of X_A alone."""
    pmf = random_pmf(seed, num_modalities)
    mixture = random_mixture(seed + 1, num_modalities)
    encoder = random_encoders(seed + 2, pmf, mixture, num_codes)[0]
    mask = mixture.masks[0]
    shape = [n if inside else 1 for n, inside in zip(pmf.shape, mask, strict=True)]
    joint = pmf[..., None] * encoder.reshape(*shape, num_codes)
    inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
    code = [num_modalities]
    assert theory.conditional_entropy(joint, range(num_modalities), code) == (
        pytest.approx(
            theory.conditional_entropy(pmf, outside, inside)
            + theory.conditional_entropy(joint, inside, code)
        )
    )


@given(seeds, sizes)
def test_corollary_1_no_subsampling_no_discrepancy(seed, num_modalities):
    pmf = random_pmf(seed, num_modalities)
    mixture = subsets.full_set(num_modalities)
    assert theory.generative_discrepancy(pmf, mixture) == pytest.approx(0)
    terms = theory.best_terms(pmf, mixture, naming_encoders(pmf, mixture))
    assert terms.reconstruction == pytest.approx(0)
    assert terms.objective == pytest.approx(-theory.entropy(pmf))


@given(seeds, st.integers(2, 3), st.integers(1, 12))
def test_no_encoder_reconstructs_beyond_the_ceiling(seed, num_modalities, num_codes):
    """Eqs. 51 and 52: the reconstruction term is at most -Delta(X, S)."""
    pmf = random_pmf(seed, num_modalities)
    mixture = random_mixture(seed + 1, num_modalities)
    encoders = random_encoders(seed + 2, pmf, mixture, num_codes)
    terms = theory.best_terms(pmf, mixture, encoders)
    assert theory.generative_discrepancy(pmf, mixture) >= -1e-6
    assert terms.reconstruction <= theory.reconstruction_ceiling(pmf, mixture) + 1e-6
    assert terms.rate >= -1e-6
    assert terms.objective <= -theory.entropy(pmf) + 1e-6


@pytest.mark.parametrize("make", MAKERS)
def test_the_ceiling_is_reached_where_codes_name_what_was_observed(make):
    pmf = random_pmf(7, 3)
    mixture = make(3)
    terms = theory.best_terms(pmf, mixture, naming_encoders(pmf, mixture))
    ceiling = theory.reconstruction_ceiling(pmf, mixture)
    assert terms.reconstruction == pytest.approx(ceiling, abs=1e-6)
    # The code costs H(X_A) and the choice of the subset, and no more.
    choice = -float(np.sum(mixture.weights * np.log(mixture.weights)))
    assert terms.objective == pytest.approx(-theory.entropy(pmf) - choice, abs=1e-6)


@pytest.mark.parametrize("make", MAKERS[1:])
def test_theorem_1_as_stated_has_a_counterexample(make):
    """Eq. 4 claims L_S <= E[log p(x)] - Delta(X, S). Independent fair bits and
    encoders that ignore them reach E[log p(x)], although Delta > 0."""
    pmf = np.full((2, 2), 1 / 4)
    mixture = make(2)
    ignoring = [np.ones((*np.array(pmf.shape)[mask], 1)) for mask in mixture.masks]
    terms = theory.best_terms(pmf, mixture, ignoring)
    discrepancy = theory.generative_discrepancy(pmf, mixture)
    assert discrepancy == pytest.approx(
        sum(
            float(w) * (2 - mask.sum()) * math.log(2)
            for mask, w in zip(mixture.masks, mixture.weights, strict=True)
        )
    )
    assert terms.objective == pytest.approx(-theory.entropy(pmf))
    assert terms.objective > -theory.entropy(pmf) - discrepancy + 0.4
    # What the proof establishes still holds.
    assert terms.reconstruction <= -discrepancy


def test_lossless_codes_pass_the_bound_of_theorem_1_too():
    """Two independent modalities of two fair bits each, MMVAE: nothing is ignored."""
    pmf, log_2 = np.full((4, 4), 1 / 16), math.log(2)
    mixture = subsets.unimodal_subsets(2)
    terms = theory.best_terms(pmf, mixture, naming_encoders(pmf, mixture))
    assert terms.reconstruction == pytest.approx(-2 * log_2, abs=1e-6)
    # Two bits of the modality that is seen, and which one it is.
    assert terms.rate == pytest.approx(3 * log_2, abs=1e-6)
    allowed = -theory.entropy(pmf) - theory.generative_discrepancy(pmf, mixture)
    assert allowed == pytest.approx(-6 * log_2, abs=1e-6)
    assert terms.objective == pytest.approx(-5 * log_2, abs=1e-6)
    assert terms.objective > allowed + 0.6


@given(seeds, st.integers(2, 3))
def test_what_eq_55_leaves_is_the_entropy(seed, num_modalities):
    """Delta(X, S) + sum_A omega_A H(X_A) = H(X), which is no more than the ELBO."""
    pmf = random_pmf(seed, num_modalities)
    mixture = random_mixture(seed + 1, num_modalities)
    least = sum(
        float(w) * theory.entropy(theory.marginal(pmf, np.flatnonzero(mask)))
        for mask, w in zip(mixture.masks, mixture.weights, strict=True)
    )
    found = theory.generative_discrepancy(pmf, mixture) + least
    assert found == pytest.approx(theory.entropy(pmf), abs=1e-6)


@given(seeds, st.integers(1, 3), st.sampled_from(MAKERS[1:]))
def test_corollary_2_decomposition_is_exact(seed, num_modalities, make):
    """Eqs. 81 and 82 add up to the change of the discrepancy."""
    pmf = random_pmf(seed, num_modalities + 1, num_values=2)
    mixture, extended = make(num_modalities), make(num_modalities + 1)
    before = theory.generative_discrepancy(pmf.sum(-1), mixture)
    after = theory.generative_discrepancy(pmf, extended)
    change = theory.discrepancy_change(pmf, mixture, extended)
    assert change.total == pytest.approx(after - before, abs=1e-6)
    assert change.shared <= 1e-9 and change.specific >= -1e-9
    if abs(change.total) > 1e-9:
        assert change.is_sufficiently_diverse == (after > before)


@pytest.mark.parametrize("make", MAKERS[1:])
def test_corollary_2_on_both_sides(make):
    """An independent modality raises the discrepancy; one that is a copy of all
    the others lowers it, unless each of them says what the other is."""
    pmf = random_pmf(3, 2, sparsity=0.0)
    independent = pmf[..., None] * np.full(5, 1 / 5)
    mixture, extended = make(2), make(3)
    diverse = theory.discrepancy_change(independent, mixture, extended)
    redundant = theory.discrepancy_change(with_copy(pmf), mixture, extended)
    assert diverse.is_sufficiently_diverse and diverse.total > 0
    assert not redundant.is_sufficiently_diverse and redundant.total < 0
    # The statement of the corollary as printed would call both diverse.
    assert redundant.shared < redundant.specific
    # A bit and its opposite differ, and a copy of both says nothing new.
    opposites = np.array([[0, 0.5], [0.5, 0]])
    nothing = theory.discrepancy_change(with_copy(opposites), mixture, extended)
    assert nothing.total == pytest.approx(0, abs=1e-12)
    assert not nothing.is_sufficiently_diverse


def with_copy(pmf):
    """The distribution with one more modality, a copy of all the others."""
    copy = np.zeros((*pmf.shape, pmf.size))
    copy.reshape(pmf.size, pmf.size)[np.diag_indices(pmf.size)] = pmf.ravel()
    return copy


@pytest.mark.parametrize("make", MAKERS[1:])
@pytest.mark.parametrize("num_modalities", [1, 2])
def test_corollary_2_of_three_copies_of_one_bit(make, num_modalities):
    """Both sides of Eq. 57 are zero: as printed it does not hold either."""
    pmf = np.zeros((2,) * (num_modalities + 1))
    pmf[(0,) * pmf.ndim] = pmf[(1,) * pmf.ndim] = 1 / 2
    change = theory.discrepancy_change(pmf, make(num_modalities), make(pmf.ndim))
    assert change.shared == change.specific == change.total == 0
    assert not change.is_sufficiently_diverse and not change.shared < change.specific


@given(seeds, st.integers(1, 3), st.sampled_from(MAKERS[1:]))
def test_eq_57_as_printed_holds_unless_both_sides_are_zero(seed, num, make):
    change = theory.discrepancy_change(
        random_pmf(seed, num + 1, num_values=2), make(num), make(num + 1)
    )
    is_printed = change.shared < change.specific
    assert is_printed or (change.shared, change.specific) == pytest.approx((0, 0))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_polymnist_closed_form_equals_the_table(make, num_modalities):
    """The recipe in small: 2 classes of 2 and 3 digits, 2 crops a modality."""
    class_counts, crops = np.array([2, 3]), 2
    digits = [(c, i) for c, n in enumerate(class_counts) for i in range(n)]
    images = [(c, i, k) for c, i in digits for k in range(crops)]
    pmf = np.zeros((len(images),) * num_modalities)
    for index in itertools.product(range(len(images)), repeat=num_modalities):
        classes = {images[i][0] for i in index}
        if len(classes) == 1:
            n = class_counts[classes.pop()]
            pmf[index] = n / class_counts.sum() / (n * crops) ** num_modalities
    mixture = make(num_modalities)
    expected = theory.generative_discrepancy(pmf, mixture)
    found = theory.polymnist_discrepancy(mixture, class_counts, [crops] * pmf.ndim)
    assert pmf.sum() == pytest.approx(1)
    assert found == pytest.approx(expected, abs=1e-6)


def test_polymnist_discrepancy_grows_with_the_number_of_modalities():
    """Figure 3's prediction: linear for MMVAE, slower for MoPoE, zero for MVAE."""
    counts = np.full(10, 6000)

    def by_size(make):
        return [
            theory.polymnist_discrepancy(make(m), counts, [1000] * m)
            for m in range(1, 6)
        ]

    mvae, mmvae, mopoe = (by_size(make) for make in MAKERS)
    assert np.allclose(mvae, 0)
    assert np.allclose(np.diff(mmvae), mmvae[1])
    assert (np.diff(mopoe) > 0).all() and (np.array(mopoe[1:]) < mmvae[1:]).all()
