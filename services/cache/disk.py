"""A store on this machine's disk that survives a restart: SQLite, through diskcache, in a thread of its own."""

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import diskcache
import structlog

from services.cache.database import Database, is_damage, move_aside, open_database
from services.cache.lock import locked
from services.cache.sealed import Broken, seal, unseal
from services.cache.store import Entry, Stats
from services.chassis import faults

log = structlog.get_logger("hone.cache")

T = TypeVar("T")

# Lookups remembered until the next put notes them for eviction. Past it the oldest are forgotten: noting each at once would make every get
# a write, and eviction needs a good guess, not the truth.
MAX_UNNOTED = 256
LEAST_FREQUENTLY_USED = "least-frequently-used"
LEAST_RECENTLY_STORED = "least-recently-stored"
TROUBLE = (sqlite3.Error, diskcache.Timeout, OSError)


@asynccontextmanager
async def disk_store(folder: Path, policy: str, max_bytes: int, clock: Callable[[], float] = time.time) -> AsyncIterator["DiskStore"]:
    """Opens a store for the length of the block; at its end everything accepted is in the database.

    `policy` is one of diskcache's: least-recently-used, least-recently-stored, least-frequently-used. `clock` tells seconds since the
    epoch and must not run behind the machine's, by which diskcache hides what has expired.

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
    """The store itself; everything but `stats` belongs to the one thread.

    A database that breaks under it is a miss, is counted and is replaced by a fresh one; a disk that refuses is a miss or a put not taken.
    """

    def __init__(self, folder: Path, policy: str, max_bytes: int, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._policy = policy
        self._max_bytes = max_bytes
        self._clock = clock
        self._unnoted: deque[bytes] = deque(maxlen=MAX_UNNOTED)
        self._evictions = self._corrupt = self._entries = self._bytes = 0
        self._database: Database | None = None
        self._opened()

    @property
    def stats(self) -> Stats:
        return Stats(evictions=self._evictions, corrupt=self._corrupt, entries=self._entries, bytes=self._bytes)

    def close(self) -> None:
        if self._database is not None:
            self._try(self._note_lookups, None)
        self._close_database()

    def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        broken: list[bytes] = []
        rows = _rows(namespace, keys)
        values = self._try(lambda database: self._look_up(database, rows, broken), None)
        if broken:
            self._corrupt += len(broken)
            log.warning("corrupt entries are dropped", namespace=namespace, entries=len(broken))
            self._try(lambda database: self._delete(database, broken), None)
        return values or [None] * len(keys)

    def put(self, namespace: str, entries: Sequence[Entry]) -> list[bool]:
        if self._unnoted:
            self._try(self._note_lookups, None)
        taken = self._put_all(namespace, entries)
        self._try(self._keep_to_limit, None)
        return taken

    def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        self._insist(lambda database: self._delete(database, _rows(namespace, keys)))

    def clear(self, namespace: str) -> int:
        return self._insist(lambda database: self._clear(database, namespace))

    def _look_up(self, database: Database, rows: Sequence[bytes], broken: list[bytes]) -> list[bytes | None]:
        now = self._clock()
        values: list[bytes | None] = []
        for row in rows:
            sealed = database.plain.get(row)
            try:
                value = None if sealed is None else _live(row, sealed, now)
            except Broken:
                value = None
                broken.append(row)
            if value is not None:
                self._unnoted.append(row)
            values.append(value)
        return values

    def _put_all(self, namespace: str, entries: Sequence[Entry]) -> list[bool]:
        if self._try(lambda database: self._put(database, namespace, entries), False):
            return [True] * len(entries)
        if len(entries) == 1:
            return [False]
        # One that the disk will not take must not cost its neighbours their place.
        return [taken for entry in entries for taken in self._put_all(namespace, [entry])]

    def _put(self, database: Database, namespace: str, entries: Sequence[Entry]) -> bool:
        now = self._clock()
        ahead_s = now - time.time()  # diskcache adds the expiry to its own clock
        with database.plain.transact():
            for row, entry in zip(_rows(namespace, [entry.key for entry in entries]), entries, strict=True):
                database.plain.set(row, seal(row, entry.value, now + entry.ttl_s), expire=entry.ttl_s + ahead_s, tag=namespace)
        return True

    def _keep_to_limit(self, database: Database) -> None:
        self._measure(database)
        if self._bytes > self._max_bytes:
            database.ranked.expire(now=self._clock())
            self._evictions += database.ranked.cull()
            self._measure(database)

    def _delete(self, database: Database, rows: Sequence[bytes]) -> None:
        with database.plain.transact():
            for row in rows:
                database.plain.delete(row)
        self._measure(database)

    def _clear(self, database: Database, namespace: str) -> int:
        database.plain.expire(now=self._clock())
        # One transaction, so that all go at one moment. An epoch in the key would be quicker for millions of rows, but it would have to
        # outlive them where eviction and damage cannot reach it, or what was cleared comes back.
        with database.plain.transact():
            cleared = int(database.plain.evict(namespace))
        self._measure(database)
        return cleared

    def _note_lookups(self, database: Database) -> None:
        rows, self._unnoted = list(self._unnoted), deque(maxlen=MAX_UNNOTED)
        if self._policy == LEAST_RECENTLY_STORED:
            return
        if self._policy != LEAST_FREQUENTLY_USED:
            rows = list(dict.fromkeys(reversed(rows)))[::-1]  # the last lookup of each says it all
        with database.ranked.transact():
            for row in rows:
                database.ranked.get(row)

    def _measure(self, database: Database) -> None:
        self._entries, self._bytes = database.holdings()

    def _try(self, job: Callable[[Database], T], otherwise: T) -> T:
        try:
            return job(self._opened())
        except TROUBLE as error:
            self._recover(error)
            return otherwise

    def _insist(self, job: Callable[[Database], T]) -> T:
        """What must not be left undone: a fresh database in place of a damaged one has forgotten everything, so a second try does it."""
        for _ in range(2):
            try:
                return job(self._opened())
            except TROUBLE as error:
                self._recover(error)
                if not is_damage(error):
                    break
        raise faults.Unavailable("the disk does not let the cache forget; try again")

    def _opened(self) -> Database:
        if self._database is None:
            self._database = open_database(self._folder, self._policy, self._max_bytes)
            self._measure(self._database)
        return self._database

    def _recover(self, error: BaseException) -> None:
        """Lets go of the connection, since a failed COMMIT may have left its transaction open, and of a database that is damaged."""
        self._close_database()
        if not is_damage(error):
            log.warning("the disk refused the cache", reason=repr(error))
            return
        log.error("the database is damaged; it is moved aside and a fresh one begun", folder=str(self._folder), reason=repr(error))
        self._corrupt += 1
        try:
            move_aside(self._folder)
        except OSError as stuck:
            log.error("the damaged database cannot be moved", reason=repr(stuck))

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()


def _live(row: bytes, sealed: object, now: float) -> bytes | None:
    if not isinstance(sealed, bytes):  # BytesDisk.UNREADABLE
        raise Broken("not a row of bytes")
    value, expires_s = unseal(row, sealed)
    return value if expires_s > now else None


def _rows(namespace: str, keys: Sequence[bytes]) -> list[bytes]:
    """Row keys: no namespace contains a NUL, so that no two pairs share one."""
    return [namespace.encode() + b"\0" + key for key in keys]
