"""What the data do not define is nan, with the reason, and without a warning."""

import math
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import toy_model

from mmvae_jax import models
from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation import evaluate
from mmvae_jax.evaluation.metric import (
    EvaluationData,
    Matchers,
    Reader,
    Undefined,
    mean,
    reasons,
)
from mmvae_jax.evaluation.metrics import METRICS, captions, matching

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.usefixtures("cache")

SHAPES = {"image": (4, 4, 3), "vector": (4,)}
MISSING = "no test example has"


def make_split(num, missing=None):
    g = np.random.default_rng(0)
    modalities = {
        "image": g.integers(0, 256, (num, 4, 4, 3), dtype=np.uint8),
        "vector": g.normal(size=(num, 4)).astype(np.float32),
    }
    observed = None
    if missing is not None:
        observed = np.ones((num, 2), bool)
        observed[:, list(modalities).index(missing)] = False
    return Split(modalities, np.arange(num, dtype=np.int32) % 3, observed)


@pytest.fixture(scope="module")
def trained(tiny_config):
    model = models.make_model(tiny_config("mmvae"), SHAPES)
    return evaluate.compile_model(model), model.init(jax.random.key(0))


def features(x):
    return x.reshape(len(x), -1)[:, :3]


def read(x):
    return features(x), features(x)


def values_of(trained, test, accuracy=0.5):
    """All metrics that need no captions, where a library's warning is an error."""
    names = list(SHAPES)
    data = EvaluationData(
        make_split(12),
        test,
        dict.fromkeys(names, Reader(read, accuracy)),
        8,
        Matchers(
            dict.fromkeys(names, lambda x: features(jnp.asarray(x, jnp.float32))),
            {("image", "vector"): 1.0, ("vector", "image"): 1.0},
        ),
    )
    chosen = {
        name: METRICS[name].compute
        for name in ("elbo", "log_likelihood", "coherence", "frechet", "swd")
    }
    chosen |= {"linear_probe": METRICS["linear_probe"].compute}
    chosen["fid"] = lambda *given: METRICS["fid"].compute(*given, extractor=features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return evaluate.evaluate_member(chosen, *trained, data, jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize("missing", SHAPES)
def test_a_modality_that_no_test_example_has(missing, trained):
    found = reasons(values_of(trained, make_split(6, missing), math.nan))
    tags = {
        f"eval/reconstruction/{missing}",
        "eval/coherence/leave_one_out",
        f"eval/coherence/subset/{missing}/{missing}",
        f"eval/classifier_accuracy/{missing}",
        "eval/frechet_classifier",
        f"eval/frechet_classifier/{missing}",
    }
    if missing == "image":
        tags |= {"eval/swd", "eval/swd/image", "eval/fid", "eval/fid/image"}
    assert tags <= found.keys()
    assert all(missing in found[tag] and MISSING in found[tag] for tag in tags)
    other = "vector" if missing == "image" else "image"
    assert f"eval/frechet_classifier/{other}" not in found
    assert "eval/elbo" not in found and "eval/linear_probe" not in found


def test_one_test_example(trained):
    values = values_of(trained, make_split(1))
    one = "only 1 test example has"
    assert reasons(values) == {
        "eval/log_likelihood/standard_error": "one test example has no standard error",
        "eval/frechet_classifier": f"{one} image, 2 are needed",
        "eval/frechet_classifier/image": f"{one} image, 2 are needed",
        "eval/frechet_classifier/vector": f"{one} vector, 2 are needed",
        "eval/fid": f"{one} image, 2 are needed",
        "eval/fid/image": f"{one} image, 2 are needed",
    }
    assert all(np.isnan(values[tag]) for tag in reasons(values))
    assert reasons(values_of(trained, make_split(2))) == {}


def test_every_class_has_one_example(trained):
    train = make_split(12)._replace(labels=np.arange(12, dtype=np.int32))
    data = EvaluationData(train, make_split(4), None, 8)
    probe = {"linear_probe": METRICS["linear_probe"].compute}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate.evaluate_member(probe, *trained, data, jax.random.key(1))
    assert 0 <= found["eval/linear_probe"] <= 1


def test_matching_says_that_its_networks_tell_nothing():
    value = matching.calibrate(np.ones(9), np.ones(9))
    assert "do not tell real pairs from shuffled ones" in value.reason


def test_no_caption_has_two_words():
    assert captions.distinct(["bird"], 2).reason == "no caption has 2 words"


@pytest.mark.parametrize("value", [np.float32("nan"), math.inf, -math.inf])
def test_what_is_not_finite_has_a_reason_too(value):
    found = evaluate.evaluate_member(
        {"a": lambda *given: {"x": value}},
        toy_model((), 0),
        None,
        EvaluationData(None, None, None, 1),
        jax.random.key(0),
    )
    assert reasons(found) == {"eval/x": "what the model computes is not finite"}
    assert np.isnan(found["eval/x"])


def test_a_reason_survives_means_and_processes():
    undefined = Undefined("nothing was there")
    assert mean([1.0, undefined]).reason == "nothing was there"
    assert mean(iter([1.0, 2.0])) == 1.5
    again = pickle.loads(pickle.dumps(undefined))
    assert np.isnan(again) and again.reason == "nothing was there"
