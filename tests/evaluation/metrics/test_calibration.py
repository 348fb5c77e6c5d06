import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from toy_models import averaging_model, toy_split

from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import calibration
from mmvae_jax.mathematics.distributions import LIKELIHOODS, make_likelihood

MODALITIES = ("m0", "m1")


@pytest.mark.parametrize("name", ["normal", "exponential", "standard_cauchy"])
def test_coverage_is_exact_of_any_distribution(name):
    draw = getattr(np.random.default_rng(0), name)
    scores = calibration.interval_scores(draw(size=(19, 40_000)), draw(size=40_000))
    assert scores["coverage_50"] == pytest.approx(0.5, abs=0.01)
    assert scores["coverage_90"] == pytest.approx(0.9, abs=0.006)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.1), (0.5, 0.002), (1.0, 0.0)])
def test_coverage_is_exact_of_pixels_that_are_often_equal(mean, deviation):
    """Pixels of black images, and such with less noise than a step of 8 bits."""
    rng = np.random.default_rng(0)
    pixels = mean + deviation * rng.normal(size=(20, 40_000))
    pixels = np.round(255 * np.clip(pixels, 0, 1)) / 255
    scores = calibration.interval_scores(pixels[1:], pixels[0])
    assert scores["coverage_50"] == pytest.approx(0.5, abs=0.01)
    assert scores["coverage_90"] == pytest.approx(0.9, abs=0.006)


def test_crps_of_a_normal_in_closed_form():
    """Of N(0, 1) and y = 0 it is (sqrt(2) - 1) / sqrt(pi)."""
    draws = np.random.default_rng(0).normal(size=(19, 40_000))
    found = calibration.interval_scores(draws, np.zeros(40_000))["crps"]
    assert found == pytest.approx((np.sqrt(2) - 1) / np.sqrt(np.pi), abs=3e-3)
    pairs = np.mean(np.abs(draws[:, None, :50] - draws[None, :, :50]))
    expected = np.abs(draws[:, :50]).mean() - 19 / 18 * pairs / 2
    found = calibration.interval_scores(draws[:, :50], np.zeros(50))["crps"]
    assert found == pytest.approx(expected)


def measure(noise, deviation=0.0, params=0.0, observed=None, kind=np.float32):
    """m1 is m0 and noise; the model decodes m0 and noise of a standard deviation."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 20)).astype(kind)
    y = (x + noise * rng.normal(size=x.shape)).astype(kind)
    split = toy_split({"m0": x, "m1": y}, np.zeros(150))
    model = averaging_model(MODALITIES, (20,))

    def sample_likelihood(params, z, key):
        x = z + deviation * jax.random.normal(key, z.shape)
        return dict.fromkeys(MODALITIES, x)

    model = model._replace(sample_likelihood=sample_likelihood)
    data = EvaluationData(None, split._replace(observed=observed), None, 150)
    return calibration.calibration(model, params, data, jax.random.key(0))


def test_a_likelihood_that_knows_the_noise_is_calibrated():
    tags = measure(0.5, 0.5)
    assert tags["calibration/coverage_50/leave_one_out"] == pytest.approx(0.5, abs=0.03)
    assert tags["calibration/coverage_90/leave_one_out/m1"] == pytest.approx(
        0.9, abs=0.03
    )
    expected = 0.5 / np.sqrt(np.pi)  # E|e| - E|e - e'| / 2 of noise of 0.5
    assert tags["calibration/crps/leave_one_out"] == pytest.approx(expected, rel=0.05)
    assert measure(0.5)["calibration/coverage_90/leave_one_out"] == 0
    wide = measure(0.5, 2.0)
    assert wide["calibration/coverage_50/leave_one_out/m0"] > 0.9
    assert wide["calibration/crps/leave_one_out"] > 1.5 * expected


# Likelihood -> law of SciPy, given the output of the decoder; the scale is 0.1, and r
# of a negative binomial is 1.
LAWS = {
    "laplace": lambda x: scipy.stats.laplace(x, 0.1),
    "gaussian": lambda x: scipy.stats.norm(x, 0.1),
    "gaussian_learned": lambda x: scipy.stats.norm(x, 0.1),
    "gaussian_optimal": lambda x: scipy.stats.norm(x, 0.1),
    "bernoulli": lambda x: scipy.stats.bernoulli(scipy.special.expit(x)),
    "poisson": lambda x: scipy.stats.poisson(np.exp(x)),
    "negative_binomial": lambda x: scipy.stats.nbinom(1, 1 / (1 + np.exp(x))),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if kind.is_of_counts else [])
        for name, kind in LIKELIHOODS.items()
        if name != "categorical"
    ],
)
def test_a_perfect_model_is_calibrated(name):
    """m1 is drawn by SciPy from the likelihood whose output is m0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 100)).astype(np.float32)
    y = LAWS[name](np.float64(x)).rvs(random_state=rng).astype(np.float32)
    split = toy_split({"m0": x, "m1": y}, np.zeros(150))
    likelihood = make_likelihood(name, 0.1)
    shape = likelihood.parameter_shape

    def output(z):
        return z if shape is None else (z, jnp.zeros(shape(z.shape[1:])))

    model = averaging_model(MODALITIES, (100,))._replace(
        sample_likelihood=lambda params, z, key: dict.fromkeys(
            MODALITIES, likelihood.sample(output(z), key)
        )
    )
    data = EvaluationData(None, split, None, 150)
    tags = calibration.calibration(model, 0.0, data, jax.random.key(0))
    for tag, share in (("coverage_50", 0.5), ("coverage_90", 0.9)):
        error = np.sqrt(share * (1 - share) / x.size)
        found = tags[f"calibration/{tag}/leave_one_out/m1"]
        assert found == pytest.approx(share, abs=3 * error), tag


def test_nan_and_undefined():
    tags = measure(0.5, 0.5, params=jnp.nan)
    assert tags and all(np.isnan(value) for value in tags.values())
    observed = np.eye(2, dtype=bool)[np.arange(150) % 2]
    tags = measure(0.5, 0.5, observed=observed)
    reason = tags["calibration/crps/leave_one_out"].reason
    assert reason.startswith("m0 (leave_one_out): too few test examples have it")
    with pytest.raises(UsageError, match="'calibration' needs images or vectors"):
        measure(0.5, kind=np.int32)
