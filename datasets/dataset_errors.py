"""The exception of all data sets for a mistake in options or in input files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

GZIP = b"\x1f\x8b"  # the first bytes of its data


class DatasetError(ValueError):
    """An option or an input file that cannot be used.

    The message is one line: what is wrong, where, and what to do.
    """


def check_limits(options: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raises DatasetError for the first number that is out of its limits.

    Args:
      options: dataclass of a data set's options.
      limits: field -> (lowest, highest).
    """
    for field, (low, high) in limits.items():
        value = getattr(options, field)
        if not low <= value <= high:
            raise DatasetError(f"config.data.{field}={value} must be in {low}..{high}")


def unreadable(where: str, error: Exception, damage: str, remedy: str) -> DatasetError:
    """The DatasetError of a file that cannot be read.

    A file that the system does not give (permission, disk) is not damaged, and no copy
    of it would be read.

    Args:
      where: the file, as messages name it.
      error: what the system, or the library that read the file, raised.
      damage: what is said of the content: "not a readable image".
      remedy: what to do about damaged content: "fetch it again".

    Returns:
      The DatasetError to be raised.
    """
    if isinstance(error, MemoryError):
        return DatasetError(f"{where}: does not fit into memory; free some of it")
    # Of libraries that read a file's content OSErrors have no number.
    if isinstance(error, OSError) and error.errno is not None:
        return DatasetError(
            f"{where}: cannot be read ({error.strerror}); check its permissions and "
            "the disk"
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DatasetError(f"{where}: {damage} ({reason}); {remedy}")


def check_gzip(path: Path) -> None:
    """Raises DatasetError where a file does not begin as gzip data do."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise unreadable(str(path), error, "", "") from error
    if not start:
        raise DatasetError(f"{path}: is empty; fetch it again")
    if not start.startswith(GZIP):
        raise DatasetError(
            f"{path}: not compressed by gzip, as its name says, but begins with "
            f"{start!r}; if a program has unpacked it, compress it again, else fetch "
            "it again"
        )
