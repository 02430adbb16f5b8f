"""A store on this machine's disk that survives a restart: SQLite, through diskcache, in a thread of its own."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import diskcache
import structlog

from services.cache.database import BytesDisk, Database, is_damage, move_aside, open_database
from services.cache.lock import locked
from services.cache.sealed import Broken, seal, unseal
from services.cache.store import Entry, Stats
from services.chassis import faults

log = structlog.get_logger("hone.cache")

T = TypeVar("T")

MAX_UNNOTED = 4096  # lookups whose recency waits in memory; a crash forgets those, which costs at most a worse eviction
TROUBLE = (sqlite3.Error, diskcache.Timeout, OSError)


@asynccontextmanager
async def disk_store(folder: Path, policy: str, max_bytes: int, clock: Callable[[], float] = time.time) -> AsyncIterator["DiskStore"]:
    """Opens a store for the length of the block; at its end everything accepted is in the database.

    `policy` is one of diskcache's: least-recently-used, least-recently-stored, least-frequently-used.

    Raises:
        FolderTaken: another process works in `folder`.
        OSError: the folder or the disk does not let us.
    """
    # One thread: SQLite has one writer anyway, diskcache binds connections to threads, and a queue is fair where its lock is not.
    with locked(folder), ThreadPoolExecutor(1, thread_name_prefix="cache-disk") as thread:
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(thread, _Engine, folder, policy, max_bytes, clock)
        try:
            yield DiskStore(engine, thread)
        finally:
            await loop.run_in_executor(thread, engine.close)


class DiskStore:
    """The store's face on the event loop: each batch is one hop to the thread. A caller that gives up before its turn is dropped."""

    def __init__(self, engine: "_Engine", thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._run(lambda: self._engine.get(namespace, keys))

    async def put(self, namespace: str, entries: Sequence[Entry]) -> list[bool]:
        return await self._run(lambda: self._engine.put(namespace, entries))

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        await self._run(lambda: self._engine.delete(namespace, keys))

    async def clear(self, namespace: str) -> int:
        return await self._run(lambda: self._engine.clear(namespace))

    def stats(self) -> Stats:
        return self._engine.stats

    async def _run(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)


class _Engine:
    """The store itself; every method but `stats` belongs to the one thread.

    A database that breaks under it is a miss, is counted and is replaced by a fresh one; a disk that refuses is a miss or a put not taken.
    """

    def __init__(self, folder: Path, policy: str, max_bytes: int, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._policy = policy
        self._max_bytes = max_bytes
        self._clock = clock
        self._unnoted: dict[bytes, None] = {}
        self._evictions = self._corrupt = 0
        self._database: Database | None = open_database(folder, policy, max_bytes)
        self.stats = Stats()
        self._measure(self._database)

    def close(self) -> None:
        if self._database is not None:
            self._try(self._note_recency, None)
            self._close_database()

    def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._try(lambda database: self._get(database, _rows(namespace, keys)), [None] * len(keys))

    def put(self, namespace: str, entries: Sequence[Entry]) -> list[bool]:
        if self._try(lambda database: self._put(database, namespace, entries), False):
            return [True] * len(entries)
        if len(entries) == 1:
            return [False]
        # One that the disk will not take must not cost its neighbours their place.
        return [self._try(lambda database, one=entry: self._put(database, namespace, [one]), False) for entry in entries]

    def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        self._insist(lambda database: self._delete(database, _rows(namespace, keys)))

    def clear(self, namespace: str) -> int:
        return self._insist(lambda database: self._clear(database, namespace))

    def _get(self, database: Database, rows: Sequence[bytes]) -> list[bytes | None]:
        now = self._clock()
        values = [self._look_up(database, row, now) for row in rows]
        if len(self._unnoted) > MAX_UNNOTED:
            self._try(self._note_recency, None)
        return values

    def _look_up(self, database: Database, row: bytes, now: float) -> bytes | None:
        sealed = database.reader.get(row)
        if sealed is None:
            return None
        try:
            if sealed is BytesDisk.UNREADABLE:
                raise Broken("not a row of bytes")
            value, expires_s = unseal(row, sealed)
        except Broken as error:
            log.warning("a corrupt entry is dropped", reason=str(error))
            self._corrupt += 1
            self._try(lambda database: self._delete(database, [row]), None)
            return None
        if expires_s <= now:
            return None
        self._unnoted[row] = None
        return value

    def _put(self, database: Database, namespace: str, entries: Sequence[Entry]) -> bool:
        now = self._clock()
        with database.writer.transact():
            for entry in entries:
                (row,) = _rows(namespace, [entry.key])
                database.writer.set(row, seal(row, entry.value, now + entry.ttl_s), expire=entry.ttl_s, tag=namespace)
        self._try(self._tidy, None)  # the entries are in; what fails from here on cannot take them back
        return True

    def _tidy(self, database: Database) -> None:
        self._note_recency(database)
        database.writer.expire(now=self._clock())
        self._evictions += database.writer.cull()
        self._measure(database)

    def _delete(self, database: Database, rows: Sequence[bytes]) -> None:
        with database.writer.transact():
            for row in rows:
                database.writer.delete(row)
        self._measure(database)

    def _clear(self, database: Database, namespace: str) -> int:
        database.writer.expire(now=self._clock())
        # One transaction, so that all go at one moment. An epoch in the key would be quicker for millions of rows, but it would have to
        # outlive them where eviction and damage cannot reach it, or what was cleared comes back.
        with database.writer.transact():
            cleared = int(database.writer.evict(namespace))
        self._measure(database)
        return cleared

    def _note_recency(self, database: Database) -> None:
        rows, self._unnoted = self._unnoted, {}
        if self._policy == "least-recently-stored":
            return
        with database.writer.transact():
            for row in rows:
                database.writer.get(row)

    def _measure(self, database: Database) -> None:
        self.stats = Stats(
            evictions=self._evictions, corrupt=self._corrupt, entries=len(database.writer), bytes=database.writer.volume()
        )

    def _try(self, job: Callable[[Database], T], otherwise: T) -> T:
        try:
            return job(self._opened())
        except TROUBLE as error:
            self._recover(error)
            return otherwise

    def _insist(self, job: Callable[[Database], T]) -> T:
        try:
            return job(self._opened())
        except TROUBLE as error:
            self._recover(error)
            if not is_damage(error):
                raise faults.Unavailable("the disk does not let the cache forget; try again") from error
        return job(self._opened())  # on a fresh database: everything is forgotten

    def _opened(self) -> Database:
        if self._database is None:
            self._database = open_database(self._folder, self._policy, self._max_bytes)
        return self._database

    def _recover(self, error: BaseException) -> None:
        """Lets go of the connection, since a failed COMMIT may have left its transaction open, and of the database when it is damaged."""
        self._close_database()
        if not is_damage(error):
            log.warning("the disk refused the cache", reason=repr(error))
            return
        log.error("the database is damaged; it is moved aside and a fresh one begun", folder=str(self._folder), reason=repr(error))
        self._corrupt += 1
        move_aside(self._folder)

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()


def _rows(namespace: str, keys: Sequence[bytes]) -> list[bytes]:
    """Row keys: no namespace contains a NUL, so that no two pairs share one."""
    return [namespace.encode() + b"\0" + key for key in keys]
