"""The estimated or measured cost of a plan."""

import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tabulate
from ml_collections import ConfigDict

from experiments.plans import plan
from experiments.running import datasets, terminal, workdirs
from mmvae_jax import models
from mmvae_jax.training import loop, mapping, sweep
from mmvae_jax.training.execution import MAX_STEPS_PER_CALL, compile_steps, init_states
from mmvae_jax.training.step import Task, vae_task
from mmvae_jax.types import TokenShape


def _shapes_of(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Modality -> shape of one example, for the used modalities."""
    shapes = datasets.shapes(config.data)
    num = config.data.use_modalities or len(shapes)
    return dict(list(shapes.items())[:num])


def seconds_per_step(config: ConfigDict) -> float:
    """Measured time of a training step of all members, on random bytes and words.

    For a model with stages it is the mean over all steps of the run. If members are
    trained one by one (CPU), only one is measured.
    """
    shapes = _shapes_of(config)
    model = models.make_model(config, shapes)
    num_steps = config.train.num_steps
    task = vae_task(model, num_steps=num_steps)
    members = sweep.grid(config.sweep)
    is_cpu = jax.default_backend() == "cpu"
    measured = members[:1] if is_cpu else members
    hyper, keys = sweep.stack_hyper(measured), sweep.stack_keys(measured)
    num = config.train.batch_size
    draw = np.random.default_rng(0).integers
    data = {
        m: jnp.asarray(draw(0, shape.num_words, (num, shape.length), np.int32))
        if isinstance(shape, TokenShape)
        else jnp.asarray(draw(0, 256, (num, *shape), np.uint8))
        for m, shape in shapes.items()
    }
    execution = mapping.choose_execution(
        config.train.mapping,
        config.train.steps_per_call,
        task.convolutions,
        jax.default_backend(),
    )

    def measure(own: Task) -> float:
        """Seconds per step of one stage."""
        calls: list[tuple[int, float]] = []  # (last step, seconds per step) of each

        def is_stopping() -> bool:
            """Whether the calls after the first, which compiles, took half a second."""
            return len(calls) > 1 and (calls[-1][0] - 1) * calls[-1][1] >= 0.5

        loop.fit(
            compile_steps(own, execution),
            init_states(task, hyper, keys, data),
            hyper,
            keys,
            data,
            num_steps=2 * MAX_STEPS_PER_CALL,
            batch_size=num,
            data_seed=0,
            execution=execution,
            events=loop.Events(
                progress=lambda step, seconds, _: calls.append((step, seconds)),
                is_stopping=is_stopping,
            ),
        )
        return calls[-1][1]

    shares = [(one.end - one.start) / num_steps for one in task.stages] or [1.0]
    seconds = sum(x * measure(y) for x, y in zip(shares, task.tasks(), strict=True))
    return seconds * (len(members) if is_cpu else 1)


def _estimate(
    configs: Mapping[plan.Spec, ConfigDict],
) -> dict[plan.Spec, float]:
    """Seconds of training of each run: time per step times number of steps.

    Each model is measured once, for its most expensive run; the cost is assumed to be
    proportional to the number of modalities. NaN if a step does not fit the memory.
    """
    groups: dict[tuple, list[plan.Spec]] = {}
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
    """Steps times modalities times members, proportional to the time of a run."""
    return (
        config.train.num_steps * len(_shapes_of(config)) * len(sweep.grid(config.sweep))
    )


def bytes_seen(config: ConfigDict) -> float:
    """Bytes of training data over all steps and members of a run."""
    example = sum(
        shape.length if isinstance(shape, TokenShape) else math.prod(shape)
        for shape in _shapes_of(config).values()
    )
    examples = config.train.num_steps * config.train.batch_size
    return float(len(sweep.grid(config.sweep)) * examples * example)


def print_plan(directory: Path, configs: Mapping[plan.Spec, ConfigDict]) -> None:
    """Prints the runs of a plan, their cost, and which exist."""
    missing = {s: c for s, c in configs.items() if not plan.is_finished(directory, s)}
    rows = []
    terminal.say(f"measuring a few steps of {len({s.model for s in missing})} models")
    seconds = _estimate(missing)
    for spec, config in configs.items():
        rows.append(
            [
                spec.folder,
                len(sweep.grid(config.sweep)),
                f"{config.train.num_steps:,}",
                duration(seconds[spec]) if spec in missing else "is there",
            ]
        )
    terminal.say(tabulate.tabulate(rows, ["run", "members", "steps", "training"]))
    counts = {s: len(sweep.grid(c.sweep)) for s, c in missing.items()}
    members = sum(counts.values())
    steps = sum(num * missing[s].train.num_steps for s, num in counts.items())
    measured = [value for value in seconds.values() if not math.isnan(value)]
    is_whole, device = len(measured) == len(seconds), jax.devices()[0].device_kind
    terminal.say(
        f"{len(missing)} runs with {members} models to train, {steps:,} steps of one "
        f"model: about {duration(sum(measured))} of training on {device}"
        f"{'' if is_whole else ', without runs that do not fit its memory'}; "
        "compilation, evaluation and classifiers come on top"
        + _overhead(directory, configs, missing)
    )


def _overhead(directory: Path, configs, missing) -> str:
    """Total time of the finished runs, including evaluation, as text."""
    finished = {s: c for s, c in configs.items() if s not in missing}
    if not finished:
        return " (not measured yet)"
    walls = [
        workdirs.read_summary(directory / spec.folder)["wall_seconds"]
        for spec in finished
    ]
    return (
        f"; the {len(finished)} runs that are there took {duration(sum(walls))} in all"
    )


def duration(seconds: float) -> str:
    """A duration in a suitable unit; for NaN, the reason."""
    if math.isnan(seconds):
        return "does not fit here"
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
