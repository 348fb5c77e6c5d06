"""Values of the metrics of an untrained model, as tests/golden/metrics.json holds them.

    python tests/golden/make_metrics_golden.py

Model, data and classifiers are random but for their seeds. FID (whose network is not in
the repository) and metrics of captions are left out.
"""

import json
from pathlib import Path

import jax
import numpy as np

from configs import base
from mmvae_jax import models
from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation import evaluate
from mmvae_jax.evaluation.metric import EvaluationData, Matchers, Reader

PATH = Path(__file__).with_name("metrics.json")
SHAPES = {"m0": (8, 8, 3), "m1": (8, 8, 1), "m2": (8, 8, 3)}
NAMES = (
    "coherence",
    "attributes",
    "matching",
    "frechet",
    "swd",
    "elbo",
    "log_likelihood",
    "linear_probe",
)
NUM, NUM_CLASSES = 64, 4


def make_split(seed):
    """Images that are brighter for larger labels; m2 is sometimes missing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, NUM).astype(np.int32)
    images = {
        m: (rng.integers(0, 80, (NUM, *shape)) + 40 * labels[:, None, None, None])
        for m, shape in SHAPES.items()
    }
    observed = np.ones((NUM, len(SHAPES)), bool)
    observed[::5, 2] = False
    images = {m: x.astype(np.uint8) for m, x in images.items()}
    return Split(images, labels, observed, {"bright": labels // 2, "odd": labels % 2})


def make_reader(seed, shape, num_values):
    """A classifier of random weights."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((np.prod(shape), 5)).astype(np.float32)
    last = rng.standard_normal((5, num_values)).astype(np.float32)

    def apply(x):
        features = x.reshape(len(x), -1) @ weights
        return features, features @ last

    return Reader(jax.jit(apply), 0.5)


def make_data():
    """Splits, and judges with random weights."""
    classifiers = {m: make_reader(0, s, NUM_CLASSES) for m, s in SHAPES.items()}
    readers = {
        a: {m: make_reader(k, shape, 2) for m, shape in SHAPES.items()}
        for k, a in enumerate(("bright", "odd"), 1)
    }

    def embed(x):
        mean = x.reshape(len(x), -1).mean(axis=1)
        return jax.numpy.stack([jax.numpy.cos(mean), jax.numpy.sin(mean)], axis=1)

    pairs = {(x, y): 200.0 for x in SHAPES for y in SHAPES if x != y}
    matchers = Matchers(dict.fromkeys(SHAPES, jax.jit(embed)), pairs)
    data = EvaluationData(make_split(0), make_split(1), classifiers, 20)
    return data._replace(readers=readers, matchers=matchers)


def measure():
    """Metric -> tag -> value."""
    config = base.get_config()
    config.model.update({"name": "mopoe", "latent_dim": 4})
    config.modality.network = "mlp"
    config.modality.network_options.widths = (8,)
    config.eval.metrics, config.eval.importance_samples = NAMES, 2
    model = models.make_model(config, SHAPES)
    params = model.init(jax.random.key(0))
    model, data = evaluate.compile_model(model), make_data()
    return {
        name: evaluate.evaluate_member(
            {name: metric}, model, params, data, jax.random.key(1)
        )
        for name, metric in evaluate.select_metrics(config.eval).items()
    }


if __name__ == "__main__":
    found = {
        name: {tag: None if np.isnan(v) else v for tag, v in own.items()}
        for name, own in measure().items()
    }
    PATH.write_text(json.dumps(found, indent=1) + "\n")
