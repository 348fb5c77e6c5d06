"""The networks behind the matching: they learn what is shared, and no label."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmvae_jax import networks
from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.judges import classifiers, matchers, training
from mmvae_jax.evaluation.metrics import matching
from mmvae_jax.training import loop

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.usefixtures("cache")

SHAPES = {"a": (8, 8, 1), "b": (6, 6, 3), "c": (8, 8, 1)}


def make_split(num, seed):
    """Modalities that share in which quarter of the image there is a square.

    Their shapes differ, so that not all are executed at once.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, num).astype(np.int32)
    modalities = {}
    for name, shape in SHAPES.items():
        half = shape[0] // 2
        images = rng.integers(0, 80, (num, *shape))
        for image, label in zip(images, labels, strict=True):
            row, column = half * (label // 2), half * (label % 2)
            image[row : row + half, column : column + half] += 120
        modalities[name] = images.astype(np.uint8)
    return Split(modalities, labels)


class Linear(nn.Module):
    """The smallest of networks, dropout included: it compiles in a moment."""

    num_outputs: int

    @nn.compact
    def __call__(self, x, is_training=False):
        h = x.reshape(len(x), -1)
        h = nn.Dropout(0.3)(h, deterministic=not is_training)
        return h, nn.Dense(self.num_outputs)(h)


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.CLASSIFIERS, "linear", Linear)
        yield


@pytest.fixture(scope="module")
def toy():
    return Dataset(make_split(400, 0), make_split(200, 1), "0" * 64, "toy")


@pytest.fixture(scope="module")
def config(smoke_config):
    return smoke_config(
        "mopoe",
        {
            "matcher.network": "linear",
            "matcher.num_steps": 200,
            "matcher.batch_size": 64,
            "matcher.feature_dim": 8,
            "matcher.learning_rate": 5e-3,
        },
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("matchers")


@pytest.fixture(scope="module")
def trained(config, toy, folder):
    """Trained on data without labels: reading them would be an error."""
    unlabelled = toy._replace(
        train=toy.train._replace(labels=None), test=toy.test._replace(labels=None)
    )
    return matchers.get_matchers(config, unlabelled, folder)


@pytest.fixture
def untrained(monkeypatch):
    """What is trained from here on, at no cost."""
    calls = []

    def init_only(task, hyper, data, settings, events):
        calls.append(data)
        rng = np.random.default_rng(settings.seed)
        params = jax.tree.map(
            lambda leaf: rng.normal(size=(1, *leaf.shape)).astype(leaf.dtype),
            jax.eval_shape(task.init, jax.random.key(0)),
        )
        return params, np.ones(1, bool)

    monkeypatch.setattr(training, "fit_members", init_only)
    return calls


def features(found, split):
    return {
        m: np.asarray(found.embed[m](images / np.float32(255)))
        for m, images in split.modalities.items()
    }


def assert_equal(first, second, toy):
    assert first.scale == second.scale
    first, second = features(first, toy.test), features(second, toy.test)
    assert all((first[m] == second[m]).all() for m in SHAPES)


def test_matching_pairs_are_told_from_shuffled_ones(trained, toy):
    found = features(trained, toy.test)
    rows = np.random.default_rng(0).permutation(200)
    for x in SHAPES:
        np.testing.assert_allclose(np.sum(found[x] ** 2, -1), 1, rtol=1e-5)
        for y in SHAPES:
            if x == y:
                continue
            scale = trained.scale[x, y]
            assert scale == trained.scale[y, x] > 0
            lifts, wins = matching.pair_statistics(found[x], found[y], scale)
            # Of four classes: at most 4, and 1 - 1 / 8.
            assert 3 < lifts.mean() < 4.2
            assert 0.83 < wins.mean() < 0.92
            shuffled, wins = matching.pair_statistics(found[x], found[y][rows], scale)
            assert shuffled.mean() == pytest.approx(1, abs=0.4)
            assert wins.mean() == pytest.approx(0.5, abs=0.1)


def test_an_example_does_not_depend_on_the_others(trained, toy):
    images = toy.test.modalities["a"][:20] / np.float32(255)
    together = trained.embed["a"](images)
    assert (np.asarray(together) == np.asarray(trained.embed["a"](images))).all()
    np.testing.assert_allclose(trained.embed["a"](images[:5]), together[:5], atol=1e-5)


def test_modalities_have_their_own(trained, toy):
    images = toy.test.modalities["a"][:20] / np.float32(255)
    assert np.abs(trained.embed["a"](images) - trained.embed["c"](images)).max() > 1e-2


def test_labels_are_not_given_to_the_training(config, toy, tmp_path, untrained):
    relabelled = toy._replace(
        train=toy.train._replace(labels=toy.train.labels[::-1] * 0 + 1)
    )
    found = [
        matchers.get_matchers(config, data, tmp_path / str(i))
        for i, data in enumerate((toy, relabelled))
    ]
    assert_equal(*found, toy)
    assert [list(data) for data in untrained] == [list(SHAPES)] * 2


def test_a_second_call_trains_nothing(trained, config, toy, folder, untrained):
    # Labels change nothing but the fingerprint, which here they do not.
    again = matchers.get_matchers(config, toy, folder)
    assert untrained == []
    assert_equal(again, trained, toy)
    assert len(list(folder.iterdir())) == 1


def test_a_damaged_file_is_replaced(config, toy, tmp_path, untrained):
    first = matchers.get_matchers(config, toy, tmp_path)
    (path,) = tmp_path.iterdir()
    kept = path.read_bytes()
    path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    again = matchers.get_matchers(config, toy, tmp_path)
    assert len(untrained) == 2
    assert path.read_bytes() == kept
    assert_equal(again, first, toy)


def test_other_data_or_settings_have_another_file(config, toy, tmp_path, untrained):
    changed = config.copy_and_resolve_references()
    changed.matcher.num_steps += 1
    renamed = toy._replace(fingerprint="1" * 64)
    for settings, data in ((config, toy), (changed, toy), (config, renamed)):
        matchers.get_matchers(settings, data, tmp_path)
    assert len(untrained) == len(list(tmp_path.iterdir())) == 3


def test_files_are_kept_as_those_of_the_classifiers_are(
    config, toy, tmp_path, monkeypatch
):
    calls = []

    def keep(directory, dataset, settings, train_all):
        calls.append((directory, dataset, settings))

    monkeypatch.setattr(training, "load_or_train", keep)
    assert matchers.get_matchers(config, toy, tmp_path) is None
    assert classifiers.get_classifiers(config, toy, tmp_path) is None
    assert calls == [
        (tmp_path, toy, config.matcher),
        (tmp_path, toy, config.classifier),
    ]


def test_nothing_is_kept_of_a_stopped_training(config, toy, tmp_path):
    steps = []
    events = loop.Events(
        progress=lambda step, *_: steps.append(step),
        is_stopping=lambda: bool(steps),
    )
    assert matchers.get_matchers(config, toy, tmp_path, events) is None
    assert steps and steps[-1] < config.matcher.num_steps
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("get", "section", "names"),
    [
        (classifiers.get_classifiers, "classifier", "a, c"),
        (matchers.get_matchers, "matcher", "a, b, c"),
    ],
)
def test_nothing_is_kept_of_a_training_that_diverged(
    get, section, names, config, toy, tmp_path
):
    changed = config.copy_and_resolve_references()
    changes = {"network": "linear", "learning_rate": 1e38, "num_steps": 3}
    changed[section].update(changes)
    with pytest.raises(UsageError) as caught:
        get(changed, toy, tmp_path)
    assert str(caught.value) == (
        f"training of the {section} of {names} diverged: lower "
        f"config.{section}.learning_rate, which is 1e+38"
    )
    assert list(tmp_path.iterdir()) == []


def test_unknown_network(config, toy):
    changed = config.copy_and_resolve_references()
    changed.matcher.network = "svm"
    with pytest.raises(UsageError, match="unknown network 'svm'.*conv"):
        matchers.make_networks(changed, toy)


def test_info_nce():
    assert matchers.info_nce(jnp.zeros((8, 8))) == pytest.approx(np.log(8))
    logits = jnp.array([[2.0, 0.0], [1.0, 3.0]])
    rows = [np.log(1 + np.exp(-2)), np.log(1 + np.exp(-2))]
    columns = [np.log(1 + np.exp(-1)), np.log(1 + np.exp(-3))]
    assert matchers.info_nce(logits) == pytest.approx(np.mean(rows + columns))
    assert matchers.info_nce(logits.T) == pytest.approx(np.mean(rows + columns))
    # The density ratio of K classes: log B less the loss is near log K.
    classes = np.arange(400) % 4
    same = jnp.log(1e-9 + 4.0 * (classes[:, None] == classes))
    assert np.log(400) - matchers.info_nce(same) == pytest.approx(np.log(4), abs=1e-3)
