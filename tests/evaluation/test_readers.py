"""What reads attributes: parsers of captions, classifiers of everything else."""

import numpy as np
import pytest

from configs import base
from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.judges import readers
from mmvae_jax.evaluation.metric import most_probable
from mmvae_jax.tokens import SPECIALS, encode
from mmvae_jax.training import loop

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.usefixtures("cache")

SHAPES, COLOURS = ("circle", "star"), ("red", "green", "blue")
WORDS = (*SPECIALS, "a", "disc", *SHAPES, *COLOURS, "scarlet")
MEANINGS = {
    "shape": {"circle": "circle", "disc": "circle", "star": "star"},
    "colour": {"scarlet": "red", **{w: w for w in COLOURS}},
}


def make_split(num, seed):
    """Images are of the colour, the upper half dark where the shape is a star."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(0, 2, num).astype(np.int32)
    colour = rng.integers(0, 3, num).astype(np.int32)
    images = np.zeros((num, 8, 8, 3), np.uint8)
    images[np.arange(num), :, :, colour] = 200
    images[shape == 1, :4] //= 4
    texts = [f"a {COLOURS[c]} {SHAPES[s]}" for s, c in zip(shape, colour, strict=True)]
    captions = encode(texts, WORDS, 5)
    # One in ten says nothing of the colour.
    captions[::10, 1] = 3
    modalities = {"image": images, "caption": captions}
    return Split(modalities, attributes={"colour": colour, "shape": shape})


@pytest.fixture(scope="module")
def dataset():
    return Dataset(
        make_split(200, 0),
        make_split(50, 1),
        "0" * 64,
        "toy",
        words={"caption": WORDS},
        attributes={"shape": SHAPES, "colour": COLOURS},
        meanings={"caption": MEANINGS},
    )


@pytest.fixture(scope="module")
def config():
    config = base.get_config()
    config.classifier.network = "mlp"
    config.classifier.num_steps = 60
    config.classifier.batch_size = 50
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def found(config, dataset, folder):
    return readers.get_readers(config, dataset, folder)


def test_every_attribute_of_every_modality(found, dataset):
    assert {a: sorted(own) for a, own in found.items()} == {
        "colour": ["caption", "image"],
        "shape": ["caption", "image"],
    }
    test = dataset.test
    for attribute, own in found.items():
        for m, reader in own.items():
            x = test.modalities[m]
            values = read(reader, x / np.float32(255) if m == "image" else x)
            right = values == test.attributes[attribute]
            assert reader.accuracy == pytest.approx(right.mean())
    assert found["shape"]["image"].accuracy > 0.9
    assert found["colour"]["image"].accuracy > 0.9
    assert found["shape"]["caption"].accuracy == 1
    assert found["colour"]["caption"].accuracy == 0.9


def read(reader, examples):
    """The values that a reader finds in examples."""
    _, outputs = reader.apply(examples)
    return (reader.read or most_probable)(np.asarray(outputs))


def test_an_image_that_is_not_finite_shows_nothing(found):
    images = np.zeros((3, 8, 8, 3), np.float32)
    images[1] = np.nan
    values = read(found["shape"]["image"], images)
    assert np.isnan(values).tolist() == [False, True, False]


def test_parsed_words():
    texts = ["a scarlet disc", "a disc circle", "a red blue star", "a", "star green"]
    rows = encode(texts, WORDS, 5)
    shape = readers.parse(rows, WORDS, MEANINGS["shape"], SHAPES)
    colour = readers.parse(rows, WORDS, MEANINGS["colour"], COLOURS)
    assert shape.tolist() == [0, 0, 1, -1, 1]
    assert colour.tolist() == [0, -1, -1, -1, 1]


def test_classifiers_are_kept_an_attribute_each(found, config, dataset, folder, no_fit):
    assert len(list(folder.iterdir())) == 2
    again = readers.get_readers(config, dataset, folder)
    for attribute, own in found.items():
        assert {m: r.accuracy for m, r in own.items()} == {
            m: again[attribute][m].accuracy for m in own
        }


@pytest.fixture
def no_fit(monkeypatch):
    def fit(*arguments, **options):
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr(loop, "fit", fit)


def test_parsed_modalities_have_no_classifier(dataset, config, tmp_path, no_fit):
    captions = {"caption": dataset.train.modalities["caption"]}
    split = dataset.train._replace(modalities=captions)
    spoken = dataset._replace(train=split, test=split)
    readers.check(config, spoken)
    found = readers.get_readers(config, spoken, tmp_path)
    assert found["shape"]["caption"].accuracy == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_examples_count_in_no_accuracy(dataset, config):
    split = make_split(40, 2)
    split.modalities["caption"][::2] = 0
    observed = np.ones((40, 2), bool)
    observed[::2, 1] = False
    missing = dataset._replace(test=split._replace(observed=observed))
    assert readers.make_parser(missing, "caption", "shape").accuracy == 1
    labelled = readers.label_by(missing, "shape")
    assert list(labelled.train.modalities) == ["image"]
    assert labelled.test.observed.tolist() == [[True]] * 40
    assert (labelled.test.labels == split.attributes["shape"]).all()


def test_stopped_while_training(dataset, config, tmp_path):
    events = loop.Events(is_stopping=lambda: True)
    assert readers.get_readers(config, dataset, tmp_path, events) is None


def test_data_without_attributes(dataset, config):
    plain = dataset._replace(train=dataset.train._replace(attributes={}))
    with pytest.raises(UsageError, match="'attributes' needs attributes.*leave it out"):
        readers.check(config, plain)
    changed = config.copy_and_resolve_references()
    changed.classifier.network = "svm"
    with pytest.raises(UsageError, match="unknown network 'svm'"):
        readers.check(changed, dataset)


def test_what_does_not_show_an_attribute_has_no_reader(dataset, config, tmp_path):
    config = config.copy_and_resolve_references()
    config.classifier.num_steps = 2
    shown = {"shape": ("caption",), "colour": ("image",)}
    own = dataset._replace(shown=shown, meanings={"caption": {"shape": {}}})
    found = readers.get_readers(config, own, tmp_path)
    assert {a: tuple(readers) for a, readers in found.items()} == shown
