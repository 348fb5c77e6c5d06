"""A shared code learned by contrast against coordination, on translated digits.

    python -m experiments.studies.contrastive --directory=runs/better \\
        --out=results/better.csv

Trains what is not there yet, evaluates it, and writes a line for each run: means and
standard deviations over three seeds. The data, the steps and the batches are those of
the demo scale's Translated-PolyDigits for all runs; numbers of parameters are equal to
0.3 % with the decoder of layers, to 4 % without. `--runs` names some of them, for
several processes. docs/better.md says what came out.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.plans import plan
from experiments.running import command, session, workdirs
from mmvae_jax.errors import UsageError
from mmvae_jax.files import write_whole

_METRICS = ("elbo", "coherence", "frechet", "swd", "log_likelihood")
COLUMNS = (
    "coherence/leave_one_out",
    "coherence/size_1",
    "coherence/joint",
    "swd",
    "frechet_classifier",
    "elbo",
    "log_likelihood",
)
# Two encoders a modality: fewer hidden units, for as many parameters.
_CONTRASTIVE = {
    "model.latent_dim": 16,
    "model.options.private_dim": 8,
    "modality.network_options.widths": (96,),
    "sweep.beta": (1.0,),
}
_LAYERED = {"modality.network": "layered"}
# Run -> what differs from the config of its model, the first word of its name.
_CHANGES = {
    "contrastive_layered": _CONTRASTIVE | _LAYERED,
    "contrastive_layered_no_consistency": _CONTRASTIVE
    | _LAYERED
    | {"model.options.consistency": 0.0},
    "crmvae_layered": _LAYERED,
    "mmvm_layered": _LAYERED,
    "mopoe_layered": _LAYERED,
    "mvae_layered": _LAYERED,
    "contrastive": _CONTRASTIVE,
    "contrastive_no_consistency": _CONTRASTIVE | {"model.options.consistency": 0.0},
    "crmvae": {},
    "mmvm": {},
}


def configs(places: Mapping[str, str]) -> dict[str, ConfigDict]:
    """Run -> its config; places: fields of config.data that say where things are."""
    _, scale = plan.load_scale("demo")
    scale.beta, scale.metrics = (0.3,), _METRICS
    found = {}
    for name, changes in _CHANGES.items():
        spec = plan.Spec("translated", name.partition("_")[0])
        config = plan.run_config(scale, spec, places)
        config.update_from_flattened_dict(changes)
        found[name] = config
    return found


def row(name: str, config: ConfigDict, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table: of the seeds whose parameters are finite."""
    members = [m["metrics"] for m in summary["members"] if m["finite"]]
    values = {"run": name, "beta": config.sweep.beta[0], "num_seeds": len(members)}
    for tag in COLUMNS:
        each = [metrics[f"eval/{tag}"] for metrics in members]
        values[f"{tag} mean"] = round(float(np.mean(each)), 4)
        values[f"{tag} std"] = round(float(np.std(each, ddof=1)), 4)
    return values


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the table as CSV, at once or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def main() -> int:
    """Trains, evaluates, and writes the table of what is finished."""
    directory = Path(FLAGS.directory)
    found = configs({"data_dir": FLAGS.data_dir})
    names = [name for name in FLAGS.runs.split(",") if name] or list(found)
    for name in names:
        if name not in found:
            raise UsageError(f"unknown --runs {name!r}; choose from {', '.join(found)}")
        code = session.train_and_evaluate(found[name], directory / name)
        if code:
            return code
    if FLAGS.out:
        summaries = {
            name: workdirs.read_summary(directory / name)
            for name in found
            if (directory / name).is_dir()
        }
        rows = [
            row(name, found[name], summary)
            for name, summary in summaries.items()
            if summary is not None
        ]
        _write(Path(FLAGS.out), rows)
    return 0


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("directory", "runs/better", "folder of the runs")
    flags.DEFINE_string("data_dir", "data", "where prepared data sets are kept")
    flags.DEFINE_string("runs", "", "runs to make, with commas; empty: all")
    flags.DEFINE_string("out", "", "CSV file of all finished runs; empty: none")
    command.run(main)
