"""The store that compresses: what lies beneath it, and what it makes of what is not its own."""

import os
from collections.abc import Callable

import pytest
import zstandard

from services.cache.compressed import CompressedStore
from services.cache.memory import MemoryStore
from services.cache.store import Entry


@pytest.fixture
def kept(clock: Callable[[], float]) -> MemoryStore:
    return MemoryStore(1 << 26, clock)


async def put(store: CompressedStore, **values: bytes) -> None:
    await store.put("n", [Entry(key.encode(), value, 60) for key, value in values.items()])


async def test_large_values_take_less_room_and_small_ones_are_left_alone(kept: MemoryStore) -> None:
    store = CompressedStore(kept, 1_000, 1 << 20)
    await put(store, large=bytes(100_000), small=bytes(999), noise=os.urandom(5_000))
    large, small, noise = await kept.get("n", [b"large", b"small", b"noise"])
    assert large is not None
    assert len(large) < 1_000
    assert [len(each) for each in (small, noise) if each] == [1_000, 5_001]
    assert await store.get("n", [b"large", b"small"]) == [bytes(100_000), bytes(999)]


async def test_what_was_kept_is_read_whatever_the_setting_is_now(kept: MemoryStore) -> None:
    on, off = CompressedStore(kept, 1, 1 << 20), CompressedStore(kept, 0, 1 << 20)
    await put(on, a=bytes(5_000))
    await put(off, b=bytes(5_000))
    for store in (on, off):
        assert await store.get("n", [b"a", b"b", b"c"]) == [bytes(5_000), bytes(5_000), None]


async def test_a_batch_that_is_worked_through_off_the_loop_is_the_same(kept: MemoryStore) -> None:
    store = CompressedStore(kept, 1, 1 << 20)
    values = {f"k{number}": os.urandom(10_000) * 3 for number in range(20)}
    await put(store, **values)
    assert await store.get("n", [key.encode() for key in values]) == list(values.values())


FRAME = zstandard.ZstdCompressor().compress(bytes(1_000))
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1_000))
FOREIGN = {
    "nothing": b"",
    "an unknown way": b"\2value",
    "no frame": b"\1value",
    "a frame cut short": b"\1" + FRAME[:-1],
    "a frame that does not tell its size": b"\1" + UNSIZED,
    "a frame of more than a value may have": b"\1" + zstandard.ZstdCompressor().compress(bytes(1_001)),
}


@pytest.mark.parametrize("foreign", FOREIGN)
async def test_what_was_not_packed_here_is_a_miss_and_is_counted(kept: MemoryStore, foreign: str) -> None:
    store = CompressedStore(kept, 1, 1_000)
    await kept.put("n", [Entry(b"a", FOREIGN[foreign], 60), Entry(b"b", b"\1" + FRAME, 60)])
    assert await store.get("n", [b"a", b"b", b"c"]) == [None, bytes(1_000), None]
    assert store.stats().corrupt == 1
