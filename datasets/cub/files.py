"""Reads files of a folder or of a .tgz archive into memory.

Archives are never unpacked to disk. Other files than the requested ones are skipped,
links are not followed, and files larger than MAX_FILE_BYTES are refused.
"""

import gzip
import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dataset_errors import DatasetError, check_gzip, unreadable

MAX_FILE_BYTES = 64 << 20
MAX_ARCHIVE_BYTES = 16 << 30  # unpacked; the published archive has 1.2 GB
MAX_MEMBERS = 1_000_000


class Place(NamedTuple):
    """The location of files.

    Attributes:
      path: a folder or a .tgz archive.
      prefix: prefix of the names in it; "" or "folder/".
    """

    path: Path
    prefix: str

    def __str__(self) -> str:
        """The place in messages, before the name of a file."""
        return f"{self.path}/{self.prefix}"


def exists(place: Place) -> bool:
    """Whether the folder or the archive exists; does not open the archive."""
    if place.path.is_dir():
        return (place.path / place.prefix).is_dir()
    return place.path.is_file()


def read_files(place: Place, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Reads the named files that exist, in any order.

    Args:
      place: Place.
      names: relative to the place, with "/".

    Yields:
      (name, bytes).

    Raises:
      DatasetError: the archive is damaged or hostile, or a file is too large.
    """
    if place.path.is_dir():
        yield from _read_folder(place, names)
    else:
        yield from _read_archive(place, names)


def _read_folder(place: Place, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """`read_files` of a folder."""
    for name in names:
        path = place.path / f"{place.prefix}{name}"
        try:
            if not path.is_file():
                continue
            _check_size(place, name, path.stat().st_size)
            data = path.read_bytes()
        except OSError as error:
            raise unreadable(str(path), error, "cannot be read", "check it") from error
        yield name, data


def _check_size(place: Place, name: str, size: int) -> None:
    """Refuses files larger than any file of the data set."""
    if size > MAX_FILE_BYTES:
        raise DatasetError(
            f"{place}{name}: {size} bytes are more than the {MAX_FILE_BYTES} that are "
            "read; check where it comes from"
        )


class _Unpacked(gzip.GzipFile):
    """Refuses to unpack more bytes at once than a file may have."""

    def read(self, size: int | None = -1) -> bytes:
        """As in GzipFile."""
        if size is None or not 0 <= size <= MAX_FILE_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _read_archive(place: Place, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """`read_files` of an archive, in one pass."""
    check_gzip(place.path)
    missing = {f"{place.prefix}{name}": name for name in names}
    total = 0
    try:
        with (
            _Unpacked(place.path) as unpacked,
            tarfile.open(fileobj=unpacked, mode="r:") as archive,
        ):
            for number, member in enumerate(archive):
                total += member.size
                _check_member(place, member)
                if number >= MAX_MEMBERS or total > MAX_ARCHIVE_BYTES:
                    raise DatasetError(
                        f"{place.path}: unpacks to more than {MAX_MEMBERS} files or "
                        f"{MAX_ARCHIVE_BYTES} bytes; check where it comes from"
                    )
                name = missing.pop(member.name.removeprefix("./"), None)
                if name is None:
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    raise DatasetError(
                        f"{place}{name} is a link or a folder in the archive, not a "
                        "file; take the published archive, or pack the files themselves"
                    )
                _check_size(place, name, member.size)
                yield name, file.read()
            # Reads to the checksum at the end, which detects damage.
            while total <= MAX_ARCHIVE_BYTES and (rest := unpacked.read(1 << 20)):
                total += len(rest)
    except DatasetError:
        raise
    except Exception as error:  # tarfile and gzip raise many types.
        damage = "cannot be read to its end as a .tgz archive"
        raise unreadable(str(place.path), error, damage, "fetch it again") from error


def _check_member(place: Place, member: tarfile.TarInfo) -> None:
    """Refuses an archive with paths outside of itself, or with negative sizes."""
    if member.size < 0:
        raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes")
    if member.name.startswith(("/", "\\")) or ".." in member.name.split("/"):
        raise DatasetError(
            f"{place.path}: {member.name!r} would leave the folder of the archive; "
            "fetch it from another source"
        )


def describe(place: Place, folder: str) -> bytes:
    """Bytes that differ for different places, without reading all files.

    Args:
      place: Place.
      folder: folder whose names and sizes of files count; for an archive, gzip's
        checksum of the whole content counts.

    Returns:
      bytes.

    Raises:
      DatasetError: a file cannot be read.
    """
    try:
        if place.path.is_dir():
            found = _list_files(place.path / f"{place.prefix}{folder}")
            return hashlib.sha256(repr(found).encode()).digest()
        with open(place.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - (1 << 16)))
            return hashlib.sha256(file.read() + str(size).encode()).digest()
    except OSError as error:
        where = f"{place}{folder}"
        raise unreadable(where, error, "cannot be read", "check it") from error


def _list_files(root: str | Path) -> list[tuple[str, str, int]]:
    """(folder, name, size) of all files below a folder, sorted."""
    found = []
    for parent, _, names in os.walk(root):
        relative = os.path.relpath(parent, root)
        for name in names:
            size = os.stat(os.path.join(parent, name)).st_size
            found.append((relative, name, size))
    return sorted(found)
