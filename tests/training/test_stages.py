"""Training in stages: what each learns and begins with, and resumed runs of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tasks import MAP, NUM, SHAPES, VMAP, Setup, assert_same_bits, bits_differ

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import checks
from mmvae_jax.interface.progress import ProgressBar
from mmvae_jax.training import loop, stages, sweep
from mmvae_jax.training.execution import Execution, compile_steps
from mmvae_jax.training.schedules import Factors
from mmvae_jax.training.step import init_state, vae_task
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import OBSERVED, MultimodalVAE, ObjectiveTerms, Stage

MEMBERS = [Member(0.5, 3e-3, 0), Member(2.0, 1e-2, 1)]
STEPS, FIRST = 12, 5  # of the run, and of its first stage


def pixels(batch):
    return batch["m0"].reshape(len(batch["m0"]), -1)


def toy_model():
    """A mean is learned; then the data are whitened, and a second mean of them is."""

    def init(key):
        return {
            "mean": jax.random.normal(key, (4,)),
            "whitening": {"mean": jnp.zeros(4), "square": jnp.zeros(4)},
            "flow": jnp.ones(4),
            "average": jnp.zeros(4),
        }

    def begin(params, fold):
        def add(sums, batch):
            x = pixels(batch)
            return sums[0] + len(x), sums[1] + x.sum(0), sums[2] + (x**2).sum(0)

        num, total, squares = fold(add, (0, jnp.zeros(4), jnp.zeros(4)))
        found = {"mean": total / num, "square": squares / num}
        return params | {"whitening": found, "average": params["flow"]}

    def first(params, batch, key, beta):
        noise = 0.1 * jax.random.normal(key, (4,))
        loss = jnp.sum((params["mean"] + noise - pixels(batch).mean(0)) ** 2)
        loss += beta * jnp.sum(params["flow"] ** 2)  # which it does not train
        zeros = jnp.zeros(len(batch["m0"]))
        return loss, ObjectiveTerms({"m0": zeros + loss}, zeros, zeros, zeros)

    def second(params, batch, key, beta):
        x = pixels(batch) - params["whitening"]["mean"] + params["mean"]
        loss = jnp.sum((params["flow"] - x.mean(0) + jax.random.normal(key, (4,))) ** 2)
        return loss, {"flow": loss / 2, "scale": params["whitening"]["square"].sum()}

    def after_step(params, batch, step):
        rate = 0.1 * (1 + step)  # of the step in the stage
        now = (1 - rate) * params["average"] + rate * params["flow"]
        return params | {"average": now}

    others = dict.fromkeys(MultimodalVAE._fields[4:12])
    return MultimodalVAE(("m0",), 1, init, first, **others)._replace(
        stages=(
            Stage("mean", lambda num: FIRST, first, ("mean",)),
            Stage(
                "flow",
                lambda num: num,
                second,
                ("flow",),
                begin,
                after_step,
                lambda step, num: 1 - step / num,
            ),
        )
    )


@pytest.fixture(scope="module")
def data(tiny_images):
    return jax.device_put(tiny_images({"m0": (2, 2, 1)}, NUM + 3))  # no whole batches


@pytest.fixture(scope="module")
def setup(data):
    factors = Factors(learning_rate=lambda step: 1 / (1 + step))
    return Setup(vae_task(toy_model(), 0.0, factors, STEPS), data)


def recorded():
    """Events that keep what is logged, and the lines."""
    lines = []

    def log(step, metrics, finite):
        lines.append((step, {tag: x.tolist() for tag, x in metrics.items()}))

    return loop.Events(log_every_steps=4, log=log), lines


@pytest.mark.parametrize(
    "execution",
    [MAP, VMAP, pytest.param(Execution("unroll", 1), marks=pytest.mark.slow)],
    ids=lambda x: x.mapping,
)
def test_a_run_interrupted_in_any_stage_is_the_unbroken_one(setup, execution):
    events, lines = recorded()
    unbroken = setup.fit(MEMBERS, execution, STEPS, events=events)
    own_events, own_lines = recorded()
    state = None
    for step in (3, FIRST, 6, 9, STEPS):
        state = setup.fit(MEMBERS, execution, step, state, events=own_events)
    assert_same_bits(state, unbroken)
    whole = [line for line in own_lines if line[0] in dict(lines)]
    assert whole == lines
    # The last step of a stage has a line, too, and the tags of the stage.
    assert [step for step, _ in lines] == [4, FIRST, 8, STEPS]
    first, second = set(lines[0][1]), set(lines[-1][1])
    assert "train/log_likelihood/m0" in first and "train/flow" in second
    assert set(lines[1][1]) == first and set(lines[2][1]) == second
    assert first & second == {"train/loss"}
    if execution == MAP:
        alone = setup.fit(MEMBERS[1:], execution, STEPS, events=recorded()[0])
        assert_same_bits(sweep.member(unbroken, 1), sweep.member(alone, 0))


def test_the_time_of_a_step_is_without_the_compilation_of_any_stage(
    setup, data, monkeypatch
):
    now, timed = [0.0], Setup(setup.task, data)

    def slow(program):
        def call(*arguments):
            result = jax.block_until_ready(program(*arguments))
            now[0] += 3.0 * arguments[-1] + (0 if calls else 100)
            calls.append(arguments[-1])
            return result

        calls = []
        return call

    setup.program(MAP)
    timed.programs[MAP] = tuple(slow(program) for program in setup.programs[MAP])
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    with ProgressBar(0, STEPS, 8, is_shown=False) as bar:
        events = loop.Events(progress=bar.update)
        timed.fit(MEMBERS, MAP, STEPS, events=events)
        assert bar.timed_steps == STEPS - 2  # one step of each stage is left out
        assert bar.step_seconds == pytest.approx(3.0)


def test_what_is_logged_is_of_the_steps_of_the_stage_alone(setup):
    """A line after a boundary has no part of the stage before it."""
    events, lines = recorded()
    state = setup.fit(MEMBERS, MAP, FIRST)
    setup.fit(MEMBERS, MAP, 8, state, events=events)
    ((step, found),) = lines
    own = [setup.fit(MEMBERS, MAP, n, state) for n in range(FIRST + 1, 9)]
    totals = own[-1].totals["train/flow"]
    assert step == 8 and own[-1].num_logged.tolist() == [3, 3]
    np.testing.assert_allclose(found["train/flow"], np.asarray(totals) / 3, rtol=1e-6)


def test_a_stage_leaves_other_parameters_alone(setup, data):
    start, *_ = setup.start(MEMBERS)
    boundary = setup.fit(MEMBERS, MAP, FIRST)
    end = setup.fit(MEMBERS, MAP, STEPS, boundary)
    assert bits_differ(boundary.params["mean"], start.params["mean"])
    for name in ("whitening", "flow", "average"):
        assert_same_bits(boundary.params[name], start.params[name])
    assert_same_bits(end.params["mean"], boundary.params["mean"])
    assert bits_differ(end.params["flow"], boundary.params["flow"])
    x = np.asarray(data["m0"], np.float64).reshape(-1, 4) / 255
    for k in range(2):
        own = sweep.member(end.params, k)["whitening"]
        np.testing.assert_allclose(own["mean"], x.mean(0), rtol=1e-6)
        np.testing.assert_allclose(own["square"], (x**2).mean(0), rtol=1e-6)


def test_a_stage_has_an_adam_and_an_average_of_its_own(setup):
    """Its first step is of one learning rate, as Adam's first is."""
    boundary = setup.fit(MEMBERS, MAP, FIRST)
    after = setup.fit(MEMBERS, MAP, FIRST + 1, boundary)
    assert after.optimizer.count.tolist() == [1, 1]
    assert not np.any(after.optimizer.mu["mean"])
    moved = np.abs(np.asarray(after.params["flow"] - boundary.params["flow"]))
    rates = np.array([m.learning_rate for m in MEMBERS]) / (1 + FIRST)
    np.testing.assert_allclose(moved, np.tile(rates[:, None], 4), rtol=1e-3)
    expected = 0.9 * boundary.params["flow"] + 0.1 * after.params["flow"]
    np.testing.assert_allclose(after.params["average"], expected, rtol=1e-6)
    # The factor is of the step within the stage.
    for done in (1, 3):
        now = setup.fit(MEMBERS, MAP, FIRST + done, boundary)
        task = setup.task.stages[1].task
        rate = task.scheduled(sweep.member(setup.start(MEMBERS)[1], 0), now.step[0])
        factor = (1 - done / (STEPS - FIRST)) / (1 + FIRST + done)
        assert float(rate.learning_rate) == pytest.approx(3e-3 * factor, rel=1e-5)


def test_a_diverged_member_keeps_what_it_had(setup):
    boundary = setup.fit(MEMBERS, MAP, FIRST)
    broken = boundary._replace(finite=jnp.array([True, False]))
    found = setup.fit(MEMBERS, MAP, STEPS, broken)
    expected = setup.fit(MEMBERS, MAP, STEPS, boundary)
    assert found.finite.tolist() == [True, False]
    assert_same_bits(sweep.member(found.params, 1), sweep.member(boundary.params, 1))
    assert_same_bits(sweep.member(found, 0), sweep.member(expected, 0))
    # ... and so does one whose stage would begin with what is not finite.
    params = boundary.params | {"flow": boundary.params["flow"].at[0, 0].set(jnp.nan)}
    found = setup.fit(MEMBERS, MAP, STEPS, boundary._replace(params=params))
    assert found.finite.tolist() == [False, True]
    assert_same_bits(sweep.member(found.params, 0), sweep.member(params, 0))


def test_the_steps_of_stages(setup):
    model = toy_model()
    assert stages.words(setup.task) == "mean 1 to 5; flow 6 to 12"
    assert stages.words(vae_task(model._replace(stages=()))) == ""
    line = "evaluations up to step 5 are of a model of which the stage 'flow' has"
    for every, is_said in ((0, False), (4, True), (FIRST, True), (FIRST + 1, False)):
        found = stages.untrained(setup.task, every)
        assert found.startswith(line) if is_said else found == ""
    assert stages.untrained(vae_task(model._replace(stages=())), 1) == ""
    with pytest.raises(ValueError, match="trained for a number of steps"):
        vae_task(model)
    with pytest.raises(ValueError, match="a program for each of its tasks"):
        compile_steps(setup.task, MAP)
    (row,) = [one for one in checks.CHECKS_WITH_DATA if one.field == "train.num_steps"]
    run = checks.Run(None, model, vae_task(model, num_steps=FIRST), 1)
    with pytest.raises(UsageError, match=r"num_steps=5 leaves no step .*'flow'"):
        row.rule(FIRST, run)
    row.rule(STEPS, run._replace(task=setup.task))
    # The factor of the last stage is of all its steps.
    assert stages.is_lengthened(model, 12, 20)
    first, last = model.stages
    constant = model._replace(stages=(first, last._replace(learning_rate=None)))
    assert not stages.is_lengthened(constant, 12, 20)
    half = first._replace(end=lambda num: num // 2)
    assert stages.is_lengthened(constant._replace(stages=(half, last)), 12, 20)


@pytest.mark.slow
def test_the_stages_of_telbo_with_missing_modalities(tiny_config, tiny_images):
    """What is missing has no part: its values may be anything."""
    config = tiny_config("telbo", 2, joint_share=0.5)
    config.modality.network = "mlp"
    config.modality.network_options.widths = ()
    task = vae_task(models.make_model(config, {m: (4,) for m in SHAPES}), num_steps=6)
    rng = np.random.default_rng(0)
    observed = rng.random((NUM, 2)) < 0.6
    observed[:, 0] |= ~observed[:, 1]
    given = {m: rng.normal(size=(NUM, 4)).astype(np.float32) for m in SHAPES}
    states = []
    for fill in (0.0, np.nan):
        own = {
            m: np.where(observed[:, [i]], x, np.float32(fill))
            for i, (m, x) in enumerate(given.items())
        }
        setup = Setup(task, jax.device_put(own | {OBSERVED: observed}))
        states.append(setup.fit(MEMBERS, MAP, 6))
    assert states[0].finite.all()
    assert_same_bits(*states)


def test_states_have_one_structure(setup, data):
    hyper, keys = sweep.stack_hyper(MEMBERS), sweep.stack_keys(MEMBERS)
    one = init_state(setup.task, sweep.member(hyper, 0), keys[0], data)
    tags = {"loss", "elbo", "kl", "log_likelihood/m0", "flow", "scale"}
    assert set(one.totals) == {f"train/{tag}" for tag in tags}
