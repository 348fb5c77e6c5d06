"""One flow over all latents: what is given, drawn and learned, and at what times."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import flow_params

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.models import latent_flows
from mmvae_jax.types import OBSERVED

SHAPES = {"m0": (3,), "m1": (4,), "m2": (2,)}
M, B, D = 3, 5, 2
KEY = jax.random.key(1)
SOME = np.array([True, False, True])


def make(tiny_config, **options):
    small = {"flow_width": 8, "flow_depth": 1, "ode_steps": 3}
    config = tiny_config("latent_flow", D, **small | options)
    config.modality.network_options.widths = ()
    return models.make_model(config, SHAPES)


def vectors(num=B):
    rng = np.random.default_rng(0)
    return {m: rng.normal(size=(num, *x)).astype(np.float32) for m, x in SHAPES.items()}


@pytest.fixture(scope="module")
def model(tiny_config):
    return make(tiny_config)


def test_what_a_draw_depends_on(tiny_config):
    """On what is given and on the guidance; prior examples on neither."""
    batch, drawn, prior = vectors(), {}, {}
    for guidance in (1.0, 3.0):
        model = make(tiny_config, guidance=guidance)
        params = flow_params(model)
        posterior, sample = (
            jax.jit(model.posterior),
            jax.jit(model.sample_prior, static_argnums=2),
        )
        experts = jax.tree.map(np.asarray, model.encode(params, batch))
        q = posterior(params, experts, SOME, KEY)
        means, noise = (np.asarray(x).reshape(B, M, D) for x in q)
        own = np.moveaxis(experts.mean, 0, 1)
        np.testing.assert_array_equal(means[:, SOME], own[:, SOME])
        np.testing.assert_array_equal(
            noise[:, SOME], np.moveaxis(experts.log_variance, 0, 1)[:, SOME]
        )
        assert (noise[:, ~SOME] == -20).all()
        for changed, is_used in ((0, True), (1, False)):
            mean = experts.mean.copy()
            mean[changed] += 0.5
            other = posterior(params, experts._replace(mean=mean), SOME, KEY).mean
            now = np.asarray(other).reshape(B, M, D)[:, 1]
            assert np.array_equal(now, means[:, 1]) != is_used
        drawn[guidance], prior[guidance] = means[:, 1], sample(params, KEY, 4)
    assert not np.array_equal(drawn[1.0], drawn[3.0])
    np.testing.assert_array_equal(prior[1.0], prior[3.0])


class Recorder:
    """A network without motion that keeps what it is called with."""

    def __init__(self):
        self.calls = []

    def init(self, key, x, t):
        return {}

    def apply(self, velocities, x, t):
        def keep(x, t):
            self.calls.append((np.asarray(x), np.asarray(t)))

        jax.debug.callback(keep, x, t, ordered=True)
        return jnp.zeros_like(x)


@pytest.mark.parametrize("times", ["shared", "each"])
def test_each_modality_has_a_time(tiny_config, monkeypatch, times):
    seen, num = Recorder(), 60
    monkeypatch.setattr(latent_flows, "MLPFlow", lambda *args: seen)
    model = make(tiny_config, times=times, condition_dropped=0.3)
    params, batch = flow_params(model), vectors(num)
    observed = np.ones((num, M), bool)
    observed[: num // 2, 1] = False
    objective = model.stages[1].objective
    jax.jit(objective)(params, batch | {OBSERVED: observed}, KEY, 1.0)
    jax.effects_barrier()
    ((x, t),) = seen.calls
    assert t.shape == (M, num)
    is_given, is_absent = t == 1, t == 0
    is_learned = ~is_given & ~is_absent
    # What an example does not have is absent, and so is at times what it was given.
    assert is_absent.T[~observed].all()
    assert is_absent.T[observed].any() and is_given.any()
    assert is_learned.any(axis=0).all()
    apart = np.ptp(np.where(is_learned, t, np.nan)[:, is_learned.sum(0) > 1], axis=0)
    several = t[:, is_learned.sum(0) == M]
    assert several.size
    assert (np.ptp(several, axis=0) == 0).all() == (times == "shared")
    assert apart.size
    # Given ones are seen as they are: their means differ as those of the data do.
    whitening = {name: own.reshape(M, D) for name, own in params["whitening"].items()}
    experts = model.encode(params, batch)
    for m in range(M):
        deviation = np.sqrt(whitening["squares"][m] / whitening["num"][m])
        clean = (np.asarray(experts.mean)[m] - whitening["mean"][m]) / deviation
        spread = np.exp(0.5 * np.asarray(experts.log_variance)[m]) / deviation
        errors = np.abs(x.reshape(num, M, D)[:, m] - clean) / spread
        assert (errors[is_given[m]] < 5).all()
    # Drawing: given ones at the time of data, the others together from 0 on.
    seen.calls.clear()
    jax.jit(model.posterior)(params, experts, SOME, KEY)
    jax.effects_barrier()
    conditional = [t for _, t in seen.calls[::2]]
    np.testing.assert_allclose([t[1, 0] for t in conditional], [0, 1 / 3, 2 / 3])
    assert all((t[SOME] == 1).all() for t in conditional)
    # ... and, for guidance, absent.
    assert all((t[SOME] == 0).all() for _, t in seen.calls[1::2])


def test_the_density_of_what_the_flow_moves_nowhere(tiny_config, monkeypatch):
    """Whitened latents are N(0, I), and what is missing has no part in the bound."""
    monkeypatch.setattr(latent_flows, "MLPFlow", lambda *args: Recorder())
    model = make(tiny_config)
    monkeypatch.setattr(Recorder, "apply", lambda self, velocities, x, t: 0 * x)
    params = flow_params(model)
    whitening = params["whitening"]
    variance = whitening["squares"] / whitening["num"]
    z = np.random.default_rng(0).normal(size=(2, B, M * D)).astype(np.float32)
    constant = np.log(2 * np.pi * variance)
    expected = -0.5 * ((z - whitening["mean"]) ** 2 / variance + constant)
    found = jax.jit(model.log_prior)(params, z)
    np.testing.assert_allclose(found, expected.sum(-1), rtol=1e-4)
    observed = np.ones((B, M), bool)
    observed[:2, 1] = False
    batch = vectors() | {OBSERVED: observed}
    kl = jax.jit(lambda params: model.objective(params, batch, KEY, 1.0)[1].kl)
    other = dict(whitening, squares=whitening["squares"] * np.repeat([1, 3, 1], D))
    is_changed = np.asarray(kl(params) != kl(params | {"whitening": other}))
    assert is_changed.tolist() == [False, False, True, True, True]


def test_stages_learn_all_there_is(model):
    learned = [name for stage in model.stages for name in stage.learns]
    kept = {"whitening", "flows_average"}
    assert sorted([*learned, *kept]) == sorted(jax.eval_shape(model.init, KEY))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("stage_shares", (1.0,), "must be one share of the steps below 1, got"),
        ("stage_shares", (0.2, 0.2), "must be one share of the steps"),
        ("times", "none", "choose one of shared, each"),
        ("empty_share", 0.0, "=0 leaves no example with nothing given, .* above 0"),
        ("empty_share", 1.0, "=1 leaves no example with a modality given, .* below 1"),
        ("condition_dropped", 1.0, "=1 leaves no example with a condition, .* below"),
    ],
)
def test_options_that_are_refused(tiny_config, option, value, message):
    with pytest.raises(UsageError, match=f"{option}.*{message}"):
        make(tiny_config, **{option: value})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("latent_flow", {}),
        pytest.param("code_flow", {}, marks=pytest.mark.slow),
        pytest.param("code_flow", {"single_stage": True}, marks=pytest.mark.slow),
    ],
)
def test_the_average_forgets_the_flow_that_it_began_with(tiny_config, name, options):
    config = tiny_config(name, D, flow_width=8, flow_depth=1, **options)
    model = models.make_model(config, SHAPES)
    params, batch, after = flow_params(model), vectors(), model.stages[-1].after_step
    for step, kept in ((0, 1 / 10), (90, 0.91), (10_000, 0.998)):
        found = after(params, batch, step)["flows_average"]
        jax.tree.map(
            lambda x, old, new, kept=kept: np.testing.assert_allclose(
                x, kept * old + (1 - kept) * new, rtol=1e-4, atol=1e-6
            ),
            found,
            params["flows_average"],
            params["flows"],
        )


@pytest.mark.parametrize("name", ["latent_flow", "code_flow"])
def test_draws_of_a_step_are_as_good_as_steps(tiny_config, name):
    """The loss of three draws has the mean of one's, and a third of its variance."""
    batch, found = vectors(), {}
    keys = jax.random.split(KEY, 2_000)
    for draws in (1, 3):
        config = tiny_config(name, D, flow_width=8, flow_depth=1, flow_draws=draws)
        model = models.make_model(config, SHAPES)
        objective = partial(model.stages[-1].objective, flow_params(model), batch)
        loss = jax.jit(jax.vmap(objective, (0, None)))(keys, 1.0)[0]
        found[draws] = np.asarray(loss)
    # Latents are redrawn too, so that nothing is shared but the examples.
    error = found[1].std() / np.sqrt(len(keys))
    assert abs(found[3].mean() - found[1].mean()) < 4 * error
    np.testing.assert_allclose(found[1].var() / found[3].var(), 3, rtol=0.2)
