"""One process per folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderTaken(OSError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process, creating it where it is missing; the kernel lets go however the process ends.

    Sharing was rejected: SQLite would allow it, but each process would count and evict on its own.

    Raises:
        FolderTaken: another process holds it.
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderTaken(f"{folder} is in use by another cache process; give each its own folder") from None
        yield
    finally:
        os.close(descriptor)
