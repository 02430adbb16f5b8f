"""Rows in one SQLite database, through diskcache: sealed, evicted, and begun afresh when the database is damaged."""

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import diskcache
import structlog

from services.cache.database import Database, is_damage, move_aside, open_database
from services.cache.sealed import Broken, seal, unseal
from services.cache.store import Stats
from services.cache.sweep import Sweep
from services.chassis import faults

log = structlog.get_logger("hone.cache")

T = TypeVar("T")

# Lookups remembered until the next put notes them for eviction. Past it the oldest are forgotten: noting each at once would make every get
# a write, and eviction needs a good guess, not the truth.
MAX_UNNOTED = 256
LEAST_FREQUENTLY_USED = "least-frequently-used"
LEAST_RECENTLY_STORED = "least-recently-stored"
TROUBLE = (sqlite3.Error, diskcache.Timeout, OSError)


@dataclass(frozen=True, slots=True)
class Row:
    """A value to keep under a row's key for at most `ttl_s` seconds."""

    key: bytes
    value: bytes
    ttl_s: float


class Engine:
    """One database; everything but `stats` belongs to one thread.

    A database that breaks under it is a miss, is counted and is replaced by a fresh one; a disk that refuses is a miss or a put not taken.
    """

    def __init__(self, folder: Path, policy: str, max_bytes: int, clock: Callable[[], float], is_live: Callable[[bytes], bool]) -> None:
        """`is_live` tells whether rows under a prefix are reachable. Raises OSError when the folder or the disk does not let us."""
        self._folder = folder
        self._policy = policy
        self._max_bytes = max_bytes
        self._clock = clock
        self._unnoted: deque[bytes] = deque(maxlen=MAX_UNNOTED)
        self._evictions = self._corrupt = self._entries = self._bytes = 0
        self._database: Database | None = None
        self._sweep = Sweep(is_live)
        self._opened()

    @property
    def stats(self) -> Stats:
        return Stats(evictions=self._evictions, corrupt=self._corrupt, entries=self._entries, bytes=self._bytes)

    def close(self) -> None:
        if self._database is not None:
            self._try(self._note_lookups, None)
        self._sweep.end()
        self._close_database()

    def get(self, rows: Sequence[bytes]) -> list[bytes | None]:
        """The live values in the order asked."""
        broken: list[bytes] = []
        values = self._try(lambda database: self._look_up(database, rows, broken), None)
        if broken:
            self._corrupt += len(broken)
            log.warning("corrupt entries are dropped", entries=len(broken))
            self._try(lambda database: self._delete(database, broken), None)
        return values or [None] * len(rows)

    def lives(self, rows: Sequence[bytes]) -> list[float]:
        """Seconds that each row has left; 0 for none."""
        now = self._clock()
        ends_s = self._try(lambda database: [database.end_s(row) for row in rows], [0.0] * len(rows))
        return [max(0.0, end_s - now) for end_s in ends_s]

    def put(self, rows: Sequence[Row]) -> list[bool]:
        """Tells for each whether it was taken."""
        if self._unnoted:
            self._try(self._note_lookups, None)
        taken = self._put_all(rows)
        self._try(self._keep_to_limit, None)
        return taken

    def delete(self, rows: Sequence[bytes]) -> None:
        """Raises `faults.Unavailable` when it cannot be made sure of."""
        self._insist(lambda database: self._delete(database, rows))

    def begin_sweep(self) -> None:
        """Rows have become unreachable: `sweep` has work from its beginning."""
        self._sweep.begin()

    def sweep(self) -> bool:
        """Removes some rows that nobody can reach; whether there may be more."""
        return self._sweep.pending and self._try(self._sweep_slice, False)

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

    def _put_all(self, rows: Sequence[Row]) -> list[bool]:
        if self._try(lambda database: self._put(database, rows), False):
            return [True] * len(rows)
        if len(rows) == 1:
            return [False]
        # One that the disk will not take must not cost its neighbours their place.
        return [taken for row in rows for taken in self._put_all([row])]

    def _put(self, database: Database, rows: Sequence[Row]) -> bool:
        now = self._clock()
        ahead_s = now - time.time()  # diskcache adds the expiry to its own clock
        with database.plain.transact():
            for row in rows:
                database.plain.set(row.key, seal(row.key, row.value, now + row.ttl_s), expire=row.ttl_s + ahead_s)
        return True

    def _keep_to_limit(self, database: Database) -> None:
        self._measure(database)
        while self._bytes > self._max_bytes and self._sweep.pending:  # what nobody can reach goes before what somebody may want
            self._sweep_slice(database)
        if self._bytes > self._max_bytes:
            database.ranked.expire(now=self._clock())
            self._evictions += database.ranked.cull()
            self._measure(database)

    def _sweep_slice(self, database: Database) -> bool:
        more = self._sweep.slice(database)
        self._measure(database)
        return more

    def _delete(self, database: Database, rows: Sequence[bytes]) -> None:
        with database.plain.transact():
            for row in rows:
                database.plain.delete(row)
        self._measure(database)

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
