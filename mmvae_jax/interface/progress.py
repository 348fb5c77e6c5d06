"""The progress bar of training, on a terminal, in a log or in a notebook.

Import `tqdm` from here for bars and for lines printed beside them: other classes of
tqdm use other locks.
"""

import sys
import time
import warnings

__all__ = ["ProgressBar", "drawing_interval", "tqdm"]

with warnings.catch_warnings():
    # A notebook without ipywidgets shows a text bar, which is enough.
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm


class ProgressBar:
    """Steps done, time left, examples per second, and the members' losses.

    Times and rates, also those of the bar, leave out the first call of each program
    (one per stage of a model trained in stages), which compiles it.

    Attributes:
      losses: the members' latest losses, in nats; set by the caller.
      timed_steps: number of steps of all other calls.
      timed_seconds: the seconds of these steps, without those between two calls.
      step_seconds: mean seconds per step; None before the first of these calls.
    """

    def __init__(
        self,
        step: int,
        num_steps: int,
        examples_per_step: int,
        name: str = "training",
        is_shown: bool = True,
    ):
        """Starts at `step`; the bar appears at the first update."""
        self.losses: list[float] = []
        self.timed_steps, self.timed_seconds = 0, 0.0
        self._examples_per_step = examples_per_step
        self._step = step
        self._rate = ""
        self._bar = tqdm(
            total=num_steps,
            initial=step,
            unit="step",
            desc=name,
            delay=1e-9,
            disable=not is_shown,
            mininterval=drawing_interval(),
        )
        self._updated = time.time()  # the clock of tqdm

    def update(self, step: int, seconds_per_step: float, is_first: bool) -> None:
        """Moves the bar; call it after each call of a program, as `Events.progress`."""
        num, self._step = step - self._step, step
        if not is_first:
            self.timed_steps += num
            self.timed_seconds += num * seconds_per_step
            examples = self._examples_per_step / max(seconds_per_step, 1e-9)
            self._rate = f"{examples:.0f} examples/s"
        losses = " ".join(f"{loss:.4g}" for loss in self.losses[:6])
        if len(self.losses) > 6:
            losses += " ..."
        shown = (self._rate, f"losses {losses}" if losses else "")
        self._bar.set_postfix_str(", ".join(filter(None, shown)), refresh=False)
        if is_first and not self._bar.disable:
            self._leave_out(num)
        else:
            self._bar.update(num)
        self._updated = time.time()

    def _leave_out(self, num: int) -> None:
        """Moves the bar by steps that compiled, as if they had been done before.

        The time left is then that of steps; the bar's clock stands still meanwhile.
        """
        bar, seconds = self._bar, time.time() - self._updated
        bar.n, bar.initial = bar.n + num, bar.initial + num
        bar.last_print_n += num
        bar.start_t, bar.last_print_t = (
            bar.start_t + seconds,
            bar.last_print_t + seconds,
        )
        if seconds >= bar.mininterval:
            bar.refresh()
            bar.delay = 0.0  # it is shown: its end is, too

    @property
    def step_seconds(self) -> float | None:
        """Mean seconds per step, see the class."""
        return self.timed_seconds / self.timed_steps if self.timed_steps else None

    def close(self) -> None:
        """Ends the bar and leaves it on the screen."""
        self._bar.close()

    def __enter__(self) -> "ProgressBar":
        """The bar itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the bar."""
        self.close()


def drawing_interval() -> float:
    """Seconds between two drawings of a bar.

    A terminal and a notebook redraw the bar in place; in a log each drawing is a line,
    so that the interval is longer.
    """
    is_notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    return 0.2 if is_notebook or sys.stderr.isatty() else 10.0
