"""Runs the metrics of a sweep's members, and draws their samples.

The one place where the functions of a model are compiled for evaluation: once
for a run, since all members share them. Metrics themselves are plain functions.
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
from mmvae_jax.types import PRIOR, MultimodalVAE, Params, PRNGKey


def select_metrics(config: Any, data_dir: str = "data") -> dict[str, Callable]:
    """The metrics that a config asks for, with their options.

    Args:
      config: the field `eval` of configs/base.py.
      data_dir: where data sets are kept, and what metrics keep.

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
    """The model with its functions jitted, for metrics and samples."""
    return model._replace(
        objective=jax.jit(model.objective),
        encode=jax.jit(model.encode),
        posterior=jax.jit(model.posterior),
        mixture_posterior=jax.jit(model.mixture_posterior),
        posterior_components=jax.jit(model.posterior_components),
        decode=jax.jit(model.decode),
        log_likelihood=jax.jit(model.log_likelihood),
        sample_prior=jax.jit(model.sample_prior, static_argnums=2),
        log_prior=jax.jit(model.log_prior),
        deviation=jax.jit(model.deviation),
    )


def random_examples(split: Split, num: int, seed: int) -> Split:
    """`num` random examples of a split (0: all of them), the same for one seed."""
    total = split.num_examples
    if num == 0 or num >= total:
        return split
    return split.take(np.sort(np.random.default_rng(seed).permutation(total)[:num]))


def measured(metrics: Iterable[str], sampler: str) -> list[str]:
    """The metrics with values that are of a sampler's examples; by the prior, all."""
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
      model: from `compile_model`; or from `samplers.fit`, and then only values of
        unconditional examples are returned.
      params: of the member.
      data: what the metrics are computed with.
      key: of the member and step; every metric folds its own from it by its name, and
        so do the draws that they share: none depends on which others are computed.
      announce: called with the name of every metric before it is computed.

    Returns:
      tag -> value, tags with the prefix "eval/" and, by a sampler, its name ("eval/gmm/
      swd"); Undefined what is not finite.
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
    """The key of a metric's draws, from that of the member and step."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _explained(value: float) -> float:
    """A value that is finite, or Undefined."""
    if isinstance(value, Undefined) or np.isfinite(value):
        return value if isinstance(value, Undefined) else float(value)
    return Undefined("what the model computes is not finite")
