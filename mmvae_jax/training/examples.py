"""Training examples, either on the devices or in host memory.

Data on the devices are fastest, because a step gathers its batch there. Data larger
than a quarter of a device's memory stay on the host: a thread gathers and sends the
examples of the next steps, a window, while the device computes. The program, the order
of the examples and the bits of the result are the same; arrays may be memory-mapped.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.data.batches import batch_indices
from mmvae_jax.errors import ArgumentError
from mmvae_jax.training import devices
from mmvae_jax.types import Array, Batch

AUTO, DEVICE, HOST = "auto", "device", "host"
PLACES = (AUTO, DEVICE, HOST)
# Fraction of a device's memory for data; the rest is for members and programs.
MAX_SHARE = 0.25
WINDOW_BYTES = 64 << 20
# (first step, most steps) -> (data, rows of the data per step [S, B], number of steps).
Take = Callable[[int, int], tuple[Batch, np.ndarray, int]]


def window_steps(
    place: str, data: Batch, batch_size: int, steps_per_call: int, memory: int
) -> int:
    """Number of steps whose examples are sent together; 0: the data are on the devices.

    Args:
      place: one of PLACES, the requested place of the data.
      data: name -> [N, ...].
      batch_size: B.
      steps_per_call: largest number of steps of a call.
      memory: memory of a device in bytes.

    Raises:
      ArgumentError: the place is unknown.
    """
    if place not in PLACES:
        raise ArgumentError(
            "unknown {data_on} {!r}; choose one of {}", place, ", ".join(PLACES)
        )
    if place == DEVICE or (place == AUTO and num_bytes(data) <= MAX_SHARE * memory):
        return 0
    num_examples = len(next(iter(data.values())))
    batch_bytes = max(1, num_bytes(data) * batch_size // num_examples)
    return max(1, min(steps_per_call, WINDOW_BYTES // batch_bytes))


def num_bytes(data: Batch) -> int:
    """Size of the data in bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(data))


def put(data: Batch, window: int, layout: devices.Layout) -> Batch:
    """Moves the data to the devices, unless they stay on the host (window > 0)."""
    return data if window else devices.put_shared(data, layout)


def first_window(data: Batch, window: int, batch_size: int) -> Batch:
    """Arrays in the shapes of the data argument of a sweep's program."""
    if not window:
        return data
    return {
        name: np.zeros((window * batch_size, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in data.items()
    }


@contextlib.contextmanager
def opened(
    data: Batch,
    window: int,
    layout: devices.Layout,
    *,
    num_steps: int,
    batch_size: int,
    data_seed: int,
    steps_per_call: int,
) -> Iterator[Take]:
    """Context with a function that returns the examples of consecutive steps.

    Args:
      data: result of `put`.
      window: result of `window_steps`.
      layout: numbers of devices.
      num_steps: total number of steps.
      batch_size: B.
      data_seed: seed of the order of the data.
      steps_per_call: S, number of rows that the function returns.

    Raises:
      UsageError: batch_size is larger than the data.
    """
    num_examples = len(next(iter(data.values())))

    def rows_of(step: int, num: int) -> np.ndarray:
        return batch_indices(data_seed, step, num, num_examples, batch_size)

    def filled(rows: np.ndarray) -> np.ndarray:
        """Pads rows to [S, B]."""
        whole = np.zeros((steps_per_call, batch_size), np.int32)
        whole[: len(rows)] = rows
        return whole

    if not window:
        yield lambda step, num: (data, filled(rows_of(step, num)), num)
        return

    def send(pool: ThreadPoolExecutor, start: int) -> Batch:
        """Sends the examples of the window from step `start` to the devices."""
        rows = rows_of(start, min(window, num_steps - start)).ravel()
        full = np.concatenate([rows, np.zeros(window * batch_size - len(rows), int)])
        gathered = {
            name: pool.submit(np.take, leaf, full, axis=0)
            for name, leaf in data.items()
        }
        found = {name: future.result() for name, future in gathered.items()}
        return devices.put_shared(found, layout)

    places = np.arange(window * batch_size, dtype=np.int32).reshape(window, -1)
    with ThreadPoolExecutor() as pool, ThreadPoolExecutor(1) as sender:
        here: tuple[int, Any] = (-window, None)
        following: tuple[int, Future] | None = None

        def take(step: int, num: int) -> tuple[Batch, np.ndarray, int]:
            nonlocal here, following
            start, arrays = here
            if not start <= step < start + window:
                if following is None or following[0] != step:
                    following = step, sender.submit(send, pool, step)
                start, arrays = here = step, following[1].result()
                after = step + window
                following = None
                if after < num_steps:
                    following = after, sender.submit(send, pool, after)
            offset = step - start
            num = min(num, window - offset)
            return arrays, filled(places[offset : offset + num]), num

        yield take


def fetch(data: Batch, start: int | Array, num: int) -> Batch:
    """Reads examples from the host within a compiled program.

    Args:
      data: name -> [N, ...], NumPy arrays.
      start: first row.
      num: number of rows.
    """
    shapes = {
        name: jax.ShapeDtypeStruct((num, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in data.items()
    }

    def read(first: Any) -> Batch:
        rows = slice(int(first), int(first) + num)
        return {name: np.asarray(leaf[rows]) for name, leaf in data.items()}

    return jax.pure_callback(read, shapes, jnp.int32(start), vmap_method="sequential")
