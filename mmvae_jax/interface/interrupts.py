"""Signals during a training, whose program cannot be left in the middle."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mmvae_jax.interface.progress import tqdm


@contextlib.contextmanager
def handled(numbers: Iterable[int], handle: Callable[[int, Any], None]) -> Iterator:
    """Handles signals by a function, and puts the former handlers back.

    Args:
      numbers: numbers of the signals.
      handle: (number, frame) -> None.
    """
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def caught_interrupt() -> Iterator[list[int]]:
    """Collects the first Ctrl-C (SIGINT) in a list; a second one acts as before.

    Only the main thread has signals: in others, and where Ctrl-C is ignored or not
    handled by Python, the list stays empty.
    """
    received: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before in (signal.SIG_IGN, None):
        yield received
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        signal.signal(number, before)
        line = "Ctrl-C: training stops after this call; a second Ctrl-C loses it"
        # It may arrive while another line is printed.
        with contextlib.suppress(RuntimeError):
            tqdm.write(line, file=sys.stderr)

    with handled([signal.SIGINT], handle):
        yield received
