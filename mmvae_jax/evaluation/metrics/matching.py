"""Matching: generative coherence without labels.

Daunhawer et al. (2022), Sec. 6, ask for measures of coherence that need no annotation.
Here contrastive matching networks (mmvae_jax.evaluation.judges.matchers), trained only
on real tuples, replace the classifiers. Given an example of one modality and N examples
of another, one of them its partner, a network gives each the probability of being the
partner. The lift is N times the probability of the true partner. Its mean over all
permutations of the pairs is exactly 1, for any examples. Scores are lifts, rescaled
such that shuffled pairs have 0 and real test pairs 1.

Examples that are independent of their condition score 0, also if they are blurred or
all equal. Pairs of prior samples are scored among real examples. Scores are not
clipped: they are below 0 if pairs match worse than at random, and above 1 if generated
examples are more typical than real ones. If modalities share only the class, the score
is the labelled coherence, corrected for chance and for the errors of the networks.

The same networks also retrieve: an example that was generated from another modality is
the query for the real example that it was generated from. Recall for real queries says
what the networks can reach.

Like the labelled joint coherence, the joint score of prior samples does not penalise
samples of a single class. Unlike it, this score rewards equally blurred samples.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.evaluation.draws import Draws, draws_of
from mmvae_jax.evaluation.features import generated_features
from mmvae_jax.evaluation.generate import (
    batches,
    conditional_means,
    nan_if_not_finite,
    to_examples,
)
from mmvae_jax.evaluation.metric import (
    EvaluationData,
    Matchers,
    Undefined,
    mean,
    require_complete,
    require_matchers,
)
from mmvae_jax.evaluation.metrics.retrieval import RANKS, partner_recall
from mmvae_jax.files import file_name
from mmvae_jax.training.execution import jit_precisely
from mmvae_jax.types import PRIOR, Array, MultimodalVAE, Params, PRNGKey

_Subset = tuple[str, ...]
_Pair = tuple[str, str]
_Features = dict[str, np.ndarray]

_ROWS_AT_ONCE = 500
# The lift of real pairs must exceed 1 by this many standard errors, and by this much;
# otherwise scores would be noise divided by noise.
_MIN_STANDARD_ERRORS = 3.0
_MIN_EXCESS = 0.01


def matching(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_prior_samples: int | None = None,
) -> dict[str, float]:
    """Match of generated modalities with their conditions.

    For each complete test example, one z ~ q(z|x_A) is drawn; the likelihood means of
    the modalities outside A are matched with the real x_n, n in A.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split, and matchers for all modalities.
      key: random key of the posterior and prior samples.
      num_prior_samples: prior samples of the joint score; None: the number of test
        examples.

    Returns:
      Scores, 0 for shuffled and 1 for real pairs (NaN if a parameter is not finite, or
      the networks cannot tell real pairs from shuffled pairs):
      matching/leave_one_out, the mean over targets of the next;
      matching/leave_one_out/m0, of m0 given all others, mean over these;
      matching/size_1, of one modality given one other, mean over ordered pairs;
      matching/joint, of prior samples, mean over ordered pairs.
      The quality of the networks, on real test examples:
      matching/accuracy, the mean over modalities of the next;
      matching/accuracy/m0, how often the partner of an example of m0 is preferred
      to a random example, in [0, 1], chance 0.5, mean over the other modalities;
      matching/lift, mean over ordered pairs: at most K for modalities that share only
      one of K equally frequent classes.
      Recall among the N complete test examples, in [0, 1], chance k / N (ties are in
      random order): matching/recall_at_1/m1_to_m0, how often the real m0 that m1 was
      generated from, alone, is the one whose features are most similar to it;
      matching/recall_at_1, mean over ordered pairs; matching/real_recall_at_1 and
      /m1_to_m0, the same for the real m1; matching/recall_at_1/chance; likewise at 5
      and at 10.
      Modalities without a common attribute are not a pair; {} without pairs.

    Raises:
      UsageError: a modality has no matcher, or there is only one test example.
    """
    modalities = model.modalities
    # If modalities share nothing, no network can recognise real pairs.
    pairs = [pair for pair in _ordered_pairs(modalities) if data.share(*pair)]
    if not pairs:
        return {}
    matchers = require_matchers(data, modalities, "matching")
    data = data._replace(test=require_complete(data.test, "matching"))
    conditional_key, prior_key = jax.random.split(key)
    real = _real_features(matchers, data, modalities)
    statistics = {
        (x, y): pair_statistics(real[x], real[y], matchers.scale[x, y])
        for x, y in pairs
    }

    def score(x: str, y: str, y_features: np.ndarray) -> float:
        lifts, _ = pair_statistics(real[x], y_features, matchers.scale[x, y])
        return calibrate(lifts, statistics[x, y][0])

    num = data.test.num_examples if num_prior_samples is None else num_prior_samples
    draws = draws_of(model, params, data, prior_key)
    prior = _prior_features(draws, matchers, num, data.batch_size)
    joint = [
        calibrate(joint_lifts(prior[x], prior[y], real[x], matchers.scale[x, y]), lifts)
        for (x, y), (lifts, _) in statistics.items()
    ]
    if model.sampler != PRIOR:
        return {"matching/joint": mean(joint)}
    generated = _conditional_features(model, params, data, matchers, conditional_key)
    conditional = {
        (subset, target): mean(score(n, target, features) for n in known)
        for (subset, target), features in generated.items()
        if (known := [n for n in subset if (n, target) in statistics])
    }
    return {
        **_summarise(conditional, modalities),
        "matching/joint": mean(joint),
        **_worth(statistics),
        **_recall("real_recall", {(x, y): real[y] for x, y in pairs}, real),
        **_recall("recall", {(x, y): generated[(x,), y] for x, y in pairs}, real),
        **{f"matching/recall_at_{k}/chance": _chance(k, real) for k in RANKS},
    }


def _worth(
    statistics: Mapping[_Pair, tuple[np.ndarray, np.ndarray]],
) -> dict[str, float]:
    """Mean accuracy and lift of the networks, from `pair_statistics` of real pairs."""
    wins = {pair: own.mean() for pair, (_, own) in statistics.items()}
    accuracy = {
        y: float(np.mean([won for (_, other), won in wins.items() if other == y]))
        for y in dict.fromkeys(y for _, y in wins)
    }
    lifts = [lifts.mean() for lifts, _ in statistics.values()]
    return {
        **{f"matching/accuracy/{y}": value for y, value in accuracy.items()},
        "matching/accuracy": float(np.mean(list(accuracy.values()))),
        "matching/lift": float(np.mean(lifts)),
    }


def _recall(
    name: str, queries: Mapping[_Pair, np.ndarray], real: _Features
) -> dict[str, float]:
    """Recall of the partner among real examples.

    Args:
      name: name of the values.
      queries: (modality x of the candidates, y) -> features [N, F] of queries of y.
      real: modality -> features [N, F] of the candidates.

    Returns:
      Tags and values, of each pair and the means over pairs.
    """
    found = {
        f"{file_name(y)}_to_{file_name(x)}": partner_recall(own, real[x], RANKS)
        for (x, y), own in queries.items()
    }
    tags: dict[str, float] = {}
    for i, k in enumerate(RANKS):
        tag = f"matching/{name}_at_{k}"
        tags[tag] = mean(values[i] for values in found.values())
        tags |= {f"{tag}/{pair}": values[i] for pair, values in found.items()}
    return tags


def _chance(rank: int, real: _Features) -> float:
    """Recall at a rank of random order."""
    num = len(next(iter(real.values())))
    return min(rank / num, 1.0)


def pair_statistics(
    x: np.ndarray, y: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """How well the partner x_i of y_i is recognised among all of x.

    Args:
      x: features [N, F] of one modality, of length one.
      y: features [N, F] of another; x_i and y_i are partners.
      scale: scale of the pair of modalities.

    Returns:
      lifts, float64 [N], N times the probability of x_i: in [0, N], and 1 on average
      over all shuffles of x for each y_i; and float64 [N], the fraction of the others
      with a lower probability than x_i, ties counting half. NaN if y_i is NaN.
    """
    parts = []
    for start in range(0, len(y), _ROWS_AT_ONCE):
        part = y[start : start + _ROWS_AT_ONCE]
        rows = np.arange(start, start + len(part))
        parts.append(jax.device_get(_row_statistics(x, part, rows, scale)))
    lifts, wins = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return lifts.astype(np.float64), wins.astype(np.float64)


def joint_lifts(
    x: np.ndarray, y: np.ndarray, real: np.ndarray, scale: float
) -> np.ndarray:
    """How well a generated partner x_i of y_i is recognised among real examples.

    Among generated examples, samples of a single class would match no better than
    shuffled ones.

    Args:
      x: features [P, F] of generated examples of one modality, of length one.
      y: features [P, F] of another; x_i and y_i are partners.
      real: features [N, F] of real examples of the modality of x.
      scale: scale of the pair of modalities.

    Returns:
      float64 [P], N + 1 times the probability of x_i.
    """
    parts = []
    for start in range(0, len(y), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        parts.append(jax.device_get(_joint_lifts(x[part], y[part], real, scale)))
    return np.concatenate(parts).astype(np.float64)


@jit_precisely
def _row_statistics(
    x: Array, y: Array, rows: Array, scale: float
) -> tuple[Array, Array]:
    """`pair_statistics` of some rows of y and the same rows of x."""
    logits = scale * y @ x.T
    own = jnp.take_along_axis(logits, rows[:, None], axis=1)
    log_sum = jax.nn.logsumexp(logits, axis=1)
    lifts = len(x) * jnp.exp(own[:, 0] - log_sum)
    # Do not count the tie of the partner with itself.
    wins = jnp.sum(logits < own, axis=1) + 0.5 * (jnp.sum(logits == own, axis=1) - 1)
    return lifts, jnp.where(jnp.isnan(log_sum), jnp.nan, wins / (len(x) - 1))


@jit_precisely
def _joint_lifts(x: Array, y: Array, real: Array, scale: float) -> Array:
    """`joint_lifts` of some rows."""
    own = scale * jnp.sum(x * y, axis=1, keepdims=True)
    logits = jnp.concatenate([own, scale * y @ real.T], axis=1)
    return (len(real) + 1) * jax.nn.softmax(logits, axis=1)[:, 0]


def calibrate(lifts: np.ndarray, real_lifts: np.ndarray) -> float:
    """The mean lift, rescaled to 0 for shuffled and 1 for real pairs.

    Args:
      lifts: [N], of generated pairs.
      real_lifts: [N], of real test pairs of the same modalities.

    Returns:
      A score, at most slightly above 1; Undefined if real pairs do not match better
      than shuffled pairs.
    """
    excess = real_lifts.mean() - 1.0
    error = real_lifts.std() / np.sqrt(len(real_lifts))
    if not excess > max(_MIN_STANDARD_ERRORS * error, _MIN_EXCESS):
        return Undefined(
            "the matching networks do not tell real pairs from shuffled ones"
        )
    return float((lifts.mean() - 1.0) / excess)


def _real_features(
    matchers: Matchers, data: EvaluationData, modalities: tuple[str, ...]
) -> _Features:
    """Features of all real test examples: modality -> [N, F]."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in modalities}
    for batch, num_valid in batches(data.test, data.batch_size):
        found = jax.device_get({m: matchers.embed[m](batch[m]) for m in modalities})
        for name, features in found.items():
            parts[name].append(features[:num_valid])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _prior_features(
    draws: Draws, matchers: Matchers, num: int, batch_size: int
) -> _Features:
    """Features of `num` prior samples: modality -> [num, F]."""
    return {
        m: generated_features(matchers.embed[m], draws.prior(m, num), batch_size)
        for m in draws.model.modalities
    }


def _conditional_features(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    matchers: Matchers,
    key: PRNGKey,
) -> dict[tuple[_Subset, str], np.ndarray]:
    """Features of examples generated from one modality, and from all but one.

    Returns:
      (subset, target) -> [N, F], targets outside of the subset.
    """
    modalities = model.modalities
    subsets: list[_Subset] = [(name,) for name in modalities]
    subsets += [tuple(m for m in modalities if m != name) for name in modalities]
    subsets = list(dict.fromkeys(subsets))  # for two modalities, both kinds are equal
    parts: dict[tuple[_Subset, str], list[np.ndarray]] = {
        (s, m): [] for s in subsets for m in modalities if m not in s
    }
    for batch, num_valid in batches(data.test, data.batch_size):
        experts = model.encode(params, batch)
        found: dict[tuple[_Subset, str], Array] = {}
        for subset in subsets:
            key, *own_keys = jax.random.split(key, 3)
            decoded = conditional_means(model, params, experts, subset, own_keys)
            outside = [m for m in modalities if m not in subset]
            features = _embed(data, matchers, decoded, outside)
            found |= {(subset, target): x for target, x in features.items()}
        for pair, features in jax.device_get(found).items():
            parts[pair].append(features[:num_valid])
    return {pair: np.concatenate(arrays) for pair, arrays in parts.items()}


def _embed(
    data: EvaluationData,
    matchers: Matchers,
    decoded: Mapping[str, Array],
    modalities: Sequence[str],
) -> dict[str, Array]:
    """Features of likelihood means of some modalities; NaN if these are not finite."""
    examples = to_examples(data.test, decoded, data.words)
    return {
        m: nan_if_not_finite(
            data.test.modalities[m], decoded[m], matchers.embed[m](examples[m])
        )
        for m in modalities
    }


def _summarise(
    table: Mapping[tuple[_Subset, str], float], modalities: tuple[str, ...]
) -> dict[str, float]:
    """The averages with the tags leave_one_out and size_1."""
    tags = {}
    for target in modalities:
        others = tuple(name for name in modalities if name != target)
        if (others, target) in table:
            tags[f"matching/leave_one_out/{target}"] = table[others, target]
    tags["matching/leave_one_out"] = mean(tags.values())
    single = [value for (subset, _), value in table.items() if len(subset) == 1]
    tags["matching/size_1"] = mean(single)
    return tags


def _ordered_pairs(modalities: tuple[str, ...]) -> list[_Pair]:
    """All M (M - 1) ordered pairs."""
    return [(x, y) for y in modalities for x in modalities if x != y]
