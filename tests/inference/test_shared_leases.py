"""Several replicas on one cache: one computes what many miss, and nobody waits for long or for nothing."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from hone.aio import CacheClient
from hone.cache.v1 import cache_pb2_grpc

from services.cache.leases import LocalLeases
from services.cache.memory import MemoryStore
from services.cache.servicer import SERVICE, CacheServicer
from services.cache.settings import CacheSettings
from services.chassis.errors import ErrorTable
from services.chassis.faults import DeadlineMissed
from services.chassis.server import Server
from services.inference.answer_key import encode
from services.inference.answers import Answers
from services.inference.calls import Options
from services.inference.core import Core
from services.inference.departed import Departed
from services.inference.served import ServedVersion
from services.inference.shared_answers import SharedAnswers
from services.repository.manifest import Manifest
from services.repository.store import Repository
from tests.inference.conftest import PLAIN, Serving, plain_model, seal
from tests.inference.fakes import FakeClock
from tests.inference.test_answers import HASTY_S, PATIENT_S, FakeCache, answer, key, number_of, sharing, turns


@asynccontextmanager
async def replicas(cache: FakeCache, *, timeout_s: float = PATIENT_S) -> AsyncIterator[tuple[SharedAnswers, SharedAnswers]]:
    async with sharing(cache, timeout_s=timeout_s) as one, sharing(cache, timeout_s=timeout_s) as other:
        yield one, other


async def test_what_one_replica_computes_the_other_waits_for() -> None:
    cache = FakeCache(leasing=True)
    async with replicas(cache) as (one, other):
        assert await one.get("n", [key(1)]) == {}
        waiting = asyncio.create_task(other.get("n", [key(1)]))
        await turns()
        assert not waiting.done()
        one.put("n", {key(1): answer(1)})
        await turns()
        cache.news.set()
        assert {name: number_of(outputs) for name, outputs in (await waiting).items()} == {key(1): 1}
    assert (cache.leases, list(cache.put_leases)) == ({}, [key(1)])


async def test_nobody_waits_past_the_time_out_and_the_cache_is_not_blamed() -> None:
    cache = FakeCache(leasing=True)
    cache.kept[key(2)] = encode(answer(2))
    async with replicas(cache, timeout_s=HASTY_S) as (one, other):
        await one.get("n", [key(1)])
        async with asyncio.timeout(PATIENT_S):
            assert set(await other.get("n", [key(1), key(2)])) == {key(2)}
        assert not other.paused
        other.put("n", {key(1): answer(1)})  # that it computed itself
        await turns()
        assert set(cache.kept) == {key(1), key(2)}
        assert key(1) not in cache.put_leases


async def test_known_answers_do_not_stand_behind_a_wait() -> None:
    cache = FakeCache(leasing=True)
    cache.kept[key(2)] = encode(answer(2))
    async with replicas(cache) as (one, other):
        await one.get("n", [key(1)])
        waiting = asyncio.create_task(other.get("n", [key(1)]))
        await turns()
        assert set(await other.get("n", [key(2)])) == {key(2)}
        assert not waiting.done()
        cache.news.set()
        assert await waiting == {}


async def test_however_many_callers_wait_for_a_key_one_call_does() -> None:
    cache = FakeCache(leasing=True)
    async with replicas(cache) as (one, other):
        await one.get("n", [key(1), key(2)])
        callers = [asyncio.create_task(other.get("n", [key(1)])) for _ in range(5)]
        await turns()
        callers.append(asyncio.create_task(other.get("n", [key(1), key(2)])))
        await turns()
        cache.kept = {key(1): encode(answer(1)), key(2): encode(answer(2))}
        cache.news.set()
        found = await asyncio.gather(*callers)
    assert cache.waits == [[key(1)], [key(2)]]
    assert [set(each) for each in found] == [{key(1)}] * 5 + [{key(1), key(2)}]


async def test_a_caller_that_leaves_harms_nobody_who_waits_with_it() -> None:
    cache = FakeCache(leasing=True)
    async with replicas(cache) as (one, other):
        await one.get("n", [key(1)])
        leaver, stayer = (asyncio.create_task(other.get("n", [key(1)])) for _ in range(2))
        await turns()
        leaver.cancel()
        await turns()
        cache.kept[key(1)] = encode(answer(1))
        cache.news.set()
        assert set(await stayer) == {key(1)}


async def test_a_replica_does_not_wait_for_itself() -> None:
    """Its engine lets both callers share the row."""
    cache = FakeCache(leasing=True)
    async with sharing(cache) as shared:
        await shared.get("n", [key(1)])
        assert await shared.get("n", [key(1)]) == {}
    assert cache.waits == []


async def test_a_failed_call_gives_its_leases_back_and_the_next_replica_computes() -> None:
    cache = FakeCache(leasing=True)
    async with replicas(cache) as (one, other):
        await one.get("n", [key(1), key(2)])
        one.put("n", {key(1): answer(1)})
        one.release("n", [key(1), key(2)])
        await turns()
        assert (cache.leases, set(cache.put_leases)) == ({}, {key(1)})
        assert set(await other.get("n", [key(1), key(2)])) == {key(1)}
        assert set(cache.leases) == {key(2)}


async def test_what_is_not_stored_is_not_waited_for() -> None:
    cache = FakeCache(leasing=True)
    async with sharing(cache, max_pending=1) as shared:
        await shared.get("n", [key(1), key(2)])
        shared.put("n", {key(1): answer(1), key(2): answer(2)})  # more than may wait
        await turns()
    assert (cache.leases, cache.puts) == ({}, [])


async def test_a_lease_that_comes_after_its_caller_has_gone_goes_back() -> None:
    cache = FakeCache(leasing=True)
    cache.gate.clear()
    async with sharing(cache) as shared:
        caller = asyncio.create_task(shared.get("n", [key(1)]))
        await turns()
        caller.cancel()
        await turns()
        cache.gate.set()
        await turns(10)
        assert cache.gets == [[key(1)]]
        assert cache.leases == {}


async def test_a_lease_that_a_wait_brings_is_used() -> None:
    """Its holder gave up: one of those who waited computes."""
    cache = FakeCache(leasing=True)
    async with replicas(cache) as (one, other):
        await one.get("n", [key(1)])
        waiting = asyncio.create_task(other.get("n", [key(1)]))
        await turns()
        one.release("n", [key(1)])
        await turns()
        cache.news.set()
        assert await waiting == {}
        other.put("n", {key(1): answer(1)})
        await turns()
    assert cache.put_leases == {key(1): 2}


async def test_the_last_answers_of_a_closing_replica_leave_no_task() -> None:
    cache = FakeCache(leasing=True)
    async with replicas(cache) as (one, other):
        await one.get("n", [key(1)])
        waiting = asyncio.create_task(other.get("n", [key(1)]))
        await turns()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(asyncio.all_tasks()) == 1


async def test_a_call_that_is_refused_gives_its_leases_back(repository: Repository, following: Serving, tmp_path: Path) -> None:
    cache = FakeCache(leasing=True)
    seal(repository, plain_model(tmp_path / "plain"), "plain", PLAIN, "stable")
    async with sharing(cache) as shared, following(repository) as models:
        await models.begin()
        core = Core(models, Answers(None, shared), 8)
        row = {"x": np.ones((1, 3), np.float32)}
        with pytest.raises(DeadlineMissed):
            await core.run_tensors("plain", row, ("total",), Options(deadline=time.monotonic()))
        await turns()
        assert (len(cache.gets), cache.leases) == (1, {})
        await core.run_tensors("plain", row, ("total",), Options())
        await turns()
        assert (cache.leases, len(cache.put_leases)) == ({}, 1)


# The service itself


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """The cache service's address."""
    settings = CacheSettings(port=0)
    server = Server(settings, ErrorTable())
    door = CacheServicer(MemoryStore(1 << 20, time.monotonic), settings, LocalLeases(time.monotonic, settings.max_leases))
    server.before_drain.append(door.end_streams)
    cache_pb2_grpc.add_CacheServiceServicer_to_server(door, server.grpc)
    async with server.running([SERVICE]):
        yield f"127.0.0.1:{server.port}"


async def test_replicas_on_the_real_service_compute_a_row_once() -> None:
    async with served() as address, CacheClient(address) as one_client, CacheClient(address) as other_client:
        one, other = (SharedAnswers(client, timeout_s=PATIENT_S, ttl_s=60) for client in (one_client, other_client))
        assert await one.get("n", [key(1), key(2)]) == {}
        waiting = asyncio.create_task(other.get("n", [key(1), key(2)]))
        one.put("n", {key(1): answer(1)})
        one.release("n", [key(1), key(2)])
        assert {name: number_of(outputs) for name, outputs in (await waiting).items()} == {key(1): 1}
        other.put("n", {key(2): answer(2)})
        while not (found := await one.get("n", [key(2)])):
            one.release("n", [key(2)])
        assert number_of(found[key(2)]) == 2
        assert await one.clear("n")
        assert await other.get("n", [key(1), key(2)]) == {}
        for replica in (one, other):
            await replica.close()


# Deleted versions


@pytest.fixture
def plain(repository: Repository, tmp_path: Path) -> Manifest:
    return seal(repository, plain_model(tmp_path / "plain"), "plain", PLAIN)


async def test_a_failing_clear_is_to_be_tried_again() -> None:
    cache, clock = FakeCache(), FakeClock()
    cache.fault = ConnectionError("no cache")
    async with sharing(cache, clock=clock) as shared:
        answers = Answers(None, shared)
        assert not await answers.clear("n")
        cache.fault = None
        assert not await answers.clear("n")  # it is left alone
        clock.now_s += 10
        assert await answers.clear("n")
        assert await Answers(None, None).clear("n")
    assert cache.cleared == ["n"]


async def test_answers_go_when_their_version_is_deleted_and_not_when_it_is_unloaded(repository: Repository, plain: Manifest) -> None:
    tries: list[str] = []

    async def clear(namespace: str) -> bool:
        tries.append(namespace)
        return len(tries) > 1

    departed = Departed(repository, clear)
    departed.add(ServedVersion(plain))
    await departed.look()
    assert tries == []
    repository.delete(plain.name, plain.version)
    for _ in range(3):
        await departed.look()
    assert tries == [f"answers/{plain.reference}"] * 2


async def test_a_repository_that_cannot_be_read_deletes_nothing(tmp_path: Path, plain: Manifest) -> None:
    class Away(Repository):
        def versions(self, name: str) -> list[int]:
            raise OSError("stale file handle")

    async def clear(namespace: str) -> bool:
        raise AssertionError(namespace)

    departed = Departed(Away(tmp_path), clear)
    departed.add(ServedVersion(plain))
    await departed.look()
