import jax
import numpy as np
import pytest
from toy_models import averaging_model, toy_split

from mmvae_jax.evaluation import conditionals, evaluate, metrics
from mmvae_jax.evaluation.draws import Draws
from mmvae_jax.evaluation.metric import EvaluationData

MODALITIES = ("m0", "m1", "m2", "m3")
NUM = 400
SHIFT = 1 / 255  # of each modality that is missing: one grey level


def make_split(observed=None):
    images = np.random.default_rng(0).integers(0, 200, (NUM, 2, 2, 1), dtype=np.uint8)
    split = toy_split(dict.fromkeys(MODALITIES, images), np.zeros(NUM))
    return split._replace(observed=observed)


def make_draws(params=0.0, batch_size=64, observed=None, **options):
    model = averaging_model(MODALITIES, (2, 2, 1), shift=SHIFT, **options)
    data = EvaluationData(None, make_split(observed), None, batch_size)
    return Draws(model, params, data, jax.random.key(0))


@pytest.mark.parametrize("batch_size", [64, 500])
@pytest.mark.parametrize("is_missing", [False, True])
def test_draws_are_of_what_is_given_in_the_order_of_the_rows(batch_size, is_missing):
    observed = None
    if is_missing:
        observed = np.random.default_rng(0).random((NUM, 4)) < 0.7
        observed[:, 3] |= ~observed.any(axis=1)
    draws = make_draws(batch_size=batch_size, observed=observed)
    test = draws.data.test
    for one in conditionals.conditions(test, "m1"):
        found = draws.conditional(one, 150)
        rows, given = one.rows[:150], one.given[:150]
        assert len(found.examples) == len(rows) == len(found.is_finite)
        missing = 4 - given.sum(axis=1)[:, None, None, None]
        np.testing.assert_array_equal(
            found.examples, test.modalities["m1"][rows] + missing
        )
        assert found.examples.dtype == np.uint8 and found.is_finite.all()


def test_the_first_of_more_draws_are_the_same():
    draws, others = (make_draws(log_variance=-4.0) for _ in range(2))
    one = conditionals.leave_one_out(draws.data.test, "m1")
    for draw in (
        lambda draws, num: draws.conditional(one, num),
        lambda draws, num: draws.prior("m2", num),
        lambda draws, num: draws.again(one, 1, num),
    ):
        few, many = draw(draws, 70).examples, draw(draws, 300).examples
        assert len(few) == 70 and len(many) == 300
        np.testing.assert_array_equal(few, many[:70])
        np.testing.assert_array_equal(draw(others, 300).examples, many)
    first, second = (draws.again(one, turn, 70).examples for turn in (0, 1))
    assert (first != second).any()
    assert (draws.conditional(one, 70).examples != first).any()


def test_modalities_of_a_prior_sample_belong_together():
    draws = make_draws()
    first, second = (draws.prior(m, 100).examples for m in ("m0", "m3"))
    np.testing.assert_array_equal(first, second)


def test_what_is_not_finite_is_said():
    draws = make_draws(np.nan)
    one = conditionals.leave_one_out(draws.data.test, "m1")
    for found in (draws.conditional(one), draws.prior("m0", 5), draws.again(one, 0)):
        assert not found.is_finite.any()
        assert np.isnan(found.values()).all()
    values = make_draws().prior("m0", 5).values()
    assert values.dtype == np.float32 and 0 <= values.min() <= values.max() <= 1


def test_noise_is_that_of_the_likelihood():
    draws = make_draws()
    draws.model = draws.model._replace(
        sample_likelihood=lambda params, z, key: {
            "m1": z.reshape(-1, 2, 2, 1)
            + 0.05 * jax.random.normal(key, (len(z), 2, 2, 1))
        }
    )
    one = conditionals.leave_one_out(draws.data.test, "m1")
    real = draws.data.test.modalities["m1"][one.rows].astype(float)
    noisy = draws.again(one, 0, has_noise=True).examples
    is_inside = (real > 60) & (real < 190)  # where nothing is clipped
    assert np.std((noisy - real)[is_inside]) == pytest.approx(0.05 * 255, rel=0.1)


def test_metrics_of_a_member_draw_once():
    calls = []

    def counted(name, function):
        def call(*arguments):
            calls.append(name)
            return function(*arguments)

        return call

    model = averaging_model(MODALITIES, (12, 12, 1))
    model = model._replace(
        encode=counted("encode", model.encode),
        posterior=counted("posterior", model.posterior),
        sample_prior=counted("sample_prior", model.sample_prior),
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (100, 12, 12, 1), dtype=np.uint8)
    split = toy_split(dict.fromkeys(MODALITIES, images), np.zeros(100))
    data = EvaluationData(None, split, None, 50)
    chosen = ("swd", "conditional_swd", "image_errors")
    functions = {name: metrics.METRICS[name].compute for name in chosen}
    key = jax.random.key(0)
    together = evaluate.evaluate_member(functions, model, 0.0, data, key)
    # Two batches; of each of four modalities there are four conditions.
    assert {name: calls.count(name) for name in calls} == {
        "encode": 2,
        "posterior": 2 * 4 * 4,
        "sample_prior": 2,
    }
    for name, function in functions.items():
        alone = evaluate.evaluate_member({name: function}, model, 0.0, data, key)
        assert alone.items() <= together.items()
