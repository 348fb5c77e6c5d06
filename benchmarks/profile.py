"""Where the time of a training step goes, by the layers of the model.

python -m benchmarks.profile [--model mvae] [--form auto] [--steps 8] [--top 25]
    [--out profile.json]

The networks and the batch of `benchmarks.step`, traced by jax.profiler. The times are
those of XLA's operations, each of which may use all cores or one, so that their sum
is near the wall time where they follow each other, as in a loop on a CPU.

On GPUs, XLA's command buffers would hide the names of operations. This command runs
without them, its wall time too; `benchmarks.step` has the time with them.
"""

import argparse
import collections
import gzip
import json
import os
import re
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from tabulate import tabulate

from benchmarks import peer, reports, step
from experiments.running import command
from mmvae_jax.networks import layers


def name_operations():
    """Keeps operations of GPUs out of command buffers; before JAX looks for devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer=".strip()


def trace(function):
    """Milliseconds of every operation of XLA while `function` runs: name -> ms."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            function()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    times = collections.Counter()
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if event.get("ph") == "X" and name:
            times[name] += event["dur"] / 1e3
    return times


def sources(program):
    """Operation -> where it is written: what JAX calls its name."""
    found = {}
    for line in program.as_text().splitlines():
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
        source = re.search(r'op_name="([^"]*)"', line)
        if match:
            found[match[1]] = source[1] if source else ""
    return found


def layer_of(source):
    """A line of the table: the layer and the direction of an operation."""
    parts = source.split("/")
    is_backward = "transpose(jvp" in source
    for i, part in enumerate(parts):
        if "Encoder" in part or "Decoder" in part:
            network = re.search(r"\w*(?:En|De)coder", part)[0]
            # Activations are no modules of their own.
            layer = parts[i + 1] if len(parts) > i + 2 else "activations"
            if "(" in layer:
                layer = "activations"
            return network, layer, "backward" if is_backward else "forward"
    return "", "rest of the step", ""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=peer.MODELS, default="mvae")
    parser.add_argument("--form", choices=layers.FORMS, default="auto")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--top", type=int, default=25, help="single operations listed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name_operations()
    command.keep_memory()
    generator = np.random.default_rng(0)
    shape = (step.NUM_EXAMPLES, 28, 28, 3)
    images = {
        f"m{i}": generator.integers(0, 256, shape, dtype=np.uint8) for i in range(5)
    }
    ours = step.Ours(options.model, images, options.form)
    # The first call compiles, the next ones find out how many steps a call may take.
    for _ in range(4):
        ours.steps(options.steps)
    start = time.perf_counter()
    ours.steps(options.steps)
    wall = (time.perf_counter() - start) / options.steps * 1e3
    times = trace(lambda: ours.steps(options.steps))
    named = sources(ours.compiled(options.steps))
    by_layer, single = collections.Counter(), collections.Counter()
    for name, total in times.items():
        kind = re.sub(r"[.\d]+$", "", name)
        if kind in ("while", "call"):  # what is in them is listed by itself
            continue
        by_layer[layer_of(named.get(name, ""))] += total / options.steps
        single[kind] += total / options.steps
    rows = [
        {"network": key[0], "layer": key[1], "pass": key[2], "ms a step": value}
        for key, value in by_layer.most_common()
    ]
    kinds = [
        {"operation": kind, "ms a step": value}
        for kind, value in single.most_common(options.top)
    ]
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    print(tabulate(kinds, headers="keys", floatfmt=".2f"))
    print(
        f"{options.model}, form {options.form}: {wall:.0f} ms a step, and "
        f"{sum(by_layer.values()):.0f} ms of operations"
    )
    ran = f"profile --model {options.model} --form {options.form}"
    reports.write(
        options.out,
        f"{ran} --steps {options.steps}",
        rows,
        operations=kinds,
        wall_ms=wall,
    )


if __name__ == "__main__":
    command.call(main)
