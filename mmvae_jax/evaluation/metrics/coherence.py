"""Generative coherence: do generated modalities show the label of the others?

Daunhawer et al. (2022), App. C.1, after Sutter et al. (2021). Classifiers have no
dropout and get images clipped to [0, 1]; the published code does neither, which may
lower its values.

A label is one attribute of an example. If modalities share more attributes (shape,
colour), coherence is measured for each of them: captions are parsed, and other
modalities are classified. A caption that names no value or several values of an
attribute is wrong. A modality that does not show an attribute is not a target for it,
and at least one given modality must show it.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from mmvae_jax.data.dataset import LABEL
from mmvae_jax.evaluation.draws import Generated, draws_of
from mmvae_jax.evaluation.features import features_of
from mmvae_jax.evaluation.generate import (
    batches,
    conditional_means,
    is_finite,
    observed_rows,
    to_examples,
)
from mmvae_jax.evaluation.metric import (
    EvaluationData,
    Reader,
    Undefined,
    mean,
    most_probable,
    require_classifiers,
    require_labels,
    require_readers,
    too_few_observed,
)
from mmvae_jax.files import file_name
from mmvae_jax.types import PRIOR, AnyArray, Array, MultimodalVAE, Params, PRNGKey

_Subset = tuple[str, ...]
# (subset, target) -> fraction.
_Table = dict[tuple[_Subset, str], float]
# attribute -> modality that shows it -> Reader.
_Readers = Mapping[str, Mapping[str, Reader]]
# (attribute, modality) -> values read, [n]; NaN if the example is not finite.
_Values = dict[tuple[str, str], np.ndarray]


def coherence(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_prior_samples: int | None = None,
) -> dict[str, float]:
    """Conditional coherence of every subset and target, and joint coherence.

    Conditional coherence: one draw z ~ q(z|x_A) per test example with all of x_A; the
    fraction of examples in which the classifier of the decoded modality reads the
    label.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split, and classifiers for all modalities.
      key: random key of the posterior and prior samples.
      num_prior_samples: prior samples of the joint coherence; None: the number of test
        examples.

    Returns:
      Fractions in [0, 1] (NaN if a parameter is not finite):
      coherence/leave_one_out, the mean over targets of the next;
      coherence/leave_one_out/m0, of m0 given all other modalities;
      coherence/size_1, ..., mean over subsets of that size and targets outside;
      coherence/joint, of prior samples: all classifiers agree;
      coherence/subset/m0+m2/m1, of m1 given m0 and m2, for all subsets and targets;
      classifier_accuracy/m0, on real test examples, the reachable value for m0.
      With one modality that shows the label, only the last two.

    Raises:
      UsageError: there are no labels, or a modality has no classifier.
    """
    targets = data.showing(LABEL, model.modalities)
    labels = {LABEL: require_labels(data.test, "coherence")}
    classifiers = require_classifiers(data, targets, "coherence")
    readers = {LABEL: {m: classifiers[m] for m in targets}}
    conditional_key, prior_key = jax.random.split(key)
    tags: dict[str, float] = {}
    if len(targets) > 1:
        num = data.test.num_examples if num_prior_samples is None else num_prior_samples
        joint = joint_coherence(model, params, data, readers, prior_key, num)
        tags["coherence/joint"] = joint[LABEL]
    if model.sampler != PRIOR:
        return tags
    subsets = non_empty_subsets(model.modalities)
    table = conditional_coherence(
        model, params, data, readers, labels, subsets, conditional_key
    )[LABEL]
    if len(targets) > 1:
        tags = _averages(table, targets, model.modalities) | tags
    for (subset, target), value in table.items():
        tags[f"coherence/subset/{joined(subset)}/{joined([target])}"] = value
    for name, reader in readers[LABEL].items():
        tags[f"classifier_accuracy/{name}"] = accuracy_of(data, name, reader)
    return tags


def attributes(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_prior_samples: int | None = None,
) -> dict[str, float]:
    """Conditional and joint coherence of every attribute.

    As `coherence`, with values of attributes instead of the class, for subsets of one
    modality and of all but one.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split with attributes, and readers for the modalities that show them.
      key: random key of the posterior and prior samples.
      num_prior_samples: prior samples of the joint coherence; None: the number of test
        examples.

    Returns:
      Fractions in [0, 1] (NaN if a parameter is not finite):
      attribute_coherence/shape/m0_given_m1, ..., for every attribute, subset, target;
      attribute_coherence/shape/joint, of prior samples: all modalities show one value;
      attribute_coherence/shape, of one modality given all others, mean over targets;
      and means over attributes: attribute_coherence/leave_one_out, of the last;
      attribute_coherence/leave_one_out/m0, of m0 given all others;
      attribute_coherence/size_1, of one modality given one other;
      attribute_coherence/reconstruction/m0, of m0 given itself;
      attribute_coherence/joint.
      attribute_accuracy/shape/m0, and the mean attribute_accuracy/m0: accuracy of the
      readers on real test examples, the reachable value for m0.
      For an attribute that one modality shows, only its reconstruction and accuracy.

    Raises:
      UsageError: the data have no attributes, or one cannot be read.
    """
    modalities = model.modalities
    readers = require_readers(data, modalities, "attributes")
    readers = {
        a: {m: readers[a][m] for m in data.showing(a, modalities)}
        for a in data.test.attributes
    }
    subsets: list[_Subset] = [(m,) for m in modalities]
    subsets += [_others(m, modalities) for m in modalities if len(modalities) > 1]
    subsets = list(dict.fromkeys(subsets))  # for two modalities, both kinds are equal
    conditional_key, prior_key = jax.random.split(key)
    tags: dict[str, float] = {}
    shared = {a: own for a, own in readers.items() if len(own) > 1}
    if shared:
        num = data.test.num_examples if num_prior_samples is None else num_prior_samples
        joint = joint_coherence(model, params, data, shared, prior_key, num)
        tags |= {f"attribute_coherence/{a}/joint": v for a, v in joint.items()}
        tags["attribute_coherence/joint"] = mean(joint.values())
    if model.sampler != PRIOR:
        return tags
    tables = conditional_coherence(
        model, params, data, readers, data.test.attributes, subsets, conditional_key
    )
    tags = _attribute_averages(tables, modalities) | tags
    for m in modalities:
        accuracies = {
            a: accuracy_of(data, m, own[m]) for a, own in readers.items() if m in own
        }
        if not accuracies:
            continue
        for a, accuracy in accuracies.items():
            tags[f"attribute_accuracy/{a}/{m}"] = accuracy
        tags[f"attribute_accuracy/{m}"] = mean(accuracies.values())
    return tags


def accuracy_of(data: EvaluationData, modality: str, reader: Reader) -> float:
    """Accuracy of a reader; Undefined if no real test example has the modality."""
    if np.isfinite(reader.accuracy):
        return float(reader.accuracy)
    whole = data.whole_test or data.test
    return too_few_observed(whole, modality) or float(reader.accuracy)


def non_empty_subsets(modalities: tuple[str, ...]) -> list[_Subset]:
    """All 2^M - 1 non-empty subsets, by size, then in the order of modalities."""
    sizes = range(1, len(modalities) + 1)
    return [s for size in sizes for s in itertools.combinations(modalities, size)]


def conditional_coherence(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    readers: _Readers,
    truth: Mapping[str, np.ndarray],
    subsets: Sequence[_Subset],
    key: PRNGKey,
) -> dict[str, _Table]:
    """Fraction of examples, generated given a subset, that show the right value.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split of N examples.
      readers: attribute -> modality -> Reader.
      truth: attribute -> values of the test examples, [N].
      subsets: subsets of given modalities.
      key: random key of the posterior samples.

    Returns:
      attribute -> (subset, target) -> fraction in [0, 1], for subsets and targets that
      show the attribute, including targets within the subset; Undefined if no example
      has all of the subset.
    """
    totals = {
        a: {
            (s, m): 0.0
            for s in subsets
            for m in own
            if data.showing(a, s)  # else the subset does not determine the attribute
        }
        for a, own in readers.items()
    }
    counts = dict.fromkeys(subsets, 0)
    for subset, rows, found in read_given(model, params, data, readers, subsets, key):
        counts[subset] += len(rows)
        for (a, target), values in found.items():
            if (subset, target) in totals[a]:
                is_right = np.where(np.isnan(values), np.nan, values == truth[a][rows])
                totals[a][subset, target] += is_right.sum()

    def fraction(total: float, subset: _Subset) -> float:
        if counts[subset]:
            return float(total / counts[subset])
        return Undefined(f"no test example has {' and '.join(subset)}")

    return {
        a: {pair: fraction(total, pair[0]) for pair, total in own.items()}
        for a, own in totals.items()
    }


def read_given(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    readers: _Readers,
    subsets: Sequence[_Subset],
    key: PRNGKey,
) -> Iterator[tuple[_Subset, np.ndarray, _Values]]:
    """Values that readers see in examples generated given subsets.

    For each subset and example, one z ~ q(z|x_A) is drawn, and all modalities are
    decoded from it.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split of N examples.
      readers: attribute -> modality -> Reader.
      subsets: subsets of given modalities.
      key: random key of the posterior samples.

    Yields:
      For each batch: (subset, int [n], the test examples with all of the subset,
      (attribute, modality) -> values [n]; -1 if no value is shown, NaN if the example
      is not finite).
    """
    start = 0
    for batch, num_valid in batches(data.test, data.batch_size):
        experts = model.encode(params, batch)
        outputs = {}
        for subset in subsets:
            key, *own_keys = jax.random.split(key, 3)
            decoded = conditional_means(model, params, experts, subset, own_keys)
            outputs[subset] = _outputs(data, readers, decoded)
        observed = observed_rows(batch, model.modalities, num_valid)
        # One transfer per batch: a transfer per pair would wait for the device
        # (2^M - 1) M times.
        for subset, found in jax.device_get(outputs).items():
            given = np.flatnonzero(np.all([observed[m] for m in subset], axis=0))
            values = _values(readers, found, num_valid)
            yield subset, start + given, {pair: x[given] for pair, x in values.items()}
        start += num_valid


def joint_coherence(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    readers: _Readers,
    key: PRNGKey,
    num_samples: int,
) -> dict[str, float]:
    """Fraction of prior samples that show one value in all modalities.

    Args:
      model: for one sweep member.
      params: parameters.
      data: real examples, for the types, and the batch size.
      readers: attribute -> modality -> Reader.
      key: random key of the prior samples.
      num_samples: number of prior samples.

    Returns:
      attribute -> fraction in [0, 1].
    """
    draws = draws_of(model, params, data, key)
    found = {}
    for a, own in readers.items():
        values = np.stack(
            [
                read_of(reader, draws.prior(m, num_samples), data.batch_size)
                for m, reader in own.items()
            ]
        )
        agree = ((values == values[0]) & (values >= 0)).all(axis=0)
        found[a] = float(np.where(np.isnan(values).any(axis=0), np.nan, agree).mean())
    return found


def read_of(reader: Reader, generated: Generated, batch_size: int) -> np.ndarray:
    """Values [N] that a reader sees in examples; NaN if an example is not finite."""
    outputs = features_of(lambda x: reader.apply(x)[1], generated.examples, batch_size)
    values = (reader.read or most_probable)(outputs)
    return np.where(generated.is_finite, values, np.nan)


def _outputs(
    data: EvaluationData, readers: _Readers, decoded: Mapping[str, Array]
) -> dict[str, tuple[Array, dict[str, AnyArray]]]:
    """Modality -> (which means are finite, attribute -> outputs of its reader)."""
    examples = to_examples(data.test, decoded, data.words)
    return {
        m: (
            is_finite(decoded[m]),
            {a: own[m].apply(x)[1] for a, own in readers.items() if m in own},
        )
        for m, x in examples.items()
    }


def _values(
    readers: _Readers,
    outputs: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]],
    num_valid: int,
) -> _Values:
    """(attribute, modality) -> values read, [num_valid]."""
    found = {}
    for m, (finite, own) in outputs.items():
        for a, array in own.items():
            read = readers[a][m].read or most_probable
            values = read(array[:num_valid])
            found[a, m] = np.where(finite[:num_valid], values, np.nan)
    return found


def joined(subset: Iterable[str]) -> str:
    """A unique name of a subset for tags."""
    return "+".join(file_name(name).replace("+", "%2B") for name in subset)


def _averages(
    table: _Table, targets: Iterable[str], modalities: tuple[str, ...]
) -> dict[str, float]:
    """The usual averages: coherence/leave_one_out and coherence/size_1, ..."""
    tags = {
        f"coherence/leave_one_out/{m}": table[_others(m, modalities), m]
        for m in targets
    }
    tags["coherence/leave_one_out"] = mean(tags.values())
    for size in range(1, len(modalities)):
        tags[f"coherence/size_{size}"] = mean(_of_size(table, size))
    return tags


def _attribute_averages(
    tables: Mapping[str, _Table], modalities: tuple[str, ...]
) -> dict[str, float]:
    """All conditional tags of `attributes`."""
    tags = {
        f"attribute_coherence/{a}/{target}_given_{joined(subset)}": value
        for a, table in tables.items()
        for (subset, target), value in table.items()
    }

    def add(
        name: str, chosen: Iterable[str], pairs: Sequence[tuple[_Subset, str]]
    ) -> None:
        found = [tables[a][p] for a in chosen for p in pairs if p in tables[a]]
        if found:
            tags[f"attribute_coherence/{name}"] = mean(found)

    for m in modalities:
        add(f"reconstruction/{m}", tables, [((m,), m)])
    if len(modalities) > 1:
        left_out = [(_others(m, modalities), m) for m in modalities]
        for pair in left_out:
            add(f"leave_one_out/{pair[1]}", tables, [pair])
        for a in tables:
            add(a, (a,), left_out)
        add("leave_one_out", tables, left_out)
        single = [((a,), b) for a, b in itertools.permutations(modalities, 2)]
        add("size_1", tables, single)
    return tags


def _of_size(table: _Table, size: int) -> list[float]:
    """Fractions for all subsets of a size and targets outside of them."""
    return [v for (s, target), v in table.items() if len(s) == size and target not in s]


def _others(target: str, modalities: tuple[str, ...]) -> _Subset:
    """All modalities except the target."""
    return tuple(m for m in modalities if m != target)
