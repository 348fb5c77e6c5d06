"""Small tasks to train on, and comparisons of what was trained."""

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax import models
from mmvae_jax.training import loop, stages, sweep
from mmvae_jax.training.execution import (
    Execution,
    compile_steps,
)
from mmvae_jax.training.mapping import Prepared
from mmvae_jax.training.step import (
    Task,
    init_state,
    vae_task,
)
from mmvae_jax.training.sweep import Member

NUM, BATCH, DATA_SEED = 40, 8, 5
NUM_STEPS = 30  # of the whole run, where a model has stages
SHAPES = {"m0": (2, 2, 1), "m1": (2, 2, 1)}
MEMBERS = [Member(0.5, 3e-3, 0), Member(2.0, 1e-2, 1), Member(4.0, 1e-3, 0)]


def copy(tree):
    """Programs donate the state they are given."""
    return jax.tree.map(jnp.copy, tree)


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def bits_differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


class Setup:
    """A task with its data, and compiled programs for each execution."""

    def __init__(self, task, data):
        self.task, self.data, self.programs, self.starts = task, data, {}, {}

    def program(self, execution, stage=0):
        if execution not in self.programs:
            self.programs[execution] = tuple(
                compile_steps(own, execution) for own in self.task.tasks()
            )
        return self.programs[execution][stage]

    def start(self, members):
        """State, hyper-parameters and keys before the first step."""
        hyper, keys = sweep.stack_hyper(members), sweep.stack_keys(members)
        for k, member in enumerate(members):
            if member not in self.starts:
                state = init_state(
                    self.task, sweep.member(hyper, k), keys[k], self.data
                )
                self.starts[member] = jax.device_get(state)
        states = [self.starts[member] for member in members]
        return jax.tree.map(lambda *x: jnp.array(np.stack(x)), *states), hyper, keys

    def fit(self, members, execution, num_steps, state=None, hyper=None, **options):
        start, own_hyper, keys = self.start(members)
        self.program(execution)
        given = {"batch_size": BATCH, "data_seed": DATA_SEED, "events": loop.Events()}
        return stages.fit(
            self.task,
            Prepared(self.programs[execution], execution, None, self.data),
            start if state is None else copy(state),
            own_hyper if hyper is None else hyper,
            keys,
            num_steps=num_steps,
            **given | options,
        )


def noisy_regression():
    """Small, and different for every batch, key, beta and learning rate."""

    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    def loss(params, hyper, key, batch):
        target = jnp.mean(batch["x"].astype(jnp.float32), axis=0) / 255
        noisy = params["w"] + 0.1 * jax.random.normal(key, (3,))
        value = jnp.sum(jnp.square(noisy - target)) + hyper.beta * jnp.sum(
            jnp.square(params["w"])
        )
        return value, {"train/loss": value, "train/target": jnp.sum(target)}

    rng = np.random.default_rng(1)
    data = {"x": jnp.asarray(rng.integers(0, 256, (NUM, 3), dtype=np.uint8))}
    return Setup(Task(init, loss), data)


def _scale(shape):
    """Of random weights: wide layers with larger ones would enlarge rounding errors."""
    return min(0.5, 1 / np.sqrt(shape[-2])) if len(shape) > 1 else 0.5


def small_vae(name, tiny_config, tiny_images):
    config = tiny_config(name, latent_dim=2)
    if name == "custom":
        config.model.options.subsets = ((0,), (0, 1))
    if name == "nexus":  # as small as the rest
        config.model.options.update({"message_dim": 4, "top_width": 4})
    config.modality.network_options.widths = ()
    model = models.make_model(config, SHAPES)
    rng = np.random.default_rng(0)
    base = jax.tree.map(
        lambda x: np.float32(_scale(x.shape) * rng.normal(size=x.shape)),
        jax.eval_shape(model.init, jax.random.key(0)),
    )

    def init(key):  # compiles faster than the model's own
        return jax.tree.map(lambda x: x * (1 + 0.1 * jax.random.normal(key)), base)

    task = vae_task(model, num_steps=NUM_STEPS)._replace(init=init)
    return Setup(task, jax.device_put(tiny_images(SHAPES, NUM)))


MAP, VMAP = Execution("map", 16), Execution("vmap", 16)


# Settings of a run that is as small as it can be, with all metrics.
WITH_ALL_METRICS = {
    "model.latent_dim": 4,
    "modality.network_options.widths": (16,),
    "sweep.beta": (1.0,),
    "sweep.seed": (0,),
    "train.num_steps": 20,
    "train.batch_size": 16,
    "train.log_every_steps": 10,
    "train.checkpoint_every_steps": 20,
    "classifier.network": "mlp",
    "classifier.num_steps": 40,
    "matcher.network": "mlp",
    "matcher.num_steps": 40,
    "eval.metrics": ("all",),
    "eval.num_examples": 80,
    "eval.batch_size": 40,
    "eval.importance_samples": 2,
}
