"""Flags, one-line errors and exit codes of all entry points.

Exit codes: 0 done; 1 a failure on the way (disk full, all members diverged);
2 a mistake in flags, config, data, working directory or environment; 128 + n
stopped by signal n, after saving.
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
from jax.extend.backend import clear_backends
from ml_collections import ConfigDict, config_flags

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import is_writable
from mmvae_jax.interface.progress import tqdm

FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_HOME = "Could not determine home directory"  # as pathlib says it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class Stopped(BaseException):
    """A signal, its argument, arrived; everything worth keeping has been saved.

    Like KeyboardInterrupt no Exception: it may be raised anywhere, and whoever
    catches what goes wrong must not take it for that.
    """


def run(main: Callable[[], int | None], argument: str = "") -> None:
    """Parses the flags and calls `main`; errors of the user become one line.

    Args:
      main: returns the exit code, or None for 0.
      argument: the flag that may be given without its name, if there is one.
    """
    # Libraries log every file they open; a flag (--verbosity=0) brings it back.
    logging.set_verbosity(logging.WARNING)
    keep_programs()
    keep_memory()
    sys.unraisablehook = _without_orphans
    threading.excepthook = _end_with_a_thread
    parse = partial(_parse, argument=argument)
    app.run(lambda argv: call(main), flags_parser=parse)


def call(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and ends the process with its code; errors become one line.

    For benchmarks, which parse their arguments themselves.
    """
    _end(_guarded(main))


def define_config(default: str) -> None:
    """Defines --config; a mistake in an override of the default ends here."""
    try:
        config_flags.DEFINE_config_file(
            "config", default, "config file, and its argument after a colon"
        )
    # Without --config, overrides are applied to the default at once.
    except Exception as error:
        sys.exit(_report(_unread_option(sys.argv, default) or error, 2))


def _unread_option(argv: list[str], default: str) -> str | None:
    """The line for an option that the model of --config does not read, if there is one.

    What ml_collections says of it has no names of those that the model reads.
    """
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
    except Exception:  # it is something else that is wrong
        return None


def require_new(flag: str, *paths: Path) -> None:
    """Checks, before anything is computed, that paths can be written to and are free.

    Raises:
      UsageError: one exists, or is below a file.
    """
    for path in paths:
        if os.path.lexists(path):
            raise UsageError(f"{path} exists; choose another {flag}")
        above = next(x for x in path.absolute().parents if os.path.lexists(x))
        if not above.is_dir():
            raise UsageError(f"{flag} {path} is below a file; choose another")


def require_fields(config: ConfigDict, like: ConfigDict) -> None:
    """Checks that a config has all fields of another one, of sections and numbers.

    Raises:
      UsageError: one is not there.
    """
    for name, value in like.items():
        if name not in config:
            raise UsageError(
                f"the config has no field {name!r}; start from configs/base.py"
            )
        if isinstance(value, ConfigDict):
            if not isinstance(config[name], ConfigDict):
                raise UsageError(f"the config's {name!r} is no section of fields")
            # Their options are those of each network, model and data set.
            if name not in ("network_options", "options", "data"):
                require_fields(config[name], value)


def keep_programs() -> None:
    """Keeps compiled programs in a per-user directory, unless the user chose one.

    A sweep that is taken up, or one of the same networks on other data, then starts
    without compiling. Where there is no such directory, that is said, and none is kept.
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
    """Lets the C library keep what is freed, up to 2 GiB, instead of unmapping it.

    On CPUs the temporary arrays of a compiled program are allocated anew in every call,
    and the system would have to clear each of their pages anew (glibc; elsewhere
    that is not changed). Only what the main thread frees is kept whatever its size is:
    programs for CPUs are therefore run by the thread that calls them. To be called
    before JAX has looked for devices.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        # Versions of the library that allow no more take 32 MiB.
        if mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 1 << 25):
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _without_orphans(unraisable: Any) -> None:
    """Prints what could not be raised, but for what the end of a run leaves behind.

    A checkpoint that a full disk ends is written by many threads of the library, each
    of which finds the event loop closed that it reports to. And a signal may come
    while a library's callback is at work, which nothing can leave: the run ends at the
    next place where it looks.
    """
    error = unraisable.exc_value
    if not isinstance(error, Stopped) and str(error) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _end_with_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Ends the process with a thread that the disk has no room for.

    TensorBoard's files are written by one: without it the run would wait for ever. It
    ends as if it were killed, which loses nothing.
    """
    error = failed.exc_value
    if not isinstance(error, OSError) or error.errno not in FULL:
        threading.__excepthook__(failed)
        return
    with tqdm.get_lock():  # no progress bar is drawn after it
        print(file=sys.stderr)
        _report_system(error)
        sys.stderr.flush()
        os._exit(1)


def _end(code: int) -> NoReturn:
    """Ends the process with a code; nothing is left that a signal could stop.

    What a signal stops may be a compilation, which the threads of XLA go on with. The
    interpreter would take from them what they work on, a segmentation fault: it is not
    asked. Several processes are not stopped there, and JAX lets them leave together.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if code > 128 and not jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # full, or closed
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _guarded(main: Callable[[], int | None]) -> int:
    """Calls `main` and turns what it raises into an exit code."""
    try:
        with devices_found():
            return main() or 0
    except UsageError as error:
        return _report(error, 2)
    except OSError as error:
        # Anything but a full disk or a missing permission is worth a traceback.
        if error.errno not in (*FULL, errno.EACCES, errno.EROFS):
            raise
        return _report_system(error)
    except RuntimeError as error:
        if _NO_HOME not in str(error):
            raise
        return _report("no home directory is known for ~ in a path: write it out", 2)
    except KeyboardInterrupt:  # where there is nothing to save
        print("SIGINT: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


@contextlib.contextmanager
def devices_found() -> Iterator[None]:
    """Says in one line that JAX has found no device where it was told to look.

    JAX looks for devices when it is first asked for one, and not every command asks.

    Raises:
      UsageError: instead of what JAX raises then.
    """
    try:
        yield
    # With JAX_PLATFORMS=cuda and no such GPU, JAX asserts that there is a device, and
    # under python -O takes None for one.
    except (AssertionError, AttributeError, RuntimeError) as error:
        asked = jax.config.jax_platforms
        try:
            jax.devices()
        except (AssertionError, AttributeError, RuntimeError) as again:
            said = "" if isinstance(again, AttributeError) else str(again)
            reason = " ".join(said.partition(" (set JAX")[0].split()).rstrip(".")
            if not asked:
                raise UsageError(f"JAX finds no device: {reason}") from error
            jax.config.update("jax_platforms", None)
            clear_backends()  # JAX may have kept that None
            raise UsageError(
                f"JAX_PLATFORMS={asked} asks for devices that JAX does not find "
                f"({reason or 'there is no such GPU'}); set "
                f"JAX_PLATFORMS={jax.default_backend()}, which is here, or unset it"
            ) from error
        raise  # something else is wrong


def _parse(argv: list[str], argument: str = "") -> list[str]:
    """Parses flags; a wrong one, or a config that cannot be read, ends here."""
    app.define_help_flags()
    if argument:
        flags.FLAGS.set_gnu_getopt()  # flags may stand behind it
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
        sys.exit(_report(_unread_option(argv, "") or error, 2))
    except SystemExit:
        if any(flag.lstrip("-").startswith(("help", "?")) for flag in argv[1:]):
            raise
        sys.exit(_report("the config file ends the program", 2))
    if len(left) > 1:
        sys.exit(_report(f"unexpected argument {left[1]!r}; flags start with --", 2))
    return left


def _report_system(error: OSError) -> int:
    """Prints what the system refused."""
    place = f" ({error.filename})" if error.filename else ""
    advice = "make room" if error.errno in FULL else "change its permissions"
    return _report(f"{error.strerror}{place}: {advice}, then repeat the command", 1)


def _report(error: Exception | str, code: int) -> int:
    """Prints one line."""
    text = str(error)
    if isinstance(error, (AttributeError, KeyError)) or "\\nTraceback" in text:
        # Such an error's text may be the repr of its message, as a UsageError's is.
        text = text.replace("\\n", "\n").replace("\\'", "'").strip("'\"")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        # ml_collections hands on a config file's error as a printed traceback.
        lines = [lines[-1].partition(": ")[2] or lines[-1]]
    elif isinstance(error, (AttributeError, KeyError)):
        lines[0] = f"the config has no field '{lines[0].strip(chr(39))}'."
    print(f"error: {' '.join(lines) or type(error).__name__}", file=sys.stderr)
    return code
