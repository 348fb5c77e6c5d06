"""Fewer modalities, and modalities that are missing at random."""

from collections.abc import Sequence

import numpy as np

from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import ArgumentError


def first_modalities(dataset: Dataset, use_modalities: int) -> Dataset:
    """A data set reduced to its first modalities, to study the effect of their number.

    Args:
      dataset: Dataset.
      use_modalities: number of modalities that are kept; 0 for all of them.

    Returns:
      Dataset; the arrays are shared, the fingerprint is that of the whole, the
      name says how many there are.

    Raises:
      ArgumentError: the data set has fewer, or an example has none of them.
    """
    names, num = list(dataset.train.modalities), use_modalities
    if not 0 <= num <= len(names):
        raise ArgumentError(
            "{use_modalities}={} must be in 0..{}, the number of modalities of the "
            "data (0: all)",
            num,
            len(names),
        )
    if num == 0:
        return dataset
    train, test = (
        split._replace(
            modalities={name: split.modalities[name] for name in names[:num]},
            observed=None if split.observed is None else split.observed[:, :num],
        )
        for split in (dataset.train, dataset.test)
    )
    for split in (train, test):
        if split.observed is not None and not split.observed.any(axis=1).all():
            raise ArgumentError(
                "{use_modalities}={}: some examples have none of the first {} "
                "modalities",
                num,
                num,
            )
    name = f"{dataset.name}-first{num}"
    return dataset._replace(train=train, test=test, name=name)


def with_missing(
    dataset: Dataset, missing: float, missing_test: float, seed: int
) -> Dataset:
    """A data set in which modalities are missing at random.

    Every modality of every example is missing with the same probability,
    independently, but one of each example, drawn at random, is always there. Missing
    modalities are overwritten with zeros.

    Args:
      dataset: Dataset, complete.
      missing: probability in [0, 1), in training.
      missing_test: likewise of the test split.
      seed: int, at least 0.

    Returns:
      Dataset; a split of probability 0 is left as it is.

    Raises:
      ArgumentError: a probability is out of range, or data are missing already.
    """
    if not 0 <= missing < 1:
        raise ArgumentError("{missing} must be in [0, 1), got {}", missing)
    if not 0 <= missing_test < 1:
        raise ArgumentError("{missing_test} must be in [0, 1), got {}", missing_test)
    if missing == missing_test == 0:
        return dataset
    for split in (dataset.train, dataset.test):
        if split.observed is not None:
            raise ArgumentError(
                "{missing} and .missing_test are for complete data; modalities of {} "
                "are missing already",
                dataset.name,
            )
    return dataset._replace(
        train=_without_some(dataset.train, missing, (seed, 0)),
        test=_without_some(dataset.test, missing_test, (seed, 1)),
        name=f"{dataset.name}-missing{missing:g},{missing_test:g}",
    )


def _without_some(split: Split, fraction: float, seed: Sequence[int]) -> Split:
    """A split in which modalities are missing with this probability."""
    if fraction == 0:
        return split
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    shape = (split.num_examples, len(split.modalities))
    observed = rng.random(shape) >= fraction
    observed[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = True
    modalities = {}
    for column, (name, x) in zip(observed.T, split.modalities.items(), strict=True):
        modalities[name] = x.copy()
        modalities[name][~column] = 0
    return split._replace(modalities=modalities, observed=observed)
