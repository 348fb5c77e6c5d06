"""Reports of benchmarks: their rows, and what they were measured with."""

import contextlib
import datetime
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

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
    path.write_text(json.dumps(report, indent=2) + "\n")


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
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return found | {"commit": commit.stdout.strip() or "unknown"}
