"""The SQLite database of a disk store, through diskcache: opening it, telling damage from a full disk, and starting afresh."""

import shutil
import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache
import structlog
from diskcache.core import MODE_RAW

log = structlog.get_logger("hone.cache")

DAMAGED_FOLDER = "damaged"
ENTRIES_FOLDER = "entries"

# What the machine is to blame for. Every other error of SQLite says that the file is not what we wrote: our statements are fixed.
ENVIRONMENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_TOOBIG,
    }
)


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache publishes no types
    """Bytes in, bytes out, inside the row.

    diskcache would unpickle whatever a row says is pickled, read the file it names, and on removal delete that file: none of these
    happens here. Values in files of their own were rejected: row and value could then part at a crash or a full disk.
    """

    UNREADABLE = object()  # what `fetch` answers for a row that we did not write

    def put(self, key: object) -> tuple[memoryview, bool]:
        return memoryview(_bytes(key)), True

    def get(self, key: object, raw: bool) -> bytes:
        if not raw:
            raise TypeError("a pickled key")
        return _bytes(key)

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, None, memoryview]:
        return 0, MODE_RAW, None, memoryview(_bytes(value))

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> object:
        return value if mode == MODE_RAW and isinstance(value, bytes) else self.UNREADABLE

    def remove(self, file_path: str) -> None:
        """No row of ours names a file."""


@dataclass(frozen=True, slots=True)
class Database:
    """Three handles on one database, all of the thread that opened them.

    `plain` gets and sets and knows no policy: a lookup that notes its recency costs four times one that does not, and fails on a full
    disk. Its `set` removes a few expired rows as it goes. `ranked` notes recency and evicts. `rows` is for what diskcache cannot: rows by
    the order of their keys, some at a time.
    """

    plain: Any
    ranked: Any
    rows: sqlite3.Connection

    def holdings(self) -> tuple[int, int]:
        """Entries and bytes. Raises sqlite3.DatabaseError when diskcache's counters are damaged, which it tells in many ways."""
        try:
            return int(self.plain.reset("count")), int(self.plain.volume())
        except (TypeError, ValueError) as error:
            raise sqlite3.DatabaseError("the counters are no numbers") from error

    def end_s(self, row: bytes) -> float:
        """When the row ends, in seconds since the epoch; 0 for none, or none of ours. Raises sqlite3.Error."""
        found = self.rows.execute("SELECT expire_time FROM Cache WHERE key = ? AND raw = 1", (row,)).fetchone()
        return found[0] if found is not None and isinstance(found[0], float) else 0.0

    def first_row(self, since: bytes) -> bytes | None:
        """The least key that is not below `since`. Raises sqlite3.Error."""
        found = self.rows.execute("SELECT key FROM Cache WHERE key >= ? ORDER BY key LIMIT 1", (since,)).fetchone()
        return None if found is None else _bytes(found[0])

    def remove_rows(self, since: bytes, most: int, within: bytes | None) -> None:
        """Removes at most `most` rows in the order of their keys, from `since` on and below `within`. Raises sqlite3.Error."""
        until = "" if within is None else " AND key < :within"
        self.rows.execute(
            f"DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache WHERE key >= :since{until} ORDER BY key LIMIT :most)",  # noqa: S608
            {"since": since, "most": most, "within": within},
        )

    def close(self) -> None:
        self.plain.close()
        self.ranked.close()
        self.rows.close()


def open_database(folder: Path, policy: str, max_bytes: int) -> Database:
    """Opens the database in `folder`, after moving aside one that is damaged.

    Raises:
        OSError: the folder or the disk does not let us.
    """
    try:
        return _open(folder, policy, max_bytes)
    except (sqlite3.Error, diskcache.Timeout, TypeError, ValueError, KeyError) as error:
        if not is_damage(error):
            raise OSError(f"cannot open the cache in {folder}: {error!r}") from error
        log.warning("the database cannot be read; it is moved aside and a fresh one begun", folder=str(folder), reason=str(error))
    move_aside(folder)
    try:
        return _open(folder, policy, max_bytes)
    except (sqlite3.Error, diskcache.Timeout) as error:
        raise OSError(f"cannot begin a cache in {folder}: {error!r}") from error


def _open(folder: Path, policy: str, max_bytes: int) -> Database:
    entries = folder / ENTRIES_FOLDER
    entries.mkdir(mode=0o700, parents=True, exist_ok=True)  # parents: a shard's own folder
    entries.chmod(0o700)
    with ExitStack() as opening:
        plain = opening.enter_context(closing(_handle(entries, "none", max_bytes, cull_limit=10)))
        # Without `cull_limit`: diskcache would evict at each `set`, and inside a batch's transaction, where the volume does not shrink, far
        # too much.
        ranked = opening.enter_context(closing(_handle(entries, policy, max_bytes, cull_limit=0)))
        rows = opening.enter_context(closing(sqlite3.connect(entries / diskcache.core.DBNAME, timeout=5, isolation_level=None)))
        rows.execute("PRAGMA synchronous = NORMAL")  # as diskcache's: what a power cut brings back is swept again
        database = Database(plain, ranked, rows)
        database.holdings()
        opening.pop_all()
    return database


def _handle(entries: Path, policy: str, max_bytes: int, cull_limit: int) -> Any:
    return diskcache.Cache(
        str(entries),
        disk=BytesDisk,
        timeout=5,
        eviction_policy=policy,
        size_limit=max_bytes,
        cull_limit=cull_limit,
        tag_index=0,
        statistics=0,
        sqlite_journal_mode="wal",
        sqlite_synchronous=1,
        sqlite_journal_size_limit=16 << 20,
    )


def move_aside(folder: Path) -> None:
    """Keeps the damaged database beside the new one for whoever wants to look, in place of the one kept before."""
    entries, damaged = folder / ENTRIES_FOLDER, folder / DAMAGED_FOLDER
    if entries.exists():
        shutil.rmtree(damaged, ignore_errors=True)
        entries.replace(damaged)


def is_damage(error: BaseException) -> bool:
    """Whether `error` says that the file is broken, not that the disk is full or busy."""
    if isinstance(error, diskcache.Timeout | OSError):
        return False
    root = error
    # After SQLite has rolled back by itself, diskcache's own ROLLBACK fails and hides the first error.
    while isinstance(root.__context__, sqlite3.Error):
        root = root.__context__
    return getattr(root, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in ENVIRONMENT


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"the cache keeps bytes, not {type(value).__name__}")
    return value
