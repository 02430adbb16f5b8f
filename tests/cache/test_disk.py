"""The disk store across restarts, evictions, damage and a full disk."""

import asyncio
import pickle
import resource
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.cache.disk import disk_store
from services.cache.lock import FolderTaken
from services.cache.store import Entry
from services.chassis import faults

LRU, LRS, LFU = "least-recently-used", "least-recently-stored", "least-frequently-used"
DAY_S = 86_400.0
ROOM = 1 << 26


def entries(*keys: bytes, size: int = 100) -> list[Entry]:
    """Values that carry their key, so that a mixed-up one is seen."""
    return [Entry(key, value_of(key, size), DAY_S) for key in keys]


def value_of(key: bytes, size: int = 100) -> bytes:
    return key.ljust(size, b".")


def database(folder: Path) -> Path:
    return folder / "entries" / "cache.db"


def execute(folder: Path, statement: str, *arguments: object) -> None:
    """Changes the database behind the store's back."""
    connection = sqlite3.connect(database(folder))
    with connection:
        assert connection.execute(statement, arguments).rowcount != 0  # -1 for what changes no rows
    connection.close()


@contextmanager
def no_file_grows_past(limit_bytes: int) -> Iterator[None]:
    """As on a full disk: the kernel refuses each write beyond. Take `capsys` with it, or the log's file is refused as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_entries_survive_a_restart_with_their_time(tmp_path: Path, clock: Callable[[], float]) -> None:
    async with disk_store(tmp_path, LRU, ROOM, clock) as store:
        await store.put("n", [Entry(b"a", b"1", 100), Entry(b"b", b"2", 200)])
    clock.now_s += 150  # type: ignore[attr-defined]
    async with disk_store(tmp_path, LRU, ROOM, clock) as store:
        assert await store.get("n", [b"a", b"b"]) == [None, b"2"]


async def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    async with disk_store(tmp_path / "new" / "cache", LRU, ROOM):
        for folder in (tmp_path / "new" / "cache", tmp_path / "new" / "cache" / "entries"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_second_store_on_the_folder_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, ROOM):
        with pytest.raises(FolderTaken, match="in use by another cache process"):
            async with disk_store(tmp_path, LRU, ROOM):
                pass
    async with disk_store(tmp_path, LRU, ROOM) as store:
        assert await store.get("n", [b"a"]) == [None]


async def fill_beyond(folder: Path, policy: str, look_up: int) -> list[bool]:
    """Stores 0 to 9, looks 0 up `look_up` times and 1 to 5 once, stores more than there is room for; tells which of 0 to 9 are left."""
    first = [b"%d" % number for number in range(10)]
    async with disk_store(folder, policy, 1 << 20) as store:
        await store.put("n", entries(*first, size=40_000))
        for _ in range(look_up):
            await store.get("n", [b"0"])
        await store.get("n", first[1:6])
        await store.put("n", entries(*[b"later %d" % number for number in range(16)], size=40_000))
        stats = store.stats()
        assert stats.bytes <= 1 << 20
        assert stats.evictions == 26 - stats.entries > 0
        return [value is not None for value in await store.get("n", first)]


async def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    left = await fill_beyond(tmp_path, LRU, look_up=1)
    assert not any(left[6:])


async def test_the_least_recently_stored_goes_first_however_often_it_was_used(tmp_path: Path) -> None:
    left = await fill_beyond(tmp_path, LRS, look_up=50)
    assert not left[0]
    assert left == sorted(left)


async def test_the_least_frequently_used_goes_first(tmp_path: Path) -> None:
    left = await fill_beyond(tmp_path, LFU, look_up=50)
    assert left[:6] == [True] * 6


async def test_an_eviction_takes_no_more_than_it_must(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, 4 << 20) as store:
        for number in range(12):
            await store.put("n", entries(*[b"%d %d" % (number, item) for item in range(32)], size=20_000))
        assert store.stats().bytes > 3 << 20


# One row of a damaged disk or of a stranger's hand; each is a miss, is counted once, is dropped, and leaves its neighbour alone.
DAMAGE = {
    "flipped bits": ("UPDATE Cache SET value = zeroblob(length(value)) WHERE substr(key, 9) = ?", ()),
    "cut short": ("UPDATE Cache SET value = substr(value, 1, 10) WHERE substr(key, 9) = ?", ()),
    "another's value": (
        "UPDATE Cache SET value = (SELECT value FROM Cache WHERE substr(key, 9) = CAST('b' AS BLOB)) WHERE substr(key, 9) = ?",
        (),
    ),
    "a number": ("UPDATE Cache SET value = 7 WHERE substr(key, 9) = ?", ()),
    "nothing": ("UPDATE Cache SET value = NULL WHERE substr(key, 9) = ?", ()),
    "a pickle": ("UPDATE Cache SET mode = 4, value = ? WHERE substr(key, 9) = ?", (pickle.dumps({"any": "object"}),)),
    "a file": ("UPDATE Cache SET mode = 2, value = NULL, filename = ? WHERE substr(key, 9) = ?", ("../../precious",)),
    "an unknown mode": ("UPDATE Cache SET mode = 99 WHERE substr(key, 9) = ?", ()),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_corrupt_row_is_a_miss_and_is_counted(tmp_path: Path, damage: str) -> None:
    folder, precious = tmp_path / "cache", tmp_path / "precious"
    precious.write_bytes(b"not ours")
    async with disk_store(folder, LRU, ROOM) as store:
        await store.put("n", entries(b"a", b"b"))
        statement, arguments = DAMAGE[damage]
        execute(folder, statement, *arguments, b"a")
        assert await store.get("n", [b"a", b"b"]) == [None, value_of(b"b")]
        assert await store.get("n", [b"a"]) == [None]
        assert (store.stats().corrupt, store.stats().entries) == (1, 1)
        assert await store.put("n", entries(b"a")) == [True]
        assert await store.get("n", [b"a"]) == [value_of(b"a")]
    assert precious.read_bytes() == b"not ours"


class Mine:
    """Tells when it is unpickled."""

    unpickled = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return (step_on_it, ())


def step_on_it() -> None:
    Mine.unpickled = True


async def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("n", entries(b"a"))
        execute(tmp_path, "UPDATE Cache SET mode = 4, value = ? WHERE substr(key, 9) = ?", pickle.dumps(Mine()), b"a")
        assert await store.get("n", [b"a"]) == [None]
    assert not Mine.unpickled


DATABASE_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "no database": lambda content: b"this is not a database" * 1_000,
    "a foreign header": lambda content: b"\xff" * 100 + content[100:],
    "zeroed pages": lambda content: content[:4096] + bytes(len(content) - 4096),
    "cut in half": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("damage", DATABASE_DAMAGE)
async def test_a_damaged_database_is_moved_aside_at_the_start_or_reads_as_misses(tmp_path: Path, damage: str) -> None:
    keys = [b"%d" % number for number in range(50)]
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("n", entries(*keys, size=3_000))
    database(tmp_path).write_bytes(DATABASE_DAMAGE[damage](database(tmp_path).read_bytes()))
    async with disk_store(tmp_path, LRU, ROOM) as store:
        for key, value in zip(keys, await store.get("n", keys), strict=True):
            assert value in (None, value_of(key, 3_000))
        assert await store.get("n", keys) != [value_of(key, 3_000) for key in keys]
        await store.put("n", entries(*keys))
        assert await store.put("n", entries(*keys)) == [True] * len(keys)
        assert await store.get("n", keys) == [value_of(key) for key in keys]
    assert (tmp_path / "damaged" / "cache.db").exists()


@pytest.mark.parametrize("statement", ["DROP TABLE Cache", "DROP TABLE Settings", "DELETE FROM Settings", "DROP INDEX Cache_key_raw"])
async def test_a_database_that_breaks_under_the_running_store_is_replaced_and_counted(tmp_path: Path, statement: str) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("n", entries(b"a"))
        execute(tmp_path, statement)
        assert await store.get("n", [b"a"]) in ([None], [value_of(b"a")])
        await store.put("n", entries(b"b"))
        assert await store.put("n", entries(b"c")) == [True]
        assert await store.get("n", [b"c"]) == [value_of(b"c")]
        assert store.stats().corrupt == (0 if "INDEX" in statement else 1)  # without its index the database is slower and right


async def test_forgetting_succeeds_on_a_broken_database(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        for forget in (store.clear("n"), store.delete("n", [b"a"])):
            assert await store.put("n", entries(b"a")) == [True]
            execute(tmp_path, "DROP TABLE Cache")
            assert await forget in (1, None)
            assert await store.get("n", [b"a"]) == [None]


async def test_a_full_disk_refuses_what_it_cannot_take_and_keeps_the_rest(tmp_path: Path, capsys: object) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        assert await store.put("n", entries(b"before")) == [True]
        with no_file_grows_past(300_000):
            small, large = entries(b"small")[0], entries(b"large", size=1_000_000)[0]
            assert await store.put("n", [small, large]) == [True, False]
            assert await store.get("n", [b"before", b"small", b"large"]) == [value_of(b"before"), value_of(b"small"), None]
        assert await store.put("n", [large]) == [True]
        assert await store.get("n", [b"large"]) == [large.value]
        assert store.stats().corrupt == 0


async def test_a_disk_that_takes_nothing_makes_puts_refused_and_forgetting_unavailable(tmp_path: Path, capsys: object) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        assert await store.put("n", entries(b"before")) == [True]
        with no_file_grows_past(1):
            assert await store.put("n", entries(b"a", b"b")) == [False, False]
            assert await store.get("n", [b"a", b"b"]) == [None, None]
            with pytest.raises(faults.Unavailable):
                await store.delete("n", [b"before"])
            with pytest.raises(faults.Unavailable):
                await store.clear("n")
        assert await store.get("n", [b"before"]) == [value_of(b"before")]
        assert store.stats().corrupt == 0


async def test_a_caller_that_gives_up_leaves_the_store_in_order(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        puts = [asyncio.ensure_future(store.put("n", entries(b"%d" % number))) for number in range(50)]
        await asyncio.sleep(0)
        for put in puts[::2]:
            put.cancel()
        results = await asyncio.gather(*puts, return_exceptions=True)
        values = await store.get("n", [b"%d" % number for number in range(50)])
    assert results[1::2] == [[True]] * 25
    assert values[1::2] == [value_of(b"%d" % number) for number in range(1, 50, 2)]


async def test_parts_of_two_names_never_make_a_third(tmp_path: Path) -> None:
    async with disk_store(tmp_path, LRU, ROOM) as store:
        await store.put("ab", entries(b"c"))
        await store.put("a", entries(b"\0c"))
        assert await store.get("a", [b"bc", b"c", b"\0c"]) == [None, None, value_of(b"\0c")]
        assert await store.clear("a") == 1
        assert await store.get("ab", [b"c"]) == [value_of(b"c")]
