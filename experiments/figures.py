"""Draws the papers' figures, and trains their runs.

    python -m experiments.figures --figure=2 --scale=demo
    python -m experiments.figures --scale=paper --dry_run

--figure is a number of the first paper (2, 3, 4, 6 to 13), "theorem", "discrepancy",
"tradeoff", "matching", "family" or "inputs". Separate several by commas. The default,
"all", also writes the table of claims and report.html. --columns selects data sets, for
instance "shapes,cub". --models selects and orders the models to train, for instance
"mopoe,mvtcae". Figures show only finished runs. The same command resumes. --dry_run
trains nothing, but prepares images with captions, whose vocabulary determines the
networks. --cluster=ray trains the runs as tasks of a Ray cluster (docs/scaling.md).
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments import claims
from experiments.drawing import gallery, page
from experiments.plans import plan
from experiments.plans.cost import bytes_seen, duration, print_plan
from experiments.running import cluster, command, datasets, session, terminal
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import checks


def names_of(
    figures: str, scale: ConfigDict, columns: Sequence[str] | None = None
) -> list[str]:
    """The names of the requested figures, restricted to `columns` if given.

    Raises:
      UsageError: a figure does not exist.
    """
    known = list(plan.figure_specs(scale))
    if columns is not None:
        known = plan.figures_of(scale, columns)
    if figures == "all":
        return known
    names = [name.strip() for name in figures.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(
                f"unknown --figure {name!r}; choose from {', '.join(known)}, or all "
                "(Figures 1 and 5 show data only)"
            )
    return names


def of_models(specs: Sequence[plan.Spec], models: Sequence[str]) -> list[plan.Spec]:
    """The runs of some models, in the order of the models.

    Raises:
      UsageError: the figures need no run of a model.
    """
    known = dict.fromkeys(spec.model for spec in specs)
    names = [name.strip() for name in models]
    for name in names:
        if name not in known:
            raise UsageError(
                f"unknown model {name!r} in --models; choose from {', '.join(known)}, "
                "the models of these figures"
            )
    return [spec for name in names for spec in specs if spec.model == name]


def checked_configs(
    scale: ConfigDict, specs: Sequence[plan.Spec], places: Mapping[str, str]
) -> dict[plan.Spec, ConfigDict]:
    """The configs of all runs, checked before the first run is trained.

    Raises:
      UsageError: a mistake in the scale.
    """
    configs = {spec: plan.run_config(scale, spec, places) for spec in specs}
    for config in configs.values():
        checks.check(config)
        datasets.check_fields(config.data)
    return configs


def with_data(
    directory: Path, configs: Mapping[plan.Spec, ConfigDict]
) -> dict[plan.Spec, ConfigDict]:
    """The runs that exist or can be trained; prints the others.

    Only CUB can be neither generated nor downloaded.
    """
    kept = {
        spec: config
        for spec, config in configs.items()
        if config.data.get("cub_dir", "none needed")
        or plan.is_finished(directory, spec)
    }
    if len(kept) < len(configs):
        terminal.say(
            f"{len(configs) - len(kept)} runs on CUB are left out: set --cub_dir to "
            "the folder of its photographs and captions"
        )
    return kept


def train_missing(directory: Path, configs: Mapping[plan.Spec, ConfigDict]) -> int:
    """Trains the unfinished runs, one after the other.

    Returns:
      0, or 128 + n after signal n.
    """
    missing = [spec for spec in configs if not plan.is_finished(directory, spec)]
    costs = {spec: bytes_seen(configs[spec]) for spec in missing}
    # Overhead of every run: compilation, evaluation, pictures.
    least = 0.1 * max(costs.values(), default=0.0)
    costs = {spec: cost + least for spec, cost in costs.items()}
    done, start = 0.0, time.perf_counter()
    for k, spec in enumerate(missing):
        left = ""
        if done:
            rate = (time.perf_counter() - start) / done
            left = f", about {duration(rate * (sum(costs.values()) - done))} left"
        terminal.say(f"\nrun {k + 1} of {len(missing)}{left}: {spec.folder}")
        code = session.train_and_evaluate(configs[spec], directory / spec.folder)
        if code > 1:  # 1: all members diverged, which is a result
            return code
        done += costs[spec]
        jax.clear_caches()  # no other run uses these programs
    return 0


def main() -> int:
    """Plans, trains and draws."""
    if flags.FLAGS.address and not flags.FLAGS.cluster:
        raise UsageError("--address needs --cluster=ray")
    name, scale = plan.load_scale(flags.FLAGS.scale)
    columns = None
    if flags.FLAGS.columns:
        columns = [part.strip() for part in flags.FLAGS.columns.split(",")]
    figures = names_of(flags.FLAGS.figure, scale, columns)
    directory = Path(flags.FLAGS.directory or f"runs/figures_{name}")
    directory = directory.expanduser().absolute()
    places = {
        field: flags.FLAGS[field].value
        for field in ("data_dir", "digits_dir", "backgrounds_dir", "cub_dir")
        if flags.FLAGS[field].value
    }
    shown = scale if columns is None else plan.with_columns(scale, columns)
    specs = plan.all_specs(shown, figures)
    if flags.FLAGS.models:
        specs = of_models(specs, flags.FLAGS.models.split(","))
    configs = with_data(directory, checked_configs(scale, specs, places))
    if flags.FLAGS.dry_run:
        print_plan(directory, configs)
        return 0
    # A call that only draws creates nothing if there are no runs.
    if flags.FLAGS.train or (directory / plan.PLAN).exists():
        plan.record(directory, name, scale)
    if flags.FLAGS.train:
        if flags.FLAGS.cluster:
            missing = {
                spec.folder: config
                for spec, config in configs.items()
                if not plan.is_finished(directory, spec)
            }
            code = cluster.train(directory, missing, flags.FLAGS.address)
        else:
            code = train_missing(directory, configs)
        if code:
            return code
    evidence = plan.read(directory)
    if columns is not None:
        evidence = dataclasses.replace(evidence, config=shown)
    gallery.draw(evidence, figures)
    if flags.FLAGS.figure == "all":
        claims.report(evidence)
        page.write(directory, directory / "report.html")
        terminal.say(f"everything on one page: {directory / 'report.html'}")
    return 0


FLAG_NAMES = (
    *("figure", "scale", "directory", "dry_run", "train", "columns", "models"),
    *("data_dir", "digits_dir", "backgrounds_dir", "cub_dir", "cluster", "address"),
)


def define_flags() -> None:
    """Defines FLAG_NAMES."""
    flags.DEFINE_string("figure", "all", "figures of the paper, or all")
    flags.DEFINE_string(
        "scale", "demo", f"{', '.join(plan.SCALES)}, or a file like theirs"
    )
    flags.DEFINE_string("directory", "", "folder; default: runs/figures_SCALE")
    flags.DEFINE_bool("dry_run", False, "only say what would be trained, and its cost")
    flags.DEFINE_bool("train", True, "--notrain: draw what is there")
    flags.DEFINE_string("data_dir", "", "where prepared data sets are kept")
    flags.DEFINE_string("digits_dir", "", "the four idx files of MNIST")
    flags.DEFINE_string("backgrounds_dir", "", "one background image a modality")
    flags.DEFINE_string("cub_dir", "", "photographs and captions of CUB")
    flags.DEFINE_string("columns", "", "only these data sets, with commas; all")
    flags.DEFINE_string("models", "", "train only these models, with commas; all")
    flags.DEFINE_enum("cluster", None, ("ray",), "train on a cluster, not only here")
    flags.DEFINE_string("address", "", "of a Ray cluster; default: one of this machine")


if __name__ == "__main__":
    define_flags()
    command.run(main)
