"""A trained model applied to arrays: embed, impute, reconstruct, generate, score.

All functions run in batches of one fixed shape: each function of the model compiles
once, and needs the memory of one batch in addition to input and output. Results have
the types of users' data (`description`): images uint8 in 0..255, vectors float32 in the
units of the training data, tokens int32.

The variants `*_batches` yield results batch by batch, for data larger than memory.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import scipy.special

from mmvae_jax.data.dataset import Split, is_image
from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.evaluation import evaluate
from mmvae_jax.evaluation import generate as generation
from mmvae_jax.evaluation.metrics import elbo, log_likelihood
from mmvae_jax.interface import description as descriptions
from mmvae_jax.interface.description import IMAGES, TOKENS
from mmvae_jax.interface.trained import Trained
from mmvae_jax.mathematics import distributions, posteriors
from mmvae_jax.types import AnyArray, PRNGKey

_Result = TypeVar("_Result")


class Embedding(NamedTuple):
    """Mean and log-variance of q(z|x_A) of N examples.

    For a mixture (MMVAE) these are the moments of the whole mixture.

    Attributes:
      mean: float32 [N, D].
      log_variance: float32 [N, D].
      parts: (name, number of dimensions) in the order of D: "shared", or the name of a
        modality for its private part.
    """

    mean: np.ndarray
    log_variance: np.ndarray
    parts: tuple[tuple[str, int], ...]

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log-variance, [N, d] each, of one part of the latent vector.

        Raises:
          ArgumentError: there is no part of this name.
        """
        slices = generation.part_slices(self.parts)
        if name in slices:
            return self.mean[:, slices[name]], self.log_variance[:, slices[name]]
        known = ", ".join(slices)
        raise ArgumentError("no part {!r} of the latent vector: it has {}", name, known)


class Imputed(NamedTuple):
    """All modalities of N examples: given where observed, imputed where missing.

    Attributes:
      mean: modality -> [N, ...], the mean of the decoded values over draws of the
        posterior; for tokens, the most probable ones.
      spread: modality -> float32 [N, ...], the standard deviation of the decoded values
        over draws, in the units of `mean`, without observation noise. For tokens, the
        entropy [N, T] of the averaged probabilities, in nats. 0 where observed.
      deviation: modality -> float32 [N, ...], the standard deviation of the predicted
        value: sqrt(spread^2 + the likelihood's variance). Use it for predictive
        intervals, with a likelihood that learns its scale ("gaussian_learned"). 0 where
        observed; tokens have none.
      draws: modality -> [L, N, ...], the decoded draws; where observed, the given
        values.
    """

    mean: dict[str, np.ndarray]
    spread: dict[str, np.ndarray]
    deviation: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]


class Scores(NamedTuple):
    """Scores of N examples, for the observed modalities of each, in nats.

    Attributes:
      elbo: float64 [N], a single-sample estimate of the bound at beta = 1.
      log_likelihood: float64 [N], the importance-weighted estimate of log p(x).
    """

    elbo: np.ndarray
    log_likelihood: np.ndarray


def embed(
    trained: Trained,
    data: Mapping[str, Any] | Split,
    observed: Any = None,
    *,
    given: Sequence[str] | None = None,
) -> Embedding:
    """Posterior of the latent vector given the observed modalities.

    Args:
      trained: from `fit` or `load`.
      data: modality -> array [N, ...]; see `description.to_split`.
      observed: which modalities each example has; default: all in `data`.
      given: names of the modalities to condition on; default: all.

    Returns:
      Embedding.

    Raises:
      UsageError: the data do not fit the model.
    """
    split = _given(trained, data, observed, given)
    pieces = (one[:2] for one in embed_batches(trained, split))
    mean, log_variance = _collected(pieces, split.num_examples)
    return Embedding(mean, log_variance, trained.model.latent_parts)


def embed_batches(trained: Trained, split: Split) -> Iterator[Embedding]:
    """`embed` of a Split, batch by batch."""
    model, params = trained.model, trained.params
    for batch, num in generation.batches(split, _batch_size(trained)):
        experts = model.encode(params, batch)
        subset = generation.observed_subset(model, batch)
        components = model.posterior_components(params, experts, subset)
        mean, log_variance = (np.asarray(x)[:num] for x in _moments(*components))
        yield Embedding(mean, log_variance, model.latent_parts)


_moments = jax.jit(posteriors.mixture_moments)


def impute(
    trained: Trained,
    data: Mapping[str, Any] | Split,
    observed: Any = None,
    *,
    num_draws: int = 20,
    key: int | PRNGKey = 0,
    keep_draws: bool = True,
) -> Imputed:
    """Imputes the missing modalities of each example given the observed ones.

    A draw is a decoded z ~ q(z|x_A), where A are the observed modalities.

    Args:
      trained: from `fit` or `load`.
      data: modality -> array [N, ...]; see `description.to_split`.
      observed: which modalities each example has; default: all in `data`.
      num_draws: L, at least 1.
      key: seed or key of jax.random.
      keep_draws: whether the draws are returned; they take L times the memory.

    Returns:
      Imputed; `draws` is empty without `keep_draws`.

    Raises:
      UsageError: the data do not fit the model.
    """
    split = _given(trained, data, observed)
    pieces = impute_batches(
        trained, split, num_draws=num_draws, key=key, keep_draws=keep_draws
    )
    return Imputed(*_collected(pieces, split.num_examples, axes=(0, 0, 0, 1)))


def impute_batches(
    trained: Trained,
    split: Split,
    *,
    num_draws: int = 20,
    key: int | PRNGKey = 0,
    keep_draws: bool = True,
) -> Iterator[Imputed]:
    """`impute` of a Split, batch by batch."""
    if num_draws < 1:
        raise ArgumentError("{num_draws} must be >= 1, got {}", num_draws)
    size, start = _batch_size(trained), 0
    for index, (batch, num) in enumerate(generation.batches(split, size)):
        given = split.take(np.arange(start, start + num))
        start += num
        sums: dict[str, _Sums] = {}
        kept: dict[str, list[np.ndarray]] = {}
        keys = _keys(key, index, num_draws)
        for means, noise in _decoded_draws(trained, batch, keys, num):
            for m in trained.description.modalities:
                values = _in_units(m, means[m.name])
                own = sums.get(m.name)
                sums[m.name] = _added(own, m, values, noise.get(m.name))
                if keep_draws:
                    kept.setdefault(m.name, []).append(_in_form(m, values))
        found = Imputed({}, {}, {}, {m: np.stack(x) for m, x in kept.items()})
        for m in trained.description.modalities:
            _set_moments(found, m, sums.pop(m.name))
            _set_given(found, m, given)
        yield found


def _decoded_draws(
    trained: Trained, batch: Any, keys: Sequence[PRNGKey], num: int
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Likelihood means and standard deviations of draws of the posterior.

    Each is modality -> [num, ...]; tokens have no standard deviation.
    """
    model, params = trained.model, trained.params
    experts = model.encode(params, batch)
    subset = generation.observed_subset(model, batch)
    for own in keys:
        component_key, sample_key = jax.random.split(own)
        q = model.posterior(params, experts, subset, component_key)
        z = distributions.sample(q, sample_key)
        of_draw = (model.decode(params, z), model.deviation(params, z))
        means, noise = (
            {m: np.asarray(x)[:num] for m, x in found.items()} for found in of_draw
        )
        yield means, noise


class _Sums(NamedTuple):
    """Sums over draws of one modality of a batch, each float64 [num, ...].

    Attributes:
      num: number of draws.
      values: sum of the decoded values; of tokens, of the probabilities.
      squares: sum of squared differences from the mean; tokens have none.
      noise: sum of the likelihood's variances; None without.
    """

    num: int
    values: np.ndarray
    squares: np.ndarray | None
    noise: np.ndarray | None


def _added(
    sums: _Sums | None,
    modality: descriptions.Modality,
    values: np.ndarray,
    noise: np.ndarray | None,
) -> _Sums:
    """Adds a draw to the sums, in place.

    The squares are updated by Youngs & Cramer (1971), which loses no digits where the
    mean is large: with the sum T of n draws, (n x - T)^2 / (n (n - 1)) is added.

    Args:
      sums: of the draws before; None at the first.
      modality: the modality.
      values: result of `_in_units`.
      noise: the likelihood's standard deviations, if it has any.
    """
    x = values.astype(np.float64)
    variance = None if noise is None else np.square(noise.astype(np.float64))
    if sums is None:
        squares = None if modality.kind == TOKENS else np.zeros_like(x)
        return _Sums(1, x, squares, variance)
    num = sums.num + 1
    np.add(sums.values, x, out=sums.values)
    if sums.squares is not None:
        x *= num
        x -= sums.values
        np.square(x, out=x)
        x /= num * (num - 1)
        np.add(sums.squares, x, out=sums.squares)
    if sums.noise is not None and variance is not None:
        np.add(sums.noise, variance, out=sums.noise)
    return sums._replace(num=num)


def _set_moments(found: Imputed, modality: descriptions.Modality, sums: _Sums) -> None:
    """Sets the mean, the spread and the deviation of one modality."""
    name = modality.name
    mean = np.divide(sums.values, sums.num, out=sums.values)
    found.mean[name] = _in_form(modality, mean)
    if sums.squares is None:
        spread = scipy.special.entr(mean).sum(axis=-1)
    else:
        spread = np.sqrt(sums.squares / sums.num)
    found.spread[name] = spread.astype(np.float32)
    if sums.noise is not None:
        scale = 255 if modality.kind == IMAGES else 1
        total = np.square(found.spread[name].astype(np.float64))
        total += scale**2 * sums.noise / sums.num
        found.deviation[name] = np.sqrt(total).astype(np.float32)


def _set_given(found: Imputed, modality: descriptions.Modality, given: Split) -> None:
    """Sets what is observed of one modality."""
    name = modality.name
    is_given = given.is_observed(name)
    own = given.modalities[name][is_given]
    found.mean[name][is_given] = own
    found.spread[name][is_given] = 0
    if name in found.deviation:
        found.deviation[name][is_given] = 0
    if name in found.draws:
        found.draws[name][:, is_given] = own


def reconstruct(
    trained: Trained,
    data: Mapping[str, Any] | Split,
    observed: Any = None,
    *,
    given: Sequence[str] | None = None,
    key: int | PRNGKey = 0,
) -> dict[str, np.ndarray]:
    """Decodes all modalities from one draw of the posterior.

    Args:
      trained: from `fit` or `load`.
      data: modality -> array [N, ...]; see `description.to_split`.
      observed: which modalities each example has; default: all in `data`.
      given: names of the modalities to condition on; default: all.
      key: seed or key of jax.random.

    Returns:
      modality -> [N, ...].

    Raises:
      UsageError: the data do not fit the model.
    """
    split = _given(trained, data, observed, given)
    batches = enumerate(generation.batches(split, _batch_size(trained)))
    pieces = (
        _examples(trained, means)
        for i, (batch, num) in batches
        for means, _ in _decoded_draws(trained, batch, _keys(key, i, 1), num)
    )
    return _collected(pieces, split.num_examples)


def generate(
    trained: Trained, num: int, key: int | PRNGKey = 0
) -> dict[str, np.ndarray]:
    """Generates examples: all modalities decoded from the same draw of the prior.

    Args:
      trained: from `fit` or `load`.
      num: N, at least 1.
      key: seed or key of jax.random.

    Returns:
      modality -> [N, ...].
    """
    if num < 1:
        raise ArgumentError("{num} must be >= 1, got {}", num)
    size = _batch_size(trained)
    found = generation.prior_means(trained.model, trained.params, size, _key(key), num)
    pieces = (
        _examples(trained, {m: np.asarray(x)[:rows] for m, x in means.items()})
        for means, rows in found
    )
    return _collected(pieces, num)


def score(
    trained: Trained,
    data: Mapping[str, Any] | Split,
    observed: Any = None,
    *,
    num_samples: int = 0,
    key: int | PRNGKey | None = None,
) -> Scores:
    """ELBO and log p(x) of the observed modalities of each example.

    Their means over the test split are the metrics `elbo` and `log_likelihood`: the
    default draws are those of the evaluation at the last step.

    Args:
      trained: from `fit` or `load`.
      data: modality -> array [N, ...]; see `description.to_split`.
      observed: which modalities each example has; default: all in `data`.
      num_samples: L, importance samples of log p(x); 0: as in the config.
      key: seed or key of jax.random; default: the key of the evaluation.

    Returns:
      Scores.

    Raises:
      UsageError: the data do not fit the model.
    """
    split = _given(trained, data, observed)
    found = score_batches(trained, split, num_samples=num_samples, key=key)
    return Scores(*_collected(found, split.num_examples))


def score_batches(
    trained: Trained,
    split: Split,
    *,
    num_samples: int = 0,
    key: int | PRNGKey | None = None,
) -> Iterator[Scores]:
    """`score` of a Split, batch by batch."""
    settings = trained.config.eval
    if key is None:
        key = jax.random.fold_in(jax.random.key(settings.seed), trained.step)
    key = _key(key)
    common = (trained.model, trained.params, split, _batch_size(trained))
    bounds = elbo.elbo_batches(*common, evaluate.key_of("elbo", key))
    estimates = log_likelihood.estimate_batches(
        *common,
        evaluate.key_of("log_likelihood", key),
        num_samples=num_samples or settings.importance_samples,
        proposal=settings.proposal,
    )
    for bound, estimate in zip(bounds, estimates, strict=True):
        yield Scores(bound, estimate)


def _given(
    trained: Trained,
    data: Mapping[str, Any] | Split,
    observed: Any = None,
    given: Sequence[str] | None = None,
) -> Split:
    """The data as a Split of the modalities to condition on."""
    names = descriptions.names_of(trained.description, given)
    split = descriptions.to_split(trained.description, data, observed)
    for m, support in trained.model.supports.items():
        x = split.modalities[m]
        if not is_image(x) and not support.holds(x).all():
            raise UsageError(
                f"{m} holds {x[~np.asarray(support.holds(x))][0]:g}, and its "
                f"likelihood is one of {support.words}"
            )
    if given is None:
        return split
    masks = np.stack([split.is_observed(m) & (m in names) for m in split.modalities], 1)
    return descriptions.to_split(trained.description, split.modalities, masks)


def _batch_size(trained: Trained) -> int:
    """B of each call of a function of the model."""
    return trained.config.eval.batch_size


def _key(key: int | PRNGKey) -> PRNGKey:
    """A key of jax.random from a seed or a key."""
    return jax.random.key(key) if isinstance(key, int | np.integer) else key


def _keys(key: int | PRNGKey, index: int, num: int) -> list[PRNGKey]:
    """One key per draw, for batch `index`."""
    return list(jax.random.split(jax.random.fold_in(_key(key), index), num))


def _examples(
    trained: Trained, means: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Likelihood means of all modalities, converted to the types of users' data."""
    return {
        m.name: _in_form(m, _in_units(m, means[m.name]))
        for m in trained.description.modalities
    }


def _in_units(modality: descriptions.Modality, mean: np.ndarray) -> np.ndarray:
    """Likelihood means; images are scaled to 0..255."""
    return np.clip(mean, 0, 1) * 255 if modality.kind == IMAGES else mean


def _in_form(modality: descriptions.Modality, values: AnyArray) -> np.ndarray:
    """Values of `_in_units`, converted to the type of users' data."""
    if modality.kind == IMAGES:
        return np.round(values).astype(np.uint8)
    if modality.kind == TOKENS:
        return np.argmax(values, axis=-1).astype(np.int32)
    return np.asarray(values, np.float32)


def _collected(pieces: Iterator[Any], num: int, axes: Sequence[int] = ()) -> Any:
    """Concatenates the results of batches into preallocated arrays.

    Args:
      pieces: arrays, dictionaries or tuples of arrays [rows, ...].
      num: total number of rows.
      axes: the axis of the rows of each item of a tuple; default: 0.

    Returns:
      The structure of a piece, with `num` rows.
    """
    first = next(pieces)
    whole = _allocated(first, num, axes)
    start = 0
    for piece in itertools.chain([first], pieces):
        start += _filled(whole, piece, start, axes)
    return whole


def _allocated(piece: Any, num: int, axes: Sequence[int] = (), axis: int = 0) -> Any:
    """Empty arrays of `num` rows, in the structure of a piece."""
    if isinstance(piece, np.ndarray):
        shape = (*piece.shape[:axis], num, *piece.shape[axis + 1 :])
        return np.empty(shape, piece.dtype)
    if isinstance(piece, dict):  # in the order of the model, which JAX would sort
        return {m: _allocated(x, num, axis=axis) for m, x in piece.items()}
    axes = axes or [0] * len(piece)
    items = zip(piece, axes, strict=True)
    return tuple(_allocated(x, num, axis=own) for x, own in items)


def _filled(
    whole: Any, piece: Any, start: int, axes: Sequence[int] = (), axis: int = 0
) -> int:
    """Writes a piece to its rows; returns their number."""
    if isinstance(piece, np.ndarray):
        num = piece.shape[axis]
        whole[(slice(None),) * axis + (slice(start, start + num),)] = piece
        return num
    if isinstance(piece, dict):
        nums = [_filled(whole[m], x, start, axis=axis) for m, x in piece.items()]
        return nums[0] if nums else 0
    axes = axes or [0] * len(piece)
    items = zip(whole, piece, axes, strict=True)
    return [_filled(there, x, start, axis=own) for there, x, own in items][0]
