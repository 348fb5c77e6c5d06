"""The progress bar of training, on a terminal, in a log or in a notebook.

Import `tqdm` from here for bars and for lines printed beside them: other classes of
tqdm use other locks.
"""

import sys
import warnings

__all__ = ["ProgressBar", "drawing_interval", "tqdm"]

with warnings.catch_warnings():
    # A notebook without ipywidgets shows a text bar, which is enough.
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm


class ProgressBar:
    """Steps done, time left, examples per second, and the members' losses.

    Attributes:
      losses: the members' latest losses, in nats; set by the caller.
      step_seconds: mean seconds per step, without the first call, which compiles; None
        before the second call.
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
        self._examples_per_step = examples_per_step
        self._step = step
        self._timed: list[tuple[int, float]] = []  # (steps of a call, seconds per step)
        self._bar = tqdm(
            total=num_steps,
            initial=step,
            unit="step",
            desc=name,
            delay=1e-9,
            disable=not is_shown,
            mininterval=drawing_interval(),
        )

    def update(self, step: int, seconds_per_step: float) -> None:
        """Moves the bar; call it after each call of the compiled program."""
        self._timed.append((step - self._step, seconds_per_step))
        self._step = step
        examples = self._examples_per_step / max(seconds_per_step, 1e-9)
        losses = " ".join(f"{loss:.4g}" for loss in self.losses[:6])
        if len(self.losses) > 6:
            losses += " ..."
        self._bar.set_postfix_str(
            f"{examples:.0f} examples/s" + (f", losses {losses}" if losses else ""),
            refresh=False,
        )
        self._bar.update(step - self._bar.n)

    @property
    def step_seconds(self) -> float | None:
        """Mean seconds per step, see the class."""
        later = self._timed[1:]
        num = sum(steps for steps, _ in later)
        return sum(n * seconds for n, seconds in later) / num if num else None

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
