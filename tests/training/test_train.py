import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmvae_jax import models
from mmvae_jax.data.batches import batch_indices
from mmvae_jax.errors import UsageError
from mmvae_jax.training import loop, sweep
from mmvae_jax.training.execution import (
    MAX_STEPS_PER_CALL,
    Execution,
    compile_steps,
    init_states,
    matmul_precision,
)
from mmvae_jax.training.loop import Events
from mmvae_jax.training.step import (
    LARGEST_GRADIENT,
    Task,
    gradient_norm,
    init_state,
    train_step,
    vae_task,
)
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import Hyper

NUM, BATCH, DATA_SEED = 40, 8, 5
SHAPES = {"m0": (2, 2, 1), "m1": (2, 2, 1)}
MEMBERS = [Member(0.5, 3e-3, 0), Member(2.0, 1e-2, 1), Member(4.0, 1e-3, 0)]


def copy(tree):
    """Programs donate the state they are given."""
    return jax.tree.map(jnp.copy, tree)


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def bits_differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


class Setup:
    """A task with its data, and a compiled program for each execution."""

    def __init__(self, task, data):
        self.task, self.data, self.programs, self.starts = task, data, {}, {}

    def program(self, execution):
        if execution not in self.programs:
            self.programs[execution] = compile_steps(self.task, execution)
        return self.programs[execution]

    def start(self, members):
        """State, hyper-parameters and keys before the first step."""
        hyper, keys = sweep.stack_hyper(members), sweep.stack_keys(members)
        for k, member in enumerate(members):
            if member not in self.starts:
                state = init_state(
                    self.task, sweep.member(hyper, k), keys[k], self.data
                )
                self.starts[member] = jax.device_get(state)
        states = [self.starts[member] for member in members]
        return jax.tree.map(lambda *x: jnp.array(np.stack(x)), *states), hyper, keys

    def fit(self, members, execution, num_steps, state=None, hyper=None, **options):
        start, own_hyper, keys = self.start(members)
        return loop.fit(
            self.program(execution),
            start if state is None else copy(state),
            own_hyper if hyper is None else hyper,
            keys,
            self.data,
            num_steps=num_steps,
            **{"batch_size": BATCH, "data_seed": DATA_SEED} | options,
            execution=execution,
        )


def noisy_regression():
    """Small, and different for every batch, key, beta and learning rate."""

    def init(key):
        return {"w": jax.random.normal(key, (3,))}

    def loss(params, hyper, key, batch):
        target = jnp.mean(batch["x"].astype(jnp.float32), axis=0) / 255
        noisy = params["w"] + 0.1 * jax.random.normal(key, (3,))
        value = jnp.sum(jnp.square(noisy - target)) + hyper.beta * jnp.sum(
            jnp.square(params["w"])
        )
        return value, {"train/loss": value, "train/target": jnp.sum(target)}

    rng = np.random.default_rng(1)
    data = {"x": jnp.asarray(rng.integers(0, 256, (NUM, 3), dtype=np.uint8))}
    return Setup(Task(init, loss), data)


@pytest.fixture(scope="module")
def regression():
    return noisy_regression()


def small_vae(name, tiny_config, tiny_images):
    config = tiny_config(name, latent_dim=2)
    if name == "custom":
        config.model.options.subsets = ((0,), (0, 1))
    config.modality.network_options.widths = ()
    model = models.make_model(config, SHAPES)
    rng = np.random.default_rng(0)
    base = jax.tree.map(
        lambda x: np.float32(0.5 * rng.normal(size=x.shape)),
        jax.eval_shape(model.init, jax.random.key(0)),
    )

    def init(key):  # compiles faster than the model's own
        return jax.tree.map(lambda x: x * (1 + 0.1 * jax.random.normal(key)), base)

    task = vae_task(model)._replace(init=init)
    return Setup(task, jax.device_put(tiny_images(SHAPES, NUM)))


@pytest.fixture(scope="module")
def vae(tiny_config, tiny_images):
    return small_vae("mmvae", tiny_config, tiny_images)


@pytest.fixture(
    scope="module",
    params=[
        name if name == "mmvae" else pytest.param(name, marks=pytest.mark.slow)
        for name in models.MODELS
    ],
)
def any_vae(request, vae, tiny_config, tiny_images):
    if request.param == "mmvae":
        return vae
    return small_vae(request.param, tiny_config, tiny_images)


MAP, VMAP = Execution("map", 16), Execution("vmap", 16)


def test_members_start_as_they_do_alone(regression):
    start, hyper, keys = regression.start(MEMBERS)
    states = init_states(regression.task, hyper, keys, regression.data)
    assert_same_bits(states, start)
    assert states.finite.all() and not states.step.any()
    assert bits_differ(*(states.params["w"][k] for k in (0, 1)))
    assert_same_bits(*(states.params["w"][k] for k in (0, 2)))  # of equal seeds


ADAM_LIMIT = 1e-6  # parameters of order 1 after 30 steps


def test_a_member_of_a_sweep_is_its_solo_run(any_vae):
    mapped = any_vae.fit(MEMBERS, MAP, 30)
    vmapped = any_vae.fit(MEMBERS, VMAP, 30)
    for k, member in enumerate(MEMBERS):
        solo = any_vae.fit([member], MAP, 30)
        assert_same_bits(sweep.member(mapped, k), sweep.member(solo, 0))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=ADAM_LIMIT),
            sweep.member(vmapped.params, k),
            sweep.member(solo.params, 0),
        )
    assert mapped.step.tolist() == [30, 30, 30] and mapped.finite.all()
    for one, other in itertools.combinations(range(3), 2):
        assert bits_differ(*(sweep.member(mapped.params, k) for k in (one, other)))


@pytest.mark.parametrize("mapping", sweep.MAPPINGS)
def test_all_mappings_train_the_same_members(mapping, regression):
    state = regression.fit(MEMBERS, Execution(mapping, 16), 30)
    for k, member in enumerate(MEMBERS):
        solo = regression.fit([member], Execution("map", 16), 30)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=ADAM_LIMIT),
            sweep.member(state, k),
            sweep.member(solo, 0),
        )


@pytest.mark.parametrize("execution", [MAP, VMAP])
def test_a_diverged_member_is_frozen_and_leaves_the_others_alone(execution, vae):
    start, hyper, _ = vae.start(MEMBERS)
    healthy = vae.fit(MEMBERS, execution, 12)
    broken = hyper._replace(beta=hyper.beta.at[1].set(jnp.nan))
    state = vae.fit(MEMBERS, execution, 12, hyper=broken)
    assert state.finite.tolist() == [True, False, True]
    assert state.step.tolist() == [12, 12, 12]
    for k in (0, 2):
        assert_same_bits(sweep.member(state, k), sweep.member(healthy, k))
    assert_same_bits(sweep.member(state.params, 1), sweep.member(start.params, 1))
    assert_same_bits(sweep.member(state.optimizer, 1), sweep.member(start.optimizer, 1))
    # It stays so, even where the loss would be finite again.
    later = vae.fit(MEMBERS, execution, 15, state=state)
    assert later.finite.tolist() == [True, False, True]
    assert_same_bits(sweep.member(later.params, 1), sweep.member(start.params, 1))


@pytest.mark.parametrize("where", ["", "loss", "gradient", "metric"])
def test_whatever_is_not_finite_stops_a_member(where):
    def loss(params, hyper, key, batch):
        value = jnp.sum(params["w"])
        if where == "loss":
            value += jnp.inf
        elif where == "gradient":
            value += jnp.sqrt(params["w"][0] * 0)  # 0, with a gradient of nan
        return value, {"metric": jnp.nan if where == "metric" else jnp.sum(value) * 0}

    task = Task(lambda key: {"w": jnp.ones(2)}, loss)
    hyper, key = Hyper(jnp.float32(1), jnp.float32(0.1)), jax.random.key(0)
    state = init_state(task, hyper, key, {})
    after = train_step(task, state, hyper, key, {})
    assert bool(state.finite) and bool(after.finite) == (where == "")
    assert bits_differ(after.params, state.params) == (where == "")


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 10.0])
def test_gradients_are_clipped_by_their_norm(clip_norm):
    def loss(params, hyper, key, batch):
        value = 3 * params["w"] + 4 * params["v"]  # a gradient of norm 5
        return value, {"train/loss": value}

    def init(key):
        return {"w": jnp.float32(0), "v": jnp.float32(0)}

    task = Task(init, loss, clip_norm)
    hyper, key = Hyper(jnp.float32(1), jnp.float32(0.1)), jax.random.key(0)
    state = train_step(task, init_state(task, hyper, key, {}), hyper, key, {})
    # Adam's first moment after one step: a tenth of the gradient.
    shrink = 0.1 if clip_norm == 0.5 else 1.0
    assert state.optimizer.mu["w"] == pytest.approx(0.1 * 3 * shrink)
    assert state.optimizer.mu["v"] == pytest.approx(0.1 * 4 * shrink)


@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [
        ("cpu", "default", "None"),
        ("cpu", "float32", "HIGHEST"),
        ("gpu", "default", "None"),
        ("gpu", "float32", "HIGHEST"),
        ("gpu", "tensorfloat32", "TF32_TF32_F32"),
        ("gpu", "bfloat16", "BF16_BF16_F32"),
        ("tpu", "bfloat16", "DEFAULT"),
    ],
)
def test_matrix_products_have_the_precision_asked_for(
    backend, precision, expected, vae, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    execution = Execution("map", 4, precision)
    state, hyper, keys = vae.start(MEMBERS[:1])
    rows = np.zeros((4, 8), np.int32)
    arguments = (state, hyper, keys, vae.data, rows, 1)
    text = str(compile_steps(vae.task, execution).trace(*arguments).jaxpr)
    found = re.findall(r"dot_general\[.*?precision=\(?([\w.]+)", text, re.DOTALL)
    # One of the default precision does not say so.
    found = [name.rpartition(".")[2] for name in found]
    found += ["None"] * (text.count("dot_general[") - len(found))
    # Sums of experts' precisions over subsets name their own.
    assert set(found) == {expected, "HIGHEST"}
    # Outputs, likelihoods and KL terms are float32, whatever is multiplied.
    assert "bf16[" not in text


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("cpu", "tensorfloat32"), ("cpu", "bfloat16"), ("tpu", "tensorfloat32")],
)
def test_a_precision_that_a_backend_lacks_is_refused(backend, precision):
    message = (
        f"precision='{precision}': a {backend} computes no matrix "
        "products of that kind; leave it 'default'"
    )
    with pytest.raises(UsageError, match=f"^{message}$"):
        matmul_precision(precision, backend)


def test_one_compilation_serves_every_number_of_steps():
    setup = noisy_regression()
    state = None
    for num_steps in (1, 2, 9, 30, 31):
        state = setup.fit(MEMBERS, VMAP, num_steps, state=state)
    setup.fit(MEMBERS, VMAP, 12, events=Events(5, lambda *args: None))
    assert setup.program(VMAP)._cache_size() == 1


def test_how_steps_are_grouped_changes_no_bits(vae, regression, monkeypatch):
    for setup, sizes in ((vae, (16,)), (regression, (7, 16, 256))):
        results = []
        for size in sizes:
            for seconds in (0.0, 1e9):  # one step a call, as many as allowed
                monkeypatch.setattr(loop, "TARGET_SECONDS_PER_CALL", seconds)
                calls = []
                events = Events(progress=lambda step, _, c=calls: c.append(step))
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
    setup.programs[MAP] = program
    events = Events(
        save_every_steps=7,
        save=lambda step, state: None,
        progress=lambda step, took: seconds.append((step, took)),
    )
    setup.fit(MEMBERS, MAP, 30, events=events)
    assert [step for step, _ in seconds] == [1, 5, 7, 14, 21, 28, 30]
    assert {took for _, took in seconds} == {3.0}


def test_without_a_loop_a_call_takes_one_step(regression):
    looped = regression.fit(MEMBERS, MAP, 12)
    calls = []
    events = Events(progress=lambda step, seconds: calls.append(step))
    state = regression.fit(MEMBERS, Execution("map", 1), 12, events=events)
    assert calls == list(range(1, 13))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, looped
    )


@pytest.mark.parametrize("execution", [MAP, VMAP])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(execution, any_vae):
    whole = any_vae.fit(MEMBERS, execution, 20)
    part = any_vae.fit(MEMBERS, execution, 9)
    assert bits_differ(part.params, whole.params)
    assert_same_bits(any_vae.fit(MEMBERS, execution, 20, state=part), whole)


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
                progress=lambda step, seconds: seen.append(step),
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
        progress=lambda step, seconds: seen.append(step),
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


def test_metrics_of_a_vae_are_those_of_its_terms(vae):
    hyper = Hyper(jnp.float32(3.0), jnp.float32(1e-3))
    params = vae.task.init(jax.random.key(1))
    batch = {m: x[:BATCH] for m, x in vae.data.items()}
    loss = jax.jit(vae.task.loss)
    value, metrics = loss(params, hyper, jax.random.key(2), batch)
    parts = [metrics[f"train/log_likelihood/{m}"] for m in SHAPES]
    assert set(metrics) == {
        "train/loss",
        "train/elbo",
        "train/kl",
        *(f"train/log_likelihood/{m}" for m in SHAPES),
    }
    assert metrics["train/elbo"] == pytest.approx(
        float(sum(parts) - metrics["train/kl"]), rel=1e-5
    )
    assert (
        metrics["train/loss"]
        == value
        == pytest.approx(float(3 * metrics["train/kl"] - sum(parts)), rel=1e-5)
    )
    # Bytes reach the model as values in [0, 1]: the likelihood of 4 pixels cannot
    # be lower than with all residuals as large as the outputs allow.
    assert metrics["train/log_likelihood/m0"] > -4 * (3 / 0.75 + np.log(1.5))


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e18, 1e20, 1e28])
def test_the_norm_of_a_gradient(size):
    gradient = {"a": jnp.float32([3 * size, 0]), "b": jnp.float32([[-4 * size]])}
    np.testing.assert_allclose(gradient_norm(gradient), 5 * size, rtol=1e-6)
    nan = {"a": jnp.float32([size]), "b": jnp.float32([jnp.nan])}
    assert not gradient_norm(nan) <= LARGEST_GRADIENT


@pytest.mark.parametrize(("size", "finite"), [(1.79e19, True), (1.81e19, False)])
def test_gradients_as_large_as_adam_can_square(size, finite):
    task = Task(
        lambda key: {"w": jnp.zeros(2)},
        lambda params, hyper, key, batch: (size * params["w"][0], {}),
    )
    hyper = Hyper(jnp.float32(1), jnp.float32(1e-3))
    state = init_state(task, hyper, jax.random.key(0), {})
    state = train_step(task, state, hyper, jax.random.key(0), {})
    assert bool(state.finite) == finite
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))
    assert bool(state.params["w"][0] < 0) == finite
