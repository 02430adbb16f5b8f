"""Two replicas of the service as processes over one Valkey server: what one stores, clears or leases, the other knows."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hone.cache.v1 import cache_pb2 as pb
from hone.cache.v1 import cache_pb2_grpc

from benchmarks.valkey import Server, running_server
from tests.cache.cache_processes import ROOT, start
from tests.cache.valkey_servers import needs_server

PASSWORD = "no-log-may-tell-it"
LONG = Duration(seconds=30)


Replicas = tuple["cache_pb2_grpc.CacheServiceAsyncStub", "cache_pb2_grpc.CacheServiceAsyncStub"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    needs_server()
    with running_server("--requirepass", PASSWORD) as running:
        yield running


def settings(server: Server, password: str = PASSWORD) -> dict[str, str]:
    return {"HONE_CACHE_STORE": "valkey", "HONE_CACHE_URL": f"valkey://:{password}@127.0.0.1:{server.port}/0"}


@contextmanager
def running(server: Server) -> Iterator[str]:
    """A service and its address."""
    environment = {**os.environ, "HONE_CACHE_PORT": "0", "PYTHONPATH": str(ROOT / "clients" / "python"), **settings(server)}
    command = [sys.executable, "-m", "services.cache"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            records = map(json.loads, process.stderr)
            yield next(f"127.0.0.1:{record['port']}" for record in records if record["event"] == "listening")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def addresses(server: Server) -> Iterator[tuple[str, str]]:
    with running(server) as one, running(server) as other:
        yield one, other


@pytest.fixture
async def replicas(addresses: tuple[str, str]) -> AsyncIterator[Replicas]:
    async with grpc.aio.insecure_channel(addresses[0]) as one, grpc.aio.insecure_channel(addresses[1]) as other:
        yield cache_pb2_grpc.CacheServiceStub(one), cache_pb2_grpc.CacheServiceStub(other)


async def test_one_computes_and_the_other_waits_for_it(replicas: Replicas) -> None:
    one, other = replicas
    asked = await one.Get(pb.GetRequest(namespace="shared", keys=[b"k"], lease=LONG))
    lease = asked.results[0].lease
    assert lease
    waiting = other.Get(pb.GetRequest(namespace="shared", keys=[b"k"], lease=LONG, wait=LONG))
    refused = await other.Get(pb.GetRequest(namespace="shared", keys=[b"k"], lease=LONG))
    assert refused.results[0].status == pb.ITEM_STATUS_LEASED
    stored = await other.Put(pb.PutRequest(namespace="shared", entries=[pb.Entry(key=b"k", value=b"v", lease=lease)]))
    assert list(stored.statuses) == [pb.ITEM_STATUS_OK]
    assert (await waiting).results[0].value == b"v"


async def test_a_clear_at_one_ends_a_lease_that_the_other_gave(replicas: Replicas) -> None:
    one, other = replicas
    lease = (await one.Get(pb.GetRequest(namespace="cleared", keys=[b"k"], lease=LONG))).results[0].lease
    cleared = await other.Clear(pb.ClearRequest(namespace="cleared"))
    stored = await one.Put(pb.PutRequest(namespace="cleared", entries=[pb.Entry(key=b"k", value=b"v", lease=lease)]))
    assert list(stored.statuses) == [pb.ITEM_STATUS_LEASE_LOST]
    assert (await one.Clear(pb.ClearRequest(namespace="cleared"))).epoch == cleared.epoch + 1


async def test_who_watches_one_is_told_what_the_other_changed(replicas: Replicas) -> None:
    one, other = replicas
    told = one.Watch(pb.WatchRequest(namespaces=["watched"]), wait_for_ready=True)
    assert (await told.read()).HasField("began")
    await other.Put(pb.PutRequest(namespace="watched", entries=[pb.Entry(key=b"k", value=b"v")]))
    assert (await told.read()).changed == pb.ChangedKeys(namespace="watched", keys=[b"k"])
    await other.Clear(pb.ClearRequest(namespace="watched"))
    assert (await told.read()).cleared == "watched"


async def test_the_life_set_at_one_holds_at_the_other(replicas: Replicas) -> None:
    one, other = replicas
    await one.Configure(pb.ConfigureRequest(namespace="short", ttl=Duration(nanos=1_000_000)))
    await other.Put(pb.PutRequest(namespace="short", entries=[pb.Entry(key=b"k", value=b"v")]))
    while (await other.Get(pb.GetRequest(namespace="short", keys=[b"k"]))).results[0].status != pb.ITEM_STATUS_MISS:
        pass


async def test_a_wrong_password_ends_the_start_and_is_not_told(server: Server, tmp_path: Path) -> None:
    process = await start(tmp_path, **settings(server, "wrong-and-secret"))
    _, text = await process.communicate()
    assert process.returncode == 1
    assert b"the Valkey server refuses" in text
    assert b"secret" not in text
    assert b"Traceback" not in text


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"HONE_CACHE_STORE": "valkey"}, b"url and the store valkey need each other"),
        ({"HONE_CACHE_URL": "valkey://:secret@host"}, b"url and the store valkey need each other"),
        ({"HONE_CACHE_STORE": "valkey", "HONE_CACHE_URL": "https://:secret@host"}, b"HONE_CACHE_URL: String should match"),
        ({"HONE_CACHE_STORE": "valkey", "HONE_CACHE_URL": "valkey://h", "HONE_CACHE_EVICTION": "least-recently-used"}, b"maxmemory-policy"),
    ],
)
async def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, chosen: dict[str, str], reason: bytes) -> None:
    process = await start(tmp_path, **chosen)
    _, text = await process.communicate()
    assert process.returncode == 2
    assert reason in text
    assert b"secret" not in text
