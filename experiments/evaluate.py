"""Computes metrics of a run that is finished or was interrupted.

    python -m experiments.evaluate --workdir=runs/tp --config.eval.metrics="('swd',)"
    python -m experiments.evaluate --all=runs/demo --config.eval.metrics="('matching',)"

The settings are those of the run's config.json, with the changes given here: of
config.eval, config.classifier and config.matcher, which are no part of what a run is.
The values are added to metrics.jsonl, and of the last step to summary.json, with the
date and the settings; report.html then shows them.
"""

import time
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from experiments.running import command, evaluation, terminal
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import settings, trained

CHANGEABLE = ("eval", "classifier", "matcher")


def main() -> int:
    """Evaluates one run, or all runs of a folder."""
    given = flags.FLAGS
    changes = _changes(config_flags.get_override_values(given["config"]))
    if bool(given.workdir) == bool(given.all):
        raise UsageError("give --workdir=FOLDER of a run, or --all=FOLDER of runs")
    workdirs = [Path(given.workdir).expanduser()]
    if given.all:
        found = Path(given.all).expanduser().rglob(trained.CONFIG)
        workdirs = sorted(path.parent for path in found)
        if not workdirs:
            raise UsageError(f"no run in {given.all}")
    date = time.strftime("%Y-%m-%d")
    code = 0
    for workdir in workdirs:
        if len(workdirs) > 1:
            terminal.say(f"{workdir}:")
        code = code or evaluation.evaluate(
            workdir.absolute(), changes, given.step, date
        )
        if code:
            break
    return code


def _changes(overrides: dict[str, Any]) -> dict[str, Any]:
    """The fields that are changed, all of those that may be."""
    for name in overrides:
        if name.partition(".")[0] not in CHANGEABLE:
            raise UsageError(
                f"config.{name} is a part of what the run is; what may be changed here "
                f"is in {', '.join(f'config.{section}' for section in CHANGEABLE)}"
            )
    return overrides


if __name__ == "__main__":
    config_flags.DEFINE_config_dict("config", settings.get_config())
    flags.DEFINE_string("workdir", "", "folder of a run")
    flags.DEFINE_string("all", "", "folder of runs, each of which is evaluated")
    flags.DEFINE_integer("step", None, "of the checkpoint; default: the last")
    command.run(main)
