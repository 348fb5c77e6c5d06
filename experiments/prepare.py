"""Prepares a data set, and prints the folder of the prepared data.

    python -m experiments.prepare --config=configs/polymnist.py

Prepared data are not changed, so the command may be repeated.
"""

from pathlib import Path

from absl import flags

from experiments.running import command, datasets


def main() -> None:
    """Prepares the data of a config and prints their folder."""
    data_config = flags.FLAGS.config.data
    if data_config.name == datasets.ARRAYS:
        datasets.load(data_config)  # only for its checks
        print(Path(data_config.path).expanduser().resolve())
    else:
        print(datasets.prepare(data_config))


if __name__ == "__main__":
    command.define_config("configs/polymnist.py")
    command.run(main)
