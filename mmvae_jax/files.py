"""Atomic writes of files, and safe file names."""

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path

_MAX_NAME_BYTES = 150  # file systems allow 255, with prefix and suffix


def file_name(text: str) -> str:
    """Converts a text to a part of a file name or of a tag.

    Characters that are invalid in file names are percent-encoded;
    `urllib.parse.unquote` decodes them. A long text is cut and ends in a digest of the
    whole text.

    Args:
      text: any text, for instance the name of a modality.
    """
    name = re.sub(r'[%/\\:*?"<>|\x00-\x1f\x7f]', lambda c: f"%{ord(c[0]):02X}", text)
    return cut(name, _MAX_NAME_BYTES, "~")


def cut(text: str, max_bytes: int, mark: str) -> str:
    """The text, or its first bytes, a mark and a digest (8 digits) of the whole text.

    Args:
      text: any text.
      max_bytes: number of bytes in UTF-8 above which a text is cut.
      mark: what stands before the digest.
    """
    content = text.encode()
    if len(content) <= max_bytes:
        return text
    digest = hashlib.sha256(content).hexdigest()[:8]
    return f"{content[:max_bytes].decode(errors='ignore')}{mark}{digest}"


def write_whole(path: Path, content: str | bytes, *, is_shared: bool = False) -> None:
    """Replaces the content of a file atomically.

    A reader finds either the old or the new content, also after an error, a kill or a
    power failure. The new content is first written to a file with the suffix .partial.
    A kill may leave this partial file; unless `is_shared`, the next writer overwrites
    it.

    Args:
      path: path of the file, in an existing folder.
      content: text is written in UTF-8.
      is_shared: whether several threads or processes may write the file at the same
        time. Each writes its own partial file; the last one to finish wins.

    Raises:
      OSError: the file cannot be written; the old content is kept.
    """
    own = f".{os.getpid()}.{threading.get_ident()}" if is_shared else ""
    partial = path.with_suffix(f"{own}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            # Without this, a power failure could leave the new name on an empty file.
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):  # Already renamed.
            partial.unlink()
