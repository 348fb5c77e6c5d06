"""Writes one page with all results of finished runs.

    python -m experiments.report --directory=runs/demo

report.html needs no other file and no network. It has the settings of the runs, the
verdicts of results.json, the figures, tables, samples, loss curves, environment and
configs. A gallery, which needs scripts, shows the samples by model, beta, seed and
condition. Nothing is computed here: a missing value is a dash.
"""

from pathlib import Path

from absl import flags

from experiments.drawing import page
from experiments.running import command, terminal


def main() -> None:
    """Writes the page and prints its address."""
    directory = Path(flags.FLAGS.directory).expanduser()
    out = Path(flags.FLAGS.out).expanduser() if flags.FLAGS.out else None
    out = out or directory / "report.html"
    page.write(directory, out)
    link = out.absolute().as_uri()
    terminal.say(f"{link} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    flags.DEFINE_string("directory", "runs/demo", "folder of the finished runs")
    flags.DEFINE_string("out", "", "the page; default: report.html in the directory")
    command.run(main)
