"""Samples of a trained model, to be shown."""

import jax
import numpy as np

from mmvae_jax.data.dataset import Split, to_unit_interval
from mmvae_jax.evaluation import pictures
from mmvae_jax.evaluation.generate import conditional_means, prior_examples, to_examples
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.types import PRIOR, MultimodalVAE, Params, PRNGKey

_NUM_PRIOR_SAMPLES = 20
_NUM_CONDITIONAL_DRAWS = 10


def sample_grids(
    model: MultimodalVAE, params: Params, test: Split, key: PRNGKey
) -> dict[str, np.ndarray]:
    """Pictures of the examples that one member generates, without captions.

    Args and names as of `draw_samples` and `pictures.draw_grids`, without words.
    """
    return pictures.draw_grids(draw_samples(model, params, test, key), test, {})


def draw_samples(
    model: MultimodalVAE, params: Params, test: Split, key: PRNGKey
) -> pictures.Samples:
    """Generated examples of one member, to be shown.

    Args:
      model: from `compile_model`, or from `samplers.fit`.
      params: of the member.
      test: real examples to condition on.
      key: of the samples.

    Returns:
      20 unconditional samples; and for each modality ten draws given each of ten test
      examples of the one after it, one of each class or of ten classes. By a fitted
      sampler the first alone: the others are the model's.
    """
    prior_key, conditional_key = jax.random.split(key)
    data = EvaluationData(test, test, None, _NUM_PRIOR_SAMPLES)
    prior, _ = next(prior_examples(model, params, data, prior_key, _NUM_PRIOR_SAMPLES))
    if model.sampler != PRIOR:
        return pictures.Samples(prior, (), model.sampler)
    num_modalities = len(model.modalities)
    conditional = []
    for i, target in enumerate(model.modalities):
        source = model.modalities[(i + 1) % num_modalities]
        examples = test.take(_one_of_each_class(test, source))
        batch = {name: to_unit_interval(x) for name, x in examples.leaves().items()}
        experts = model.encode(params, batch)
        draws = []
        for draw_index in range(_NUM_CONDITIONAL_DRAWS):
            own = jax.random.fold_in(
                conditional_key, i * _NUM_CONDITIONAL_DRAWS + draw_index
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
