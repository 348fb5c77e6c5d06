"""Trackers: all get the same values, pictures, texts and config, by recorded calls.

The packages wandb and mlflow are replaced by modules that record: what they are called
with is tested, and not what they do with it.
"""

import posixpath
import re
import sys
import time
import warnings
from collections import namedtuple
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from configs import smoke
from experiments.running import workdirs
from experiments.running.command import Stopped
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import checks
from mmvae_jax.training import log, sinks
from mmvae_jax.training.sweep import Member

MEMBERS = [Member(0.5, 1e-3, 0), Member(2.0, 1e-3, 1)]
NAMES = ["beta=0.5,seed=0", "beta=2,seed=1"]
PICTURE = np.zeros((2, 3, 3), np.uint8)


@pytest.fixture
def wandb(monkeypatch):
    """A module that records: its runs, each with its settings and calls."""
    module = ModuleType("wandb")
    module.runs = []

    def init(**settings):
        calls = []
        run = SimpleNamespace(
            settings=settings,
            calls=calls,
            log=lambda values, step: calls.append(("log", step, values)),
            config=SimpleNamespace(
                update=lambda found, **_: calls.append(("config", found))
            ),
            finish=lambda: calls.append(("finish",)),
        )
        module.runs.append(run)
        return run

    module.init = init
    module.Settings = lambda **settings: settings
    module.Image = lambda image: ("image", image.shape)
    module.Html = lambda text: ("html", text)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch):
    """A module that records: the calls of each run, which it finds again."""
    module = ModuleType("mlflow")
    module.runs, module.addresses = {}, []

    class Client:
        def __init__(self, tracking_uri):
            module.addresses.append(tracking_uri)

        def get_experiment_by_name(self, name):
            return SimpleNamespace(experiment_id=name) if module.runs else None

        def create_experiment(self, name):
            return name

        def search_runs(self, experiments, filter_string):
            assert experiments == [sinks.PROJECT]
            return [
                SimpleNamespace(info=SimpleNamespace(run_id=run_id))
                for run_id in module.runs
                if filter_string == f"tags.member = '{run_id}'"
            ]

        def create_run(self, experiment, tags, run_name):
            module.runs[tags["member"]] = [("name", run_name)]
            return SimpleNamespace(info=SimpleNamespace(run_id=tags["member"]))

        def __getattr__(self, name):
            def record(run_id, *values, **named):
                module.runs[run_id].append((name, *values, *named.values()))

            return record

    module.MlflowClient = Client
    module.entities = ModuleType("mlflow.entities")
    module.entities.Metric = namedtuple("Metric", ("key", "value", "timestamp", "step"))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", module.entities)
    return module


def write(workdir, step=0, **trackers):
    writer = log.RunWriter(workdir, MEMBERS, step, trackers=trackers)
    writer.write_hparams({"model": {"name": "mvae"}})
    writer.write_scalars(4, [{"eval/a b": 1.5}, {"eval/a b": 2.5}])
    writer.write_images(4, 1, {"prior": PICTURE})
    writer.write_texts(4, 1, {"captions": "a <bird>"})
    writer.close()


def test_wandb_gets_all_that_is_written(wandb, tmp_path):
    write(tmp_path, wandb="offline")
    config = ("config", {"model": {"name": "mvae"}})
    first, second = (run.calls for run in wandb.runs)
    assert first == [config, ("log", 4, {"eval/a_20b": 1.5}), ("finish",)]
    assert second == [
        config,
        ("log", 4, {"eval/a_20b": 2.5}),
        ("log", 4, {"prior": ("image", (2, 3, 3))}),
        ("log", 4, {"captions": ("html", "<pre>a &lt;bird&gt;</pre>")}),
        ("finish",),
    ]
    for run, member, name in zip(wandb.runs, MEMBERS, NAMES, strict=True):
        assert run.settings["name"] == f"{tmp_path.name} {name}"
        assert run.settings["config"] == member._asdict()
        assert run.settings["mode"] == "offline"
        assert run.settings["dir"] == str(tmp_path)


def test_mlflow_gets_all_that_is_written(mlflow, tmp_path):
    write(tmp_path, mlflow="sqlite:///any")
    assert set(mlflow.addresses) == {"sqlite:///any"}
    _, calls = mlflow.runs.values()
    (metric,) = calls[5][1]
    assert abs(metric.timestamp / 1_000 - time.time()) < 60
    assert calls == [
        ("name", f"{tmp_path.name} {NAMES[1]}"),
        ("log_param", "beta", 2.0),
        ("log_param", "learning_rate", 1e-3),
        ("log_param", "seed", 1),
        ("log_dict", {"model": {"name": "mvae"}}, "config.json"),
        ("log_batch", [("eval/a_20b", 2.5, metric.timestamp, 4)]),
        ("log_image", PICTURE, "samples/prior.png"),
        ("log_text", "a <bird>", "samples/captions.txt"),
        ("set_terminated",),
    ]


ODD = (
    *("/abs", "abs", "a//b", "a/b", "a/", "a", "//", "/", ".", "..", "../a", "a/./b"),
    *("a/../b", "a/..", "a/...", ".a", "", "a b", "a:b", "a\n", "日" * 99, "x" * 300),
    f"{'x' * 88}+{'y' * 88}/{'z' * 88}",
)


def test_tags_are_keys_of_mlflow_and_names_of_files():
    """Its rules: normal relative paths of at most 250 characters of a few kinds."""
    names = {
        f"{before}{name}{after}"
        for name in ODD
        for before in ("", "eval/")
        for after in ("", "/swd")
    } - {""}
    tags = [sinks.tag_of(name) for name in names]
    assert len(set(tags)) == len(names)
    for tag in tags:
        assert re.fullmatch(r"[/\w.\- ]+", tag) and len(tag) <= 250
        assert posixpath.normpath(tag) == tag and tag != "."
        assert not tag.startswith(("/", ".."))
        assert max(len(f"{part}.png".encode()) for part in tag.split("/")) <= 255


def test_usual_tags_are_as_they_were():
    for name in ("eval/coherence/subset/a+b/c", "train/loss", "eval/a.b/-c", "x" * 241):
        assert sinks.tag_of(name) == name.replace("+", "_2B")
    first, second = (sinks.tag_of("x" * 300 + end) for end in "ab")
    assert first != second and first[:241] == second[:241]


def test_mlflow_gets_the_values_of_a_step_in_one_request_within_its_limit(
    mlflow, tmp_path
):
    writer = log.RunWriter(tmp_path, MEMBERS, 0, trackers={"mlflow": "file"})
    writer.write_scalars(1, [{f"a{i}": float(i) for i in range(2_001)}, {"a": 1.0}])
    writer.close()
    first, second = (
        [call[1] for call in calls if call[0] == "log_batch"]
        for calls in mlflow.runs.values()
    )
    assert [len(batch) for batch in first] == [1_000, 1_000, 1]
    assert [(x.key, x.value) for batch in first for x in batch] == [
        (f"a{i}", float(i)) for i in range(2_001)
    ]
    assert [len(batch) for batch in second] == [1]


class Lost(Exception):
    pass


def fail(*arguments, **options):
    raise Lost("no answer\nmore about it")


def break_wandb(wandb, mlflow, name):
    init = wandb.init

    def init_first_broken(**settings):
        run = init(**settings)
        if len(wandb.runs) == 1:
            setattr(run, name, fail)
        return run

    wandb.init = init_first_broken


def break_mlflow(wandb, mlflow, name):
    setattr(mlflow.MlflowClient, name, fail)


@pytest.mark.parametrize(
    ("break_one", "name", "failed", "other"),
    [
        (break_wandb, "log", "wandb", "mlflow"),
        (break_wandb, "finish", "wandb", "mlflow"),
        (break_mlflow, "log_dict", "mlflow", "wandb"),
        (break_mlflow, "log_batch", "mlflow", "wandb"),
        (break_mlflow, "log_image", "mlflow", "wandb"),
        (break_mlflow, "log_text", "mlflow", "wandb"),
        (break_mlflow, "set_terminated", "mlflow", "wandb"),
    ],
)
def test_a_tracker_that_fails_is_dropped_and_said_once(
    break_one, name, failed, other, wandb, mlflow, tmp_path
):
    break_one(wandb, mlflow, name)
    trackers = {"wandb": "offline", "mlflow": "file"}
    writer = log.RunWriter(tmp_path, MEMBERS, 0, trackers=trackers)
    with pytest.warns(UserWarning) as caught:
        writer.write_hparams({"model": {"name": "mvae"}})
        for step in (4, 8):
            writer.write_scalars(step, [{"eval/elbo": 1.5}, {"eval/elbo": 2.5}])
            writer.write_images(step, 0, {"prior": PICTURE})
            writer.write_texts(step, 1, {"captions": "a"})
        writer.close()
    assert [str(one.message) for one in caught] == [
        f"{failed} gets no more of this run, because it failed: no answer; "
        "metrics.jsonl and TensorBoard go on"
    ]
    lines = log.read_metrics(tmp_path / "metrics.jsonl")
    assert [line["eval/elbo"] for line in lines] == [1.5, 2.5] * 2
    of_wandb = [[call[0] for call in run.calls] for run in wandb.runs]
    of_mlflow = [[call[0] for call in calls] for calls in mlflow.runs.values()]
    whole = {"wandb": of_wandb, "mlflow": of_mlflow}[other]
    end = {"wandb": "finish", "mlflow": "set_terminated"}[other]
    assert [calls[-1] for calls in whole] == [end, end]
    if name == "log":  # of the first member: the second gets no more either
        assert of_wandb == [["config"], ["config"]]


def test_an_error_of_the_disk_is_no_failure_of_a_tracker(tmp_path, monkeypatch):
    writer = log.RunWriter(tmp_path, MEMBERS, 0)
    monkeypatch.setattr(sinks.tensorboardX.SummaryWriter, "add_scalar", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Lost):
            writer.write_scalars(4, [{"eval/elbo": 1.5}, {"eval/elbo": 2.5}])
    writer.close()


def test_a_signal_is_no_failure_of_a_tracker(wandb, tmp_path):
    writer = log.RunWriter(tmp_path, MEMBERS, 0, trackers={"wandb": "offline"})

    def stop(values, step):
        raise Stopped(15)

    wandb.runs[0].log = stop
    with pytest.raises(Stopped):
        writer.write_scalars(4, [{"eval/elbo": 1.5}, {"eval/elbo": 2.5}])
    writer.close()


def test_a_run_that_goes_on_has_the_same_runs_there(wandb, mlflow, tmp_path):
    for step in (0, 4):
        write(tmp_path, step, wandb="online", mlflow="file")
    identities = [run.settings["id"] for run in wandb.runs]
    assert identities[:2] == identities[2:] and len(set(identities)) == 2
    assert {run.settings["resume"] for run in wandb.runs} == {"allow"}
    assert list(mlflow.runs) == identities[:2]
    names = [call[0] for call in mlflow.runs[identities[0]]]
    assert names.count("name") == 1 and names.count("update_run") == 1


def test_tensorboard_and_the_log_are_written_as_ever(wandb, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a")
    assert not wandb.runs
    write(tmp_path / "b", wandb="offline")
    one, other = ((tmp_path / x / "metrics.jsonl").read_text() for x in "ab")
    assert one == other
    for name in NAMES:
        assert len(list((tmp_path / "b" / "tensorboard" / name).iterdir())) == 1


def test_a_tracker_that_cannot_be_opened_is_one_line(wandb, mlflow, tmp_path):
    def refuse(self, name):
        raise RuntimeError("no such server\nand more")

    mlflow.MlflowClient.get_experiment_by_name = refuse
    with pytest.raises(UsageError) as caught:
        log.RunWriter(
            tmp_path, MEMBERS, 0, trackers={"wandb": "offline", "mlflow": "http"}
        )
    assert str(caught.value) == "config.log.mlflow cannot be opened: no such server"
    assert wandb.runs[0].calls == [("finish",)]  # opened before it


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("wandb", "offline", "config.log.wandb=offline needs the package wandb"),
        ("wandb", "yes", "unknown config.log.wandb 'yes'; choose offline, online"),
        ("mlflow", "sqlite:///f", "config.log.mlflow=sqlite:///f needs the package"),
    ],
)
def test_what_is_not_there_is_said_before_training(field, value, words, monkeypatch):
    find = sinks.importlib.util.find_spec
    without = lambda name: None if name in ("wandb", "mlflow") else find(name)  # noqa: E731
    monkeypatch.setattr(sinks.importlib.util, "find_spec", without)
    config = smoke.get_config("mvae")
    checks.check(config)
    config.log[field] = value
    with pytest.raises(UsageError) as caught:
        checks.check(config)
    assert str(caught.value).startswith(words)
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_may_go_on_with_other_trackers(tmp_path):
    config = smoke.get_config("mvae")
    found = workdirs.resolved(config)
    config.log.wandb = "offline"
    workdirs.compare_training(tmp_path, config, found)
    assert workdirs.trained_as(found) == workdirs.trained_as(workdirs.resolved(config))
    del found["log"]  # of a run of before
    workdirs.compare_training(tmp_path, config, found)
