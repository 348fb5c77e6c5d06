"""The order of examples: a pure function of seed and step."""

import functools

import numpy as np

from mmvae_jax.errors import UsageError


def batch_indices(
    seed: int, step: int, num_steps: int, num_examples: int, batch_size: int
) -> np.ndarray:
    """Rows of the examples in the batches of a range of steps.

    Each epoch is a permutation of all examples; an incomplete last batch is dropped.

    Args:
      seed: int, at least 0.
      step: first step, at least 0, counted over all epochs.
      num_steps: number of steps.
      num_examples: size of the split.
      batch_size: examples per batch.

    Returns:
      int32 [num_steps, batch_size], equal for equal arguments.

    Raises:
      UsageError: the batch size is not in 1..num_examples.
    """
    if not 1 <= batch_size <= num_examples:
        raise UsageError(
            f"batch_size={batch_size} does not fit {num_examples} training examples: "
            f"set it to 1..{num_examples}"
        )
    steps_per_epoch = num_examples // batch_size
    indices = np.empty((num_steps, batch_size), np.int32)
    for row in range(num_steps):
        epoch, position = divmod(step + row, steps_per_epoch)
        order = _epoch_order(seed, epoch, num_examples)
        indices[row] = order[position * batch_size :][:batch_size]
    return indices


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The permutation of one epoch, int32 [num_examples], read-only."""
    stream = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    order = np.random.Generator(stream).permutation(num_examples).astype(np.int32)
    order.flags.writeable = False
    return order
