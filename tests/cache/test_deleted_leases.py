"""What was computed before a Delete is not stored after it, in any store and however the two meet."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.valkey import Server
from services.cache.disk import disk_store
from services.cache.leases import Leases, LocalLeases
from services.cache.memory import MemoryStore
from services.cache.single_flight import Limits, Outcome, SingleFlight
from services.cache.store import Entry, Namespace, Store
from services.cache.valkey import ValkeyStore
from services.cache.valkey_leases import ValkeyLeases
from services.cache.valkey_server import ValkeyServer
from tests.cache.valkey_servers import connected, own_server, shared_server, valkey

__all__ = ["own_server", "shared_server", "valkey"]  # fixtures

LIMITS = Limits(answer_bytes=1 << 20, slice=8, max_key_bytes=8)
LEASE_S = 60.0


def flight(store: Any, leases: Leases) -> SingleFlight:
    return SingleFlight(store, store, leases, LIMITS)


def old(key: bytes) -> Entry:
    return Entry(key, b"computed before", 3600.0)


@pytest.fixture(params=["memory", "disk", "valkey"])
async def flights(request: pytest.FixtureRequest, tmp_path: Path, clock: Callable[[], float]) -> AsyncIterator[SingleFlight]:
    async with AsyncExitStack() as stack:
        if request.param == "valkey":
            server: ValkeyServer = await stack.enter_async_context(connected(request.getfixturevalue("own_server")))
            yield flight(ValkeyStore(server), ValkeyLeases(server))
        elif request.param == "disk":
            store: Store = await stack.enter_async_context(disk_store(tmp_path, "least-recently-used", 1 << 26))
            yield flight(store, LocalLeases(clock, 100))
        else:
            yield flight(MemoryStore(1 << 20, clock), LocalLeases(clock, 100))


async def lease(flights: SingleFlight, *keys: bytes) -> dict[bytes, int]:
    return dict((await flights.get_or_lease("n", keys, LEASE_S, 0)).leases)


async def test_a_delete_ends_the_leases_of_its_keys_and_of_no_other(flights: SingleFlight) -> None:
    held = await lease(flights, b"a", b"b")
    await flights.delete("n", [b"a", b"unknown"])
    assert await flights.put("n", [old(b"a"), old(b"b")], held) == [Outcome.LEASE_LOST, Outcome.STORED]
    assert await flights.get("n", [b"a", b"b"]) == [None, b"computed before"]
    assert flights.stats().leases_lost == 1


async def test_who_waits_for_a_deleted_key_computes_it(flights: SingleFlight) -> None:
    held = await lease(flights, b"a")
    waiting = asyncio.ensure_future(flights.get_or_lease("n", [b"a"], LEASE_S, LEASE_S))
    await flights.get("n", [b"a"])  # by its end the one above waits, or finds it free
    await flights.delete("n", [b"a"])
    async with asyncio.timeout(LEASE_S / 2):
        found = await waiting
    assert found.leases[b"a"] not in (0, held[b"a"])


async def test_a_new_lease_stores_after_a_delete(flights: SingleFlight) -> None:
    await lease(flights, b"a")
    await flights.delete("n", [b"a"])
    assert await flights.put("n", [old(b"a")], await lease(flights, b"a")) == [Outcome.STORED]


class Gated:
    """A store whose puts begin when the gate opens."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.get, self.delete, self.clear, self.describe = store.get, store.delete, store.clear, store.describe
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        self.stats = store.stats

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        self.entered.set()
        await self.gate.wait()
        return await self._store.put(namespace, entries, epoch=epoch)


@asynccontextmanager
async def storing(flights: SingleFlight, store: Gated) -> AsyncIterator["asyncio.Task[list[Outcome]]"]:
    """A value on its way into the store, past the look at its lease."""
    put = asyncio.ensure_future(flights.put("n", [old(b"a")], await lease(flights, b"a")))
    await store.entered.wait()
    yield put
    await asyncio.gather(put, return_exceptions=True)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("gives_up", [False, True])
async def test_a_delete_waits_for_what_is_being_stored(clock: Callable[[], float], gives_up: bool) -> None:
    store = Gated(MemoryStore(1 << 20, clock))
    flights = flight(store, LocalLeases(clock, 100))
    async with storing(flights, store) as put:
        deleting = asyncio.ensure_future(flights.delete("n", [b"a"]))
        if gives_up:
            put.cancel()
        await turns()
        assert not deleting.done()
        store.gate.set()
        await deleting
        assert await flights.get("n", [b"a"]) == [None]


async def test_what_another_replica_deleted_while_it_was_stored_here_is_taken_back(valkey: ValkeyServer, shared_server: Server) -> None:
    store = Gated(ValkeyStore(valkey))
    here = flight(store, ValkeyLeases(valkey))
    async with connected(shared_server) as second, storing(here, store) as put:
        other = flight(ValkeyStore(second), ValkeyLeases(second))
        await other.delete("n", [b"a"])
        store.gate.set()
        assert await put == [Outcome.LEASE_LOST]
        assert await other.get("n", [b"a"]) == [None]


async def test_a_delete_behind_another_replicas_clear_ends_the_leases_of_the_new_epoch(valkey: ValkeyServer, shared_server: Server) -> None:
    here = flight(ValkeyStore(valkey), ValkeyLeases(valkey))
    await here.get_or_lease("n", [b"a"], LEASE_S, 0)  # knows the epoch of before
    async with connected(shared_server) as second:
        store = ValkeyStore(second)
        other = flight(store, ValkeyLeases(second))
        await store.clear("n")
        held = await lease(other, b"a")
        await here.delete("n", [b"a"])
        assert await other.put("n", [old(b"a")], held) == [Outcome.LEASE_LOST]
        assert await other.get("n", [b"a"]) == [None]


class Cleared(MemoryStore):
    """Is cleared by somebody else while it deletes."""

    leases: LocalLeases
    held: dict[bytes, int] | None = None

    async def delete(self, namespace: str, keys: Sequence[bytes]) -> None:
        await super().delete(namespace, keys)
        if self.held is None:
            await self.clear(namespace)
            self.held = await lease(flight(self, self.leases), b"a")


async def test_leases_taken_after_a_clear_amid_a_delete_end_too(clock: Callable[[], float]) -> None:
    store = Cleared(1 << 20, clock)
    store.leases = LocalLeases(clock, 100)
    flights = flight(store, store.leases)
    await flights.delete("n", [b"a"])
    assert store.held
    assert await store.describe("n") == Namespace(1)
    assert await flights.put("n", [old(b"a")], store.held) == [Outcome.LEASE_LOST]
