"""Trains on several devices, and prints what tests of devices ask about it.

    python tests/several_devices.py '[["regression", "map", [4, 1]], ...]'

A line of JSON for each case: how far the result is from that of one device, and the
collectives of the compiled program. "vmap 2" maps two members at once; of "NAME
poisoned" the line says what a member that diverges changes in the others. The number of
devices is in XLA_FLAGS.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from mmvae_jax import models
from mmvae_jax.training import devices, loop, stages, sweep
from mmvae_jax.training.execution import Execution, compile_steps, init_states
from mmvae_jax.training.mapping import Prepared
from mmvae_jax.training.step import Task, vae_task
from mmvae_jax.types import OBSERVED

# A multiple of 11, as is each device's part; no other axis of anything is.
BATCH = 88
K, NUM_STEPS, STEPS_PER_CALL = 8, 20, 5
SHAPES = {"m0": (2, 2, 1), "m1": (2, 2, 1), "m2": (2, 2, 1)}
MEMBERS = [
    sweep.Member(beta, rate, seed)
    for beta in (0.5, 2.0)
    for rate in (1e-3, 3e-3)
    for seed in (0, 1)
]
POISONED = 3
COLLECTIVE = re.compile(
    r"= (.*?) ((?:all|collective|reduce-scatter|ragged)[\w-]*?)(?:-start)?\("
)


def regression():
    """Different for every example, beta and rate; noise for each example of a batch."""

    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    def loss(params, hyper, key, batch):
        x = batch["x"].astype(jnp.float32) / 255
        noise = jax.random.normal(key, x.shape)
        errors = jnp.sum(jnp.square(params["w"] * noise - x), axis=-1)
        value = jnp.mean(errors) + hyper.beta * jnp.sum(jnp.square(params["w"]))
        return value, {"train/loss": value, "train/noise": jnp.mean(noise[:, 0])}

    rng = np.random.default_rng(1)
    data = {"x": rng.integers(0, 256, (100, 3), dtype=np.uint8)}
    return Task(init, loss), data


def vae(task):
    """A model with the smallest networks: "mopoe", "mopoe conv", "mopoe missing"."""
    name, _, kind = task.partition(" ")
    config = base.parse_arg(base.get_config(), name)
    config.model.latent_dim = 6
    config.modality.network = "mlp"
    config.modality.network_options.widths = (7,)
    shapes = SHAPES
    if kind == "conv":
        config.modality.network = "conv"
        config.modality.network_options = {"channels": (2, 3)}
        shapes = dict.fromkeys(SHAPES, (8, 8, 1))
    if "num_samples" in config.model.options:
        config.model.options.num_samples = 2
    rng = np.random.default_rng(0)
    data = {
        m: rng.integers(0, 256, (100, *shape), dtype=np.uint8)
        for m, shape in shapes.items()
    }
    if kind == "missing":
        data[OBSERVED] = rng.integers(0, 2, (100, len(shapes))).astype(bool)
        data[OBSERVED][:, 0] = True
    return vae_task(models.make_model(config, shapes), num_steps=NUM_STEPS), data


def train_on(task, data, mapping, layout, members=MEMBERS):
    """The last state, what was logged, and the collectives of the program."""
    mapping, _, at_once = mapping.partition(" ")
    execution = Execution(mapping, STEPS_PER_CALL, "float32", layout, int(at_once or 0))
    hyper, keys = sweep.stack_hyper(members), sweep.stack_keys(members)
    programs = [compile_steps(own, execution) for own in task.tasks()]
    first = {m: x[:BATCH] for m, x in data.items()}
    state = init_states(task, hyper, keys, first, layout)
    arguments = (
        state,
        *devices.put_members((hyper, keys), layout),
        devices.put_shared(data, layout),
        np.zeros((STEPS_PER_CALL, BATCH), np.int32),
        1,
    )
    found = COLLECTIVE.findall(programs[0].lower(*arguments).compile().as_text())
    logged = []
    state = stages.fit(
        task,
        Prepared(tuple(programs), execution, state, data),
        state,
        hyper,
        keys,
        num_steps=NUM_STEPS,
        batch_size=BATCH,
        data_seed=3,
        events=loop.Events(
            8, lambda step, metrics, finite: logged.append((step, metrics, finite))
        ),
    )
    assert {program._cache_size() for program in programs} == {1}
    return jax.device_get(state), logged, found


def shapes_of(types):
    """(dtype, shape) of the arrays that one collective moves."""
    return [
        [dtype, [int(n) for n in shape.split(",") if n]]
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types)
    ]


def poison(task, data, mapping, layout):
    """The members left finite, and those of which every bit is as without poison."""
    members = list(MEMBERS)
    members[POISONED] = members[POISONED]._replace(beta=3e38)
    healthy, poisoned = (
        train_on(task, data, mapping, layout, given)[0] for given in (MEMBERS, members)
    )
    pairs = list(zip(jax.tree.leaves(healthy), jax.tree.leaves(poisoned), strict=True))
    return {
        "finite": poisoned.finite.tolist(),
        "same_bits": [
            all(a[k].tobytes() == b[k].tobytes() for a, b in pairs) for k in range(K)
        ],
    }


def main(cases):
    setups, alone = {}, {}
    for case, mapping, layout in cases:
        name = case.removesuffix(" poisoned")
        task, data = setups.setdefault(
            name, regression() if name == "regression" else vae(name)
        )
        if name != case:
            print(json.dumps(poison(task, data, mapping, layout)), flush=True)
            continue
        if (name, mapping) not in alone:
            alone[name, mapping] = train_on(task, data, mapping, (1, 1))
        expected, found = alone[name, mapping], train_on(task, data, mapping, layout)
        pairs = list(
            zip(jax.tree.leaves(expected[:2]), jax.tree.leaves(found[:2]), strict=True)
        )
        params = expected[0].params
        result = {
            "largest": max(float(np.max(np.abs(a))) for a in jax.tree.leaves(params)),
            "difference": max(
                float(np.max(np.abs(a - b)))
                for a, b in zip(
                    jax.tree.leaves(params),
                    jax.tree.leaves(found[0].params),
                    strict=True,
                )
            ),
            "logged": max(
                float(np.max(np.abs(a[1][tag] - b[1][tag]) / (1 + np.abs(a[1][tag]))))
                for a, b in zip(expected[1], found[1], strict=True)
                for tag in a[1]
            ),
            "same_bits": all(np.array_equal(a, b) for a, b in pairs),
            "collectives": [[kind, shapes_of(types)] for types, kind in found[2]],
            "num_params": sum(x[0].size for x in jax.tree.leaves(params)),
            "num_metrics": len(expected[0].totals),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main([(n, m, tuple(layout)) for n, m, layout in json.loads(sys.argv[1])])
