"""The working directory: one config, one process, nothing overwritten."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import smoke
from experiments.running import workdirs
from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.errors import UsageError
from mmvae_jax.types import Stage

_SPLIT = Split({"m0": np.zeros((1, 8, 8, 3), np.uint8)})
DATASET = Dataset(_SPLIT, _SPLIT, "0", "none")


def claim(workdir, config):
    with workdirs.locked(workdir, config):
        workdirs.record(workdir, config, DATASET)


def test_a_new_folder(tmp_path):
    workdir = tmp_path / "a" / "b"
    claim(workdir, smoke.get_config())
    names = {".lock", "config.json", "description.json"}
    assert {path.name for path in workdir.iterdir()} == names


def test_the_same_config_again(tmp_path):
    claim(tmp_path / "run", smoke.get_config())
    before = (tmp_path / "run" / "config.json").read_bytes()
    claim(tmp_path / "run", smoke.get_config())
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_folder_that_failed_before_its_config_was_written(tmp_path):
    with pytest.raises(UsageError, match="later"):
        with workdirs.locked(tmp_path / "run", smoke.get_config()):
            raise UsageError("later")
    claim(tmp_path / "run", smoke.get_config())


def test_a_process_killed_while_it_wrote_its_config(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.partial").write_text('{"model": ')
    claim(tmp_path / "run", smoke.get_config())
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {".lock", "config.json", "description.json"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sweep.beta", (0.5,), r"config.sweep.beta is \[0.0, 1.0, 9.0\] there and"),
        (
            "train.num_steps",
            23,
            "num_steps is 24 there and 23 here; its run is one of 24",
        ),
        ("data.repeated", True, "config.data.repeated is False there and True here"),
    ],
)
def test_another_config(field, value, message, tmp_path):
    claim(tmp_path / "run", smoke.get_config())
    before = (tmp_path / "run" / "config.json").read_bytes()
    other = smoke.get_config()
    other.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=message):
        claim(tmp_path / "run", other)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_run_in_stages_does_not_go_on_for_more_steps(tmp_path):
    """Its stages are divided by its steps: those taken would be others."""
    config = smoke.get_config()
    half = Stage("half", lambda num: num // 2, None, ())
    whole = Stage("rest", lambda num: num, None, ())
    sweep = SimpleNamespace(config=config, model=SimpleNamespace(stages=(half, whole)))
    workdirs.require_length(tmp_path / "run", sweep)
    claim(tmp_path / "run", config)
    workdirs.require_length(tmp_path / "run", sweep)
    config.train.num_steps += 10
    with pytest.raises(UsageError, match="24 .*cannot be extended to .*steps=34"):
        workdirs.require_length(tmp_path / "run", sweep)
    # ... unless what has been done stays what it is.
    fixed = half._replace(end=lambda num: 12)
    for stages in ((), (fixed, whole)):
        sweep.model.stages = stages
        workdirs.require_length(tmp_path / "run", sweep)


def test_a_field_that_is_not_there(tmp_path):
    claim(tmp_path / "run", smoke.get_config())
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["train"]["clip_norm"]
    path.write_text(json.dumps(config))
    claim(tmp_path / "run", smoke.get_config())  # as before there was the field
    wanted = smoke.get_config()
    wanted.train.clip_norm = 2.0
    with pytest.raises(UsageError, match="clip_norm is 0.0 there and 2.0 here"):
        claim(tmp_path / "run", wanted)
    path.write_text(json.dumps(config | {"train": config["train"] | {"clip": 0.0}}))
    with pytest.raises(UsageError, match="train.clip is 0.0 there and absent here"):
        claim(tmp_path / "run", smoke.get_config())


def test_one_process_at_a_time(tmp_path):
    with workdirs.locked(tmp_path / "run", smoke.get_config()):
        with pytest.raises(UsageError, match="another process is running in"):
            claim(tmp_path / "run", smoke.get_config())
    claim(tmp_path / "run", smoke.get_config())


@pytest.mark.parametrize("content", ["", "{", "\x00", '{"model": NaN'])
def test_corrupt_files(content, tmp_path):
    claim(tmp_path / "run", smoke.get_config())
    for name in ("config.json", "summary.json"):
        (tmp_path / "run" / name).write_text(content)
    with pytest.raises(UsageError, match="config.json is no JSON"):
        claim(tmp_path / "run", smoke.get_config())
    with pytest.raises(UsageError, match="summary.json is no JSON"):
        workdirs.read_summary(tmp_path / "run")


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"members": []}', "null"])
def test_a_summary_of_something_else(content, tmp_path):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UsageError, match="no summary of this project"):
        workdirs.read_summary(tmp_path)


def test_no_summary(tmp_path):
    assert workdirs.read_summary(tmp_path) is None


def test_foreign_files_and_no_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("kept")
    with pytest.raises(UsageError, match="holds files, but no run"):
        claim(tmp_path, smoke.get_config())
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        with pytest.raises(UsageError, match="is not a folder"):
            claim(path, smoke.get_config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_whose_learning_rate_has_an_end_does_not_go_on(tmp_path):
    config = smoke.get_config()
    config.train.learning_rate_schedule = "cosine"
    claim(tmp_path / "run", config)
    config.train.num_steps += 1
    with pytest.raises(UsageError, match="until step 24.*cannot be extended to 25"):
        claim(tmp_path / "run", config)
    config.train.learning_rate_schedule = "constant"
    with pytest.raises(UsageError, match="another config"):
        claim(tmp_path / "run", config)
