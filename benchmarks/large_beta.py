"""Why the published MVAE fails at large beta, and that this one does not.

python -m benchmarks.large_beta [--steps 2500] [--out large_beta.json]

Trains MVAE on PolyDigits at beta = 9 and 32 in two forms: the product of experts in
variance space with free log-variances, as the released code computes it, and the
log-space product of bounded log-variances of this project. Reports, for each member,
the step by which it had diverged (if it did) and the largest log-variance that an
encoder's last layer emits, before the bound.
"""

import argparse
import contextlib
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from benchmarks import reports
from configs import polydigits
from experiments.running import command, datasets
from mmvae_jax import models
from mmvae_jax.data import prepared
from mmvae_jax.data.dataset import to_unit_interval
from mmvae_jax.mathematics import distributions, posteriors, subset_kl
from mmvae_jax.networks import vectors
from mmvae_jax.training import loop, mapping, sweep
from mmvae_jax.training.execution import compile_steps, init_states
from mmvae_jax.training.step import vae_task
from mmvae_jax.types import Gaussian

FREE = 1e6  # a bound that does nothing


def published_product(experts, mask, prior_expert):
    """`posteriors.product_of_experts` in variance space, with the released epsilon."""
    keep = posteriors.append_axes(jnp.asarray(mask), 3)
    prior = posteriors.append_axes(jnp.where(prior_expert, 1.0, 0.0), 2)
    precision = jnp.where(keep, 1 / (jnp.exp(experts.log_variance) + 1e-8), 0.0)
    total = jnp.sum(precision, axis=0) + prior
    mean = jnp.sum(precision * experts.mean, axis=0) / total
    return Gaussian(mean, jnp.log(1 / total))


def published_kl(experts, mixture, weights):
    """`subset_kl.mixture_kl` by the published product."""
    components = jax.vmap(published_product, in_axes=(None, 0, 0))(
        experts, jnp.asarray(mixture.masks), jnp.asarray(mixture.prior_expert)
    )
    return jnp.sum(weights * distributions.kl_to_standard_gaussian(components), axis=0)


@contextlib.contextmanager
def published_form():
    """Models made within compute as the released code does, without a bound."""
    with (
        mock.patch.object(posteriors, "product_of_experts", published_product),
        mock.patch.object(subset_kl, "mixture_kl", published_kl),
        mock.patch.object(vectors, "LOG_VARIANCE_BOUND", FREE),
    ):
        yield


def train_members(config, dataset):
    """Rows: beta, seed, divergence, largest raw log-variance on test examples."""
    images = dataset.train.modalities
    model = models.make_model(config, {m: x.shape[1:] for m, x in images.items()})
    task = vae_task(model)
    members = sweep.grid(config.sweep)
    hyper, keys = sweep.stack_hyper(members), sweep.stack_keys(members)
    execution = mapping.choose_execution(
        "auto", 0, task.convolutions, jax.default_backend()
    )
    batch = {m: x[: config.train.batch_size] for m, x in images.items()}
    diverged = {}

    def log(step, metrics, finite):
        for k in np.flatnonzero(~finite):
            diverged.setdefault(int(k), step)

    state = loop.fit(
        compile_steps(task, execution),
        init_states(task, hyper, keys, batch),
        hyper,
        keys,
        jax.device_put(images),
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        data_seed=0,
        execution=execution,
        events=loop.Events(log_every_steps=50, log=log),
    )
    test = {m: to_unit_interval(x) for m, x in dataset.test.modalities.items()}
    rows = []
    for k, member in enumerate(members):
        bounded = model.encode(sweep.member(state.params, k), test).log_variance
        share = np.asarray(bounded, np.float64) / vectors.LOG_VARIANCE_BOUND
        raw = vectors.LOG_VARIANCE_BOUND * np.arctanh(np.clip(share, -1, 1 - 1e-7))
        rows.append(
            {
                "beta": member.beta,
                "seed": member.seed,
                "diverged by step": diverged.get(k),
                "largest raw log-variance": float(raw.max()),
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2_500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = polydigits.get_config("mvae")
    config.sweep.beta = (9.0, 32.0)
    config.train.num_steps = options.steps
    dataset = prepared.load(datasets.prepare(config.data))
    with published_form():
        published = train_members(config, dataset)
    rows = [{"form": "published", **row} for row in published]
    rows += [{"form": "log-space", **row} for row in train_members(config, dataset)]
    print(tabulate(rows, headers="keys", missingval="never"))
    ran = f"large_beta --steps {options.steps}"
    reports.write(options.out, ran, rows, dataset=dataset.name)


if __name__ == "__main__":
    command.call(main)
