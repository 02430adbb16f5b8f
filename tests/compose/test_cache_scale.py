"""Profile `scale`: replicas of the cache share what lies in a Valkey server, and go on without it when it is gone."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import hone
import pytest
from hone.cache.v1 import cache_pb2
from hone.cached import Cached

from tests.compose.compose_project import ComposeProject, eventually

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

BUILD_TIMEOUT_S = 800  # without a cache of layers
OUTAGE_LIMIT_S = 2.0  # of a call: the server's time-out, and what a busy machine adds
SERVICES = ("cache", "valkey")
OK = [cache_pb2.ITEM_STATUS_OK]


@pytest.fixture(scope="module")
def project() -> Iterator[ComposeProject]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HONE_CACHE_STORE", "valkey")
        environment.setenv("HONE_CACHE_URL", "valkey://valkey:6379/0")
        environment.setenv("COMPOSE_PROFILES", "scale")
        project = ComposeProject("hone-scale-test", "compose.yaml", "tests/compose/scale.yaml")
    try:
        project.run("build", "cache", timeout_s=BUILD_TIMEOUT_S)
        project.up("--scale", "cache=2", *SERVICES)
        yield project
    finally:
        project.remove()


@pytest.fixture
def replicas(project: ComposeProject) -> Iterator[list[hone.Client]]:
    """A client of each replica: the gateway would not tell which of them answers."""
    project.up("--scale", "cache=2", *SERVICES)
    with ExitStack() as stack:
        addresses = [port.partition("->")[0] for port in project.published()["cache"]]
        clients = [stack.enter_context(hone.Client(cache=address, retries=False)) for address in addresses]
        assert len(clients) == 2
        assert eventually(lambda: all(stores(client) for client in clients), within_s=60)
        yield clients


def stores(client: hone.Client) -> bool:
    try:
        return client.cache.put("ready", {b"a": b"1"}) == OK
    except grpc.RpcError:
        return False


def test_what_one_replica_stores_clears_and_leases_the_other_knows(replicas: list[hone.Client]) -> None:
    one, other = (client.cache for client in replicas)
    assert one.put("n", {b"a": b"1"}) == OK
    assert other.get("n", [b"a"]) == [b"1"]
    assert one.get_or_lease("n", [b"b"], lease=30)[0].lease > 0
    assert other.get_or_lease("n", [b"b"], lease=30) == [Cached(leased=True)]
    other.clear("n")
    assert one.get("n", [b"a"]) == [None]


def test_a_replica_tells_its_watchers_what_another_changes(replicas: list[hone.Client]) -> None:
    one, other = (client.cache for client in replicas)
    told = one.watch(["watched"], timeout=60)
    assert next(told).WhichOneof("what") == "began"
    assert other.put("watched", {b"a": b"1"}) == OK
    assert next(told).changed.keys == [b"a"]


def test_a_killed_server_is_a_miss_within_the_time_limit_and_comes_back(project: ComposeProject, replicas: list[hone.Client]) -> None:
    one, other = (client.cache for client in replicas)
    assert one.put("n", {b"a": b"1"}) == OK
    before = project.containers("cache")
    (server,) = project.containers("valkey")
    with project.paused(server):
        for cache in (one, other):  # the first call waits for the time-out, the next ones not even that
            for _ in range(5):
                begun_s = time.monotonic()
                assert cache.get("n", [b"a"]) == [None]
                assert time.monotonic() - begun_s < OUTAGE_LIMIT_S
    assert eventually(lambda: other.get("n", [b"a"]) == [b"1"], within_s=60)
    project.signal(server, "SIGKILL")  # gone, and what it held with it
    begun_s = time.monotonic()
    assert one.get("n", [b"a"]) == [None]
    assert time.monotonic() - begun_s < OUTAGE_LIMIT_S
    project.up("--scale", "cache=2", *SERVICES)
    assert eventually(lambda: one.put("n", {b"a": b"2"}) == OK and other.get("n", [b"a"]) == [b"2"], within_s=60)
    assert project.containers("cache") == before  # no replica went with it
