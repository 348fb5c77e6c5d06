"""Writes training.json: what tests/models/test_golden.py compares with.

    PYTHONPATH=. python tests/golden/make_training_golden.py

Losses and terms of every model over twenty steps of two members: of a model with stages
in each of them. Models that the file does not have yet are added to it. The file in the
repository was written before products of experts and their KL terms were made faster
(2026-11-21): what changes them changes results, and needs a reason in its commit.
"""

import json
from pathlib import Path

import numpy as np

from configs import base
from mmvae_jax import models
from mmvae_jax.training import loop, stages, sweep
from mmvae_jax.training.execution import Execution, compile_steps, init_states
from mmvae_jax.training.mapping import Prepared
from mmvae_jax.training.step import vae_task

PATH = Path(__file__).with_name("training.json")
NAMES = tuple(name for name in models.MODELS if name != "custom")
SHAPES = {"m0": (6, 6, 1), "m1": (6, 6, 1), "m2": (6, 6, 3)}
MEMBERS = [sweep.Member(0.5, 1e-3, 0), sweep.Member(2.5, 3e-3, 1)]
NUM_EXAMPLES, BATCH, NUM_STEPS = 96, 24, 20


def train_one(name):
    """tag -> its mean over the steps, of each member."""
    config = base.parse_arg(base.get_config(), name)
    config.model.latent_dim = 6
    config.modality.network = "mlp"
    config.modality.network_options.widths = (12,)
    if "num_samples" in config.model.options:
        config.model.options.num_samples = 2
    if name == "nexus":  # of wide networks rounding errors grow within the steps
        config.model.options.update({"message_dim": 12, "top_width": 12})
    rng = np.random.default_rng(0)
    # Bright and dark halves, in every modality of an example alike, and noise.
    tone = rng.integers(0, 2, (NUM_EXAMPLES, 1, 1, 1)) * 120
    data = {
        m: (tone + rng.integers(0, 120, (NUM_EXAMPLES, *shape))).astype(np.uint8)
        for m, shape in SHAPES.items()
    }
    task = vae_task(models.make_model(config, SHAPES), num_steps=NUM_STEPS)
    hyper, keys = sweep.stack_hyper(MEMBERS), sweep.stack_keys(MEMBERS)
    execution = Execution("map", NUM_STEPS)
    batch = {m: x[:BATCH] for m, x in data.items()}
    found = {}

    def log(step, metrics, finite):
        assert finite.all() and (task.stages or step == NUM_STEPS)
        found.update({tag: values.tolist() for tag, values in metrics.items()})

    programs = tuple(compile_steps(own, execution) for own in task.tasks())
    state = init_states(task, hyper, keys, batch)
    stages.fit(
        task,
        Prepared(programs, execution, state, data),
        state,
        hyper,
        keys,
        num_steps=NUM_STEPS,
        batch_size=BATCH,
        data_seed=0,
        events=loop.Events(NUM_STEPS, log),
    )
    return found


if __name__ == "__main__":
    # Rows that are there stay as they were written.
    rows = json.loads(PATH.read_text()) if PATH.exists() else {}
    rows |= {name: train_one(name) for name in NAMES if name not in rows}
    PATH.write_text(json.dumps(rows, indent=1) + "\n")
