from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import replaying_model, toy_split

from configs import base
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation import evaluate
from mmvae_jax.evaluation.judges import inception_weights
from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import frechet
from mmvae_jax.networks import inception

MODALITIES = ("m0", "m1")
IMAGES = np.random.default_rng(0).integers(50, 200, (120, 2, 2, 3), dtype=np.uint8)


class Pixels:
    """Features that are the pixels; remembers the shapes it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, images):
        self.calls.append(images.shape)
        return jnp.reshape(images, (len(images), -1))


def make_data(images=IMAGES, batch_size=8):
    split = toy_split({name: images for name in MODALITIES}, [0] * len(images))
    return EvaluationData(None, split, None, batch_size)


def run(model, data, params=0.0, extractor=None, **options):
    extractor = Pixels() if extractor is None else extractor
    key = jax.random.key(0)
    return frechet.fid(model, params, data, key, extractor=extractor, **options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("error", [0.0, 0.4 / 255])
def test_images_equal_to_eight_bits_are_at_no_distance(channels, error):
    images = IMAGES[..., :channels]
    model = replaying_model(MODALITIES, images, lambda x: x + error)
    tags = run(model, make_data(images))
    assert set(tags) == {"fid", "fid/m0", "fid/m1"}
    assert max(tags.values()) < 1e-10


def test_a_shift_of_all_pixels_is_its_squared_length():
    model = replaying_model(MODALITIES, IMAGES)
    shifted = model._replace(
        decode=lambda params, z: {
            "m0": model.decode(0.0, z)["m0"] + 51 / 255,
            "m1": model.decode(0.0, z)["m1"],
        }
    )
    tags = run(shifted, make_data(), params=None)
    assert tags["fid/m0"] == pytest.approx(12 * 0.2**2, rel=1e-5)
    assert tags["fid/m1"] < 1e-10
    assert tags["fid"] == pytest.approx(tags["fid/m0"] / 2, rel=1e-5)


def test_a_diverged_model_has_no_distance():
    model = replaying_model(MODALITIES, IMAGES)
    tags = run(model, make_data(), params=jnp.float32(jnp.nan))
    assert np.isnan(list(tags.values())).all()


def test_calls_are_of_one_shape_and_a_number_of_samples_is_kept():
    model = replaying_model(MODALITIES, IMAGES)
    extractor = Pixels()
    run(model, make_data(batch_size=500), extractor=extractor, num_samples=60)
    assert set(extractor.calls) == {(frechet.MAX_BATCH, 2, 2, 3)}
    assert len(extractor.calls) == 2 * (3 + 2)  # 120 real ones, 60 generated ones


@pytest.mark.parametrize("shape", [(2, 2, 4), (7, 5)])
def test_what_is_no_image_is_refused(shape):
    data = make_data(np.zeros((120, *shape), np.uint8))
    with pytest.raises(UsageError, match="'fid'.*m0"):
        run(replaying_model(MODALITIES, IMAGES), data)


def test_moments_of_real_images_are_computed_once(tmp_path):
    extractor = Pixels()
    model = replaying_model(MODALITIES, IMAGES, lambda x: x**2)
    options = {"extractor": extractor, "cache_dir": tmp_path / "fid"}
    exact = run(model, make_data())
    first = run(model, make_data(), **options)
    assert len(extractor.calls) == 3 * 15  # both modalities show the same images
    extractor.calls.clear()
    assert run(model, make_data(), **options) == first == exact
    assert len(extractor.calls) == 2 * 15
    files = list((tmp_path / "fid").iterdir())
    assert len(files) == 1
    files[0].write_bytes(files[0].read_bytes()[:-100])
    assert run(model, make_data(), **options) == exact
    assert run(model, make_data(), **options) == exact
    other = run(model, make_data(IMAGES[:100]), **options)
    assert other != exact and len(list((tmp_path / "fid").iterdir())) == 2
    flipped = np.bitwise_xor(IMAGES, 1)
    assert run(model, make_data(flipped), **options) != exact


@pytest.mark.parametrize("name", ["fid", "conditional_fid"])
def test_fid_runs_only_where_a_config_names_it_and_has_the_weights(name, tmp_path):
    config = base.get_config().eval
    assert {"fid", "conditional_fid"}.isdisjoint(evaluate.select_metrics(config))
    config.metrics = ("elbo", name)
    config.inception_weights = str(tmp_path / "none.pth")
    with pytest.raises(UsageError, match="none.pth.*https://"):
        evaluate.select_metrics(config, str(tmp_path))


def test_the_runner_wires_weights_network_and_cache(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        inception_weights, "load", lambda *where: read.append(where) or "state"
    )
    monkeypatch.setattr(inception, "to_variables", lambda state: (state, "variables"))
    monkeypatch.setattr(inception, "make_extractor", lambda variables: Pixels())
    config = base.get_config().eval
    config.metrics = ("fid",)
    metrics = evaluate.select_metrics(config, str(tmp_path))
    assert read == [("", str(tmp_path))]
    model = replaying_model(MODALITIES, IMAGES)
    values = evaluate.evaluate_member(
        metrics, model, 0.0, make_data(), jax.random.key(0)
    )
    assert set(values) == {"eval/fid", "eval/fid/m0", "eval/fid/m1"}
    assert len(list((tmp_path / "fid").iterdir())) == 1


def test_threads_may_compute_and_keep_the_same_moments(tmp_path):
    """Members on several devices do, of the same images at the same time."""

    def run_once(_):
        model = replaying_model(MODALITIES, IMAGES, lambda x: x**2)
        return run(model, make_data(), cache_dir=tmp_path)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(run_once, range(8))
    assert all(other == first for other in others)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
