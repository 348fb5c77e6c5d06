"""What part of a device's matrix rate a training step reaches.

python -m benchmarks.rate [--config translated_polymnist] [--model mopoe]
    [--precision default] [--steps 20] [--turns 3] [--out rate.json]

The arithmetic of a step is XLA's count for the program of one step; the
matrix rate is that of one large product in the same precision on the same device, a
turn before each turn of the steps.
"""

import argparse
import importlib
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from benchmarks import reports
from experiments import command
from mmvae_jax import models, sweeps, train, tuning

NUM_EXAMPLES = 2_000


def matrix_rate(precision, size):
    """Operations a second of a product of two matrices [size, size]."""
    name = train.matmul_precision(precision, jax.default_backend())
    a = jax.random.normal(jax.random.key(0), (size, size))

    @jax.jit
    def product(a):
        with jax.default_matmul_precision(name):
            return a @ a

    jax.block_until_ready(product(a))
    num, start = 0, time.perf_counter()
    while time.perf_counter() - start < 1:
        jax.block_until_ready(product(a))
        num += 1
    return 2 * size**3 * num / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="translated_polymnist")
    parser.add_argument("--model", default="mopoe")
    parser.add_argument("--precision", choices=train.PRECISIONS, default="default")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--size", type=int, help="of the matrices")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    config = importlib.import_module(f"configs.{options.config}").get_config(
        options.model
    )
    side, batch_size = config.data.image_size, config.train.batch_size
    shapes = {f"m{i}": (side, side, 3) for i in range(config.data.num_modalities)}
    generator = np.random.default_rng(0)
    images = {
        m: generator.integers(0, 256, (NUM_EXAMPLES, *shape), np.uint8)
        for m, shape in shapes.items()
    }
    task = train.vae_task(models.make_model(config, shapes))
    members = [sweeps.Member(1.0, 5e-4, 0)]
    hyper, keys = sweeps.stack_hyper(members), sweeps.stack_keys(members)
    batch = {m: x[:batch_size] for m, x in images.items()}
    execution = tuning.choose_execution(
        "auto",
        0,
        tuning.has_convolution(task, sweeps.member(hyper, 0), batch),
        jax.default_backend(),
    )._replace(precision=options.precision)
    program = train.compile_steps(task, execution)
    data = jax.device_put(images)
    state = train.init_states(task, hyper, keys, batch)
    # Of a loop XLA would count one turn, and of a program without one all of it.
    once = train.compile_steps(task, execution._replace(steps_per_call=1))
    rows = jnp.zeros((1, batch_size), jnp.int32)
    # Before it is compiled: a GPU's program hides its products in libraries.
    lowered = once.lower(state, hyper, keys, data, rows, 1)
    operations = lowered.cost_analysis()["flops"]
    size = options.size or (2_048 if jax.default_backend() == "cpu" else 8_192)
    rates, times = [], []
    for turn in range(options.turns + 1):
        rates.append(matrix_rate(options.precision, size))
        start, first = time.perf_counter(), int(state.step[0])
        state = train.fit(
            program,
            state,
            hyper,
            keys,
            data,
            num_steps=first + options.steps,
            batch_size=batch_size,
            data_seed=0,
            execution=execution,
        )
        jax.block_until_ready(state)
        taken = (time.perf_counter() - start) / options.steps
        times += [taken] if turn else []  # the first one compiles
    seconds, rate = statistics.median(times), statistics.median(rates[1:])
    row = {
        "GFLOP a step": operations / 1e9,
        "ms a step": seconds * 1e3,
        "GFLOP a second": operations / seconds / 1e9,
        "of a large product": rate / 1e9,
        "of the matrix rate": operations / seconds / rate,
    }
    print(tabulate([row], headers="keys", floatfmt=".4g"))
    ran = (
        f"rate --config {options.config} --model {options.model} --precision "
        f"{options.precision} --steps {options.steps} --turns {options.turns}"
    )
    reports.write(options.out, ran, [row], matrix_size=size)


if __name__ == "__main__":
    main()
