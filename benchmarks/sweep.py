"""Times a sweep of K betas against K single runs, for each way to map members.

python -m benchmarks.sweep [--setting polydigits|polymnist] [--members 6]
    [--steps 50] [--out sweep.json]

Every way is compiled once; then all ways take turns, and the medians over the
turns are compared, so that a change of the machine's speed meets all of them.
Single runs share one compiled program here, which favours them: run as K
processes they would compile K times, which the second ratio counts.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from tabulate import tabulate

from benchmarks import reports
from configs import polydigits, polymnist
from experiments.running import command
from mmvae_jax import models
from mmvae_jax.training import loop, step, sweep
from mmvae_jax.training.execution import compile_steps, init_states
from mmvae_jax.training.mapping import choose_execution, peak_bytes

SETTINGS = {"polydigits": polydigits, "polymnist": polymnist}
NUM_EXAMPLES = 2_000


def build(config, members, mapping, precision="default"):
    """A function that trains all members for `num` more steps, and returns seconds."""
    size = config.data.image_size
    shapes = {f"m{i}": (size, size, 3) for i in range(config.data.num_modalities)}
    generator = np.random.default_rng(0)
    data = jax.device_put(
        {
            m: generator.integers(0, 256, (NUM_EXAMPLES, *shape), np.uint8)
            for m, shape in shapes.items()
        }
    )
    task = step.vae_task(models.make_model(config, shapes))
    hyper, keys = sweep.stack_hyper(members), sweep.stack_keys(members)
    batch = {m: x[: config.train.batch_size] for m, x in data.items()}
    execution = choose_execution(
        mapping,
        config.train.steps_per_call,
        task.convolutions,
        jax.default_backend(),
    )._replace(precision=precision)
    program = compile_steps(task, execution)
    state = init_states(task, hyper, keys, batch)

    def advance(num):
        nonlocal state
        start = time.perf_counter()
        state = loop.fit(
            program,
            state,
            hyper,
            keys,
            data,
            num_steps=int(state.step[0]) + num,
            batch_size=config.train.batch_size,
            data_seed=0,
            execution=execution,
        )
        jax.block_until_ready(state)
        return time.perf_counter() - start

    def megabytes():
        """Memory that the program needs beside the data."""
        size = config.train.batch_size
        rows = np.zeros((execution.steps_per_call, size), np.int32)
        lowered = program.lower(state, hyper, keys, data, rows, 1)
        whole = peak_bytes(lowered.compile())
        return (whole - sum(x.nbytes for x in data.values())) / 1e6

    def operations():
        """Of one step: of a loop of steps XLA would count one turn."""
        # No precision: a CPU does not know a GPU's.
        single = execution._replace(steps_per_call=1, precision="default")
        rows = np.zeros((1, config.train.batch_size), np.int32)
        once = compile_steps(task, single)
        return reports.operations(once, state, hyper, keys, data, rows, np.int32(1))

    advance.program = program
    advance.megabytes = megabytes
    advance.operations = operations
    return advance


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=SETTINGS, default="polydigits")
    parser.add_argument("--arg", default="mopoe", help="argument of the config")
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--mappings", nargs="+", default=["auto", *sweep.MAPPINGS])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    with reports.own_programs():
        measure(options)


def measure(options):
    """Times everything and reports it."""
    config = SETTINGS[options.setting].get_config(options.arg)
    config.sweep.beta = tuple(0.5 * (k + 1) for k in range(options.members))
    config.sweep.seed = (0,)
    members = sweep.grid(config.sweep)
    single = build(config, members[:1], "auto")
    ways = {name: build(config, members, name) for name in options.mappings}
    first = {name: way(1) for name, way in {"single": single, **ways}.items()}
    times = {name: [] for name in first}
    for turn in range(options.turns + 1):
        turns = {"single": [single(options.steps) for _ in members]}
        turns |= {name: [way(options.steps)] for name, way in ways.items()}
        for name, taken in turns.items():
            # The first turn finds out how many steps a call may take.
            times[name] += [sum(taken)] if turn else []
    singles = statistics.median(times["single"])
    ran = (
        f"sweep --setting {options.setting} --arg {options.arg} "
        f"--members {options.members} --steps {options.steps} --turns {options.turns} "
        f"--mappings {' '.join(options.mappings)}"
    )
    more = {"single_runs_seconds": singles, "single_megabytes": single.megabytes()}
    rows = []
    for name in ways:
        taken = statistics.median(times[name])
        alone = single if name == "auto" else build(config, members[:1], name)
        whole = (first[name] + taken) / (options.members * first["single"] + singles)
        rows.append(
            {
                "mapping": name,
                "seconds": taken,
                "of single runs": taken / singles,
                "with compilation": whole,
                "first call of a single one's": first[name] / first["single"],
                "programs": ways[name].program._cache_size(),
                "memory of single ones": (
                    ways[name].megabytes() / (options.members * alone.megabytes())
                ),
            }
        )
        reports.write(options.out, ran, rows, **more)
    print(
        f"{options.setting}:{options.arg}, {options.members} members, {options.steps} "
        f"steps of batch {config.train.batch_size}; {options.members} single runs take "
        f"{singles:.2f} s"
    )
    print(tabulate(rows, headers="keys", floatfmt=".3g"))


if __name__ == "__main__":
    command.call(main)
