"""Prints the BibTeX entries of runs: model, metrics, data set, and this software.

    python -m experiments.cite runs/tp
    python -m experiments.cite runs/figures_demo > used.bib

The folder is a run, a folder of runs, or an export. Comments say what each entry is
for.
"""

from pathlib import Path

from absl import flags

from experiments.running import citing, command, terminal
from mmvae_jax.errors import UsageError


def main() -> None:
    """Prints the entries."""
    if not flags.FLAGS.directory:
        raise UsageError("name the folder of a run: python -m experiments.cite DIR")
    terminal.say(citing.bibtex(citing.read(Path(flags.FLAGS.directory).expanduser())))


if __name__ == "__main__":
    flags.DEFINE_string("directory", "", "folder of runs; its name alone will do")
    command.run(main, argument="directory")
