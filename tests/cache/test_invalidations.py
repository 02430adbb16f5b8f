"""What watchers are told, and what they are told in its place when they read slowly."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache.invalidations import AnnouncedStore, Changed, Cleared, Event, Invalidations, Lost, Watcher
from services.cache.memory import MemoryStore
from services.cache.store import Entry
from services.chassis import faults

NAMES = st.sampled_from(["n", "m"])
CHANGES = st.lists(
    st.one_of(st.builds(Cleared, NAMES), st.builds(Changed, NAMES, st.lists(st.binary(max_size=2), max_size=5).map(tuple))), max_size=30
)


class GatedStore(MemoryStore):
    """Stores when the gate opens, or fails to."""

    def __init__(self) -> None:
        super().__init__(1 << 20, lambda: 0.0)
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        self.fault: Exception | None = None

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        self.entered.set()
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return await super().put(namespace, entries, epoch=epoch)


async def read(watcher: Watcher) -> list[Event]:
    """What a watcher that has ended is left with."""
    return [event async for event in watcher]


@given(changes=CHANGES, namespaces=st.sets(NAMES))
def test_a_watcher_gets_what_it_watches_in_order(changes: list[Cleared | Changed], namespaces: set[str]) -> None:
    async def told() -> list[Event]:
        invalidations = Invalidations(1_000)
        with invalidations.watching(namespaces) as watcher:
            for change in changes:
                invalidations.tell(change)
            invalidations.end()
            return await read(watcher)

    assert asyncio.run(told()) == [change for change in changes if not namespaces or change.namespace in namespaces]


@given(changes=CHANGES, max_keys=st.integers(1, 20))
def test_a_slow_reader_is_told_that_it_lost_something_or_has_all(changes: list[Cleared | Changed], max_keys: int) -> None:
    async def told() -> list[Event]:
        invalidations = Invalidations(max_keys)
        with invalidations.watching([]) as watcher:
            for change in changes:
                invalidations.tell(change)
            invalidations.end()
            return await read(watcher)

    events = asyncio.run(told())
    rest = [event for event in events if not isinstance(event, Lost)]
    assert rest == changes[len(changes) - len(rest) :]
    assert (len(rest) < len(changes)) == (events[:1] == [Lost()])
    assert sum(max(1, len(event.keys)) if isinstance(event, Changed) else 1 for event in rest) <= max_keys


async def test_room_is_the_same_after_something_was_lost() -> None:
    invalidations = Invalidations(1)
    with invalidations.watching([]) as watcher:
        events = aiter(watcher)
        for _ in range(3):
            invalidations.tell(Cleared("a"))
            invalidations.tell(Cleared("b"))
            assert await anext(events) == Lost()


async def test_a_reader_that_waits_is_woken_and_goes_on() -> None:
    invalidations = Invalidations(10)
    with invalidations.watching([]) as watcher:
        events = aiter(watcher)
        for number in range(3):
            next_one = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            invalidations.tell(Cleared(f"n{number}"))
            assert await next_one == Cleared(f"n{number}")


async def test_nobody_watches_past_the_block_or_past_the_end() -> None:
    invalidations = Invalidations(10)
    with invalidations.watching([]):
        assert invalidations.watchers == 1
    assert invalidations.watchers == 0
    invalidations.end()
    with invalidations.watching([]) as late:
        assert await read(late) == []


async def test_a_change_is_told_when_it_is_made_and_not_before() -> None:
    store, invalidations = GatedStore(), Invalidations(10)
    with invalidations.watching([]) as watcher:
        events = aiter(watcher)
        put = asyncio.ensure_future(AnnouncedStore(store, invalidations).put("n", [Entry(b"a", b"1", 60)]))
        told = asyncio.ensure_future(anext(events))
        await store.entered.wait()
        assert not told.done()
        store.gate.set()
        assert await told == Changed("n", (b"a",))
        assert await put == [True]


async def test_a_change_whose_caller_has_gone_is_made_and_told() -> None:
    store, invalidations = GatedStore(), Invalidations(10)
    with invalidations.watching([]) as watcher:
        put = asyncio.ensure_future(AnnouncedStore(store, invalidations).put("n", [Entry(b"a", b"1", 60)]))
        await store.entered.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        store.gate.set()
        assert await anext(aiter(watcher)) == Changed("n", (b"a",))
    assert await store.get("n", [b"a"]) == [b"1"]


async def test_a_change_that_failed_is_told_too_since_it_may_have_been_made() -> None:
    store, invalidations = GatedStore(), Invalidations(10)
    store.fault = faults.Unavailable("as told")
    store.gate.set()
    with invalidations.watching([]) as watcher:
        with pytest.raises(faults.Unavailable):
            await AnnouncedStore(store, invalidations).put("n", [Entry(b"a", b"1", 60)])
        assert await anext(aiter(watcher)) == Changed("n", (b"a",))


async def test_an_announced_store_is_the_store(clock: Callable[[], float]) -> None:
    kept = MemoryStore(1 << 20, clock)
    store = AnnouncedStore(kept, Invalidations(10))
    await store.configure("n", 5)
    assert await store.clear("n") == 1
    assert await store.describe("n") == await kept.describe("n")
    assert await store.put("n", [Entry(b"a", b"1", 60)], epoch=0) == [False]
    assert store.stats() == kept.stats()
