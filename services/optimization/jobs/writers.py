"""Knowing whether this process is the only one that writes to a repository, so that what is unfinished there may be removed."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(root: Path, tidy: Callable[[], None]) -> Iterator[None]:
    """Counts this process among the writers while the block lasts; calls `tidy` first where there is no other.

    Blocks while another process tidies. Raises OSError, and what `tidy` raises.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(root / "writers.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if _is_alone(lock):
            tidy()
        fcntl.flock(lock, fcntl.LOCK_SH)  # released by the system however the process ends
        yield
    finally:
        os.close(lock)


def _is_alone(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
