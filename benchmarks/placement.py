"""Times a training step with the data in host memory against data on the device.

python -m benchmarks.placement [--model mopoe] [--steps 8] [--turns 3]
    [--out placement.json]

The convolutional networks of `benchmarks.step`, PolyMNIST's 60,000 x 5 images of 28 x
28 x 3, random ones. Both trainings are the loop that users run and take turns; with
the data on the host, each turn sends its first examples before it steps, which a run
does once.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from tabulate import tabulate

from benchmarks import reports, step
from experiments.running import command
from mmvae_jax.training import examples, loop

NUM_EXAMPLES = 60_000


class Placed(step.Ours):
    """One of our models, with its data on the device or in host memory."""

    def __init__(self, name, images, place):
        super().__init__(name, images)
        window = examples.window_steps(
            place, images, step.BATCH, self.execution.steps_per_call, 0
        )
        self.execution = self.execution._replace(window=window)
        if window:
            self.data = images

    def timed(self, num):
        """Seconds of a step of the loop, over `num` steps."""
        times = []

        def progress(at, seconds, is_first):
            times.append((at, seconds))

        before = int(self.state.step[0])
        self.state = loop.fit(
            self.program,
            self.state,
            self.hyper,
            self.keys,
            self.data,
            num_steps=before + num,
            batch_size=step.BATCH,
            data_seed=0,
            execution=self.execution,
            events=loop.Events(progress=progress),
        )
        jax.block_until_ready(self.state)
        ends = [before, *(at for at, _ in times)]
        spent = sum(s * n for (_, s), n in zip(times, np.diff(ends), strict=True))
        return spent / num


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mopoe")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    generator = np.random.default_rng(0)
    images = {
        f"m{i}": generator.integers(0, 256, (NUM_EXAMPLES, 28, 28, 3), dtype=np.uint8)
        for i in range(5)
    }
    placed = {
        place: Placed(options.model, images, place)
        for place in (examples.DEVICE, examples.HOST)
    }
    times = {place: [] for place in placed}
    start = time.perf_counter()
    for turn in range(1 + options.turns):  # the first one compiles
        for place, own in placed.items():
            seconds = own.timed(options.steps)
            times[place] += [seconds] if turn else []
    medians = {place: statistics.median(own) for place, own in times.items()}
    row = {
        "model": options.model,
        "device_s": medians[examples.DEVICE],
        "host_s": medians[examples.HOST],
        "host_over_device": medians[examples.HOST] / medians[examples.DEVICE],
        "steps_sent_at_once": placed[examples.HOST].execution.window,
    }
    print(tabulate([row], headers="keys", floatfmt=".3g"))
    print(f"{time.perf_counter() - start:.0f} s")
    ran = f"placement --model {options.model} --steps {options.steps}"
    reports.write(options.out, f"{ran} --turns {options.turns}", [row])


if __name__ == "__main__":
    command.call(main)
