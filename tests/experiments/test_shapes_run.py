"""A run on images and captions: what it leaves, and that it may be interrupted."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import shapes
from experiments.drawing.page import render
from mmvae_jax.evaluation import metrics
from mmvae_jax.interface import progress
from mmvae_jax.training.log import read_metrics

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.slow

# Two need weights from the web, one a modality that leaves an attribute open, and one
# is a time, which differs between runs.
LEFT_OUT = ("fid", "conditional_fid", "one_to_many", "cost")
METRICS = tuple(name for name in metrics.METRICS if name not in LEFT_OUT)


@pytest.fixture(scope="module")
def config(data_dir):
    """Everything as small as it can be, captions beside images."""
    config = shapes.get_config("mopoe")
    config.model.latent_dim = 6
    config.modality.network = "mlp"
    config.modality.network_options = ConfigDict({"widths": (32,)})
    config.modalities = ConfigDict({"caption": {"likelihood": "categorical"}})
    config.data.data_dir = str(data_dir)
    config.data.num_train, config.data.num_test = 480, 96
    config.sweep.beta = (1.0, 2.0)
    config.train.update(
        {
            "num_steps": 40,
            "batch_size": 32,
            "log_every_steps": 10,
            "checkpoint_every_steps": 10,
            "steps_per_call": 5,
        }
    )
    config.classifier.update({"network": "mlp", "num_steps": 60, "batch_size": 96})
    config.matcher.update({"network": "mlp", "num_steps": 150, "batch_size": 96})
    config.eval.update({"metrics": METRICS, "batch_size": 48, "importance_samples": 2})
    return config


@pytest.fixture(scope="module")
def unbroken(config, run_here, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("shapes") / "unbroken"
    code, stdout = run_here(config, workdir)
    assert code == 0
    return workdir, stdout


def test_every_metric_is_finite(unbroken):
    workdir, stdout = unbroken
    members = json.loads((workdir / "summary.json").read_text())["members"]
    for member in members:
        values = member["metrics"]
        assert [tag for tag, value in values.items() if value is None] == []
        for tag in (
            "attribute_coherence/shape/image_given_caption",
            "attribute_coherence/colour/caption_given_image",
            "attribute_coherence/joint",
            "attribute_accuracy/caption",
            "captions/bleu",
            "captions/real/distinct_2",
            "matching/leave_one_out/caption",
            "coherence/leave_one_out/image",
            "reconstruction/caption",
        ):
            assert f"eval/{tag}" in values
        assert values["eval/attribute_accuracy/caption"] == 1
    assert "attributes" in stdout and "BLEU" in stdout


def test_what_is_left_for_people(unbroken):
    workdir, _ = unbroken
    found = sorted(path.name for path in (workdir / "samples").iterdir())
    names = ["caption_given_image.png", "captions.txt", "image_given_caption.png"]
    names += ["prior.png", "traversal.png"]
    assert found == [f"beta={b},seed=0_{name}" for b in (1, 2) for name in names]
    text = (workdir / "samples" / "beta=1,seed=0_captions.txt").read_text()
    assert text.count("   - ") == 100 and text.count(". real: ") == 10
    assert "<eos>" not in text and "<pad>" not in text
    page = render(workdir.parent)
    assert "Captions of these samples as text" in page and "BLEU" in page


def test_resumed_bits(config, unbroken, run_here, tmp_path, monkeypatch, last_state):
    update, stops = progress.ProgressBar.update, []

    def update_and_stop(self, step, seconds, is_first):
        update(self, step, seconds, is_first)
        if step >= 23 and not stops:
            stops.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(progress.ProgressBar, "update", update_and_stop)
        code, stdout = run_here(config, tmp_path / "run")
    assert code == 128 + signal.SIGTERM
    code, stdout = run_here(config, tmp_path / "run")
    assert code == 0 and "resuming" in stdout
    (step, state), (other_step, other) = (
        last_state(path) for path in (tmp_path / "run", unbroken[0])
    )
    assert step == other_step == 40
    for leaf, wanted in zip(
        jax.tree.leaves(state), jax.tree.leaves(other), strict=True
    ):
        assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes()
    found, wanted = (
        read_metrics(path / "metrics.jsonl") for path in (tmp_path / "run", unbroken[0])
    )
    assert found == wanted
    for path in (unbroken[0] / "samples").iterdir():
        again = tmp_path / "run" / "samples" / path.name
        assert again.read_bytes() == path.read_bytes()
