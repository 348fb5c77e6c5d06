"""Cost of a model: its parameters, and the time to generate with it.

The time is measured on the device and with the batches of the evaluation. The time of a
training step is in the summary of a run (step_seconds).
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
    """Number of parameters, and milliseconds for each example that is generated.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: test split, and the batch size of what is timed.
      key: of the samples.
      num_batches: that are timed; the median counts.

    Returns:
      cost/parameters; cost/sample, milliseconds from the prior to all modalities, for
      each example; and cost/conditional, from all modalities but the first to all of
      them (of a single modality: from itself). They are of this machine and batch.
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
    """Median time of `num` calls until their results are there, without the first."""
    found = []
    for i in range(num + 1):
        own_key = jax.random.fold_in(key, i)
        start = time.perf_counter()
        jax.block_until_ready(call(own_key))
        found.append(time.perf_counter() - start)
    return float(np.median(found[1:]))
