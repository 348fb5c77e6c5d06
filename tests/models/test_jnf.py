"""JNF: densities and draws of flows that are known, and what each stage learns."""

import itertools

import jax
import numpy as np
import pytest
from small_tasks import MAP, NUM, Setup, assert_same_bits, bits_differ

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.training.step import vae_task
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import OBSERVED, Gaussian

SHAPES = {"m0": (3,), "m1": (4,), "m2": (2,)}
M, B, D = 3, 5, 2
KEY = jax.random.key(1)


NAMES = ("jnf", "jnf_shared")


def make(tiny_config, name="jnf", **options):
    small = {"flow_width": 8, "flow_layers": 2, "hmc_steps": 20}
    config = tiny_config(name, D, **small | options)
    config.modality.network_options.widths = ()
    return models.make_model(config, SHAPES)


def vectors(num=B):
    rng = np.random.default_rng(0)
    return {m: rng.normal(size=(num, *x)).astype(np.float32) for m, x in SHAPES.items()}


def params_of(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(rng.uniform(-0.5, 0.5, x.shape)),
        jax.eval_shape(model.init, KEY),
    )


@pytest.fixture(scope="module")
def model(tiny_config):
    return make(tiny_config)


@pytest.fixture(scope="module")
def shared(tiny_config):
    return make(tiny_config, "jnf_shared", code_dim=4, code_share=0.2)


def affine(params):
    """Flows f(z) = a z + b, of each modality, and a and b [M, D]: kernels are 0."""
    shift = np.array([[0.5, -1.0], [0.0, 2.0], [-0.7, 0.3]], np.float32)
    log_scale = np.array([[0.4, -0.3], [0.0, 0.5], [-0.6, 0.2]], np.float32)
    own = jax.tree.map(np.zeros_like, params["flows"])
    for i in range(2):  # one moves an entry, the next the other
        bounded = 2 * np.arctanh(log_scale / 2)
        own["params"][f"out_{i}"]["bias"] = np.concatenate([shift, bounded], axis=1)
    return params | {"flows": own}, np.exp(log_scale), shift


def test_a_product_of_affine_flows_is_the_known_gaussian(model):
    """Draws of a subset are of p(z)^(1 - |A|) prod q_m, and of one expert of q_m."""
    params, scale, shift = affine(params_of(model))
    rng = np.random.default_rng(1)
    mean = np.float32(rng.normal(size=(M + 1, D)))
    log_variance = np.float32(rng.uniform(-2.5, -1.0, size=(M + 1, D)))
    num = 3_000
    experts = Gaussian(
        *(np.repeat(x[:, None], num, axis=1) for x in (mean, log_variance))
    )
    # A z + b ~ N(mean, variance).
    means = (mean[:M] - shift) / scale
    precisions = scale**2 * np.exp(-log_variance[:M])
    draw = jax.jit(model.posterior)
    for subset in ([1, 0, 0], [0, 1, 1], [1, 1, 0]):
        own = np.array(subset, bool)
        q = draw(params, experts, own, KEY)
        precision = precisions[own].sum(0) - (own.sum() - 1)
        expected = (precisions * means)[own].sum(0) / precision
        z = np.asarray(q.mean)
        deviation = precision**-0.5
        np.testing.assert_allclose(z.mean(0), expected, atol=0.1 * deviation.max())
        np.testing.assert_allclose(z.std(0), deviation, rtol=0.07)
        assert (np.asarray(q.log_variance) == -20).all()
    # All of them: the joint encoder's.
    q = draw(params, experts, np.ones(M, bool), KEY)
    np.testing.assert_array_equal(q.mean, experts.mean[-1])
    np.testing.assert_array_equal(q.log_variance, experts.log_variance[-1])
    # Each example has a subset of its own.
    each = np.ones((M, num), bool)
    each[1:, ::2] = False
    q = draw(params, experts, each, KEY)
    np.testing.assert_array_equal(q.mean[1::2], experts.mean[-1][1::2])
    np.testing.assert_allclose(np.mean(q.mean[::2], 0), means[0], atol=0.1)


def test_the_second_stage_learns_the_density_of_the_experts(model):
    params, scale, shift = affine(params_of(model))
    batch, objective = vectors(), model.stages[1].objective
    joint = {**params["joint"], "head": jax.tree.map(np.copy, params["joint"]["head"])}
    experts = model.encode(params, batch)
    for name, layer in joint["head"]["params"].items():
        if "log_variance" in name:
            layer["kernel"] = 0 * layer["kernel"]
            layer["bias"] = 0 * layer["bias"] - 1e3  # no noise is left
    params = params | {"joint": joint}
    z = np.asarray(model.encode(params, batch).mean[-1])
    x = scale[:, None] * z + shift[:, None]
    variance = np.exp(experts.log_variance[:M])
    errors = (x - experts.mean[:M]) ** 2 / variance + np.log(2 * np.pi * variance)
    values = -0.5 * errors.sum(-1) + np.log(scale).sum(-1)[:, None]
    found = jax.jit(objective)(params, batch, KEY, 1.0)[0]
    assert float(found) == pytest.approx(-float(values.sum(0).mean()), rel=1e-3)


def test_a_stage_alone_learns_each_entry(model, shared):
    for own in (model, shared):
        learned = [name for stage in own.stages for name in stage.learns]
        assert sorted(learned) == sorted(jax.eval_shape(own.init, KEY))
    assert [stage.end(100) for stage in model.stages] == [50, 100]
    assert [stage.end(100) for stage in shared.stages] == [20, 70, 100]


def test_shared_experts_see_the_direction_of_a_code_and_nothing_else(shared):
    params, batch = params_of(shared), vectors()
    encode = jax.jit(shared.encode)
    experts = encode(params, batch)
    # A code that is longer has the same direction.
    longer = dict(params["code"]["encoders"])
    layers = dict(longer["m1"]["params"])
    last = max(layers)
    layers[last] = jax.tree.map(lambda x: 3 * x, layers[last])
    longer["m1"] = {"params": layers}
    code = params["code"] | {"encoders": longer}
    found = encode(params | {"code": code}, batch)
    for field, own in zip(found, experts, strict=True):
        np.testing.assert_allclose(field, own, rtol=1e-4, atol=1e-5)
    # Another one of m1 is another expert, and the joint encoder has none.
    turned = jax.tree.map(lambda x: -x, layers[last])
    longer["m1"] = {"params": layers | {last: turned}}
    found = encode(params | {"code": params["code"] | {"encoders": longer}}, batch)
    differs = (np.asarray(found.mean) != np.asarray(experts.mean)).any((1, 2))
    assert differs.tolist() == [False, True, False, False]


def test_the_code_is_that_of_code_flow(shared, tiny_config):
    """With the same parameters: the loss of its stage, of what is observed."""
    config = tiny_config("code_flow", D, code_dim=4)
    config.modality.network_options.widths = ()
    code_flow = models.make_model(config, SHAPES)
    observed = np.random.default_rng(3).random((B, M)) < 0.7
    observed[:, 0] |= ~observed.any(axis=1)
    # As a program has them: sorted by their names.
    batch = dict(reversed(vectors().items())) | {OBSERVED: observed}
    params = params_of(shared)
    stages = (shared.stages[0], code_flow.stages[1])
    assert [stage.name for stage in stages] == ["code", "code"]
    one, other = (
        jax.jit(stage.objective)({"code": params["code"]}, batch, KEY, 1.0)[0]
        for stage in stages
    )
    assert one == other and np.isfinite(one)


@pytest.mark.parametrize(
    "name", ["jnf_shared", pytest.param("jnf", marks=pytest.mark.slow)]
)
def test_gradients_of_a_stage(name, model, shared):
    """They are of all that it learns; the code is a constant of the later ones."""
    own = model if name == "jnf" else shared
    params, batch = params_of(own), vectors()
    reached = []
    for stage in own.stages:

        def loss(params, stage=stage):
            return stage.objective(params, batch, KEY, 1.0)[0]

        gradient = jax.jit(jax.grad(loss))(params)
        sizes = {
            m: max(np.abs(x).max() for x in jax.tree.leaves(x))
            for m, x in gradient.items()
        }
        assert all(sizes[m] > 0 for m in stage.learns)
        reached.append({m for m, x in sizes.items() if x > 0})
    assert reached[-2] == {"joint", "decoders"}
    if own is shared:
        assert reached[0] == {"code"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_stage_leaves_the_other_alone_and_is_resumed(name, model, shared):
    model = model if name == "jnf" else shared
    data = vectors(NUM)
    observed = np.random.default_rng(3).random((NUM, M)) < 0.7
    observed[:, 0] |= ~observed.any(axis=1)
    states = []
    for fill in (0.0, np.nan):
        own = {
            m: np.where(observed[:, [i]], x, np.float32(fill))
            for i, (m, x) in enumerate(data.items())
        }
        setup = Setup(
            vae_task(model, num_steps=6), jax.device_put(own | {OBSERVED: observed})
        )
        members = [Member(0.1, 1e-2, 0)]
        start, *_ = setup.start(members)
        ends = [stage.end for stage in setup.task.stages]
        states.append([start])
        for end in ends:
            states[-1].append(setup.fit(members, MAP, end, states[-1][-1]))
        # In the last stage, and in the one before it.
        for half in (4, ends[-2] - 1):
            resumed = setup.fit(members, MAP, 6, setup.fit(members, MAP, half))
            assert_same_bits(resumed, states[-1][-1])
    assert states[0][-1].finite.all()
    assert_same_bits(*states)
    pairs = itertools.pairwise(states[1])
    for (before, after), stage in zip(pairs, model.stages, strict=True):
        for name in before.params:
            changed = bits_differ(before.params[name], after.params[name])
            assert changed == (name in stage.learns)


def test_the_first_stage_is_jmvae(model, tiny_config):
    """With the same parameters: the loss and the terms."""
    config = tiny_config("jmvae", D)
    config.modality.network_options.widths = ()
    jmvae = models.make_model(config, SHAPES)
    params, batch = params_of(model), vectors()
    own = {name: params[name] for name in ("decoders", "joint")}
    found, expected = (
        jax.jit(one.objective)(given, batch, KEY, 0.5)
        for one, given in ((model, params), (jmvae, own))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
    )


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("jnf", "joint_share", 1.0, r"must be in \(0, 1\), got 1.0"),
        ("jnf", "hmc_steps", -1, "must be >= 0, got -1"),
        ("jnf", "code_dim", 4, "is no option of the model 'jnf'"),
        ("jnf_shared", "code_share", 0.0, r"must be in \(0, 1\), got 0.0"),
        (
            "jnf_shared",
            "code_share",
            0.5,
            "and joint_share must have a sum below 1, got 0.5 and 0.5",
        ),
    ],
)
def test_options_that_are_refused(tiny_config, name, option, value, message):
    with pytest.raises(UsageError, match=f"{option} {message}"):
        make(tiny_config, name, **{option: value})
