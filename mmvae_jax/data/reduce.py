"""Fewer modalities, and modalities that are missing at random."""

from collections.abc import Sequence

import numpy as np

from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import UsageError


def first_modalities(dataset: Dataset, num: int) -> Dataset:
    """A data set reduced to its first modalities, to study the effect of their number.

    Args:
      dataset: Dataset.
      num: number of modalities that are kept; 0 for all of them.

    Returns:
      Dataset; the arrays are shared, the fingerprint is that of the whole, the
      name says how many there are.

    Raises:
      UsageError: the data set has fewer.
    """
    names = list(dataset.train.modalities)
    if not 0 <= num <= len(names):
        raise UsageError(
            f"config.data.use_modalities={num} must be in 0..{len(names)}, the number "
            "of modalities of the data (0: all)"
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
            raise UsageError(
                f"config.data.use_modalities={num}: some examples have none of the "
                f"first {num} modalities"
            )
    name = f"{dataset.name}-first{num}"
    return dataset._replace(train=train, test=test, name=name)


def with_missing(
    dataset: Dataset, fraction: float, test_fraction: float, seed: int
) -> Dataset:
    """A data set in which modalities are missing at random.

    Every modality of every example is missing with the same probability,
    independently, but one of each example, drawn at random, is always there. Missing
    modalities are overwritten with zeros.

    Args:
      dataset: Dataset, complete.
      fraction: probability in [0, 1), in training.
      test_fraction: likewise of the test split.
      seed: int, at least 0.

    Returns:
      Dataset; a split of fraction 0 is left as it is.

    Raises:
      UsageError: a fraction is out of range, or data are missing already.
    """
    for name, value in (("missing", fraction), ("missing_test", test_fraction)):
        if not 0 <= value < 1:
            raise UsageError(f"config.data.{name} must be in [0, 1), got {value}")
    if fraction == test_fraction == 0:
        return dataset
    for split in (dataset.train, dataset.test):
        if split.observed is not None:
            raise UsageError(
                "config.data.missing and .missing_test are for complete data; "
                f"modalities of {dataset.name} are missing already"
            )
    return dataset._replace(
        train=_without_some(dataset.train, fraction, (seed, 0)),
        test=_without_some(dataset.test, test_fraction, (seed, 1)),
        name=f"{dataset.name}-missing{fraction:g},{test_fraction:g}",
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
