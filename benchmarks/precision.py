"""Precision of matrix products: its cost in loss, its gain in time.

python -m benchmarks.precision [--model mopoe] [--steps 1000] [--seeds 3]
    [--out precision.json]

Trains the same members, seeds of one model on PolyDigits, once in every precision
that the backend has. Reports seconds a step and the loss over the last tenth of the
steps, its mean over seeds and their standard deviation, and how far it is from that of
the same seeds in float32, the mean and the largest. A precision that the backend lacks
is imitated: factors are rounded to it, in the products of the gradient too, and
multiplied in float32. Its time says nothing and is left out.
"""

import argparse
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from tabulate import tabulate

from benchmarks import reports
from configs import polydigits
from experiments.running import command, datasets
from mmvae_jax import models
from mmvae_jax.data import prepared
from mmvae_jax.errors import UsageError
from mmvae_jax.training import loop, mapping, sweep
from mmvae_jax.training.execution import (
    PRECISIONS,
    compile_steps,
    init_states,
    matmul_precision,
)
from mmvae_jax.training.step import vae_task

# Bits of exponent and mantissa that a factor is rounded to.
BITS = {"tensorfloat32": (8, 10), "bfloat16": (8, 7)}


def rounding_products(bits):
    """`jax.lax.dot_general` of rounded factors, summed in float32."""
    exact = jax.lax.dot_general

    @jax.custom_vjp
    def rounded(x):
        return jax.lax.reduce_precision(x, *bits)

    @jax.custom_vjp
    def rounded_backwards(x):
        return x

    # The derivative of a product multiplies by the factors that it was made of, and a
    # gradient, which are all rounded.
    rounded.defvjp(lambda x: (rounded(x), None), lambda _, gradient: (gradient,))
    rounded_backwards.defvjp(
        lambda x: (x, None),
        lambda _, gradient: (jax.lax.reduce_precision(gradient, *bits),),
    )

    def dot_general(a, b, *args, **options):
        return rounded_backwards(exact(rounded(a), rounded(b), *args, **options))

    return dot_general


def is_available(precision):
    """Whether the backend has matrix products of this precision."""
    try:
        matmul_precision(precision, jax.default_backend())
    except UsageError:
        return False
    return True


def train_in(precision, config, dataset, members):
    """(seconds a step, loss of each member over the last tenth of the steps)."""
    images = dataset.train.modalities
    task = vae_task(models.make_model(config, dataset.shapes()))
    hyper, keys = sweep.stack_hyper(members), sweep.stack_keys(members)
    batch = {m: x[: config.train.batch_size] for m, x in images.items()}
    execution = mapping.choose_execution(
        "auto", 0, task.convolutions, jax.default_backend()
    )._replace(precision=precision)
    num_steps, logged = config.train.num_steps, []
    program = compile_steps(task, execution)
    state = init_states(task, hyper, keys, batch)
    examples = jax.device_put(images)
    marks = []

    def log(step, metrics, finite):
        logged.append(metrics["train/loss"])
        marks.append(time.perf_counter())

    loop.fit(
        program,
        state,
        hyper,
        keys,
        examples,
        num_steps=num_steps,
        batch_size=config.train.batch_size,
        data_seed=0,
        execution=execution,
        events=loop.Events(num_steps // 10, log),
    )
    # The first tenth compiles.
    return (marks[-1] - marks[0]) / (num_steps - num_steps // 10), logged[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mopoe")
    parser.add_argument("--steps", type=int, default=1_000, help="a multiple of 10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    config = polydigits.get_config(options.model)
    config.sweep.beta = (1.0,)
    config.sweep.seed = tuple(range(options.seeds))
    config.train.num_steps = options.steps
    dataset = prepared.load(datasets.prepare(config.data))
    members = sweep.grid(config.sweep)
    ran = f"precision --model {options.model} --steps {options.steps}"
    ran = f"{ran} --seeds {options.seeds}"
    rows, reference = [], None
    for name in sorted(PRECISIONS, key=lambda name: name != "float32"):
        if is_available(name):
            seconds, losses = train_in(name, config, dataset, members)
        else:
            # What the layers multiply by; products of experts do not use it.
            imitated = mock.patch.object(
                jax.lax, "dot_general", rounding_products(BITS[name])
            )
            with imitated:
                _, losses = train_in("float32", config, dataset, members)
            name, seconds = f"{name}, imitated", None
        if reference is None:
            reference = losses
        rows.append(
            {
                "precision": name,
                "ms a step": seconds and seconds * 1e3,
                "loss": float(np.mean(losses)),
                "std over seeds": float(np.std(losses, ddof=1)),
                "from float32": float(np.mean(losses - reference)),
                "at most": float(np.max(np.abs(losses - reference))),
            }
        )
        reports.write(options.out, ran, rows, dataset=dataset.name)
    print(tabulate(rows, headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    command.call(main)
