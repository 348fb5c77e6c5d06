"""Cost of a model: its parameters, and the time and evaluations to generate with it.

The time is measured on the device and with the batch size of the evaluation. The
evaluations of networks do not depend on the machine: they are counted while the model's
own functions run. The summary of a run has the time of a training step (step_seconds)
and of the training (training_seconds).
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmvae_jax.evaluation.generate import batches, latents_given
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.networks.counting import evaluations
from mmvae_jax.types import OBSERVED, Distribution, MultimodalVAE, Params, PRNGKey


def cost(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_batches: int = 5,
) -> dict[str, float]:
    """Number of parameters, milliseconds and network evaluations per example.

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
      size. cost/evaluations/sample and cost/evaluations/conditional are the numbers of
      evaluations of networks for the same two, after the encoders: of all decoders,
      and of velocities, as often as the solver of an ODE evaluates them.
    """
    batch, _ = next(batches(data.test, data.batch_size))
    batch = {m: x for m, x in batch.items() if m != OBSERVED}
    given = np.ones(len(model.modalities), bool)
    given[0] = len(given) == 1

    def sample(own_key: PRNGKey) -> Any:
        z = model.sample_prior(params, own_key, data.batch_size)
        return model.decode(params, z)

    def decoded_given(experts: Distribution, own_key: PRNGKey) -> Any:
        keys = jax.random.split(own_key)
        return model.decode(params, latents_given(model, params, experts, given, keys))

    def conditional(own_key: PRNGKey) -> Any:
        return decoded_given(model.encode(params, batch), own_key)

    def milliseconds(generate: Callable[[PRNGKey], Any]) -> float:
        seconds = seconds_of(generate, key, num_batches)
        return 1e3 * seconds / data.batch_size

    values = {
        "cost/parameters": float(sum(np.size(x) for x in jax.tree.leaves(params))),
        "cost/sample": milliseconds(sample),
        "cost/conditional": milliseconds(conditional),
    }
    experts = model.encode(params, batch)
    return values | {
        "cost/evaluations/sample": float(evaluations(sample, key)),
        "cost/evaluations/conditional": float(evaluations(decoded_given, experts, key)),
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
