"""A code by contrast and flows over latents: what is given, drawn and learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from small_tasks import MAP, NUM, Setup, assert_same_bits, bits_differ
from toy_models import flow_params

from mmvae_jax import models
from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics.log_likelihood import log_likelihood
from mmvae_jax.models import code_priors, latent_flows
from mmvae_jax.training.step import vae_task
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import OBSERVED

SHAPES = {"m0": (3,), "m1": (4,), "m2": (2,)}
TWO = {"m0": (3,), "m1": (2,)}
M, B, C, D = 3, 5, 4, 2
KEY = jax.random.key(1)
SOME = np.array([True, False, True])


def make(tiny_config, **options):
    small = {"code_dim": C, "flow_width": 8, "flow_depth": 1, "ode_steps": 3}
    config = tiny_config("code_flow", D, **small | options)
    config.modality.network_options.widths = ()
    return models.make_model(config, SHAPES)


def vectors(num=B, seed=0):
    rng = np.random.default_rng(seed)
    return {m: rng.normal(size=(num, *x)).astype(np.float32) for m, x in SHAPES.items()}


@pytest.fixture(scope="module")
def model(tiny_config):
    return make(tiny_config)


def latents(model, params, batch, subset, key=KEY):
    """The posterior of the code, and that of the latents [B, M, D]."""

    @jax.jit
    def found(params, subset, key):
        experts = model.encode(params, batch)
        return experts, model.posterior(params, experts, subset, key)

    experts, q = found(params, subset, key)
    own = [jnp.moveaxis(field[..., C:], 0, 1) for field in experts]
    code = [field[:, :C] for field in q]
    return code, [field[:, C:].reshape(B, M, D) for field in q], own


def test_what_is_given_is_kept_and_what_is_missing_is_drawn(model):
    params, batch = flow_params(model), vectors()
    code, found, own = latents(model, params, batch, SOME)
    for field, expert in zip(found, own, strict=True):
        np.testing.assert_array_equal(field[:, SOME], expert[:, SOME])
    # Another key is another draw of the missing one alone.
    _, other, _ = latents(model, params, batch, SOME, jax.random.key(2))
    differs = (np.asarray(found[0]) != np.asarray(other[0])).any((0, 2))
    assert differs.tolist() == (~SOME).tolist()
    assert (found[1][:, ~SOME] == -20).all()
    # Each example has a subset of its own.
    each = np.stack([np.arange(B) % 2 == 0, np.ones(B, bool), np.arange(B) < 2])
    _, found, own = latents(model, params, batch, each)
    np.testing.assert_array_equal(found[0][each.T], own[0][each.T])
    # The code is the direction of the sum of codes, of length sqrt(c (1 - v)).
    variance = models.MODELS["code_flow"].options["code_variance"].default
    codes = np.asarray(model.encode(params, batch).mean)[..., :C]
    radius = np.sqrt(C * (1 - variance))
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), radius, rtol=1e-4)
    total = codes[SOME].sum(0)
    expected = radius * total / np.linalg.norm(total, axis=-1, keepdims=True)
    np.testing.assert_allclose(code[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(code[1], np.log(variance), rtol=1e-6)


@pytest.mark.slow
def test_the_density_of_what_the_flow_moves_nowhere(model):
    """Flows begin as no motion: whitened latents are N(0, I), and so is the code."""
    params = model.init(KEY)
    mean = np.linspace(-1, 1, M * D).astype(np.float32)
    variance = np.linspace(0.5, 2, M * D).astype(np.float32)
    params["whitening"] = {
        "num": np.full(M * D, 10, np.float32),
        "mean": mean,
        "squares": 10 * variance,
    }
    z = np.random.default_rng(0).normal(size=(2, B, C + M * D)).astype(np.float32)
    whole_mean = np.concatenate([np.zeros(C), mean])
    whole = np.concatenate([np.ones(C), variance])
    expected = -0.5 * ((z - whole_mean) ** 2 / whole + np.log(2 * np.pi * whole))
    found = model.log_prior(params, z)
    np.testing.assert_allclose(found, expected.sum(-1), rtol=1e-4)
    drawn = np.asarray(model.sample_prior(params, KEY, 4_000))
    np.testing.assert_allclose(drawn.mean(0), whole_mean, atol=0.1)
    np.testing.assert_allclose(drawn.var(0), whole, rtol=0.12)


@pytest.mark.parametrize("flow", ["modality", "joint"])
def test_what_a_draw_depends_on(tiny_config, flow):
    """On the code, on given latents if the flow is joint, and on the guidance."""
    batch, drawn = vectors(), {}
    for guidance in (1.0, 3.0):
        model = make(tiny_config, flow=flow, guidance=guidance)
        params = flow_params(model)
        _, found, _ = latents(model, params, batch, SOME)
        drawn[guidance] = np.asarray(found[0])[:, 1]
        changed = {}
        for name in ("code", "encoders"):
            other = params | {name: jax.tree.map(lambda x: -1.5 * x, params[name])}
            _, found, _ = latents(model, other, batch, SOME)
            now = np.asarray(found[0])[:, 1]
            changed[name] = not np.array_equal(now, drawn[guidance])
        assert changed == {"code": True, "encoders": flow == "joint"}
    assert not np.array_equal(drawn[1.0], drawn[3.0])


def test_stages_learn_all_there_is(model):
    learned = [name for stage in model.stages for name in stage.learns]
    kept = {"whitening", "flows_average"}
    assert sorted([*learned, *kept]) == sorted(jax.eval_shape(model.init, KEY))


@pytest.mark.slow
def test_whitening_is_of_all_that_is_observed(model):
    """Of draws of q(w|x), over the whole training set, with batches that differ."""
    data = vectors(NUM + 3)
    observed = np.random.default_rng(3).random((NUM + 3, M)) < 0.6
    observed[:, 0] |= ~observed.any(axis=1)
    spoilt = {
        m: np.where(observed[:, [i]], x, np.float32(np.nan))
        for i, (m, x) in enumerate(data.items())
    }
    task = vae_task(model, num_steps=10)
    setup = Setup(task, jax.device_put(spoilt | {OBSERVED: observed}))
    ends = [stage.end for stage in task.stages]
    before = setup.fit([Member(0.1, 1e-2, 0)], MAP, ends[1])
    after = setup.fit([Member(0.1, 1e-2, 0)], MAP, ends[2], before)
    assert after.finite.all()
    params = jax.tree.map(lambda x: x[0], after.params)
    experts = model.encode(params, data)
    for i in range(M):
        rows, own = observed[:, i], slice(i * D, (i + 1) * D)
        mean = np.asarray(experts.mean)[i, rows, C:]
        noise = np.exp(np.asarray(experts.log_variance)[i, rows, C:])
        found = {name: x[own] for name, x in params["whitening"].items()}
        assert found["num"].tolist() == [rows.sum()] * D
        np.testing.assert_allclose(found["mean"], mean.mean(0), rtol=1e-3, atol=1e-5)
        variance = mean.var(0) + noise.mean(0)
        np.testing.assert_allclose(found["squares"] / rows.sum(), variance, rtol=1e-3)
    flows = (before.params["flows"], after.params["flows"])
    is_moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), *flows)
    assert all(jax.tree.leaves(is_moved["prior"]))


def single_stage(tiny_config):
    return make(tiny_config, single_stage=True)


def test_a_single_stage_has_the_gradients_of_all_three(tiny_config, model):
    """Of the VAEs and the code those that they have alone, bit for bit."""
    params, batch, beta = flow_params(model), vectors(), 0.7
    (stage,) = single_stage(tiny_config).stages
    vae_key, flow_key = jax.random.split(KEY)
    keys = {"vae": vae_key, "code": KEY, "flow": flow_key}
    gradient = jax.jit(jax.grad(lambda p: stage.objective(p, batch, KEY, beta)[0]))
    found = gradient(params)
    other = params | {"flows": jax.tree.map(lambda x: 2 * x, params["flows"])}
    changed = gradient(other)
    for own in model.stages:

        def loss(params, own=own):
            return own.objective(params, batch, keys[own.name], beta)[0]

        expected = jax.jit(jax.grad(loss))(params)
        for name in own.learns:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                found[name],
                expected[name],
            )
            if own.name != "flow":
                assert_same_bits(found[name], changed[name])
    assert bits_differ(found["flows"], changed["flows"])


@pytest.mark.slow
def test_a_single_stage_is_resumed_and_its_vaes_learn_as_without_flows(tiny_config):
    task = vae_task(single_stage(tiny_config), num_steps=6)
    setup = Setup(task, jax.device_put(vectors(NUM)))
    members = [Member(0.1, 1e-2, 0)]
    start, *_ = setup.start(members)
    whole = setup.fit(members, MAP, 6)
    part = setup.fit(members, MAP, 3)
    assert_same_bits(setup.fit(members, MAP, 6, part), whole)
    flows = jax.tree.map(lambda x: x + 0.1, start.params["flows"])
    other = start._replace(params=start.params | {"flows": flows})
    other = setup.fit(members, MAP, 6, other)
    for name in ("encoders", "decoders", "code", "whitening"):
        assert_same_bits(other.params[name], whole.params[name])
        assert bits_differ(whole.params[name], start.params[name])
    assert bits_differ(other.params["flows"], whole.params["flows"])
    assert bits_differ(whole.params["flows_average"], whole.params["flows"])


def test_running_moments_fade(tiny_config):
    """A batch has 0.99 of the weight of the next one."""
    model = single_stage(tiny_config)
    params, (stage,) = flow_params(model), model.stages
    batches = [vectors(B, 1), vectors(2 * B, 2)]
    after = jax.jit(stage.after_step)
    found = after(after(params, batches[0], 0), batches[1], 1)["whitening"]
    old = params["whitening"]
    means, squares = [old["mean"][None]], [(old["squares"] / old["num"])[None]]
    for batch in batches:
        q = model.encode(params, batch)
        rows = [np.moveaxis(np.asarray(x)[..., C:], 0, 1).reshape(-1, M * D) for x in q]
        means.append(rows[0])
        squares.append(np.exp(rows[1]))
    weights = [0.99**2 * old["num"][0], *[0.99] * B, *[1.0] * 2 * B]
    mean = np.average(np.concatenate(means), axis=0, weights=weights)
    errors = (np.concatenate(means) - mean) ** 2 + np.concatenate(squares)
    np.testing.assert_allclose(found["num"], sum(weights), rtol=1e-5)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-5)
    variance = found["squares"] / found["num"]
    expected = np.average(errors, axis=0, weights=weights)
    np.testing.assert_allclose(variance, expected, rtol=1e-4)


@pytest.mark.slow
def test_log_likelihood_where_all_is_said_to_be_there(model):
    params, split = flow_params(model), Split(vectors())
    found = []
    for observed in (None, np.ones((B, M), bool)):
        given = split._replace(observed=observed)
        data = EvaluationData(given, given, None, B)
        values = log_likelihood(model, params, data, KEY, num_samples=2)
        found.append(values["log_likelihood"])
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
def test_the_density_of_what_is_observed_is_that_of_a_smaller_model(tiny_config, model):
    """And what stands in for the rest is N(0, I)."""
    params, kept = flow_params(model), np.flatnonzero(SOME)
    config = tiny_config("code_flow", D, code_dim=C, flow_width=8, flow_depth=1)
    config.model.options.ode_steps = 3
    small = models.make_model(config, {f"m{i}": SHAPES[f"m{i}"] for i in kept})
    rows = np.repeat(SOME, D)
    velocities = params["flows_average"]
    modality = jax.tree.map(lambda x: x[kept], velocities["modality"])
    own = {
        "flows_average": velocities | {"modality": modality},
        "whitening": {name: x[rows] for name, x in params["whitening"].items()},
    }
    z = np.random.default_rng(0).normal(size=(B, C + M * D)).astype(np.float32)
    is_there = np.append(np.ones(C, bool), rows)
    expected = jax.jit(small.log_prior)(own, z[:, is_there])
    expected -= 0.5 * (z[:, ~is_there] ** 2 + np.log(2 * np.pi)).sum(-1)
    found = jax.jit(model.log_prior)
    np.testing.assert_allclose(found(params, z, SOME), expected, rtol=1e-4)
    each = np.tile(SOME[:, None], B)
    each[:, 0] = True
    values = np.asarray(found(params, z, each))
    np.testing.assert_allclose(values[1:], expected[1:], rtol=1e-4)
    np.testing.assert_allclose(values[0], found(params, z)[0], rtol=1e-4)


@pytest.mark.slow
def test_the_density_is_not_that_of_the_steps_of_draws(tiny_config, model):
    """Euler's method, of draws, would make it too high."""
    z = np.random.default_rng(0).normal(size=(B, C + M * D)).astype(np.float32)
    params = flow_params(model)
    other = make(tiny_config, ode_method="heun")
    found = model.log_prior(params, z)
    np.testing.assert_array_equal(other.log_prior(params, z), found)
    assert (
        np.abs(
            other.sample_prior(params, KEY, 9) - model.sample_prior(params, KEY, 9)
        ).max()
        > 1e-3
    )


def densities(model, params, z, most_exact, monkeypatch):
    """log p(z), with an exact divergence of up to so many dimensions."""
    for module in (code_priors, latent_flows):
        monkeypatch.setattr(module, "MOST_EXACT", most_exact)
    return np.float64(jax.jit(lambda z: model.log_prior(params, z))(z))


@pytest.mark.parametrize(
    ("flow", "most"),
    [
        ("modality", max(C, D)),
        pytest.param("joint", M * D, marks=pytest.mark.slow),
    ],
)
def test_the_divergence_of_flows_of_one_modality_each_is_exact(
    tiny_config, monkeypatch, flow, most
):
    """If a modality has few dimensions, however many all of them have."""
    z = np.random.default_rng(0).normal(size=(B, C + M * D)).astype(np.float32)
    model = make(tiny_config, flow=flow)
    params = flow_params(model)
    exact = densities(model, params, z, C + M * D, monkeypatch)
    found = densities(model, params, z, most, monkeypatch)
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    estimate = densities(model, params, z, most - 1, monkeypatch)
    assert np.abs(estimate - exact).max() > 1e-2


@pytest.mark.slow
def test_errors_of_random_signs_are_of_each_row(tiny_config, monkeypatch):
    """So that their mean over batches, or over samples of an example, is none."""
    model, rng = make(tiny_config, flow="joint"), np.random.default_rng(0)
    params, num = flow_params(model), 2_000
    z = rng.normal(size=(num, C + M * D)).astype(np.float32)
    exact = densities(model, params, z, C + M * D, monkeypatch)
    errors = densities(model, params, z, 0, monkeypatch) - exact
    bar = errors.std() / np.sqrt(num)
    assert bar > 0.005 and abs(errors.mean()) < 4 * bar
    # Rows in the same places of another batch, with nearly the same densities.
    near = densities(model, params, z + np.float32(1e-5), 0, monkeypatch) - exact
    apart = np.abs(near - errors) > 0.2 * errors.std()
    assert apart.mean() > 0.3
    assert abs(np.corrcoef(near, errors)[0, 1]) < 0.1
    # A row has its signs in any place of any batch.
    again = densities(model, params, z[::-1], 0, monkeypatch)[::-1] - exact
    np.testing.assert_allclose(again, errors, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["modality", "joint"])
def test_the_density_with_guidance_is_that_of_draws(tiny_config, flow):
    """E_p[q(z) / p(z)] = 1 for every density q, here one near that of the draws."""
    options = {"flow": flow, "ode_method": "heun", "ode_steps": 25, "code_dim": 2}

    def built(guidance):
        small = {"flow_width": 8, "flow_depth": 1, "guidance": guidance}
        return models.make_model(tiny_config("code_flow", 1, **options | small), TWO)

    model = built(2.0)
    params = flow_params(model)
    # Motion that is slow enough for the solver.
    velocities = jax.tree.map(lambda x: 0.5 * x, params["flows_average"])
    params["flows_average"] = velocities
    z = jax.jit(model.sample_prior, static_argnums=2)(params, KEY, 6_000)
    rows = np.float64(z)
    law = scipy.stats.multivariate_normal(rows.mean(0), 0.5 * np.cov(rows.T))
    errors = {}
    for guidance, own in ((2.0, model), (1.0, built(1.0))):
        log_p = np.float64(jax.jit(own.log_prior)(params, z))
        ratio = np.exp(law.logpdf(rows) - log_p)
        errors[guidance] = (ratio.mean() - 1) / (ratio.std() / np.sqrt(len(z)))
    assert abs(errors[2.0]) < 3 and abs(errors[1.0]) > 4


class Recorder:
    """A network without motion that keeps what it is called with."""

    def __init__(self):
        self.calls = []

    def init(self, key, *inputs):
        return {}

    def apply(self, velocities, x, t, s, given):
        def keep(*inputs):
            self.calls.append([np.asarray(own) for own in inputs])

        jax.debug.callback(keep, x, t, given, ordered=True)
        return jnp.zeros_like(x)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_a_joint_flow_is_told_what_is_absent(tiny_config, monkeypatch, network):
    """By marks of -1; a Transformer by the time of noise, as in latent_flow."""
    seen, num = Recorder(), 40
    monkeypatch.setattr(latent_flows, "velocity_network", lambda *args: seen)
    model = make(tiny_config, flow="joint", guidance=1.0, flow_network=network)
    params, batch = flow_params(model), vectors(num)
    observed = np.random.default_rng(0).random((num, M)) < 0.6
    observed[:, 0] |= ~observed.any(axis=1)

    def told(call):
        _, t, marks = call
        if network == "mlp":
            assert t.shape == (num,) and set(np.unique(marks)) <= {-1, 0, 1}
            return marks == -1
        assert marks.dtype == bool and not (marks & (t == 0)).any()
        return t == 0

    objective = jax.jit(model.stages[-1].objective)
    objective(params, batch | {OBSERVED: observed}, KEY, 1.0)
    jax.effects_barrier()
    np.testing.assert_array_equal(told(seen.calls[0]), ~observed.T)
    # Complete examples have the inputs that they had without a mask.
    seen.calls.clear()
    objective(params, batch | {OBSERVED: np.ones_like(observed)}, KEY, 1.0)
    objective(params, batch, KEY, 1.0)
    jax.effects_barrier()
    for masked, plain in zip(*seen.calls, strict=True):
        np.testing.assert_array_equal(masked, plain)
    # In a density what is absent is noise, whatever the latents are, and stays so.
    seen.calls.clear()
    z = np.random.default_rng(0).normal(size=(num, C + M * D)).astype(np.float32)
    jax.jit(model.log_prior)(params, z, observed.T)
    jax.effects_barrier()
    before_noise = [call for call in seen.calls if np.max(call[1]) > 0]
    assert before_noise
    for call in before_noise:
        np.testing.assert_array_equal(told(call), ~observed.T)
    noise = [call[0].reshape(num, M, D)[~observed] for call in seen.calls]
    assert all((own == noise[0]).all() for own in noise)
    assert scipy.stats.kstest(noise[0].ravel(), "norm").pvalue > 0.001


def test_components_are_draws(model):
    params, batch = flow_params(model), vectors()
    experts = model.encode(params, batch)
    components, weights = model.posterior_components(params, experts, SOME)
    num = len(weights)
    assert num > 1 and weights.sum() == pytest.approx(1)
    means = np.asarray(components.mean)[..., C:].reshape(num, B, M, D)
    reach = np.ptp(means, axis=0)
    assert (reach[:, SOME] == 0).all() and (reach[:, ~SOME] > 0).all()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("stage_shares", (0.5, 0.5), "must be two shares of the steps whose sum is"),
        ("stage_shares", (0.5,), "must be two shares of the steps"),
        ("flow", "joint_without_code", "choose one of modality, joint; .* latent_flow"),
        ("code_network", "vit", "choose one of auto, conv, resnet, mlp"),
        ("guidance", -1.0, "guidance must be >= 0, got -1.0"),
        ("condition_dropped", 0.0, "guidance needs examples without a condition: "),
        ("ema", 1.0, r"must be in \[0, 1\), got 1.0"),
        ("condition_dropped", 1.0, "=1 leaves no example with a condition, .* below 1"),
    ],
)
def test_options_that_are_refused(tiny_config, option, value, message):
    with pytest.raises(UsageError, match=f"{option}.*{message}|{message}"):
        make(tiny_config, **{option: value})


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_joint_flow_is_trained_with_something_and_with_nothing_given(
    tiny_config, share
):
    with pytest.raises(UsageError, match=f"empty_share={share:g} leaves no example"):
        make(tiny_config, flow="joint", empty_share=share)
    # The flow of a modality always has the code of an example, and no other modality.
    make(tiny_config, flow="modality", empty_share=share)
