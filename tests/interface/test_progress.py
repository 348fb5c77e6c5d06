"""The progress bar: where it is drawn, how often, and that there is one lock."""

import io
import subprocess
import sys

import pytest

from experiments.running import command, terminal
from mmvae_jax.interface import progress


class Stream(io.StringIO):
    """What stderr is in a notebook, a terminal or a log."""

    def __init__(self, is_terminal):
        super().__init__()
        self.isatty = lambda: is_terminal


Notebook = type("OutStream", (Stream,), {"__module__": "ipykernel.iostream"})


@pytest.mark.parametrize(
    ("stream", "seconds"),
    [(Notebook(False), 0.2), (Stream(True), 0.2), (Stream(False), 10.0)],
)
def test_a_bar_is_drawn_often_where_it_is_drawn_in_place(stream, seconds, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert progress.drawing_interval() == seconds


def test_a_notebook_shows_steps_and_the_time_that_is_left(monkeypatch):
    stream = Notebook(False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "drawing_interval", lambda: 0.0)
    with progress.ProgressBar(0, 4, 8) as bar:
        bar.losses = [1.25]
        for step in (1, 2, 4):
            bar.update(step, 0.5, step == 1)
    shown = stream.getvalue()
    assert "2/4 [" in shown and "<" in shown  # the time that is left is after it
    assert "16 examples/s, losses 1.25" in shown


def test_all_bars_and_lines_have_one_lock():
    assert command.tqdm is terminal.tqdm is progress.tqdm


def test_a_notebook_without_widgets_is_not_warned():
    """As tqdm finds it: a kernel, and no ipywidgets."""
    program = (
        "import sys, warnings; warnings.simplefilter('always')\n"
        "sys.modules['ipywidgets'] = None\n"
        "import ipykernel.zmqshell\n"
        "from mmvae_jax.interface.progress import tqdm\n"
        "print(tqdm.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert "tqdm" in done.stdout
    assert "ipywidgets" not in done.stderr


def test_seconds_of_a_step_are_those_after_the_first_call_of_each_program():
    with progress.ProgressBar(100, 400, 8, is_shown=False) as bar:
        assert bar.step_seconds is None
        bar.update(110, 7.0, True)
        assert bar.step_seconds is None
        bar.update(120, 0.5, False)
        bar.update(150, 0.1, False)
        bar.update(151, 9.0, True)
        bar.update(161, 0.2, False)
        assert bar.timed_steps == 50
        assert bar.timed_seconds == pytest.approx(10 * 0.5 + 30 * 0.1 + 10 * 0.2)
        assert bar.step_seconds == pytest.approx(bar.timed_seconds / 50)


def test_the_time_that_is_left_is_without_compilation(monkeypatch):
    """Two programs that each compile for 100 s, and steps of 2 s."""
    now, stream = [0.0], Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(progress.time, "time", lambda: now[0])

    def shown(step, seconds, is_first):
        now[0] += seconds * (step - done[-1])
        done.append(step)
        stream.seek(0)
        stream.truncate()
        bar.update(step, seconds, is_first)
        return stream.getvalue()

    done = [10]
    with progress.ProgressBar(10, 50, 8) as bar:
        assert "11/50 [00:00<?" in shown(11, 100.0, True)
        assert "12/50 [00:02<01:16,  2.00s/step, 4 examples/s" in shown(12, 2.0, False)
        assert "30/50 [00:38<00:40" in shown(30, 2.0, False)
        assert "31/50 [00:38<00:38,  2.00s/step, 4 examples/s" in shown(31, 100.0, True)
        assert "50/50 [01:16<00:00" in shown(50, 2.0, False)
    assert "50/50 [01:16<00:00,  2.00s/step" in stream.getvalue().splitlines()[-1]
