"""The table of the evaluations during training, also of unfinished runs.

    python -m experiments.studies.progress runs/figures_published/polymnist \\
        --out=results/published.csv

Reads the runs in a folder and below, and writes one line per member and evaluated step
(`config.train.eval_every_steps`). Missing values are empty.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments.running import command
from experiments.studies import tables
from mmvae_jax.errors import UsageError
from mmvae_jax.training import log

_EVALUATED = "eval/"
_NAMES = ("step", "beta", "learning_rate", "seed")
COLUMNS = (
    *(f"coherence/size_{k}" for k in (1, 2, 3, 4)),
    "coherence/leave_one_out",
    "coherence/joint",
    "swd",
    "conditional_swd/leave_one_out",
    "frechet_classifier",
    *(f"gmm/{tag}" for tag in ("coherence/joint", "swd", "frechet_classifier")),
    "elbo",
)


def rows(directory: Path) -> list[dict[str, Any]]:
    """The table of all runs in a folder and below, sorted by path.

    Raises:
      UsageError: no run has been evaluated yet.
    """
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    blank = dict.fromkeys(COLUMNS, "")
    for path in sorted(directory.rglob("metrics.jsonl")):
        run = str(path.parent.relative_to(directory))
        for line in log.read_metrics(path):
            values = _evaluated(line)
            if values:
                # Later evaluations add columns to the same line.
                place = run, line["member"], line["step"]
                names = {"run": run, **{x: line[x] for x in _NAMES}}
                found.setdefault(place, names | blank).update(values)
    if not found:
        raise UsageError(
            f"{directory}: no run in it has been evaluated; "
            "--config.train.eval_every_steps=N evaluates while training goes on"
        )
    return [found[place] for place in sorted(found)]


def _evaluated(line: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a line of metrics.jsonl, with four decimal places."""
    tags = {tag: line.get(f"{_EVALUATED}{tag}") for tag in COLUMNS}
    return {tag: round(value, 4) for tag, value in tags.items() if value is not None}


def main() -> None:
    """Writes the table."""
    if not (FLAGS.directory and FLAGS.out):
        raise UsageError(
            "name the folder of the runs and the table: "
            "python -m experiments.studies.progress DIR --out=FILE.csv"
        )
    tables.write(Path(FLAGS.out), rows(Path(FLAGS.directory).expanduser()))


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("directory", "", "folder of the runs; its name alone will do")
    flags.DEFINE_string("out", "", "CSV file")
    command.run(main, argument="directory")
