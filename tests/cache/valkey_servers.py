"""A real Valkey or Redis server for tests, where one is installed; CI installs one."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from benchmarks.valkey import Server, program, running_server
from services.cache.valkey_server import ValkeyServer, valkey_server

TIMEOUT_S = 5.0

Connect = Callable[[], AbstractAsyncContextManager[ValkeyServer]]


def needs_server() -> None:
    if program() is None:
        pytest.skip("no Valkey or Redis server is installed (Debian: apt-get install redis-server)")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    """One server for a file's tests, which each find it empty by `valkey`."""
    needs_server()
    with running_server() as server:
        yield server


@pytest.fixture
async def valkey(shared_server: Server) -> AsyncIterator[ValkeyServer]:
    async with connected(shared_server) as server:
        await server.send(lambda pipeline: pipeline.flushall())
        yield server


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that a test may kill."""
    needs_server()
    with running_server() as server:
        yield server


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[ValkeyServer]:
    async with valkey_server(server.url, TIMEOUT_S) as connection:
        yield connection


@asynccontextmanager
async def direct(server: Server, **options: Any) -> AsyncIterator[Redis]:
    """The server as its own clients see it."""
    async with Redis(port=server.port, protocol=2, **options) as client:
        yield client
