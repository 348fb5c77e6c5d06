"""`fit` as users call it: what it takes, and lines about what does not fit."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import mmvae_jax
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import fitting
from mmvae_jax.types import OBSERVED

G = np.random.default_rng(0)
IMAGES = G.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
VECTORS = G.normal(size=(60, 4)).astype(np.float32)
DATA = {"image": IMAGES, "waves": VECTORS}
TEXTS = ["a red bird", None] * 30
HALF = np.arange(60) % 2 == 0


NOT_APPLIED = {
    "data.missing": 0.3,
    "data.missing_test": 0.1,
    "data.use_modalities": 1,
    "data.seed": 1,
    "data.label_modalities": ("digit",),
    "log.wandb": "offline",
    "log.mlflow": "sqlite:///x",
    "classifier.num_steps": 3,
    "matcher.network": "mlp",
    "eval.metrics": ["elbo"],
    "eval.num_examples": 10,
    "eval.inception_weights": "x",
    "eval.sampler": "gmm",
    "eval.sampler_components": (3,),
    "eval.sampler_steps": 1,
    "train.eval_every_steps": 10,
    "train.checkpoint_every_steps": 10,
    "train.checkpoints_kept": 1,
}


def fit(data=DATA, **options):
    config = {"modality.network_options.widths": (8,)} | options.pop("config", {})
    options = {"num_steps": 1, "latent_dim": 2, "model": "mvae"} | options
    return mmvae_jax.fit(data, is_shown=False, config=config, **options)


def dataset(data, observed=None):
    return fitting._dataset(data, observed, None).train


@pytest.mark.parametrize(
    "waves",
    [
        pd.DataFrame(VECTORS),
        VECTORS.tolist(),
        list(VECTORS),
        VECTORS.astype(np.float64),
    ],
)
def test_what_numpy_makes_arrays_of_is_the_same_data(waves):
    found = dataset(DATA | {"waves": waves}).modalities["waves"]
    np.testing.assert_array_equal(found, VECTORS)


def test_what_is_observed_is_said_as_for_new_data():
    masks = np.stack([np.ones(60, bool), HALF], 1)
    for observed in (
        {"waves": HALF},
        masks.tolist(),
        pd.DataFrame(masks, columns=["image", "waves"]),
    ):
        np.testing.assert_array_equal(dataset(DATA, observed).observed, masks)
    np.testing.assert_array_equal(dataset(DATA | {OBSERVED: masks}).observed, masks)


def test_a_caption_that_is_missing_adds_no_word():
    found = fitting._dataset({"image": IMAGES, "text": TEXTS}, {"text": HALF}, None)
    assert found.words["text"][3:] == ("a", "bird", "red")


@pytest.mark.slow
def test_data_with_their_words_are_applied_to_as_they_were_trained_on():
    data = {"text": G.integers(0, 3, (60, 2)), "text_words": ["a", "b", "c"]}
    trained = fit(data)
    assert mmvae_jax.embed(trained, data).mean.shape == (60, 2)
    with pytest.raises(UsageError, match="text_words numbers words otherwise"):
        mmvae_jax.embed(trained, data | {"text_words": ["b", "a", "c"]})


@pytest.mark.slow
def test_numbers_of_numpy_are_numbers_and_sections_are_mappings():
    trained = fit(
        num_steps=np.int64(2),
        beta=np.array(0.5),
        config={
            "train": {"clip_norm": np.float32(1), "log_every_steps": 1},
            "modalities.waves.likelihood": "gaussian",
            "eval.importance_samples": 3,
            "train.mesh": [1, 1],
        },
    )
    assert isinstance(trained, mmvae_jax.Trained) and trained.member.beta == 0.5
    assert trained.config.train.clip_norm == 1 and len(trained.history) == 2
    assert trained.config.modalities.waves.likelihood == "gaussian"
    assert trained.config.eval.importance_samples == 3
    assert trained.config.train.mesh == (1, 1)


@pytest.mark.slow
def test_one_example_of_one_modality_is_enough():
    trained = fit({"waves": VECTORS[:1]}, num_steps=3)
    assert [row["step"] for row in trained.history] == [1, 2, 3]
    assert mmvae_jax.impute(trained, {"waves": VECTORS}).mean["waves"].shape == (60, 4)


def test_what_is_odd_and_may_be_meant_is_a_warning(monkeypatch):
    found = SimpleNamespace(is_finite=True)
    monkeypatch.setattr(fitting, "train", lambda *given, **options: (found,))
    with pytest.warns(UserWarning, match="looks like images given as floats"):
        fit(DATA | {"image": IMAGES / 255})
    for dtype in (int, float):
        mask = (np.arange(120).reshape(60, 2) % 3 > 0).astype(dtype)
        with pytest.warns(UserWarning, match="^mask holds a 0 or 1 for each other"):
            fit(DATA | {"mask": mask})


def test_settings_are_accepted_if_they_are_applied_or_as_by_default(monkeypatch):
    found = []

    def train(sweep, **options):
        found.append(sweep.config)
        return (SimpleNamespace(is_finite=True),)

    monkeypatch.setattr(fitting, "train", train)
    applied = {"eval.batch_size": 7, "eval.proposal": "mixture", "eval.seed": 1}
    applied |= {"train.data_seed": 1, "train.log_every_steps": 3}
    default = {"data.missing": 0, "log.wandb": "", "classifier.num_steps": 2_000}
    fit(config=applied | default | {"eval.metrics": []})
    flat = {field: found[0][field.split(".")[0]] for field in applied}
    assert {f: own[f.split(".")[1]] for f, own in flat.items()} == applied


def test_each_member_that_diverged_is_named(monkeypatch):
    def train(sweep, **options):
        return tuple(
            SimpleNamespace(member=member, is_finite=member.learning_rate < 0.1)
            for member in sweep.members
        )

    monkeypatch.setattr(fitting, "train", train)
    with pytest.warns(UserWarning) as caught:
        found = fit(beta=(0.5, 1.0), learning_rate=(0.01, 0.2))
    assert len(found) == 4
    assert [str(one.message) for one in caught] == [
        f"training of beta={beta},seed=0,learning_rate=0.2 diverged: its parameters "
        "are the last finite ones"
        for beta in ("0.5", "1")
    ]
    with pytest.raises(UsageError, match="^all members have diverged: lower learning_"):
        fit(learning_rate=(0.2, 0.3))


@pytest.mark.slow
def test_a_member_diverges_and_the_other_does_not():
    with pytest.warns(UserWarning, match="learning_rate=1e\\+38 diverged: its param"):
        good, bad = fit(learning_rate=(1e-3, 1e38), num_steps=2)
    assert good.is_finite and not bad.is_finite


@pytest.mark.parametrize(
    ("data", "options", "line"),
    [
        ([IMAGES, VECTORS], {}, "a mapping of names to arrays, "),
        ("digits.npz", {}, "got str"),
        (pd.DataFrame(VECTORS), {}, "got DataFrame"),
        ({}, {}, "data hold no modality"),
        ({0: IMAGES}, {}, "names are strings, got 0"),
        (DATA | {"waves": [[1.0, 2.0], [1.0]]}, {}, "waves is not of one shape"),
        (
            DATA | {"waves": np.ma.masked_array(VECTORS, VECTORS > 1)},
            {},
            "waves is a masked array",
        ),
        (DATA | {"waves": VECTORS[:5]}, {}, "got 60 of image, 5 of waves"),
        (DATA | {"waves": np.full((60, 2), -3)}, {}, "got -3; ints that are neither"),
        (DATA | {"waves": np.full((60, 2), 10**6)}, {}, "counts and measurements are"),
        (DATA | {"text": TEXTS}, {}, "text has None among its captions (example 1)"),
        (DATA, {"observed": {"w": HALF}}, "of one of image, waves"),
        (DATA, {"observed": np.ones((60, 2), int)}, "observed must be bool (60, 2)"),
        (DATA, {"num_steps": 10.5}, "train.num_steps is of type int, got 10.5"),
        (DATA, {"latent_dim": "4"}, "model.latent_dim is of type int, got '4'"),
        (DATA, {"model": None}, "model.name is of type str, got None"),
        (DATA, {"beta": None}, "config.sweep.beta holds None, not a number"),
        (DATA, {"options": 3}, "options must be a mapping, got 3"),
        (DATA, {"likelihood": None}, "likelihood must be a mapping, got None"),
        (DATA, {"config": {"train.clip_norm": "x"}}, "is of type float, got 'x'"),
        (DATA, {"config": {"train": {"lr": 1}}}, "there is no setting 'train.lr'"),
        (DATA, {"config": {"train": 1}}, "train is of type ConfigDict, got 1"),
        (DATA, {"config": {"train.num_steps": 3}}, "pass it to fit as an argument"),
        (DATA, {"config": {"modalities.w.likelihood": "laplace"}}, "names w, but the"),
        *(
            (DATA, {"config": {field: value}}, f"config has '{field}', unused by fit: ")
            for field, value in NOT_APPLIED.items()
        ),
        (DATA, {"config": {"data": {"missing": 0.3}}}, "by fit: pass `observed`"),
        (DATA, {"config": {"log.mlflow": "x"}}, "the values are in `Trained.history`"),
    ],
)
def test_what_does_not_fit_is_one_line_before_training(data, options, line):
    with pytest.raises(UsageError) as caught:
        fit(data, **options)
    assert line in str(caught.value) and "\n" not in str(caught.value)
