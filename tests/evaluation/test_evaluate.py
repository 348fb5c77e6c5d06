"""Which metrics are computed, on which examples, and the pictures of samples."""

import jax
import numpy as np
import pytest
from toy_models import toy_model

from configs import base
from mmvae_jax import models
from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation import evaluate, samples
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import log_likelihood
from mmvae_jax.types import Gaussian

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.usefixtures("cache")

PAIR = {"m0": (4, 4, 3), "m1": (4, 4, 3)}


def eval_config(**changes):
    config = base.get_config().eval
    config.update(changes)
    return config


def make_split(shapes, num=24, seed=0):
    rng = np.random.default_rng(seed)
    images = {
        m: rng.integers(0, 256, (num, *shape), dtype=np.uint8)
        for m, shape in shapes.items()
    }
    return Split(images, np.arange(num, dtype=np.int32) % 10)


def make_model(tiny_config, shapes):
    model = models.make_model(tiny_config("mmvae"), shapes)
    return evaluate.compile_model(model), model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def pair(tiny_config):
    """A model of two modalities and its parameters."""
    return make_model(tiny_config, PAIR)


def test_selected_metrics_in_order():
    names = ("swd", "elbo")
    assert tuple(evaluate.select_metrics(eval_config(metrics=names))) == names
    everything = evaluate.select_metrics(eval_config())
    assert tuple(everything) == base.get_config().eval.metrics


def test_options_reach_the_log_likelihood():
    config = eval_config(importance_samples=7, proposal="mixture")
    metric = evaluate.select_metrics(config)["log_likelihood"]
    assert metric.keywords == {"num_samples": 7, "proposal": "mixture"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ("elbo", "psnr")}, "unknown metric 'psnr' in metrics"),
        ({"metrics": ("ELBO",)}, "choose from .*elbo"),
    ],
)
def test_unknown_metrics(changes, message):
    with pytest.raises(UsageError, match=message):
        evaluate.select_metrics(eval_config(**changes))


def test_proposals_are_those_of_the_metric():
    # The metric raises for all others, after training.
    message = log_likelihood.log_likelihood.__doc__
    assert all(f'"{proposal}"' in message for proposal in log_likelihood.PROPOSALS)
    with pytest.raises(UsageError, match="joint, mixture"):
        next(log_likelihood.estimate_batches(*5 * [None], proposal="prior"))


def test_random_examples():
    split = make_split({"m0": (2, 2, 1)}, num=50)
    first = evaluate.random_examples(split, 20, seed=3)
    again = evaluate.random_examples(split, 20, seed=3)
    other = evaluate.random_examples(split, 20, seed=4)
    assert first.labels.shape == (20,) and first.modalities["m0"].shape == (20, 2, 2, 1)
    assert (first.modalities["m0"] == again.modalities["m0"]).all()
    assert (first.modalities["m0"] != other.modalities["m0"]).any()
    # Images and labels stay together, and no example is taken twice.
    rows = [
        np.flatnonzero((split.modalities["m0"] == image).all((1, 2, 3))).item()
        for image in first.modalities["m0"]
    ]
    assert len(set(rows)) == 20
    assert (split.labels[rows] == first.labels).all()


@pytest.mark.parametrize("num", [0, 50, 51])
def test_all_examples(num):
    split = make_split({"m0": (2, 2, 1)}, num=50)
    assert evaluate.random_examples(split, num, 0) is split


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        (
            {"m0": (4, 4, 1)},
            {
                "prior": (4, 80, 1),
                "m0_given_m0": (44, 40, 1),
                "traversal": (24, 36, 1),
            },
        ),
        (
            PAIR,
            {
                "prior": (8, 80, 3),
                "m0_given_m1": (44, 40, 3),
                "m1_given_m0": (44, 40, 3),
                "traversal": (50, 36, 3),
            },
        ),
        pytest.param(
            {"m0": (4, 4, 3), "m1": (6, 6, 3), "m2": (8, 8, 1)},
            {
                "prior": (18, 160, 3),
                "m0_given_m1": (46, 60, 3),
                "m1_given_m2": (68, 80, 3),
                "m2_given_m0": (84, 80, 3),
                "traversal": (112, 72, 3),
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sample_grids(shapes, wanted, tiny_config, pair):
    model, params = pair if shapes is PAIR else make_model(tiny_config, shapes)
    test = make_split(shapes)
    key = jax.random.key(0)
    grids = samples.sample_grids(model, params, test, key)
    assert {name: grid.shape for name, grid in grids.items()} == wanted
    assert all(grid.dtype == np.uint8 for grid in grids.values())
    again = samples.sample_grids(model, params, test, key)
    assert all((grids[name] == again[name]).all() for name in grids)
    other = samples.sample_grids(model, params, test, jax.random.key(1))
    assert (grids["prior"] != other["prior"]).any()


def test_inputs_of_every_class_are_above_the_draws(pair):
    model, params = pair
    test = make_split(PAIR)
    test.labels[:] = test.labels[::-1].copy()
    grid = samples.sample_grids(model, params, test, jax.random.key(0))["m0_given_m1"]
    rows = [int(np.flatnonzero(test.labels == label)[0]) for label in range(10)]
    inputs = np.concatenate(list(test.modalities["m1"][rows]), axis=1)
    assert (grid[:4] == inputs).all()


def test_few_examples(pair):
    model, params = pair
    test = make_split(PAIR, num=3)
    grids = samples.sample_grids(model, params, test, jax.random.key(0))
    assert grids["m0_given_m1"].shape == (44, 12, 3)


def test_of_many_classes_ten_are_spread_out():
    split = make_split({"m0": (2, 2, 1)}, num=96)
    labels = np.arange(96, dtype=np.int32) // 2
    rows = samples._one_of_each_class(split._replace(labels=labels), "m0")
    assert labels[rows].tolist() == [0, 5, 10, 16, 21, 26, 31, 37, 42, 47]
    assert (rows == 2 * labels[rows]).all()


def test_a_diverged_member_is_drawn_black(pair):
    model, params = pair
    nans = jax.tree.map(lambda leaf: leaf * np.nan, params)
    grids = samples.sample_grids(model, nans, make_split(PAIR), jax.random.key(0))
    assert not grids["prior"].any()


def moving_model(posterior=None, **others):
    """z is an image of three pixels; the prior's deviations are 0.1, 0.2 and 0.3."""
    signs = np.where(np.arange(20) % 2, 1.0, -1.0)[:, None]
    means = np.zeros((10, 3))
    means[1:, 2], means[1:, 0] = 0.3, 0.05  # in deviations: 1, and 0.5
    return toy_model(
        ("m0",),
        3,
        encode=lambda params, batch: None,
        posterior=posterior or (lambda *args: Gaussian(means, 0 * means)),
        sample_prior=lambda *args: 0.4 + signs * np.array([0.1, 0.2, 0.3]),
        decode=lambda params, z: {"m0": z.reshape(-1, 1, 3, 1)},
        **others,
    )


def test_a_traversal_moves_one_dimension_at_a_time():
    test = make_split({"m0": (1, 3, 1)})
    found = samples._traverse(moving_model(), None, test, jax.random.key(0))
    assert list(found.dimensions) == [2, 0, 1]
    moved = found.decoded["m0"][:, :, 0, :, 0]  # [dimension, value, pixel]
    assert moved.shape == (3, 9, 3)
    way = np.linspace(-2, 2, 9)
    for row, (d, deviation) in enumerate([(2, 0.3), (0, 0.1), (1, 0.2)]):
        wanted = np.zeros((9, 3))
        wanted[:, d] = np.clip(0.4 + deviation * way, 0, 1)
        np.testing.assert_allclose(moved[row], wanted, atol=1e-6)


@pytest.mark.parametrize(("large", "first"), [(1e30, 1), (np.inf, 2)])
@pytest.mark.filterwarnings("error")
def test_a_traversal_of_huge_means(large, first):
    means = np.zeros((10, 3), np.float32)
    means[1:, 2], means[1:, 1] = 0.3, large
    model = moving_model(lambda *args: Gaussian(means, np.zeros_like(means)))
    test = make_split({"m0": (1, 3, 1)})
    found = samples._traverse(model, None, test, jax.random.key(0))
    assert found.dimensions[0] == first


def test_no_traversal_where_latent_vectors_are_drawn():
    test = make_split({"m0": (1, 3, 1)})
    model = moving_model(draws_missing=True)
    assert samples._traverse(model, None, test, jax.random.key(0)) is None


def test_evaluate_member():
    seen = []

    def metric(model, params, data, key):
        seen.append((model, params, data, key))
        return {f"tag{len(seen)}": np.float32(len(seen))}

    data, model = EvaluationData(None, None, None, 10), toy_model((), 0)
    values = evaluate.evaluate_member(
        {"a": metric, "b": metric}, model, "params", data, jax.random.key(0)
    )
    assert values == {"eval/tag1": 1.0, "eval/tag2": 2.0}
    assert all(type(value) is float for value in values.values())
    assert [call[:2] for call in seen] == [(model, "params")] * 2
    first, second = (call[2] for call in seen)
    assert first._replace(draws=None) == data
    assert first.draws is second.draws
    keys = [jax.random.key_data(call[3]).tolist() for call in seen]
    assert keys[0] != keys[1]


def test_evaluation_is_in_float32_on_gpus_too(tiny_config):
    """As compiled for CUDA: no matrix product may be one of TF32."""
    config = tiny_config("code_flow", 4)
    model = evaluate.compile_model(models.make_model(config, {"a": (3,), "b": (5,)}))
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 5), np.float32)}
    z, key = np.zeros((2, model.latent_dim), np.float32), jax.random.key(0)
    experts = jax.eval_shape(model.encode, params, batch)
    calls = {
        "encode": (params, batch),
        "decode": (params, z),
        "log_likelihood": (params, z, batch),
        "objective": (params, batch, key, 1.0),
        "posterior": (params, experts, np.array([True, False]), key),
    }
    for name, arguments in calls.items():
        traced = getattr(model, name).trace(*arguments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products, name
        assert all("[HIGHEST, HIGHEST]" in line for line in products), name
