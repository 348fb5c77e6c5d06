"""The evidence lower bound on test data."""

from collections import defaultdict

import jax
import numpy as np

from mmvae_jax.evaluation.generate import batches
from mmvae_jax.evaluation.metric import EvaluationData, too_few_observed
from mmvae_jax.types import AnyArray, MultimodalVAE, Params, PRNGKey


def elbo(
    model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
) -> dict[str, float]:
    """Test-set means of the bound at beta = 1 and of its terms.

    Daunhawer et al. (2022), Eq. (2). Auxiliary terms of the training objective
    are left out: they are no part of a bound on log p(X). For an importance-weighted
    objective it is the single-sample bound.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: test split.
      key: of the posterior samples, one per example.

    Returns:
      elbo, kl and reconstruction/m0, ...: nats per example; elbo is the sum of
      the reconstruction terms E[log p(x_m|z)] minus kl. Where modalities are missing,
      elbo is that of what is observed, and a modality's reconstruction the mean over
      the examples that have it; Undefined where none has.
    """
    totals: dict[str, float] = defaultdict(float)
    for index, (batch, num_valid) in enumerate(batches(data.test, data.batch_size)):
        batch_key = jax.random.fold_in(key, index)
        _, terms = model.objective(params, batch, batch_key, 1.0)
        totals["kl"] += _sum(terms.kl, num_valid)
        for name in model.modalities:
            value = _sum(terms.log_likelihood[name], num_valid)
            totals[f"reconstruction/{name}"] += value
    num = data.test.num_examples
    reconstruction = sum(totals[f"reconstruction/{m}"] for m in model.modalities) / num
    kl = totals["kl"] / num
    tags = {"elbo": reconstruction - kl, "kl": kl}
    for m in model.modalities:
        count = data.test.is_observed(m).sum()
        tags[f"reconstruction/{m}"] = too_few_observed(data.test, m) or (
            totals[f"reconstruction/{m}"] / count
        )
    return tags


def _sum(values: AnyArray, num_valid: int) -> float:
    """Sum over the rows that count, in float64."""
    return float(np.asarray(values, np.float64)[:num_valid].sum())
