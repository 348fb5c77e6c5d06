"""The exception of all data sets for a mistake in options or in input files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

GZIP = b"\x1f\x8b"  # the first bytes of gzip data


class DatasetError(ValueError):
    """An invalid option or input file.

    The message is one line: what is wrong, where, and what to do.
    """


def check_limits(options: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raises DatasetError for the first number outside of its limits.

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

    An error of the system (permission, disk) does not mean that the file is damaged.

    Args:
      where: name of the file in messages.
      error: exception of the system or of the library that read the file.
      damage: description of damaged content: "not a readable image".
      remedy: advice for damaged content: "fetch it again".

    Returns:
      The DatasetError to raise.
    """
    if isinstance(error, MemoryError):
        return DatasetError(f"{where}: does not fit into memory; free some of it")
    # OSErrors of libraries about a file's content have no number.
    if isinstance(error, OSError) and error.errno is not None:
        return DatasetError(
            f"{where}: cannot be read ({error.strerror}); check its permissions and "
            "the disk"
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DatasetError(f"{where}: {damage} ({reason}); {remedy}")


def check_gzip(path: Path) -> None:
    """Raises DatasetError if a file does not begin like gzip data."""
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
