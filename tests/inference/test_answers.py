"""Remembered answers: bounded in memory, and a cache service that may be slow, wrong or gone."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.answer_key import encode
from services.inference.answers import Answers, MemoryAnswers
from services.inference.layout import Values
from services.inference.shared_answers import SharedAnswers
from tests.inference.fakes import FakeClock

PATIENT_S = 20.0  # a time-out that only a broken test meets
HASTY_S = 0.01
MOST = 1024  # keys that the cache service takes in a call, by default


def answer(number: float, size: int = 4) -> Values:
    return {"y": np.full(size, number, np.float32)}


def number_of(outputs: Values) -> float:
    return float(outputs["y"][0])


def key(number: int) -> bytes:
    return number.to_bytes(4)


def digest(number: int) -> bytes:
    """A key as real ones are: every byte of it evenly distributed."""
    return hashlib.blake2b(key(number)).digest()


@dataclass(frozen=True)
class Looked:
    """As hone.cached.Cached."""

    value: bytes | None = None
    lease: int = 0
    leased: bool = False


class FakeCache:
    """Answers once `gate` is open; `fault` is raised instead. Gives leases where `leasing`, and lets callers wait until `news`."""

    def __init__(self, *, leasing: bool = False) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.kept: dict[bytes, bytes] = {}
        self.gets: list[list[bytes]] = []
        self.waits: list[list[bytes]] = []
        self.puts: list[dict[bytes, bytes]] = []
        self.put_leases: dict[bytes, int] = {}
        self.cleared: list[str] = []
        self.fault: Exception | None = None
        self.mangle: Callable[[list[bytes | None]], list[bytes | None]] = lambda values: values
        self.leases: dict[bytes, int] = {}
        self.news = asyncio.Event()
        self._leasing = leasing
        self._given = 0

    async def get_or_lease(self, namespace: str, keys: Sequence[bytes], *, lease: float, wait: float, timeout: float) -> list[Looked]:
        (self.waits if wait else self.gets).append(list(keys))
        await self._act(len(keys))
        if wait:
            await self.news.wait()
        values = self.mangle([self.kept.get(key) for key in keys])
        return [self._looked(key, value) for key, value in zip(keys, values, strict=False)] + [
            Looked(value) for value in values[len(keys) :]
        ]

    def _looked(self, key: bytes, value: bytes | None) -> Looked:
        if value is not None or not self._leasing:
            return Looked(value)
        if key in self.leases:
            return Looked(leased=True)
        self._given += 1
        self.leases[key] = self._given
        return Looked(lease=self._given)

    async def put(self, namespace: str, entries: Mapping[bytes, bytes], *, ttl: float, leases: Mapping[bytes, int], timeout: float) -> None:
        self.puts.append(dict(entries))
        await self._act(len(entries))
        self.put_leases.update(leases)
        self.kept.update(entries)
        self._end(leases)

    async def release(self, namespace: str, leases: Mapping[bytes, int], *, timeout: float) -> None:
        await self._act(len(leases))
        self._end(leases)

    async def clear(self, namespace: str) -> None:
        await self._act(0)
        self.cleared.append(namespace)

    def _end(self, leases: Mapping[bytes, int]) -> None:
        for key, lease in leases.items():
            assert self.leases.pop(key) == lease

    async def _act(self, items: int) -> None:
        if items > MOST:
            raise ValueError("more than one call takes")
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault


@asynccontextmanager
async def sharing(
    cache: FakeCache, *, timeout_s: float = PATIENT_S, max_pending: int = 4096, clock: FakeClock | None = None
) -> AsyncIterator[SharedAnswers]:
    shared = SharedAnswers(cache, timeout_s=timeout_s, ttl_s=60, max_pending=max_pending, clock=clock or FakeClock())
    try:
        yield shared
    finally:
        await shared.close()


async def turns(count: int = 5) -> None:
    """Lets every task that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


# In memory


def test_memory_forgets_the_least_recently_used_first() -> None:
    one = MemoryAnswers(1 << 20)
    one.put("n", key(0), answer(0))
    memory = MemoryAnswers(3 * one.bytes)
    for number in range(3):
        memory.put("n", key(number), answer(number))
    assert memory.get(key(0)) is not None
    memory.put("n", key(3), answer(3))
    assert [memory.get(key(number)) is not None for number in range(4)] == [True, False, True, True]


@given(
    max_bytes=st.integers(0, 5000),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(1, 300)), max_size=60),
)
def test_memory_stays_within_its_bytes_and_never_answers_wrongly(max_bytes: int, steps: list[tuple[bool, int, int]]) -> None:
    memory = MemoryAnswers(max_bytes)
    put: set[int] = set()
    for is_put, number, size in steps:
        if is_put:
            memory.put("n", key(number), answer(number, size))
            put.add(number)
        elif (found := memory.get(key(number))) is not None:
            assert number in put
            assert number_of(found) == number
        assert 0 <= memory.bytes <= max_bytes


def test_memory_keeps_copies() -> None:
    """A view would keep its whole batch alive, and change with it."""
    memory, batch = MemoryAnswers(1 << 20), np.ones((4, 8), np.float32)
    memory.put("n", key(0), {"y": batch[0]})
    batch[:] = 9
    found = memory.get(key(0))
    assert found is not None
    assert number_of(found) == 1
    assert found["y"].base is None


def test_memory_forgets_one_namespace_alone() -> None:
    memory = MemoryAnswers(1 << 20)
    for number in range(6):
        memory.put(f"version {number % 2}", key(number), answer(number))
    whole = memory.bytes
    memory.drop("version 1")
    assert [memory.get(key(number)) is not None for number in range(6)] == [True, False] * 3
    assert memory.bytes == whole / 2
    memory.drop("version 0")
    assert memory.bytes == 0


# The cache service


async def test_very_large_answers_are_not_remembered() -> None:
    answers = Answers(MemoryAnswers(1 << 24), None)
    answers.put("n", {key(1): {"logits": np.zeros((512, 1024), np.float32)}, key(2): answer(2.0)}, 0.01)
    assert set(await answers.get("n", [key(1), key(2)])) == {key(2)}


async def test_what_was_put_is_got() -> None:
    cache = FakeCache()
    async with sharing(cache) as shared:
        shared.put("n", {key(1): answer(1)})
        await turns()
        found = await shared.get("n", [key(1), key(2)])
    assert {name: number_of(outputs) for name, outputs in found.items()} == {key(1): 1}


async def test_lookups_that_come_while_one_is_under_way_share_the_next_call() -> None:
    cache = FakeCache()
    cache.kept = {key(number): encode(answer(number)) for number in range(10)}
    cache.gate.clear()
    async with sharing(cache) as shared:
        callers = [asyncio.create_task(shared.get("n", [key(0)]))]
        await turns()
        callers += [asyncio.create_task(shared.get("n", [key(number), key(number + 1)])) for number in range(1, 8)]
        await turns()
        cache.gate.set()
        found = await asyncio.gather(*callers)
    assert [set(each) for each in found] == [{key(0)}, *({key(number), key(number + 1)} for number in range(1, 8))]
    assert all(number_of(outputs) == int.from_bytes(name) for each in found for name, outputs in each.items())
    assert cache.gets == [[key(0)], [key(number) for number in range(1, 9)]]


async def test_a_cancelled_lookup_harms_nobody_who_shares_its_call() -> None:
    cache = FakeCache()
    cache.kept = {key(1): encode(answer(1))}
    cache.gate.clear()
    async with sharing(cache) as shared:
        leaver, stayer = (asyncio.create_task(shared.get("n", [key(1)])) for _ in range(2))
        await turns()
        leaver.cancel()
        await turns()
        cache.gate.set()
        assert set(await stayer) == {key(1)}
    assert leaver.cancelled()


async def test_namespaces_are_asked_apart() -> None:
    cache = FakeCache()
    async with sharing(cache) as shared:
        await asyncio.gather(shared.get("a", [key(1)]), shared.get("b", [key(2)]))
    assert cache.gets == [[key(1)], [key(2)]]


async def test_more_rows_than_a_call_takes_go_in_several() -> None:
    cache = FakeCache()
    async with sharing(cache) as shared:
        rows = {key(number): answer(number) for number in range(3 * MOST)}
        shared.put("n", rows)
        await turns(20)
        found = await shared.get("n", list(rows))
    assert set(found) == set(rows)
    assert {len(call) for call in (*cache.gets, *cache.puts)} == {MOST}


async def test_a_hung_cache_costs_one_time_out_and_is_then_left_alone() -> None:
    cache, clock = FakeCache(), FakeClock()
    cache.gate.clear()
    async with sharing(cache, timeout_s=HASTY_S, clock=clock) as shared:
        assert await shared.get("n", [key(1)]) == {}
        calls = len(cache.gets)
        shared.put("n", {key(1): answer(1)})
        for number in range(20):
            async with asyncio.timeout(PATIENT_S):
                assert await shared.get("n", [key(number)]) == {}
        await turns()
    assert (len(cache.gets), cache.puts) == (calls, [])


async def test_a_failing_cache_is_a_miss_and_comes_back_after_the_pause() -> None:
    cache, clock = FakeCache(), FakeClock()
    cache.kept = {key(1): encode(answer(1))}
    cache.fault = ConnectionError("no cache")
    async with sharing(cache, clock=clock) as shared:
        assert await shared.get("n", [key(1)]) == {}
        cache.fault = None
        assert await shared.get("n", [key(1)]) == {}
        clock.now_s += 1.5
        assert set(await shared.get("n", [key(1)])) == {key(1)}
    assert len(cache.gets) == 2


async def asked_after(shared: SharedAnswers, cache: FakeCache, clock: FakeClock, seconds: float) -> bool:
    clock.now_s += seconds
    before = len(cache.gets)
    await shared.get("n", [key(1)])
    return len(cache.gets) > before


async def test_a_cache_that_stays_away_is_asked_less_and_less_often_but_is_asked() -> None:
    cache, clock = FakeCache(), FakeClock()
    cache.fault = ConnectionError("no cache")
    async with sharing(cache, clock=clock) as shared:
        waits = []
        for _ in range(10):
            seconds = 0
            while not await asked_after(shared, cache, clock, 1):
                seconds += 1
            waits.append(seconds)
    assert waits == sorted(waits)
    assert waits[3] > waits[1]
    assert waits[-1] <= 31


@pytest.mark.parametrize(
    "mangle",
    [
        lambda values: values[:-1],
        lambda values: [*values, values[0]],
        lambda values: [],
        lambda values: [value and value[:-1] for value in values],
        lambda values: [b"" for _ in values],
        lambda values: [value and bytes([value[0] ^ 1]) + value[1:] for value in values],
    ],
    ids=["too few", "too many", "none", "cut", "empty", "flipped"],
)
async def test_a_wrong_reply_is_a_miss_and_never_a_wrong_answer(mangle: Callable[[list[bytes | None]], list[bytes | None]]) -> None:
    cache = FakeCache()
    cache.kept = {key(number): encode(answer(number)) for number in range(3)}
    cache.mangle = mangle
    async with sharing(cache) as shared, asyncio.timeout(PATIENT_S / 2):  # at once, not at the time-out
        assert await shared.get("n", [key(0), key(1), key(2)]) == {}


async def test_a_wrong_reply_does_not_end_the_lookups() -> None:
    cache, clock = FakeCache(), FakeClock()
    cache.kept = {key(0): encode(answer(0))}
    cache.mangle = lambda values: []
    async with sharing(cache, clock=clock) as shared:
        await shared.get("n", [key(0)])
        cache.mangle = lambda values: values
        clock.now_s += 10
        assert set(await shared.get("n", [key(0)])) == {key(0)}


async def test_stores_beyond_the_bound_are_dropped() -> None:
    cache = FakeCache()
    cache.gate.clear()
    async with sharing(cache, max_pending=10) as shared:
        shared.put("n", {key(0): answer(0)})
        await turns()  # under way, and hangs
        for number in range(1, 100):
            shared.put("n", {key(number): answer(number)})
        cache.gate.set()
        await turns()
    assert set(cache.kept) == {key(number) for number in range(11)}


async def test_a_store_that_fails_is_lost_and_the_next_one_is_kept() -> None:
    cache, clock = FakeCache(), FakeClock()
    cache.fault = ConnectionError("no cache")
    async with sharing(cache, clock=clock) as shared:
        shared.put("n", {key(1): answer(1)})
        await turns()
        cache.fault = None
        clock.now_s += 10
        shared.put("n", {key(2): answer(2)})
        await turns()
    assert set(cache.kept) == {key(2)}


async def test_closing_ends_what_hangs() -> None:
    cache = FakeCache()
    cache.gate.clear()
    async with sharing(cache, timeout_s=HASTY_S) as shared:
        shared.put("n", {key(1): answer(1)})
        await shared.get("n", [key(1)])
    assert (len(cache.gets), len(cache.puts)) == (1, 1)


# Both


async def test_memory_answers_first_and_learns_from_the_service() -> None:
    cache = FakeCache()
    cache.kept = {key(1): encode(answer(1))}
    async with sharing(cache) as shared:
        answers = Answers(MemoryAnswers(1 << 20), shared)
        answers.put("n", {key(2): answer(2)}, 0.01)
        for _ in range(3):
            found = await answers.get("n", [key(1), key(2), key(3)])
            assert {name: number_of(outputs) for name, outputs in found.items()} == {key(1): 1, key(2): 2}
        await turns()
    assert cache.gets == [[key(1), key(3)], [key(3)], [key(3)]]
    assert set(cache.kept) == {key(1), key(2)}


@pytest.mark.parametrize("memory", [MemoryAnswers(1 << 20), None])
async def test_each_layer_may_be_absent(memory: MemoryAnswers | None) -> None:
    answers = Answers(memory, None)
    assert answers.enabled == (memory is not None)
    answers.put("n", {key(1): answer(1)}, 0.01)
    assert set(await answers.get("n", [key(1)])) == ({key(1)} if memory is not None else set())
    await answers.close()


class Slow(FakeCache):
    """Each call takes `seconds` of the fake clock."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        super().__init__()
        self._clock = clock
        self._seconds = seconds

    async def _act(self, items: int) -> None:
        self._clock.now_s += self._seconds
        await super()._act(items)


async def asked_anew(answers: Answers, numbers: range, clock: FakeClock) -> None:
    """Calls whose questions nobody has asked before, one each tenth of a second."""
    for number in numbers:
        await answers.get("n", [digest(number)])
        answers.put("n", {digest(number): answer(number)}, 0.001)
        clock.now_s += 0.1
        await turns()


async def test_a_cache_that_costs_more_than_computing_is_given_up_and_memory_is_not() -> None:
    clock = FakeClock()
    cache, switched = Slow(clock, 0.005), list[tuple[str, bool]]()
    async with sharing(cache, clock=clock) as shared:
        answers = Answers(MemoryAnswers(1 << 20), shared, switched=lambda layer, on: switched.append((layer, on)), clock=clock)
        await asked_anew(answers, range(600), clock)
        assert switched == [("shared", False)]
        ledger = answers.ledger("n")
        assert (ledger.memory.on, ledger.shared.on) == (True, False)
        assert "a lookup takes 5000 µs per row and knows 0.0% of them" in ledger.shared.reason
        calls = len(cache.gets), len(cache.puts)
        await asked_anew(answers, range(600, 1100), clock)
        assert all(0 < after - before < 20 for before, after in zip(calls, (len(cache.gets), len(cache.puts)), strict=True))
        assert set(await answers.get("n", [digest(1099)])) == {digest(1099)}
        answers.drop("n")
        assert switched == [("shared", False), ("shared", True)]
        assert await answers.get("n", [digest(1099)]) == {}


async def test_a_version_is_judged_by_its_own_lookups() -> None:
    clock = FakeClock()
    cache = Slow(clock, 0.005)
    async with sharing(cache, clock=clock) as shared:
        answers = Answers(None, shared, clock=clock)
        await asked_anew(answers, range(600), clock)
        before = len(cache.gets)
        for number in range(20):
            await answers.get("another", [digest(number)])
        assert len(cache.gets) == before + 20


async def test_a_cache_that_is_left_alone_is_not_judged() -> None:
    cache, clock = FakeCache(), FakeClock()
    cache.fault = ConnectionError("no cache")
    async with sharing(cache, clock=clock) as shared:
        answers = Answers(None, shared, clock=clock)
        await answers.get("n", [digest(0)])
        assert shared.paused
        seen = answers.ledger("n").shared.lookup_s
        for number in range(300):
            await answers.get("n", [digest(number)])
            clock.now_s += 0.001
        assert answers.ledger("n").shared.lookup_s == seen
        assert answers.ledger("n").shared.on
