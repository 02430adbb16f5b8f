"""Rows spread over several databases, each with a thread of its own."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from services.cache.engine import Engine, Row
from services.cache.store import Stats

T = TypeVar("T")
R = TypeVar("R")


def shard_folders(folder: Path, shards: int) -> list[Path]:
    """The first is the folder itself, so that one shard lies as an unsharded store does."""
    return [folder, *(folder / f"shard-{number}" for number in range(1, shards))]


@asynccontextmanager
async def opened_shard(
    folder: Path, policy: str, max_bytes: int, clock: Callable[[], float], is_live: Callable[[bytes], bool]
) -> AsyncIterator["Shard"]:
    """A shard for the length of the block. Raises OSError when the folder or the disk does not let us."""
    # One thread: SQLite has one writer anyway, diskcache binds connections to threads, and a queue is fair where its lock is not.
    with ThreadPoolExecutor(1, thread_name_prefix="cache-disk") as thread:
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(thread, Engine, folder, policy, max_bytes, clock, is_live)
        shard = Shard(engine, thread)
        shard.sweep()
        try:
            yield shard
        finally:
            await loop.run_in_executor(thread, engine.close)


class Shard:
    """An engine's face on the event loop: each batch is one hop to the thread."""

    def __init__(self, engine: Engine, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread

    async def get(self, rows: Sequence[bytes]) -> list[bytes | None]:
        return await self.run(lambda: self._engine.get(rows))

    async def lives(self, rows: Sequence[bytes]) -> list[float]:
        return await self.run(lambda: self._engine.lives(rows))

    async def put(self, rows: Sequence[Row]) -> list[bool]:
        return await self.run(lambda: self._engine.put(rows))

    async def delete(self, rows: Sequence[bytes]) -> None:
        await self.run(lambda: self._engine.delete(rows))

    def sweep(self) -> None:
        """Removes unreachable rows between calls, each slice in its turn, until there are none."""
        self._thread.submit(self._begin_sweep)

    def stats(self) -> Stats:
        return self._engine.stats

    async def run(self, job: Callable[[], T]) -> T:
        """Runs `job` in the shard's thread, in its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def _begin_sweep(self) -> None:
        self._engine.begin_sweep()
        self._sweep_on()

    def _sweep_on(self) -> None:
        if self._engine.sweep():
            self._thread.submit(self._sweep_on)


class Shards:
    """One or many as one: a batch is split by a hash of each row's key and put together again in the order asked."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards

    async def get(self, rows: Sequence[bytes]) -> list[bytes | None]:
        return await self._spread(rows, rows, Shard.get)

    async def lives(self, rows: Sequence[bytes]) -> list[float]:
        return await self._spread(rows, rows, Shard.lives)

    async def put(self, rows: Sequence[Row]) -> list[bool]:
        return await self._spread(rows, [row.key for row in rows], Shard.put)

    async def delete(self, rows: Sequence[bytes]) -> None:
        await self._spread(rows, rows, _deleted)

    def sweep(self) -> None:
        for shard in self._shards:
            shard.sweep()

    def stats(self) -> Stats:
        each = [shard.stats() for shard in self._shards]
        return Stats(
            evictions=sum(stats.evictions for stats in each),
            corrupt=sum(stats.corrupt for stats in each),
            entries=sum(stats.entries for stats in each),
            bytes=sum(stats.bytes for stats in each),
        )

    async def _spread(self, items: Sequence[T], keys: Sequence[bytes], ask: Callable[[Shard, Sequence[T]], Awaitable[list[R]]]) -> list[R]:
        if len(self._shards) == 1:
            return await ask(self._shards[0], items)
        parts = split(keys, len(self._shards))
        asked = [ask(self._shards[shard], [items[place] for place in places]) for shard, places in parts.items()]
        answers = await asyncio.gather(*asked)
        return merge(list(parts.values()), answers)


def split(keys: Sequence[bytes], shards: int) -> dict[int, list[int]]:
    """The places of `keys` by the shard that they belong to."""
    parts: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        parts.setdefault(zlib.crc32(key) % shards, []).append(place)
    return parts


def merge(places: Sequence[Sequence[int]], parts: Sequence[Sequence[R]]) -> list[R]:
    """What each part says, back in its place."""
    merged = {place: answer for part, answers in zip(places, parts, strict=True) for place, answer in zip(part, answers, strict=True)}
    return [merged[place] for place in range(len(merged))]


async def _deleted(shard: Shard, rows: Sequence[bytes]) -> list[None]:
    await shard.delete(rows)
    return [None] * len(rows)
