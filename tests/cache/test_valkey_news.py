"""Replicas hear of each other's changes, and nobody watches while they cannot."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.valkey import Server
from services.cache.invalidations import Change, Changed, Cleared, Event, Invalidations
from services.cache.store import Entry
from services.cache.valkey import ValkeyStore
from services.cache.valkey_news import CHANNEL, decode, encode, hearing
from services.cache.valkey_server import ValkeyServer
from services.chassis import faults
from tests.cache.valkey_servers import connected, own_server

__all__ = ["own_server"]  # a fixture

LONG_S = 30.0
MOST_KEYS = 1000


async def soon(_: float) -> None:
    """In place of a pause."""
    await asyncio.sleep(0)


@asynccontextmanager
async def heard(server: ValkeyServer, proof_s: float = LONG_S) -> AsyncIterator[Invalidations]:
    invalidations = Invalidations(MOST_KEYS)
    async with hearing(server, invalidations, proof_s=proof_s, pause=soon):
        yield invalidations


async def events(invalidations: Invalidations) -> AsyncIterator[Event]:
    """Of a watcher, begun as soon as one may watch."""
    while True:
        try:
            with invalidations.watching(()) as watcher:
                yield Changed("begun", ())
                async for event in watcher:
                    yield event
            return
        except faults.Unavailable:
            await asyncio.sleep(0)


async def following(told: AsyncIterator[Event]) -> Event:
    async with asyncio.timeout(LONG_S):
        return await anext(told)


async def pings(server: ValkeyServer) -> int:
    """That the server has answered."""
    (counted,) = await server.send(lambda pipeline: pipeline.info("commandstats"))
    return int(counted["cmdstat_ping"]["calls"])


async def test_a_replica_hears_what_another_stores_deletes_and_clears(own_server: Server) -> None:
    async with connected(own_server) as one, connected(own_server) as other, heard(other) as invalidations:
        told = events(invalidations)
        await following(told)
        store = ValkeyStore(one)
        await store.put("n", [Entry(b"a", b"1", LONG_S), Entry(b"\0", b"2", LONG_S)])
        await store.delete("n", [b"a"])
        await store.clear("n")
        assert [await following(told) for _ in range(3)] == [Changed("n", (b"a", b"\0")), Changed("n", (b"a",)), Cleared("n")]


async def test_what_is_told_is_done_already(own_server: Server) -> None:
    async with connected(own_server) as one, connected(own_server) as other, heard(other) as invalidations:
        told = events(invalidations)
        await following(told)
        store, reader = ValkeyStore(one), ValkeyStore(other)
        for number in range(30):
            storing = asyncio.ensure_future(store.put("n", [Entry(b"k", b"%d" % number, LONG_S)]))
            await following(told)
            assert await reader.get("n", [b"k"]) == [b"%d" % number]
            await storing


async def test_watching_ends_with_the_server_and_may_begin_again_with_it(own_server: Server) -> None:
    async with connected(own_server) as server, heard(server) as invalidations:
        told = events(invalidations)
        await following(told)
        own_server.kill()
        with pytest.raises(StopAsyncIteration):
            await following(told)
        with pytest.raises(faults.Unavailable), invalidations.watching(()):
            pass
        own_server.start()
        again = events(invalidations)
        await following(again)
        async with connected(own_server) as other:
            await ValkeyStore(other).clear("n")
        assert await following(again) == Cleared("n")


async def test_a_connection_that_has_gone_silent_is_given_up(own_server: Server) -> None:
    async with connected(own_server) as server, heard(server, proof_s=0.05) as invalidations:
        told = events(invalidations)
        await following(told)
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGSTOP)
        with pytest.raises(StopAsyncIteration):
            await following(told)
        own_server.process.send_signal(signal.SIGCONT)
        await following(events(invalidations))


async def test_a_quiet_connection_that_is_alive_is_kept(own_server: Server) -> None:
    async with connected(own_server) as server, heard(server, proof_s=0.25) as invalidations:  # longer than a busy machine's pauses
        told = events(invalidations)
        await following(told)
        event = asyncio.ensure_future(following(told))
        while await pings(server) < 3:
            assert not event.done()
        await ValkeyStore(server).clear("n")
        assert await event == Cleared("n")


async def test_a_message_of_somebody_else_ends_watching_and_not_the_service(own_server: Server) -> None:
    async with connected(own_server) as server, heard(server) as invalidations:
        told = events(invalidations)
        await following(told)
        await server.send(lambda pipeline: pipeline.publish(CHANNEL, b"hello"))
        with pytest.raises(StopAsyncIteration):
            await following(told)
        await following(events(invalidations))


NAMES = st.text("abc._:/@-", min_size=1, max_size=20)


@given(st.one_of(st.builds(Cleared, NAMES), st.builds(Changed, NAMES, st.lists(st.binary(max_size=300), max_size=5).map(tuple))))
def test_decode_undoes_encode(change: Change) -> None:
    assert decode(encode(change)) == change


@given(message=st.binary(max_size=40))
def test_what_was_not_encoded_is_refused_or_means_itself(message: bytes) -> None:
    try:
        change = decode(message)
    except ValueError:
        return
    assert encode(change) == message
