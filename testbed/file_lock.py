"""File lock: one process at a time, on one machine or a shared disk."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time; the kernel lets the next one in however this one ends.

    The file at `path` is removed afterwards. So what the lock guards must be there by then: who
    waited, or makes a new file of the same name, finds it and has nothing to do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)
