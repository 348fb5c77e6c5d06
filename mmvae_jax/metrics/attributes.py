"""Attribute coherence: do generated modalities show the attributes of the others?

Where it is known what modalities share, attribute by attribute (shape, colour),
coherence can be measured on captions as on images: captions are parsed, and all
other modalities are classified (mmvae_jax.readers). A caption that does not name an
attribute, or names two values of it, is wrong.
"""

import jax
import numpy as np

from mmvae_jax.metrics.inputs import (
    EvaluationData,
    batches,
    conditional_means,
    is_finite,
    observed_rows,
    prior_means,
    require_readers,
    to_examples,
)
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

Subset = tuple[str, ...]
# (attribute, subset, target) -> fraction.
Table = dict[tuple[str, Subset, str], float]


def attributes(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_prior_samples: int | None = None,
) -> dict[str, float]:
    """Conditional and joint coherence of every attribute.

    Conditional: z ~ q(z|x_A), one draw per test example of which all of x_A is
    observed, A one modality or all but one; the fraction of the likelihood means of
    which the value read is that of the example.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: test split with attributes, and readers for all modalities.
      key: of the posterior and prior samples.
      num_prior_samples: of the joint coherence; None: as many as test examples.

    Returns:
      Fractions in [0, 1] (nan where a parameter is not finite):
      attribute_coherence/shape/m0_given_m1, ..., for every attribute, subset, target;
      attribute_coherence/shape/joint, prior samples of which all modalities show the
      same value;
      attribute_coherence/shape, of one modality given all others, mean over targets;
      and as means over attributes: attribute_coherence/leave_one_out, of the last;
      attribute_coherence/leave_one_out/m0, of m0 given all others;
      attribute_coherence/size_1, of one modality given one other;
      attribute_coherence/reconstruction/m0, of m0 given itself;
      attribute_coherence/joint.
      attribute_accuracy/shape/m0 and, as the mean, attribute_accuracy/m0: of the
      readers on real test examples, what m0 can reach.
      With one modality, only its reconstruction and accuracy.

    Raises:
      UsageError: the data have no attributes, or one cannot be read.
    """
    modalities = model.modalities
    readers = require_readers(data, modalities, "attributes")
    conditional_key, prior_key = jax.random.split(key)
    table = conditional_coherence(model, params, data, conditional_key)
    tags = summarise(table, modalities)
    if len(modalities) > 1:
        num = data.test.num_examples if num_prior_samples is None else num_prior_samples
        joint = joint_coherence(model, params, data, prior_key, num)
        tags |= {f"attribute_coherence/{a}/joint": v for a, v in joint.items()}
        tags["attribute_coherence/joint"] = float(np.mean(list(joint.values())))
    for m in modalities:
        accuracies = {a: readers[m][a].accuracy for a in data.test.attributes}
        for a, accuracy in accuracies.items():
            tags[f"attribute_accuracy/{a}/{m}"] = float(accuracy)
        tags[f"attribute_accuracy/{m}"] = float(np.mean(list(accuracies.values())))
    return tags


def conditional_coherence(
    model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
) -> Table:
    """How often the attributes of the example are read off what is generated.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: test split and readers.
      key: of the posterior samples.

    Returns:
      (attribute, subset, target) -> fraction in [0, 1], for all targets, those within
      the subset included.
    """
    modalities, names = model.modalities, tuple(data.test.attributes)
    subsets = [(m,) for m in modalities]
    subsets += [_others(m, modalities) for m in modalities if len(modalities) > 1]
    subsets = list(dict.fromkeys(subsets))  # of two modalities, they are the same
    totals = {(a, s, m): 0.0 for a in names for s in subsets for m in modalities}
    counts = dict.fromkeys(subsets, 0)
    start = 0
    for batch, num_valid in batches(data.test, data.batch_size):
        experts = model.encode(params, batch)
        observed = observed_rows(batch, modalities, num_valid)
        values = {a: data.test.attributes[a][start : start + num_valid] for a in names}
        start += num_valid
        for subset in subsets:
            key, *own_keys = jax.random.split(key, 3)
            decoded = conditional_means(model, params, experts, subset, own_keys)
            read = _read(data, decoded, num_valid)
            rows = np.all([observed[m] for m in subset], axis=0)
            counts[subset] += int(rows.sum())
            for (a, target), found in read.items():
                is_right = np.where(np.isnan(found), np.nan, found == values[a])
                totals[a, subset, target] += is_right[rows].sum()
    return {
        place: float(total / counts[place[1]]) if counts[place[1]] else float("nan")
        for place, total in totals.items()
    }


def joint_coherence(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    num_samples: int,
) -> dict[str, float]:
    """Attribute -> fraction of prior samples that show one value in all modalities."""
    totals = dict.fromkeys(data.test.attributes, 0.0)
    means = prior_means(model, params, data.batch_size, key, num_samples)
    for decoded, num_valid in means:
        read = _read(data, decoded, num_valid)
        for a in totals:
            values = np.stack([read[a, m] for m in model.modalities])
            agree = ((values == values[0]) & (values >= 0)).all(axis=0)
            totals[a] += np.where(np.isnan(values).any(axis=0), np.nan, agree).sum()
    return {a: float(total / num_samples) for a, total in totals.items()}


def summarise(table: Table, modalities: tuple[str, ...]) -> dict[str, float]:
    """The table as tags, and its averages.

    Args:
      table: from `conditional_coherence`.
      modalities: all of them.

    Returns:
      All tags of `attributes` that are conditional.
    """
    names = tuple(dict.fromkeys(attribute for attribute, _, _ in table))
    tags = {
        f"attribute_coherence/{a}/{target}_given_{'+'.join(subset)}": value
        for (a, subset, target), value in table.items()
    }

    def mean(places) -> float:
        return float(np.mean([table[place] for place in places]))

    def given_others(attributes, targets) -> float:
        return mean(
            [(a, _others(m, modalities), m) for a in attributes for m in targets]
        )

    for m in modalities:
        tag = f"attribute_coherence/reconstruction/{m}"
        tags[tag] = mean([(a, (m,), m) for a in names])
    if len(modalities) > 1:
        for m in modalities:
            tag = f"attribute_coherence/leave_one_out/{m}"
            tags[tag] = given_others(names, (m,))
        for a in names:
            tags[f"attribute_coherence/{a}"] = given_others((a,), modalities)
        tags["attribute_coherence/leave_one_out"] = given_others(names, modalities)
        single = [p for p in table if len(p[1]) == 1 and p[2] not in p[1]]
        tags["attribute_coherence/size_1"] = mean(single)
    return tags


def _others(target: str, modalities: tuple[str, ...]) -> Subset:
    """All modalities but one."""
    return tuple(m for m in modalities if m != target)


def _read(data: EvaluationData, decoded, num_valid: int) -> dict:
    """(attribute, modality) -> values read, [num_valid]; nan what is not finite."""
    finite = jax.device_get({m: is_finite(mean) for m, mean in decoded.items()})
    examples = to_examples(data.test, decoded, data.words)
    found = {}
    for m, x in examples.items():
        for a in data.test.attributes:
            values = np.where(finite[m], np.asarray(data.readers[m][a].read(x)), np.nan)
            found[a, m] = values[:num_valid]
    return found
