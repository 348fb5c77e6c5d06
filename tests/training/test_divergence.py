"""What diverges touches nothing else, and nothing diverges that is finite.

In float32 a value is finite where the mathematics gives less than about 3e38: what the
references of these tests, in float64, exceed is not asked for.
"""

from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.running import session, signals, terminal
from mmvae_jax import models
from mmvae_jax.mathematics import distributions, posteriors, subset_kl, subsets
from mmvae_jax.training import execution, loop
from mmvae_jax.training.execution import Execution
from mmvae_jax.training.step import (
    Task,
    gradient_norm,
    init_state,
    train_step,
    vae_task,
)
from mmvae_jax.training.sweep import Member, member, stack_hyper, stack_keys
from mmvae_jax.types import Gaussian, Hyper

MEMBERS = [Member(0.5, 3e-3, 0), Member(2.0, 1e-2, 1), Member(4.0, 1e-3, 0)]
NUM_STEPS = 12
# Close to the largest number of float32.
LARGEST = 1e37


# A member that diverges.


class Sweep:
    """A sweep of tiny VAEs, which one program trains."""

    def __init__(self, mapping, tiny_config, tiny_images):
        shapes = {"m0": (2, 2, 1), "m1": (2, 2, 1)}
        config = tiny_config("mmvae", latent_dim=2)
        config.modality.network_options.widths = ()
        model = models.make_model(config, shapes)
        base = drifted(jax.eval_shape(model.init, jax.random.key(0)), 0, 0.0)

        def init(key):  # compiles faster than the model's own
            return jax.tree.map(lambda x: x * (1 + 0.1 * jax.random.normal(key)), base)

        task = vae_task(model)._replace(init=init)
        self.data = jax.device_put(tiny_images(shapes, 40))
        self.hyper, self.keys = stack_hyper(MEMBERS), stack_keys(MEMBERS)
        self.start = execution.init_states(task, self.hyper, self.keys, self.data)
        self.execution = Execution(mapping, 4)
        self.program = execution.compile_steps(task, self.execution)
        self.healthy = [self.start]
        for step in range(NUM_STEPS):
            self.healthy.append(self.fit(self.healthy[-1], step + 1))

    def fit(self, state, num_steps, hyper=None):
        return loop.fit(
            self.program,
            jax.tree.map(jnp.copy, state),
            self.hyper if hyper is None else hyper,
            self.keys,
            self.data,
            num_steps=num_steps,
            batch_size=8,
            data_seed=0,
            execution=self.execution,
        )


@pytest.fixture(
    scope="module",
    params=[
        "map",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("vmap", "unroll")),
    ],
)
def sweep(request, tiny_config, tiny_images):
    return Sweep(request.param, tiny_config, tiny_images)


def same_bits(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    st.integers(0, NUM_STEPS - 3),
    st.integers(0, len(MEMBERS) - 1),
    st.sampled_from(
        [
            ("beta", np.nan),
            ("beta", np.inf),
            ("beta", 3e38),
            ("learning_rate", np.nan),
            ("learning_rate", np.inf),
            ("learning_rate", 3e38),
            ("learning_rate", 1e30),
        ]
    ),
)
def test_a_member_that_diverges_at_any_step_changes_no_bit_of_the_others(
    sweep, step, poisoned, poison
):
    field, value = poison
    values = getattr(sweep.hyper, field).at[poisoned].set(value)
    state = sweep.fit(
        sweep.healthy[step], NUM_STEPS, sweep.hyper._replace(**{field: values})
    )
    assert state.finite.tolist() == [k != poisoned for k in range(len(MEMBERS))]
    for k in range(len(MEMBERS)):
        own, healthy = (member(x, k) for x in (state, sweep.healthy[-1]))
        if k != poisoned:
            assert same_bits(own, healthy)
            continue
        # What is kept of it is finite, and where the step itself was not possible,
        # the state before it.
        kept = own.params, own.optimizer
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
        if value != 1e30:
            before = member(sweep.healthy[step], k)
            assert same_bits(kept, (before.params, before.optimizer))
        later = member(sweep.fit(state, NUM_STEPS + 3), k)
        assert not later.finite and int(later.step) == NUM_STEPS + 3
        assert same_bits(kept, (later.params, later.optimizer))


@pytest.mark.parametrize(
    ("rate", "is_finite"), [(1e36, True), (1e37, False), (3e38, False)]
)
def test_parameters_stay_finite_where_a_step_would_not(rate, is_finite):
    """Adam's step is up to 3.2 learning rates long: the gradient does not tell."""

    def loss(params, hyper, key, batch):
        return jnp.sum(params["w"]), {}

    task = Task(lambda key: {"w": jnp.ones(2)}, loss)
    hyper, key = Hyper(jnp.float32(1), jnp.float32(rate)), jax.random.key(0)
    state = init_state(task, hyper, key, {})
    zeros = state.optimizer.mu
    late = optax.ScaleByAdamState(jnp.int32(10_000), zeros, zeros)
    state = state._replace(optimizer=late)
    after = train_step(task, state, hyper, key, {})
    assert bool(after.finite) == is_finite
    assert np.isfinite(after.params["w"]).all()
    assert same_bits(after.params, state.params) == (not is_finite)


def events_of(said, monkeypatch, finite):
    """The events of a run of three members, and what it says."""
    monkeypatch.setattr(terminal, "say", said.append)
    settings = SimpleNamespace(
        log_every_steps=1, eval_every_steps=0, checkpoint_every_steps=1, num_steps=9
    )
    sweep = SimpleNamespace(members=MEMBERS, config=SimpleNamespace(train=settings))
    writer = SimpleNamespace(write_scalars=lambda step, scalars: None)
    bar = SimpleNamespace(update=None, losses=[])
    stop = signals.Signals()
    return session.make_events(
        sweep, stop, writer, bar, None, [], None, np.array(finite)
    )


def log_all(events, *flags):
    for step, finite in enumerate(flags, 1):
        events.log(step, {"train/loss": np.zeros(3)}, np.array(finite))


def test_a_member_is_reported_once_also_by_a_resumed_run(monkeypatch):
    said = []
    events = events_of(said, monkeypatch, [True, False, True])
    log_all(events, *3 * [[True, False, True]], *3 * [[True, False, False]])
    (line,) = said
    assert line.startswith("member 2 (beta=4,seed=0") and "by step 4" in line
    assert not events.is_stopping()
    log_all(events, *2 * [[False, False, False]])
    assert len(said) == 3 and "training ends" in said[2]
    assert events.is_stopping()


def test_a_resumed_run_of_which_nothing_is_left_ends_at_once(monkeypatch):
    events = events_of([], monkeypatch, [False, False, False])
    assert events.is_stopping()


# What is finite.


def is_finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def extreme_gaussian(seed, shape, limit):
    """Log-variances of +-limit, and between; means of which some are equal."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, shape)
    log_variance = np.select(
        [kind == 0, kind == 1, kind == 2],
        [-limit, limit, 0.0],
        rng.uniform(-limit, limit, shape),
    )
    mean = rng.integers(-3, 4, shape) * 10.0 ** rng.integers(-3, 3)
    return Gaussian(np.float32(mean), np.float32(log_variance))


def float64(q):
    return Gaussian(*(np.float64(field) for field in q))


def kl64(q, p):
    log_ratio = q.log_variance - p.log_variance
    squares = np.square(q.mean - p.mean) * np.exp(-p.log_variance)
    return 0.5 * (squares + np.expm1(log_ratio) - log_ratio)


def log_prob64(q, z):
    squares = np.square(z - q.mean) * np.exp(-q.log_variance)
    return -0.5 * (squares + q.log_variance + np.log(2 * np.pi))


@jax.jit
def divergences(q, p, z):
    """Values of pairs of one-dimensional Gaussians, and their gradients."""

    def both(f):
        return jax.vmap(jax.value_and_grad(f, argnums=(0, 1)))

    pairs = {
        "kl": both(distributions.gaussian_kl)(q, p),
        "standard": both(lambda q, p: distributions.kl_to_standard_gaussian(q))(q, p),
        "log_prob": both(distributions.log_prob)(q, z),
    }
    return pairs


@pytest.mark.slow
@hypothesis.settings(max_examples=15)
@hypothesis.given(st.integers(0, 10**6), st.sampled_from([20.0, 60.0, 100.0]))
def test_divergences_and_densities_are_finite_where_they_can_be(seed, limit):
    q, p = (extreme_gaussian(seed + i, (32, 1), limit) for i in range(2))
    z = p.mean
    found = divergences(q, p, z)
    q, p, z = float64(q), float64(p), np.float64(z)
    standard = Gaussian(np.zeros_like(q.mean), np.zeros_like(q.mean))
    expected = {
        "kl": kl64(q, p),
        "standard": kl64(q, standard),
        "log_prob": log_prob64(q, z),
    }
    # What a derivative by a mean is made of.
    slopes = {
        "kl": np.abs(q.mean - p.mean) * np.exp(-p.log_variance),
        "standard": np.abs(q.mean),
        "log_prob": np.abs(z - q.mean) * np.exp(-q.log_variance),
    }
    for name, (value, gradients) in found.items():
        wanted = expected[name][:, 0]
        is_asked = (np.abs(wanted) < LARGEST) & (slopes[name][:, 0] < LARGEST)
        assert is_asked.any()
        np.testing.assert_allclose(
            value[is_asked], wanted[is_asked], rtol=1e-4, atol=1e-6
        )
        for leaf in jax.tree.leaves(gradients):
            assert np.isfinite(leaf[is_asked]).all(), name


@jax.jit
def products(experts, masks, prior_expert):
    def total(experts):
        q = posteriors.product_of_experts(experts, masks, prior_expert)
        return jnp.sum(q.mean) + jnp.sum(q.log_variance), q

    return jax.grad(total, has_aux=True)(experts)


@hypothesis.given(st.integers(0, 10**6), st.integers(1, 8), st.booleans())
def test_products_of_extreme_experts_are_finite(seed, num, prior_expert):
    rng = np.random.default_rng(seed)
    masks = rng.random((8, 6)) < 0.5
    masks[num:] = False  # a product of 8 of which 8 - num are never there
    masks[0] |= ~masks.any(axis=0)
    experts = extreme_gaussian(seed, (8, 6, 2), 100.0)
    gradient, q = products(experts, masks, np.array(prior_expert))
    assert is_finite((gradient, q))
    mean, log_variance = (np.float64(field) for field in experts)
    precision = np.where(masks[..., None], np.exp(-log_variance), 0.0)
    total = precision.sum(0) + prior_expert
    np.testing.assert_allclose(q.log_variance, -np.log(total), rtol=1e-5, atol=1e-5)
    expected = (precision * mean).sum(0) / total
    scale = (precision * np.abs(mean)).sum(0) / total
    assert (np.abs(q.mean - expected) <= 1e-4 * scale + 1e-6).all()


@pytest.mark.parametrize(
    "num", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 5, 8))]
)
def test_subsets_of_extreme_experts_are_finite(num):
    mixture = subsets.powerset(num, "always")

    @jax.jit
    def everything(experts, z):
        def total(experts):
            q = subset_kl.subset_posteriors(experts, mixture)
            uniform = np.full(len(experts.mean), 1 / len(experts.mean), np.float32)
            mean = posteriors.geometric_mean(experts, uniform)
            return sum(jnp.sum(x) for x in jax.tree.leaves((q, mean))), (q, mean)

        def density(components):
            weights = np.full(len(components.mean), 1 / len(components.mean))
            return jnp.sum(posteriors.mixture_log_prob(components, weights, z))

        narrow = experts._replace(log_variance=experts.log_variance / 5)
        return jax.grad(total, has_aux=True)(experts), jax.grad(density)(narrow)

    for seed in range(40):
        experts = extreme_gaussian(seed, (num, 4, 2), 100.0)
        assert is_finite(everything(experts, np.float32(experts.mean[0])))


CASES = [(1, 1), (3, 4), (8, 1)]  # (modalities, examples)
FAST = [("mvae", 2, 3)]
SLOW = [(name, *case) for name in models.MODELS for case in CASES]


def degenerate_images(kind, shapes, num):
    rng = np.random.default_rng(0)
    images = {
        "noise": lambda shape: rng.integers(0, 256, (num, *shape)),
        "black": lambda shape: np.zeros((num, *shape)),
        "white": lambda shape: np.full((num, *shape), 255),
        "repeated": lambda shape: np.repeat(rng.integers(0, 256, (1, *shape)), num, 0),
    }
    return {m: np.uint8(images[kind](shape)) for m, shape in shapes.items()}


def drifted(params, seed, limit):
    """Parameters whose experts have any mean and log-variance."""
    rng = np.random.default_rng(seed)

    def drift(path, leaf):
        names = jax.tree_util.keystr(path)
        leaf = rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0])
        if "bias" in names and "log_variance" in names:
            leaf = leaf + limit * rng.choice([-1.0, -0.2, 0.0, 0.2, 1.0], leaf.shape)
        elif "bias" in names and "mean" in names:
            leaf = leaf + rng.integers(-3, 4, leaf.shape)
        return np.float32(leaf)

    return jax.tree_util.tree_map_with_path(drift, params)


@pytest.mark.parametrize(
    ("name", "num", "num_examples"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_every_model_is_finite(name, num, num_examples, tiny_config):
    """Values, gradients and a step, for any beta, of whatever the encoders emit."""
    shapes = {f"m{i}": (2, 2, 1) for i in range(num)}
    config = tiny_config(name, latent_dim=8)
    if name == "custom":
        config.model.options.subsets = ((0,), tuple(range(num))) if num > 1 else ((0,),)
    model = models.make_model(config, shapes)
    task = vae_task(model, num_steps=20)
    structure = jax.eval_shape(model.init, jax.random.key(0))

    @jax.jit
    def everything(params, hyper, key, batch, subset):
        (_, metrics), gradient = jax.value_and_grad(task.loss, has_aux=True)(
            params, hyper, key, batch
        )
        images = {m: x / 255 for m, x in batch.items()}
        experts = model.encode(params, images)
        q = model.posterior(params, experts, subset, key)
        mixture, _ = model.mixture_posterior(params, experts, np.ones(num, bool))
        z = model.sample_prior(params, key, num_examples)
        return (
            metrics,
            (gradient, gradient_norm(gradient)),
            (experts, q, mixture, z, model.log_prior(params, z)),
            (model.decode(params, q.mean), model.log_likelihood(params, z, images)),
        )

    @hypothesis.settings(max_examples=30)
    @hypothesis.given(
        st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e3]),
        st.sampled_from(["noise", "black", "white", "repeated"]),
        st.sampled_from([0.0, 5.0, 20.0, 100.0]),
        st.integers(0, 10**6),
    )
    def check(beta, kind, limit, seed):
        subset = np.random.default_rng(seed).random(num) < 0.5
        subset[seed % num] = True
        results = everything(
            drifted(structure, seed, limit),
            Hyper(np.float32(beta), np.float32(1e-3)),
            jax.random.key(seed),
            degenerate_images(kind, shapes, num_examples),
            subset,
        )
        for part, name in zip(
            results, ("metrics", "gradient", "posteriors", "outputs"), strict=True
        ):
            assert is_finite(part), name

    check()
