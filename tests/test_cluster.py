"""A plan as tasks of Ray: what a local cluster of two workers leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import cluster, figures, plans
from mmvae_jax.errors import UsageError

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600
# Long enough to be killed between two checkpoints.
SCALE = """
from configs.scales import demo


def get_config():
    scale = demo.get_config()
    scale.description = "a test"
    scale.beta = (0.1, 1.0)
    scale.seed = (0, 1)
    scale.num_modalities = (1, 2)
    scale.metrics = ("elbo", "coherence", "matching")
    scale.metrics_by_modalities = ("elbo",)
    scale.changes = dict(
        model=dict(latent_dim=4),
        modality=dict(network_options=dict(widths=(16,))),
        data=dict(num_modalities=2, image_size=8, pairings=1),
        train=dict(
            num_steps=4_000,
            batch_size=16,
            log_every_steps=100,
            checkpoint_every_steps=200,
            steps_per_call=20,
        ),
        classifier=dict(num_steps=60, batch_size=64),
        matcher=dict(num_steps=60, batch_size=64),
        eval=dict(num_examples=100, batch_size=100),
    )
    return scale
"""
RUNS = ("polymnist/mvae", "polymnist/mvae_plus")


def test_without_ray_it_says_which_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="the extra `cluster`"):
        cluster.train(tmp_path, {"a": None})


def test_runs_of_one_data_set_are_prepared_together():
    _, scale = plans.load_scale("demo")
    specs = plans.by_modalities(scale, is_repeated=False)
    configs = {s.folder: plans.run_config(scale, s, {}) for s in specs}
    found = cluster.groups(configs)
    assert [{name.partition("/")[0] for name in group} for group in found] == [
        {dataset} for dataset in scale.columns
    ]
    assert {name for group in found for name in group} == set(configs)


def test_nobody_imports_ray_without_being_asked():
    assert figures.cluster is cluster
    assert not hasattr(cluster, "ray")
