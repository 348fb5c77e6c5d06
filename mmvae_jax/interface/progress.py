"""The progress bar of training, on a terminal, in a log or in a notebook.

Import `tqdm` from here to draw a bar, or a line beside it: other classes of tqdm have
other locks.
"""

import sys
import warnings

__all__ = ["ProgressBar", "drawing_interval", "tqdm"]

with warnings.catch_warnings():
    # A notebook without ipywidgets has a bar of text, which will do.
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm


class ProgressBar:
    """Steps done, time left, examples per second, and the members' losses.

    Attributes:
      losses: the members' latest losses, in nats; set by whoever logs them.
      step_seconds: mean over the steps seen but for those of the first call, which
        compiles; None before there are others.
    """

    def __init__(
        self,
        step: int,
        num_steps: int,
        examples_per_step: int,
        name: str = "training",
        is_shown: bool = True,
    ):
        """A bar that starts at `step` and appears with its first move."""
        self.losses: list[float] = []
        self._examples_per_step = examples_per_step
        self._step = step
        self._timed: list[tuple[int, float]] = []  # steps of a call, seconds of each
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
        """Moves the bar; called after every call of the compiled program."""
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
        """Seconds a step, see above."""
        later = self._timed[1:]
        num = sum(steps for steps, _ in later)
        return sum(n * seconds for n, seconds in later) / num if num else None

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

    def __enter__(self) -> "ProgressBar":
        """The bar itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the bar."""
        self.close()


def drawing_interval() -> float:
    """Seconds between two drawings of a bar: few where each is a line of a log.

    A terminal and a notebook draw a bar in place.
    """
    is_notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    return 0.2 if is_notebook or sys.stderr.isatty() else 10.0
