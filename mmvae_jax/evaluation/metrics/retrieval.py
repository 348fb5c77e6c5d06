"""Retrieval of the partner of an example by their latent codes.

Each modality of an example is encoded alone. The true partner in another modality is
searched for among all test examples, by the cosine similarity of posterior means. This
measures whether the codes of modalities are aligned, without decoding.
"""

from collections.abc import Sequence

import jax
import numpy as np

from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.generate import part_slices
from mmvae_jax.evaluation.metric import EvaluationData, mean, require_complete
from mmvae_jax.evaluation.metrics.linear_probe import embed
from mmvae_jax.files import file_name
from mmvae_jax.types import SHARED, MultimodalVAE, Params, PRNGKey

RANKS = (1, 5, 10)
_ROWS_AT_ONCE = 500


def retrieval(
    model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
) -> dict[str, float]:
    """Recall at 1, 5 and 10 of the true partner among test examples.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split; examples with all modalities count.
      key: random key of posteriors that draw.

    Returns:
      recall_at_1/m0_to_m1, of the partner of an example of m0 among all of m1; and
      recall_at_1, the mean over ordered pairs; likewise recall_at_5 and recall_at_10:
      fractions in [0, 1], higher is better, NaN if a code is not finite.
      recall_at_1/chance, 1 over the number of candidates. {} with one modality.

    Raises:
      UsageError: fewer than two examples have all modalities.
    """
    if len(model.modalities) == 1:
        return {}
    test = require_complete(data.test, "retrieval")
    codes = {
        m: code_of(model, params, test, m, jax.random.fold_in(key, i), data.batch_size)
        for i, m in enumerate(model.modalities)
    }
    found = {
        f"{file_name(x)}_to_{file_name(y)}": partner_recall(codes[x], codes[y], RANKS)
        for y in model.modalities
        for x in model.modalities
        if x != y
    }
    tags: dict[str, float] = {}
    for i, rank in enumerate(RANKS):
        own = {f"recall_at_{rank}/{pair}": values[i] for pair, values in found.items()}
        tags |= own | {f"recall_at_{rank}": mean(own.values())}
    return tags | {"recall_at_1/chance": 1 / test.num_examples}


def code_of(
    model: MultimodalVAE,
    params: Params,
    split: Split,
    modality: str,
    key: PRNGKey,
    batch_size: int,
) -> np.ndarray:
    """Posterior means given one modality: the shared part, or the modality's part.

    Args:
      model: for one sweep member.
      params: parameters.
      split: N examples that have the modality.
      modality: name of the given modality.
      key: random key of posteriors that draw.
      batch_size: B.

    Returns:
      float [N, d].
    """
    given = np.zeros((split.num_examples, len(model.modalities)), bool)
    given[:, model.modalities.index(modality)] = True
    means = embed(model, params, split._replace(observed=given), key, batch_size)
    slices = part_slices(model.latent_parts)
    return means[:, slices[SHARED if SHARED in slices else modality]]


def partner_recall(
    queries: np.ndarray, candidates: np.ndarray, ranks: Sequence[int]
) -> list[float]:
    """How often the partner is among the k most similar candidates.

    Ties are in random order, so that equal codes give chance.

    Args:
      queries: codes [N, d].
      candidates: codes [N, d], row i the partner of row i.
      ranks: the values of k.

    Returns:
      A fraction in [0, 1] for each rank; NaN if a code is not finite.
    """
    if not (np.isfinite(queries).all() and np.isfinite(candidates).all()):
        return [float("nan")] * len(ranks)
    x, y = _directions(queries), _directions(candidates)
    places = []
    for start in range(0, len(x), _ROWS_AT_ONCE):
        similar = x[start : start + _ROWS_AT_ONCE] @ y.T
        rows = np.arange(len(similar))
        own = similar[rows, start + rows][:, None]
        ahead = (similar > own + 1e-12).sum(axis=1)
        not_behind = (similar >= own - 1e-12).sum(axis=1)  # including the partner
        places.append(np.stack([ahead, not_behind - ahead]))
    ahead, tied = np.concatenate(places, axis=1)
    return [float(np.clip((k - ahead) / tied, 0.0, 1.0).mean()) for k in ranks]


def _directions(codes: np.ndarray) -> np.ndarray:
    """Codes [N, d], normalised to length one; zeros stay zeros."""
    codes = np.asarray(codes, np.float64)
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    return codes / np.where(lengths > 0, lengths, 1.0)
