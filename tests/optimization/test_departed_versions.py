"""What is remembered of deleted versions is cleared, of all others it stays."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from hone.repository.v1 import models_pb2, models_pb2_grpc

from services.chassis.server import Server
from services.optimization.errors import ERRORS
from services.optimization.model_servicer import ModelServicer
from services.optimization.remembered.departed import Departed
from services.optimization.settings import OptimizationSettings
from services.repository.store import Origin, Repository
from services.repository.uploads import UploadLimits, Uploads
from tests.models import minilm_signature


class Cache:
    """`cleared` are namespaces in their order; while `fault` is set, none is."""

    def __init__(self) -> None:
        self.cleared: list[str] = []
        self.fault: Exception | None = None
        self.asked = asyncio.Event()

    async def clear(self, namespace: str) -> int:
        self.asked.set()
        if self.fault is not None:
            raise self.fault
        self.cleared.append(namespace)
        return 1


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    found = Repository(tmp_path / "repository")
    for _ in range(2):
        with found.staging() as staged:
            (staged / "weights").write_bytes(b"w")
            found.seal(staged, "m", minilm_signature(), Origin())
    return found


async def test_only_versions_that_the_repository_has_no_more_are_cleared_and_once(repository: Repository) -> None:
    cache = Cache()
    departed = Departed(repository, cache.clear)
    departed.ran(["m@1", "m@2"])
    departed.ran(["m@1", "gone@7"])
    await departed.look()
    assert cache.cleared == ["optimization/gone@7"]
    repository.delete("m", 1)
    for _ in range(2):
        await departed.look()
    assert cache.cleared == ["optimization/gone@7", "optimization/m@1"]


async def test_a_version_that_nobody_here_knew_is_not_asked_for(repository: Repository) -> None:
    cache = Cache()
    repository.delete("m", 1)
    await Departed(repository, cache.clear).look()
    assert cache.cleared == []


async def test_a_cache_that_is_away_is_asked_again(repository: Repository) -> None:
    cache = Cache()
    cache.fault = ConnectionError("no cache")
    departed = Departed(repository, cache.clear)
    repository.delete("m", 1)
    departed.deleted("m@1")
    await departed.look()
    assert cache.cleared == []
    cache.fault = None
    await departed.look()
    assert cache.cleared == ["optimization/m@1"]


@asynccontextmanager
async def door(repository: Repository, departed: Departed) -> "AsyncIterator[models_pb2_grpc.ModelServiceAsyncStub]":
    server = Server(OptimizationSettings(port=0), ERRORS)
    servicer = ModelServicer(repository, Uploads(repository.root / "uploads", UploadLimits(1 << 20)), departed)
    models_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server.grpc)
    async with server.running([]), grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield models_pb2_grpc.ModelServiceStub(channel)


async def test_a_deletion_clears_at_once_and_a_refused_one_never(repository: Repository) -> None:
    cache = Cache()
    departed = Departed(repository, cache.clear)
    following = asyncio.ensure_future(departed.follow())
    repository.set_channel("m", "stable", 2)
    async with door(repository, departed) as models:
        with pytest.raises(grpc.aio.AioRpcError):
            await models.DeleteVersion(models_pb2.DeleteVersionRequest(name="m", version=2))
        await models.DeleteVersion(models_pb2.DeleteVersionRequest(name="m", version=1))
        async with asyncio.timeout(10):  # far below the time between two looks
            await cache.asked.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert cache.cleared == ["optimization/m@1"]
