import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmvae_jax.mathematics import flows
from mmvae_jax.networks.flows import (
    CouplingFlow,
    MLPFlow,
    ModulatedBlock,
    TransformerFlow,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# A vector of 3, and images of 2 x 2 places: 1 and 4 tokens.
SHAPES = ((3,), (2, 2, 2))
X = np.float32(RNG.normal(size=(5, 11)))
T = np.float32(RNG.uniform(size=5))
CONDITION = np.float32(RNG.normal(size=(5, 4)))
MLP = MLPFlow(width=8, depth=2)
TRANSFORMER = TransformerFlow(SHAPES, width=8, depth=2, num_heads=2)
NETWORKS = pytest.mark.parametrize("module", [MLP, TRANSFORMER])


def trained_like(module, *inputs):
    """Parameters with no zeros, so that every input has an influence."""
    shapes = jax.eval_shape(module.init, KEY, *inputs)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: np.float32(rng.normal(size=p.shape) / 3), shapes)


@NETWORKS
def test_the_velocity_is_zero_at_the_start_and_learns(module):
    @jax.jit
    def start(key):
        v, params = module.init_with_output(key, X, T, CONDITION)
        return v, jax.grad(
            lambda params: jnp.sum((module.apply(params, X, T, CONDITION) - 1) ** 2)
        )(params)

    v, gradients = start(KEY)
    np.testing.assert_array_equal(v, 0 * X)
    assert any(jnp.any(g != 0) for g in jax.tree.leaves(gradients))


@NETWORKS
def test_the_velocity_depends_on_each_input_of_its_own_example_alone(module):
    params, apply = trained_like(module, X, T, CONDITION), jax.jit(module.apply)
    v = apply(params, X, T, CONDITION)
    assert v.shape == X.shape
    inputs = X, T, CONDITION
    for i, values in enumerate(inputs):
        changed = values.copy()
        changed[2] += 0.3
        other = apply(params, *inputs[:i], changed, *inputs[i + 1 :])
        is_changed = np.abs(other - v).max(axis=1) > 1e-4
        np.testing.assert_array_equal(is_changed, np.arange(5) == 2)
        same = np.arange(5) != 2
        np.testing.assert_allclose(other[same], v[same], atol=1e-5)


@pytest.mark.parametrize(
    "module", [MLP, pytest.param(TRANSFORMER, marks=pytest.mark.slow)]
)
def test_networks_are_mapped_over_members_and_used_in_loops(module):
    members = [
        jax.tree.map(lambda p, s=s: s * p, trained_like(module, X, T)) for s in (1, 0.5)
    ]

    def end(params):
        return flows.integrate(lambda x, t: module.apply(params, x, t), X, 3, "heun")

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    together = jax.jit(jax.vmap(end))(stacked)
    for params, result in zip(members, together, strict=True):
        np.testing.assert_allclose(result, end(params), rtol=1e-3, atol=1e-4)


def test_a_block_is_the_identity_at_the_start():
    h, _ = ModulatedBlock().init_with_output(KEY, X, CONDITION)
    np.testing.assert_array_equal(h, X)


@pytest.mark.slow
def test_given_modalities_are_clean_for_a_transformer():
    given = np.array([[1, 1, 0, 0, 1], [0, 0, 0, 1, 1]], bool)
    params = trained_like(TRANSFORMER, X, T)

    def velocity(t, given):
        return TRANSFORMER.apply(params, X, t, given=given)

    v = velocity(T, given)
    # Their time is 1, whatever it is called; that of others is not.
    times = np.where(given, 0.123, T)
    np.testing.assert_allclose(velocity(times, given), v, atol=1e-5)
    assert np.abs(velocity(0.5 * times, given) - v)[:4].max(axis=1).min() > 1e-4
    # Noise at time 1 is not what is given: the flag tells them apart.
    other = velocity(np.where(given, 1.0, T), None)
    is_same = np.abs(other - v).max(axis=1) < 1e-5
    np.testing.assert_array_equal(is_same, ~given.any(axis=0))
    one = velocity(T, np.array([True, False]))
    same = velocity(T, np.repeat([[True], [False]], 5, axis=1))
    np.testing.assert_array_equal(one, same)


def test_tokens_of_a_transformer():
    """One of a vector, one of each place of an image; all see all others."""
    params = trained_like(TRANSFORMER, X, T)["params"]
    assert params["positions"].shape == (5, 8)
    inputs = [params[f"Dense_{i}"]["kernel"].shape for i in (0, 1)]
    assert inputs == [(3, 8), (2, 8)]
    # Places are told apart: other values in them are not other values out of them.
    swapped = np.array([0, 1, 2, 5, 6, 3, 4, 7, 8, 9, 10])
    apply = jax.jit(lambda x: TRANSFORMER.apply({"params": params}, x, T))
    v, other = map(apply, (X, X[:, swapped]))
    assert np.abs(other - v[:, swapped]).max() > 1e-3
    jacobian = jax.jit(
        jax.jacobian(lambda x: TRANSFORMER.apply({"params": params}, x[None], T[:1])[0])
    )(X[0])
    assert (np.abs(jacobian) > 1e-7).all()
    with pytest.raises(ValueError, match="x has 10 entries, and .* have 11"):
        TRANSFORMER.apply({"params": params}, X[:, :10], T)


def test_sizes_of_the_defaults():
    def num_parameters(module, size, *inputs):
        x = jax.ShapeDtypeStruct((2, size), jnp.float32)
        params = jax.eval_shape(module.init, KEY, x, T[:2], *inputs)
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    w, d, e = 128, 12, 16
    context = 65 * w + (w + 1) * w + (e + 1) * w
    block = (w + 1) * 3 * w + 2 * (w + 1) * w
    ends = (d + 1) * w + (w + 1) * 2 * w + (w + 1) * d
    condition = jnp.zeros((2, e))
    assert num_parameters(MLPFlow(), d, condition) == context + 3 * block + ends


def fitted(module, keys, draw):
    """Parameters and losses: a step of Adam a key on (r, condition) of `draw`(key)."""
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, len(keys)))

    def loss(params, key):
        data_key, noise_key, time_key, drop_key = jax.random.split(key, 4)
        r, condition = draw(data_key)
        condition = flows.drop_condition(drop_key, condition, 0.2)
        noise = jax.random.normal(noise_key, r.shape)
        t = flows.sample_times(time_key, len(r))
        return jnp.mean(
            flows.flow_matching_loss(
                lambda x, t: module.apply(params, x, t, condition), r, noise, t
            )
        )

    @jax.jit
    def run(params):
        def step(carry, key):
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params, key)
            updates, state = optimiser.update(gradients, state)
            return (optax.apply_updates(params, updates), state), value

        carry = params, optimiser.init(params)
        (params, _), losses = jax.lax.scan(step, carry, keys)
        return params, losses

    r, condition = draw(KEY)
    return run(jax.jit(module.init)(KEY, r, jnp.zeros(len(r)), condition))


@pytest.mark.slow
def test_a_trained_flow_has_the_moments_of_a_mixture():
    """Two Gaussians in a plane, of weights 0.7 and 0.3; the condition says which."""
    centres = jnp.array([[-1.0, 0.5], [1.5, -0.5]])
    codes = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    deviation = 0.3

    def draw(key, num=128):
        row_key, key = jax.random.split(key)
        rows = jax.random.bernoulli(row_key, 0.3, (num,)).astype(int)
        r = centres[rows] + deviation * jax.random.normal(key, (num, 2))
        return r, codes[rows]

    module = MLPFlow(width=32, depth=2)
    params, losses = fitted(module, jax.random.split(KEY, 500), draw)
    assert np.mean(losses[-50:]) < 0.7 * losses[0]
    noise = jax.random.normal(jax.random.key(1), (2000, 2))

    def velocity(code):
        conditions = jnp.broadcast_to(code, noise.shape)
        return lambda x, t: module.apply(params, x, t, conditions)

    @jax.jit
    def generate(code, strength):
        flow = flows.guided(velocity(code), velocity(0 * code), strength)
        return flows.integrate(flow, noise, 25, "heun")

    sample, (real, _) = generate(0 * codes[0], 1.0), draw(KEY, 20_000)
    assert np.mean(sample[:, 0] > 0.25) == pytest.approx(0.3, abs=0.06)
    np.testing.assert_allclose(sample.mean(axis=0), real.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(np.cov(sample.T), np.cov(real.T), atol=0.2)
    for centre, code in zip(centres, codes, strict=True):
        own = generate(code, 1.0)
        np.testing.assert_allclose(own.mean(axis=0), centre, atol=0.1)
        np.testing.assert_allclose(own.std(axis=0), deviation, atol=0.1)
        # Guidance does not put anything into the other Gaussian.
        near = np.linalg.norm(generate(code, 2.0) - centre, axis=1)
        assert np.mean(near < 1.2) > 0.99


def test_an_mlp_may_be_told_a_time_for_each_part():
    """Each time has an influence of its own, on its example alone."""
    times = np.float32(RNG.uniform(size=(3, 5)))
    params = trained_like(MLP, X, times, CONDITION)
    apply = jax.jit(MLP.apply)
    v = apply(params, X, times, CONDITION)
    others = []
    for part in range(3):
        changed = times.copy()
        changed[part, 2] += 0.1
        others.append(apply(params, X, changed, CONDITION))
        is_changed = np.abs(others[-1] - v).max(axis=1) > 1e-4
        assert is_changed.tolist() == [False, False, True, False, False]
    assert len({float(other[2, 0]) for other in others}) == 3


@pytest.mark.parametrize("size", [1, 2, 5])
def test_couplings_and_their_inverse(size):
    """One undoes the other, the volume is the Jacobian's, and all entries move."""
    module = CouplingFlow(num_layers=3, width=8)
    x = np.float32(RNG.normal(size=(4, size)))
    params = trained_like(module, x)

    @jax.jit
    def both(params, x):
        y, log_volume = module.apply(params, x)
        back, log_inverse = module.apply(params, y, is_inverse=True)
        one = jax.vmap(jax.jacobian(lambda x: module.apply(params, x[None])[0][0]))
        return y, log_volume, back, log_inverse, one(x)

    y, log_volume, back, log_inverse, jacobian = both(params, x)
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_inverse, -log_volume, rtol=1e-4, atol=1e-5)
    expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
    np.testing.assert_allclose(log_volume, expected, rtol=1e-3, atol=1e-4)
    assert (np.abs(y - x) > 1e-4).all(axis=0).all()
    if size > 2:  # each is a function of others
        assert (np.abs(jacobian).max(0) > 0).sum() > size
    start, volume = module.init_with_output(KEY, x)[0]
    np.testing.assert_array_equal(start, x)
    assert not np.any(volume)
