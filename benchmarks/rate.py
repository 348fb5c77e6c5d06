"""Part of a device's matrix rate that a training step reaches.

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
from tabulate import tabulate

from benchmarks import reports
from benchmarks.sweep import build
from experiments.running import command
from mmvae_jax.training import execution, sweep


def matrix_rate(precision, size):
    """Operations a second of a product of two matrices [size, size]."""
    name = execution.matmul_precision(precision, jax.default_backend())
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
    parser.add_argument("--precision", choices=execution.PRECISIONS, default="default")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--size", type=int, help="of the matrices")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    config = importlib.import_module(f"configs.{options.config}").get_config(
        options.model
    )
    members = [sweep.Member(1.0, 5e-4, 0)]
    advance = build(config, members, "auto", options.precision)
    operations = advance.operations()
    size = options.size or (2_048 if jax.default_backend() == "cpu" else 8_192)
    advance(options.steps)  # compiles
    rates, times = [], []
    for _ in range(options.turns):
        rates.append(matrix_rate(options.precision, size))
        times.append(advance(options.steps) / options.steps)
    seconds, rate = statistics.median(times), statistics.median(rates)
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
    command.call(main)
