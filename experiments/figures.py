"""Draws the papers' figures, and trains what they need and is not there.

    python -m experiments.figures --figure=2 --scale=demo
    python -m experiments.figures --scale=paper --dry_run

--figure is a number of the first paper (2, 3, 4, 6 to 13), "theorem", "discrepancy",
"tradeoff", "matching", "family" or "inputs", several of them with commas, or "all"
(the default), which ends with the table of claims and report.html. --columns takes
only some of the data sets, "shapes,cub" for instance. Figures are drawn from finished
runs only: what is not there is a missing point. A stopped command continues where it
was. --dry_run trains nothing, but prepares images with captions, whose vocabulary
decides on the networks. --cluster=ray trains the runs as tasks of a Ray cluster
(docs/scaling.md).
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tabulate
from absl import flags
from ml_collections import ConfigDict

from experiments import (
    claims,
    cluster,
    command,
    datasets,
    gallery,
    plans,
    report,
    run,
    terminal,
    workdirs,
)
from mmvae_jax import evaluate, models, sweeps, train, tuning
from mmvae_jax.errors import UsageError
from mmvae_jax.types import TokenShape


def names_of(
    figures: str, scale: ConfigDict, columns: Sequence[str] | None = None
) -> list[str]:
    """The figures that --figure asks for, of the columns of --columns if there are any.

    Raises:
      UsageError: one of them does not exist.
    """
    known = list(plans.figure_specs(scale))
    if columns is not None:
        known = plans.figures_of(scale, columns)
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


def checked_configs(
    scale: ConfigDict, specs: Sequence[plans.Spec], places: Mapping[str, str]
) -> dict[plans.Spec, ConfigDict]:
    """The config of every run, each found to be one before the first is trained.

    Raises:
      UsageError: a mistake in the scale.
    """
    configs = {spec: plans.run_config(scale, spec, places) for spec in specs}
    for config in configs.values():
        run.check(config)
        sweeps.grid(config.sweep)
        evaluate.select_metrics(config.eval, config.data.data_dir)
    return configs


def shapes_of(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Modality -> shape of one example, of the modalities that are used."""
    shapes = datasets.shapes(config.data)
    num = config.data.use_modalities or len(shapes)
    return dict(list(shapes.items())[:num])


def seconds_per_step(config: ConfigDict) -> float:
    """Measured time of a training step of all members, on random bytes and words.

    One member is measured where members are trained one after the other (CPU), all
    of them where they are trained at once.
    """
    shapes = shapes_of(config)
    model = models.make_model(config, shapes)
    task = train.vae_task(model)
    members = sweeps.grid(config.sweep)
    is_cpu = jax.default_backend() == "cpu"
    measured = members[:1] if is_cpu else members
    hyper, keys = sweeps.stack_hyper(measured), sweeps.stack_keys(measured)
    num = config.train.batch_size
    draw = np.random.default_rng(0).integers
    data = {
        m: jnp.asarray(draw(0, shape.num_words, (num, shape.length), np.int32))
        if isinstance(shape, TokenShape)
        else jnp.asarray(draw(0, 256, (num, *shape), np.uint8))
        for m, shape in shapes.items()
    }
    execution = tuning.choose_execution(
        config.train.mapping,
        config.train.steps_per_call,
        task.convolutions,
        jax.default_backend(),
    )
    calls: list[tuple[int, float]] = []  # (last step, seconds a step) of each

    def is_stopping() -> bool:
        """Whether calls after the first, which compiles, took half a second."""
        return len(calls) > 1 and (calls[-1][0] - 1) * calls[-1][1] >= 0.5

    train.fit(
        train.compile_steps(task, execution),
        train.init_states(task, hyper, keys, data),
        hyper,
        keys,
        data,
        num_steps=2 * train.MAX_STEPS_PER_CALL,
        batch_size=num,
        data_seed=0,
        execution=execution,
        events=train.Events(
            progress=lambda step, seconds: calls.append((step, seconds)),
            is_stopping=is_stopping,
        ),
    )
    return calls[-1][1] * (len(members) if is_cpu else 1)


def estimate(
    configs: Mapping[plans.Spec, ConfigDict],
) -> dict[plans.Spec, float]:
    """Seconds of training of every run: measured steps, times their number.

    Every model is measured once, on the data set and number of modalities for
    which it costs most; other numbers of modalities are taken as proportional. Where
    a step does not fit the memory, nan.
    """
    groups: dict[tuple, list[plans.Spec]] = {}
    for spec in configs:
        groups.setdefault((configs[spec].data.name, spec.model), []).append(spec)
    seconds = {}
    for group in groups.values():
        costs = {spec: _relative_cost(configs[spec]) for spec in group}
        largest = max(group, key=costs.get)
        config = configs[largest]
        try:
            total = seconds_per_step(config) * config.train.num_steps
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            total = math.nan
        for spec in group:
            seconds[spec] = total * costs[spec] / costs[largest]
    return seconds


def _relative_cost(config: ConfigDict) -> float:
    """Steps times modalities times members: what the time of a run goes with."""
    return (
        config.train.num_steps * len(shapes_of(config)) * len(sweeps.grid(config.sweep))
    )


def _bytes_seen(config: ConfigDict) -> float:
    """Bytes that the members of a run are trained on, of all steps."""
    example = sum(
        shape.length if isinstance(shape, TokenShape) else math.prod(shape)
        for shape in shapes_of(config).values()
    )
    examples = config.train.num_steps * config.train.batch_size
    return float(len(sweeps.grid(config.sweep)) * examples * example)


def print_plan(directory: Path, configs: Mapping[plans.Spec, ConfigDict]) -> None:
    """Prints the runs of a plan, what they cost, and which are there."""
    missing = {s: c for s, c in configs.items() if not is_finished(directory, s)}
    rows = []
    terminal.say(f"measuring a few steps of {len({s.model for s in missing})} models")
    seconds = estimate(missing)
    for spec, config in configs.items():
        rows.append(
            [
                spec.folder,
                len(sweeps.grid(config.sweep)),
                f"{config.train.num_steps:,}",
                _time(seconds[spec]) if spec in missing else "is there",
            ]
        )
    terminal.say(tabulate.tabulate(rows, ["run", "members", "steps", "training"]))
    counts = {s: len(sweeps.grid(c.sweep)) for s, c in missing.items()}
    members = sum(counts.values())
    steps = sum(num * missing[s].train.num_steps for s, num in counts.items())
    measured = [value for value in seconds.values() if not math.isnan(value)]
    is_whole, device = len(measured) == len(seconds), jax.devices()[0].device_kind
    terminal.say(
        f"{len(missing)} runs with {members} models to train, {steps:,} steps of one "
        f"model: about {_time(sum(measured))} of training on {device}"
        f"{'' if is_whole else ', without what does not fit its memory'}; compilation, "
        "evaluation and classifiers come on top"
        + _overhead(directory, configs, missing)
    )


def _overhead(directory: Path, configs, missing) -> str:
    """Time of the finished runs with all that comes on top of training, as text."""
    finished = {s: c for s, c in configs.items() if s not in missing}
    if not finished:
        return " (not measured yet)"
    walls = [
        workdirs.read_summary(directory / spec.folder)["wall_seconds"]
        for spec in finished
    ]
    return f"; the {len(finished)} runs that are there took {_time(sum(walls))} in all"


def with_data(
    directory: Path, configs: Mapping[plans.Spec, ConfigDict]
) -> dict[plans.Spec, ConfigDict]:
    """The runs that are there or can be trained; says which cannot.

    Only CUB can be neither made nor downloaded here.
    """
    kept = {
        spec: config
        for spec, config in configs.items()
        if config.data.get("cub_dir", "none needed") or is_finished(directory, spec)
    }
    if len(kept) < len(configs):
        terminal.say(
            f"{len(configs) - len(kept)} runs on CUB are left out: --cub_dir=FOLDER "
            "names its photographs and captions"
        )
    return kept


def is_finished(directory: Path, spec: plans.Spec) -> bool:
    """Whether a run has its summary."""
    return workdirs.read_summary(directory / spec.folder) is not None


def train_missing(directory: Path, configs: Mapping[plans.Spec, ConfigDict]) -> int:
    """Trains the runs that are not finished, one after the other.

    Returns:
      0, or 128 + n after signal n.
    """
    missing = [spec for spec in configs if not is_finished(directory, spec)]
    costs = {spec: _bytes_seen(configs[spec]) for spec in missing}
    # Every run takes this, whatever its size: compilation, evaluation, pictures.
    least = 0.1 * max(costs.values(), default=0.0)
    costs = {spec: cost + least for spec, cost in costs.items()}
    done, start = 0.0, time.perf_counter()
    for k, spec in enumerate(missing):
        left = ""
        if done:
            rate = (time.perf_counter() - start) / done
            left = f", about {_time(rate * (sum(costs.values()) - done))} left"
        terminal.say(f"\nrun {k + 1} of {len(missing)}{left}: {spec.folder}")
        code = run.train_and_evaluate(configs[spec], directory / spec.folder)
        if code > 1:  # 1: all members diverged, which is a result
            return code
        done += costs[spec]
        jax.clear_caches()  # of programs that no other run will call
    return 0


def _time(seconds: float) -> str:
    """A duration in the unit that suits it; of nan, why there is none."""
    if math.isnan(seconds):
        return "does not fit here"
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> int:
    """Plans, trains and draws."""
    if flags.FLAGS.address and not flags.FLAGS.cluster:
        raise UsageError("--address is a cluster's: it needs --cluster=ray")
    name, scale = plans.load_scale(flags.FLAGS.scale)
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
    shown = scale if columns is None else plans.with_columns(scale, columns)
    specs = plans.all_specs(shown, figures)
    configs = with_data(directory, checked_configs(scale, specs, places))
    if flags.FLAGS.dry_run:
        print_plan(directory, configs)
        return 0
    # A call that only draws leaves nothing behind where there are no runs.
    if flags.FLAGS.train or (directory / plans.PLAN).exists():
        plans.record(directory, name, scale)
    if flags.FLAGS.train:
        if flags.FLAGS.cluster:
            missing = {
                spec.folder: config
                for spec, config in configs.items()
                if not is_finished(directory, spec)
            }
            code = cluster.train(directory, missing, flags.FLAGS.address)
        else:
            code = train_missing(directory, configs)
        if code:
            return code
    evidence = plans.read(directory)
    if columns is not None:
        evidence = dataclasses.replace(evidence, config=shown)
    gallery.draw(evidence, figures)
    if flags.FLAGS.figure == "all":
        claims.report(evidence)
        report.write(directory, directory / "report.html")
        terminal.say(f"everything on one page: {directory / 'report.html'}")
    return 0


FLAG_NAMES = (
    *("figure", "scale", "directory", "dry_run", "train", "columns"),
    *("data_dir", "digits_dir", "backgrounds_dir", "cub_dir", "cluster", "address"),
)


def define_flags() -> None:
    """Defines FLAG_NAMES."""
    flags.DEFINE_string("figure", "all", "figures of the paper, or all")
    flags.DEFINE_string(
        "scale", "demo", f"{', '.join(plans.SCALES)}, or a file like theirs"
    )
    flags.DEFINE_string("directory", "", "folder; default: runs/figures_SCALE")
    flags.DEFINE_bool("dry_run", False, "only say what would be trained, and its cost")
    flags.DEFINE_bool("train", True, "--notrain: draw what is there")
    flags.DEFINE_string("data_dir", "", "where prepared data sets are kept")
    flags.DEFINE_string("digits_dir", "", "the four idx files of MNIST")
    flags.DEFINE_string("backgrounds_dir", "", "one background image a modality")
    flags.DEFINE_string("cub_dir", "", "photographs and captions of CUB")
    flags.DEFINE_string("columns", "", "only these data sets, with commas; all")
    flags.DEFINE_enum("cluster", None, ("ray",), "train on a cluster, not only here")
    flags.DEFINE_string("address", "", "of a Ray cluster; default: one of this machine")


if __name__ == "__main__":
    define_flags()
    command.run(main)
