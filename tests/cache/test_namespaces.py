"""Clears, epochs and lives on disk: over restarts, damage, a full disk, other shards, and what a clear leaves to remove."""

import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.cache.disk import disk_store
from services.cache.namespaces import TABLE_FILE
from services.cache.store import Entry, Namespace
from services.chassis import faults

LRU = "least-recently-used"
ROOM = 1 << 26


def entries(count: int, size: int = 100) -> list[Entry]:
    return [Entry(b"%d" % number, b"%d" % number * size, 1e4) for number in range(count)]


@contextmanager
def nothing_can_be_written() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_epochs_lives_and_what_was_cleared_survive_a_restart(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("n", entries(3))
        assert await store.clear("n") == 1
        await store.configure("n", 7.5)
        await store.put("n", entries(1))
    async with disk_store(tmp_path, LRU, ROOM) as store:
        assert await store.describe("n") == Namespace(1, 7.5)
        assert await store.get("n", [b"0", b"1", b"2"]) == [entries(1)[0].value, None, None]
        assert await store.put("n", entries(3), epoch=0) == [False] * 3
        assert await store.describe("never seen") == Namespace()


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_clear_touches_no_row_and_what_it_left_is_removed_later(tmp_path: Path, shards: int) -> None:
    async with disk_store(tmp_path, LRU, ROOM, shards=shards) as store:
        await store.put("unswept", [Entry(b"kept", b"1", 1e4)])
        await store.put("n", entries(1_000))
        await store.clear("n")
        assert await store.get("n", [b"1"]) == [None]
        await store.put("n", entries(2))
        while store.stats().entries != 3:
            await store.get("unswept", [b"?"])  # waits its turn behind a slice
        assert await store.get("unswept", [b"kept"]) == [b"1"]
        assert await store.get("n", [b"0", b"1", b"2"]) == [entries(2)[0].value, entries(2)[1].value, None]


async def test_a_restart_in_the_middle_of_a_removal_goes_on_with_it(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("n", entries(1_000))
        await store.clear("n")
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("unswept", [Entry(b"kept", b"1", 1e4)])
        while store.stats().entries != 1:
            await store.get("unswept", [b"kept"])
        assert await store.get("unswept", [b"kept"]) == [b"1"]


async def test_what_was_cleared_is_evicted_before_what_can_be_reached(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, 3 << 20) as store:
        await store.put("n", entries(60, 7_500))
        await store.put("old", entries(2_000))  # more than are removed by the time of the next put
        await store.clear("old")
        await store.put("n", [Entry(b"new %d" % number, bytes(25_000), 1e4) for number in range(60)])
        assert store.stats().evictions == 0
        assert None not in await store.get("n", [entry.key for entry in entries(60)])


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2)])
async def test_with_other_shards_nothing_of_before_is_reached(tmp_path: Path, before: int, after: int) -> None:
    keys = [entry.key for entry in entries(20)]
    async with disk_store(tmp_path, LRU, ROOM, shards=before) as store:
        await store.put("n", entries(20))
        await store.configure("n", 5)
    async with disk_store(tmp_path, LRU, ROOM, shards=after) as store:
        assert await store.get("n", keys) == [None] * 20
        assert await store.describe("n") == Namespace(1, 5)
        assert await store.put("n", entries(20)) == [True] * 20
        await store.delete("n", keys)
    async with disk_store(tmp_path, LRU, ROOM, shards=before) as store:
        assert await store.get("n", keys) == [None] * 20


TABLE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "no database": lambda file: file.write_bytes(b"this is not a database" * 1_000),
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "gone": lambda file: file.unlink(),
    "a prefix that is none": lambda file: execute(file, "UPDATE Namespaces SET prefix = 'x'"),
    "a prefix below none": lambda file: execute(file, "UPDATE Namespaces SET prefix = -1"),
    "an epoch that is none": lambda file: execute(file, "UPDATE Namespaces SET epoch = 1.5"),
    "a life that is none": lambda file: execute(file, "UPDATE Namespaces SET ttl_s = 'x'"),
    "other columns": lambda file: execute(file, "ALTER TABLE Namespaces RENAME COLUMN prefix TO head"),
}


def execute(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file)
    with connection:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("damage", TABLE_DAMAGE)
async def test_a_table_that_was_lost_brings_nothing_back(tmp_path: Path, damage: str) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("n", entries(3))
        await store.clear("n")
        await store.put("n", entries(1))
    TABLE_DAMAGE[damage](tmp_path / TABLE_FILE)
    async with disk_store(tmp_path, LRU, ROOM) as store:
        assert await store.get("n", [b"0", b"1", b"2"]) == [None] * 3
        assert await store.put("n", entries(2)) == [True, True]
        assert await store.get("n", [b"0", b"1", b"2"]) == [entries(2)[0].value, entries(2)[1].value, None]
        assert await store.clear("n") == 1


async def test_a_table_that_breaks_under_the_running_store_is_written_anew_and_no_epoch_comes_again(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("n", entries(3))
        await store.put("other", entries(3))
        await store.clear("other")
        (tmp_path / TABLE_FILE).write_bytes(b"this is not a database" * 1_000)
        assert await store.clear("n") == 1
        assert await store.get("n", [b"0"]) == [None]
        assert (await store.describe("other")).epoch == 2
        assert await store.put("n", entries(3)) == [True] * 3
    async with disk_store(tmp_path, LRU, ROOM) as store:
        assert await store.get("n", [b"0"]) == [entries(1)[0].value]
        assert await store.describe("other") == Namespace(2)


async def test_a_disk_that_takes_nothing_changes_no_namespace(tmp_path: Path, capsys: object) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("n", entries(1))
        with nothing_can_be_written():
            assert await store.put("new", entries(2)) == [False, False]
            for change in (store.clear("n"), store.clear("new"), store.configure("n", 5)):
                with pytest.raises(faults.Unavailable):
                    await change
        assert await store.describe("n") == Namespace()
        assert await store.get("n", [b"0"]) == [entries(1)[0].value]
        assert await store.clear("n") == 1
        assert await store.put("new", entries(2)) == [True, True]


async def test_a_look_at_what_was_never_stored_leaves_nothing(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        assert await store.get("n", [b"a", b"b"]) == [None, None]
        await store.delete("n", [b"a"])
    connection = sqlite3.connect(tmp_path / TABLE_FILE)
    assert connection.execute("SELECT count(*) FROM Namespaces").fetchone() == (0,)
    connection.close()
