"""What the cache's tests share: a clock that stands still, and a service in this process on a free port."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import pytest
from hone.cache.v1 import cache_pb2_grpc

from services.cache.bounded import BoundedStore
from services.cache.leases import LocalLeases
from services.cache.metered import MeteredStore
from services.cache.servicer import SERVICE, CacheServicer
from services.cache.settings import CacheSettings
from services.cache.store import Store
from services.chassis.errors import ErrorTable
from services.chassis.server import Server


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 4e9  # a century ahead: a disk store's clock must not run behind the machine's

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


Serve = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(store, max_batch=4) as stub`: the real server on a free port in front of `store`."""

    @asynccontextmanager
    async def start(
        store: Store, *, lease_clock: Callable[[], float] = time.monotonic, **settings: Any
    ) -> AsyncIterator["cache_pb2_grpc.CacheServiceAsyncStub"]:
        chosen = CacheSettings(port=0, **settings)
        server = Server(chosen, ErrorTable())
        bounded = BoundedStore(store, chosen.max_waiting)
        leases = LocalLeases(lease_clock, chosen.max_leases)
        door = CacheServicer(MeteredStore(bounded, server.registry), chosen, leases, unmetered=bounded)
        server.before_drain.append(door.end_streams)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(door, server.grpc)
        async with server.running([SERVICE]), grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = cache_pb2_grpc.CacheServiceStub(channel)
            stub.address = f"127.0.0.1:{server.port}"  # type: ignore[attr-defined]  # for those who bring a client
            yield stub

    return start
