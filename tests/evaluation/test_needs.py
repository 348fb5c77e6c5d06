"""Metrics that cannot be computed are refused before the first step."""

import errno
import inspect
import os
from types import SimpleNamespace

import numpy as np
import pytest

from configs import base
from experiments.running import command, evaluator, session
from mmvae_jax.data.dataset import Dataset, Split, is_tokens
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation import judges, needs
from mmvae_jax.evaluation.judges import inception_weights, training
from mmvae_jax.evaluation.metric import HIGHER, LOWER, is_writable, keep, titled
from mmvae_jax.evaluation.metrics import (
    COLUMNS,
    METRICS,
    columns_of,
    frechet,
)
from mmvae_jax.networks import inception
from mmvae_jax.training import loop

pytest_plugins = ("run_fixtures",)

NUM = 12


def make_split(observed=None, labels=True, channels=3, **others):
    images = np.zeros((NUM, 8, 8, channels), np.uint8)
    modalities = {"m0": images, "m1": np.zeros((NUM, 4), np.float32), **others}
    classes = np.arange(NUM, dtype=np.int32) % 3 if labels else None
    return Split(modalities, classes, observed)


def make_setting(metrics, split, test=None, data_dir="nowhere", used=2):
    config = base.get_config()
    config.eval.metrics, config.data.data_dir = metrics, str(data_dir)
    words = {m: ("x",) for m, x in split.modalities.items() if is_tokens(x)}
    test = split if test is None else test
    complete = Dataset(split, test, "0" * 64, "toy", words)

    def reduced(split):
        kept = dict(list(split.modalities.items())[:used])
        observed = None if split.observed is None else split.observed[:, :used]
        return split._replace(modalities=kept, observed=observed)

    dataset = complete._replace(
        train=reduced(complete.train), test=reduced(complete.test)
    )
    return needs.Setting(config, dataset, complete, dataset.test)


def alternating():
    """No example has both modalities."""
    return np.eye(2, dtype=bool)[np.arange(NUM) % 2]


VECTORS = Split({"m0": np.zeros((NUM, 4), np.float32)}, np.zeros(NUM, np.int32))
REFUSED = {
    "swd on vectors": ("swd", VECTORS, "no modality is one: leave it out of metrics"),
    "fid on vectors": ("fid", VECTORS, "'fid' needs images, and no modality is one"),
    "fid of two channels": (
        "fid",
        make_split(channels=2),
        r"'fid' needs images of 1 or 3 channels, m0 has the shape \(8, 8, 2\)",
    ),
    "fid of four channels": ("fid", make_split(channels=4), r"\(8, 8, 4\): leave it"),
    "conditional fid on vectors": (
        "conditional_fid",
        VECTORS,
        "'conditional_fid' needs images, and no modality is one",
    ),
    "matching of what is never complete": (
        "matching",
        make_split(observed=alternating()),
        "needs test examples with all modalities, at least 2, got 0: leave it out",
    ),
    "captions of what is never complete": (
        "captions",
        make_split(observed=alternating())._replace(
            modalities={
                "m0": np.zeros((NUM, 5), np.int32),
                "m1": VECTORS.modalities["m0"],
            }
        ),
        "needs test examples with all modalities, at least 1, got 0: leave it out",
    ),
    "captions without any": ("captions", make_split(), "'captions' needs captions"),
    "captions of a single token": (
        "captions",
        make_split()._replace(modalities={"m0": np.zeros((NUM, 1), np.int32)}),
        "'captions' needs captions, and no modality has them",
    ),
    "attributes without any": (
        "attributes",
        make_split(),
        "'attributes' needs attributes, and the data have none: leave it out",
    ),
    "nothing is left open": (
        "one_to_many",
        make_split()._replace(attributes={"colour": np.zeros(NUM, np.int32)}),
        r"there is none in these data \(colour: shown by all\): leave it out of metr",
    ),
    **{
        f"{name} without labels": (
            name,
            make_split(labels=False),
            f"metric '{name}' needs labels, and the data have none: leave it out of "
            "metrics",
        )
        for name in ("coherence", "frechet", "linear_probe")
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_training(case):
    metric, split, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        needs.check(make_setting(("elbo", metric), split))


def test_matchers_need_complete_training_examples():
    split = make_split(observed=alternating())
    setting = make_setting(("matching",), split, test=make_split())
    message = "'matching' needs training examples with all modalities, got 0: leave it"
    with pytest.raises(UsageError, match=message):
        needs.check(setting)


def test_labels_of_the_test_split_are_needed_too():
    setting = make_setting(("coherence",), make_split(), test=make_split(labels=False))
    with pytest.raises(UsageError, match="'coherence' needs labels"):
        needs.check(setting)


def test_one_modality_is_matched_with_nothing(tmp_path):
    setting = make_setting(
        ("matching",), make_split(observed=alternating()), data_dir=tmp_path, used=1
    )
    assert needs.check(setting) == []
    assert needs.needed_judges(("matching",), setting.dataset) == []
    assert needs.needed_judges(("matching",), setting.complete) == ["matchers"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "classifiers").write_text("in the way")
    metrics = ("coherence", "frechet", "matching")
    setting = make_setting(metrics, make_split(), data_dir=tmp_path)
    (line,) = needs.check(setting)
    assert line.startswith(f"{tmp_path / 'classifiers'} cannot be written")
    assert needs.check(make_setting(("elbo",), make_split(), data_dir=tmp_path)) == []
    setting = make_setting(("fid",), make_split(), data_dir=tmp_path)
    (tmp_path / "weights").symlink_to(tmp_path / "nowhere")  # is in the way too
    (line,) = needs.check(setting)
    assert line.startswith(f"{tmp_path / 'weights'} cannot be written")
    (tmp_path / "weights").unlink()
    # To ask leaves nothing behind.
    assert [path.name for path in tmp_path.iterdir()] == ["classifiers"]
    assert is_writable(tmp_path / "new" / "folder")
    assert not is_writable(tmp_path / "classifiers" / "folder")


def test_a_cache_is_used_only_where_it_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(inception_weights, "load", lambda *where: {})
    monkeypatch.setattr(inception, "to_variables", lambda state: state)
    config = base.get_config().eval
    found = needs.supplied("fid", config, str(tmp_path))
    assert found["cache_dir"] == tmp_path / "fid"
    (tmp_path / "fid").write_text("in the way")
    assert needs.supplied("fid", config, str(tmp_path))["cache_dir"] is None


def test_what_a_full_disk_cannot_keep_is_said_and_costs_nothing(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    settings, trained = base.get_config().classifier, {"a": np.ones(2)}
    dataset = make_setting((), make_split()).dataset
    words = r"cannot be written \(No space left on device\): it is not kept"
    with pytest.warns(UserWarning, match=words):
        found = training.load_or_train(
            str(tmp_path), dataset, settings, lambda: trained
        )
    assert found is trained
    images = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
    flat = lambda x: np.asarray(x).reshape(len(x), -1)  # noqa: E731
    with pytest.warns(UserWarning, match=words):
        moments = frechet._kept_moments(flat, images, 2, tmp_path / "fid")
    np.testing.assert_allclose(moments.mean, flat(images).mean(axis=0) / 255)
    assert [path.name for path in tmp_path.rglob("*")] == ["fid"]
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written"):
        keep(tmp_path / "file" / "a.msgpack", b"content")


@pytest.mark.slow
def test_a_run_is_not_lost_where_judges_cannot_be_kept(
    smoke_config, dataset, tmp_path, run_here
):
    """They are trained, used, and not kept."""
    changes = {"eval.metrics": ("frechet",), "train.num_steps": 2}
    changes |= {"train.eval_every_steps": 0, "classifier.num_steps": 3}
    config = smoke_config(changes=changes)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "polymnist").symlink_to(f"{config.data.data_dir}/polymnist")
    (folder / "classifiers").write_text("in the way")
    config.data.data_dir = str(folder)
    code, stdout = run_here(config, tmp_path / "run")
    assert code == 0
    assert f"{folder / 'classifiers'} cannot be written" in stdout
    assert (folder / "classifiers").read_text() == "in the way"


def test_a_run_without_what_a_metric_needs_does_not_start(
    smoke_config, monkeypatch, tmp_path
):
    def fit(*arguments, **options):
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr(loop, "fit", fit)
    config = smoke_config(changes={"eval.metrics": ("elbo", "captions")})
    with pytest.raises(UsageError, match="'captions' needs captions"):
        session.train_and_evaluate(config, tmp_path / "run")


def test_the_judges_of_a_run_are_those_that_its_metrics_need(monkeypatch, tmp_path):
    calls = []

    def get(name, config, dataset, folder, events):
        calls.append((name, folder))
        return None if events.is_stopping() else f"{name} of {dataset.name}"

    for name, kind in judges.KINDS.items():
        replaced = kind._replace(get=lambda *given, own=name: get(own, *given))
        monkeypatch.setitem(judges.KINDS, name, replaced)
    setting = make_setting((), make_split(), data_dir=tmp_path)
    sweep = SimpleNamespace(
        config=setting.config, dataset=setting.dataset, complete=setting.complete
    )
    assert evaluator.get_judges(sweep, ("elbo", "swd"), []) == {} and calls == []
    assert evaluator.get_judges(sweep, ("matching", "coherence", "frechet"), []) == {
        "classifiers": "classifiers of toy",
        "matchers": "matchers of toy",
    }
    assert evaluator.get_judges(sweep, ("attributes",), []) == {
        "readers": "readers of toy"
    }
    # Classifiers of attributes are kept beside those of labels.
    assert calls[-1] == ("readers", tmp_path / "classifiers")
    with pytest.raises(command.Stopped):
        evaluator.get_judges(sweep, ("coherence",), [15])


@pytest.mark.parametrize("name", METRICS)
def test_every_row_of_the_table(name):
    metric = METRICS[name]
    assert set(metric.needs) <= {*needs.NEEDS, *needs.SUPPLIED}
    assert metric.columns
    fields = base.get_config().eval
    assert all(field in fields for field in metric.options.values())
    # What draws unconditional examples says which of its values are of them.
    source = inspect.getsource(inspect.getmodule(metric.compute))
    assert bool(metric.unconditional) == (".prior(" in source)


def test_columns_are_of_different_tags_and_have_a_direction():
    assert len(COLUMNS) == sum(len(columns_of(name)) for name in METRICS)
    for tag, column in COLUMNS.items():
        assert tag == f"eval/{column.tag}" and column.heading
        assert column.better in (HIGHER, LOWER, "")
    assert titled(COLUMNS["eval/swd"]) == "SWD ↓"
    assert titled(COLUMNS["eval/gmm/swd"]) == "SWD, GMM ↓"
    assert titled(COLUMNS["eval/elbo"]) == "ELBO ↑"
    assert titled(COLUMNS["eval/kl"]) == "KL"
