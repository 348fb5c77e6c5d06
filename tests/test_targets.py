"""Which aims are met, by files of results."""

import json

import pytest

from benchmarks import targets

TARGETS = {target.what: target for target in targets.TARGETS}
STEP = TARGETS["step, MoPoE-VAE, against MultiVae"]
SUBSETS = TARGETS["step, MoPoE-VAE over MVAE"]
SWEEP = TARGETS["GPU: sweep of 8, against 8 PyTorch runs"]


def results_of(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / f"bench_{name}.json").write_text(json.dumps(content))
    return targets.Results(tmp_path)


def step(ratio, subsets):
    row = {"model": "mopoe", "seconds": 0.001, "peer": 0.01, "times as fast": ratio}
    return {"mopoe_over_mvae": subsets, "rows": [row]}


@pytest.mark.parametrize(
    ("target", "ratio", "expected"),
    [
        (STEP, 1.5, ("1.5 x", "yes")),
        (STEP, 1.49, ("1.49 x", "NO")),
        (SUBSETS, 1.05, ("1.05 x", "yes")),
        (SUBSETS, 1.06, ("1.06 x", "NO")),
    ],
)
def test_an_aim_is_met_at_its_bound(target, ratio, expected, tmp_path):
    results = results_of(tmp_path, step=step(ratio, {"median": ratio}))
    assert targets.judge(target, results) == expected


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.what)
def test_what_no_file_holds_is_not_measured(target, tmp_path):
    assert targets.judge(target, results_of(tmp_path)) == ("-", "not measured")


def test_without_the_peer_there_is_no_ratio(tmp_path):
    alone = step(None, None)
    alone["rows"][0] |= {"peer": "not installed: multivae"}
    del alone["rows"][0]["times as fast"]
    sweep = {
        "command": "python -m benchmarks.sweep --steps 200 --turns 3",
        "rows": [{"mapping": "auto", "seconds": 1.6}],
    }
    results = results_of(tmp_path, step=alone, gpu_step=alone, gpu_sweep=sweep)
    for target in (STEP, SUBSETS, SWEEP):
        assert targets.judge(target, results) == ("-", "not measured")
    results = results_of(tmp_path, gpu_step=step(10, None))
    # Eight runs of 10 ms a step, in 8 ms.
    assert targets.judge(SWEEP, results) == ("10 x", "yes")


def test_time_is_linear_if_it_is_in_everything(tmp_path):
    growth = {"lines": {"members": {"explained": 1.0}, "batch": {"explained": 0.9}}}
    target = TARGETS["lines in M, K and B, of the variance"]
    results = results_of(tmp_path, growth=growth)
    assert targets.judge(target, results) == ("0.9 x", "NO")
