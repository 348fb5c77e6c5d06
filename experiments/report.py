"""One page with everything that finished runs have to show.

    python -m experiments.report --directory=runs/demo

Writes a report.html that needs no other file, no network and no script: what was
run, the verdicts of results.json, the figures, tables, samples, loss curves,
environment and configs. It reads and never measures: what a run lacks is a dash.
"""

from pathlib import Path

from absl import flags

from experiments.drawing import page
from experiments.running import command, terminal


def main() -> None:
    """Writes the page and says where it is."""
    directory = Path(flags.FLAGS.directory).expanduser()
    out = Path(flags.FLAGS.out).expanduser() if flags.FLAGS.out else None
    out = out or directory / "report.html"
    page.write(directory, out)
    terminal.say(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    flags.DEFINE_string("directory", "runs/demo", "folder of the finished runs")
    flags.DEFINE_string("out", "", "the page; default: report.html in the directory")
    command.run(main)
