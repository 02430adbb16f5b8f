"""Jobs in worker processes, and a cache service in between: what one finds out the next one asks for, until the version is deleted."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from hone.aio import CacheClient
from hone.cache.v1 import cache_pb2_grpc

from services.cache.leases import LocalLeases
from services.cache.memory import MemoryStore
from services.cache.servicer import SERVICE, CacheServicer
from services.cache.settings import CacheSettings
from services.cache.store import Entry
from services.chassis.errors import ErrorTable
from services.chassis.server import Server
from services.optimization.jobs.job import Job, State
from services.optimization.recipe import Recipe, Step
from services.optimization.remembered.departed import Departed
from services.optimization.spec import DataSource, Spec
from services.repository.dataset_manifest import Column, ColumnKind, Contents, DatasetFormat
from services.repository.datasets import Datasets
from services.repository.store import Origin, Repository
from tests.optimization.techniques.exports import tensor_examples, tensor_model
from tests.optimization.test_runner import SHUT, Bench, bench

NAMESPACE = "optimization/m@1"
QUANTIZE = Step(technique="dynamic_int8", parameters={"target_fidelity": None})


class Recording(MemoryStore):
    """Tells what was put and what was found, by namespace and key."""

    def __init__(self) -> None:
        super().__init__(1 << 26, time.monotonic)
        self.stored: list[tuple[str, bytes]] = []
        self.found: list[tuple[str, bytes]] = []

    async def get(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        values = await super().get(namespace, keys)
        self.found += [(namespace, key) for key, value in zip(keys, values, strict=True) if value is not None]
        return values

    async def put(self, namespace: str, entries: Sequence[Entry], *, epoch: int | None = None) -> list[bool]:
        self.stored += [(namespace, entry.key) for entry in entries]
        return await super().put(namespace, entries, epoch=epoch)


@asynccontextmanager
async def serving(store: MemoryStore) -> AsyncIterator[str]:
    """The cache service's address."""
    settings = CacheSettings(port=0)
    server = Server(settings, ErrorTable())
    door = CacheServicer(store, settings, LocalLeases(time.monotonic, settings.max_leases))
    server.before_drain.append(door.end_streams)
    cache_pb2_grpc.add_CacheServiceServicer_to_server(door, server.grpc)
    async with server.running([SERVICE]):
        yield f"127.0.0.1:{server.port}"


def furnish(root: Path) -> Repository:
    """A model of two small products: its workers need no engine but ONNX Runtime, and start soon."""
    repository, datasets = Repository(root), Datasets(root)
    with repository.staging() as staged:
        model, signature = tensor_model(staged / "model")
        repository.seal(model, "m", signature, Origin())
    with datasets.staging() as staged:
        np.savez(staged / DatasetFormat.NPZ.file_name, x=tensor_examples().arrays["x"])
        columns = (Column(name="x", kind=ColumnKind.ARRAY, dtype="float32", shape=(8,)),)
        datasets.seal(staged, "d", DatasetFormat.NPZ, Contents(rows=32, columns=columns))
    return repository


async def ended(running: Bench, name: str) -> Job:
    data = DataSource(dataset="d@1")
    spec = Spec(source="m@1", recipes=(Recipe(name="int8", steps=(QUANTIZE,)),), evaluation=data, gates=SHUT)
    job = running.store.create(Job(name, name, spec.fingerprint, spec.model_dump_json(), "m@1", datetime.now(UTC)))
    running.runner.wake()
    return await running.until_ended(job.id)


async def test_a_repeated_job_finds_what_the_first_one_left_until_its_version_is_deleted(tmp_path: Path) -> None:
    store, repository = Recording(), furnish(tmp_path / "repository")
    async with serving(store) as address, CacheClient(address) as client:
        departed = Departed(repository, client.clear)
        async with bench(tmp_path, cache=address, departed=departed) as running:
            for name in ("first", "second"):
                job = await ended(running, name)
                assert job.state is State.REJECTED, job
        assert len(store.stored) == 4  # a slice and its head of what the original and the candidate answered
        assert sorted(store.stored) == sorted(store.found)
        assert {namespace for namespace, _ in store.stored} == {NAMESPACE}

        keys = [key for _, key in store.stored]
        await departed.look()
        assert None not in await store.get(NAMESPACE, keys)
        repository.delete("m", 1)
        await departed.look()
        assert await store.get(NAMESPACE, keys) == [None] * len(keys)
