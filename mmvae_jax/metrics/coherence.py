"""Generative coherence: do generated modalities show the label of the others?

Daunhawer et al. (2022), App. C.1, after Sutter et al. (2021). Classifiers are
evaluated without dropout and on images clipped to [0, 1]; the published code
does neither, which may lower its values.
"""

import itertools
from collections.abc import Mapping

import jax
import numpy as np

from mmvae_jax.metrics.inputs import (
    EvaluationData,
    batches,
    conditional_means,
    nan_if_not_finite,
    observed_rows,
    prior_means,
    require_classifiers,
    require_labels,
    to_examples,
)
from mmvae_jax.types import Array, MultimodalVAE, Params, PRNGKey

Subset = tuple[str, ...]
Table = dict[tuple[Subset, str], float]


def coherence(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_prior_samples: int | None = None,
) -> dict[str, float]:
    """Conditional coherence of every subset and target, and joint coherence.

    Conditional: z ~ q(z|x_A), one draw per test example of which all of x_A is
    observed, the likelihood means of all modalities classified; the fraction whose
    class is the label.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: test split, and classifiers for all modalities.
      key: of the posterior and prior samples.
      num_prior_samples: of the joint coherence; None: as many as test examples.

    Returns:
      Fractions in [0, 1] (nan where a parameter is not finite):
      coherence/leave_one_out, the mean over targets of the next;
      coherence/leave_one_out/m0, of m0 given all other modalities;
      coherence/size_1, ..., mean over subsets of that size and targets outside;
      coherence/joint, prior samples on which all classifiers agree;
      coherence/subset/m0+m2/m1, of m1 given m0 and m2, for all pairs;
      classifier_accuracy/m0, on real test images: what m0 can reach.
      With one modality, only the last two: the others compare modalities.

    Raises:
      UsageError: a modality has no classifier.
    """
    modalities = model.modalities
    require_labels(data.test, "coherence")
    classifiers = require_classifiers(data, modalities, "coherence")
    conditional_key, prior_key = jax.random.split(key)
    table = conditional_coherence(model, params, data, conditional_key)
    tags = {}
    if len(modalities) > 1:
        tags |= summarise(table, modalities)
        tags["coherence/joint"] = joint_coherence(
            model,
            params,
            data,
            prior_key,
            data.test.num_examples if num_prior_samples is None else num_prior_samples,
        )
    for (subset, target), value in table.items():
        tags[f"coherence/subset/{'+'.join(subset)}/{target}"] = value
    for name in modalities:
        tags[f"classifier_accuracy/{name}"] = float(classifiers[name].accuracy)
    return tags


def non_empty_subsets(modalities: tuple[str, ...]) -> list[Subset]:
    """All 2^M - 1 non-empty subsets, by size, then in the order of modalities."""
    sizes = range(1, len(modalities) + 1)
    return [s for size in sizes for s in itertools.combinations(modalities, size)]


def conditional_coherence(
    model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
) -> Table:
    """Accuracy on every modality generated given every subset.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: test split and classifiers.
      key: of the posterior samples.

    Returns:
      (subset, target) -> fraction in [0, 1], for all pairs, self-reconstruction
      included.
    """
    subsets = non_empty_subsets(model.modalities)
    totals = {(s, m): 0.0 for s in subsets for m in model.modalities}
    counts = dict.fromkeys(subsets, 0)
    start = 0
    for batch, num_valid in batches(data.test, data.batch_size):
        experts = model.encode(params, batch)
        logits = {}
        for subset in subsets:
            key, *own_keys = jax.random.split(key, 3)
            decoded = conditional_means(model, params, experts, subset, own_keys)
            for target, values in _classify(data, decoded).items():
                logits[subset, target] = values
        labels = data.test.labels[start : start + num_valid]
        start += num_valid
        observed = observed_rows(batch, model.modalities, num_valid)
        given = {s: np.all([observed[m] for m in s], axis=0) for s in subsets}
        for subset, rows in given.items():
            counts[subset] += int(rows.sum())
        # Fetched once per batch: a transfer per pair would wait for the device
        # (2^M - 1) M times.
        for pair, values in jax.device_get(logits).items():
            classes = predicted_classes(values[:num_valid])
            is_right = np.where(np.isnan(classes), np.nan, classes == labels)
            totals[pair] += is_right[given[pair[0]]].sum()
    return {
        pair: float(total / counts[pair[0]]) if counts[pair[0]] else float("nan")
        for pair, total in totals.items()
    }


def joint_coherence(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    num_samples: int,
) -> float:
    """Fraction of prior samples on which the classifiers of all modalities agree.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: classifiers and the batch size.
      key: of the prior samples.
      num_samples: how many.

    Returns:
      A fraction in [0, 1].
    """
    total = 0.0
    means = prior_means(model, params, data.batch_size, key, num_samples)
    for decoded, num_valid in means:
        logits = jax.device_get(_classify(data, decoded))
        classes = np.stack(
            [predicted_classes(logits[name][:num_valid]) for name in model.modalities]
        )
        agree = (classes == classes[0]).all(axis=0)
        total += np.where(np.isnan(classes).any(axis=0), np.nan, agree).sum()
    return float(total / num_samples)


def predicted_classes(logits: np.ndarray) -> np.ndarray:
    """Most probable classes, float [B]; nan where a logit is not finite.

    An argmax over nan is class 0, which would pass off a diverged model as one
    that guesses.
    """
    finite = np.isfinite(logits).all(axis=-1)
    return np.where(finite, logits.argmax(axis=-1), np.nan)


def summarise(table: Table, modalities: tuple[str, ...]) -> dict[str, float]:
    """Averages of the table that papers report.

    Args:
      table: (subset, target) -> fraction, for all pairs.
      modalities: at least two.

    Returns:
      Tags coherence/leave_one_out (and per target) and coherence/size_<size>.
    """
    tags = {}
    for target in modalities:
        others = tuple(name for name in modalities if name != target)
        tags[f"coherence/leave_one_out/{target}"] = table[others, target]
    tags["coherence/leave_one_out"] = float(np.mean(list(tags.values())))
    for size in range(1, len(modalities)):
        values = [
            value
            for (subset, target), value in table.items()
            if len(subset) == size and target not in subset
        ]
        tags[f"coherence/size_{size}"] = float(np.mean(values))
    return tags


def _classify(data: EvaluationData, decoded: Mapping[str, Array]) -> dict[str, Array]:
    """Logits [B, num_classes] of likelihood means, still on the device."""
    return {
        name: nan_if_not_finite(
            data.test.modalities[name],
            decoded[name],
            data.classifiers[name].apply(example)[1],
        )
        for name, example in to_examples(data.test, decoded, data.words).items()
    }
