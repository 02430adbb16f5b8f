"""What a store on a Valkey server does beyond what every store does."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from benchmarks.valkey import Server, running_server
from services.cache import sealed
from services.cache.store import Entry
from services.cache.valkey import ValkeyStore, valkey_store
from services.cache.valkey_server import ValkeyServer, valkey_server
from services.chassis import faults
from tests.cache.valkey_servers import TIMEOUT_S, connected, direct, needs_server, own_server, shared_server, valkey

__all__ = ["own_server", "shared_server", "valkey"]  # fixtures

LONG_S = 3600.0


def entries(*keys: bytes, ttl_s: float = LONG_S) -> list[Entry]:
    return [Entry(key, value_of(key), ttl_s) for key in keys]


def value_of(key: bytes) -> bytes:
    return key * 300


class Counted(ValkeyServer):
    """Counts round trips."""

    trips = 0

    async def send(self, commands: Callable[[Any], object], *, atomic: bool = False) -> list[Any]:
        self.trips += 1
        return await super().send(commands, atomic=atomic)


async def test_a_batch_of_a_known_namespace_is_one_round_trip(valkey: ValkeyServer, shared_server: Server) -> None:
    keys = [b"%d" % number for number in range(32)]
    async with direct(shared_server) as client:
        server = Counted(client, TIMEOUT_S)
        store = ValkeyStore(server)
        await store.put("n", entries(b"0"))
        for batch in (
            lambda: store.put("n", entries(*keys)),
            lambda: store.get("n", keys),
            lambda: store.delete("n", keys),
            lambda: store.clear("n"),
            lambda: store.put("n", entries(*keys)),
        ):
            server.trips = 0
            await batch()
            assert server.trips == 1
        server.trips = 0
        await store.describe("n")
        assert server.trips == 0


async def test_a_namespace_that_nobody_wrote_to_is_not_begun_by_reading(valkey: ValkeyServer, shared_server: Server) -> None:
    store = ValkeyStore(valkey)
    assert await store.get("n", [b"a"]) == [None]
    await store.delete("n", [b"a"])
    async with direct(shared_server) as client:
        assert await client.dbsize() == 0


async def test_one_replica_sees_at_once_what_another_cleared_and_what_came_after(valkey: ValkeyServer) -> None:
    one, other = ValkeyStore(valkey), ValkeyStore(valkey)
    await one.put("n", entries(b"a", b"b"))
    assert await other.get("n", [b"a", b"b"]) == [value_of(b"a"), value_of(b"b")]
    await other.clear("n")
    assert await one.get("n", [b"a"]) == [None]
    await other.put("n", entries(b"b"))
    await other.clear("n")
    assert await one.put("n", entries(b"a")) == [True]
    assert await other.get("n", [b"a", b"b"]) == [value_of(b"a"), None]


async def test_what_was_computed_before_a_clear_is_not_stored_after_it_by_any_replica(valkey: ValkeyServer) -> None:
    one, other = ValkeyStore(valkey), ValkeyStore(valkey)
    epoch = (await one.describe("n")).epoch
    assert await other.put("n", entries(b"a"), epoch=epoch) == [True]
    assert await other.clear("n") == epoch + 1
    assert await one.put("n", entries(b"a"), epoch=epoch) == [False]
    assert await one.get("n", [b"a"]) == [None]
    assert await one.put("n", entries(b"a"), epoch=epoch + 1) == [True]


async def test_with_writers_and_clears_at_once_nothing_from_before_a_clear_is_read_after_it(valkey: ValkeyServer) -> None:
    """Values carry the epoch in which they were computed."""
    cleared = found = 0

    async def clear(store: ValkeyStore) -> None:
        nonlocal cleared
        for _ in range(20):
            await asyncio.gather(*(store.get("n", [b"other"]) for _ in range(5)))
            cleared = max(cleared, await store.clear("n"))

    async def write(store: ValkeyStore) -> None:
        for _ in range(100):
            epoch = (await store.describe("n")).epoch
            await store.put("n", [Entry(b"k", b"%d" % epoch, LONG_S)], epoch=epoch)

    async def read(store: ValkeyStore) -> None:
        nonlocal found
        for _ in range(100):
            least = cleared
            (value,) = await store.get("n", [b"k"])
            if value is not None:
                assert int(value) >= least
                found += 1

    await asyncio.gather(*(work(ValkeyStore(valkey)) for work in (clear, clear, write, write, read, read)))
    assert found


async def test_a_server_that_forgot_a_namespace_gives_it_no_epoch_of_before(valkey: ValkeyServer) -> None:
    store = ValkeyStore(valkey)
    epoch = (await store.describe("n")).epoch
    await store.put("n", entries(b"a"))
    await valkey.send(lambda pipeline: pipeline.flushall())
    assert await store.put("n", entries(b"a"), epoch=epoch) == [False]
    assert (await store.describe("n")).epoch not in (epoch, 0)
    assert await store.put("n", entries(b"a"), epoch=epoch) == [False]
    assert await store.put("n", entries(b"a")) == [True]


async def test_an_entry_ends_by_the_servers_clock(valkey: ValkeyServer, shared_server: Server) -> None:
    store = ValkeyStore(valkey)
    await store.put("n", [*entries(b"short", ttl_s=0.02), *entries(b"long", ttl_s=60.5)])
    async with asyncio.timeout(TIMEOUT_S):
        while (await store.get("n", [b"short"]))[0] is not None:
            pass
    assert await store.get("n", [b"long"]) == [value_of(b"long")]
    async with direct(shared_server) as client:
        lives_ms = [await client.pttl(row) for row in await client.keys("hone:row:*")]
    assert len(lives_ms) == 1
    assert 50_000 < lives_ms[0] <= 60_500


async def test_a_row_that_somebody_changed_or_swapped_is_a_miss_and_counted(valkey: ValkeyServer, shared_server: Server) -> None:
    store = ValkeyStore(valkey)
    await store.put("n", entries(b"a", b"b", b"c"))
    async with direct(shared_server) as client:
        a, b, c = sorted(await client.keys("hone:row:*"))
        await client.set(a, await client.get(b))
        await client.setrange(c, 200, b"?")
        assert await store.get("n", [b"a", b"b", b"c"]) == [None, value_of(b"b"), None]
        assert store.stats().corrupt == 2
        assert await client.keys("hone:row:*") == [b]


@pytest.mark.parametrize(("size_bytes", "beside"), [(1_000, False), (1 << 20, True)])
async def test_large_values_are_sealed_and_opened_beside_the_loop(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch, size_bytes: int, beside: bool
) -> None:
    threads: list[bool] = []

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            threads.append(threading.current_thread() is not threading.main_thread())
            return call(*arguments)

        return noting

    for name in ("seal", "unseal"):
        monkeypatch.setattr(f"services.cache.valkey.{name}", noted(getattr(sealed, name)))
    store, value = ValkeyStore(valkey), bytes(size_bytes)
    assert await store.put("n", [Entry(b"a", value, LONG_S), Entry(b"b", b"small", LONG_S)]) == [True, True]
    assert await store.get("n", [b"a", b"none", b"b"]) == [value, None, b"small"]
    assert threads == [beside] * 4


async def test_a_caller_that_gives_up_leaves_the_connections_in_order(valkey: ValkeyServer) -> None:
    store = ValkeyStore(valkey)
    keys = [b"%d" % number for number in range(60)]
    await store.put("n", entries(*keys))
    gets = [asyncio.ensure_future(store.get("n", [key])) for key in keys]
    for number in range(0, 60, 2):
        for _ in range(number % 5):
            await asyncio.sleep(0)
        gets[number].cancel()
    results = await asyncio.gather(*gets, return_exceptions=True)
    assert results[1::2] == [[value_of(key)] for key in keys[1::2]]
    assert await asyncio.gather(*(store.get("n", [key]) for key in keys)) == [[value_of(key)] for key in keys]


async def test_the_statistics_are_the_servers(valkey: ValkeyServer) -> None:
    async with valkey_store(valkey) as store:
        await store.put("n", entries(*(b"%d" % number for number in range(9))))
        await store.measure()
        stats = store.stats()
    assert stats.entries == 10  # the namespace's record too
    assert stats.bytes > 9 * 300
    assert stats.evictions == 0


async def test_a_full_server_evicts_rows_and_keeps_its_namespaces() -> None:
    needs_server()
    with running_server("--maxmemory", "4mb", "--maxmemory-policy", "volatile-lru") as server:
        async with connected(server) as connection:
            store = ValkeyStore(connection)
            await store.measure()
            epoch = (await store.describe("n")).epoch
            for number in range(100):
                assert await store.put("n", [Entry(b"%d" % number, bytes(100_000), LONG_S)]) == [True]
            await store.measure()
            assert store.stats().evictions > 50
            assert (await ValkeyStore(connection).describe("n")).epoch == epoch


async def test_a_full_server_that_evicts_nothing_refuses_and_still_answers() -> None:
    needs_server()
    with running_server("--maxmemory", "4mb", "--maxmemory-policy", "noeviction") as server:
        async with connected(server) as connection:
            store = ValkeyStore(connection)
            assert await store.put("n", entries(b"a")) == [True]
            taken = [(await store.put("n", [Entry(b"%d" % number, bytes(100_000), LONG_S)]))[0] for number in range(60)]
            assert taken[0]
            assert not taken[-1]
            await connection.send(lambda pipeline: pipeline.config_set("maxmemory", 1))  # no row that ends now makes room
            with pytest.raises(faults.Unavailable, match="full"):
                await store.clear("n")
            assert await store.get("n", [b"a"]) == [value_of(b"a")]


@pytest.mark.parametrize("scheme", ["valkey", "redis"])
async def test_the_url_brings_the_password_and_the_number_of_the_database(scheme: str) -> None:
    needs_server()
    with running_server("--requirepass", "se/cret") as server:
        url = f"{scheme}://:se%2Fcret@127.0.0.1:{server.port}/3"
        async with valkey_server(url, TIMEOUT_S) as connection, direct(server, password="se/cret", db=3) as client:
            await ValkeyStore(connection).put("n", entries(b"a"))
            assert await client.dbsize() == 2
            async with Redis(port=server.port, protocol=2, password="se/cret", db=0) as elsewhere:
                assert await elsewhere.dbsize() == 0


@pytest.mark.parametrize("address", ["wrong-one@127.0.0.1:{port}/0", "127.0.0.1:{port}/0", "se%2Fcret@127.0.0.1:{port}/99"])
async def test_a_server_that_refuses_us_ends_the_start_without_telling_the_password(address: str, capsys: Any) -> None:
    needs_server()
    with running_server("--requirepass", "se/cret") as server:
        url = "valkey://" + (":" if "@" in address else "") + address.format(port=server.port)
        with pytest.raises(OSError, match="refuses") as caught:
            async with valkey_server(url, TIMEOUT_S):
                pass
    told = str(caught.value) + "".join(capsys.readouterr())
    assert "wrong-one" not in told
    assert "cret" not in told


@pytest.mark.parametrize("url", ["http://:pass@host/0", "valkey://:pa/ss@host:6379/0", "valkey://host:port/0", "host:6379", ""])
async def test_what_is_no_url_of_a_server_is_told_without_its_text(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a Valkey server") as caught:
        async with valkey_server(url, TIMEOUT_S):
            pass
    assert "pa" not in str(caught.value).replace("password", "")
    assert caught.value.__cause__ is None
