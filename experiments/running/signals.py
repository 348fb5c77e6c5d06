"""Signals that stop a run: SIGINT and SIGTERM."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax

from experiments.running import terminal
from experiments.running.command import Stopped
from mmvae_jax.interface import interrupts


class Signals(list):
    """The numbers of the signals received so far; if not empty, the run must stop.

    Attributes:
      is_at_once: whether a signal raises Stopped where it arrives.
    """

    is_at_once = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Context for long operations with a saved state, which a signal interrupts.

        With several processes, a process waits until all of them stop.

        Raises:
          Stopped: a signal arrives, or has arrived.
        """
        self.is_at_once = jax.process_count() == 1
        try:
            if self and self.is_at_once:
                raise Stopped(self[0])
            yield
        finally:
            self.is_at_once = False


@contextlib.contextmanager
def caught_signals() -> Iterator[Signals]:
    """Collects SIGINT and SIGTERM in a list; a second signal ends the process."""
    received = Signals()

    def handle(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        # A signal may arrive while another line is printed.
        with contextlib.suppress(RuntimeError):
            terminal.say(f"{signal.Signals(number).name}: saving, then stopping")
        if received.is_at_once:
            raise Stopped(number)

    with interrupts.handled((signal.SIGINT, signal.SIGTERM), handle):
        yield received
