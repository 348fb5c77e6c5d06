"""The joint pmf as a table of integers, and examples in its proportions.

A value of modality m is an integer with shared_bits + specific_bits bits: the code of
the class, then the private bits. See README.md.
"""

import functools

import numpy as np


def class_codes(modality: int, shared_bits: int) -> np.ndarray:
    """The code of each class in one modality, int64 [2**shared_bits]: a permutation.

    It is a permutation, because odd factors are invertible modulo a power of two.
    """
    num_classes = 1 << shared_bits
    return ((2 * modality + 1) * np.arange(num_classes) + modality) % num_classes


def joint_counts(
    num_modalities: int, shared_bits: int, specific_bits: int, one_in: int
) -> np.ndarray:
    """The count of each tuple in the smallest set with exact proportions.

    Args:
      num_modalities: M.
      shared_bits: bits of the class.
      specific_bits: private bits of each modality.
      one_in: a private bit is 1 with probability 1 / one_in.

    Returns:
      int64 [n, ...] with M axes, n = 2**(shared_bits + specific_bits), and the sum
      2**shared_bits * one_in**(M specific_bits).
    """
    bit, one = np.array([one_in - 1, 1]), np.ones((), np.int64)
    specific = functools.reduce(np.multiply.outer, [bit] * specific_bits, one).ravel()
    size = 1 << shared_bits
    codes = [class_codes(m, shared_bits) for m in range(num_modalities)]
    counts = np.zeros((size * specific.size,) * num_modalities, np.int64)
    for label in range(size):
        shown = [
            np.kron(np.arange(size) == code[label], specific).astype(np.int64)
            for code in codes
        ]
        counts += functools.reduce(np.multiply.outer, shown)
    return counts


def joint_pmf(
    num_modalities: int, shared_bits: int, specific_bits: int, one_in: int
) -> np.ndarray:
    """The joint distribution of the modalities.

    Args:
      num_modalities: M.
      shared_bits: bits of the class.
      specific_bits: private bits of each modality.
      one_in: a private bit is 1 with probability 1 / one_in.

    Returns:
      float64 [n, ...] with M axes, summing to 1; axis m is modality m.
    """
    counts = joint_counts(num_modalities, shared_bits, specific_bits, one_in)
    return counts / counts.sum()


def examples(counts: np.ndarray, repeats: int) -> np.ndarray:
    """Repeats every tuple by its count, in the order of the table.

    Args:
      counts: int64 with M axes.
      repeats: factor of the counts.

    Returns:
      int64 [N, M], the value of each modality.
    """
    tuples = np.argwhere(counts)
    return np.repeat(tuples, repeats * counts[counts > 0], axis=0)


def labels(values: np.ndarray, specific_bits: int) -> np.ndarray:
    """The class of each example, from its first modality: uint8 [N]."""
    # The code of modality 0 is the class itself.
    return (values[:, 0] >> specific_bits).astype(np.uint8)


def images(values: np.ndarray, num_bits: int, patch: int) -> np.ndarray:
    """Draws values: one square per bit, the highest bit at the left.

    Args:
      values: int64 [N].
      num_bits: number of bits.
      patch: side of a square, in pixels.

    Returns:
      uint8 [N, patch, num_bits * patch, 1], 255 for a bit of 1.
    """
    digits = values[:, None] >> np.arange(num_bits)[::-1] & 1
    row = np.repeat(digits.astype(np.uint8) * np.uint8(255), patch, axis=1)
    return np.repeat(row[:, None, :, None], patch, axis=1)


def values(pictures: np.ndarray, num_bits: int) -> np.ndarray:
    """The inverse of `images`: int64 [N] from uint8 [N, patch, num_bits * patch, 1]."""
    patch = pictures.shape[1]
    digits = (pictures[:, 0, ::patch, 0] > 127).astype(np.int64)
    return digits @ (1 << np.arange(num_bits)[::-1])
