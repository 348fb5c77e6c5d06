from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import run, workdirs
from mmvae_jax import models, sweeps, train, tuning
from mmvae_jax.errors import UsageError
from mmvae_jax.sweeps import Member
from mmvae_jax.train import MAX_STEPS_PER_CALL, Execution
from mmvae_jax.types import Hyper

pytest_plugins = ("run_fixtures",)

MEMBERS = [Member(0.1 * (k + 1), 1e-2, k) for k in range(4)]
BATCH = 16


@pytest.fixture(scope="module")
def regression():
    """A task whose members need much memory while they take a step, and its data."""

    def init(key):
        return {"weight": jax.random.normal(key, (8,))}

    def loss(params, hyper, key, batch):
        features = batch["features"] + hyper.beta * jax.random.normal(key, (8,))
        outer = jnp.sin(
            features @ jnp.outer(params["weight"], jnp.linspace(-1, 1, 4096))
        )
        value = jnp.mean(outer**2)
        return value, {"train/loss": value}

    generator = np.random.default_rng(0)
    data = {"features": generator.normal(size=(40, 8)).astype(np.float32)}
    return train.Task(init, loss), data


def prepare(regression, execution, members=MEMBERS, **options):
    task, data = regression
    hyper, keys = sweeps.stack_hyper(members), sweeps.stack_keys(members)
    prepared = tuning.prepare(
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
    state = train.fit(
        prepared.program,
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
    return tuning.peak_bytes(prepared.program)


@pytest.mark.parametrize("at_once", [1, 2])
def test_members_beyond_the_memory_are_trained_in_chunks(regression, by_map, at_once):
    memory = needed(regression, at_once)
    assert memory < needed(regression, 0)
    found, state = train_with(regression, Execution("vmap", 4), memory=memory)
    assert found.execution.members_at_once == at_once
    assert tuning.peak_bytes(found.program) <= memory
    assert_close(state, by_map)


def test_chunks_that_are_asked_for(regression, by_map):
    execution = Execution("vmap", 4, members_at_once=2)
    found, state = train_with(regression, execution)
    assert found.execution == execution
    assert_close(state, by_map)
    with pytest.raises(UsageError, match=r"4 members .* even 2 at a time"):
        prepare(regression, execution, memory=needed(regression, 1))


def test_members_that_fit_are_trained_at_once(regression, by_map):
    found, state = train_with(regression, Execution("vmap", 4))
    assert found.execution == Execution("vmap", 4)
    assert_close(state, by_map)


def test_members_that_do_not_fit_even_one_by_one(regression):
    message = r"4 members on a device needs 0\.00 GiB, even 1 at a time, and it has"
    with pytest.raises(UsageError, match=message):
        prepare(regression, Execution("vmap", 4), memory=1000)


def test_a_backend_that_does_not_account_for_memory():
    assert tuning.peak_bytes(SimpleNamespace(memory_analysis=lambda: None)) == 0


def test_the_memory_of_this_machine():
    pages = open("/proc/meminfo").readline().split()
    assert tuning.device_memory() == pytest.approx(int(pages[1]) * 1024, rel=0.05)


@pytest.mark.parametrize(
    ("wanted", "mapping", "num_members", "num_steps", "layout", "expected"),
    [
        ("auto", "map", 4, 10_000, (1, 1), ["vmap", "unroll"]),
        ("auto", "map", 5, 10_000, (1, 1), ["vmap"]),
        ("auto", "vmap", 3, 10_000, (1, 1), ["map", "unroll"]),
        ("auto", "map", 3, 9_999, (1, 1), []),
        ("auto", "map", 1, 10_000, (1, 1), []),
        ("auto", "unroll", 3, 10_000, (1, 1), []),
        ("map", "map", 3, 10_000, (1, 1), []),
        ("auto", "vmap", 4, 10_000, (4, 1), []),
        ("auto", "vmap", 10, 10_000, (2, 2), ["map"]),
    ],
)
def test_what_is_worth_a_measurement(
    wanted, mapping, num_members, num_steps, layout, expected
):
    execution = Execution(mapping, 4, layout=layout)
    found = tuning.alternatives(wanted, execution, num_members, num_steps)
    assert found == expected


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"map": 1.0, "vmap": 0.9}, "vmap"),
        ({"map": 1.0, "vmap": 0.96}, "map"),
        ({"map": 1.0, "vmap": 1.1}, "map"),
    ],
)
def test_the_fastest_mapping_is_chosen(
    regression, by_map, monkeypatch, seconds, chosen
):
    names = iter(seconds)

    def timed(program, state, *arguments):
        state, _ = program(state, *arguments, 3)
        return seconds[next(names)], state

    monkeypatch.setattr(tuning, "seconds_a_step", timed)
    found, state = train_with(regression, Execution("map", 4), others=["vmap"])
    assert found.execution == Execution(chosen, 4) and found.seconds == seconds
    # What was trained to be timed is forgotten.
    assert_close(state, by_map)


def test_steps_are_timed(regression, monkeypatch):
    prepared, hyper, keys = prepare(regression, Execution("map", 16))
    rows = np.zeros((16, BATCH), np.int32)
    calls, clock = [], iter(np.arange(100.0))

    def program(state, hyper, keys, data, rows, num):
        calls.append(num)
        return state, jnp.int32(0)

    monkeypatch.setattr(tuning.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(tuning, "MEASURED_SECONDS", 2.0)
    given = (prepared.state, hyper, keys, regression[1], rows)
    seconds, _ = tuning.seconds_a_step(program, *given)
    # One to compile; then each lasted a second, too short, until there is no longer.
    assert calls == [1, 1, 4, 16] and seconds == 1 / 16
    calls.clear()
    monkeypatch.setattr(tuning, "MEASURED_SECONDS", 1.0)
    assert tuning.seconds_a_step(program, *given)[0] == 1.0
    assert calls == [1, 1]


def test_a_run_keeps_the_mapping_it_measured(
    smoke_config, tmp_path, monkeypatch, capsys
):
    config = smoke_config("mvae")
    sweep = run.build(config, sweeps.grid(config.sweep), run.Signals())
    monkeypatch.setattr(tuning, "MEASURED_FROM_STEPS", config.train.num_steps)
    asked = []

    def measured(task, execution, *rest, others, batch_size):
        asked.append((execution.mapping, others))
        seconds = {"map": 1.0, "vmap": 0.5} if others else {}
        execution = execution._replace(mapping="vmap")
        return tuning.Prepared(None, execution, None, None, seconds)

    monkeypatch.setattr(tuning, "prepare", measured)
    capsys.readouterr()
    run.prepare_program(sweep, tmp_path)
    line = "seconds a step: map 1, vmap 0.5; mapped by vmap from here\n"
    assert capsys.readouterr().out == line
    again = run.prepare_program(sweep, tmp_path)
    assert capsys.readouterr().out == ""
    assert asked == [("map", ["vmap", "unroll"]), ("vmap", [])]
    assert again.execution.mapping == "vmap"
    assert again.seconds == {"map": 1.0, "vmap": 0.5}


def test_a_measurement_on_other_devices_is_none(tmp_path):
    here = {"device": "cpu", "layout": [1, 1]}
    found = {"mapping": "map", "seconds_a_step": {"map": 1.0}}
    assert workdirs.read_execution(tmp_path, here) is None
    workdirs.record_execution(tmp_path, {**here, **found})
    assert workdirs.read_execution(tmp_path, here) == found
    assert workdirs.read_execution(tmp_path, {**here, "layout": [2, 1]}) is None
    assert workdirs.read_execution(tmp_path, {**here, "device": "gpu"}) is None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"device": "cpu", "layout": [1, 1], "mapping": "map"}',
        '{"device": "cpu", "layout": [1, 1], "mapping": "pmap", '
        '"seconds_a_step": {"pmap": 1}}',
        '{"device": "cpu", "layout": [1, 1], "mapping": "map", '
        '"seconds_a_step": {"map": "fast"}}',
    ],
)
def test_a_measurement_that_cannot_be_read(tmp_path, text):
    (tmp_path / "execution.json").write_text(text)
    message = r"execution\.json is not what this project writes; remove it"
    with pytest.raises(UsageError, match=message):
        workdirs.read_execution(tmp_path, {"device": "cpu", "layout": [1, 1]})


@pytest.mark.slow
def test_a_run_beyond_the_memory_is_trained_in_chunks(
    smoke_config, run_here, tmp_path, monkeypatch
):
    # Large batches, of which a step needs more than the states.
    changes = {"train.mapping": "vmap", "train.batch_size": 512}
    config = smoke_config("mvae", changes | {"eval.metrics": ("elbo",)})
    sweep = run.build(config, sweeps.grid(config.sweep), run.Signals())
    whole = run.prepare_program(sweep, tmp_path)
    assert whole.execution.members_at_once == 0
    assert run_here(config, tmp_path / "whole")[0] == 0
    memory = tuning.peak_bytes(whole.program) - 1
    monkeypatch.setattr(tuning, "device_memory", lambda: memory)
    code, output = run_here(config, tmp_path / "run")
    assert code == 0
    assert "the memory of the device holds 1 members at once: they are" in output
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
        run.train_and_evaluate(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("auto", 0, False, "cpu"), ("map", MAX_STEPS_PER_CALL)),
        (("auto", 0, True, "cpu"), ("unroll", 1)),
        (("auto", 0, False, "gpu"), ("vmap", MAX_STEPS_PER_CALL)),
        (("auto", 0, True, "tpu"), ("vmap", MAX_STEPS_PER_CALL)),
        (("vmap", 0, True, "cpu"), ("vmap", 1)),
        (("unroll", 12, True, "gpu"), ("unroll", 12)),
        (("auto", 12, True, "cpu"), ("unroll", 12)),
        (("map", 1, False, "gpu"), ("map", 1)),
    ],
)
def test_how_execution_is_chosen(arguments, expected):
    assert tuning.choose_execution(*arguments) == Execution(*expected)


def test_unknown_mapping():
    message = (
        "unknown config.train.mapping 'pmap'; choose one of auto, vmap, map, unroll"
    )
    with pytest.raises(UsageError, match=message):
        tuning.choose_execution("pmap", 0, False, "cpu")


@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        ("resnet", {"width": 2}, True),
        ("conv", {"channels": (2, 2)}, False),
        ("conv", {"channels": (2, 2), "form": "lax"}, True),
        ("mlp", {"widths": (4,)}, False),
    ],
)
def test_which_networks_hold_a_convolution(network, options, expected, tiny_config):
    config = tiny_config("mvae")
    config.modality.network = network
    config.modality.network_options = options
    model = models.make_model(config, {"m0": (8, 8, 1)})
    hyper = Hyper(jnp.float32(1), jnp.float32(1))
    batch = {"m0": jnp.zeros((2, 8, 8, 1), jnp.uint8)}
    assert tuning.has_convolution(train.vae_task(model), hyper, batch) == expected


@pytest.mark.parametrize(
    ("network", "options", "is_refused"),
    [("resnet", {"width": 2}, True), ("conv", {"channels": (2, 2)}, False)],
)
def test_bfloat16_is_of_matrix_products_alone(
    network, options, is_refused, tiny_config, monkeypatch
):
    """On a GPU, where the small convolutions are matrix products, and ResNets' not."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = tiny_config("mvae")
    config.modality.network = network
    config.modality.network_options = options
    task = train.vae_task(models.make_model(config, {"m0": (8, 8, 1)}))
    hyper = Hyper(jnp.float32(1), jnp.float32(1))
    batch = {"m0": jnp.zeros((2, 8, 8, 1), jnp.uint8)}
    for precision, backend in (("default", "gpu"), ("bfloat16", "tpu")):
        tuning.require_precision(precision, task, hyper, batch, backend)
    if not is_refused:
        tuning.require_precision("bfloat16", task, hyper, batch, "gpu")
        return
    with pytest.raises(UsageError, match="this network has convolutions, which a GPU"):
        tuning.require_precision("bfloat16", task, hyper, batch, "gpu")
