"""Applying a trained model: the evaluator's numbers, and what may not matter."""

import tracemalloc
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import mmvae_jax
from mmvae_jax import tokens
from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation import evaluate
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import METRICS, linear_probe
from mmvae_jax.interface import applying, description, fitting

N = 11
RNG = np.random.default_rng(0)
DATA = {
    "image": RNG.integers(0, 256, (N, 4, 4, 3)).astype(np.uint8),
    "waves": RNG.normal(size=(N, 3)).astype(np.float32),
    "text": np.array(["a red bird", "two blue birds fly", "red"])[np.arange(N) % 3],
}
OBSERVED = RNG.random((N, 3)) < 0.6
OBSERVED[:, 0] |= ~OBSERVED.any(axis=1)
SETTINGS = {
    "modality.network_options.widths": (8,),
    "eval.batch_size": 4,  # the last batch is not full
    "eval.importance_samples": 3,
}


def fit(model, **more):
    return mmvae_jax.fit(
        DATA,
        model=model,
        num_steps=3,
        latent_dim=3,
        config=SETTINGS,
        is_shown=False,
        **more,
    )


@pytest.fixture(
    scope="module",
    params=[
        "mvtcae",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in mmvae_jax.models.MODELS
            if name not in ("mvtcae", "custom")
        ),
    ],
)
def trained(request):
    # A step for each of the three stages.
    shares = {
        "code_flow": {"stage_shares": (0.34, 0.33)},
        "jnf_shared": {"code_share": 0.34, "joint_share": 0.33},
    }
    return fit(request.param, options=shares.get(request.param, {}))


@pytest.fixture(scope="module")
def split(trained):
    return description.to_split(trained.description, DATA, OBSERVED)


def hidden(values):
    """DATA with other values where they are not observed."""
    masked = {m: x.copy() for m, x in DATA.items()}
    for i, (m, x) in enumerate(masked.items()):
        x[~OBSERVED[:, i]] = values[m]
    return masked


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_is_missing_has_no_influence(trained):
    others = {"image": 77, "waves": np.nan, "text": "no such words"}
    for function, options in [
        (mmvae_jax.embed, {}),
        (mmvae_jax.impute, {"num_draws": 2}),
        (mmvae_jax.reconstruct, {}),
        (mmvae_jax.score, {}),
    ]:
        one = function(trained, hidden(others), OBSERVED, **options)
        assert_same(one, function(trained, DATA, OBSERVED, **options))
    left_out = {"image": DATA["image"]}
    masks = np.tile([True, False, False], (N, 1))
    assert_same(
        mmvae_jax.embed(trained, left_out), mmvae_jax.embed(trained, DATA, masks)
    )
    assert_same(
        mmvae_jax.embed(trained, DATA, given=["image"]),
        mmvae_jax.embed(trained, left_out),
    )


def test_scores_are_those_of_the_metrics(trained, split):
    data = EvaluationData(split, split, None, batch_size=4)
    key = jax.random.fold_in(jax.random.key(trained.config.eval.seed), trained.step)
    found = mmvae_jax.score(trained, DATA, OBSERVED)
    assert np.isfinite(found.log_likelihood).all()
    names = ("elbo", "log_likelihood")
    options = {"elbo": {}, "log_likelihood": {"num_samples": 3}}
    values = {
        name: METRICS[name].compute(
            trained.model,
            trained.params,
            data,
            evaluate.key_of(name, key),
            **options[name],
        )[name]
        for name in names
    }
    assert values["log_likelihood"] == found.log_likelihood.mean()
    np.testing.assert_allclose(values["elbo"], found.elbo.mean(), rtol=1e-7)
    of_seed = mmvae_jax.score(trained, DATA, OBSERVED, key=5)
    of_key = mmvae_jax.score(trained, DATA, OBSERVED, key=jax.random.key(5))
    assert_same(of_seed, of_key)
    assert not np.array_equal(of_seed.elbo, found.elbo)


def test_embeddings_are_those_of_the_probe_where_nothing_is_drawn(trained, split):
    model, params = trained.model, trained.params
    keys = jax.random.split(jax.random.key(0))
    ours = mmvae_jax.embed(trained, DATA, OBSERVED)
    one, other = (
        linear_probe.embed(model, params, split, key, batch_size=4) for key in keys
    )
    if np.array_equal(one, other):
        np.testing.assert_allclose(ours.mean, one, rtol=1e-5, atol=1e-6)
    else:  # a mixture: a draw is one of its components
        assert not np.array_equal(ours.mean, one)
    assert ours.mean.shape == ours.log_variance.shape == (N, model.latent_dim)
    assert sum(size for _, size in ours.parts) == model.latent_dim
    for name, size in ours.parts:
        assert ours.part(name)[0].shape == (N, size)
    with pytest.raises(UsageError, match="no part 'none'"):
        ours.part("none")


def test_what_is_imputed(trained, split):
    found = mmvae_jax.impute(trained, DATA, OBSERVED, num_draws=3, key=1)
    again = mmvae_jax.impute(trained, DATA, OBSERVED, num_draws=3, key=1)
    assert_same(found, again)
    assert list(found.mean) == list(DATA)
    for i, (m, x) in enumerate(split.modalities.items()):
        is_there = OBSERVED[:, i]
        assert found.mean[m].dtype == x.dtype and found.draws[m].dtype == x.dtype
        assert found.draws[m].shape == (3, *x.shape)
        np.testing.assert_array_equal(found.mean[m][is_there], x[is_there])
        np.testing.assert_array_equal(
            found.draws[m][:, is_there], np.stack([x[is_there]] * 3)
        )
        assert not found.spread[m][is_there].any()
        assert (found.spread[m][~is_there] > 0).any(), "draws differ"
    assert set(found.deviation) == {"image", "waves"}
    for i, m in enumerate(("image", "waves")):
        is_there = OBSERVED[:, i]
        assert not found.deviation[m][is_there].any()
        # Laplace of scale 0.75: of variance 2 b^2.
        noise = np.sqrt(2) * 0.75 * (255 if m == "image" else 1)
        expected = np.hypot(found.spread[m][~is_there], noise)
        np.testing.assert_allclose(found.deviation[m][~is_there], expected, rtol=1e-5)
    missing = ~OBSERVED[:, 1]
    draws = found.draws["waves"].astype(np.float64)
    np.testing.assert_allclose(
        found.mean["waves"][missing], draws.mean(axis=0)[missing], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        found.spread["waves"][missing], draws.std(axis=0)[missing], rtol=1e-4, atol=1e-6
    )


MODALITIES = (
    description.Modality("image", description.IMAGES, (3, 2, 1)),
    description.Modality("waves", description.VECTORS, (4,)),
    description.Modality("text", description.TOKENS, (5,), tuple("abcdefghijk")),
)


def drawn(num_draws, num, noisy=("waves",)):
    """Likelihood means and standard deviations of draws, with means far from 0."""
    rng = np.random.default_rng(3)
    logits = 2 * rng.normal(size=(num_draws, num, 5, 11))
    means = {
        "image": rng.uniform(-0.1, 1.1, (num_draws, num, 3, 2, 1)),
        "waves": rng.normal(1e4, 1e-2, (num_draws, num, 4)),
        "text": np.exp(logits) / np.exp(logits).sum(-1, keepdims=True),
    }
    noise = {m: rng.uniform(0.1, 1, means[m].shape) for m in noisy}
    return (
        {m: np.float32(x) for m, x in own.items() if m in names}
        for own, names in ((means, means), (noise, noisy))
    )


@pytest.fixture
def impute_drawn(monkeypatch):
    """(means, noise, batch size, options) -> what is imputed with these draws."""

    def build(means, noise, batch_size, **options):
        num_draws, num = len(means["waves"]), len(means["waves"][0])
        starts = iter(range(0, num, batch_size))

        def decoded(trained, batch, keys, rows):
            assert len(keys) == num_draws
            start = next(starts)
            for i in range(num_draws):
                yield tuple(
                    {m: x[i, start : start + rows] for m, x in own.items()}
                    for own in (means, noise)
                )

        monkeypatch.setattr(applying, "_decoded_draws", decoded)
        observed = np.zeros((num, 3), bool)
        observed[::3, 2] = True
        examples = {
            "image": np.zeros((num, 3, 2, 1), np.uint8),
            "waves": np.zeros((num, 4), np.float32),
            "text": np.full((num, 5), 10, np.int32),
        }
        split = Split(examples, observed=observed)
        trained = SimpleNamespace(
            description=SimpleNamespace(modalities=MODALITIES),
            config=SimpleNamespace(eval=SimpleNamespace(batch_size=batch_size)),
        )
        monkeypatch.setattr(applying, "_given", lambda *given: split)
        found = mmvae_jax.impute(trained, {}, num_draws=num_draws, **options)
        return found, observed[:, 2]

    return build


def test_moments_over_draws_are_those_of_the_draws(impute_drawn):
    means, noise = drawn(7, 11)
    found, has_text = impute_drawn(means, noise, 4)
    units = {"image": 255 * np.clip(means["image"], 0, 1), "waves": means["waves"]}
    for m, x in units.items():
        wanted = np.float64(x).mean(0)
        wanted = np.round(wanted) if m == "image" else np.float32(wanted)
        np.testing.assert_array_equal(found.mean[m], wanted)
        # A mean of squares minus a square of means has no digit of 0.01 at 10,000.
        np.testing.assert_allclose(found.spread[m], np.float64(x).std(0), rtol=1e-6)
    variance = np.float64(means["waves"]).var(0) + np.mean(noise["waves"] ** 2.0, 0)
    assert set(found.deviation) == {"waves"}
    np.testing.assert_allclose(found.deviation["waves"], variance**0.5, rtol=1e-6)
    p = np.float64(means["text"]).mean(0)
    entropy = np.where(has_text[:, None], 0, -(p * np.log(p)).sum(-1))
    np.testing.assert_allclose(found.spread["text"], entropy, rtol=1e-6)
    words = np.where(has_text[:, None], 10, p.argmax(-1))
    np.testing.assert_array_equal(found.mean["text"], words)
    np.testing.assert_array_equal(found.draws["waves"], means["waves"])
    np.testing.assert_array_equal(found.draws["image"], np.round(units["image"]))
    words = np.where(has_text[:, None], 10, means["text"].argmax(-1))
    np.testing.assert_array_equal(found.draws["text"], words)
    without, _ = impute_drawn(means, noise, 4, keep_draws=False)
    assert without.draws == {}
    assert_same(without[:3], found[:3])


def test_no_modality_has_noise(impute_drawn):
    means, noise = drawn(2, 5, noisy=())
    assert impute_drawn(means, noise, 2)[0].deviation == {}


def test_the_memory_of_draws_is_that_of_one(impute_drawn):
    def peak(num_draws):
        means, noise = drawn(num_draws, 1_000)
        tracemalloc.start()
        impute_drawn(means, noise, 500, keep_draws=False)
        _, bytes_ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return bytes_

    peak(1)  # imports
    few, many = peak(3), peak(15)
    assert many < 1.5 * few  # 5 times as much, if all draws were kept


def test_generated_examples_have_the_form_of_the_data(trained, split):
    found = mmvae_jax.generate(trained, 6, jax.random.key(3))
    assert list(found) == list(DATA)
    for m, x in split.modalities.items():
        assert found[m].shape == (6, *x.shape[1:]) and found[m].dtype == x.dtype
    assert_same(found, mmvae_jax.generate(trained, 6, 3))
    longer = mmvae_jax.generate(trained, 8, 3)
    assert_same(found, {m: x[:6] for m, x in longer.items()})


def test_reconstructions_have_the_form_of_the_data(trained, split):
    found = mmvae_jax.reconstruct(trained, DATA, given="waves")
    for m, x in split.modalities.items():
        assert found[m].shape == x.shape and found[m].dtype == x.dtype


def test_words_tokens_and_texts_are_the_same(trained):
    text = trained.description.modalities[2]
    split = description.to_split(trained.description, {"text": DATA["text"]})
    assert description.to_texts(text, split.modalities["text"]).tolist() == list(
        DATA["text"]
    )
    words = np.array(text.words)[split.modalities["text"]]
    assert_same(
        split.modalities,
        description.to_split(trained.description, {"text": words}).modalities,
    )
    assert isinstance(split, Split)


@pytest.mark.parametrize(
    ("data", "observed", "line"),
    [
        ({"sound": DATA["waves"]}, None, "'sound' is no modality of this model"),
        ({"labels": np.zeros(N, int)}, None, "none of the modalities image, waves"),
        ({"image": DATA["image"][:, :3]}, None, "images uint8 [N, 4, 4, 3]"),
        ({"image": DATA["image"] / 255}, None, "images uint8 [N, 4, 4, 3]"),
        ({"waves": DATA["text"]}, None, "vectors float32 [N, 3]"),
        ({"waves": np.full((N, 3), np.nan)}, None, "waves holds NaN or infinity"),
        ({"text": np.full((N, 5), 99)}, None, "the model knows 0 to"),
        ({"text": np.full((N, 5), "cat")}, None, "the word 'cat'"),
        (DATA | {"waves": DATA["waves"][1:]}, None, "equally many examples"),
        (DATA, np.ones((N, 2), bool), "observed must be bool (11, 3)"),
        (DATA, np.zeros((N, 3), bool), "example 0 has no observed modality"),
        (DATA, {"image": np.ones(3, bool)}, "observed['image'] is bool (3,)"),
        ([DATA["image"]], None, "a mapping of names to arrays"),
        ({0: DATA["image"]}, None, "a mapping of names to arrays"),
        ({"waves": [[1.0, 2.0], [3.0]]}, None, "waves is not of one shape"),
        ({"text": [None, "a cat"]}, None, "text has None among its captions"),
    ],
)
def test_data_that_do_not_fit_are_named(trained, data, observed, line):
    with pytest.raises(UsageError) as caught:
        mmvae_jax.embed(trained, data, observed)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_arguments_are_named(trained):
    with pytest.raises(UsageError, match="num_draws must be >= 1"):
        mmvae_jax.impute(trained, DATA, num_draws=0)
    with pytest.raises(UsageError, match="num must be >= 1"):
        mmvae_jax.generate(trained, 0)
    with pytest.raises(UsageError, match="'sound' is no modality"):
        mmvae_jax.embed(trained, DATA, given=["sound"])


@pytest.mark.slow
def test_a_sweep_gives_a_model_a_member():
    both = fit("mvae", beta=(0.5, 2.0))
    alone = fit("mvae", beta=2.0)
    assert [one.member.beta for one in both] == [0.5, 2.0]
    assert_same(both[1].params, alone.params)
    assert both[0].history[-1]["step"] == 3
    assert len(both[0].history) == 3
    assert_same(mmvae_jax.embed(both[1], DATA), mmvae_jax.embed(alone, DATA))


RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
VECTORS = RNG.normal(size=(60, 4)).astype(np.float32)
CLASSES = RNG.integers(0, 5, 60)
SMALL = {"latent_dim": 2, "config": {"modality.network_options.widths": (4,)}}
MALFORMED = {
    "support": ({}, {"likelihood": "bernoulli"}, "one of numbers in .0, 1., and tr"),
    "counts": ({}, {"likelihood": {"vector": "poisson"}}, "vector.*one of counts"),
    "likelihood": ({}, {"likelihood": {"image": "categorical"}}, "'categorical' of im"),
    "classes": ({"label": CLASSES}, {}, "name classes 'labels'"),
    "labels": ({}, {"labels": CLASSES / 2}, "labels must be integers .*astype.int"),
    "bool labels": (
        {},
        {"labels": CLASSES > 2},
        "labels must be integers .60,., got b",
    ),
    "channels": ({"image": np.moveaxis(IMAGES, -1, 1)}, {}, "looks like images .N, C,"),
    "int64": ({"image": IMAGES.astype(int)}, {}, "image is int64.*images are uint8"),
    "mask": ({"mask": np.ones((60, 2), bool)}, {}, "mask is bool.*called 'observed'"),
    "int mask": ({}, {"observed": np.ones((60, 2), int)}, "observed must be bool"),
    "never": (
        {},
        {"observed": np.eye(2, dtype=bool)[[0] * 60]},
        "no training .* vector",
    ),
    "float64": (
        {"vector": VECTORS * np.float64(1e300)},
        {},
        "vector holds .*beyond float32",
    ),
    "dots": ({"a.b": VECTORS}, {}, "'a.b'.*rename it"),
    "a list": ([IMAGES, VECTORS], {}, "a mapping of names to arrays.* got list"),
    "numbers": ({0: IMAGES}, {}, "a mapping of names to arrays"),
    "ragged": ({"vector": [[1.0, 2.0], [3.0]]}, {}, "vector is not of one shape"),
    "captions": ({"text": [None] * 60}, {}, "text has None among its captions"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_arrays_that_do_not_fit_are_named_before_training(case, monkeypatch):
    """The checks of a run's files, for arrays in memory."""
    data, options, line = MALFORMED[case]

    def train(*given, **options):
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr(fitting, "train", train)
    if isinstance(data, dict):
        data = {"image": IMAGES, "vector": VECTORS} | data
    with pytest.raises(UsageError, match=line) as caught:
        mmvae_jax.fit(data, is_shown=False, **options)
    assert "\n" not in str(caught.value)


def test_what_is_odd_about_arrays_is_said(monkeypatch):
    monkeypatch.setattr(fitting, "train", lambda *given, **options: ())
    floats = RNG.integers(0, 256, (60, 8, 8, 3)).astype(float)
    odd = pytest.warns(UserWarning, match="image looks like images given as floats")
    with odd, pytest.raises(UsageError, match="diverged"):  # nothing is trained
        mmvae_jax.fit({"image": floats}, model="unimodal", is_shown=False, **SMALL)


def test_a_missing_caption_may_be_anything():
    texts = np.array(["a cat", None, float("nan"), *["a dog"] * 57], object)
    there = np.ones((60, 2), bool)
    there[1:3, 1] = False
    found = fitting._dataset({"vector": VECTORS, "text": texts}, there, None)
    assert set(found.words["text"]) == {*tokens.SPECIALS, "a", "cat", "dog"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model": "nobody"}, "unknown model 'nobody'"),
        ({"model": "mvae", "options": {"alpha": 1}}, "is no option of the model"),
        ({"model": "mvae", "beta": -1.0}, "config.sweep.beta must be >= 0"),
        ({"model": "mvae", "config": {"train.nothing": 1}}, "no setting 'train.noth"),
        ({"model": "mvae", "likelihood": {"x": "laplace"}}, "likelihood names 'x'"),
        ({"model": "mvae", "observed": np.zeros((N, 3), bool)}, "no observed modality"),
        ({"model": "mvae", "num_steps": 0}, "config.train.num_steps must be >= 1"),
    ],
)
def test_settings_that_do_not_fit_are_named_before_training(options, line):
    with pytest.raises(UsageError) as caught:
        mmvae_jax.fit(DATA, is_shown=False, **options)
    assert line in str(caught.value) and "\n" not in str(caught.value)
