"""What the entry points share, but for errors (tests/experiments/test_errors.py)."""

import os
import platform
import pwd
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.running import command

ROOT = Path(__file__).resolve().parents[2]
# Page faults of a compiled program with a temporary array of 128 MiB.
FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from experiments.running import command

@jax.jit
def program(x):
    array = jnp.full((1 << 25,), x)
    return jnp.sum(jax.lax.fori_loop(0, 2, lambda i, array: array + i, array))

if sys.argv[1] == "kept":
    command.keep_memory()
program(1.0).block_until_ready()  # the first time its pages are new
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    program(2.0).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# A command that a signal stops while a program is compiled, which takes longer: JAX
# tells of the end of the program's lowering, after which its compilation starts.
STOPPED = """
import os, signal, sys, threading
# A shell starts what is in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
import jax, jax.numpy as jnp
from experiments.running import command, signals

@jax.jit
def program(x):
    for _ in range(120):
        x = jnp.sort(x) + x[::-1]
    return x

def compile_and_be_stopped(number):
    x = jnp.arange(8.0)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), number))

    def listen(event, seconds, **more):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            timer.start()

    jax.monitoring.register_event_duration_secs_listener(listen)
    program(x)
    print("compiled")

def saving():
    with signals.caught_signals() as stop:
        try:
            with stop.at_once():
                compile_and_be_stopped(signal.SIGTERM)
        except command.Stopped as stopped:
            print("saved", end="")  # in a buffer
            return 128 + stopped.args[0]

def drawing():
    compile_and_be_stopped(signal.SIGINT)

command.call(globals()[sys.argv[1]])
"""
DEVICES = """
import jax
from experiments.running import command
command.call(lambda: print(jax.process_index()))
"""


def start(script, *arguments, options=(), **environment):
    return subprocess.run(
        [sys.executable, *options, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def faults(mode):
    done = start(FAULTS, mode)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for the GNU C library")
def test_memory_is_kept():
    # One of ten calls may find another place in memory.
    assert faults("kept") < 0.2 * faults("given back")


@pytest.mark.parametrize(
    ("main", "number", "stdout", "stderr"),
    [
        ("saving", signal.SIGTERM, "SIGTERM: saving, then stopping\nsaved", ""),
        pytest.param(
            *("drawing", signal.SIGINT, "", "SIGINT: stopped\n"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_signal_while_a_program_is_compiled(main, number, stdout, stderr):
    done = start(STOPPED, main)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, stdout, stderr)


@pytest.mark.parametrize(
    ("asked", "options", "reason"),
    [
        ("cuda", (), "there is no such GPU"),
        pytest.param(
            *("cuda", ("-O",), "there is no such GPU"), marks=pytest.mark.slow
        ),
        pytest.param(
            *("gpu", (), "Unable to initialize backend .*"), marks=pytest.mark.slow
        ),
        pytest.param(
            *("spu", (), "Unable to initialize backend 'spu'.*'cpu'.*"),
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_devices_that_are_not_there(asked, options, reason):
    done = start(DEVICES, options=options, JAX_PLATFORMS=asked)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        rf"error: JAX_PLATFORMS={asked} asks for devices that JAX does not find "
        rf"\({reason}\); unset it, and JAX takes what is here, or set "
        "JAX_PLATFORMS=cpu\n",
        done.stderr,
    )


# Twice: the first error does not make the next call use the CPU.
FUNCTIONS = """
import sys, warnings
import numpy as np
import mmvae_jax
warnings.simplefilter("ignore")
calls = {
    "fit": lambda: mmvae_jax.fit({"a": np.eye(8, dtype=np.float32)}, num_steps=1),
    "load": lambda: mmvae_jax.load(sys.argv[1]),
}
for name in (*calls, "fit"):
    try:
        print(name, calls[name]())
    except ValueError as error:
        print(name, type(error).__name__, error)
"""


@pytest.mark.parametrize("asked", ["cuda", pytest.param("gpu", marks=pytest.mark.slow)])
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_functions_say_which_devices_are_not_there(asked, tmp_path):
    done = start(FUNCTIONS, str(tmp_path), JAX_PLATFORMS=asked)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, "UsageError"] for name in ("fit", "load", "fit")
    ]
    says = f"UsageError JAX_PLATFORMS={asked} asks for devices that JAX does not find"
    for line in lines:
        assert says in line and line.endswith(
            "unset it, and JAX takes what is here, or set JAX_PLATFORMS=cpu"
        )


def test_other_errors_are_no_devices():
    for kind in (AssertionError, AttributeError, RuntimeError):
        with pytest.raises(kind, match="^mine$"), command.devices_found():
            raise kind("mine")


@pytest.fixture
def no_home(monkeypatch):
    """A user that the system does not know, as in containers."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.fixture
def updates(monkeypatch):
    """What is set in JAX's configuration: names."""
    found = []
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: found.append(name))
    return found


def test_programs_are_not_kept_without_a_home(no_home, updates, capsys):
    command.keep_programs()
    assert not updates
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("not kept, since there is no home directory: JAX_COMP", line)


# Nobody, not even root, writes there.
@pytest.mark.skipif(sys.platform != "linux", reason="for the files of processes")
@pytest.mark.parametrize("home", ["/proc", "/proc/nobody"])
def test_programs_are_not_kept_in_a_home_of_others(home, updates, monkeypatch, capsys):
    monkeypatch.setenv("HOME", home)
    command.keep_programs()
    assert not updates
    (line,) = capsys.readouterr().err.splitlines()
    assert f"since {home}/.cache/mmvae_jax/programs cannot be written" in line


def test_programs_are_not_kept_below_a_closed_folder(updates, monkeypatch, capsys):
    def refuse(dir):
        raise PermissionError(dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    command.keep_programs()
    assert not updates and "cannot be written" in capsys.readouterr().err


def test_programs_are_kept(updates, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    command.keep_programs()
    assert "jax_compilation_cache_dir" in updates and not capsys.readouterr().err


def test_a_signal_that_no_command_has_caught_is_one_line(capsys):
    def main():
        raise command.Stopped(signal.SIGTERM)

    assert command._guarded(main) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "SIGTERM: stopped\n"


def test_a_path_below_an_unknown_home(no_home, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    with pytest.raises(SystemExit, match="^2$"):
        command.call(lambda: print(Path("~/x").expanduser()))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: no home directory is known for ~ in a path: write it out"


# A run whose classifiers are stopped within a compilation of half a second or more:
# JAX tells of the end of a program's lowering, and of the end of its compilation.
CLASSIFIERS = """
import os, runpy, signal, sys, threading
import jax
from mmvae_jax.evaluation.judges import training
init_states, timers = training.init_states, []
def listen(event, seconds, **more):
    if event.endswith("jaxpr_to_mlir_module_duration"):
        timers.append(threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)))
        timers[-1].start()
    elif event.endswith("backend_compile_duration") and timers:
        timers[-1].cancel()
def init_and_be_stopped(*arguments):
    jax.monitoring.register_event_duration_secs_listener(listen)
    return init_states(*arguments)
training.init_states = init_and_be_stopped
sys.argv[0] = "experiments.run"
runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_signal_while_classifiers_are_compiled(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "arrays.npz"
    np.savez(
        path,
        image=rng.integers(0, 256, (60, 64, 64, 3), dtype=np.uint8),
        vector=rng.normal(size=(60, 4)).astype(np.float32),
        labels=rng.integers(0, 3, 60),
    )
    done = start(
        CLASSIFIERS,
        "--config=configs/arrays.py",
        f"--config.data.path={path}",
        f"--config.data.data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
        "--config.model.latent_dim=4",
        "--config.modality.network_options.widths=(16,)",
        "--config.train.num_steps=20",
        "--config.train.batch_size=16",
        "--config.eval.metrics=('elbo', 'coherence')",
        XDG_CACHE_HOME=str(tmp_path / "caches"),
        JAX_DISABLE_MOST_OPTIMIZATIONS="0",
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    last = "SIGTERM: saved; the same command continues this run"
    assert done.stdout.splitlines()[-1] == last
    # It went on with a compilation: no classifier took a step.
    assert "classifiers" in done.stderr and " 1/2000" not in done.stderr


def test_commands_are_found_in_the_root_of_a_checkout_alone(tmp_path):
    """What Python says elsewhere is quoted at the top of docs/commands.md."""
    quoted = re.search(r"says `(.+?)`", (ROOT / "docs" / "commands.md").read_text())
    folders = ("experiments", "configs", "datasets")
    code = (
        "import importlib.util, pathlib; "
        "print(importlib.util.find_spec('experiments.run').origin, "
        f"*(pathlib.Path(x).is_dir() for x in {folders}))"
    )
    own = {k: x for k, x in os.environ.items() if k != "PYTHONPATH"}

    def call(folder, *arguments):
        words = [sys.executable, *arguments]
        return subprocess.run(
            words, cwd=folder, env=own, capture_output=True, text=True
        )

    there = call(ROOT, "-c", code)
    assert there.stdout.split() == [str(ROOT / "experiments" / "run.py"), *["True"] * 3]
    elsewhere = call(tmp_path, "-m", "experiments.run")
    assert elsewhere.returncode == 1 and quoted[1] in elsewhere.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("JAX_ENABLE_X64", "maybe"), ("JAX_NUM_CPU_DEVICES", "x")]
)
def test_settings_of_jax_in_the_environment(name, value):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run"],
        env=os.environ | {name: value},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and value in line and name in line.upper()


@pytest.mark.slow
def test_matplotlib_is_silent_about_its_folder():
    """It says at length where it writes if it cannot at home."""
    code = "from experiments.drawing import page_pictures"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HOME": "/proc/nobody", "MPLCONFIGDIR": "/proc/nobody"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
