from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mmvae_jax.errors import ArgumentError
from mmvae_jax.mathematics import flows

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MEAN = np.array([1.0, -2.0, 0.5], np.float32)
_ROOT = np.float32(RNG.normal(size=(3, 3)) / 2 + np.eye(3))
COVARIANCE = _ROOT @ _ROOT.T
NOISE = np.float32(RNG.normal(size=(40, 3)))


def gaussian_velocity(mean, covariance):
    """E[r - eps | x_t] of data N(mean, covariance), a linear map of x_t."""
    values, vectors = (np.float32(x) for x in np.linalg.eigh(covariance))

    def velocity(x, t):
        t = t[:, None]
        slopes = (t * values - (1 - t)) / ((1 - t) ** 2 + t**2 * values)
        return mean + (slopes * ((x - t * mean) @ vectors)) @ vectors.T

    return velocity


def root(covariance):
    """The symmetric root, by which the flow of a Gaussian maps noise to data."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values)) @ vectors.T


VELOCITY = gaussian_velocity(MEAN, COVARIANCE)
DATA = np.float32(MEAN + NOISE @ root(COVARIANCE))


def zero_velocity(x, t):
    return jnp.zeros_like(x)


def test_the_least_loss_is_that_of_the_conditional_mean():
    num = 20_000
    keys = jax.random.split(KEY, 3)
    r = MEAN + jax.random.normal(keys[0], (num, 3)) @ root(COVARIANCE)
    noise = jax.random.normal(keys[1], (num, 3))
    t = flows.sample_times(keys[2], num)

    def loss(velocity):
        return float(jnp.mean(flows.flow_matching_loss(velocity, r, noise, t)))

    least = loss(VELOCITY)
    for change in (0.3, -0.3):
        # The mean squared error is that of the mean, and the square of what is added.
        other = loss(lambda x, t, change=change: VELOCITY(x, t) + change)
        assert other == pytest.approx(least + 0.09, abs=0.02)
    expected = np.mean(np.trace(COVARIANCE) + np.sum(MEAN**2) + 3) / 3
    assert loss(zero_velocity) == pytest.approx(expected, rel=0.03)


def test_times_are_logit_normal():
    t = np.asarray(flows.sample_times(KEY, 20_000, mean=-0.5, scale=1.5))
    assert (0 < t).all() and (t < 1).all()
    logits = (scipy.special.logit(np.float64(t)) + 0.5) / 1.5
    assert scipy.stats.kstest(logits, "norm").pvalue > 0.001


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_flow_of_a_gaussian_ends_in_it_at_the_order_of_the_solver(method, order):
    steps = np.array([16, 32, 64])
    errors = [
        np.abs(flows.integrate(VELOCITY, NOISE, n, method) - DATA).max() for n in steps
    ]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.25)
    back = flows.integrate(VELOCITY, DATA, 64, method, start=1.0, end=0.0)
    assert np.abs(back - NOISE).max() < {1: 0.2, 2: 0.01}[order]


def test_samples_have_the_mean_and_the_covariance_of_the_data():
    noise = jax.random.normal(KEY, (50_000, 3))
    sample = jax.jit(lambda x: flows.integrate(VELOCITY, x, 20, "heun"))(noise)
    np.testing.assert_allclose(jnp.mean(sample, axis=0), MEAN, atol=0.03)
    np.testing.assert_allclose(jnp.cov(sample.T), COVARIANCE, atol=0.05)


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_guidance_between_gaussians(strength):
    """Of one covariance the means are extrapolated, of one mean log-deviations are."""
    other = np.array([0.0, 0.5, 1.0], np.float32)
    unconditional = gaussian_velocity(other, COVARIANCE)
    velocity = flows.guided(VELOCITY, unconditional, strength)
    expected = other + strength * (MEAN - other) + (DATA - MEAN)
    result = flows.integrate(velocity, NOISE, 100, "heun")
    np.testing.assert_allclose(result, expected, atol=0.005)

    centred = [gaussian_velocity(np.zeros(3), s**2 * np.eye(3)) for s in (0.5, 2.0)]
    result = flows.integrate(flows.guided(*centred, strength), NOISE, 200, "heun")
    scale = 0.5**strength * 2.0 ** (1 - strength)
    np.testing.assert_allclose(result, scale * NOISE, rtol=0.01)


def test_guidance_of_strength_1_is_none_bit_for_bit_and_each_example_has_its_own():
    other = gaussian_velocity(np.zeros(3), np.eye(3))
    plain = flows.integrate(VELOCITY, NOISE, 10)
    same = flows.integrate(flows.guided(VELOCITY, other, 1.0), NOISE, 10)
    np.testing.assert_array_equal(same, plain)
    strengths = np.where(np.arange(40) < 20, 1.0, 3.0)
    mixed = flows.integrate(flows.guided(VELOCITY, other, strengths), NOISE, 10)
    np.testing.assert_allclose(mixed[:20], plain[:20], rtol=1e-5)
    assert np.abs(mixed[20:] - plain[20:]).min() > 1e-4


def test_the_density_of_a_gaussian_by_the_exact_trace():
    expected = scipy.stats.multivariate_normal(MEAN, COVARIANCE).logpdf(DATA)
    for num_steps, tolerance in ((16, 0.05), (64, 0.005)):
        values = flows.log_density(VELOCITY, DATA, num_steps)
        np.testing.assert_allclose(values, expected, atol=tolerance)
    assert flows.log_density(zero_velocity, DATA, 1) == pytest.approx(
        scipy.stats.norm.logpdf(DATA).sum(axis=1), abs=1e-5
    )


def test_the_density_of_a_narrow_gaussian_has_no_more_than_one_mass():
    """Euler's method would add 0.1 nats for each such dimension."""
    variance = 0.01 * np.eye(3)
    gaussian = scipy.stats.multivariate_normal(MEAN, variance)
    data = np.float32(gaussian.rvs(2_000, random_state=0))
    values = flows.log_density(gaussian_velocity(MEAN, variance), data, 25)
    excess = np.mean(values - gaussian.logpdf(data))
    assert 0 < excess / 3 < 0.015


def test_the_density_of_a_gaussian_by_random_signs():
    expected = scipy.stats.multivariate_normal(MEAN, COVARIANCE).logpdf(DATA)

    def estimate(key, num_probes):
        return flows.log_density(VELOCITY, DATA, 64, key=key, num_probes=num_probes)

    keys = jax.random.split(KEY, 50)
    single = jax.jit(jax.vmap(lambda key: estimate(key, 1)))(keys)
    errors = np.asarray(single) - expected
    bars = errors.std(axis=0) / np.sqrt(len(keys))
    assert (bars > 0.01).all()
    assert (np.abs(errors.mean(axis=0)) < 4.5 * bars + 0.005).all()
    # More signs, and their mean is closer by the root of their number.
    many = np.asarray(jax.jit(lambda key: estimate(key, 400))(KEY)) - expected
    assert many.std() < 3 * errors.std() / 20
    # A diagonal derivative has no error from signs.
    diagonal = gaussian_velocity(MEAN, np.diag([0.5, 1.0, 2.0]))
    exact = flows.log_density(diagonal, DATA, 8)
    np.testing.assert_allclose(
        flows.log_density(diagonal, DATA, 8, key=KEY), exact, atol=1e-4
    )


def test_the_exact_trace_of_blocks_of_different_sizes():
    """It needs as many derivatives as the largest block has entries."""
    rng, sizes, ends = np.random.default_rng(1), (2, 1, 3), (2, 3)
    roots = [np.float32(rng.normal(size=(n, n)) / 2 + np.eye(n)) for n in sizes]
    own = [gaussian_velocity(np.zeros(len(x)), x @ x.T) for x in roots]
    data = np.float32(rng.normal(size=(7, 6)))

    def velocity(x, t):
        parts = zip(own, jnp.split(x, ends, axis=1), strict=True)
        return jnp.concatenate([f(part, t) for f, part in parts], axis=1)

    @partial(jax.jit, static_argnums=0)
    def density(blocks):
        return flows.log_density(velocity, data, 4, blocks=blocks)

    whole = density(())
    for blocks in (sizes, (3, 3)):  # two blocks are one, too
        np.testing.assert_allclose(density(blocks), whole, atol=1e-4)
    # Blocks that cut one of them leave out a part of its derivative.
    assert np.abs(density((1, 5)) - whole).max() > 1e-2
    with pytest.raises(ArgumentError, match=r"blocks=\(2, 1\) must add up to 6"):
        density((2, 1))


def test_every_row_has_a_key_of_its_own_in_any_batch():
    rows = np.tile(DATA[:2], (2, 1))
    rows[2:, 1] = np.nextafter(rows[2:, 1], np.float32(9))  # the least change
    keys = flows.keys_of_rows(KEY, rows)
    data = jax.random.key_data(keys)
    assert len(np.unique(data, axis=0)) == 4
    again = flows.keys_of_rows(KEY, rows[::-1])
    np.testing.assert_array_equal(jax.random.key_data(again), data[::-1])
    other = jax.random.key_data(flows.keys_of_rows(jax.random.key(7), rows))
    assert (np.asarray(other) != np.asarray(data)).any(axis=1).all()


def test_what_is_given_is_left_as_it_is_and_conditions_the_rest():
    given = np.array([False, True, False])
    rows, known = np.flatnonzero(~given), np.flatnonzero(given)
    # The conditional Gaussian of the other two, whose velocity reads what is given.
    gain = COVARIANCE[np.ix_(rows, known)] @ np.linalg.inv(
        COVARIANCE[np.ix_(known, known)]
    )
    covariance = COVARIANCE[np.ix_(rows, rows)] - gain @ COVARIANCE[np.ix_(known, rows)]

    def means(x):
        return MEAN[rows] + (x[:, known] - MEAN[known]) @ gain.T

    centred = gaussian_velocity(np.zeros(2), covariance)

    def velocity(x, t):
        shift = means(x)
        own = shift + centred(x[:, rows] - t[:, None] * shift, t)
        # What the network says of what is given is not used, whatever it is.
        return jnp.full_like(x, jnp.nan).at[:, rows].set(own)

    x = np.where(given, DATA, NOISE)
    result = np.asarray(flows.integrate(velocity, x, 64, "heun", given))
    np.testing.assert_array_equal(result[:, known], DATA[:, known])
    expected = means(DATA) + NOISE[:, rows] @ root(covariance)
    np.testing.assert_allclose(result[:, rows], expected, atol=0.01)
    values = flows.log_density(velocity, DATA, 64, given=given)
    joint = scipy.stats.multivariate_normal(MEAN, COVARIANCE).logpdf(DATA)
    marginal = scipy.stats.norm(MEAN[1], np.sqrt(COVARIANCE[1, 1])).logpdf(DATA[:, 1])
    np.testing.assert_allclose(values, joint - marginal, atol=0.01)


def test_the_loss_is_of_what_is_learned_and_other_values_do_not_matter():
    t = np.full(4, 0.25, np.float32)
    noise, r = NOISE[:4], DATA[:4].copy()
    given = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], bool)
    learned = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 1]], bool)
    r[~given & ~learned] = np.nan
    seen = {}

    def velocity(x, t):
        seen.update(x=np.asarray(x), t=np.asarray(t))
        return jnp.zeros_like(x)

    loss = flows.flow_matching_loss(velocity, r, noise, t, given, learned)
    squares = np.where(learned, (r - noise) ** 2, 0)
    expected = squares.sum(axis=1) / np.maximum(learned.sum(axis=1), 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert loss[2] == 0
    np.testing.assert_array_equal(seen["x"][given], r[given])
    mixed = 0.75 * noise + 0.25 * r
    np.testing.assert_allclose(seen["x"][learned], mixed[learned], rtol=1e-6)
    unknown = ~given & ~learned
    np.testing.assert_array_equal(seen["x"][unknown], noise[unknown])
    np.testing.assert_array_equal(seen["t"], t)
    gradient = jax.grad(
        lambda scale: jnp.sum(
            flows.flow_matching_loss(
                lambda x, t: scale * x, r, noise, t, given, learned
            )
        )
    )(1.0)
    assert np.isfinite(gradient)
    # All that is not given is learned, where nothing else is said.
    r = DATA[:4]
    np.testing.assert_array_equal(
        flows.flow_matching_loss(velocity, r, noise, t, given),
        flows.flow_matching_loss(velocity, r, noise, t, given, ~given),
    )


def test_subsets_are_empty_in_a_share_and_of_uniform_size_otherwise():
    num = 40_000
    given = np.asarray(
        flows.random_subsets(KEY, np.ones((4, num), bool), empty_share=0.2)
    )
    sizes = np.bincount(given.sum(axis=0), minlength=5) / num
    error = 4 * np.sqrt(0.25 / num)
    np.testing.assert_allclose(sizes, [0.2, 0.8 / 3, 0.8 / 3, 0.8 / 3, 0], atol=error)
    # Of each size all subsets are equally likely.
    pairs = given[:, given.sum(axis=0) == 2]
    shares = np.bincount(2 ** np.arange(4) @ pairs)[[3, 5, 6, 9, 10, 12]]
    np.testing.assert_allclose(shares / pairs.shape[1], 1 / 6, atol=0.02)


def test_subsets_are_of_what_an_example_has():
    observed = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 0]], bool)
    observed = np.repeat(observed, 500, axis=1)
    given = np.asarray(flows.random_subsets(KEY, observed, 0.0))
    assert not (given & ~observed).any()
    sizes = given.sum(axis=0).reshape(3, 500)
    assert set(sizes[0]) == {1, 2} and set(sizes[1]) == {1} and set(sizes[2]) == {0}
    assert not flows.random_subsets(KEY, observed, 1.0).any()
    assert not flows.random_subsets(KEY, np.ones((1, 5), bool), 0.0).any()


def test_dimensions_of_subsets():
    subset = np.array([[1, 0], [0, 0], [1, 1]], bool)
    expected = [[1, 1, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(flows.dimensions_of(subset, (2, 1, 3)), expected)
    one = flows.dimensions_of(subset[:, 0], (2, 1, 3))
    np.testing.assert_array_equal(one, expected[0])


def test_conditions_are_dropped_whole():
    codes = RNG.normal(size=(5_000, 3)).astype(np.float32)
    kept = np.asarray(flows.drop_condition(KEY, codes, 0.15))
    is_dropped = (kept == 0).any(axis=1)
    np.testing.assert_array_equal(kept, np.where(is_dropped[:, None], 0, codes))
    assert is_dropped.mean() == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "rk4"}, "unknown method 'rk4'; choose one of euler, heun"),
        ({"num_steps": 0}, "num_steps must be >= 1, got 0"),
        ({"num_probes": 0, "key": KEY}, "num_probes must be >= 1, got 0"),
    ],
)
def test_settings_of_the_ode_that_cannot_be(options, words):
    with pytest.raises(ArgumentError, match=words):
        solve = flows.integrate if "method" in options else flows.log_density
        solve(VELOCITY, DATA, **{"num_steps": 4} | options)


def test_flows_are_mapped_compiled_and_differentiated():
    means = np.stack([MEAN, -MEAN])

    def end(mean):
        velocity = gaussian_velocity(mean, COVARIANCE)
        return flows.integrate(velocity, NOISE, 8, "heun")

    together = jax.jit(jax.vmap(end))(means)
    for mean, result in zip(means, together, strict=True):
        np.testing.assert_allclose(result, end(mean), atol=1e-4)
    # The end moves as the mean does, for one solver step of any size.
    slope = jax.jacrev(lambda mean: jnp.mean(end(mean), axis=0))(MEAN)
    np.testing.assert_allclose(slope, np.eye(3), atol=0.02)
    loss, _ = jax.lax.scan(
        lambda total, key: (
            total
            + jnp.sum(flows.log_density(VELOCITY, DATA[:2], 2, key=key, num_probes=2)),
            None,
        ),
        0.0,
        jax.random.split(KEY, 3),
    )
    assert np.isfinite(loss)


def test_a_moving_average_forgets_its_initial_value():
    """It is a mean of what it got, soon of all of it, and later by the decay."""

    @jax.jit
    def weights(first):
        def step(average, n):
            now = flows.moving_average(n == given, average, 0.98, n)
            return now, now

        given = jnp.arange(625)  # one entry for each step, and what it began with
        return jax.lax.scan(step, jnp.full(625, first), given)[1]

    found, other = (np.asarray(weights(first)) for first in (0.0, 1e3))
    np.testing.assert_allclose(found[-1].sum(), 1, rtol=1e-4)
    np.testing.assert_allclose(found[-1], other[-1], atol=1e-6)
    np.testing.assert_allclose(found[1, :3], [0.9 * 2 / 11, 9 / 11, 0], rtol=1e-5)
    # From n = 440 on, where (1 + n) / (10 + n) is larger, the decay is constant.
    ratios = found[-1, 442:-1] / found[-1, 443:]
    np.testing.assert_allclose(ratios, 0.98, rtol=1e-4)


def test_merged_moments_are_those_of_all_data():
    z = np.float32(RNG.normal(size=(1000, 2, 3)) * [1, 10, 0.1] + [0, 1000, 5])
    merged = flows.moments(z[:0])
    for part in np.split(z, [1, 7, 300, 300, 640]):
        merged = flows.merge_moments(merged, flows.moments(part))
    np.testing.assert_array_equal(merged.num, 1000)
    np.testing.assert_allclose(merged.mean, z.mean(axis=0, dtype=float), rtol=1e-5)
    variance = merged.squares / merged.num
    np.testing.assert_allclose(variance, z.var(axis=0, dtype=float), rtol=1e-3)
    scanned, _ = jax.lax.scan(
        lambda kept, part: (flows.merge_moments(kept, flows.moments(part)), None),
        flows.moments(z[:0]),
        z.reshape(10, 100, 2, 3),
    )
    np.testing.assert_allclose(scanned.squares, merged.squares, rtol=1e-3)


def test_moments_are_of_what_is_counted():
    z = np.float32(RNG.normal(size=(50, 3)))
    counted = RNG.random(size=(50, 3)) < 0.5
    counted[:, 2] = False
    masked = np.where(counted, z, np.nan)
    merged = flows.merge_moments(
        flows.moments(masked[:20], counted[:20]),
        flows.moments(masked[20:], counted[20:]),
    )
    np.testing.assert_array_equal(merged.num, counted.sum(axis=0))
    expected = np.nanmean(masked[:, :2], axis=0)
    np.testing.assert_allclose(merged.mean, [*expected, 0], rtol=1e-4)
    spread = np.nanvar(masked[:, :2], axis=0) * merged.num[:2]
    np.testing.assert_allclose(merged.squares, [*spread, 0], rtol=1e-4)


def test_whitening_is_undone_and_its_determinant_known():
    z = np.float32(RNG.normal(size=(500, 3)) * [1, 10, 0.1] + [0, 100, 5])
    of = flows.moments(z)
    r = flows.whiten(of, z)
    np.testing.assert_allclose(np.mean(r, axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.std(r, axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(flows.unwhiten(of, r), z, rtol=1e-4, atol=1e-4)
    jacobian = jax.jacobian(lambda row: flows.whiten(of, row))(z[0])
    expected = np.linalg.slogdet(jacobian).logabsdet
    assert flows.log_whitening(of) == pytest.approx(expected, rel=1e-5)
    # A dimension that never changes stays finite.
    constant = flows.moments(np.full((4, 1), 7.0, np.float32))
    np.testing.assert_array_equal(flows.whiten(constant, jnp.full((2, 1), 7.0)), 0)
    assert flows.log_whitening(constant) == 0


def test_what_has_no_deviation_has_a_gradient():
    """A deviation of 0 is taken for 1, and so it is in the derivative."""

    def total(squares):
        num = jnp.full(2, 4.0)
        return jnp.sum(flows.deviation(flows.Moments(num, 0 * num, squares)))

    squares = jnp.array([0.0, 16.0])
    assert float(total(squares)) == 1 + 2
    np.testing.assert_allclose(jax.grad(total)(squares), [0, 1 / 16])
