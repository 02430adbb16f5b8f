"""A store on a Valkey or Redis server, for many replicas of the service on many machines.

A row is `hone:row:`, its namespace's random prefix and its key. Clear is a new prefix, so what lay under the old one is out of reach at
once, and goes by its time to live or by the server's eviction. A cluster of several masters is not spoken to: a batch would be many round
trips.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from math import ceil, inf
from typing import Any, TypeVar

import structlog

from services.cache.invalidations import Change, Changed, Cleared
from services.cache.sealed import Broken, seal, unseal
from services.cache.store import Entry, Namespace, Stats
from services.cache.valkey_namespaces import Known, ValkeyNamespaces
from services.cache.valkey_news import CHANNEL, encode
from services.cache.valkey_server import ValkeyServer
from services.chassis import faults

log = structlog.get_logger("hone.cache")

T = TypeVar("T")

STATS_EVERY_S = 5.0
_OFF_LOOP_BYTES = 128 << 10  # of a batch: sealing or opening more than this would hold other calls up, and less is quicker than a thread


@asynccontextmanager
async def valkey_store(server: ValkeyServer) -> AsyncIterator["ValkeyStore"]:
    """A store on `server` whose statistics are kept up to date for the length of the block."""
    store = ValkeyStore(server)
    measuring = asyncio.create_task(_measure_on(store))
    try:
        yield store
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)


async def _measure_on(store: "ValkeyStore") -> None:
    while True:
        await store.measure()
        await asyncio.sleep(STATS_EVERY_S)


class ValkeyStore:
    """One round trip per batch: rows are asked for under the prefix as it was last known, together with the prefix as it is.

    The server's clock alone ends entries, so that replicas' clocks may differ. A put that was told as not taken because the server did not
    answer in time may be stored all the same when the server comes back; never past a Clear.
    """

    def __init__(self, server: ValkeyServer, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._namespaces = ValkeyNamespaces(server, clock)
        self._held = _Held()
        self._corrupt = 0

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        misses: list[bytes | None] = [None] * len(keys)
        if not keys:
            return misses
        try:
            known, answers = await self._namespaces.ask(namespace, lambda pipeline, known: pipeline.mget(_rows(known, keys)))
        except faults.Unavailable:
            return misses
        return misses if known is None else await self._opened(namespace, _rows(known, keys), answers[0])

    async def lives(self, namespace: str, keys: Sequence[bytes]) -> list[float]:
        def commands(pipeline: Any, known: Known) -> None:
            for row in _rows(known, keys):
                pipeline.pttl(row)

        try:
            _, answers = await self._namespaces.ask(namespace, commands)
        except faults.Unavailable:
            answers = []
        return [max(0, left_ms) / 1e3 for left_ms in answers] or [0.0] * len(keys)

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        sealed: list[tuple[bytes, bytes]] = []

        async def prepare(known: Known) -> None:
            size_bytes = sum(len(entry.value) for entry in entries)
            sealed[:] = await _aside(lambda: _sealed(known, entries), size_bytes)

        def commands(pipeline: Any, known: Known) -> None:
            for entry, (row, value) in zip(entries, sealed, strict=True) if epoch in (None, known.epoch) else ():
                pipeline.set(row, value, px=max(1, ceil(entry.ttl_s * 1e3)))
            _publish(pipeline, Changed(namespace, tuple(entry.key for entry in entries)))

        try:
            _, answers = await self._namespaces.ask(namespace, commands, begin=epoch is None, prepare=prepare)
        except faults.Unavailable:
            answers = []
        return [answer is True for answer in answers[:-1]] or [False] * len(entries)

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        def commands(pipeline: Any, known: Known) -> None:
            pipeline.unlink(*_rows(known, keys))
            _publish(pipeline, Changed(namespace, tuple(keys)))

        if keys:
            await self._namespaces.ask(namespace, commands)

    async def clear(self, namespace: str) -> int:
        return await self._namespaces.clear(namespace, lambda pipeline: _publish(pipeline, Cleared(namespace)))

    async def describe(self, namespace: str) -> Namespace:
        return await self._namespaces.describe(namespace)

    async def configure(self, namespace: str, ttl_s: float | None) -> None:
        await self._namespaces.configure(namespace, ttl_s)

    def stats(self) -> Stats:
        """Entries and bytes as the server counts them, with all that others keep there, a few seconds old."""
        return Stats(evictions=self._held.evictions, corrupt=self._corrupt, entries=self._held.entries, bytes=self._held.bytes)

    async def measure(self) -> None:
        """Asks the server for what `stats` tells. One that does not answer leaves it as it was."""

        def commands(pipeline: Any) -> None:
            pipeline.dbsize()
            pipeline.info("memory")
            pipeline.info("stats")

        try:
            self._held.update(*await self._server.send(commands))
        except faults.Unavailable:
            return

    async def _opened(self, namespace: str, rows: Sequence[bytes], sealed: Sequence[bytes | None]) -> list[bytes | None]:
        """Values out of their seals; rows that we did not write as they are now are dropped and counted."""
        values = await _aside(
            lambda: [_unsealed(*found) for found in zip(rows, sealed, strict=True)], sum(len(each or b"") for each in sealed)
        )
        broken = [row for row, found, value in zip(rows, sealed, values, strict=True) if found is not None and value is None]
        if broken:
            await self._drop(namespace, broken)
        return values

    async def _drop(self, namespace: str, rows: Sequence[bytes]) -> None:
        self._corrupt += len(rows)
        log.warning("corrupt entries are dropped", namespace=namespace, entries=len(rows))
        try:
            await self._server.send(lambda pipeline: pipeline.unlink(*rows))
        except faults.Unavailable:
            return  # they are found again


class _Held:
    """What the server said that it holds, and what it evicted since it was first asked, its restarts included."""

    def __init__(self) -> None:
        self.entries = self.bytes = self.evictions = 0
        self._evicted: int | None = None

    def update(self, entries: int, memory: Mapping[str, Any], counters: Mapping[str, Any]) -> None:
        self.entries, self.bytes, evicted = entries, int(memory["used_memory"]), int(counters["evicted_keys"])
        before = evicted if self._evicted is None else self._evicted
        self.evictions += evicted - before if evicted >= before else evicted
        self._evicted = evicted


def _publish(pipeline: Any, change: Change) -> None:
    """With the change and after it, so that no replica looks up what was there before once it has been told."""
    pipeline.publish(CHANNEL, encode(change))


def _row(known: Known, key: bytes) -> bytes:
    return b"hone:row:" + known.prefix + key


def _rows(known: Known, keys: Sequence[bytes]) -> list[bytes]:
    return [_row(known, key) for key in keys]


def _sealed(known: Known, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
    rows = [_row(known, entry.key) for entry in entries]
    return [(row, seal(row, entry.value, inf)) for row, entry in zip(rows, entries, strict=True)]


def _unsealed(row: bytes, sealed: bytes | None) -> bytes | None:
    try:
        return None if sealed is None else unseal(row, sealed)[0]
    except Broken:
        return None


async def _aside(job: Callable[[], T], size_bytes: int) -> T:
    """Runs `job`, which goes through so many bytes, without holding the event loop up."""
    return await asyncio.to_thread(job) if size_bytes > _OFF_LOOP_BYTES else job()
