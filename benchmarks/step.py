"""Times one training step of each model against the same step in MultiVae.

python -m benchmarks.step [--models mopoe mvae ...] [--turns 7] [--steps 3]
    [--out step.json]

The convolutional networks of the published PolyMNIST code: 5 modalities of 28 x 28 x
3, D = 512, batch 256, Laplace likelihood of scale 0.75, Adam; examples are bytes in
memory, random ones. Both sides have as many parameters, and on the same ones the same
loss, which is checked first; then they take turns, and medians are compared. Without
the extra `bench` the peer's column says what is not installed.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from tabulate import tabulate

from benchmarks import peer, reports
from configs import polymnist
from experiments.running import command
from mmvae_jax import models
from mmvae_jax.training import execution, loop, mapping, step, sweep

NUM_EXAMPLES = 2_000
BATCH = 256
# Posteriors this narrow leave the loss nearly without noise.
NARROW = -8.0
# In nats of each other: noise that is left, and which subset an example was given.
TOLERANCE = 1e-4


def configure(name):
    """The config of a model, and the beta and factor at which its peer has its loss."""
    config = polymnist.get_config(name)
    released = {"prior_expert": "released", "weights": "released"}
    options = config.model.options
    options.update({name: x for name, x in released.items() if name in options})
    return config, peer.MODELS[name][1]["beta"]


class Ours:
    """One of our models, trained as `experiments.run` trains it."""

    def __init__(self, name, images, form="auto"):
        config, beta = configure(name)
        config.modality.network_options.form = form
        self.images = images
        self.shapes = {m: x.shape[1:] for m, x in images.items()}
        self.config = config
        self.model = models.make_model(config, self.shapes)
        task = step.vae_task(self.model)
        members = [sweep.Member(beta, 5e-4, 0)]
        self.hyper, self.keys = sweep.stack_hyper(members), sweep.stack_keys(members)
        batch = {m: x[:BATCH] for m, x in images.items()}
        self.execution = mapping.choose_execution(
            "auto", 0, task.convolutions, jax.default_backend()
        )
        self.program = execution.compile_steps(task, self.execution)
        self.data = jax.device_put(images)
        self.state = execution.init_states(task, self.hyper, self.keys, batch)
        # On the device: NumPy's arrays would be sent there at every call.
        self.params = sweep.member(self.state.params, 0)
        self.num_parameters = sum(x.size for x in jax.tree.leaves(self.params))

    def loss(self, params, rows):
        """The loss of these examples; products in float32 on every device."""
        batch = {m: np.float32(x[rows]) / 255 for m, x in self.images.items()}
        with jax.default_matmul_precision("float32"):
            value, _ = jax.jit(self.model.objective)(
                params, batch, jax.random.key(0), self.hyper.beta[0]
            )
        return float(value)

    def compiled(self, num):
        """The program of up to `num` steps, as XLA compiled it."""
        rows = np.zeros((self.execution.steps_per_call, BATCH), np.int32)
        arguments = (self.state, self.hyper, self.keys, self.data, rows, num)
        return self.program.lower(*arguments).compile()

    def steps(self, num):
        """`num` steps of the loop that users run."""
        start = int(self.state.step[0])
        self.state = loop.fit(
            self.program,
            self.state,
            self.hyper,
            self.keys,
            self.data,
            num_steps=start + num,
            batch_size=BATCH,
            data_seed=0,
            execution=self.execution,
        )
        jax.block_until_ready(self.state)


def narrow(params):
    """Parameters with which all posteriors are narrow, for comparing losses."""

    def change(path, x):
        names = [str(getattr(key, "key", "")) for key in path]
        if "log_variance" not in names:
            return x
        if names[-1] == "kernel":
            return np.zeros_like(x)
        return np.full_like(x, NARROW)

    return jax.tree_util.tree_map_with_path(change, params)


def bounded(params):
    """The same with our soft bound inverted: log-variances are exactly NARROW."""
    bound = 20.0
    raw = bound * np.arctanh(NARROW / bound)
    return jax.tree.map(lambda x: np.where(x == NARROW, np.float32(raw), x), params)


def take_turns(turns, is_compiled=False, **functions):
    """Seconds of functions that run one after the other: name -> [turns]."""
    times = {name: [] for name in functions}
    for turn in range(1 if is_compiled else 0, turns + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:  # the first one compiles
                times[name].append(time.perf_counter() - start)
    return times


def measure(name, images, turns, num_steps):
    """One row of the table."""
    ours = Ours(name, images)
    row = {"model": name, "parameters": ours.num_parameters}
    reason = peer.why_not()
    other = None
    rows = np.arange(BATCH)
    if reason is None:
        other = peer.Peer(name, ours.config, ours.shapes, narrow(ours.params), images)
        losses = (
            ours.loss(bounded(narrow(ours.params)), rows),
            other.loss(rows),
        )
        if other.num_parameters != ours.num_parameters:
            raise SystemExit(
                f"error: {name} has {ours.num_parameters} parameters here and "
                f"{other.num_parameters} there"
            )
        if abs(losses[0] - losses[1]) > TOLERANCE * abs(losses[1]):
            raise SystemExit(f"error: losses of {name} differ: {losses}")
        row["losses"] = losses
    functions = {"ours": lambda: ours.steps(num_steps)}
    if other is not None:
        generator = np.random.default_rng(0)
        functions["peer"] = lambda: other.steps(
            [generator.choice(NUM_EXAMPLES, BATCH) for _ in range(num_steps)]
        )
    times = take_turns(turns, **functions)
    row["seconds"] = statistics.median(times["ours"]) / num_steps
    if other is None:
        return row | {"peer": reason}
    other.close()
    ratios = [p / o for o, p in zip(times["ours"], times["peer"], strict=True)]
    row["peer"] = statistics.median(times["peer"]) / num_steps
    row["times as fast"] = statistics.median(ratios)
    row["from"], row["to"] = min(ratios), max(ratios)
    return row


def measure_subsets(images, turns, num_steps):
    """Cost of MoPoE's 31 subsets: its time over MVAE's, in turns of both."""
    several, one = (Ours(name, images) for name in ("mopoe", "mvae"))
    times = take_turns(
        turns,
        several=lambda: several.steps(num_steps),
        one=lambda: one.steps(num_steps),
    )
    ratios = [a / b for a, b in zip(times["several"], times["one"], strict=True)]
    return {"median": statistics.median(ratios), "from": min(ratios), "to": max(ratios)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=peer.MODELS, default=peer.MODELS)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command.keep_memory()
    with reports.own_programs():
        measure_all(options)


def measure_all(options):
    """Times everything and reports it."""
    generator = np.random.default_rng(0)
    shape = (NUM_EXAMPLES, 28, 28, 3)
    images = {
        f"m{i}": generator.integers(0, 256, shape, dtype=np.uint8) for i in range(5)
    }
    ran = f"step --models {' '.join(options.models)} --turns {options.turns}"
    ran = f"{ran} --steps {options.steps}"
    rows = []
    for name in options.models:
        rows.append(measure(name, images, options.turns, options.steps))
        reports.write(options.out, ran, rows)
        print(tabulate(rows, headers="keys", floatfmt=".3g"), flush=True)
    if {"mopoe", "mvae"} <= set(options.models):
        subsets = measure_subsets(images, options.turns, options.steps)
        print(
            "MoPoE-VAE takes {median:.3f} of MVAE's time ({from:.3f} to "
            "{to:.3f})".format(**subsets)
        )
        reports.write(options.out, ran, rows, mopoe_over_mvae=subsets)


if __name__ == "__main__":
    command.call(main)
