"""The joint pmf as a table of integers, and the examples that have its proportions.

A value of modality m is an integer of shared_bits + specific_bits binary digits: the
code of the class, then the specific bits. See README.md. NumPy only.
"""

import functools

import numpy as np


def class_codes(modality: int, shared_bits: int) -> np.ndarray:
    """The code of each class in one modality, int64 [2**shared_bits]: a permutation.

    An odd factor is invertible modulo a power of two.
    """
    num_classes = 1 << shared_bits
    return ((2 * modality + 1) * np.arange(num_classes) + modality) % num_classes


def joint_counts(
    num_modalities: int, shared_bits: int, specific_bits: int, one_in: int
) -> np.ndarray:
    """How often each tuple occurs in the smallest set that has the exact proportions.

    Args:
      num_modalities: M.
      shared_bits: bits of the class.
      specific_bits: bits of one modality alone.
      one_in: a specific bit is 1 once in so many times.

    Returns:
      int64 [n, ...] of M axes, n = 2**(shared_bits + specific_bits), with the sum
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
    """The joint distribution of the modalities, float64, axis m is modality m.

    Args:
      num_modalities: M.
      shared_bits: bits of the class.
      specific_bits: bits of one modality alone.
      one_in: a specific bit is 1 once in so many times.

    Returns:
      float64 [n, ...] of M axes, summing to 1.
    """
    counts = joint_counts(num_modalities, shared_bits, specific_bits, one_in)
    return counts / counts.sum()


def examples(counts: np.ndarray, repeats: int) -> np.ndarray:
    """Every tuple as often as its count says, in the order of the table.

    Args:
      counts: int64 of M axes.
      repeats: how often each count is repeated.

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
    """Draws values: a square for each binary digit, the highest at the left.

    Args:
      values: int64 [N].
      num_bits: how many binary digits.
      patch: side of a square, in pixels.

    Returns:
      uint8 [N, patch, num_bits * patch, 1], 255 where the digit is 1.
    """
    digits = values[:, None] >> np.arange(num_bits)[::-1] & 1
    row = np.repeat(digits.astype(np.uint8) * np.uint8(255), patch, axis=1)
    return np.repeat(row[:, None, :, None], patch, axis=1)


def values(pictures: np.ndarray, num_bits: int) -> np.ndarray:
    """The inverse of `images`: int64 [N] from uint8 [N, patch, num_bits * patch, 1]."""
    patch = pictures.shape[1]
    digits = (pictures[:, 0, ::patch, 0] > 127).astype(np.int64)
    return digits @ (1 << np.arange(num_bits)[::-1])
