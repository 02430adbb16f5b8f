"""The table of namespaces on disk: under which prefix of a row's key each one's entries lie."""

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from services.cache.database import is_damage
from services.cache.store import Namespace
from services.chassis import faults

log = structlog.get_logger("hone.cache")

T = TypeVar("T")

TABLE_FILE = "namespaces.db"
PREFIX_BYTES = 8

_CREATE = """
CREATE TABLE IF NOT EXISTS Namespaces (name TEXT PRIMARY KEY, prefix INTEGER NOT NULL UNIQUE, epoch INTEGER NOT NULL, ttl_s REAL)
"""
_WRITE = "INSERT OR REPLACE INTO Namespaces (name, prefix, epoch, ttl_s) VALUES (?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Placed:
    """A namespace and where its rows lie."""

    prefix: bytes
    about: Namespace


class NamespaceTable:
    """Names to prefixes. `place` and `describe` read memory and are safe in any thread; the rest belongs to one thread.

    Clearing gives a namespace another prefix: no row is touched, and what lies under the old one is for `sweep.py` to remove. A prefix is
    random, so a table that was lost brings nothing back: the rows of before stay unreachable. It has a database of its own, so that every
    change can be made durable (`synchronous = FULL`) without that cost for each batch of entries.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        """`shards` is over how many databases rows are spread: with another number than before, nothing is reachable any more.

        Raises OSError when the folder or the disk does not let us.
        """
        self._file = folder / TABLE_FILE
        self._shards = shards
        self._placed: Mapping[str, Placed] = {}
        self._live: frozenset[bytes] = frozenset()
        try:
            self._recovering(self._load)
        except sqlite3.Error as error:
            raise OSError(f"cannot open {self._file}: {error!r}") from error

    def place(self, namespace: str) -> bytes | None:
        """The prefix of a namespace's rows; None for one that has none."""
        placed = self._placed.get(namespace)
        return None if placed is None else placed.prefix

    def describe(self, namespace: str) -> Namespace:
        placed = self._placed.get(namespace)
        return Namespace() if placed is None else placed.about

    def is_live(self, prefix: bytes) -> bool:
        """Whether rows under `prefix`, of which the caller has seen one, are reachable."""
        return prefix in self._live

    def begin(self, namespace: str) -> bytes:
        """The prefix, of a new namespace too. Raises `faults.Unavailable`."""
        known = self.place(namespace)
        return self._change(namespace, self.describe(namespace)).prefix if known is None else known

    def clear(self, namespace: str) -> int:
        """Makes all rows unreachable; the new epoch. Raises `faults.Unavailable`."""
        about = self.describe(namespace)
        return self._change(namespace, replace(about, epoch=about.epoch + 1)).about.epoch

    def configure(self, namespace: str, ttl_s: float | None) -> None:
        """Raises `faults.Unavailable`."""
        about = replace(self.describe(namespace), ttl_s=ttl_s)
        self._change(namespace, about, self.place(namespace))

    def _change(self, namespace: str, about: Namespace, prefix: bytes | None = None) -> Placed:
        placed = Placed(prefix or _fresh_prefix(), about)
        try:
            self._recovering(lambda: self._write({namespace: placed}))
        except (sqlite3.Error, OSError) as error:
            log.warning("the table of namespaces cannot be written", reason=repr(error))
            raise faults.Unavailable("the disk does not let the cache change a namespace; try again") from error
        self._hold({**self._placed, namespace: placed})
        return placed

    def _hold(self, placed: Mapping[str, Placed]) -> None:
        self._live = frozenset(each.prefix for each in placed.values())  # first: no row may lie under a prefix that does not live yet
        self._placed = placed

    def _load(self) -> None:
        with self._opened() as connection:
            (shards,) = connection.execute("PRAGMA user_version").fetchone()
            rows = connection.execute("SELECT name, prefix, epoch, ttl_s FROM Namespaces").fetchall()
        placed: Mapping[str, Placed] = {row[0]: _read(*row) for row in rows}
        if shards != self._shards:
            placed = _renewed(placed)
            self._write(placed)
        self._hold(placed)

    def _write(self, placed: Mapping[str, Placed]) -> None:
        rows = [(name, int.from_bytes(each.prefix, "big"), each.about.epoch, each.about.ttl_s) for name, each in placed.items()]
        with self._opened() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_WRITE, rows)
            connection.execute(f"PRAGMA user_version = {self._shards}")

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection for one change: changes are rare, and none is left with a transaction open."""
        with closing(sqlite3.connect(self._file, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_CREATE)
            yield connection

    def _recovering(self, job: Callable[[], T]) -> T:
        try:
            return job()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            log.error("the table of namespaces is damaged; a fresh one is begun, and all entries are forgotten", reason=repr(error))
        self._file.unlink(missing_ok=True)
        Path(f"{self._file}-journal").unlink(missing_ok=True)
        # Other prefixes for all, written or not: the epochs go on, since leases of before must not fit what comes after.
        renewed = _renewed(self._placed)
        self._write(renewed)
        self._hold(renewed)
        return job()


def _read(name: object, prefix: object, epoch: object, ttl_s: object) -> Placed:
    if not (isinstance(name, str) and isinstance(prefix, int) and prefix >= 0 and isinstance(epoch, int)):
        raise sqlite3.DatabaseError("a row that was not written here")
    if not (ttl_s is None or isinstance(ttl_s, float)):
        raise sqlite3.DatabaseError("a time to live that is none")
    return Placed(_prefix(prefix), Namespace(epoch, ttl_s))


def _renewed(placed: Mapping[str, Placed]) -> Mapping[str, Placed]:
    return {name: Placed(_fresh_prefix(), replace(each.about, epoch=each.about.epoch + 1)) for name, each in placed.items()}


def _fresh_prefix() -> bytes:
    return _prefix(secrets.randbits(63))


def _prefix(number: int) -> bytes:
    return number.to_bytes(PREFIX_BYTES, "big")
