import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.running import build, session, workdirs
from mmvae_jax import models, networks
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.judges import classifiers
from mmvae_jax.networks import layers
from mmvae_jax.training import loop, mapping, step
from mmvae_jax.training.execution import MAX_STEPS_PER_CALL, Execution
from mmvae_jax.training.sweep import Member, stack_hyper, stack_keys
from mmvae_jax.types import Hyper, TokenShape

pytest_plugins = ("run_fixtures",)

MEMBERS = [Member(0.1 * (k + 1), 1e-2, k) for k in range(4)]
BATCH = 16


def make_task(width):
    """A task whose members need much memory while they take a step."""

    def init(key):
        return {"weight": jax.random.normal(key, (8,))}

    def loss(params, hyper, key, batch):
        features = batch["features"] + hyper.beta * jax.random.normal(key, (8,))
        outer = jnp.sin(
            features @ jnp.outer(params["weight"], jnp.linspace(-1, 1, width))
        )
        value = jnp.mean(outer**2)
        return value, {"train/loss": value}

    return step.Task(init, loss)


@pytest.fixture(scope="module")
def regression():
    """A task and its data."""
    generator = np.random.default_rng(0)
    data = {"features": generator.normal(size=(40, 8)).astype(np.float32)}
    return make_task(4096), data


def prepare(regression, execution, members=MEMBERS, **options):
    task, data = regression
    hyper, keys = stack_hyper(members), stack_keys(members)
    prepared = mapping.prepare(
        task, execution, hyper, keys, data, batch_size=BATCH, **options
    )
    return prepared, hyper, keys


@pytest.fixture(scope="module")
def by_map(regression):
    """The states of MEMBERS after 5 steps."""
    return train_with(regression, Execution("map", 4))[1]


def train_with(regression, execution, **options):
    """(what was prepared, the states after 5 steps)."""
    prepared, hyper, keys = prepare(regression, execution, **options)
    state = loop.fit(
        prepared.programs[0],
        prepared.state,
        hyper,
        keys,
        regression[1],
        num_steps=5,
        batch_size=BATCH,
        data_seed=0,
        execution=prepared.execution,
    )
    return prepared, state


def assert_close(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other
    )


def needed(regression, members_at_once):
    """Bytes of the program with that many members at once."""
    execution = Execution("vmap", 4, members_at_once=members_at_once)
    (prepared, _, _) = prepare(regression, execution)
    return mapping.peak_bytes(prepared.programs[0])


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_members_beyond_the_memory_are_trained_in_chunks(regression, by_map, at_once):
    memory = needed(regression, at_once)
    assert memory < needed(regression, 0)
    found, state = train_with(regression, Execution("vmap", 4), memory=memory)
    assert found.execution.members_at_once == at_once
    assert mapping.peak_bytes(found.programs[0]) <= memory
    assert_close(state, by_map)


def test_chunks_that_are_asked_for(regression, by_map):
    execution = Execution("vmap", 4, members_at_once=2)
    found, state = train_with(regression, execution)
    assert found.execution == execution
    assert_close(state, by_map)
    with pytest.raises(UsageError, match=r"4 members .* even 2 at a time"):
        prepare(regression, execution, memory=needed(regression, 1))


def test_a_later_stage_is_trained_in_smaller_chunks(regression):
    narrow, data = regression
    wide = make_task(2 * 4096)
    staged = narrow._replace(
        stages=(
            step.StageTask("narrow", 0, 2, None, narrow),
            step.StageTask("wide", 2, 4, None, wide),
        )
    )
    memory = max(needed((narrow, data), 2), needed((wide, data), 1))
    assert memory < needed((narrow, data), 0)  # it is lowered twice
    found, _, _ = prepare((staged, data), Execution("vmap", 4), memory=memory)
    assert found.execution.members_at_once == 1
    assert all(mapping.peak_bytes(own) <= memory for own in found.programs)


def test_members_that_fit_are_trained_at_once(regression, by_map):
    found, state = train_with(regression, Execution("vmap", 4))
    assert found.execution == Execution("vmap", 4)
    assert_close(state, by_map)


def test_members_that_do_not_fit_even_one_by_one(regression):
    message = r"4 members on a device needs 0\.00 GiB, even 1 at a time, and it has"
    with pytest.raises(UsageError, match=message):
        prepare(regression, Execution("vmap", 4), memory=1000)


def test_a_backend_that_does_not_account_for_memory():
    assert mapping.peak_bytes(SimpleNamespace(memory_analysis=lambda: None)) == 0


def test_the_memory_of_this_machine():
    pages = open("/proc/meminfo").readline().split()
    assert mapping.device_memory() == pytest.approx(int(pages[1]) * 1024, rel=0.05)


EARLIER = {"device": "cpu", "layout": [1, 1], "mapping": "vmap"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "vmap"),
        ({"seconds_a_step": {"map": 1.0, "vmap": 0.5}}, "vmap"),
        ({"device": "gpu"}, None),
        ({"layout": [2, 1]}, None),
    ],
)
def test_the_mapping_of_an_earlier_version(tmp_path, changes, expected):
    assert workdirs.earlier_mapping(tmp_path, "cpu", (1, 1)) is None
    (tmp_path / "execution.json").write_text(json.dumps(EARLIER | changes))
    assert workdirs.earlier_mapping(tmp_path, "cpu", (1, 1)) == expected


@pytest.mark.parametrize(
    "found", [[], {}, EARLIER | {"mapping": "pmap"}, EARLIER | {"mapping": {}}]
)
def test_a_mapping_that_cannot_be_read(tmp_path, found):
    (tmp_path / "execution.json").write_text(json.dumps(found))
    message = r"execution\.json was not written by this project; remove it"
    with pytest.raises(UsageError, match=message):
        workdirs.earlier_mapping(tmp_path, "cpu", (1, 1))


@pytest.mark.slow
def test_a_run_of_an_earlier_version_keeps_its_mapping(smoke_config, tmp_path, capsys):
    config = smoke_config("mvae")
    sweep = build.build(config)
    capsys.readouterr()
    assert session.prepare_program(sweep, tmp_path).execution == sweep.execution
    assert capsys.readouterr().out == ""
    where = {"device": jax.devices()[0].device_kind, "layout": sweep.execution.layout}
    (tmp_path / "execution.json").write_text(json.dumps(EARLIER | where))
    prepared = session.prepare_program(sweep, tmp_path)
    assert prepared.execution == sweep.execution._replace(mapping="vmap")
    line = "mapped by vmap, as execution.json of this run says\n"
    assert capsys.readouterr().out == line


@pytest.mark.slow
def test_a_run_beyond_the_memory_is_trained_in_chunks(
    smoke_config, run_here, tmp_path, monkeypatch
):
    # Large batches, of which a step needs more than the states.
    changes = {"train.mapping": "vmap", "train.batch_size": 512}
    config = smoke_config("mvae", changes | {"eval.metrics": ("elbo",)})
    sweep = build.build(config)
    whole = session.prepare_program(sweep, tmp_path)
    assert whole.execution.members_at_once == 0
    assert run_here(config, tmp_path / "whole")[0] == 0
    memory = mapping.peak_bytes(whole.programs[0]) - 1
    monkeypatch.setattr(mapping, "device_memory", lambda: memory)
    code, output = run_here(config, tmp_path / "run")
    assert code == 0
    assert "members are trained in chunks of 1: the device's memory holds" in output
    found, expected = (
        workdirs.read_summary(tmp_path / name) for name in ("run", "whole")
    )
    assert found["execution"]["members_at_once"] == 1
    for ours, theirs in zip(found["members"], expected["members"], strict=True):
        elbo = "eval/elbo"
        assert ours["metrics"][elbo] == pytest.approx(theirs["metrics"][elbo], rel=1e-3)


def test_chunks_that_do_not_divide_the_members(smoke_config, tmp_path):
    config = smoke_config("mvae", {"train.members_at_once": 2})
    message = "members_at_once=2 must divide the 3 members of a device evenly"
    with pytest.raises(UsageError, match=message):
        session.train_and_evaluate(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("auto", 0, (), "cpu"), ("map", MAX_STEPS_PER_CALL)),
        (("auto", 0, ("matmul", "mixed"), "cpu"), ("map", MAX_STEPS_PER_CALL)),
        (("auto", 0, ("mixed", "lax"), "cpu"), ("unroll", 1)),
        (("auto", 0, (), "gpu"), ("vmap", MAX_STEPS_PER_CALL)),
        (("auto", 0, ("lax",), "tpu"), ("vmap", MAX_STEPS_PER_CALL)),
        (("vmap", 0, ("lax",), "cpu"), ("vmap", 1)),
        (("unroll", 12, ("lax",), "gpu"), ("unroll", 12)),
        (("auto", 12, ("lax",), "cpu"), ("unroll", 12)),
        (("map", 1, (), "gpu"), ("map", 1)),
    ],
)
def test_how_execution_is_chosen(arguments, expected):
    assert mapping.choose_execution(*arguments) == Execution(*expected)


def test_unknown_mapping():
    message = "unknown mapping 'pmap'; choose one of auto, vmap, map, unroll"
    with pytest.raises(UsageError, match=message):
        mapping.choose_execution("pmap", 0, (), "cpu")


@pytest.fixture(scope="module")
def task_of(tiny_config):
    """A function from a network, its options and a model to a task and its data."""

    def make(network, options, model="mvae"):
        is_text = networks.NETWORKS[network].takes == networks.TOKENS
        shape = TokenShape(8, 5) if is_text else (8, 8, 1)
        config = tiny_config(model, 8)  # a multiple of the places of "spatial"
        config.modality.network = network
        config.modality.network_options = options
        if is_text:
            config.modality.likelihood = "categorical"
        task = step.vae_task(models.make_model(config, {"m0": shape, "m1": shape}))
        examples = jnp.zeros((2, 8), jnp.int32)
        if not is_text:
            examples = jnp.zeros((2, *shape), jnp.uint8)
        return task, {"m0": examples, "m1": examples}

    return make


def traced(task, batch):
    """The loss and its gradient as text."""
    key = jax.random.key(0)
    arguments = (jax.eval_shape(task.init, key), Hyper(1.0, 1.0), key, batch)
    return [
        str(jax.make_jaxpr(function)(*arguments))
        for function in (task.loss, jax.grad(task.loss, has_aux=True))
    ]


# JAX's gradients of kernels take the channels of the input for its batch; the axis of
# the batch comes first.
GRADIENT_OF_KERNEL = re.compile(r"lhs_spec=\([1-9]")
SMALL = {
    "conv": {"channels": (2, 2)},
    "resnet": {"width": 2},
    "text_conv": {"channels": (2, 2, 2, 2, 2)},
    "transformer": {"width": 4},
}
SLOW_TO_TRACE = dict.fromkeys(("text_conv", "transformer"), pytest.mark.slow)
FORMED = [
    (network, {"form": form})
    for network, (encoder, *_) in networks.NETWORKS.items()
    for form in (
        layers.FORMS if "form" in {f.name for f in dataclasses.fields(encoder)} else ()
    )
]


@pytest.mark.parametrize(
    ("network", "form", "model"),
    [
        pytest.param(network, {}, "mvae", marks=SLOW_TO_TRACE.get(network, ()))
        for network in networks.NETWORKS
    ]
    + [
        pytest.param(network, form, "mvae", marks=SLOW_TO_TRACE.get(network, ()))
        for network, form in FORMED
    ]
    + [("conv", {"form": "lax"}, name) for name in ("dmvae", "jmvae")],
)
def test_networks_say_how_they_convolve(network, form, model, task_of):
    """As the traced programs have it."""
    task, batch = task_of(network, SMALL.get(network, {}) | form, model)
    loss, gradient = traced(task, batch)
    is_slow_in_loops = GRADIENT_OF_KERNEL.search(gradient) is not None
    assert ("lax" in task.convolutions) == is_slow_in_loops
    convolves = not {"lax", "mixed"}.isdisjoint(task.convolutions)
    assert convolves == ("conv_general_dilated" in loss)


@pytest.mark.parametrize("network", networks.CLASSIFIERS)
def test_classifiers_say_how_they_convolve(network):
    module = networks.make_classifier(network, (8, 8, 1), 3)
    task = classifiers.classifier_task(module, ["m0"], (8, 8, 1))
    key = jax.random.key(0)
    batch = {"m0": jnp.zeros((2, 8, 8, 1), jnp.uint8), "labels": jnp.zeros(2, int)}
    hyper = classifiers.ClassifierHyper(jnp.float32(1), jnp.int32(0))
    gradient = jax.grad(task.loss, has_aux=True)
    jaxpr = jax.make_jaxpr(gradient)(jax.eval_shape(task.init, key), hyper, key, batch)
    is_slow_in_loops = GRADIENT_OF_KERNEL.search(str(jaxpr)) is not None
    assert ("lax" in task.convolutions) == is_slow_in_loops


@pytest.mark.parametrize(
    ("network", "is_refused"), [("resnet", True), ("conv", False), ("mlp", False)]
)
def test_bfloat16_is_of_matrix_products_alone(
    network, is_refused, task_of, monkeypatch
):
    """On a GPU, where the small convolutions are matrix products, and ResNets' not."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    task, _ = task_of(network, SMALL.get(network, {}))
    for precision, backend in (("default", "gpu"), ("bfloat16", "tpu")):
        mapping.require_precision(precision, task.convolutions, backend)
    if not is_refused:
        mapping.require_precision("bfloat16", task.convolutions, "gpu")
        return
    with pytest.raises(UsageError, match="this network has convolutions, which a GPU"):
        mapping.require_precision("bfloat16", task.convolutions, "gpu")
