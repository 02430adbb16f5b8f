"""Both clients against the running suite: what one says, the other says."""

import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import hone
import hone.aio
import numpy as np
import pytest
from hone.cache.v1 import cache_pb2
from hone.specs import job_spec

from tests.models import minilm

TEXTS = ["the quick brown fox", "jumps over", "a lazy dog"]
Suite = Any  # of tests/conftest.py


class Awaited:
    """The synchronous client with every call awaitable, so that each test speaks to both."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return Awaited(found)

        async def call(*args: Any, **options: Any) -> Any:
            return found(*args, **options)

        return call


@pytest.fixture(params=["sync", "aio"])
async def client(request: pytest.FixtureRequest, suite: Suite) -> AsyncIterator[Any]:
    if request.param == "sync":
        with suite.client() as connected:
            yield Awaited(connected)
    else:
        async with hone.aio.Client(**suite.addresses) as connected:
            yield connected


async def listed(found: Any) -> list[Any]:
    """What a client lists, synchronous or not."""
    found = await found if inspect.isawaitable(found) else found
    return [each async for each in found] if hasattr(found, "__aiter__") else list(found)


async def test_embed(client: Any) -> None:
    answer = await client.embed("minilm", TEXTS, bypass_cache=True)
    assert answer.vectors.shape == (3, 384)
    assert answer.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(answer.vectors, axis=1), 1, atol=1e-5)
    assert (answer.served.model, answer.served.version, answer.served.variant, answer.served.cached_rows) == ("minilm", 1, "stable", 0)
    again = await client.embed("minilm@1", TEXTS[:1], priority=9, timeout=20)
    np.testing.assert_allclose(again.vectors[0], answer.vectors[0], atol=1e-5)


async def test_predict(client: Any) -> None:
    ids = np.array([[101, 2026, 102], [101, 102, 0]], np.int64)
    mask = np.array([[1, 1, 1], [1, 1, 0]], np.int64)
    answer = await client.predict("minilm", {"input_ids": ids, "attention_mask": mask}, ["embedding"])
    assert {name: output.shape for name, output in answer.outputs.items()} == {"embedding": (2, 384)}
    with pytest.raises(TypeError, match="cannot be sent"):
        await client.predict("minilm", {"input_ids": np.array(["text"])})


async def test_refusals_carry_the_contracts_codes(client: Any) -> None:
    for call, code in (
        (client.classify("minilm", TEXTS), grpc.StatusCode.FAILED_PRECONDITION),
        (client.embed("nobody", TEXTS), grpc.StatusCode.NOT_FOUND),
        (client.embed("minilm", []), grpc.StatusCode.INVALID_ARGUMENT),
        (client.models.get("nobody"), grpc.StatusCode.NOT_FOUND),
        (client.jobs.get("nobody"), grpc.StatusCode.NOT_FOUND),
        (client.unload("minilm@1"), grpc.StatusCode.FAILED_PRECONDITION),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await call
        assert caught.value.code() is code


async def test_serving(client: Any) -> None:
    served = {(model.name, model.version): model for model in (await client.serving()).models}
    assert list(served["minilm", 1].channels) == ["stable"]
    assert (await client.wait_until_served("minilm", version=1, timeout=20)).name == "minilm"
    with pytest.raises(TimeoutError, match="minilm: served by version 1"):
        await client.wait_until_served("minilm", version=2, timeout=0.3)
    assert (await client.load("minilm@1")).version == 1


async def test_models(client: Any, tmp_path: Path) -> None:
    pushed = await client.models.push(minilm(), "minilm", channels=["stable"])
    assert pushed.version == 1  # the same folder is the same version
    assert (await client.models.get("minilm")).digest == pushed.digest
    pulled = await client.models.pull("minilm", tmp_path / "copy")
    assert pulled == await client.models.get("minilm@1")
    for entry in pulled.files:
        assert (tmp_path / "copy" / entry.path).read_bytes() == (minilm() / entry.path).read_bytes()
    assert [model.version for model in await listed(client.models.list("minilm"))] == [1]
    assert (await client.models.promote("minilm", 1)).version == 1
    with pytest.raises(grpc.RpcError) as caught:
        await client.models.roll_back("minilm")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as caught:
        await client.models.delete("minilm", 1)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_folder_that_is_none(client: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        await client.models.push(tmp_path / "nowhere", "m")
    with pytest.raises(FileNotFoundError, match="holds no file"):
        await client.models.push(tmp_path, "m")


async def test_jobs(client: Any) -> None:
    assert "dynamic_int8" in {technique.name for technique in await client.jobs.techniques()}
    spec = job_spec("minilm", evaluation=TEXTS, channels=["none-of-it"])
    job = await client.jobs.create(spec, request_id=f"{type(client).__name__}-1")
    assert (await client.jobs.create(spec, request_id=f"{type(client).__name__}-1")).id == job.id
    await client.jobs.cancel(job.id)
    events = await listed(client.jobs.watch(job.id))
    ended = await client.jobs.wait(job.id)
    assert ended.state == events[-1].state
    assert [event.sequence for event in events] == list(range(1, ended.last_sequence + 1))
    assert job.id in {found.id for found in await listed(client.jobs.list([ended.state]))}


async def test_cache(client: Any) -> None:
    namespace = f"test-{type(client).__name__}"
    statuses = await client.cache.put(namespace, {b"a": b"1", b"b": b"2", b"": b"3"}, ttl=60.5)
    assert statuses == [cache_pb2.ITEM_STATUS_OK, cache_pb2.ITEM_STATUS_OK, cache_pb2.ITEM_STATUS_TOO_LARGE]
    await client.cache.delete(namespace, [b"b"])
    assert await client.cache.get(namespace, [b"a", b"b"]) == [b"1", None]
    epoch = await client.cache.clear(namespace)
    assert await client.cache.clear(namespace) == epoch + 1
    assert await client.cache.get(namespace, [b"a"]) == [None]
    assert (await client.cache.stats()).puts >= 2
    with pytest.raises(grpc.RpcError) as caught:
        await client.cache.put(namespace, {b"a": b"1"}, ttl=-0.5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_progress_ends_at_the_whole(suite: Suite, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with suite.client() as client:
        size = client.models.get("minilm").size_bytes
        client.models.pull("minilm", tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == size
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_an_address_is_looked_for_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from hone.channel import addresses

    monkeypatch.delenv("HONE_ADDRESS", raising=False)
    nothing = {"optimization": None, "inference": None, "cache": None}
    assert addresses(None, **nothing).cache == "127.0.0.1:7003"
    monkeypatch.setenv("HONE_ADDRESS", "gateway:1")
    assert addresses(None, **nothing).cache == "gateway:1"
    assert addresses("given:2", **nothing).cache == "given:2"
    assert addresses("given:2", **{**nothing, "cache": "own:3"}).cache == "own:3"
