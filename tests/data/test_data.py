import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from experiments.running import datasets
from mmvae_jax.data import batches, reduce
from mmvae_jax.data.dataset import Dataset, Split, to_unit_interval
from mmvae_jax.data.prepared import load
from mmvae_jax.errors import UsageError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return datasets.prepare(
        ConfigDict(
            {
                "name": "polymnist",
                "data_dir": str(tmp_path_factory.mktemp("data")),
                "digits": "sklearn",
                "digits_dir": "",
                "backgrounds_dir": "",
                "published_dir": "",
                "num_modalities": 12,
                "image_size": 8,
                "translate_scale": 1.0,
                "repeated": True,
                "pairings": 1,
                "validation": 0,
                "quadrant": "",
                "label_modalities": (),
                "seed": 0,
            }
        )
    )


def test_load_returns_bytes_in_order_of_the_modalities(prepared):
    dataset = load(prepared)
    assert list(dataset.train.modalities) == [f"m{m}" for m in range(12)]
    for split, size in ((dataset.train, 1433), (dataset.test, 364)):
        assert split.labels.shape == (size,) and split.labels.dtype == np.int32
        for images in split.modalities.values():
            assert images.shape == (size, 8, 8, 3) and images.dtype == np.uint8
    assert len(dataset.fingerprint) == 64
    assert dataset.name.startswith("polymnist/sklearn-m12-8px")


def test_load_names_the_command_when_nothing_is_there(tmp_path):
    with pytest.raises(
        UsageError, match="no prepared data set in .*nowhere: prepare it"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="python -m experiments.prepare --config="):
        load(tmp_path / "nowhere")
    message = r"is damaged \(no dataset_info.json\): delete the folder and prepare it"
    with pytest.raises(UsageError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "count"])
def test_load_reports_damage(prepared, tmp_path, damage):
    copy = tmp_path / "config" / "1.0.0"
    shutil.copytree(prepared, copy)
    shard = next(copy.glob("*train*"))
    if damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-2000])
    elif damage == "remove":
        shard.unlink()
    else:
        text = (copy / "metadata.json").read_text()
        metadata = json.loads(text)
        metadata["num_examples"]["train"] += 1
        (copy / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UsageError, match="is damaged .*delete the folder"):
        load(copy)


def test_a_data_set_that_may_not_be_read_is_not_damaged(prepared, monkeypatch):
    def denied(*args):
        raise PermissionError(13, "Permission denied", "metadata.json")

    monkeypatch.setattr(tfds, "builder_from_directory", denied)
    with pytest.raises(UsageError, match="cannot be read .*change its permissions"):
        load(prepared)


@pytest.mark.parametrize("labels", [[0, 1 << 32], [0.0, 1.5]])
def test_labels_that_int32_does_not_hold(prepared, monkeypatch, labels):
    labels = np.array(labels)
    block = {"m0": np.zeros((2, 8, 8, 3), np.uint8), "label": labels}
    features = {
        name: SimpleNamespace(shape=(None, *x.shape[1:]), np_dtype=x.dtype)
        for name, x in block.items()
    }
    metadata = {
        "num_examples": {"train": 2, "test": 2},
        "modalities": ["m0"],
        "fingerprint": "",
    }
    builder = SimpleNamespace(
        name="mine",
        info=SimpleNamespace(features=features, metadata=metadata),
        as_data_source=lambda split: [block],
    )
    monkeypatch.setattr(tfds, "builder_from_directory", lambda path: builder)
    message = f"label of train is {labels.dtype}, not within int32"
    with pytest.raises(UsageError, match=message):
        load(prepared)


def test_each_epoch_visits_an_example_at_most_once():
    epochs = [batches.batch_indices(3, 14 * e, 14, 100, 7) for e in range(4)]
    for epoch in epochs:
        assert epoch.shape == (14, 7) and epoch.dtype == np.int32
        assert len(np.unique(epoch)) == 98
        assert epoch.min() >= 0 and epoch.max() < 100
    assert not np.array_equal(epochs[0], epochs[1])


def test_epoch_of_polymnist_has_234_steps():
    epoch = batches.batch_indices(0, 0, 235, 60000, 256)
    assert len(np.unique(epoch[:234])) == 234 * 256
    order = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([0, 1]))
    ).permutation(60000)
    np.testing.assert_array_equal(epoch[234], order[:256])


@pytest.mark.parametrize("start, num", [(0, 1), (13, 2), (5, 40), (41, 3)])
def test_batches_depend_on_the_step_alone(start, num):
    whole = batches.batch_indices(1, 0, 60, 100, 7)
    window = batches.batch_indices(1, start, num, 100, 7)
    np.testing.assert_array_equal(window, whole[start : start + num])


def test_batches_depend_on_the_seed():
    first, second = (batches.batch_indices(seed, 0, 1, 100, 50) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_batches_cannot_be_changed_through_the_cache():
    first = batches.batch_indices(0, 0, 1, 10, 10)
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(batches.batch_indices(0, 0, 1, 10, 10), expected)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_batch_size_must_fit(batch_size):
    message = rf"batch_size={batch_size} does not fit 10 .*set it to 1\.\.10"
    with pytest.raises(UsageError, match=message):
        batches.batch_indices(0, 0, 1, 10, batch_size)


def test_scaled_spans_the_unit_interval():
    floats = jax.jit(to_unit_interval)(jnp.arange(256, dtype=jnp.uint8))
    assert floats.dtype == jnp.float32
    # A compiled division by a constant may be off by one unit in the last place.
    np.testing.assert_allclose(
        floats, np.arange(256, dtype=np.float32) / 255, rtol=2e-7
    )
    assert floats[0] == 0 and floats[255] == 1


def test_first_modalities_share_arrays_and_fingerprint(prepared):
    dataset = load(prepared)
    names = list(dataset.train.modalities)
    one = reduce.first_modalities(dataset, 1)
    assert list(one.train.modalities) == list(one.test.modalities) == names[:1]
    assert one.train.modalities[names[0]] is dataset.train.modalities[names[0]]
    assert one.fingerprint == dataset.fingerprint
    assert reduce.first_modalities(dataset, 0) is dataset


@pytest.mark.parametrize("num", [-1, 13])
def test_more_modalities_than_there_are_is_an_error(prepared, num):
    dataset = load(prepared)
    with pytest.raises(UsageError, match="use_modalities=.* must be in 0..12"):
        reduce.first_modalities(dataset, num)


@pytest.fixture
def complete():
    rng = np.random.default_rng(0)
    splits = (
        Split(
            {m: rng.integers(1, 256, (num, 2, 2, 1), dtype=np.uint8) for m in "abc"},
            np.arange(num, dtype=np.int32),
        )
        for num in (4_000, 500)
    )
    return Dataset(*splits, "0" * 64, "name")


def test_modalities_are_missing_at_random_but_one(complete):
    dataset = reduce.with_missing(complete, 0.4, 0.0, seed=1)
    assert dataset.test is complete.test and dataset.name == "name-missing0.4,0"
    observed = dataset.train.observed
    assert observed.any(axis=1).all()
    # One of each example is there in any case.
    share = 1 - 0.4 * 2 / 3
    np.testing.assert_allclose(observed.mean(axis=0), share, atol=0.03)
    for column, (name, x) in zip(
        observed.T, dataset.train.modalities.items(), strict=True
    ):
        original = complete.train.modalities[name]
        assert (x[column] == original[column]).all() and not x[~column].any()
        assert (original > 0).all()
        np.testing.assert_array_equal(dataset.train.is_observed(name), column)
    again = reduce.with_missing(complete, 0.4, 0.0, seed=1).train.observed
    other = reduce.with_missing(complete, 0.4, 0.0, seed=2).train.observed
    assert (again == observed).all() and (other != observed).any()
    both = reduce.with_missing(complete, 0.4, 0.2, seed=1)
    assert (both.train.observed == observed).all()
    assert both.test.observed.mean() == pytest.approx(1 - 0.2 * 2 / 3, abs=0.05)
    assert reduce.with_missing(complete, 0.0, 0.0, seed=1) is complete


def test_examples_are_taken_with_all_that_they_have(complete):
    split = reduce.with_missing(complete, 0.4, 0.0, seed=1).train
    rows = np.array([5, 3])
    taken = split.take(rows)
    assert taken.labels.tolist() == [5, 3] and taken.num_examples == 2
    np.testing.assert_array_equal(taken.observed, split.observed[rows])
    whole = split.complete()
    assert whole.observed is None
    assert whole.num_examples == split.observed.all(axis=1).sum()
    np.testing.assert_array_equal(
        whole.labels, np.flatnonzero(split.observed.all(axis=1))
    )
    assert set(split.leaves()) == {"a", "b", "c", "observed"}


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_share_of_what_is_missing_is_below_one(complete, fraction):
    for fractions, name in (((fraction, 0.0), ""), ((0.0, fraction), "_test")):
        with pytest.raises(UsageError, match=f"^missing{name} must be"):
            reduce.with_missing(complete, *fractions, seed=0)


def test_what_is_missing_already_is_not_drawn_again(complete):
    incomplete = reduce.with_missing(complete, 0.4, 0.4, seed=1)
    with pytest.raises(UsageError, match="missing already"):
        reduce.with_missing(incomplete, 0.4, 0.0, seed=1)
    with pytest.raises(UsageError, match="have none of the first 1 modalities"):
        reduce.first_modalities(incomplete, 1)
