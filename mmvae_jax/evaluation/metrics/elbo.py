"""The evidence lower bound on test data."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.generate import batches
from mmvae_jax.evaluation.metric import EvaluationData, too_few_observed
from mmvae_jax.types import MultimodalVAE, ObjectiveTerms, Params, PRNGKey


def elbo(
    model: MultimodalVAE, params: Params, data: EvaluationData, key: PRNGKey
) -> dict[str, float]:
    """Test-set means of the bound at beta = 1 and of its terms.

    Daunhawer et al. (2022), Eq. (2), without auxiliary terms of the training objective,
    which are not part of a bound on log p(X). For an importance-weighted objective it
    is the single-sample bound. If the prior is a flow, log p(z) has the error of an
    ODE solver, and the bound holds up to it; an estimate of its divergence is unbiased.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split.
      key: random key of the posterior samples, one per example.

    Returns:
      elbo, kl and reconstruction/m0, ...: nats per example; elbo is the sum of
      the reconstruction terms E[log p(x_m|z)] minus kl. With missing modalities, elbo
      is that of the observed modalities, and the reconstruction of a modality is the
      mean over the examples that have it; Undefined if no example has it.
    """
    totals: dict[str, float] = defaultdict(float)
    for terms in term_batches(model, params, data.test, data.batch_size, key):
        totals["kl"] += float(terms.kl.sum())
        for name in model.modalities:
            total = float(terms.log_likelihood[name].sum())
            totals[f"reconstruction/{name}"] += total
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


def term_batches(
    model: MultimodalVAE, params: Params, split: Split, batch_size: int, key: PRNGKey
) -> Iterator[ObjectiveTerms]:
    """The terms of the bound of each example, batch by batch.

    Args:
      model: for one sweep member.
      params: parameters.
      split: examples.
      batch_size: B.
      key: random key of the posterior samples.

    Yields:
      ObjectiveTerms, fields float64 [B], the last batch may be smaller.
    """
    for index, (batch, num_valid) in enumerate(batches(split, batch_size)):
        batch_key = jax.random.fold_in(key, index)
        _, terms = model.objective(params, batch, batch_key, 1.0)
        on_host = partial(np.asarray, dtype=np.float64)
        whole = jax.tree.map(on_host, terms)
        rows = slice(num_valid)
        yield jax.tree.map(lambda x, rows=rows: x[rows], whole)


def elbo_batches(
    model: MultimodalVAE, params: Params, split: Split, batch_size: int, key: PRNGKey
) -> Iterator[np.ndarray]:
    """The bound of each example, float64 [B] in nats; arguments of `term_batches`."""
    for terms in term_batches(model, params, split, batch_size, key):
        yield np.asarray(sum(terms.log_likelihood.values()) - terms.kl)
