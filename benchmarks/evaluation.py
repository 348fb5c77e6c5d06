"""Times all coherences of a model against MultiVae's evaluator.

python -m benchmarks.evaluation [--examples 1000] [--turns 3] [--out evaluation.json]

MoPoE on the convolutional networks of `benchmarks.step`, random test examples and
classifiers with random parameters: the time does not depend on what they show. Ours
are the 31 subsets and 5 targets, theirs 30 subsets (not the full set) and 5 targets,
and joint coherence on as many samples as there are examples; batches of 500.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from tabulate import tabulate

from benchmarks import peer, reports, step
from experiments.running import command
from mmvae_jax import networks
from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation import evaluate
from mmvae_jax.evaluation.metric import EvaluationData, Reader
from mmvae_jax.evaluation.metrics import coherence

BATCH = 500


def random_classifiers(shapes):
    """Our digit classifiers, untrained."""
    network = networks.make_classifier("conv", next(iter(shapes.values())), 10)
    variables = jax.jit(network.init)(jax.random.key(0), np.zeros((1, 28, 28, 3)))
    apply = jax.tree_util.Partial(jax.jit(network.apply), variables)
    return dict.fromkeys(shapes, Reader(apply, 0.1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    num = options.examples
    generator = np.random.default_rng(0)
    shape = (max(num, step.BATCH), 28, 28, 3)
    images = {
        f"m{i}": generator.integers(0, 256, shape, dtype=np.uint8) for i in range(5)
    }
    ours = step.Ours("mopoe", images)
    model = evaluate.compile_model(ours.model)
    labels = generator.integers(0, 10, num, dtype=np.int32)
    classifiers = random_classifiers(ours.shapes)

    def parts(num):
        """Evaluation of `num` examples: our function, and the peer's arguments."""
        own = Split({m: x[:num] for m, x in images.items()}, labels[:num])
        theirs = (own.modalities, own.labels, BATCH)
        return EvaluationData(own, own, classifiers, BATCH), theirs

    reason = peer.why_not()
    with tempfile.TemporaryDirectory() as folder:
        other = None
        if reason is None:
            other = peer.Peer("mopoe", ours.config, ours.shapes, ours.params, images)
        times = {"ours": [], "peer": []}
        # A batch first, which compiles.
        for turn, count in enumerate([min(BATCH, num), *[num] * options.turns]):
            given, theirs = parts(count)
            start = time.perf_counter()
            coherence.coherence(model, ours.params, given, jax.random.key(0))
            times["ours"] += [time.perf_counter() - start] if turn else []
            if other is None:
                continue
            other.prepare_evaluation(*theirs, folder)
            start = time.perf_counter()
            other.evaluate()
            times["peer"] += [time.perf_counter() - start] if turn else []
    row = {"examples": num, "seconds": statistics.median(times["ours"])}
    row["peer"] = reason or statistics.median(times["peer"])
    if reason is None:
        row["of the peer's time"] = row["seconds"] / row["peer"]
    print(tabulate([row], headers="keys", floatfmt=".3g"))
    ran = f"evaluation --examples {num} --turns {options.turns}"
    reports.write(options.out, ran, [row])


if __name__ == "__main__":
    command.call(main)
