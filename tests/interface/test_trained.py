"""Loading what was trained: runs, exports, and what is wrong with them."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest

import mmvae_jax
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import description, exports, sweeps, trained
from mmvae_jax.training import checkpoints, log

pytest_plugins = ("run_fixtures",)

RNG = np.random.default_rng(0)
DATA = {
    "image": RNG.integers(0, 256, (9, 4, 4, 1)).astype(np.uint8),
    "x/y <b>": RNG.normal(size=(9, 3)).astype(np.float32),
}


@pytest.fixture(scope="module")
def fitted():
    return mmvae_jax.fit(
        DATA,
        model="mvae",
        num_steps=2,
        latent_dim=2,
        is_shown=False,
        config={"modality.network_options.widths": (4,)},
    )


@pytest.fixture(scope="module")
def exported(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "model"
    results = {"eval/elbo": -3.25, "eval/nothing": float("nan")}
    return mmvae_jax.export(fitted, folder, results=results, settings="As measured.")


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_an_export_is_the_same_model(fitted, exported):
    loaded = mmvae_jax.load(exported)
    assert_same(loaded.params, fitted.params)
    assert loaded.member == fitted.member and loaded.step == fitted.step
    assert loaded.description == fitted.description
    assert_same(mmvae_jax.embed(loaded, DATA), mmvae_jax.embed(fitted, DATA))
    assert_same(mmvae_jax.score(loaded, DATA), mmvae_jax.score(fitted, DATA))


def test_an_export_holds_no_code_and_its_card_the_numbers(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "config.json",
        "description.json",
        "params.safetensors",
        "export.json",
        "README.md",
    }
    card = (exported / "README.md").read_text()
    assert "| eval/elbo | -3.25 |" in card and "nothing" not in card
    assert "MVAE" in card and "Wu & Goodman" in card and "`x/y <b>`: vectors, 3" in card


def test_nothing_is_overwritten(fitted, exported):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    with pytest.raises(UsageError, match="exists"):
        mmvae_jax.export(fitted, exported)
    assert before == {path.name: path.read_bytes() for path in exported.iterdir()}


@pytest.mark.parametrize("name", ["config.json", "description.json", exports.PARAMS])
def test_a_flipped_or_missing_byte_is_damage(exported, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"damaged export: {name} is not what"):
        mmvae_jax.load(folder)
    (folder / name).write_bytes(content[:-3])
    with pytest.raises(UsageError, match="damaged export"):
        mmvae_jax.load(folder)
    (folder / name).unlink()
    with pytest.raises(UsageError, match="damaged export"):
        mmvae_jax.load(folder)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"format": 2}, "has the format 2"),
        ({"member": {"beta": 1}}, "damaged export"),
        ({"sha256": 3}, "damaged export"),
        ({"step": "many"}, "damaged export"),
        ({"is_finite": "no"}, "damaged export: is_finite of export.json is no bool"),
    ],
)
def test_manifests_of_others(exported, tmp_path, changes, line):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    manifest = json.loads((folder / exports.MANIFEST).read_text()) | changes
    (folder / exports.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=line) as caught:
        mmvae_jax.load(folder)
    assert "\n" not in str(caught.value)


def test_an_export_of_a_member_that_diverged_says_so(fitted, exported, tmp_path):
    words = "beta=1,seed=0 diverged: its parameters are the last finite ones"
    with pytest.warns(UserWarning, match=f"model: training of {words}$"):
        folder = mmvae_jax.export(fitted._replace(is_finite=False), tmp_path / "model")
    with pytest.warns(UserWarning, match=f"model: training of {words}$"):
        loaded = mmvae_jax.load(folder)
    assert not loaded.is_finite
    assert_same(loaded.params, fitted.params)
    assert words in (folder / "README.md").read_text()
    manifest = json.loads((folder / exports.MANIFEST).read_text())
    del manifest["is_finite"]  # as in exports before this field
    (folder / exports.MANIFEST).write_text(json.dumps(manifest))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mmvae_jax.load(folder).is_finite
        assert mmvae_jax.load(exported).is_finite
    assert "diverged" not in (exported / "README.md").read_text()


def test_a_member_of_a_run_that_diverged_says_so(fitted, tmp_path):
    config = fitted.config.copy_and_resolve_references()
    config.sweep.beta = (0.5, 1.0)
    shown = fitted.description
    like = trained.like_state(config, shown, fitted.model)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    state = state._replace(finite=np.array([True, False]))
    log.write_json(tmp_path / trained.CONFIG, config.to_dict())
    log.write_json(tmp_path / trained.DESCRIPTION, description.to_json(shown))
    saved = checkpoints.open_checkpoints(tmp_path / "checkpoints", 1)
    checkpoints.save(saved, 3, state)
    checkpoints.close(saved)
    with pytest.warns(UserWarning, match=f"{tmp_path}: training of beta=1,seed=0 div"):
        assert not mmvae_jax.load(tmp_path, beta=1.0).is_finite
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mmvae_jax.load(tmp_path, beta=0.5).is_finite


def test_parameters_of_another_version_are_named(fitted, exported):
    params = exports.flatten(fitted.params)
    name = next(iter(params))
    for changed in (
        {x: params[x] for x in params if x != name},
        params | {name: params[name][..., :1]},
        params | {"more": np.zeros(2)},
    ):
        with pytest.raises(UsageError, match="another version"):
            exports.unflatten(fitted.params, changed, exported)


def test_a_run_is_loaded_by_member(finished, dataset):
    loaded = mmvae_jax.load(finished.workdir, beta=1.0)
    assert loaded.member.beta == 1 and loaded.step == finished.config.train.num_steps
    assert loaded.history[-1]["step"] == loaded.step
    assert "train/elbo" in loaded.history[-1]
    summary = json.loads((finished.workdir / "summary.json").read_text())
    values = summary["members"][1]["metrics"]
    test = sweeps.evaluated(dataset, finished.config.eval)
    split = description.to_split(loaded.description, test.modalities)
    found = mmvae_jax.score(loaded, split)
    np.testing.assert_allclose(found.elbo.mean(), values["eval/elbo"], rtol=1e-12)
    assert found.log_likelihood.mean() == values["eval/log_likelihood"]


def test_loading_changes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.workdir.rglob("*")}
    mmvae_jax.load(finished.workdir, beta=1.0)
    assert before == {p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*")}


def test_an_earlier_checkpoint(finished):
    steps = finished.config.train
    earlier = steps.num_steps - steps.checkpoint_every_steps
    loaded = mmvae_jax.load(finished.workdir, beta=1.0, step=earlier)
    assert loaded.step == earlier and loaded.history[-1]["step"] <= earlier
    last = mmvae_jax.load(finished.workdir, beta=1.0)
    assert not np.array_equal(*(jax.tree.leaves(x.params)[0] for x in (loaded, last)))


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({}, "has 3 members; choose one of: beta=0, learning_rate=0.002, seed=0; "),
        ({"beta": 2.0}, "has no member with beta=2; choose one of"),
        ({"seed": 0}, "has 3 members with seed=0; choose"),
        ({"beta": 1.0, "step": 7}, "has no checkpoint 7, it keeps 18, 24"),
    ],
)
def test_members_and_steps_that_are_not_there(finished, asked, line):
    with pytest.raises(UsageError) as caught:
        mmvae_jax.load(finished.workdir, **asked)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_folders_without_a_model(finished, tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        mmvae_jax.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no run"):
        mmvae_jax.load(tmp_path)
    shutil.copy(finished.workdir / "config.json", tmp_path)
    with pytest.raises(UsageError, match="experiments.evaluate --workdir=.* writes it"):
        mmvae_jax.load(tmp_path, beta=1.0)
    shutil.copy(finished.workdir / "description.json", tmp_path)
    with pytest.raises(UsageError, match="holds no checkpoint yet"):
        mmvae_jax.load(tmp_path, beta=1.0)
    (tmp_path / "description.json").write_text("[]")
    with pytest.raises(UsageError, match="describes no data"):
        mmvae_jax.load(tmp_path, beta=1.0)
    config = json.loads((tmp_path / "config.json").read_text())
    config["train"]["speed"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="of another version.*config.train.speed"):
        mmvae_jax.load(tmp_path, beta=1.0)


def test_configs_come_back_as_they_were(finished):
    found = json.loads((finished.workdir / "config.json").read_text())
    config = trained.config_of(found, finished.workdir)
    assert config.to_dict() == finished.config.to_dict()


def test_a_hub_that_is_not_there(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="hub:somebody/model cannot be read") as caught:
        mmvae_jax.load("hub:somebody/model")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UsageError, match="no token of the hub"):
        exports.push(tmp_path, "somebody/model")
    with pytest.raises(UsageError, match="USER/NAME"):
        exports.push(tmp_path, "model")
