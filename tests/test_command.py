"""What the entry points share, but for the errors (tests/test_errors.py)."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Page faults while a thread, as XLA's are, makes an array again and again.
FAULTS = """
import resource, sys, threading
import numpy as np
from experiments import command

def work():
    for _ in range(10):
        np.ones(1 << 24)  # 128 MiB, given back at once

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    command.keep_memory()
faults()  # the first time its pages are new
print(faults())
"""


def faults(mode):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for the GNU C library")
def test_memory_is_kept():
    assert faults("given back") > 100 and faults("kept") < 10
