"""Every metric of kinds of models and of odd data: values, or a reason, no warning."""

import math
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmvae_jax import models
from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation import evaluate
from mmvae_jax.evaluation.metric import EvaluationData, Matchers, Reader, reasons
from mmvae_jax.evaluation.metrics import METRICS

pytest_plugins = ("run_fixtures",)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cache")]

SHAPES = {"image": (12, 12, 3), "other": (12, 12, 3), "vector": (4,)}
# Of one kind of posterior each.
FLOWS = ("code_flow", "latent_flow")
JNF = ("jnf", "jnf_shared")
AT_ONCE = ("unimodal", "mopoe", "mmvae_plus", "dmvae", "mmvm", "jmvae", "nexus")
MODELS = (*AT_ONCE, *JNF, *FLOWS)
# They need tokens, attributes, weights, networks.
LEFT_OUT = {
    *("captions", "attributes", "one_to_many"),
    *("fid", "conditional_fid", "matching"),
}
NAMES = tuple(name for name in METRICS if name not in LEFT_OUT)


def make_split(num, seed=0, observed=None):
    g = np.random.default_rng(seed)
    modalities = {
        m: g.normal(size=(num, *shape)).astype(np.float32)
        if m == "vector"
        else g.integers(0, 256, (num, *shape), dtype=np.uint8)
        for m, shape in SHAPES.items()
    }
    labels = np.arange(num, dtype=np.int32) % 3
    return Split(modalities, labels, observed, {"colour": labels % 2})


def read(x):
    x = jnp.asarray(x, jnp.float32)
    return x.reshape(len(x), -1)[:, :4], x.reshape(len(x), -1)[:, :3]


def values_of(model, params, test, names=NAMES):
    judges = dict.fromkeys(SHAPES, Reader(jax.jit(read), 0.5))
    data = EvaluationData(
        make_split(30, 1), test, judges, 16, Matchers({}, {}), second_classifiers=judges
    )
    chosen = {name: METRICS[name].compute for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return evaluate.evaluate_member(chosen, model, params, data, jax.random.key(1))


@pytest.mark.parametrize("name", MODELS)
def test_every_metric_of_a_model(name, tiny_config):
    config = tiny_config(name, **models.default_options(name))
    if name in FLOWS:
        config.model.options.ode_steps = 2
    model = models.make_model(config, SHAPES)
    params = model.init(jax.random.key(0))
    values = values_of(evaluate.compile_model(model), params, make_split(20))
    assert reasons(values) == {}
    assert all(math.isfinite(value) for value in values.values())


@pytest.fixture(scope="module")
def trained(tiny_config):
    model = models.make_model(tiny_config("mmvae"), SHAPES)
    return evaluate.compile_model(model), model.init(jax.random.key(0))


@pytest.mark.parametrize("missing", SHAPES)
def test_a_modality_that_no_test_example_has(missing, trained):
    """As their accuracy on no example, the judges' is nan; the model is finite."""
    observed = np.ones((20, len(SHAPES)), bool)
    observed[:, list(SHAPES).index(missing)] = False
    judges = {
        m: Reader(jax.jit(read), math.nan if m == missing else 0.5) for m in SHAPES
    }
    data = EvaluationData(
        make_split(30, 1),
        make_split(20, observed=observed),
        judges,
        16,
        readers={"colour": judges},
        second_classifiers=judges,
        shown={"colour": [m for m in SHAPES if m != "vector"]},
    )
    chosen = {
        name: metric.compute
        for name, metric in METRICS.items()
        # Refused before training: no test example is complete, or none is a caption.
        if not {"complete tuple", "complete tuples"} & {*metric.needs}
    }
    chosen["fid"] = partial(
        chosen["fid"], extractor=lambda x: jnp.asarray(x).reshape(len(x), -1)[:, :3]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = evaluate.evaluate_member(chosen, *trained, data, jax.random.key(1))
    found = reasons(values)
    assert found[f"eval/second_judge/accuracy/{missing}"].endswith(f"has {missing}")
    wrong = {tag: why for tag, why in found.items() if "not finite" in why}
    assert wrong == {}
    assert all(tag in found for tag, value in values.items() if math.isnan(value))


@pytest.mark.parametrize("num", [1, 2, 4])
def test_few_examples(num, trained):
    # Of one example retrieval is refused, before training.
    names = tuple(name for name in NAMES if num > 1 or name != "retrieval")
    found = reasons(values_of(*trained, make_split(num), names))
    words = ("needed", "example", "class", "standard error")
    assert all(any(word in why for word in words) for why in found.values()), found


def test_no_example_is_complete(trained):
    observed = np.eye(3, dtype=bool)[np.arange(20) % 3]
    names = tuple(name for name in NAMES if name != "retrieval")  # refused before
    values = values_of(*trained, make_split(20, observed=observed), names)
    assert "leave_one_out" in "".join(reasons(values))
    assert np.isfinite(values["eval/image_errors/mse/reconstruction"])


def test_a_model_that_diverged(trained):
    model, params = trained
    params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    values = values_of(model, params, make_split(20))
    known = ("accuracy", "chance", "majority", "cost", "real_disagreement")
    finite = [tag for tag, value in values.items() if math.isfinite(value)]
    assert [tag for tag in finite if not any(word in tag for word in known)] == []
