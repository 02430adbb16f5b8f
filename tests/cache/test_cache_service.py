"""Every RPC and every status of `hone.cache.v1.CacheService`, against the real server."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hone.cache.v1 import cache_pb2 as pb
from hone.cache.v1.cache_pb2 import ITEM_STATUS_MISS, ITEM_STATUS_NOT_STORED, ITEM_STATUS_OK, ITEM_STATUS_TOO_LARGE

from services.cache.memory import MemoryStore
from services.cache.store import Entry, Stats

Serve = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def store(clock: Callable[[], float]) -> MemoryStore:
    return MemoryStore(1 << 26, clock)


class PickyStore(MemoryStore):
    """Refuses what says so, as a full disk does."""

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        return [entry.value != b"refuse me" and (await super(PickyStore, self).put(namespace, [entry]))[0] for entry in entries]


class GatedStore(MemoryStore):
    """Answers when the gate opens, or breaks."""

    def __init__(self) -> None:
        super().__init__(1 << 20, lambda: 0.0)
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        self.entered.set()
        await self.gate.wait()
        return await super().get(namespace, keys)

    def stats(self) -> Stats:
        raise RuntimeError("secret path /srv/cache")


def put(key: bytes, value: bytes, namespace: str = "n", ttl_s: int | None = None) -> pb.PutRequest:
    entry = pb.Entry(key=key, value=value, ttl=Duration(seconds=ttl_s) if ttl_s is not None else None)
    return pb.PutRequest(namespace=namespace, entries=[entry])


def get(*keys: bytes, namespace: str = "n") -> pb.GetRequest:
    return pb.GetRequest(namespace=namespace, keys=keys)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_get_answers_item_by_item_in_the_order_asked(serve: Serve, store: MemoryStore) -> None:
    async with serve(store) as stub:
        await stub.Put(pb.PutRequest(namespace="n", entries=[pb.Entry(key=b"a", value=b"1"), pb.Entry(key=b"b", value=b"")]))
        answer = await stub.Get(get(b"b", b"unknown", b"a", b"b"))
    assert [(result.status, result.value) for result in answer.results] == [
        (ITEM_STATUS_OK, b""),
        (ITEM_STATUS_MISS, b""),
        (ITEM_STATUS_OK, b"1"),
        (ITEM_STATUS_OK, b""),
    ]


async def test_empty_batches_are_fine(serve: Serve, store: MemoryStore) -> None:
    async with serve(store) as stub:
        assert not (await stub.Get(get())).results
        assert not (await stub.Put(pb.PutRequest(namespace="n"))).statuses
        assert not (await stub.Delete(pb.DeleteRequest(namespace="n"))).statuses


async def test_put_refuses_each_misfit_by_its_own_status_and_stores_the_others(serve: Serve, clock: Callable[[], float]) -> None:
    fitting, refused_value = pb.Entry(key=b"k" * 8, value=b"v" * 16), pb.Entry(key=b"r", value=b"refuse me")
    entries = [pb.Entry(key=b"", value=b"v"), pb.Entry(key=b"k" * 9), fitting, pb.Entry(key=b"v", value=b"v" * 17), refused_value]
    async with serve(PickyStore(1 << 20, clock), max_key_bytes=8, max_value_bytes=16) as stub:
        answer = await stub.Put(pb.PutRequest(namespace="n", entries=entries))
        held = await stub.Get(get(b"k" * 8, b"r", b"", b"k" * 9))
    assert list(answer.statuses) == [
        ITEM_STATUS_TOO_LARGE,
        ITEM_STATUS_TOO_LARGE,
        ITEM_STATUS_OK,
        ITEM_STATUS_TOO_LARGE,
        ITEM_STATUS_NOT_STORED,
    ]
    assert [result.status for result in held.results] == [ITEM_STATUS_OK, ITEM_STATUS_MISS, ITEM_STATUS_MISS, ITEM_STATUS_MISS]


async def test_an_entry_lives_for_its_own_or_the_default_time(serve: Serve, store: MemoryStore, clock: Any) -> None:
    async with serve(store, default_ttl_s=100) as stub:
        await stub.Put(put(b"short", b"1", ttl_s=10))
        await stub.Put(put(b"default", b"2"))
        clock.now_s += 10
        after_its_own = await stub.Get(get(b"short", b"default"))
        clock.now_s += 90
        after_the_default = await stub.Get(get(b"default"))
    assert [result.status for result in after_its_own.results] == [ITEM_STATUS_MISS, ITEM_STATUS_OK]
    assert after_the_default.results[0].status == ITEM_STATUS_MISS


@pytest.mark.parametrize("ttl", [Duration(), Duration(seconds=-1), Duration(seconds=61), Duration(seconds=60, nanos=1)])
async def test_a_time_to_live_out_of_range_is_named(serve: Serve, store: MemoryStore, ttl: Duration) -> None:
    entries = [pb.Entry(key=b"good", value=b"1"), pb.Entry(key=b"bad", value=b"2", ttl=ttl)]
    async with serve(store, default_ttl_s=60, max_ttl_s=60) as stub:
        error = await refused(stub.Put(pb.PutRequest(namespace="n", entries=entries)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "entries[1].ttl" in error.details()


async def test_delete_removes_and_does_not_mind_what_is_not_there(serve: Serve, store: MemoryStore) -> None:
    async with serve(store) as stub:
        await stub.Put(put(b"a", b"1"))
        answer = await stub.Delete(pb.DeleteRequest(namespace="n", keys=[b"a", b"unknown", b""]))
        left = await stub.Get(get(b"a"))
    assert list(answer.statuses) == [ITEM_STATUS_OK] * 3
    assert left.results[0].status == ITEM_STATUS_MISS


async def test_clear_takes_one_namespace_and_tells_its_epoch(serve: Serve, store: MemoryStore) -> None:
    async with serve(store) as stub:
        for key, namespace in ((b"a", "n"), (b"b", "n"), (b"a", "other")):
            await stub.Put(put(key, b"1", namespace))
        answer = await stub.Clear(pb.ClearRequest(namespace="n"))
        cleared = await stub.Get(get(b"a", b"b"))
        other = await stub.Get(get(b"a", namespace="other"))
        again = await stub.Clear(pb.ClearRequest(namespace="n"))
    assert (answer.epoch, again.epoch) == (1, 2)
    assert [result.status for result in cleared.results] == [ITEM_STATUS_MISS] * 2
    assert other.results[0].status == ITEM_STATUS_OK


@pytest.mark.parametrize("namespace", ["", "n" * 257, "späti", "a b", "a\0b", "a\n"])
async def test_a_namespace_against_its_rule_is_refused_by_every_call(serve: Serve, store: MemoryStore, namespace: str) -> None:
    async with serve(store) as stub:
        calls = [
            stub.Get(pb.GetRequest(namespace=namespace)),
            stub.Put(pb.PutRequest(namespace=namespace)),
            stub.Delete(pb.DeleteRequest(namespace=namespace)),
            stub.Clear(pb.ClearRequest(namespace=namespace)),
        ]
        errors = [await refused(call) for call in calls]
    assert {error.code() for error in errors} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert all(error.details().startswith("namespace: ") for error in errors)


async def test_every_allowed_sign_makes_a_namespace(serve: Serve, store: MemoryStore) -> None:
    longest = "azAZ09._:/@-".ljust(256, "x")
    async with serve(store) as stub:
        await stub.Put(put(b"a", b"1", longest))
        assert (await stub.Get(get(b"a", namespace=longest))).results[0].value == b"1"


async def test_a_batch_over_the_limit_is_refused_with_its_field(serve: Serve, store: MemoryStore) -> None:
    async with serve(store, max_batch=2) as stub:
        errors = [
            await refused(stub.Get(get(b"a", b"b", b"c"))),
            await refused(stub.Put(pb.PutRequest(namespace="n", entries=[pb.Entry(key=b"k")] * 3))),
            await refused(stub.Delete(pb.DeleteRequest(namespace="n", keys=[b"k"] * 3))),
        ]
    assert {error.code() for error in errors} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert [error.details().partition(":")[0] for error in errors] == ["keys", "entries", "keys"]


async def test_too_many_callers_are_told_when_to_come_back(serve: Serve) -> None:
    store = GatedStore()
    async with serve(store, max_waiting=1) as stub:
        first = asyncio.ensure_future(stub.Get(get(b"a")))
        await store.entered.wait()
        error = await refused(stub.Get(get(b"b")))
        store.gate.set()
        assert (await first).results[0].status == ITEM_STATUS_MISS
        assert (await stub.Get(get(b"b"))).results[0].status == ITEM_STATUS_MISS  # the place is free again
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


async def test_values_beyond_one_answer_are_misses_and_the_call_succeeds(serve: Serve, store: MemoryStore) -> None:
    keys = [b"%d" % number for number in range(8)]
    async with serve(store, max_message_bytes=1 << 16, max_value_bytes=20_000) as stub:
        for key in keys:
            await stub.Put(put(key, b"v" * 20_000))
        statuses = [result.status for result in (await stub.Get(get(*keys))).results]
    assert statuses == [ITEM_STATUS_OK] * 3 + [ITEM_STATUS_MISS] * 5


async def test_our_own_fault_is_internal_and_keeps_its_text(serve: Serve) -> None:
    async with serve(GatedStore()) as stub:
        error = await refused(stub.GetStats(pb.GetStatsRequest()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()


async def test_stats_tell_traffic_holdings_and_limits(serve: Serve, store: MemoryStore) -> None:
    async with serve(store, max_batch=7, default_ttl_s=1.5, max_ttl_s=90) as stub:
        await stub.Put(put(b"a", b"1"))
        await stub.Get(get(b"a", b"a", b"unknown"))
        await stub.Delete(pb.DeleteRequest(namespace="n", keys=[b"other"]))
        stats = await stub.GetStats(pb.GetStatsRequest())
    assert (stats.hits, stats.misses, stats.puts, stats.deletes, stats.evictions, stats.corrupt, stats.entries) == (2, 1, 1, 1, 0, 0, 1)
    assert stats.bytes > 0
    assert stats.limits.max_batch == 7
    assert stats.limits.default_ttl == Duration(seconds=1, nanos=500_000_000)
    assert stats.limits.max_ttl == Duration(seconds=90)
