import time

import jax
import numpy as np
import pytest
from toy_models import averaging_model, toy_split

from mmvae_jax import models
from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.evaluate import compile_model
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import cost


def without_params(function):
    """A function of the toy model, whose parameters are a number."""
    return lambda params, *given: function(0.0, *given)


@pytest.mark.parametrize("modalities", [("m0",), ("m0", "m1")])
def test_time_is_that_of_an_example(modalities, monkeypatch):
    """A clock that each decoding moves by 0.2 s, each encoding by 0.3 s."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    model = averaging_model(modalities, (2, 2, 1))

    def slow(function, seconds):
        def call(*given):
            now[0] += seconds if len(calls) > 2 else 100  # the first compiles
            calls.append(function)
            return function(*given)

        calls = []
        return call

    model = model._replace(
        decode=slow(model.decode, 0.2), encode=slow(model.encode, 0.3)
    )
    images = np.zeros((12, 2, 2, 1), np.uint8)
    split = toy_split(dict.fromkeys(modalities, images), np.zeros(12))
    data = EvaluationData(None, split, None, 10)
    params = {"a": np.zeros((3, 4)), "b": np.float32(0)}
    names = ("encode", "decode", "sample_prior", "posterior")
    functions = {name: without_params(getattr(model, name)) for name in names}
    model = model._replace(**functions)
    tags = cost.cost(model, params, data, jax.random.key(0), num_batches=7)
    assert tags["cost/parameters"] == 13
    assert tags["cost/sample"] == pytest.approx(20)
    assert tags["cost/conditional"] == pytest.approx(50)
    # It has no networks.
    assert tags["cost/evaluations/sample"] == tags["cost/evaluations/conditional"] == 0


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


FLOW = {"flow_width": 8, "flow_depth": 1, "ode_steps": 5}
CODE_FLOW = FLOW | {"code_dim": 4}


@pytest.mark.parametrize(
    ("name", "options", "sample", "conditional"),
    [
        # Three modalities: a decoder each. One is missing in the conditional.
        ("mopoe", {}, 3, 3),
        _slow("mmvae_plus", {}, 3, 3),
        # The flow of the code, and one for each modality, with and without the code.
        _slow("code_flow", CODE_FLOW, 5 * (1 + 2 * 3) + 3, 5 * 2 * 1 + 3),
        _slow("code_flow", CODE_FLOW | {"guidance": 1.0}, 5 * (1 + 3) + 3, 5 + 3),
        _slow(
            "code_flow",
            CODE_FLOW | {"flow": "joint", "ode_method": "heun"},
            2 * 5 * (1 + 2) + 3,
            2 * 5 * 2 + 3,
        ),
        # One flow, which is guided only if something is given.
        _slow("latent_flow", FLOW, 5 + 3, 5 * 2 + 3),
        _slow("latent_flow", FLOW | {"guidance": 1.0}, 5 + 3, 5 + 3),
        _slow("latent_flow", FLOW | {"ode_method": "heun"}, 2 * 5 + 3, 2 * 5 * 2 + 3),
        # The flow of each modality: a candidate each, its densities by all flows, and
        # the gradients of seven energies.
        _slow(
            "jnf",
            {"hmc_steps": 2, "hmc_leapfrogs": 3, "flow_width": 8},
            3,
            3 + 3 * 3 + (1 + 2 * 3) * 3 + 3,
        ),
    ],
)
def test_evaluations_are_those_of_decoders_and_solvers(
    name, options, sample, conditional, tiny_config, monkeypatch
):
    monkeypatch.setattr(cost, "seconds_of", lambda *given: 0.0)
    config = tiny_config(name, 2, **options)
    config.modality.network_options.widths = ()
    shapes = {"m0": (3,), "m1": (4,), "m2": (2,)}
    model = models.make_model(config, shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.abs(rng.normal(size=x.shape)).astype(x.dtype),
        jax.eval_shape(model.init, jax.random.key(0)),
    )
    split = Split({m: np.float32(rng.normal(size=(4, *x))) for m, x in shapes.items()})
    data = EvaluationData(split, split, None, 4)
    compiled = compile_model(model)
    tags = cost.cost(compiled, params, data, jax.random.key(0))
    found = [tags[f"cost/evaluations/{x}"] for x in ("sample", "conditional")]
    assert found == [sample, conditional]
