"""Files that are whole whatever stops their writer: replaced at once, or longer by whole lines."""

import errno
import os
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""The errno of an OSError that is the disk's: full, over a quota or a limit, or read-only."""


def write_atomically(path: Path, content: bytes) -> None:
    """Whoever opens `path`, also after a power cut, sees the old content or the new, never a part.

    Raises:
        OSError: if the disk is full or not to be written to; the old content is still there then.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave a name without content
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def append_whole(path: Path, content: bytes) -> None:
    """Adds lines at the end of a file: all of them, or none where the disk is full.

    A killed process may leave a part of the last line. What the system was given outlives the
    process, but not the machine: waiting for the disk would cost some milliseconds a time.

    Raises:
        OSError: if the disk is full or not to be written to; the file is as it was then.
    """
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            written = file.write(content)
            while written < len(content):  # a disk that fills up takes a part first
                written += file.write(content[written:])
        except OSError:
            file.truncate(size)
            raise
