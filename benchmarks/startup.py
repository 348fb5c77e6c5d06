"""Times a start on prepared data, up to the first training step.

python -m benchmarks.startup [--config configs/polymnist.py:mopoe] [--data_dir data]
    [--turns 3] [--out startup.json]

Every turn is a new process, as a user's run is: it imports, reads the data, builds the
model, initialises it, compiles (or finds the program in JAX's cache, which experiments
fill) and takes one step. The first turn prepares what is missing and is shown apart.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

# The parts in their order, each ended by a mark on the clock.
START = """
import json, sys, time
begin = time.perf_counter()
marks = {}
def mark(name):
    marks[name] = time.perf_counter() - begin - sum(marks.values())
import importlib.util
import jax
from experiments import command, run
from mmvae_jax import sweeps, train
mark("imports")
path, argument = sys.argv[1].split(":")
spec = importlib.util.spec_from_file_location("config", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
config = module.get_config(argument)
config.data.update(json.loads(sys.argv[2]))
command.keep_programs()
command.keep_memory()
sweep = run.build(config, sweeps.grid(config.sweep), [])
mark("data and model")
examples = sweep.dataset.train.leaves()
first = {m: x[: config.train.batch_size] for m, x in examples.items()}
state = train.init_states(sweep.task, sweep.hyper, sweep.keys, first)
jax.block_until_ready(state)
mark("initial parameters")
data = jax.block_until_ready(jax.device_put(examples))
mark("data to the device")
state = train.fit(
    train.compile_steps(sweep.task, sweep.execution), state, sweep.hyper, sweep.keys,
    data, num_steps=1, batch_size=config.train.batch_size, data_seed=0,
    execution=sweep.execution,
)
jax.block_until_ready(state)
mark("program and first step")
marks["all"] = sum(marks.values())
print(json.dumps(marks))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/polymnist.py:mopoe")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--digits_dir", default="")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    places = {"data_dir": options.data_dir, "digits_dir": options.digits_dir}
    rows = []
    for turn in range(options.turns + 1):
        done = subprocess.run(
            [sys.executable, "-c", START, options.config, json.dumps(places)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        marks = json.loads(done.stdout.splitlines()[-1])
        rows.append({"start": "first" if not turn else f"later {turn}", **marks})
    print(tabulate(rows, headers="keys", floatfmt=".1f"))
    # Imported late: it imports JAX, which the turns should find idle.
    from benchmarks import reports

    ran = f"startup --config {options.config} --turns {options.turns}"
    reports.write(options.out, ran, rows)


if __name__ == "__main__":
    main()
