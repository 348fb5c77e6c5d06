import time

import jax
import numpy as np
import pytest
from toy_models import averaging_model, toy_split

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
