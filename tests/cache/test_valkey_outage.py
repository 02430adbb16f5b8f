"""A Valkey server that is killed, hung or not there yet: a miss, and hardly any time."""

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import BlockingConnectionPool, Redis

from benchmarks.suite import free_ports
from benchmarks.valkey import Server
from services.cache.leases import NONE_LEFT
from services.cache.store import Entry, Namespace
from services.cache.valkey import ValkeyStore
from services.cache.valkey_leases import ValkeyLeases
from services.cache.valkey_server import LONGEST_PAUSE_S, SHORTEST_PAUSE_S, ValkeyServer, valkey_server
from services.chassis import faults
from tests.cache.valkey_servers import own_server

__all__ = ["own_server"]  # a fixture

TIMEOUT_S = 0.2
ENTRY = Entry(b"k", b"value", 3600.0)


class Watched(ValkeyServer):
    """Counts what is really asked of the server."""

    asked = 0

    async def _send(self, commands: Any, atomic: bool) -> list[Any]:
        self.asked += 1
        return await super()._send(commands, atomic)


@pytest.fixture
async def server(own_server: Server, clock: Any) -> AsyncIterator[Watched]:
    pool = BlockingConnectionPool(port=own_server.port, protocol=2, timeout=None, max_connections=8)
    yield Watched(Redis(connection_pool=pool), TIMEOUT_S, clock)
    await pool.disconnect()


@pytest.fixture
def store(server: Watched) -> ValkeyStore:
    return ValkeyStore(server)


async def is_without_a_server(store: ValkeyStore) -> None:
    """Every operation's answer in an outage."""
    assert await store.get("n", [b"k", b"other"]) == [None, None]
    assert await store.put("n", [ENTRY]) == [False]
    assert await store.put("n", [ENTRY], epoch=0) == [False]
    for insist in (store.delete("n", [b"k"]), store.clear("n"), store.configure("n", 5.0)):
        with pytest.raises(faults.Unavailable) as caught:
            await insist
        assert caught.value.retry_after_s is not None
    await store.measure()


async def test_a_killed_server_is_a_miss_and_comes_back_empty(own_server: Server, server: Watched, store: ValkeyStore, clock: Any) -> None:
    assert await store.put("n", [ENTRY]) == [True]
    own_server.kill()
    await is_without_a_server(store)
    assert (await ValkeyStore(server).describe("n")) == Namespace()
    own_server.start()
    clock.now_s += SHORTEST_PAUSE_S
    assert await store.get("n", [b"k"]) == [None]
    assert await store.put("n", [ENTRY]) == [True]
    assert await store.get("n", [b"k"]) == [b"value"]


async def test_a_hung_server_costs_one_time_limit_and_then_nothing(
    own_server: Server, server: Watched, store: ValkeyStore, clock: Any
) -> None:
    await store.put("n", [ENTRY])
    assert own_server.process is not None
    own_server.process.send_signal(signal.SIGSTOP)
    server.asked = 0
    begun = asyncio.get_running_loop().time()
    await is_without_a_server(store)
    assert asyncio.get_running_loop().time() - begun < 5 * TIMEOUT_S
    assert server.asked == 1
    own_server.process.send_signal(signal.SIGCONT)
    clock.now_s += SHORTEST_PAUSE_S
    assert await store.get("n", [b"k"]) == [b"value"]


async def test_after_a_pause_one_call_asks_and_the_pauses_grow(own_server: Server, server: Watched, store: ValkeyStore, clock: Any) -> None:
    own_server.kill()
    pause_s, pauses_s = SHORTEST_PAUSE_S, []
    for _ in range(7):
        server.asked = 0
        assert await asyncio.gather(*(store.get("n", [b"k"]) for _ in range(5))) == [[None]] * 5
        # At the first failure all five were under way; later on only one of them is let through.
        assert server.asked == (5 if not pauses_s else 1)
        pauses_s.append(pause_s)
        clock.now_s += pause_s - 0.01
        server.asked = 0
        assert await store.get("n", [b"k"]) == [None]
        assert server.asked == 0
        clock.now_s += 0.01
        pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
    assert pauses_s[-1] == LONGEST_PAUSE_S


async def test_a_server_that_answers_again_is_trusted_again(own_server: Server, server: Watched, store: ValkeyStore, clock: Any) -> None:
    for _ in range(2):
        own_server.kill()
        assert await store.put("n", [ENTRY]) == [False]
        own_server.start()
        clock.now_s += SHORTEST_PAUSE_S  # no longer than the first time
        assert await store.put("n", [ENTRY]) == [True]


async def test_a_service_starts_before_its_server() -> None:
    (port,) = free_ports(1)
    async with valkey_server(f"valkey://127.0.0.1:{port}", TIMEOUT_S) as server:
        await is_without_a_server(ValkeyStore(server))


async def test_without_a_server_every_caller_computes_for_itself(own_server: Server, server: Watched) -> None:
    leases = ValkeyLeases(server)
    (token,) = await leases.take("n", [b"k"], 60.0)
    own_server.kill()
    assert await leases.take("n", [b"other"], 60.0) == [NONE_LEFT]
    assert await leases.keep("n", {b"k": token}) == [False]
    await leases.end("n", {b"k": token})
    await leases.wait("n", [b"k"], 60.0)  # at once
