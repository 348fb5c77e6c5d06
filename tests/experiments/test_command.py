"""What the entry points share, but for errors (tests/experiments/test_errors.py)."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

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


def faults(mode):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for the GNU C library")
def test_memory_is_kept():
    # One of ten calls may find another place in memory.
    assert faults("kept") < 0.2 * faults("given back")
