"""Runs of configs/smoke.py: in this process, or as the user's command."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import arrays, smoke
from experiments.running import datasets, session
from mmvae_jax.data import prepared
from mmvae_jax.training import mapping

ROOT = Path(__file__).resolve().parents[1]

# Starts `python -m experiments.run`, or another command, many times for the price of
# one import: a job a line, and its exit code. A job may bring code that is executed
# first, for instance to die at a certain point, and a signal that it is sent when it
# has used so many seconds of processor time: a moment that does not depend on how busy
# the machine is.
DRIVER = """
import json, os, runpy, signal, sys, time, traceback
from experiments.running import command, datasets, session
sys.path.insert(0, str(datasets.DATASETS))
import polymnist.polymnist_dataset_builder

def child(job):
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    module = job.get("module", "experiments.run")
    sys.argv = [module, *job["flags"]]
    signal.alarm(900)  # or a test could wait for ever
    code = 0
    try:
        exec(job["first"], {})
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

def used(process):
    return time.clock_gettime((~process << 3) | 2)  # the process's clock on Linux

def finish(process, number=0, seconds=0.0):
    def described(status, usage, sent):
        total = usage.ru_utime + usage.ru_stime
        since = None if sent is None else total - sent
        return os.waitstatus_to_exitcode(status), total, usage.ru_maxrss, since

    sent = None if number else 0.0
    while sent is None:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if done:
            return described(status, usage, None)
        if used(process) >= seconds:
            os.kill(process, number)
            sent = used(process)
        time.sleep(0.001)
    _, status, usage = os.wait4(process, 0)
    return described(status, usage, sent)

for line in sys.stdin:
    job = json.loads(line)
    process = os.fork()
    if process == 0:
        child(job)
    print(json.dumps(finish(process, *job.get("signal", ()))), flush=True)
"""


STREAMS = ("stdout", "stderr")


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str
    seconds: float  # of the processors, without the imports
    peak: int  # KiB of memory, with the imports


@pytest.fixture(scope="session")
def data_dir(shared_dir, cache):
    """config.data.data_dir of all runs: prepared data, classifiers."""
    return shared_dir / "data"


@pytest.fixture(scope="session")
def smoke_config(data_dir):
    """(model, "section.field" -> value) -> the smoke config, changed."""

    def build(arg="mopoe", changes=None):
        config = smoke.get_config(arg)
        config.data.data_dir = str(data_dir)
        config.update_from_flattened_dict(changes or {})
        return config

    return build


@pytest.fixture(scope="session")
def dataset(smoke_config):
    return prepared.load(datasets.prepare(smoke_config().data))


class Server:
    """A process that has imported everything and forks into runs."""

    def __init__(self, folder, environment, prefix=()):
        self._folder, self._num = folder, 0
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )

    def begin(self, flags, first="", at=()):
        """Starts a run that is sent a signal, at=(signal, seconds), or none."""
        self._num += 1
        streams = {x: str(self._folder / f"{self._num}.{x}") for x in STREAMS}
        job = {"flags": flags, "first": first, "signal": at, **streams}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self._streams = streams

    def end(self):
        """Waits for it: its outcome, and the seconds it used after the signal."""
        code, *used, since = json.loads(self._process.stdout.readline())
        texts = (Path(self._streams[x]).read_text() for x in STREAMS)
        return Outcome(code, *texts, *used), since

    def start(self, *arguments):
        """Both."""
        self.begin(*arguments)
        return self.end()

    def close(self):
        self._process.stdin.close()
        self._process.wait()


class Finished(NamedTuple):
    workdir: Path
    config: object
    stdout: str
    compiled: list  # (name, number of programs compiled)


@pytest.fixture(scope="session")
def finished(smoke_config, tmp_path_factory):
    """A run of the smoke config that nothing interrupted."""
    config = smoke_config()
    workdir = tmp_path_factory.mktemp("finished") / "run"
    programs = []
    with pytest.MonkeyPatch.context() as patch:
        compile_steps = mapping.compile_steps

        def counting(task, how):
            program = compile_steps(task, how)
            programs.append(program)
            return program

        patch.setattr(mapping, "compile_steps", counting)
        code, stdout = _run_here(config, workdir)
    assert code == 0
    sizes = [program._cache_size() for program in programs]
    return Finished(workdir, config, stdout, sizes)


@pytest.fixture(scope="session")
def array_config(tmp_path_factory, data_dir):
    """("section.field" -> value) -> a config of tiny dense networks on arrays."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("arrays") / "arrays.npz"
    np.savez(
        path,
        image=rng.integers(0, 256, (60, 8, 8, 3)).astype(np.uint8),
        vector=rng.normal(size=(60, 4)).astype(np.float32),
        labels=rng.integers(0, 3, 60),
    )

    def build(changes=None):
        config = arrays.get_config()
        settings = {
            "data.path": str(path),
            "data.data_dir": str(data_dir),
            "model.latent_dim": 4,
            "modality.network_options.widths": (16,),
            "sweep.beta": (0.5, 1.0),
            "train.num_steps": 20,
            "train.batch_size": 16,
            "train.log_every_steps": 7,  # not at the last step
            "train.checkpoint_every_steps": 10,
            "train.checkpoints_kept": 3,
            "train.steps_per_call": 5,
            "eval.metrics": ("elbo",),
        }
        config.update_from_flattened_dict(settings | (changes or {}))
        return config

    return build


@pytest.fixture(scope="session")
def array_run(array_config, tmp_path_factory):
    """The folder of a finished run of `array_config`; tests change copies of it."""
    workdir = tmp_path_factory.mktemp("array_run") / "run"
    code, _ = _run_here(array_config(), workdir)
    assert code == 0
    return workdir


@pytest.fixture(scope="session")
def run_here():
    """(config, workdir) -> (exit code, standard output) of a run in this process."""
    return _run_here


def _run_here(config, workdir):
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            code = session.train_and_evaluate(config, workdir)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code, output.getvalue()


@pytest.fixture(scope="session")
def commands(data_dir, cache, tmp_path_factory):
    """[(flags, code to execute first)] -> the outcomes of the user's command.

    That is experiments.run, with the smoke config if there is no other; or the one that
    is the first of the flags, such as "experiments.apply".
    """

    defaults = (
        "--config=configs/smoke.py",
        f"--config.data.data_dir={data_dir}",
    )

    def is_given(default, flags):
        name = default.partition("=")[0] + "="
        return any(flag.startswith(name) for flag in flags)

    def completed(flags):
        if flags and flags[0].startswith("experiments."):
            return {"module": flags[0], "flags": flags[1:]}
        files = [flag for flag in flags if flag.startswith("--config=")]
        return {
            "flags": [
                *files,
                *(flag for flag in defaults if not is_given(flag, flags)),
                *(flag for flag in flags if flag not in files),
            ]
        }

    def run_all(jobs):
        folder = tmp_path_factory.mktemp("outputs")
        described = [
            {
                **completed(flags),
                "first": first,
                "stdout": str(folder / f"{i}.out"),
                "stderr": str(folder / f"{i}.err"),
            }
            for i, (flags, first) in enumerate(jobs)
        ]
        result = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input="".join(json.dumps(job) + "\n" for job in described),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **cache},
            timeout=600,
        )
        ends = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(ends) == len(jobs), result.stderr
        return [
            Outcome(code, *(Path(job[name]).read_text() for name in STREAMS), *used)
            for (code, *used, _), job in zip(ends, described, strict=True)
        ]

    return run_all


@pytest.fixture(scope="session")
def make_server(cache, tmp_path_factory):
    """(command to start it with) -> Server; closed at the end."""
    servers = []

    def build(prefix=()):
        servers.append(Server(tmp_path_factory.mktemp("outputs"), cache, prefix))
        return servers[-1]

    yield build
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def contents():
    """folder -> (relative name -> bytes) of all its files; the lock has none."""

    def read(folder):
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and path.name != ".lock"
        }

    return read


@pytest.fixture(scope="session")
def assert_same_end(contents):
    """(workdir, other) -> None: two finished runs have left the same bits."""

    def compare(workdir, other):
        (step, state), (other_step, expected) = _last_state(workdir), _last_state(other)
        assert step == other_step
        assert jax.tree.structure(state) == jax.tree.structure(expected)
        for leaf, wanted in zip(
            jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
        ):
            assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes()
        # No line is lost, doubled, torn or in another place.
        lines = (workdir / "metrics.jsonl").read_text()
        assert lines == (other / "metrics.jsonl").read_text()
        found, wanted = (
            json.loads((folder / "summary.json").read_text())
            for folder in (workdir, other)
        )
        assert found.pop("wall_seconds") > 0 and wanted.pop("wall_seconds") > 0
        assert {"step_seconds"} <= found.keys() & wanted.keys()
        del found["step_seconds"], wanted["step_seconds"]
        # The first step of each start compiles.
        steps = [own.pop("timed_steps") for own in (found, wanted)]
        assert 0 < steps[0] <= steps[1] < wanted["num_steps"]
        assert found.pop("training_seconds") > 0 and wanted.pop("training_seconds") > 0
        assert found == wanted
        assert contents(workdir / "samples") == contents(other / "samples") != {}

    return compare


@pytest.fixture(scope="session")
def last_state():
    """workdir -> (step, content) of the last checkpoint of a run."""
    return _last_state


def _last_state(workdir):
    handler = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(
        workdir / "checkpoints", item_handlers=handler
    ) as manager:
        step = manager.latest_step()
        # Without their shardings: the processes that saved it had more devices.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            manager.item_metadata(step),
        )
        return step, manager.restore(step, args=ocp.args.StandardRestore(template))
