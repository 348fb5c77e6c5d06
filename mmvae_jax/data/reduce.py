"""Fewer modalities, and modalities that are missing at random."""

from collections.abc import Sequence

import numpy as np

from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import ArgumentError


def first_modalities(dataset: Dataset, use_modalities: int) -> Dataset:
    """Keeps the first modalities of a data set, to study the effect of their number.

    Args:
      dataset: Dataset.
      use_modalities: number of modalities to keep; 0 for all.

    Returns:
      Dataset with the same arrays and fingerprint; its name contains the number.

    Raises:
      ArgumentError: the data set has fewer, or an example would have none.
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
    """Removes modalities of examples at random.

    Each modality of each example is missing independently with the same probability,
    except one random modality per example. Missing values are overwritten with zeros.

    Args:
      dataset: Dataset, complete.
      missing: probability in the training split, in [0, 1).
      missing_test: probability in the test split, in [0, 1).
      seed: int, at least 0.

    Returns:
      Dataset; a split with probability 0 is unchanged.

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
    """Removes modalities of a split with the given probability."""
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
