"""Times preparing and loading PolyMNIST, and drawing batches.

python -m benchmarks.data [--digits_dir DIR] [--out data.json]

Without --digits_dir as many random images take the place of MNIST: the recipe does
the same work, only the files come out a little larger.
"""

import argparse
import gzip
import resource
import struct
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tabulate import tabulate

from benchmarks import reports
from experiments.running import command, datasets
from mmvae_jax.data import batches, prepared

COUNTS = {"train": 60_000, "t10k": 10_000}


def write_random_digits(folder):
    """Four idx files of the size of MNIST."""
    generator = np.random.default_rng(0)
    for name, count in COUNTS.items():
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = generator.integers(0, 10, count, np.uint8)
        for kind, array in (
            (f"{name}-images-idx3", images),
            (f"{name}-labels-idx1", labels),
        ):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            packed = gzip.compress(head + array.tobytes(), compresslevel=1)
            (folder / f"{kind}-ubyte.gz").write_bytes(packed)


def seconds(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def measure(data_dir, digits_dir, translate_scale):
    """Times one variant; returns a row of the table."""
    config = ConfigDict(
        {
            "name": "polymnist",
            "data_dir": str(data_dir),
            "digits": "mnist",
            "digits_dir": str(digits_dir),
            "backgrounds_dir": "",
            "published_dir": "",
            "num_modalities": 5,
            "image_size": 28,
            "translate_scale": translate_scale,
            "repeated": False,
            "pairings": 1,
            "validation": 0,
            "quadrant": "",
            "label_modalities": (),
            "seed": 0,
        }
    )
    prepare_time, directory = seconds(datasets.prepare, config)
    load_time, dataset = seconds(prepared.load, directory)
    put_time, _ = seconds(
        lambda: jax.block_until_ready(jax.device_put(dataset.train.leaves()))
    )
    num_steps = 10 * (dataset.train.num_examples // 256)
    batch_time, _ = seconds(
        batches.batch_indices, 0, 0, num_steps, dataset.train.num_examples, 256
    )
    memory = sum(images.nbytes for images in dataset.train.modalities.values())
    return {
        "translate_scale": translate_scale,
        "prepare_s": prepare_time,
        "load_s": load_time,
        "put_on_device_s": put_time,
        "batch_indices_us_per_step": batch_time / num_steps * 1e6,
        "train_in_memory_mb": memory / 1e6,
        "files_mb": sum(p.stat().st_size for p in directory.iterdir()) / 1e6,
        "peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "fingerprint": dataset.fingerprint,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits_dir", help="folder with the idx files of MNIST")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        digits_dir = arguments.digits_dir or Path(folder) / "digits"
        if not arguments.digits_dir:
            digits_dir.mkdir()
            write_random_digits(digits_dir)
        rows = [measure(folder, digits_dir, scale) for scale in (1.0, 0.5)]
    shown = [{k: v for k, v in row.items() if k != "fingerprint"} for row in rows]
    print(tabulate(shown, headers="keys", floatfmt=".4g"))
    digits = "mnist" if arguments.digits_dir else "random"
    reports.write(arguments.out, "data", rows, digits=digits)


if __name__ == "__main__":
    command.call(main)
