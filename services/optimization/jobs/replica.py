"""This process among those that share a database: a name of its own, and a folder that tells whether it lives."""

import contextlib
import fcntl
import os
import shutil
import uuid
from pathlib import Path

from services.optimization.jobs import processes
from services.repository.atomic import locked


class Replica:
    """`root/ID/`, whose lock is held for as long as the process lives: the system releases it however the process ends.

    Needs a file system that keeps locks between all who share it, as local disks and NFS do.
    """

    def __init__(self, root: Path) -> None:
        """Takes a new id, removes what dead ones left: their folders, and the processes that worked in those.

        Raises:
            OSError: the disk is full or fails.
        """
        root = root.resolve()
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):  # or a folder just made, and not locked yet, would be taken for a dead one's
            self.predecessors = tuple(path.name for path in sorted(root.iterdir()) if _bury(path))
            self.id = uuid.uuid4().hex
            self.folder = root / self.id
            self.folder.mkdir()
            self._lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Removes the folder; whatever still works there must have ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _bury(folder: Path) -> bool:
    """Removes a dead replica's folder; False where it lives or there is none."""
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            processes.kill_marked(folder)
            shutil.rmtree(folder)
            return True
        finally:
            os.close(lock)
    return False
