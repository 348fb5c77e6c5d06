"""Times a start on prepared data, up to the first training step.

python -m benchmarks.startup [--config configs/polymnist.py:mopoe]
    [--digits_dir DIR] [--turns 3] [--out startup.json]

Every turn is a new process, as a user's run is: it imports, reads the data, builds the
model, initialises it, compiles (or finds the program in JAX's cache, which experiments
fill) and takes one step, without the run's own files. The first turn has neither data
nor programs, and is shown apart.
Without --digits_dir, random images of MNIST's number and size take its place.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

from benchmarks import data, reports
from experiments.running import command

# The parts in their order, each ended by a mark on the clock.
START = """
import json, sys, time
begin = time.perf_counter()
marks = {}
def mark(name):
    marks[name] = time.perf_counter() - begin - sum(marks.values())
import importlib.util
from pathlib import Path
import jax
from experiments.running import build, command, session, signals
from mmvae_jax.training import loop, stages
mark("imports")
path, argument = sys.argv[1].split(":")
spec = importlib.util.spec_from_file_location("config", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
config = module.get_config(argument)
config.data.update(json.loads(sys.argv[2]))
command.keep_programs()
command.keep_memory()
built = build.build(config)
mark("data and model")
prepared = session.prepare_program(built, Path(sys.argv[3]))
jax.block_until_ready(prepared.state)
mark("initial parameters")
data = jax.block_until_ready(jax.device_put(prepared.data))
mark("data to the device")
state = stages.fit(
    built.task, prepared._replace(data=data), prepared.state, built.hyper, built.keys,
    num_steps=1, batch_size=config.train.batch_size, data_seed=0,
    events=loop.Events(),
)
jax.block_until_ready(state)
mark("program and first step")
marks["all"] = sum(marks.values())
print(json.dumps(marks))
"""


def measure(options, folder):
    """The rows of the table: one start after another, from an empty folder."""
    digits_dir = options.digits_dir or folder / "digits"
    if not options.digits_dir:
        digits_dir.mkdir()
        data.write_random_digits(digits_dir)
    places = {"data_dir": str(folder / "data"), "digits_dir": str(digits_dir)}
    rows = []
    for turn in range(options.turns + 1):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                START,
                options.config,
                json.dumps(places),
                str(folder),
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "caches")},
        )
        marks = json.loads(done.stdout.splitlines()[-1])
        rows.append({"start": "first" if not turn else f"later {turn}", **marks})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/polymnist.py:mopoe")
    parser.add_argument("--digits_dir", help="folder with the idx files of MNIST")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    print(tabulate(rows, headers="keys", floatfmt=".1f"))
    digits = "mnist" if options.digits_dir else "random"
    ran = f"startup --config {options.config} --turns {options.turns}"
    reports.write(options.out, ran, rows, digits=digits)


if __name__ == "__main__":
    command.call(main)
