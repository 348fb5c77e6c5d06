"""Trains and evaluates a sweep.

    python -m experiments.run --config=configs/translated_polymnist.py:mopoe \\
        --workdir=runs/tp --config.sweep.beta="(0.3,1.,3.)"

--config.eval.metrics=all computes all metrics that the data allow, and prints why
others are left out.

The same command resumes an interrupted run at its last checkpoint; on CPUs the result
is bit-identical to that of an uninterrupted run. All devices are used automatically; on
several hosts, each runs this command (docs/scaling.md).
"""

import shlex
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from configs import base
from experiments.running import command, processes, session, terminal


def main() -> int:
    """Trains and evaluates the sweep of the flags."""
    given = flags.FLAGS
    config = given.config
    command.require_fields(config, base.get_config())
    name = Path(config_flags.get_config_filename(given["config"])).stem
    workdir = given.workdir or f"runs/{name}_{config.model.name}"
    processes.connect(
        given.distributed, given.coordinator, given.num_processes, given.process_id
    )
    try:
        with processes.silence_others():
            folder = Path(workdir).expanduser().absolute()
            code = session.train_and_evaluate(config, folder)
            if code <= 1:  # 1: all members diverged, which is a result
                terminal.say(
                    "for a page with all results: python -m experiments.report "
                    f"--directory={shlex.quote(str(folder))}"
                )
            return code
    except jax.errors.JaxRuntimeError as error:
        processes.end_after_a_loss(error)


if __name__ == "__main__":
    command.define_config("configs/polymnist.py")
    flags.DEFINE_string("workdir", "", "folder of the run; default: under runs/")
    processes.define_flags()
    command.run(main)
