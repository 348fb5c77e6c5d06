"""Flags, one-line errors and exit codes of all entry points.

Exit codes: 0 done; 1 a failure in the run (disk full, all members diverged); 2 a
mistake in flags, config, data, working directory or environment; 128 + n stopped by
signal n, after saving.
"""

import contextlib
import ctypes
import errno
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import is_writable
from mmvae_jax.interface.progress import tqdm
from mmvae_jax.training import devices

FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_HOME = "Could not determine home directory"  # message of pathlib
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class Stopped(BaseException):
    """A signal, its argument, has arrived, and the run is saved.

    Like KeyboardInterrupt it is not an Exception, so that handlers of errors do not
    catch it.
    """


def run(main: Callable[[], int | None], argument: str = "") -> None:
    """Parses the flags and calls `main`; mistakes of the user become one line.

    Args:
      main: returns the exit code, or None for 0.
      argument: name of a flag that may be given without its name; "": none.
    """
    # Libraries log every file that they open; --verbosity=0 shows this again.
    logging.set_verbosity(logging.WARNING)
    keep_programs()
    keep_memory()
    sys.unraisablehook = _without_orphans
    threading.excepthook = _end_with_a_thread
    parse = partial(_parse, argument=argument)
    app.run(lambda argv: call(main), flags_parser=parse)


def call(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits with its code; errors become one line.

    For benchmarks, which parse their own arguments.
    """
    _end(_guarded(main))


def define_config(default: str) -> None:
    """Defines --config; exits on a mistake in an override of the default."""
    try:
        config_flags.DEFINE_config_file(
            "config",
            default,
            "config file, and its argument after a colon; --config.SECTION.FIELD=VALUE "
            "changes a setting of mmvae_jax/interface/settings.py, which lists all",
        )
        # The flags of the program that --help lists.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])
    # Without --config, overrides are applied to the default immediately.
    except Exception as error:
        sys.exit(_report(_unread_option(sys.argv, default, error) or error, 2))


def _unread_option(argv: list[str], default: str, error: object) -> str | None:
    """The error message for an unknown option of the model of --config, if any.

    The message of ml_collections does not list the valid options. Fields of networks
    and of single modalities are no fields of every config.
    """
    for open_section in ("modality.network_options", "modalities"):
        prefix = f"--config.{open_section}."
        for flag in (x.partition("=")[0] for x in argv if x.startswith(prefix)):
            parts = flag.removeprefix(prefix).split(".")
            if "Did you mean" in str(error):
                continue  # that says more
            if any(part in str(error) for part in parts):
                return (
                    f"{flag.removeprefix('--')} is no field of this config: a config "
                    f"file may add it (config.{open_section}; docs/models.md)"
                )
    prefix = "--config.model.options."
    fields = [x.removeprefix(prefix) for x in argv if x.startswith(prefix)]
    if not fields:
        return None
    files = [x.partition("=")[2] for x in argv if x.startswith("--config=")]
    file, _, argument = (files or [default])[-1].partition(":")
    try:
        get_config = runpy.run_path(file)["get_config"]
        model = (get_config(argument) if argument else get_config()).model
        unread = [x.partition("=")[0] for x in fields]
        unread = [x for x in unread if x not in model.options]
        return models.unread(model.name, unread[0]) if unread else None
    except Exception:  # another error
        return None


def require_new(flag: str, *paths: Path) -> None:
    """Requires output paths that do not exist and can be created.

    Raises:
      UsageError: a path exists, or is below a file.
    """
    for path in paths:
        if os.path.lexists(path):
            raise UsageError(f"{path} exists; choose another {flag}")
        above = next(x for x in path.absolute().parents if os.path.lexists(x))
        if not above.is_dir():
            raise UsageError(f"{flag} {path} is below a file; choose another")


def require_fields(config: ConfigDict, like: ConfigDict) -> None:
    """Requires all sections and fields of another config.

    Raises:
      UsageError: a field is missing.
    """
    for name, value in like.items():
        if name not in config:
            raise UsageError(
                f"the config has no field {name!r}; start from configs/base.py"
            )
        if isinstance(value, ConfigDict):
            if not isinstance(config[name], ConfigDict):
                raise UsageError(f"the config's {name!r} is no section of fields")
            # These fields depend on the network, model and data set.
            if name not in ("network_options", "options", "data"):
                require_fields(config[name], value)


def keep_programs() -> None:
    """Caches compiled programs in a per-user directory, unless the user chose one.

    A resumed sweep, or one with the same networks on other data, then starts without
    compilation. Without such a directory, it prints a line and caches nothing.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = caches / "mmvae_jax" / "programs"
        problem = "" if is_writable(folder) else f"{folder} cannot be written"
    except RuntimeError:  # HOME is not set, and the user is not in passwd
        problem = "there is no home directory"
    if problem:
        print(
            f"compiled programs are not kept, since {problem}: "
            "JAX_COMPILATION_CACHE_DIR may name another folder",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def keep_memory() -> None:
    """Lets the C library keep freed memory, up to 2 GiB, instead of unmapping it.

    On CPUs, each call of a compiled program allocates its temporary arrays again, and
    the system would clear all their pages (with glibc; other libraries are not
    changed). Large blocks are kept only if the main thread frees them, so that programs
    for CPUs run in the calling thread. Call this before JAX looks for devices.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        # Some versions of the library allow only 32 MiB.
        if mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 1 << 25):
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _without_orphans(unraisable: Any) -> None:
    """Prints unraisable errors, except those that are normal at the end of a run.

    After a full disk, orbax's threads find their event loop closed. And a signal may
    arrive in a library's callback, which cannot raise; the run ends at the next check.
    """
    error = unraisable.exc_value
    if not isinstance(error, Stopped) and str(error) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _end_with_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Ends the process if a thread fails because the disk is full.

    A thread writes TensorBoard's files; without it the run would wait forever. The
    process ends as if killed, which loses nothing.
    """
    error = failed.exc_value
    if not isinstance(error, OSError) or error.errno not in FULL:
        threading.__excepthook__(failed)
        return
    with tqdm.get_lock():  # so that no progress bar is drawn after the message
        print(file=sys.stderr)
        _report_system(error)
        sys.stderr.flush()
        os._exit(1)


def _end(code: int) -> NoReturn:
    """Ends the process with a code, without the interpreter's shutdown.

    After a signal, XLA's threads may still compile; the interpreter would free their
    memory, which gives a segmentation fault. Several processes are not stopped within a
    compilation, and JAX ends them together.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if code > 128 and not jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # disk full, or closed
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _guarded(main: Callable[[], int | None]) -> int:
    """Calls `main` and converts its exceptions to an exit code."""
    try:
        with devices_found():
            return main() or 0
    except UsageError as error:
        return _report(error, 2)
    except OSError as error:
        # Other errors than a full disk or a missing permission need a traceback.
        if error.errno not in (*FULL, errno.EACCES, errno.EROFS):
            raise
        return _report_system(error)
    except RuntimeError as error:
        if _NO_HOME not in str(error):
            raise
        return _report("no home directory is known for ~ in a path: write it out", 2)
    except Stopped as stopped:
        (number,) = stopped.args
        print(f"{signal.Signals(number).name}: stopped", file=sys.stderr)
        return 128 + number
    except KeyboardInterrupt:  # there is nothing to save
        print("SIGINT: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


@contextlib.contextmanager
def devices_found() -> Iterator[None]:
    """Converts JAX's error for missing devices to one line.

    JAX looks for devices at their first use, which not every command has.

    Raises:
      UsageError: instead of JAX's error.
    """
    try:
        yield
    except devices.MISSING:
        devices.require_devices()
        raise  # another error


def _parse(argv: list[str], argument: str = "") -> list[str]:
    """Parses flags; exits on a wrong flag or a config that cannot be read."""
    app.define_help_flags()
    if argument:
        flags.FLAGS.set_gnu_getopt()  # flags may follow the argument
    try:
        left = flags.FLAGS(argv)
        if argument and len(left) > 1 and not flags.FLAGS[argument].present:
            flags.FLAGS[argument].parse(left.pop(1))
        if "config" in flags.FLAGS and not isinstance(flags.FLAGS.config, ConfigDict):
            kind = type(flags.FLAGS.config).__name__
            raise UsageError(
                f"get_config of the config file returns {kind}, not a ConfigDict"
            )
    # A config file is a program and may raise anything.
    except Exception as error:
        sys.exit(_report(_unread_option(argv, "", error) or error, 2))
    except SystemExit:
        if any(flag.lstrip("-").startswith(("help", "?")) for flag in argv[1:]):
            raise
        sys.exit(_report("the config file ends the program", 2))
    if len(left) > 1:
        sys.exit(_report(f"unexpected argument {left[1]!r}; flags start with --", 2))
    return left


def _report_system(error: OSError) -> int:
    """Prints an error of the system with advice."""
    place = f" ({error.filename})" if error.filename else ""
    advice = "make room" if error.errno in FULL else "change its permissions"
    return _report(f"{error.strerror}{place}: {advice}, then repeat the command", 1)


def _report(error: Exception | str, code: int) -> int:
    """Prints one line and returns the code."""
    text = str(error)
    if isinstance(error, (AttributeError, KeyError)) or "\\nTraceback" in text:
        # The text of such an error may be the repr of its message.
        text = text.replace("\\n", "\n").replace("\\'", "'").strip("'\"")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        # ml_collections returns errors of a config file as a printed traceback.
        lines = [lines[-1].partition(": ")[2] or lines[-1]]
    elif isinstance(error, (AttributeError, KeyError)):
        lines[0] = f"the config has no field '{lines[0].strip(chr(39))}'."
    print(f"error: {' '.join(lines) or type(error).__name__}", file=sys.stderr)
    return code
