"""Reports of benchmarks: their rows, and what they were measured with."""

import contextlib
import datetime
import functools
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from mmvae_jax.errors import UsageError
from mmvae_jax.training.log import write_json

# Of these the version is told, if they are installed.
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "multivae")


@contextlib.contextmanager
def own_programs() -> Iterator[None]:
    """Compiles every program once, and none that was compiled before.

    What XLA says of a program's memory or operations asks for it a second time.
    """
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        yield


def write(
    path: Path | None, command: str, rows: Sequence[Mapping], **more: Any
) -> None:
    """Writes a result file: command, date, machine, versions, commit, rows.

    Whoever measures row after row calls this after each, so that a command that is cut
    short leaves what it has measured.

    Args:
      path: where; None: nowhere.
      command: what measured it, after "python -m benchmarks.".
      rows: of the table that was printed.
      more: other fields.
    """
    if path is None:
        return
    report = {
        "command": f"python -m benchmarks.{command}",
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        **more,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)


def machine() -> str:
    """The device and the host."""
    device = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return f"{device}, {platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of Python and PACKAGES, and the commit."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"commit": _commit()}


@functools.cache
def _commit() -> str:
    """The commit of the working directory; "unknown" without git or outside of it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
        )
    except OSError:  # git is not installed
        return "unknown"
    return done.stdout.strip() or "unknown"


def operations(program: Any, *arguments: Any) -> float:
    """XLA's count of the floating-point operations of a program, before compilation.

    A compiled program of a GPU hides its products in libraries, and lowered programs
    are counted by XLA's client for CPUs alone, so that this lowers for a CPU.

    Args:
      program: a jitted function for any device.
      arguments: of one call; their values are not used.

    Raises:
      UsageError: JAX_PLATFORMS excludes CPUs.
    """
    try:
        (cpu, *_) = jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise UsageError(
            "operations are counted for a CPU, which JAX_PLATFORMS="
            f"{jax.config.jax_platforms} excludes: add ',cpu'"
        ) from error
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    with jax.default_device(cpu):
        return program.lower(*shapes).cost_analysis()["flops"]
