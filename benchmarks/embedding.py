"""Times embedding by mmvae_jax.embed against MultiVae's `encode`, same parameters.

python -m benchmarks.embedding [--examples 100000] [--turns 3] [--models mvae ...]
    [--batch 500] [--out embedding.json]

Tuples of five PolyMNIST images (28 x 28 x 3, random bytes in host memory on both sides)
become means of q(z|x), by the convolutional networks of `benchmarks.step`. MultiVae is
given batches of the same size, scaled there from bytes, without gradients. Both means
are compared first; then both take turns. Without the extra `bench` ours is timed alone.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from tabulate import tabulate

import mmvae_jax
from benchmarks import peer, reports, step
from experiments.running import command
from mmvae_jax.interface import trained
from mmvae_jax.interface.description import IMAGES, Description, Modality
from mmvae_jax.training.sweep import Member

# Of these what MultiVae encodes to is the mean of the joint posterior.
MODELS = ("mvae", "mvtcae", "jmvae_kl", "crmvae")
TOLERANCE = 1e-4  # of means, of the largest one


def as_trained(ours, batch_size):
    """One of `step.Ours` as users have it, with the batch size of `embed`."""
    ours.config.eval.batch_size = batch_size
    modalities = (Modality(m, IMAGES, shape) for m, shape in ours.shapes.items())
    one = trained.build(
        ours.config, Description("random", tuple(modalities)), None, Member(1, 1, 0), 0
    )
    return one._replace(params=ours.params)


def measure(name, images, num, turns, batch_size):
    """One row of the table."""
    ours = step.Ours(name, {m: x[: step.NUM_EXAMPLES] for m, x in images.items()})
    model = as_trained(ours, batch_size)
    row = {"model": name, "examples": num, "batch": batch_size}
    reason, other = peer.why_not(), None
    few = {m: x[:batch_size] for m, x in images.items()}
    mean = mmvae_jax.embed(model, few).mean  # compiles
    functions = {"ours": lambda: mmvae_jax.embed(model, images)}
    if reason is None:
        other = peer.Peer(name, ours.config, ours.shapes, ours.params, images)
        theirs = other.embed(batch_size, batch_size)
        row["difference"] = float(np.abs(theirs - mean).max() / np.abs(mean).max())
        if row["difference"] > TOLERANCE:
            raise SystemExit(f"error: embeddings of {name} differ: {row['difference']}")
        functions["peer"] = lambda: other.embed(num, batch_size, is_returned=False)
    times = step.take_turns(turns, is_compiled=True, **functions)
    row["seconds"] = statistics.median(times["ours"])
    if other is None:
        return row | {"peer": reason}
    other.close()
    ratios = [o / p for o, p in zip(times["ours"], times["peer"], strict=True)]
    row["peer"] = statistics.median(times["peer"])
    row["of the peer's time"] = statistics.median(ratios)
    row["from"], row["to"] = min(ratios), max(ratios)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["mvae"])
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    generator = np.random.default_rng(0)
    shape = (options.examples, 28, 28, 3)
    images = {
        f"m{i}": generator.integers(0, 256, shape, dtype=np.uint8) for i in range(5)
    }
    ran = f"embedding --examples {options.examples} --turns {options.turns}"
    ran += f" --models {' '.join(options.models)} --batch {options.batch}"
    rows = []
    for name in options.models:
        rows.append(
            measure(name, images, options.examples, options.turns, options.batch)
        )
        reports.write(options.out, ran, rows)
        print(tabulate(rows, headers="keys", floatfmt=".3g"), flush=True)


if __name__ == "__main__":
    command.call(main)
