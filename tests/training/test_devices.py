"""Members and batches over several devices: the same numbers, nothing sent in vain."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import several_devices

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.training import devices

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).resolve().parents[2]
NUM_DEVICES, K = 8, 8


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # (wanted, members, batch size, devices)
        (((0, 0), 18, 256, 1), (1, 1)),
        (((0, 0), 18, 256, 2), (2, 1)),
        (((0, 0), 18, 256, 4), (2, 2)),
        (((0, 0), 18, 256, 6), (6, 1)),
        (((0, 0), 18, 256, 8), (2, 4)),
        (((0, 0), 8, 256, 8), (8, 1)),
        (((0, 0), 1, 256, 8), (1, 8)),
        (((0, 0), 3, 256, 8), (1, 8)),
        # What fits no more is left out ...
        (((0, 0), 5, 100, 8), (5, 1)),
        (((0, 0), 1, 7, 4), (1, 1)),
        # ... and what is wanted is what is used.
        (((1, 1), 18, 256, 8), (1, 1)),
        (((3, 2), 18, 256, 8), (3, 2)),
        (((0, 2), 18, 256, 8), (3, 2)),
        (((3, 0), 18, 256, 8), (3, 2)),
    ],
)
def test_the_automatic_layout_uses_most_devices(arguments, expected):
    assert devices.choose_layout(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ((4, 1), 3, 256, 8),
            "mesh=(4, 1): 3 members cannot be divided evenly over 4 devices",
        ),
        (
            ((1, 3), 3, 256, 8),
            "mesh=(1, 3): batch_size=256 cannot be divided evenly over 3 devices",
        ),
        (
            ((4, 4), 4, 256, 8),
            "mesh=(4, 4) asks for 16 devices, there are 8",
        ),
        (
            ((0, 16), 4, 256, 8),
            "mesh=(0, 16) asks for 16 devices, there are 8",
        ),
        (
            ((1, 2, 3), 4, 256, 8),
            "mesh must be two numbers >= 0, devices for the members and "
            "devices for a batch (0: automatic), got (1, 2, 3)",
        ),
        (
            ((-1, 1), 4, 256, 8),
            "mesh must be two numbers >= 0, devices for the members and "
            "devices for a batch (0: automatic), got (-1, 1)",
        ),
        (
            ((0, 0), 5, 100, 8, 2),
            "mesh=(0, 0): 5 members and batches of 100 fit 5 x 1 devices, "
            "but 2 processes must use all of their 8: change the sweep, the batch size "
            "or the number of devices",
        ),
    ],
)
def test_layouts_that_do_not_divide(arguments, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        devices.choose_layout(*arguments)


def test_layouts_in_words():
    assert devices.describe((4, 1), 4) == "4 devices: 4 x 1"
    assert devices.describe((3, 2), 8) == "6 of 8 devices: 3 x 2"


def train_on_several(cases, is_optimised=False):
    """What tests/several_devices.py says of (task, mapping, layout)."""
    done = subprocess.run(
        [sys.executable, "tests/several_devices.py", json.dumps(cases)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            # Compiling is what takes the time.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not is_optimised)),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={NUM_DEVICES}",
        },
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# Parameters are of order 1; relative for what is logged. Sums over a batch are taken
# in another order, and Adam divides by small numbers: more steps, more of it.
LIMIT = 2e-5


# A loss that compares the examples of a batch must send them.
SENT = ("contrastive",)
# Models that use a parameter twice, as a decoder of two samples or a learned prior: XLA
# for CPUs may sum the parts of its gradient over devices before it adds them.
USED_TWICE = ("mvae_plus", "crmvae", "jmvae", "mmvae_official", "unimodal_official")


def check(result, name, mapping, layout):
    """The numbers of one device, and no communication but sums of gradients."""
    if layout[1] == 1:
        assert result["collectives"] == []
        if mapping == "map":
            assert result["same_bits"]
    assert result["difference"] < LIMIT * max(1, result["largest"])
    assert result["logged"] < LIMIT
    if layout[1] > 1 and name not in SENT:
        assert result["collectives"]
        num_members = 1 if mapping == "map" else K // layout[0]
        elements = 0
        for kind, arrays in result["collectives"]:
            assert kind == "all-reduce"
            for dtype, shape in arrays:
                assert dtype == "f32"
                # Nothing has an axis of examples.
                assert all(size % 11 for size in shape)
                elements += int(np.prod(shape))
        num_params, num_metrics = result["num_params"], result["num_metrics"]
        least, most = num_params + num_metrics, 2 * num_params + num_metrics
        if name not in USED_TWICE:
            assert elements == num_members * least
        assert num_members * least <= elements <= num_members * most


FAST = [("regression", "map", layout) for layout in ((8, 1), (1, 4), (2, 2))]


@pytest.fixture(scope="module")
def fast():
    return dict(zip(FAST, train_on_several(FAST), strict=True))


@pytest.mark.parametrize("case", FAST)
def test_layouts_agree_with_one_device(case, fast):
    check(fast[case], *case)


def test_what_is_sent_is_the_gradient_and_what_is_logged(fast):
    (found,) = fast["regression", "map", (1, 4)]["collectives"]
    assert sorted(shape for _, shape in found[1]) == [[], [], [3]]


LAYOUTS = [(2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8), (4, 2), (2, 4)]
SLOW = [
    *[("regression", "map", layout) for layout in LAYOUTS],
    *[("regression", "vmap", layout) for layout in ((8, 1), (1, 8), (2, 4))],
    ("regression", "unroll", (4, 2)),
    *[("mopoe", mapping, (2, 4)) for mapping in ("map", "vmap", "unroll")],
    *[("mopoe", "map", layout) for layout in ((8, 1), (1, 2), (1, 8))],
    *[("mopoe", "vmap", layout) for layout in ((4, 2), (1, 8))],
    *[
        (name, "map", (2, 4))
        for name in models.MODELS
        if name not in ("mopoe", "custom")
    ],
]


@pytest.fixture(scope="module")
def slow():
    return dict(zip(SLOW, train_on_several(SLOW), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_every_layout_mapping_and_model(case, slow):
    check(slow[case], *case)


# As users' programs are compiled, and of convolutions and missing modalities too.
OPTIMISED = [
    *[("mopoe", mapping, (2, 4)) for mapping in ("map", "vmap")],
    ("mvae conv", "map", (2, 4)),
    ("mopoe missing", "map", (2, 4)),
]


@pytest.fixture(scope="module")
def optimised():
    return dict(zip(OPTIMISED, train_on_several(OPTIMISED, True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIMISED)
def test_optimised_programs(case, optimised):
    check(optimised[case], *case)


POISONED = [
    *[("regression poisoned", "map", layout) for layout in ((8, 1), (1, 8))],
    *[("regression poisoned", name, (2, 2)) for name in ("vmap", "vmap 2", "unroll")],
    ("regression poisoned", "vmap 4", (1, 1)),
    *[("mopoe poisoned", name, (2, 4)) for name in ("map", "vmap 2")],
]


@pytest.mark.slow
def test_a_member_that_diverges_changes_no_bit_of_the_others_on_any_layout():
    for case, result in zip(POISONED, train_on_several(POISONED, True), strict=True):
        expected = [k != several_devices.POISONED for k in range(K)]
        assert result["finite"] == expected, case
        assert result["same_bits"] == expected, case


# In the process of a run, before it asks for a device.
DEVICES = "import jax\njax.config.update('jax_num_cpu_devices', {})\n"
TERMINATED = """
import os, signal
from mmvae_jax.interface import progress
update = progress.ProgressBar.update
def update_and_stop(self, step, seconds, is_first):
    update(self, step, seconds, is_first)
    if step >= 8 and not getattr(self, "is_stopped", False):
        self.is_stopped = True
        os.kill(os.getpid(), signal.SIGTERM)
progress.ProgressBar.update = update_and_stop
"""


@pytest.fixture(scope="module")
def runs(commands, tmp_path_factory):
    """Whole runs: on one device, on several, or begun on one and ended on others."""
    root = tmp_path_factory.mktemp("meshes")

    def flags(name, *more):
        return [
            f"--workdir={root / name}",
            "--config.train.steps_per_call=2",
            "--config.eval.metrics=('elbo', 'coherence')",
            *more,
        ]

    jobs = {
        "one": (flags("one"), ""),
        "three": (flags("three"), DEVICES.format(3)),
        "begun": (flags("moved"), DEVICES.format(3) + TERMINATED),
        "ended": (flags("moved"), ""),
        "begun with batches": (
            flags("halved", "--config.train.mesh=(1, 1)"),
            DEVICES.format(4) + TERMINATED,
        ),
        "ended with batches": (
            flags("halved", "--config.train.mesh=(1, 2)"),
            DEVICES.format(4),
        ),
        "odd": (flags("odd", "--config.train.mesh=(2, 1)"), DEVICES.format(2)),
    }
    return root, dict(zip(jobs, commands(list(jobs.values())), strict=True))


@pytest.mark.slow
def test_a_run_says_on_what_it_is(runs):
    _, outcomes = runs
    for name, words in {
        "three": "3 members on 3 devices: 3 x 1 (cpu)",
        "begun with batches": "3 members on 1 of 4 devices: 1 x 1 (cpu)",
        "ended with batches": "3 members on 2 of 4 devices: 1 x 2 (cpu)",
        "one": "3 members on cpu, mapped by map",
    }.items():
        assert words in outcomes[name].stdout, outcomes[name].stderr


@pytest.mark.slow
def test_a_layout_that_does_not_divide_is_one_line(runs):
    root, outcomes = runs
    assert outcomes["odd"].code == 2
    assert outcomes["odd"].stderr.splitlines()[-1] == (
        "error: config.train.mesh=(2, 1): 3 members cannot be divided evenly over 2 "
        "devices"
    )
    assert [path.name for path in (root / "odd").iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["three", "moved"])
def test_members_on_devices_of_their_own_leave_the_bits_of_one_device(name, runs):
    root, outcomes = runs
    assert outcomes["begun"].code == 128 + 15
    assert outcomes["three"].code == outcomes["ended"].code == 0
    expected = (root / "one" / "metrics.jsonl").read_text()
    assert (root / name / "metrics.jsonl").read_text() == expected
    for path in (root / "one" / "samples").iterdir():
        assert (root / name / "samples" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_checkpoint_of_one_layout_is_continued_on_another(runs, last_state):
    root, outcomes = runs
    assert outcomes["begun with batches"].code == 128 + 15
    ended = outcomes["ended with batches"]
    assert ended.code == 0 and "resuming" in ended.stdout, ended.stderr
    (step, state), (expected_step, expected) = (
        last_state(root / name) for name in ("halved", "one")
    )
    assert step == expected_step == 24
    for name in ("params", "optimizer"):
        leaves = [jax.tree.leaves(x["state"][name]) for x in (state, expected)]
        for ours, theirs in zip(*leaves, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
