"""The classifiers behind the coherences: kept, trained on all, dropout off."""

import numpy as np
import pytest

from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.judges import classifiers, training
from mmvae_jax.training import loop

pytest_plugins = ("run_fixtures",)


@pytest.fixture(scope="module")
def config(smoke_config):
    return smoke_config("mopoe", {"classifier.num_steps": 150})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def trained(config, dataset, folder):
    return classifiers.get_classifiers(config, dataset, folder)


@pytest.fixture
def num_trained(monkeypatch):
    """The groups trained from here on."""
    groups = []
    train_group = classifiers._train_group

    def counting(network, settings, dataset, group):
        groups.append(group)
        return train_group(network, settings, dataset, group)

    monkeypatch.setattr(classifiers, "_train_group", counting)
    return groups


def outputs(found, dataset):
    images = {m: x[:50] / np.float32(255) for m, x in dataset.test.modalities.items()}
    return {m: [np.asarray(x) for x in found[m].apply(images[m])] for m in found}


def assert_equal(first, second, dataset):
    first, second = outputs(first, dataset), outputs(second, dataset)
    assert first.keys() == second.keys()
    for modality, arrays in first.items():
        for array, other in zip(arrays, second[modality], strict=True):
            assert (array == other).all()


def test_accuracy_is_above_chance_and_true(trained, dataset):
    assert list(trained) == ["m0", "m1"]
    for modality, classifier in trained.items():
        images = dataset.test.modalities[modality] / np.float32(255)
        _, logits = classifier.apply(images)
        assert logits.shape == (len(images), 10)
        accuracy = np.mean(np.argmax(np.asarray(logits), -1) == dataset.test.labels)
        assert classifier.accuracy == pytest.approx(accuracy, abs=1e-9)
        assert classifier.accuracy > 0.3


def test_dropout_is_off(trained, dataset):
    assert_equal(trained, trained, dataset)
    # Neither does an example depend on the others of its batch.
    images = dataset.test.modalities["m0"][:20] / np.float32(255)
    _, together = trained["m0"].apply(images)
    _, alone = trained["m0"].apply(images[:5])
    np.testing.assert_allclose(alone, together[:5], rtol=1e-4, atol=1e-5)


def test_modalities_have_their_own(trained, dataset):
    found = outputs(trained, dataset)
    images = dataset.test.modalities["m0"][:50] / np.float32(255)
    _, foreign = trained["m1"].apply(images)
    assert np.abs(foreign - found["m0"][1]).max() > 1e-3


def test_a_second_call_trains_nothing(trained, config, dataset, folder, num_trained):
    again = classifiers.get_classifiers(config, dataset, folder)
    assert num_trained == []
    assert {m: c.accuracy for m, c in again.items()} == {
        m: c.accuracy for m, c in trained.items()
    }
    assert_equal(again, trained, dataset)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("what", ["truncated", "damaged", "foreign", "empty"])
def test_a_damaged_file_is_replaced(
    what, trained, config, dataset, folder, monkeypatch
):
    (path,) = folder.glob("*.msgpack")
    kept = path.read_bytes()
    middle = len(kept) // 2
    damaged = {
        "truncated": kept[:middle],
        "damaged": kept[:middle] + bytes([kept[middle] ^ 1]) + kept[middle + 1 :],
        "foreign": b"\x01",
        "empty": b"",
    }
    path.write_bytes(damaged[what])
    stored = training.flax.serialization.msgpack_restore(kept[training._DIGEST_BYTES :])
    calls = []

    def train_again(network, settings, dataset, group, events):
        calls.append(group)
        return {modality: stored[modality] for modality in group}

    monkeypatch.setattr(classifiers, "_train_group", train_again)
    found = classifiers.get_classifiers(config, dataset, folder)
    assert calls == [["m0", "m1"]]
    assert path.read_bytes() == kept
    assert_equal(found, trained, dataset)


def test_other_data_or_settings_have_another_file(config, dataset, tmp_path, patched):
    changed = config.copy_and_resolve_references()
    changed.classifier.num_steps = 151
    renamed = dataset._replace(fingerprint="0" * 64)
    for settings, data in ((config, dataset), (changed, dataset), (config, renamed)):
        classifiers.get_classifiers(settings, data, tmp_path)
    assert len(patched) == 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture
def patched(monkeypatch):
    """Calls of a training that costs nothing."""
    calls = []

    def train_nothing(network, settings, dataset, group, events):
        calls.append(group)
        return {modality: {"params": {}, "accuracy": 0.5} for modality in group}

    monkeypatch.setattr(classifiers, "_train_group", train_nothing)
    return calls


def test_groups_of_one_shape(config, patched, tmp_path):
    shapes = {"a": (8, 8, 3), "b": (12, 12, 3), "c": (8, 8, 3), "d": (8, 8, 1)}
    images = {m: np.zeros((20, *shape), np.uint8) for m, shape in shapes.items()}
    split = Split(images, np.arange(20, dtype=np.int32) % 10)
    data = Dataset(split, split, "0" * 64, "name")
    found = classifiers.get_classifiers(config, data, tmp_path)
    assert patched == [["a", "c"], ["b"], ["d"]]
    assert set(found) == set(shapes)


def test_nothing_is_left_by_an_interrupted_training(
    config, dataset, tmp_path, monkeypatch
):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classifiers.get_classifiers(config, dataset, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_network(config, dataset, tmp_path):
    changed = config.copy_and_resolve_references()
    changed.classifier.network = "svm"
    with pytest.raises(UsageError, match="unknown network 'svm'.*conv"):
        classifiers.get_classifiers(changed, dataset, tmp_path)
