"""File work of a door: off the event loop, one chunk at a time."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from services.chassis.faults import Overloaded
from services.repository.store import CHUNK_BYTES

RETRY_DISK_S = 60.0
P = ParamSpec("P")
T = TypeVar("T")


async def on_disk(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs file work off the event loop. Raises Overloaded for a full disk, which is the caller's to know, and what `work` raises."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Overloaded("no space is left", RETRY_DISK_S) from error
        raise


async def chunks(path: Path, offset: int) -> AsyncIterator[tuple[int, bytes]]:
    """A file's bytes from `offset` to its end, each piece with its own offset. Raises OSError."""
    with path.open("rb") as file:
        file.seek(offset)
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield offset, data
            offset += len(data)
