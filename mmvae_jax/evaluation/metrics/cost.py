"""Cost of a model: its parameters, and the time to generate with it.

The time is measured on the device and with the batch size of the evaluation. The
summary of a run has the time of a training step (step_seconds).
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmvae_jax.evaluation.generate import batches, latents_given
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.types import OBSERVED, MultimodalVAE, Params, PRNGKey


def cost(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_batches: int = 5,
) -> dict[str, float]:
    """Number of parameters, and milliseconds per generated example.

    Args:
      model: for one sweep member.
      params: parameters.
      data: test split, and the batch size.
      key: random key of the samples.
      num_batches: number of timed batches, of which the median counts.

    Returns:
      cost/parameters; cost/sample, milliseconds per example from the prior to all
      modalities; and cost/conditional, from all modalities except the first to all
      modalities (a single modality: from itself). Times depend on machine and batch
      size.
    """
    batch, _ = next(batches(data.test, data.batch_size))
    batch = {m: x for m, x in batch.items() if m != OBSERVED}
    given = np.ones(len(model.modalities), bool)
    given[0] = len(given) == 1

    def sample(own_key: PRNGKey) -> Any:
        z = model.sample_prior(params, own_key, data.batch_size)
        return model.decode(params, z)

    def conditional(own_key: PRNGKey) -> Any:
        experts = model.encode(params, batch)
        keys = jax.random.split(own_key)
        return model.decode(params, latents_given(model, params, experts, given, keys))

    def milliseconds(generate: Callable[[PRNGKey], Any]) -> float:
        seconds = seconds_of(generate, key, num_batches)
        return 1e3 * seconds / data.batch_size

    return {
        "cost/parameters": float(sum(np.size(x) for x in jax.tree.leaves(params))),
        "cost/sample": milliseconds(sample),
        "cost/conditional": milliseconds(conditional),
    }


def seconds_of(call: Callable[[PRNGKey], Any], key: PRNGKey, num: int) -> float:
    """Median seconds of `num` calls, including their results, after one more call."""
    found = []
    for i in range(num + 1):
        own_key = jax.random.fold_in(key, i)
        start = time.perf_counter()
        jax.block_until_ready(call(own_key))
        found.append(time.perf_counter() - start)
    return float(np.median(found[1:]))
