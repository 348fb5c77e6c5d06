"""A plan as tasks of Ray: what a local cluster of two workers leaves behind."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboardX.proto import event_pb2

from experiments.plans import plan
from experiments.running import cluster
from mmvae_jax.errors import UsageError

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600
# Long enough to be killed between two checkpoints.
SCALE = """
from configs.scales import demo


def get_config():
    scale = demo.get_config()
    scale.description = "a test"
    scale.beta = (0.1, 1.0)
    scale.seed = (0, 1)
    scale.num_modalities = (1, 2)
    scale.metrics = ("elbo", "coherence", "matching")
    scale.metrics_by_modalities = ("elbo",)
    scale.changes = dict(
        model=dict(latent_dim=4),
        modality=dict(network_options=dict(widths=(16,))),
        data=dict(num_modalities=2, image_size=8, pairings=1),
        train=dict(
            num_steps=2_000,
            batch_size=16,
            log_every_steps=100,
            checkpoint_every_steps=200,
            checkpoints_kept=20,
            steps_per_call=20,
        ),
        classifier=dict(num_steps=60, batch_size=64),
        matcher=dict(num_steps=60, batch_size=64),
        eval=dict(num_examples=100, batch_size=100),
    )
    return scale
"""
RUNS = ("polymnist/mvae", "polymnist/mvae_plus")


def test_without_ray_it_says_which_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="the extra `cluster`"):
        cluster.train(tmp_path, {"a": None})


def test_runs_of_one_data_set_are_prepared_together():
    _, scale = plan.load_scale("demo")
    specs = plan.by_modalities(scale, is_repeated=False)
    configs = {s.folder: plan.run_config(scale, s, {}) for s in specs}
    found = cluster.groups(configs)
    assert [{name.partition("/")[0] for name in group} for group in found] == [
        {dataset} for dataset in scale.columns
    ]
    assert {name for group in found for name in group} == set(configs)


def test_nobody_imports_ray_without_being_asked():
    assert cluster is cluster
    assert not hasattr(cluster, "ray")


@pytest.fixture(scope="module")
def command(data_dir, cache, tmp_path_factory):
    """(folder of the plan, flags) -> the user's command, started."""
    scale = tmp_path_factory.mktemp("scale") / "tiny.py"
    scale.write_text(SCALE)
    started = []

    def start(directory, *flags):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.figures", "--figure=13"),
                *(f"--scale={scale}", f"--directory={directory}"),
                *(f"--data_dir={data_dir}", *flags),
            ],
            cwd=ROOT,
            env={**os.environ, **cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="module")
def here(command, tmp_path_factory):
    """The plan's folder, its runs made one after the other by one process."""
    directory = tmp_path_factory.mktemp("here") / "plan"
    process = command(directory)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    return directory


def results_of(directory, contents):
    """Of both runs: every file but checkpoints and times, and the summary."""
    found = {}
    for name in RUNS:
        files = contents(directory / name)
        summary = json.loads(files.pop("summary.json"))
        del summary["wall_seconds"], summary["step_seconds"]
        del summary["training_seconds"], summary["timed_steps"]
        kept = {
            path: body
            for path, body in files.items()
            if path in ("metrics.jsonl", "config.json") or path.endswith(".png")
        }
        assert "metrics.jsonl" in kept
        found[name] = (summary, kept)
    return found


def checkpoints_of(directory, name=RUNS[0]):
    """step -> the moment at which it was saved, of a run."""
    folder = directory / name / "checkpoints"
    return {
        int(path.name): path.stat().st_mtime_ns
        for path in folder.glob("[0-9]*")
        if path.name.isdigit()  # it is whole
    }


def wait_for_checkpoint(directory, name, process):
    """Returns once a run that goes on has saved something."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        assert not (directory / name / "summary.json").exists()
        if checkpoints_of(directory, name):
            return
        time.sleep(0.02)
    raise AssertionError(f"{name} has saved nothing")


def pids_of(name):
    """The processes that execute a task of that name: Ray makes it their title."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes().replace(b"\0", b" ").strip()
        except OSError:
            continue
        if title == f"ray::{name}".encode():
            found.append(int(path.parent.name))
    return found


def starts_of(directory):
    """The first step of each start of the first run, as TensorBoard is told it."""
    folder = min((directory / RUNS[0] / "tensorboard").iterdir())
    found = []
    for path in sorted(folder.iterdir()):
        content, steps = path.read_bytes(), [0]
        while content:  # a record: its length, 4 bytes, itself, 4 bytes
            (size,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            if event.session_log.status == event_pb2.SessionLog.START:
                steps.append(event.step)
            content = content[16 + size :]
        found.append(max(steps))
    return found


@pytest.fixture
def needs_ray():
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")


@pytest.mark.slow
def test_a_killed_worker_leaves_the_bits_of_the_plan_run_here(
    needs_ray, command, here, tmp_path, contents
):
    directory = tmp_path / "plan"
    process = command(directory, "--cluster=ray")
    wait_for_checkpoint(directory, RUNS[0], process)
    killed = pids_of(RUNS[0])
    assert len(killed) == 1
    os.kill(killed[0], signal.SIGKILL)
    assert not (directory / RUNS[0] / "summary.json").exists()
    saved = checkpoints_of(directory)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert "dashboard: http://" in output
    assert results_of(directory, contents) == results_of(here, contents)
    # Taken up at a checkpoint, and not begun again.
    assert saved and saved.items() <= checkpoints_of(directory).items()
    first, second = starts_of(directory)
    assert first == 0 and second > max(saved)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_plan_continues_here(
    needs_ray, command, here, tmp_path, contents
):
    directory = tmp_path / "plan"
    process = command(directory, "--cluster=ray")
    wait_for_checkpoint(directory, RUNS[0], process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + signal.SIGINT, output
    assert not (directory / RUNS[0] / "summary.json").exists()
    assert pids_of(RUNS[0]) == []
    # Saved where it was: nothing that was logged is trained again.
    steps = checkpoints_of(directory)
    logged = (directory / RUNS[0] / "metrics.jsonl").read_text().splitlines()
    assert max(steps) >= max(json.loads(line)["step"] for line in logged)

    process = command(directory)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert f"resuming {directory / RUNS[0]} at step {max(steps)}" in output
    assert results_of(directory, contents) == results_of(here, contents)


@pytest.fixture
def gpus(needs_ray, cache, tmp_path, monkeypatch):
    """The address of a cluster of two machines that say they have a GPU each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    environment = {**os.environ, **cache, "RAY_USAGE_STATS_ENABLED": "0"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block"]
    ray += ["--num-cpus=1", "--num-gpus=1", "--object-store-memory=100000000"]
    port = address.rpartition(":")[2]
    head = ["--head", f"--port={port}", "--include-dashboard=false"]
    machines = []
    with open(tmp_path / "ray.txt", "w") as log:
        for more in (head, [f"--address={address}"]):
            machine = subprocess.Popen(
                [*ray, *more], env=environment, stdout=log, stderr=log
            )
            machines.append(machine)
            time.sleep(10)
            assert machine.poll() is None, (tmp_path / "ray.txt").read_text()
    yield address
    for machine in reversed(machines):
        machine.terminate()
        machine.wait(60)


@pytest.mark.slow
def test_runs_ask_a_cluster_that_is_there_for_a_gpu(
    gpus, command, here, tmp_path, contents
):
    """No device is behind it: what is seen is who asks for what, and who waits."""
    directory = tmp_path / "plan"
    process = command(directory, "--cluster=ray", f"--address={gpus}")
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert "Ray: nodes 2, CPUs 2, GPUs 2; dashboard: none" in output
    assert "2 runs as tasks, 1 GPU each" in output
    assert results_of(directory, contents) == results_of(here, contents)


@pytest.mark.slow
def test_a_run_that_fails_is_one_line_and_the_others_go_on(
    needs_ray, command, here, tmp_path
):
    directory = tmp_path / "plan"
    (directory / RUNS[0]).mkdir(parents=True)
    (directory / RUNS[0] / "thesis.tex").write_text("")
    shutil.copy(here / plan.PLAN, directory)
    process = command(directory, "--cluster=ray")
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, output
    lines = [line for line in output.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"failed: {RUNS[0]}: ")
    assert "holds files, but no run" in lines[0]
    assert "1 of 2 runs failed" in output
    assert (directory / RUNS[1] / "summary.json").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", r"Ray cannot be started on this machine \(no port is free\); without"),
        (
            "10.0.0.1:6379",
            r"no Ray cluster at --address=10.0.0.1:6379 .* \(no port is free; if it",
        ),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_one_line(
    monkeypatch, tmp_path, address, message
):
    def init(**options):
        raise RuntimeError("no port is free\nand more")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(UsageError, match=message) as error:
        cluster.train(tmp_path, {"a": None}, address)
    assert "more" not in str(error.value)
