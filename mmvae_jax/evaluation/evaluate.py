"""Runs the metrics of a sweep's members, and draws their samples.

Only this file compiles the functions of a model for evaluation, once per run, because
all members share them. Metrics are plain functions.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import ArgumentError
from mmvae_jax.evaluation import needs
from mmvae_jax.evaluation.draws import Draws
from mmvae_jax.evaluation.metric import EvaluationData, Undefined, sampled
from mmvae_jax.evaluation.metrics import METRICS
from mmvae_jax.training.execution import jit_precisely
from mmvae_jax.types import PRIOR, MultimodalVAE, Params, PRNGKey

NOT_FINITE = "what the model computes is not finite"  # the reason, without another


def select_metrics(config: Any, data_dir: str = "data") -> dict[str, Callable]:
    """The metrics of a config, with their options.

    Args:
      config: the section `eval` of configs/base.py.
      data_dir: folder of data sets and of files that metrics store.

    Returns:
      name -> function (model, params, data, key) of tags and values.

    Raises:
      UsageError: an unknown metric, or a metric without its weights.
    """
    unknown = [name for name in config.metrics if name not in METRICS]
    if unknown:
        raise ArgumentError(
            "unknown metric {!r} in {metrics}; choose from {}",
            unknown[0],
            ", ".join(METRICS),
        )
    return {
        name: partial(METRICS[name].compute, **needs.supplied(name, config, data_dir))
        for name in config.metrics
    }


def compile_model(model: MultimodalVAE) -> MultimodalVAE:
    """The model with its functions jitted in float32, for metrics and samples."""
    return model._replace(
        objective=jit_precisely(model.objective),
        encode=jit_precisely(model.encode),
        posterior=jit_precisely(model.posterior),
        mixture_posterior=jit_precisely(model.mixture_posterior),
        posterior_components=jit_precisely(model.posterior_components),
        decode=jit_precisely(model.decode),
        log_likelihood=jit_precisely(model.log_likelihood),
        sample_prior=jit_precisely(model.sample_prior, static_argnums=2),
        log_prior=jit_precisely(model.log_prior),
        deviation=jit_precisely(model.deviation),
        sample_likelihood=jit_precisely(model.sample_likelihood),
    )


def random_examples(split: Split, num: int, seed: int) -> Split:
    """`num` random examples of a split (0: all), the same for the same seed."""
    total = split.num_examples
    if num == 0 or num >= total:
        return split
    return split.take(np.sort(np.random.default_rng(seed).permutation(total)[:num]))


def measured(metrics: Iterable[str], sampler: str) -> list[str]:
    """The metrics of a sampler's unconditional examples; for the prior, all metrics."""
    return [name for name in metrics if sampler == PRIOR or METRICS[name].unconditional]


def evaluate_member(
    metrics: Mapping[str, Callable],
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    announce: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """All metrics of one member.

    Args:
      metrics: from `select_metrics`.
      model: from `compile_model`; or from `samplers.fit`, for values of unconditional
        examples only.
      params: parameters of the member.
      data: data and networks for the metrics.
      key: random key of the member and step. Each metric, and the shared draws, fold in
        their names, so that no value depends on the other metrics.
      announce: called with the name of each metric before it is computed.

    Returns:
      tag -> value. Tags have the prefix "eval/" and the name of a fitted sampler
      ("eval/gmm/swd"). Values that are not finite are Undefined.
    """
    values: dict[str, float] = {}
    data = data._replace(draws=Draws(model, params, data, key_of("draws", key)))
    for name in measured(metrics, model.sampler):
        announce(name)
        found = metrics[name](model, params, data, key_of(name, key))
        if model.sampler != PRIOR:
            found = {
                sampled(tag, model.sampler): value
                for tag, value in found.items()
                if METRICS[name].is_unconditional(tag)
            }
        values |= {f"eval/{tag}": _explained(value) for tag, value in found.items()}
    return values


def key_of(name: str, key: PRNGKey) -> PRNGKey:
    """The key of a metric's draws, from the key of the member and step."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _explained(value: float) -> float:
    """The value as a float, or Undefined if it is not finite."""
    if isinstance(value, Undefined) or np.isfinite(value):
        return value if isinstance(value, Undefined) else float(value)
    return Undefined(NOT_FINITE)
