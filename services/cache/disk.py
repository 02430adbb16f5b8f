"""A store on this machine's disk that survives a restart."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from services.cache.engine import Row
from services.cache.lock import locked
from services.cache.namespaces import NamespaceTable
from services.cache.sharded import Shard, Shards, opened_shard, shard_folders
from services.cache.store import Entry, Namespace, Stats
from services.chassis import faults


@asynccontextmanager
async def disk_store(
    folder: Path, policy: str, max_bytes: int, clock: Callable[[], float] = time.time, *, shards: int = 1
) -> AsyncIterator["DiskStore"]:
    """Opens a store for the length of the block; at its end everything accepted is in the database.

    `policy` is one of diskcache's: least-recently-used, least-recently-stored, least-frequently-used. `clock` tells seconds since the
    epoch and must not run behind the machine's, by which diskcache hides what has expired. `shards` is how many databases entries are
    spread over, each with its part of `max_bytes`; another number than before forgets everything.

    Raises:
        FolderTaken: another process works in `folder`.
        OSError: the folder or the disk does not let us.
    """
    with locked(folder):
        table = await asyncio.to_thread(NamespaceTable, folder, shards)
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(opened_shard(part, policy, max_bytes // shards, clock, table.is_live))
                for part in shard_folders(folder, shards)
            ]
            yield DiskStore(table, opened)


class DiskStore:
    """Finds a namespace's rows and asks the shards for them. A caller that gives up before its turn is dropped."""

    def __init__(self, table: NamespaceTable, shards: Sequence[Shard]) -> None:
        self._table = table
        self._first = shards[0]  # its thread changes the table too
        self._rows = Shards(shards)

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        prefix = self._table.place(namespace)
        return [None] * len(keys) if prefix is None else await self._rows.get([prefix + key for key in keys])

    async def lives(self, namespace: str, keys: Sequence[bytes]) -> list[float]:
        prefix = self._table.place(namespace)
        return [0.0] * len(keys) if prefix is None else await self._rows.lives([prefix + key for key in keys])

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        prefix = await self._begun(namespace)
        # A clear that comes before the rows are written leaves them under a prefix that nobody reads: it is as if they had come first.
        if prefix is None or epoch not in (None, self._table.describe(namespace).epoch):
            return [False] * len(entries)
        return await self._rows.put([Row(prefix + entry.key, entry.value, entry.ttl_s) for entry in entries])

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        prefix = self._table.place(namespace)
        if prefix is not None:
            await self._rows.delete([prefix + key for key in keys])

    async def clear(self, namespace: str) -> int:
        epoch = await self._first.run(lambda: self._table.clear(namespace))
        self._rows.sweep()
        return epoch

    async def describe(self, namespace: str) -> Namespace:
        return self._table.describe(namespace)

    async def configure(self, namespace: str, ttl_s: float | None) -> None:
        await self._first.run(lambda: self._table.configure(namespace, ttl_s))

    def stats(self) -> Stats:
        return self._rows.stats()

    async def _begun(self, namespace: str) -> bytes | None:
        """The namespace's prefix; None where the disk does not let a new one begin."""
        known = self._table.place(namespace)
        if known is not None:
            return known
        try:
            return await self._first.run(lambda: self._table.begin(namespace))
        except faults.Unavailable:
            return None
