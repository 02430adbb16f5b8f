"""Look-ups and stores with leases, against the real server."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hone.aio import CacheClient
from hone.cache.v1 import cache_pb2 as pb
from hone.cache.v1.cache_pb2 import ITEM_STATUS_LEASE_LOST, ITEM_STATUS_NOT_STORED, ITEM_STATUS_OK, ITEM_STATUS_TOO_LARGE
from hone.cached import Cached

from services.cache.memory import MemoryStore
from services.cache.store import Entry

Serve = Callable[..., AbstractAsyncContextManager[Any]]
MISS, ELSEWHERE = Cached(), Cached(leased=True)


@pytest.fixture
def store(clock: Callable[[], float]) -> MemoryStore:
    return MemoryStore(1 << 26, clock)


class CountingStore(MemoryStore):
    """Tells when it was asked `times` times, and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__(1 << 20, lambda: 0.0)
        self.asked = asyncio.Semaphore(0)
        self.fault: Exception | None = None

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked.release()
        if self.fault is not None:
            raise self.fault
        return await super().get(namespace, keys)


class RefusingStore(MemoryStore):
    """Takes nothing, as a full disk does."""

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        return [False] * len(entries)


def leases_of(keys: Sequence[bytes], found: Sequence[Cached]) -> dict[bytes, int]:
    return {key: each.lease for key, each in zip(keys, found, strict=True) if each.lease}


async def test_a_batch_tells_values_leases_and_what_others_compute(serve: Serve, store: MemoryStore) -> None:
    async with serve(store) as stub, CacheClient(stub.address) as client:
        await client.put("n", {b"known": b"1"})
        await client.get_or_lease("n", [b"theirs"], lease=10)
        known, theirs, mine, again = await client.get_or_lease("n", [b"known", b"theirs", b"mine", b"mine"], lease=10)
    assert (known, theirs) == (Cached(b"1"), ELSEWHERE)
    assert mine.lease > 0
    assert again == mine  # a key asked for twice has one lease, and nobody waits for itself


async def test_a_plain_get_takes_no_lease_and_minds_none(serve: Serve, store: MemoryStore) -> None:
    async with serve(store) as stub, CacheClient(stub.address) as client:
        assert await client.get("n", [b"a"]) == [None]
        assert (await client.get_or_lease("n", [b"a"], lease=10))[0].lease > 0
        answer = await stub.Get(pb.GetRequest(namespace="n", keys=[b"a"]))
    assert (answer.results[0].status, answer.results[0].lease) == (pb.ITEM_STATUS_MISS, 0)


@pytest.mark.parametrize("keys", [[b""], [b"k" * 9]])
async def test_what_cannot_be_stored_is_not_leased(serve: Serve, store: MemoryStore, keys: list[bytes]) -> None:
    async with serve(store, max_key_bytes=8) as stub, CacheClient(stub.address) as client:
        assert await client.get_or_lease("n", keys, lease=10) == [MISS]


async def test_a_value_that_does_not_fit_in_the_answer_is_not_leased(serve: Serve, store: MemoryStore) -> None:
    keys = [b"%d" % number for number in range(6)]
    async with serve(store, max_message_bytes=1 << 16, max_value_bytes=20_000) as stub, CacheClient(stub.address) as client:
        for key in keys:
            await client.put("n", {key: bytes(20_000)})
        found = await client.get_or_lease("n", keys, lease=10)
    assert found == [Cached(bytes(20_000))] * 3 + [MISS] * 3


async def test_without_leases_to_give_every_caller_computes_at_once(serve: Serve, store: MemoryStore) -> None:
    async with serve(store, max_leases=1) as stub, CacheClient(stub.address) as client:
        await client.get_or_lease("n", [b"a"], lease=10)
        assert await client.get_or_lease("n", [b"b", b"a"], lease=10) == [MISS, ELSEWHERE]


async def test_who_waits_past_the_value_gets_the_lease_when_it_is_given_back(serve: Serve) -> None:
    store = CountingStore()
    async with serve(store) as stub, CacheClient(stub.address) as client:
        held = leases_of([b"a"], await client.get_or_lease("n", [b"a"], lease=10))
        waiting = asyncio.ensure_future(client.get_or_lease("n", [b"a"], lease=10, wait=20))
        for _ in range(2):
            await store.asked.acquire()
        await client.release("n", held)
        (found,) = await waiting
    assert found.lease not in (0, held[b"a"])


async def test_values_waited_for_that_do_not_fit_in_the_answer_are_misses(serve: Serve) -> None:
    store = CountingStore()
    async with serve(store, max_message_bytes=1 << 16, max_value_bytes=20_000) as stub, CacheClient(stub.address) as client:
        held = leases_of([b"a"], await client.get_or_lease("n", [b"a"], lease=50))
        waiting = asyncio.ensure_future(client.get_or_lease("n", [b"a"] * 20, lease=50, wait=40))
        for _ in range(3):  # a batch of twenty is looked up in two parts: thirteen such values fill four answers
            await store.asked.acquire()
        await client.put("n", {b"a": bytes(20_000)}, leases=held)
        assert await waiting == [Cached(bytes(20_000))] * 3 + [MISS] * 17


async def test_a_usual_batch_is_one_look_up(serve: Serve) -> None:
    store = CountingStore()
    async with serve(store) as stub:
        await stub.Get(pb.GetRequest(namespace="n", keys=[b"%d" % number for number in range(256)]))
        await stub.Get(pb.GetRequest(namespace="n", keys=[b"%d" % number for number in range(257)]))
    for _ in range(3):
        await store.asked.acquire()
    assert store.asked.locked()


async def test_a_lost_holder_blocks_nobody_past_its_lease(serve: Serve, store: MemoryStore) -> None:
    async with serve(store) as stub, CacheClient(stub.address) as client:
        lost = leases_of([b"a"], await client.get_or_lease("n", [b"a"], lease=0.02))
        (found,) = await client.get_or_lease("n", [b"a"], lease=10, wait=20)
        assert found.lease > 0
        assert await client.put("n", {b"a": b"old"}, leases=lost) == [ITEM_STATUS_LEASE_LOST]
        assert await client.put("n", {b"a": b"new"}, leases={b"a": found.lease}) == [ITEM_STATUS_OK]
        assert await client.get("n", [b"a"]) == [b"new"]


async def test_the_deadline_ends_the_wait_in_time_for_an_answer(serve: Serve, store: MemoryStore) -> None:
    async with serve(store) as stub, CacheClient(stub.address) as client:
        await client.get_or_lease("n", [b"a"], lease=50)
        assert await client.get_or_lease("n", [b"a"], lease=10, wait=40, timeout=0.4) == [ELSEWHERE]


async def test_a_caller_that_goes_away_while_it_waits_leaves_no_lease_behind(serve: Serve) -> None:
    store = CountingStore()
    async with serve(store) as stub, CacheClient(stub.address) as client:
        held = leases_of([b"a"], await client.get_or_lease("n", [b"a"], lease=50))
        goes = asyncio.ensure_future(client.get_or_lease("n", [b"a", b"b"], lease=50, wait=40))
        for _ in range(2):
            await store.asked.acquire()
        stays = asyncio.ensure_future(client.get_or_lease("n", [b"b"], lease=50, wait=40))
        await store.asked.acquire()
        goes.cancel()
        assert (await stays)[0].lease > 0  # what the one that went had is free at once
        assert await client.put("n", {b"a": b"1"}, leases=held) == [ITEM_STATUS_OK]


async def test_a_store_that_fails_after_the_wait_leaves_no_lease_behind(serve: Serve) -> None:
    store = CountingStore()
    async with serve(store) as stub, CacheClient(stub.address) as client:
        held = leases_of([b"a"], await client.get_or_lease("n", [b"a"], lease=50))
        fails = asyncio.ensure_future(client.get_or_lease("n", [b"a", b"b"], lease=50, wait=40))
        for _ in range(2):
            await store.asked.acquire()
        store.fault = RuntimeError("as told")
        await client.release("n", held)
        with pytest.raises(grpc.aio.AioRpcError):
            await fails
        store.fault = None
        assert len(leases_of([b"a", b"b"], await client.get_or_lease("n", [b"a", b"b"], lease=50))) == 2


async def test_what_was_computed_before_a_clear_is_not_stored_after_it(serve: Serve, store: MemoryStore) -> None:
    async with serve(store) as stub, CacheClient(stub.address) as client:
        old = leases_of([b"a", b"b"], await client.get_or_lease("n", [b"a", b"b"], lease=10))
        await client.clear("n")
        new = leases_of([b"a"], await client.get_or_lease("n", [b"a"], lease=10))  # a clear leaves nothing to wait for
        assert await client.put("n", {b"a": b"old", b"b": b"old"}, leases=old) == [ITEM_STATUS_LEASE_LOST] * 2
        assert await client.get("n", [b"a", b"b"]) == [None, None]
        assert await client.put("n", {b"a": b"new"}, leases=new) == [ITEM_STATUS_OK]


async def test_who_waits_over_a_clear_goes_on_when_the_holder_has_lost(serve: Serve) -> None:
    store = CountingStore()
    async with serve(store) as stub, CacheClient(stub.address) as client:
        old = leases_of([b"a"], await client.get_or_lease("n", [b"a"], lease=50))
        waiting = asyncio.ensure_future(client.get_or_lease("n", [b"a"], lease=50, wait=40))
        for _ in range(2):
            await store.asked.acquire()
        await client.clear("n")
        assert await client.put("n", {b"a": b"old"}, leases=old) == [ITEM_STATUS_LEASE_LOST]
        assert (await waiting)[0].lease > 0


async def test_a_lease_ends_with_its_entry_whatever_comes_of_it(serve: Serve, clock: Callable[[], float]) -> None:
    async with serve(RefusingStore(1 << 20, clock), max_value_bytes=16) as stub, CacheClient(stub.address) as client:
        held = leases_of([b"a", b"b"], await client.get_or_lease("n", [b"a", b"b"], lease=50))
        entries = {b"a": b"v", b"b": b"v" * 17, b"free": b"v"}
        assert await client.put("n", entries, leases=held) == [ITEM_STATUS_NOT_STORED, ITEM_STATUS_TOO_LARGE, ITEM_STATUS_NOT_STORED]
        assert await client.put("n", {b"a": b"v"}, leases=held) == [ITEM_STATUS_LEASE_LOST]
        assert len(leases_of([b"a", b"b"], await client.get_or_lease("n", [b"a", b"b"], lease=50))) == 2


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("lease", pb.GetRequest(namespace="n", lease=Duration())),
        ("lease", pb.GetRequest(namespace="n", lease=Duration(seconds=-1))),
        ("lease", pb.GetRequest(namespace="n", lease=Duration(seconds=60, nanos=1))),
        ("wait", pb.GetRequest(namespace="n", lease=Duration(seconds=1), wait=Duration(seconds=-1))),
        ("wait", pb.GetRequest(namespace="n", wait=Duration(seconds=1))),
    ],
)
async def test_times_out_of_range_are_named(serve: Serve, store: MemoryStore, field: str, request_: pb.GetRequest) -> None:
    async with serve(store) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(f"{field}: ")


async def test_releases_over_the_limit_are_refused(serve: Serve, store: MemoryStore) -> None:
    async with serve(store, max_batch=2) as stub, CacheClient(stub.address) as client:
        await client.release("n", {b"unknown": 7})
        with pytest.raises(grpc.aio.AioRpcError, match="leases"):
            await client.release("n", {b"a": 1, b"b": 2, b"c": 3})


async def test_each_key_asked_is_one_hit_or_miss_and_leases_are_counted(serve: Serve) -> None:
    store = CountingStore()
    async with serve(store) as stub, CacheClient(stub.address) as client:
        held = leases_of([b"a"], await client.get_or_lease("n", [b"a"], lease=50))
        shares = asyncio.ensure_future(client.get_or_lease("n", [b"a"], lease=50, wait=40))
        for _ in range(2):
            await store.asked.acquire()
        await client.put("n", {b"a": b"1"}, leases=held)
        await shares
        await client.put("n", {b"a": b"2"}, leases=held)
        await client.get("n", [b"a"])
        stats = await client.stats()
    assert (stats.hits, stats.misses, stats.puts) == (1, 2, 1)
    assert (stats.leases, stats.shared, stats.leases_lost) == (1, 1, 1)
    assert stats.limits.max_lease == Duration(seconds=60)
