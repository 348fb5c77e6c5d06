"""Times every metric of one member, and all of them.

python -m benchmarks.metrics [--examples 10000] [--metrics coherence swd ...]
    [--out metrics.json]

MoPoE on the convolutional networks of `benchmarks.step`, random test examples, and
judges with random parameters: the time does not depend on what they show. A metric's
time is that of its call within the evaluation of all, as a run makes it, with what it
compiles; what several share is counted where it is made first.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from tabulate import tabulate

from benchmarks import evaluation, reports, step
from experiments.running import command
from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation import evaluate, needs
from mmvae_jax.evaluation.metric import EvaluationData, Matchers
from mmvae_jax.evaluation.metrics import METRICS

# Of attributes and captions, which the data of the papers' figures do not have; of
# weights that are downloaded.
LEFT_OUT = ("attributes", "captions", "fid", "conditional_fid", "one_to_many")


def random_matchers(classifiers):
    """Matching networks as large as classifiers, untrained."""

    def embed(x):
        logits = classifiers[next(iter(classifiers))].apply(x)[1]
        return logits / jax.numpy.linalg.norm(logits, axis=-1, keepdims=True)

    pairs = {(x, y): 1.0 for x in classifiers for y in classifiers if x != y}
    return Matchers(dict.fromkeys(classifiers, jax.jit(embed)), pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    names = [name for name in METRICS if name not in LEFT_OUT]
    parser.add_argument("--metrics", nargs="+", default=names, choices=names)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    generator = np.random.default_rng(0)
    shape = (max(options.examples, step.BATCH), 28, 28, 3)
    images = {
        f"m{i}": generator.integers(0, 256, shape, dtype=np.uint8) for i in range(5)
    }
    ours = step.Ours("mopoe", images)
    labels = generator.integers(0, 10, shape[0], dtype=np.int32)
    split = Split(images, labels).take(np.arange(options.examples))
    judges = evaluation.random_classifiers(ours.shapes)
    data = EvaluationData(
        split,
        split,
        judges,
        evaluation.BATCH,
        random_matchers(judges),
        second_classifiers=judges,
    )
    config = ours.config.eval.copy_and_resolve_references()
    config.metrics = options.metrics
    rows, times = [], []

    def announce(name):
        times.append(time.perf_counter())
        rows.append({"metric": name})
        print(name, flush=True)

    chosen = {
        name: (METRICS[name].compute, needs.supplied(name, config, "data"))
        for name in options.metrics
    }
    metrics = {
        name: lambda *given, own=own, more=more: own(*given, **more)
        for name, (own, more) in chosen.items()
    }
    evaluate.evaluate_member(
        metrics,
        evaluate.compile_model(ours.model),
        ours.params,
        data,
        jax.random.key(0),
        announce,
    )
    times.append(time.perf_counter())
    for row, seconds in zip(rows, np.diff(times), strict=True):
        row["seconds"] = float(seconds)
    rows.append({"metric": "all", "seconds": times[-1] - times[0]})
    print(tabulate(rows, headers="keys", floatfmt=".1f"))
    ran = f"metrics --examples {options.examples}"
    if options.metrics != names:
        ran += f" --metrics {' '.join(options.metrics)}"
    reports.write(options.out, ran, rows)


if __name__ == "__main__":
    command.call(main)
