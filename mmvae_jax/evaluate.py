"""Runs the metrics of a sweep's members, and draws their samples.

The one place where the functions of a model are compiled for evaluation: once
for a run, since all members share them. Metrics themselves are plain functions.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from mmvae_jax import needs, pictures
from mmvae_jax.data import Split, scaled
from mmvae_jax.errors import UsageError
from mmvae_jax.metrics import METRICS
from mmvae_jax.metrics.inputs import conditional_means, prior_examples, to_examples
from mmvae_jax.metrics.metric import EvaluationData
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

NUM_PRIOR_SAMPLES = 20
NUM_CONDITIONAL_DRAWS = 10

PROPOSALS = ("joint", "mixture")  # of the log-likelihood


def select_metrics(config: Any, data_dir: str = "data") -> dict[str, Callable]:
    """The metrics that a config asks for, with their options.

    Args:
      config: the field `eval` of configs/base.py.
      data_dir: where data sets are kept, and what metrics keep.

    Returns:
      name -> function (model, params, data, key) of tags and values.

    Raises:
      UsageError: an unknown metric or proposal, or a metric without its weights.
    """
    unknown = [name for name in config.metrics if name not in METRICS]
    if unknown:
        raise UsageError(
            f"unknown metric {unknown[0]!r} in config.eval.metrics; choose from "
            f"{', '.join(METRICS)}"
        )
    if config.proposal not in PROPOSALS:
        raise UsageError(
            f"unknown config.eval.proposal {config.proposal!r}; choose one of "
            f"{', '.join(PROPOSALS)}"
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
        decode=jax.jit(model.decode),
        log_likelihood=jax.jit(model.log_likelihood),
        sample_prior=jax.jit(model.sample_prior, static_argnums=2),
        log_prior=jax.jit(model.log_prior),
    )


def random_examples(split: Split, num: int, seed: int) -> Split:
    """`num` random examples of a split (0: all of them), the same for one seed."""
    total = split.num_examples
    if num == 0 or num >= total:
        return split
    return split.take(np.sort(np.random.default_rng(seed).permutation(total)[:num]))


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
      model: from `compile_model`.
      params: of the member.
      data: what the metrics are computed with.
      key: of the member and step; every metric folds its own from it by its
        name, so that its draws do not depend on which others are computed.
      announce: called with the name of every metric before it is computed.

    Returns:
      tag -> value, tags with the prefix "eval/".
    """
    values = {}
    for name, metric in metrics.items():
        announce(name)
        found = metric(
            model, params, data, jax.random.fold_in(key, zlib.crc32(name.encode()))
        )
        values |= {f"eval/{tag}": float(value) for tag, value in found.items()}
    return values


def sample_grids(
    model: MultimodalVAE, params: Params, test: Split, key: PRNGKey
) -> dict[str, np.ndarray]:
    """Pictures of what one member generates, captions left out.

    Args and names as of `draw_samples` and `pictures.draw_grids`, without words.
    """
    return pictures.draw_grids(draw_samples(model, params, test, key), test, {})


def draw_samples(
    model: MultimodalVAE, params: Params, test: Split, key: PRNGKey
) -> pictures.Samples:
    """Generated examples of one member, to be shown.

    Args:
      model: from `compile_model`.
      params: of the member.
      test: real examples to condition on.
      key: of the samples.

    Returns:
      20 unconditional samples; and for each modality ten draws given each of ten test
      examples of the one after it, one of each class or of ten classes.
    """
    prior_key, conditional_key = jax.random.split(key)
    data = EvaluationData(test, test, None, NUM_PRIOR_SAMPLES)
    prior, _ = next(prior_examples(model, params, data, prior_key, NUM_PRIOR_SAMPLES))
    num_modalities = len(model.modalities)
    conditional = []
    for i, target in enumerate(model.modalities):
        source = model.modalities[(i + 1) % num_modalities]
        examples = test.take(_one_of_each_class(test, source))
        batch = {name: scaled(x) for name, x in examples.leaves().items()}
        experts = model.encode(params, batch)
        draws = []
        for draw_index in range(NUM_CONDITIONAL_DRAWS):
            own = jax.random.fold_in(
                conditional_key, i * NUM_CONDITIONAL_DRAWS + draw_index
            )
            decoded = conditional_means(
                model, params, experts, (source,), jax.random.split(own)
            )
            draws.append(to_examples(test, decoded)[target])
        conditional.append(pictures.Draws(target, source, examples, draws))
    return pictures.Samples(prior, conditional)


def _one_of_each_class(test: Split, modality: str) -> np.ndarray:
    """Ten rows that have this modality: the first of each class, then what follows.

    If there are more than ten classes, ten that are evenly spaced.
    """
    there = np.flatnonzero(test.is_observed(modality))
    if not len(there):
        there = np.arange(test.num_examples)
    labels = there if test.labels is None else test.labels[there]
    _, first = np.unique(labels, return_index=True)
    if test.labels is not None and len(first) > 10:
        first = first[np.linspace(0, len(first) - 1, 10).round().astype(int)]
    others = np.setdiff1d(np.arange(len(there)), first)
    return there[np.concatenate([first, others])[:10]]
