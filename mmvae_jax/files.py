"""Files that are written whole or not at all."""

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path

_MAX_NAME_BYTES = 150  # file systems take 255, with what stands before and after


def file_name(text: str) -> str:
    """A text as a part of the name of a file, and of a tag.

    What systems refuse or take for folders is percent-encoded, so that
    `urllib.parse.unquote` reads the text back; what is too long is cut, and ends in a
    digest of it all.

    Args:
      text: anything, for instance the name of a modality.
    """
    name = re.sub(r'[%/\\:*?"<>|\x00-\x1f\x7f]', lambda c: f"%{ord(c[0]):02X}", text)
    content = name.encode()
    if len(content) <= _MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(content).hexdigest()[:8]
    return f"{content[:_MAX_NAME_BYTES].decode(errors='ignore')}~{digest}"


def write_whole(path: Path, content: str | bytes, *, is_shared: bool = False) -> None:
    """Gives a file new content, at once or not at all.

    A reader finds the old content or the new one, also after an error, a kill or a
    power failure. The new content is first written to a file beside it, with the
    suffix .partial. A kill may leave that one; the next writer of a file that is not
    shared overwrites it.

    Args:
      path: of the file, in a folder that exists.
      content: text is written in UTF-8.
      is_shared: several threads or processes may write the file at the same time: each
        writes a partial file of its own, and the last to finish decides.

    Raises:
      OSError: the file cannot be written, and is as it was.
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
        with contextlib.suppress(OSError):  # After the renaming there is none.
            partial.unlink()
