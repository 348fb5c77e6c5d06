from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.make_inception_golden import random_weights
from toy_models import averaging_model, label_classifier, toy_split

from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.features import features_of
from mmvae_jax.evaluation.metric import EvaluationData, Undefined
from mmvae_jax.evaluation.metrics import conditional_quality, frechet
from mmvae_jax.networks import inception

MODALITIES = ("m0", "m1", "m2")
SHAPE = (8, 8, 1)


def make_data(num=40, observed=None):
    images = np.random.default_rng(0).integers(0, 200, (num, *SHAPE), dtype=np.uint8)
    split = toy_split(dict.fromkeys(MODALITIES, images), np.zeros(num))
    classifiers = dict.fromkeys(MODALITIES, label_classifier())
    return EvaluationData(None, split._replace(observed=observed), classifiers, 16)


def measure(metric, data, shift=2 / 255, params=0.0, modalities=MODALITIES):
    model = averaging_model(modalities, SHAPE, shift)
    return metric(model, params, data, jax.random.key(0))


def conditional_fid(*given):
    """In features that are the pixels."""
    return conditional_quality.conditional_fid(
        *given, extractor=lambda x: jnp.reshape(x, (len(x), -1))
    )


METRICS = [
    conditional_quality.conditional_swd,
    conditional_quality.conditional_frechet,
    conditional_fid,
]


@pytest.mark.parametrize("metric", METRICS[1:])
def test_frechet_of_shifted_examples_is_the_squared_shift(metric):
    tags = measure(metric, make_data())
    tag = metric.__name__
    squared = 64 * (2 / 255) ** 2  # of 64 features, a missing modality
    expected = {"reconstruction": 0, "size_1": 4, "size_2": 1, "leave_one_out": 1}
    for name, factor in expected.items():
        found = tags[f"{tag}/{name}"]
        assert found == pytest.approx(factor * squared, rel=1e-3, abs=1e-4 * squared)
    assert f"{tags[f'{tag}/leave_one_out/m1']:.3g}" == f"{squared:.3g}"


def test_fid_calls_its_network_with_batches_that_fit():
    sizes = []

    def extractor(images):
        sizes.append(len(images))
        return jnp.reshape(images, (len(images), -1))

    data = make_data(70)._replace(batch_size=500)
    given = (averaging_model(MODALITIES, SHAPE), 0.0, data, jax.random.key(0))
    conditional_quality.conditional_fid(*given, extractor=extractor)
    assert set(sizes) == {frechet.MAX_BATCH}
    # Two batches of each modality: real images once, and three conditions.
    assert len(sizes) == 3 * 2 * (1 + 3)


def test_swd_grows_with_what_is_missing():
    tags = measure(conditional_quality.conditional_swd, make_data())
    names = ("reconstruction", "leave_one_out", "size_1")
    values = [tags[f"conditional_swd/{name}"] for name in names]
    assert values[0] == pytest.approx(0, abs=1e-3)
    assert 1 < values[1] < values[2]
    assert values[2] == pytest.approx(2 * values[1], rel=0.05)


@pytest.mark.parametrize("metric", METRICS)
def test_what_diverged_is_nan(metric):
    tags = measure(metric, make_data(), params=np.nan)
    assert tags and all(np.isnan(value) for value in tags.values())


@pytest.mark.parametrize("metric", METRICS)
def test_one_modality_has_reconstructions_only(metric):
    data = make_data()
    only = {"m0": data.test.modalities["m0"]}
    data = data._replace(test=data.test._replace(modalities=only))
    tags = measure(metric, data, modalities=("m0",))
    prefix = f"{metric.__name__}/reconstruction"
    assert set(tags) == {prefix, f"{prefix}/m0"}


@pytest.mark.parametrize("metric", METRICS)
def test_what_no_example_has_is_undefined(metric):
    observed = np.eye(3, dtype=bool)[np.arange(40) % 3]
    tags = measure(metric, make_data(observed=observed))
    reason = "m0 (size_1): too few test examples have it and what it is given"
    assert isinstance(tags[f"{metric.__name__}/size_1"], Undefined)
    assert tags[f"{metric.__name__}/size_1"].reason == reason
    assert np.isfinite(tags[f"{metric.__name__}/reconstruction/m1"])


@pytest.mark.slow
def test_fid_in_the_features_of_the_network():
    """Of random weights: 0 for copies, else the distance of the shifted images."""
    golden = np.load(Path(__file__).parents[2] / "golden" / "inception_features.npz")
    shapes = {
        str(name): tuple(map(int, shape.split()))
        for name, shape in zip(golden["names"], golden["shapes"], strict=True)
    }
    variables = inception.to_variables(random_weights(shapes))
    network = inception.make_extractor(variables)

    def extractor(images):
        return network(images)[:, :64]  # a square root of all 2048 takes minutes

    data = make_data(6)._replace(batch_size=6)
    data = data._replace(
        test=data.test._replace(
            modalities={m: data.test.modalities[m] for m in ("m0", "m1")}
        )
    )
    model = averaging_model(("m0", "m1"), SHAPE, 0.2)
    given = model, 0.0, data, jax.random.key(0)
    tags = conditional_quality.conditional_fid(*given, extractor=extractor)
    assert tags["conditional_fid/reconstruction"] < 1e-6
    images = data.test.modalities["m0"]
    shifted = np.uint8(np.clip(np.round(images + 0.2 * 255), 0, 255))
    expected = frechet.frechet_distance(
        *frechet.moments_of(features_of(extractor, images, 6)),
        *frechet.moments_of(features_of(extractor, shifted, 6)),
    )
    found = tags["conditional_fid/leave_one_out/m1"]
    assert found == pytest.approx(expected, rel=1e-2) and expected > 1e-3


def test_refused():
    with pytest.raises(UsageError, match="needs a classifier for every modality"):
        data = make_data()._replace(classifiers=None)
        measure(conditional_quality.conditional_frechet, data)
    vectors = {m: np.zeros((4, 2), np.float32) for m in MODALITIES}
    data = EvaluationData(None, toy_split(vectors, np.zeros(4)), None, 4)
    with pytest.raises(UsageError, match="needs images"):
        measure(conditional_quality.conditional_swd, data)
    with pytest.raises(UsageError, match="'conditional_fid' needs images"):
        measure(conditional_fid, data)
