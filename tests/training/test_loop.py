"""The train loop: how steps are grouped, logged, stopped and resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saved_states
from small_tasks import (
    BATCH,
    DATA_SEED,
    MAP,
    MEMBERS,
    NUM,
    VMAP,
    assert_same_bits,
    bits_differ,
    noisy_regression,
)

from mmvae_jax.data.batches import batch_indices
from mmvae_jax.errors import UsageError
from mmvae_jax.training import checkpoints, loop
from mmvae_jax.training.execution import (
    MAX_STEPS_PER_CALL,
    Execution,
)
from mmvae_jax.training.loop import Events
from mmvae_jax.training.step import (
    init_state,
    train_step,
)
from mmvae_jax.types import Hyper


def test_how_steps_are_grouped_changes_no_bits(vae, regression, monkeypatch):
    for setup, sizes in ((vae, (16,)), (regression, (7, 16, 256))):
        results = []
        for size in sizes:
            for seconds in (0.0, 1e9):  # one step a call, as many as allowed
                monkeypatch.setattr(loop, "TARGET_SECONDS_PER_CALL", seconds)
                calls = []
                events = Events(progress=lambda step, *_, c=calls: c.append(step))
                execution = Execution("map", size)
                results.append(setup.fit(MEMBERS, execution, 30, events=events))
                assert calls[-1] == 30 and (len(calls) == 30) == (seconds == 0)
        for other in results[1:]:
            assert_same_bits(results[0], other)


def test_a_call_that_returns_when_it_is_done_is_timed_by_itself(monkeypatch):
    """As on CPUs: else its time would be taken for that of the call before."""
    setup, now, seconds = noisy_regression(), [0.0], []
    real = setup.program(MAP)

    def program(*arguments):
        result = jax.block_until_ready(real(*arguments))
        now[0] += 3.0 * arguments[-1]
        return result

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(loop, "TARGET_SECONDS_PER_CALL", 1e9)
    setup.programs[MAP] = (program,)
    events = Events(
        save_every_steps=7,
        save=lambda step, state: None,
        progress=lambda *given: seconds.append(given),
    )
    setup.fit(MEMBERS, MAP, 30, events=events)
    assert [step for step, *_ in seconds] == [1, 5, 7, 14, 21, 28, 30]
    assert {took for _, took, _ in seconds} == {3.0}
    assert [is_first for *_, is_first in seconds] == [True] + 6 * [False]


@pytest.mark.parametrize("execution", [MAP, VMAP])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    execution, any_vae, tmp_path
):
    """Through checkpoints, one in the middle of every stage."""
    own = any_vae.task.stages
    middles = [(stage.start + stage.end) // 2 for stage in own] or [9]
    assert all(x.start < at < x.end for x, at in zip(own, middles, strict=False))
    num_steps = own[-1].end if own else 20
    whole, state = any_vae.fit(MEMBERS, execution, num_steps), None
    for at in middles:
        part = any_vae.fit(MEMBERS, execution, at, state)
        assert bits_differ(part.params, whole.params)
        manager = checkpoints.open_checkpoints(tmp_path / "checkpoints", 1)
        checkpoints.save(manager, at, part)
        checkpoints.close(manager)
        like, *_ = any_vae.start(MEMBERS)
        step, state = saved_states.restore(tmp_path / "checkpoints", like)
        assert step == at
    assert_same_bits(any_vae.fit(MEMBERS, execution, num_steps, state), whole)


def by_hand(setup, member, num_steps):
    """The steps of one member, one by one; the states after each."""
    hyper = Hyper(jnp.float32(member.beta), jnp.float32(member.learning_rate))
    key = jax.random.key(member.seed)
    state = init_state(setup.task, hyper, key, setup.data)
    order = batch_indices(DATA_SEED, 0, num_steps, NUM, BATCH)
    step = jax.jit(train_step, static_argnums=0)
    states = [state]
    for indices in order:
        batch = jax.tree.map(lambda leaf, i=indices: leaf[i], setup.data)
        states.append(step(setup.task, states[-1], hyper, key, batch))
    return states, order


def test_logged_metrics_are_means_since_the_last_log(regression):
    logged = []
    regression.fit(
        MEMBERS, MAP, 14, events=Events(4, lambda *args: logged.append(args))
    )
    assert [step for step, _, _ in logged] == [4, 8, 12, 14]
    states, order = by_hand(regression, MEMBERS[1], 14)
    x = np.asarray(regression.data["x"]) / 255
    for step, metrics, finite in logged:
        assert finite.tolist() == [True] * 3
        num = step % 4 or 4
        rows = x[order[step - num : step]]
        np.testing.assert_allclose(
            metrics["train/target"], [rows.mean(1).sum(-1).mean()] * 3, rtol=1e-5
        )
        totals = [states[s].totals["train/loss"] for s in (step - num, step)]
        mean = np.float64(totals[1] - totals[0]) / num
        assert metrics["train/loss"].shape == (3,)
        assert metrics["train/loss"][1] == pytest.approx(mean, rel=1e-4)


def test_what_was_not_logged_yet_survives_a_stop(regression, monkeypatch):
    monkeypatch.setattr(loop, "TARGET_SECONDS_PER_CALL", 0.0)

    def run(*stops):
        logged, seen, state = [], [], None
        for stop in stops:
            events = Events(
                log_every_steps=8,
                log=lambda *args: logged.append(args),
                progress=lambda step, *_: seen.append(step),
                is_stopping=lambda stop=stop: bool(seen) and seen[-1] >= stop,
            )
            state = regression.fit(MEMBERS, MAP, 16, state=state, events=events)
        return logged

    whole, parts = run(16), run(3, 10, 16)
    assert [step for step, _, _ in parts] == [8, 16]
    for one, other in zip(whole, parts, strict=True):
        assert_same_bits(one, other)


def test_events_are_called_at_their_steps_in_order(regression):
    calls = []

    def note(name):
        return lambda step, *rest: calls.append((name, step))

    def note_state(name):
        def call(step, state):
            assert state.step.tolist() == [step] * 3
            calls.append((name, step))

        return call

    events = Events(
        log_every_steps=3,
        log=note("log"),
        eval_every_steps=4,
        evaluate=note_state("evaluate"),
        save_every_steps=6,
        save=note_state("save"),
    )
    regression.fit(MEMBERS, MAP, 13, events=events)
    assert calls == [
        ("log", 3),
        ("evaluate", 4),
        ("log", 6),
        ("save", 6),
        ("evaluate", 8),
        ("log", 9),
        ("log", 12),
        ("save", 12),
        ("evaluate", 12),
        ("log", 13),
    ]


def test_nothing_is_called_by_default(regression):
    called = []
    events = Events(
        log=lambda *args: called.append("log"),
        evaluate=lambda *args: called.append("evaluate"),
        save=lambda *args: called.append("save"),
    )
    regression.fit(MEMBERS, MAP, 20, events=events)
    assert not called
    assert Events().steps_to_boundary(17) == MAX_STEPS_PER_CALL
    assert Events(10, eval_every_steps=4).steps_to_boundary(17) == 3


def test_a_stopped_run_goes_on_with_the_same_bits(regression):
    seen = []
    events = Events(
        progress=lambda step, *_: seen.append(step),
        is_stopping=lambda: len(seen) >= 3,
    )
    stopped = regression.fit(MEMBERS, MAP, 500, events=events)
    step = int(stopped.step[0])
    assert step == seen[-1] and 3 <= step < 500
    resumed = regression.fit(MEMBERS, MAP, 80, state=stopped)
    assert_same_bits(resumed, regression.fit(MEMBERS, MAP, 80))


def test_the_order_of_the_data_is_that_of_the_seed(regression):
    one, other = (
        regression.fit(MEMBERS, MAP, 3, data_seed=seed).totals["train/target"]
        for seed in (0, 1)
    )
    assert (one != other).all()


def test_batches_are_no_larger_than_the_data(regression):
    with pytest.raises(UsageError, match=f"batch_size={NUM + 1} does not fit {NUM}"):
        regression.fit(MEMBERS, MAP, 3, batch_size=NUM + 1)


def test_steps_are_those_of_optax_adam(regression):
    member = MEMBERS[1]
    states, order = by_hand(regression, member, 5)
    optimizer = optax.adam(member.learning_rate)
    params = states[0].params
    optimizer_state = optimizer.init(params)
    hyper = Hyper(jnp.float32(member.beta), jnp.float32(member.learning_rate))
    gradient = jax.jit(jax.grad(regression.task.loss, has_aux=True))
    for step, indices in enumerate(order):
        batch = {"x": regression.data["x"][indices]}
        key = jax.random.fold_in(jax.random.key(member.seed), step)
        updates, optimizer_state = optimizer.update(
            gradient(params, hyper, key, batch)[0], optimizer_state
        )
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(
            states[step + 1].params["w"], params["w"], rtol=1e-6, atol=1e-7
        )
    # The compiled sweep takes the same steps.
    state = regression.fit(MEMBERS, MAP, 5)
    np.testing.assert_allclose(state.params["w"][1], params["w"], rtol=1e-6, atol=1e-7)
