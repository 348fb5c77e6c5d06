"""beta, the learning rate and models' own weights that change over the training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tasks import MAP, NUM, SHAPES, Setup, assert_same_bits, bits_differ

from configs import base
from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import checks
from mmvae_jax.training import sweep
from mmvae_jax.training.schedules import Factors, make_factors
from mmvae_jax.training.step import init_state, train_step, vae_task
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import Hyper, MultimodalVAE, ObjectiveTerms

SCHEDULED = {
    "beta_warmup_steps": 8,
    "learning_rate_schedule": "cosine",
    "learning_rate_warmup_steps": 4,
    "learning_rate_final": 0.1,
}
MEMBERS = [Member(0.5, 3e-3, 0), Member(2.0, 1e-2, 1)]
KEY = jax.random.key(0)


def test_values_of_the_factors():
    factors = make_factors(20, **SCHEDULED)
    steps = np.arange(21)
    found = np.array([factors.beta(s) for s in steps])
    np.testing.assert_allclose(found, np.minimum(steps / 8, 1), rtol=1e-6)
    found = np.array([factors.learning_rate(s) for s in steps])
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * (steps - 4) / 16)) / 2
    expected = np.where(steps < 4, steps / 4, cosine)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    rising = make_factors(20, learning_rate_warmup_steps=4).learning_rate
    assert [float(rising(s)) for s in (0, 1, 4, 19)] == [0, 0.25, 1, 1]
    falling = make_factors(20, learning_rate_schedule="cosine").learning_rate
    assert float(falling(0)) == 1 and float(falling(20)) == pytest.approx(0, abs=1e-6)
    assert factors.words == (
        "beta rises from 0 over 8 steps",
        "the learning rate rises from 0 over 4 steps",
        "the learning rate falls by a cosine to 0.1 of its peak at step 20",
    )


def test_without_a_schedule_nothing_is_computed_of_one():
    """No schedule, no bit: the program is that of before there were any."""
    assert make_factors(20) == Factors()
    task = vae_task(toy_model(), factors=make_factors(20))
    hyper = Hyper(jnp.float32(2), jnp.float32(3))
    assert task.scheduled(hyper, jnp.int32(5)) == hyper


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_warmup_steps": -1}, r"{beta_warmup_steps} must be in \[0, {num"),
        ({"beta_warmup_steps": 20}, r"beta_warmup_steps must be .* 20, got 20"),
        ({"learning_rate_warmup_steps": 20}, "learning_rate_warmup_steps must be in"),
        ({"learning_rate_schedule": "step"}, "unknown learning_rate_schedule 'step'"),
        (SCHEDULED | {"learning_rate_final": 2.0}, "learning_rate_final must be in"),
        ({"learning_rate_final": 0.5}, "'cosine' alone: set that, or leave it 0"),
    ],
)
def test_settings_that_are_refused(settings, message):
    message = message.replace("{beta_warmup_steps}", "beta_warmup_steps")
    message = message.replace("{num", "num_steps")
    with pytest.raises(UsageError, match=message):
        make_factors(20, **settings)
    config = base.get_config()
    config.train.update({"num_steps": 20} | settings)
    with pytest.raises(UsageError, match="config.train.(beta|learning_rate)"):
        checks.check(config)


def test_a_schedule_of_a_model_ends_before_its_training():
    config = base.parse_arg(base.get_config(), "mmvm")
    config.model.latent_dim, config.model.options.alpha_steps = 2, 10
    config.modality.network = "mlp"
    model = models.make_model(config, SHAPES)
    message = (
        r"config.train.num_steps=10 must .* than the 10 steps .* \(alpha falls from 1"
    )
    (row,) = [one for one in checks.CHECKS_WITH_DATA if one.field == "train.num_steps"]
    config.train.num_steps = 10
    run = checks.Run(None, model, vae_task(model), 1)
    with pytest.raises(UsageError, match=message):
        checks._apply([row], config, run)
    config.train.num_steps = 11
    checks._apply([row], config, run)


@pytest.mark.parametrize(
    ("name", "options", "stage", "steps"),
    [
        ("latent_flow", {}, "vae", (1, 10)),
        ("code_flow", {}, "vae", (1, 10)),
        ("code_flow", {"single_stage": True}, "all", (1, 20)),
        ("contrastive", {"code_prior": "flow"}, "all", (1, 20)),
        ("jnf", {}, "joint", (1, 10)),
        ("jnf_shared", {}, "joint", (3, 12)),
        ("telbo", {"joint_share": 0.3}, "joint", (1, 6)),
        ("telbo", {}, "", (1, 19)),
        ("mvae", {}, "", (1, 19)),
    ],
)
def test_a_warmup_of_beta_ends_in_the_stage_that_has_beta(
    tiny_config, name, options, stage, steps
):
    model = model_of(tiny_config, name, **options)
    run = checks.Run(None, model, vae_task(model, num_steps=20), 1)
    fields = [one.field for one in checks.CHECKS_WITH_DATA]
    row = checks.CHECKS_WITH_DATA[fields.index("train.beta_warmup_steps")]
    for allowed in (0, *steps):
        row.rule(allowed, run)
    least, most = steps
    for refused in {least - 1, most + 1} - {0, 20, 21}:
        message = rf"={refused} must be in \[{least}, {most}\], .* stage '{stage}'"
        with pytest.raises(UsageError, match=message):
            row.rule(refused, run)


def test_stages_say_whether_they_have_beta(tiny_config, tiny_images):
    """The loss of those that say so changes with beta, and that of no other."""
    batch = {m: x / np.float32(255) for m, x in tiny_images(SHAPES, 6).items()}
    found = {}
    for name in ("latent_flow", "jnf_shared"):
        model = model_of(tiny_config, name)
        shapes = jax.eval_shape(model.init, KEY)
        for stage in model.stages:
            jaxpr = jax.make_jaxpr(
                lambda beta, params, stage=stage: stage.objective(
                    params, batch, KEY, beta
                )[0]
            )(1.0, shapes)
            beta = jaxpr.jaxpr.invars[0]
            used = {v for e in jaxpr.jaxpr.eqns for v in e.invars if v is beta}
            assert bool(used) == stage.has_beta, (name, stage.name)
            found[stage.name] = stage.has_beta
    expected = {"vae": True, "flow": False, "code": False}
    assert found == expected | {"joint": True, "flows": False}


_DEFAULTS = MultimodalVAE._field_defaults


def toy_model():
    """One weight, whose loss tells beta; the objective sees no step."""

    def objective(params, batch, key, beta):
        zeros = jnp.zeros(len(batch["m0"]))
        loss = jnp.square(params["w"] - jnp.mean(batch["m0"])) + beta * params["w"]
        return loss, ObjectiveTerms({"m0": zeros + loss}, zeros, zeros, zeros)

    others = dict.fromkeys(set(MultimodalVAE._fields[4:]) - set(_DEFAULTS))
    return MultimodalVAE(
        ("m0",), 1, lambda key: {"w": jax.random.normal(key)}, objective, **others
    )


def test_a_step_has_the_beta_and_the_learning_rate_of_its_time():
    batch = {"m0": jnp.linspace(0, 1, 6)}
    hyper = Hyper(jnp.float32(3), jnp.float32(0.1))
    task = vae_task(toy_model(), factors=make_factors(20, **SCHEDULED))
    plain = vae_task(toy_model())
    state = init_state(task, hyper, KEY, batch)
    for step, factor, rate in ((0, 0, 0), (2, 0.25, 0.5), (4, 0.5, 1), (8, 1, None)):
        now = state._replace(step=jnp.int32(step))
        if rate is None:
            rate = 0.1 + 0.9 * (1 + np.cos(np.pi * (step - 4) / 16)) / 2
        own = Hyper(jnp.float32(3 * factor), jnp.float32(0.1 * rate))
        found = train_step(task, now, hyper, KEY, batch)
        expected = train_step(plain, now, own, KEY, batch)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected
        )


def model_of(tiny_config, name, **options):
    config = tiny_config(name, 2, **options)
    config.modality.network_options.widths = ()
    return models.make_model(config, SHAPES)


@pytest.fixture(scope="module")
def setup(tiny_config, tiny_images):
    """A model with a schedule of its own, beside those of beta and learning rate."""
    model = model_of(tiny_config, "mmvm", alpha_steps=8)
    task = vae_task(model, factors=make_factors(12, **SCHEDULED))
    return Setup(task, jax.device_put(tiny_images(SHAPES, NUM)))


def test_a_run_interrupted_in_a_schedule_is_the_unbroken_one(setup):
    unbroken = setup.fit(MEMBERS, MAP, 12)
    state = None
    for step in (3, 7, 8, 9, 12):  # within, before, at and after the changes
        state = setup.fit(MEMBERS, MAP, step, state)
    assert_same_bits(state, unbroken)
    # Each member as if it were alone.
    alone = setup.fit(MEMBERS[1:], MAP, 12)
    assert_same_bits(sweep.member(unbroken, 1), sweep.member(alone, 0))
    assert setup.program(MAP)._cache_size() == 2  # of two members, and of one


@pytest.mark.slow
def test_alpha_of_mmvm_falls_to_the_option(tiny_config, tiny_images):
    batch = {m: x / np.float32(255) for m, x in tiny_images(SHAPES, 6).items()}
    annealed = model_of(tiny_config, "mmvm", alpha=0.2, alpha_steps=10)
    assert annealed.schedule.num_steps == 10
    params = annealed.init(KEY)
    objective = jax.jit(annealed.objective)
    for step, alpha in ((0, 1.0), (5, 0.6), (10, 0.2), (99, 0.2)):
        constant = model_of(tiny_config, "mmvm", alpha=alpha)
        assert constant.schedule is None
        found, _ = objective(params, batch, KEY, 2.0, jnp.int32(step))
        expected, _ = jax.jit(constant.objective)(params, batch, KEY, 2.0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    found, _ = annealed.objective(params, batch, KEY, 2.0)  # as in evaluation
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_the_two_stages_of_telbo(tiny_config, tiny_images):
    data = jax.device_put(tiny_images(SHAPES, NUM))
    model = model_of(tiny_config, "telbo", joint_share=5 / 12)
    staged = Setup(vae_task(model, num_steps=12), data)
    at_once = Setup(vae_task(model_of(tiny_config, "telbo")), data)
    start, *_ = staged.start(MEMBERS)
    first = staged.fit(MEMBERS, MAP, 5)
    # First the joint model, as if nothing else were trained, ...
    assert_same_bits(first.params["encoders"], start.params["encoders"])
    both = at_once.fit(MEMBERS, MAP, 5)
    for part in ("joint", "decoders"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            first.params[part],
            both.params[part],
        )
    # ... then the unimodal encoders, by an Adam of their own, the rest being fixed.
    second = staged.fit(MEMBERS, MAP, 6, first)
    for part in ("joint", "decoders"):
        assert_same_bits(second.params[part], first.params[part])
    assert bits_differ(second.params["encoders"], first.params["encoders"])
    fresh = start._replace(step=first.step, params=first.params)
    expected = at_once.fit(MEMBERS, MAP, 6, fresh)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        second.params["encoders"],
        expected.params["encoders"],
    )


def test_decoders_are_trained_in_one_stage(tiny_config):
    with pytest.raises(UsageError, match="joint_share > 0 is for decoder_gradients"):
        model_of(tiny_config, "telbo", joint_share=0.5, decoder_gradients="joint")
