"""Computes metrics of a run that is finished or was interrupted.

    python -m experiments.evaluate --workdir=runs/tp --config.eval.metrics="('swd',)"
    python -m experiments.evaluate --all=runs/demo --config.eval.metrics="('matching',)"
    python -m experiments.evaluate --workdir=runs/tp --config.eval.metrics=all

`all` computes the metrics that the data allow, and prints why others are left out. If a
run cannot be evaluated, --all continues with the others.

The settings are those of the run's config.json. Only config.eval, config.classifier and
config.matcher may be changed here. The values are added to metrics.jsonl, and for a
finished run to summary.json, with the date and the settings; experiments.report shows
them. Samples do not change.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from experiments.running import command, evaluation, terminal, workdirs
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import exports, settings, trained


def main() -> int:
    """Evaluates one run, or all runs of a folder."""
    given = flags.FLAGS
    changes = _changes(config_flags.get_override_values(given["config"]))
    if bool(given.workdir) == bool(given.all):
        raise UsageError("give --workdir=FOLDER of a run, or --all=FOLDER of runs")
    evaluate = partial(
        evaluation.evaluate,
        changes=changes,
        step=given.step,
        date=time.strftime("%Y-%m-%d"),
    )
    if given.workdir:
        return evaluate(Path(given.workdir).expanduser().absolute())
    found = Path(given.all).expanduser().absolute().rglob(trained.CONFIG)
    folders = sorted(
        path.parent for path in found if not (path.parent / exports.MANIFEST).exists()
    )
    if not folders:
        raise UsageError(f"no run in {given.all}")
    refused = {}
    for folder in folders:
        terminal.say(f"{folder}:")
        try:
            if code := evaluate(folder):
                return code
        except UsageError as error:  # continue with the other runs
            refused[folder] = error
    if refused:
        lines = "; ".join(f"{folder}: {error}" for folder, error in refused.items())
        num = f"{len(refused)} of {len(folders)}"
        raise UsageError(f"{num} runs could not be evaluated: {lines}")
    return 0


def _changes(overrides: dict[str, Any]) -> dict[str, Any]:
    """The changed fields; raises UsageError for fields that must not change."""
    for name in overrides:
        if name.partition(".")[0] not in workdirs.EVALUATION:
            sections = ", ".join(f"config.{own}" for own in workdirs.EVALUATION)
            raise UsageError(
                f"config.{name} cannot be changed after training; only fields of "
                f"{sections} can"
            )
    return overrides


if __name__ == "__main__":
    config_flags.DEFINE_config_dict("config", settings.get_config())
    flags.FLAGS["config"].default_as_str = ""  # --help would print all settings
    flags.DEFINE_string("workdir", "", "folder of a run")
    flags.DEFINE_string("all", "", "folder of runs, each of which is evaluated")
    flags.DEFINE_integer("step", None, "of the checkpoint; default: the last")
    command.run(main)
