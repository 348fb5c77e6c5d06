"""Runs the metrics of a sweep's members, and draws their samples.

The one place where the functions of a model are compiled for evaluation: once
for a run, since all members share them. Metrics themselves are plain functions.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax import distributions, inception, inception_weights
from mmvae_jax.data import Split, is_image, is_tokens, scaled
from mmvae_jax.errors import UsageError
from mmvae_jax.metrics import (
    coherence,
    elbo,
    fid,
    frechet,
    linear_probe,
    log_likelihood,
    matching,
    swd,
)
from mmvae_jax.metrics.inputs import EvaluationData, prior_examples, to_examples
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey

NUM_PRIOR_SAMPLES = 20
NUM_CONDITIONAL_DRAWS = 10

METRICS = {
    "elbo": elbo.elbo,
    "coherence": coherence.coherence,
    "matching": matching.matching,
    "frechet": frechet.frechet,
    "swd": swd.swd,
    "log_likelihood": log_likelihood.log_likelihood,
    "linear_probe": linear_probe.linear_probe,
    "fid": fid.fid,
}
NEEDS_CLASSIFIERS = ("coherence", "frechet")
NEEDS_MATCHERS = ("matching",)
PROPOSALS = ("joint", "mixture")  # of the log-likelihood


def select_metrics(config: Any, data_dir: str = "data") -> dict[str, Callable]:
    """The metrics that a config asks for, with their options.

    Args:
      config: the field `eval` of configs/base.py.
      data_dir: where data sets are kept; FID keeps its weights and the moments of
        real images there.

    Raises:
      UsageError: an unknown metric or proposal, or FID without its weights.
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
    options = {
        "log_likelihood": {
            "num_samples": config.importance_samples,
            "proposal": config.proposal,
        }
    }
    if "fid" in config.metrics:
        weights = inception_weights.load(config.inception_weights, data_dir)
        options["fid"] = {
            "extractor": inception.make_extractor(inception.to_variables(weights)),
            "cache_dir": Path(data_dir).expanduser() / "fid",
        }
    return {
        name: partial(METRICS[name], **options.get(name, {})) for name in config.metrics
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
    """Pictures of what one member generates (the paper's Figures 9 and 10).

    Images are shown as they are, vectors as squares of grey values, row by row, from
    the least (black) to the largest value of the test examples; tokens are left out.

    Args:
      model: from `compile_model`.
      params: of the member.
      test: real examples to condition on.
      key: of the samples.

    Returns:
      name -> uint8 [H, W, C]. "prior": a row of 20 unconditional samples for each
      modality. "m0_given_m1" and so on: ten test examples of m1, one for each
      class, on top, and ten draws of m0 given them below; every modality is given
      the one after it.
    """
    prior_key, conditional_key = jax.random.split(key)
    data = EvaluationData(test, test, None, NUM_PRIOR_SAMPLES)
    prior, _ = next(prior_examples(model, params, data, prior_key, NUM_PRIOR_SAMPLES))
    shown = [m for m, x in test.modalities.items() if not is_tokens(x)]
    if not shown:
        return {}
    row = {m: partial(_row, test.modalities[m]) for m in shown}
    grids = {"prior": _stack([row[m](prior[m]) for m in shown])}
    num_modalities = len(model.modalities)
    for target in shown:
        i = model.modalities.index(target)
        source = model.modalities[(i + 1) % num_modalities]
        examples = test.take(_one_of_each_class(test, source))
        batch = {name: scaled(x) for name, x in examples.leaves().items()}
        experts = model.encode(params, batch)
        subset = jnp.arange(num_modalities) == model.modalities.index(source)
        lines = [row[source](batch[source])] if source in shown else []
        for draw_index in range(NUM_CONDITIONAL_DRAWS):
            own = jax.random.fold_in(
                conditional_key, i * NUM_CONDITIONAL_DRAWS + draw_index
            )
            posterior_key, noise_key = jax.random.split(own)
            posterior = model.posterior(params, experts, subset, posterior_key)
            z = distributions.sample(posterior, noise_key)
            generated = to_examples(test, model.decode(params, z))
            lines.append(row[target](generated[target]))
        grids[f"{target}_given_{source}"] = _stack(lines)
    return grids


def _row(real: np.ndarray, examples: Any) -> np.ndarray:
    """Examples [N, ...] of the kind of `real`, side by side: uint8 [H, N W, C]."""
    examples = np.nan_to_num(np.asarray(examples, np.float32))
    if not is_image(real):
        low, high = np.min(real), np.max(real)
        grey = np.clip((examples - low) / max(high - low, 1e-9), 0.0, 1.0)
        grey = grey.reshape(len(grey), -1)
        side = math.ceil(math.sqrt(grey.shape[1]))
        grey = np.pad(grey, ((0, 0), (0, side**2 - grey.shape[1])))
        tiles = np.kron(grey.reshape(-1, side, side), np.ones((1, 4, 4)))
        # A white edge tells one example from the next.
        examples = np.pad(tiles, ((0, 0), (0, 1), (0, 1)), constant_values=1.0)
        examples = examples[..., None]
    side_by_side = einops.rearrange(examples, "n h w c -> h (n w) c")
    return np.round(side_by_side * 255).astype(np.uint8)


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows [h, w, c] below each other: narrow ones filled up, grey among colours."""
    width = max(row.shape[1] for row in rows)
    channels = max(row.shape[2] for row in rows)
    return np.concatenate(
        [
            np.pad(
                np.broadcast_to(row, (*row.shape[:2], channels)),
                ((0, 0), (0, width - row.shape[1]), (0, 0)),
            )
            for row in rows
        ]
    )


def _one_of_each_class(test: Split, modality: str) -> np.ndarray:
    """Ten rows that have this modality: the first of each class, then what follows."""
    there = np.flatnonzero(test.is_observed(modality))
    if not len(there):
        there = np.arange(test.num_examples)
    labels = there if test.labels is None else test.labels[there]
    _, first = np.unique(labels, return_index=True)
    others = np.setdiff1d(np.arange(len(there)), first)
    return there[np.concatenate([first, others])[:10]]
