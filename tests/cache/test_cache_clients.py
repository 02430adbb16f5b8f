"""Both clients' leases, lives and watching, against the real server."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import grpc
import hone
import pytest
from hone.aio import CacheClient
from hone.cache.v1 import cache_pb2 as pb
from hone.cached import Cached, Living

from services.cache.memory import MemoryStore

Serve = Callable[..., AbstractAsyncContextManager[Any]]


async def test_one_computes_and_the_others_get_what_it_stores(serve: Serve, clock: Callable[[], float]) -> None:
    async with serve(MemoryStore(1 << 20, clock)) as stub, CacheClient(stub.address) as client:
        first = await client.get_or_lease("n", [b"a", b"b"], lease=10)
        others = [asyncio.ensure_future(client.get_or_lease("n", [b"a"], lease=10, wait=20)) for _ in range(3)]
        leases = {b"a": first[0].lease, b"b": first[1].lease}
        await client.release("n", {b"b": leases[b"b"]})
        assert await client.put("n", {b"a": b"1", b"b": b"2"}, leases=leases) == [pb.ITEM_STATUS_OK, pb.ITEM_STATUS_LEASE_LOST]
        assert await asyncio.gather(*others) == [[Cached(b"1")]] * 3
        assert await client.get("n", [b"a", b"b"]) == [b"1", None]


async def test_the_synchronous_client_says_the_same(serve: Serve, clock: Callable[[], float]) -> None:
    def speak(address: str) -> None:
        with hone.Client(cache=address) as client:
            (found,) = client.cache.get_or_lease("n", [b"a"], lease=10)
            assert client.cache.get_or_lease("n", [b"a"], lease=10, wait=0.001) == [Cached(leased=True)]
            assert client.cache.put("n", {b"a": b"1"}, leases={b"a": found.lease}) == [pb.ITEM_STATUS_OK]
            (again,) = client.cache.get_or_lease("n", [b"b"], lease=10)
            client.cache.release("n", {b"b": again.lease})
            assert client.cache.get_or_lease("n", [b"b"], lease=10)[0].lease > 0
            told = client.cache.watch(["n"])
            assert next(told).WhichOneof("what") == "began"
            assert client.cache.clear("n") == 1
            assert next(told).cleared == "n"
            told.close()  # type: ignore[attr-defined]  # it is a generator

    async with serve(MemoryStore(1 << 20, clock)) as stub:
        await asyncio.to_thread(speak, stub.address)


async def test_how_long_values_live_on_is_told_where_it_is_asked_for(serve: Serve, clock: Any) -> None:
    async with serve(MemoryStore(1 << 20, clock)) as stub, CacheClient(stub.address) as client:
        await client.put("n", {b"a": b"1"}, ttl=10)
        await client.put("n", {b"b": b"2"}, ttl=50)
        clock.now_s += 7.5
        assert await client.get_living("n", [b"b", b"none", b"a"]) == [Living(b"2", 42.5), None, Living(b"1", 2.5)]
        with hone.Client(cache=stub.address) as second:
            assert await asyncio.to_thread(second.cache.get_living, "n", [b"a"]) == [Living(b"1", 2.5)]
        plain = await stub.Get(pb.GetRequest(namespace="n", keys=[b"a"]))
        assert not plain.results[0].HasField("ttl_left")


async def test_a_namespace_has_a_life_of_its_own(serve: Serve, clock: Any) -> None:
    async with serve(MemoryStore(1 << 20, clock), default_ttl_s=100) as stub, CacheClient(stub.address) as client:
        await client.configure("n", ttl=10)
        await client.put("n", {b"a": b"1"})
        await client.put("n", {b"own": b"2"}, ttl=50)
        await client.put("other", {b"a": b"1"})
        clock.now_s += 20
        assert await client.get("n", [b"a", b"own"]) == [None, b"2"]
        assert await client.get("other", [b"a"]) == [b"1"]
        await client.configure("n", ttl=None)
        await client.put("n", {b"a": b"1"})
        clock.now_s += 90
        assert await client.get("n", [b"a"]) == [b"1"]


async def test_a_life_out_of_range_is_named(serve: Serve, clock: Callable[[], float]) -> None:
    async with serve(MemoryStore(1 << 20, clock), default_ttl_s=60, max_ttl_s=60) as stub, CacheClient(stub.address) as client:
        for ttl in (0, -1, 61):
            with pytest.raises(grpc.aio.AioRpcError, match="ttl") as caught:
                await client.configure("n", ttl=ttl)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_watcher_is_told_of_what_it_watches_and_of_nothing_else(serve: Serve, clock: Callable[[], float]) -> None:
    async with serve(MemoryStore(1 << 20, clock)) as stub, CacheClient(stub.address) as client, aclosing(client.watch(["n"])) as told:
        assert (await anext(told)).WhichOneof("what") == "began"
        await client.put("other", {b"a": b"1"})
        await client.put("n", {b"a": b"1", b"b": b"2"})
        await client.delete("n", [b"b"])
        await client.clear("n")
        events = [await anext(told) for _ in range(3)]
    assert [(event.changed.namespace, *event.changed.keys) for event in events[:2]] == [("n", b"a", b"b"), ("n", b"b")]
    assert events[2].cleared == "n"


async def test_the_end_of_the_service_ends_a_watch_at_once_and_in_order(serve: Serve, clock: Callable[[], float]) -> None:
    async with serve(MemoryStore(1 << 20, clock)) as stub:
        client = CacheClient(stub.address)
        told = client.watch()
        assert (await anext(told)).WhichOneof("what") == "began"
        rest = asyncio.ensure_future(_rest(told))
        await client.clear("n")
    async with client:
        assert [event.cleared for event in await rest] == ["n"]


async def _rest(told: Any) -> list[pb.WatchResponse]:
    return [event async for event in told]


@pytest.mark.parametrize("namespaces", [["n", ""], ["a b"], ["n"] * 3])
async def test_a_watch_of_what_cannot_be_is_refused(serve: Serve, clock: Callable[[], float], namespaces: list[str]) -> None:
    async with serve(MemoryStore(1 << 20, clock), max_batch=2) as stub, CacheClient(stub.address) as client:
        with pytest.raises(grpc.aio.AioRpcError, match="namespaces") as caught:
            await anext(client.watch(namespaces))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
