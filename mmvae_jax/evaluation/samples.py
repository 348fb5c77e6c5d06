"""Samples of a trained model for pictures."""

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.data.dataset import Split, to_unit_interval
from mmvae_jax.evaluation import pictures
from mmvae_jax.evaluation.generate import (
    conditional_means,
    observed_subset,
    prior_examples,
    to_examples,
)
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.types import PRIOR, MultimodalVAE, Params, PRNGKey

_NUM_PRIOR_SAMPLES = 20
_NUM_CONDITIONAL_DRAWS = 10
# A traversal: number of dimensions, their values in standard deviations of the prior,
# and the number of draws of _NUM_PRIOR_SAMPLES that estimate these.
_NUM_MOVED = 6
_MOVES = np.linspace(-2, 2, 9)
_NUM_PRIOR_CALLS = 10


def sample_grids(
    model: MultimodalVAE, params: Params, test: Split, key: PRNGKey
) -> dict[str, np.ndarray]:
    """Pictures of generated examples of one member, without captions.

    See `draw_samples` for the arguments and `pictures.draw_grids` for the names.
    """
    return pictures.draw_grids(draw_samples(model, params, test, key), test, {})


def draw_samples(
    model: MultimodalVAE, params: Params, test: Split, key: PRNGKey
) -> pictures.Samples:
    """Generated examples of one member, for pictures.

    Args:
      model: from `compile_model`, or from `samplers.fit`.
      params: parameters of the member.
      test: real examples to condition on.
      key: random key of the samples.

    Returns:
      20 unconditional samples; for each modality, ten draws given the next modality of
      each of ten test examples of different classes; and a traversal, unless the model
      has `draws_missing`. With a fitted sampler, only the unconditional samples.
    """
    prior_key, conditional_key = jax.random.split(key)
    data = EvaluationData(test, test, None, _NUM_PRIOR_SAMPLES)
    prior, _ = next(prior_examples(model, params, data, prior_key, _NUM_PRIOR_SAMPLES))
    if model.sampler != PRIOR:
        return pictures.Samples(prior, (), sampler=model.sampler)
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
    return pictures.Samples(prior, conditional, _traverse(model, params, test, key))


def _traverse(
    model: MultimodalVAE, params: Params, test: Split, key: PRNGKey
) -> pictures.Traversal | None:
    """A traversal: some dimensions of a posterior mean vary from -2 to 2, one by one.

    The posterior is that of a test example, given its observed modalities. Values are
    in standard deviations of the prior around its mean. The dimensions are those in
    which posterior means of test examples vary most, in the same units. All calls have
    the shapes of other samples, so that nothing is compiled.
    """
    if model.draws_missing:
        return None
    prior_key, posterior_key = jax.random.split(jax.random.fold_in(key, 1))
    drawn = np.concatenate(
        [
            model.sample_prior(params, own, _NUM_PRIOR_SAMPLES)
            for own in jax.random.split(prior_key, _NUM_PRIOR_CALLS)
        ]
    )
    examples = test.take(_one_of_each_class(test, model.modalities[0]))
    batch = {name: to_unit_interval(x) for name, x in examples.leaves().items()}
    subset = observed_subset(model, batch)
    experts = model.encode(params, batch)
    means = np.asarray(model.posterior(params, experts, subset, posterior_key).mean)
    deviation = np.maximum(drawn.std(axis=0), 1e-9)
    with np.errstate(invalid="ignore"):  # means may not be finite
        spread = means.std(axis=0, dtype=np.float64)  # squares beyond float32
    moved = np.argsort(-spread / deviation, kind="stable")[:_NUM_MOVED]
    z = np.tile(means[0], (len(moved), len(_MOVES), 1))
    for row, d in enumerate(moved):
        z[row, :, d] = drawn[:, d].mean() + deviation[d] * _MOVES
    vectors = z.reshape(-1, z.shape[-1])
    rows = np.arange(-(-len(vectors) // _NUM_PRIOR_SAMPLES) * _NUM_PRIOR_SAMPLES)
    filled = vectors[rows % len(vectors)].reshape(-1, _NUM_PRIOR_SAMPLES, z.shape[-1])
    parts = [to_examples(test, model.decode(params, own)) for own in filled]
    decoded = {
        m: jnp.concatenate([part[m] for part in parts])[: len(vectors)]
        for m in model.modalities
    }
    return pictures.Traversal(
        moved.tolist(),
        {m: x.reshape(*z.shape[:2], *x.shape[1:]) for m, x in decoded.items()},
    )


def _one_of_each_class(test: Split, modality: str) -> np.ndarray:
    """Ten rows with this modality: the first of each class, then the next rows.

    If there are more than ten classes, ten evenly spaced classes are used.
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
