"""The service as a process: killed, stopped under load, and refused a start."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hone.aio import CacheClient
from hone.cache.v1 import cache_pb2 as pb
from hone.cache.v1 import cache_pb2_grpc
from hone.near import NearCache

from services.cache.namespaces import TABLE_FILE
from tests.cache.cache_processes import serving, start

BATCH = 8
LONG_S = 30.0


def value_of(key: bytes) -> bytes:
    """Carries its key, so that a wrong value is seen."""
    return key * 300


async def write_on(stub: "cache_pb2_grpc.CacheServiceAsyncStub", writer: int, accepted: list[bytes], enough: asyncio.Event) -> None:
    """Puts batch after batch until the service goes; `accepted` are the keys whose put was answered OK."""
    number = 0
    with suppress(grpc.aio.AioRpcError):
        while True:
            keys = [b"%d-%d" % (writer, number + item) for item in range(BATCH)]
            entries = [pb.Entry(key=key, value=value_of(key)) for key in keys]
            answer = await stub.Put(pb.PutRequest(namespace="n", entries=entries))
            accepted.extend(key for key, status in zip(keys, answer.statuses, strict=True) if status == pb.ITEM_STATUS_OK)
            number += BATCH
            if number >= 20 * BATCH:
                enough.set()


async def until(holds: Callable[[], bool]) -> None:
    """Of what is told over a connection: nothing here is woken by it."""
    async with asyncio.timeout(LONG_S):
        while not holds():  # noqa: ASYNC110  no event is set by it
            await asyncio.sleep(0)


async def end_under_load(folder: Path, number: signal.Signals) -> tuple[list[bytes], int | None]:
    """Starts the service, writes with four callers, sends the signal; returns the accepted keys and the exit status."""
    accepted: list[bytes] = []
    enough = asyncio.Event()
    async with serving(folder) as (process, address), grpc.aio.insecure_channel(address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        writers = [asyncio.ensure_future(write_on(stub, writer, accepted, enough)) for writer in range(4)]
        await enough.wait()
        process.send_signal(number)
        await asyncio.gather(*writers)
        return accepted, await process.wait()


async def look_up(folder: Path, keys: list[bytes]) -> list[bytes | None]:
    values: list[bytes | None] = []
    async with serving(folder) as (_, address), grpc.aio.insecure_channel(address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        for begin in range(0, len(keys), 500):
            answer = await stub.Get(pb.GetRequest(namespace="n", keys=keys[begin : begin + 500]))
            values.extend(result.value if result.status == pb.ITEM_STATUS_OK else None for result in answer.results)
        assert (await stub.GetStats(pb.GetStatsRequest())).corrupt == 0
    return values


async def test_a_service_killed_under_writes_answers_again_and_never_wrongly(tmp_path: Path) -> None:
    accepted, status = await end_under_load(tmp_path, signal.SIGKILL)
    assert status == -signal.SIGKILL
    attempted = [b"%d-%d" % (writer, number) for writer in range(4) for number in range(len(accepted))]
    found = await look_up(tmp_path, attempted)
    assert all(value in (None, value_of(key)) for key, value in zip(attempted, found, strict=True))
    # A process's death loses no committed write: the kernel has them all.
    assert {key for key, value in zip(attempted, found, strict=True) if value is not None} >= set(accepted)


async def test_a_service_stopped_under_writes_loses_nothing_accepted(tmp_path: Path) -> None:
    accepted, status = await end_under_load(tmp_path, signal.SIGTERM)
    assert status == 0
    assert len(accepted) >= 20 * BATCH
    assert await look_up(tmp_path, accepted) == [value_of(key) for key in accepted]


async def test_what_was_cleared_stays_so_when_the_service_is_killed_at_once(tmp_path: Path) -> None:
    keys = [b"%d" % number for number in range(500)]
    async with serving(tmp_path) as (process, address), grpc.aio.insecure_channel(address) as channel:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        await stub.Put(pb.PutRequest(namespace="n", entries=[pb.Entry(key=key, value=value_of(key)) for key in keys]))
        assert (await stub.Clear(pb.ClearRequest(namespace="n"))).epoch == 1
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert await look_up(tmp_path, keys) == [None] * 500


async def test_a_watch_does_not_hold_a_stop_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as (process, address), grpc.aio.insecure_channel(address) as channel:
        told = cache_pb2_grpc.CacheServiceStub(channel).Watch(pb.WatchRequest())
        assert (await told.read()).HasField("began")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):  # less than the grace that a running call has
            assert await process.wait() == 0


async def test_near_caches_begin_afresh_with_a_service_that_lost_its_table(tmp_path: Path) -> None:
    async with serving(tmp_path) as (process, address), CacheClient(address) as client, NearCache(client, bound_s=LONG_S) as near:
        await until(lambda: near.watching)
        await near.put("n", {b"a": b"old"})
        assert [await near.get("n", [b"a"]) for _ in range(2)] == [[b"old"]] * 2
        assert (near.hits, near.misses) == (1, 1)
        process.kill()
        await until(lambda: not near.watching)
        assert near.held_bytes == 0
        (tmp_path / TABLE_FILE).write_bytes(b"this is not a database" * 1_000)
        async with serving(tmp_path, HONE_CACHE_PORT=address.rpartition(":")[2]):
            await until(lambda: near.watching)
            assert await near.get("n", [b"a"]) == [None]
            await client.put("n", {b"a": b"new"})
            assert await near.get("n", [b"a"]) == [b"new"]
            await client.clear("n")  # the first of a table that counts from the start again; it is told all the same
            await until(lambda: near.held_bytes == 0)
            assert await near.get("n", [b"a"]) == [None]


async def test_a_second_process_on_the_folder_is_refused_with_its_reason(tmp_path: Path) -> None:
    async with serving(tmp_path):
        second = await start(tmp_path)
        _, text = await second.communicate()
    assert second.returncode == 1
    assert b"in use by another cache process" in text
    assert b"Traceback" not in text


async def test_a_taken_port_is_refused_with_its_reason(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as (_, address):
        second = await start(tmp_path / "b", HONE_CACHE_PORT=address.rpartition(":")[2])
        _, text = await second.communicate()
    assert second.returncode == 1
    assert b"cannot listen on" in text


async def test_contradictory_settings_end_with_status_2_before_anything_starts(tmp_path: Path) -> None:
    process = await start(tmp_path / "cache", HONE_CACHE_DEFAULT_TTL_S="100", HONE_CACHE_MAX_TTL_S="10")
    _, text = await process.communicate()
    assert process.returncode == 2
    assert b"default_ttl_s 100 is longer than max_ttl_s 10" in text
    assert not (tmp_path / "cache").exists()


async def test_health_tells_that_the_service_can_do_its_work(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, address), grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="hone.cache.v1.CacheService")
        async for response in stub.Watch(request):  # told NOT_SERVING first if it asks before the service is ready
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                break
