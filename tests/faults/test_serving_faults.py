"""Inference as a process under load: cancelled callers, full queues, passing deadlines, a stop, and a cache that dies or hangs."""

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hone.inference.v1 import inference_pb2 as pb
from hone.inference.v1 import inference_pb2_grpc

from benchmarks.sentences import sentences
from services import backends
from services.backends.text import pad, read_tokenizer
from services.chassis.errors import PUSHBACK_KEY
from services.repository.store import Origin, Repository
from tests.models import minilm, minilm_signature

ROOT = Path(__file__).parents[2]
FULL_NAMES = {"cache": "hone.cache.v1.CacheService", "inference": "hone.inference.v1.InferenceService"}
WAIT_S = 60.0  # only a hanging service waits so long

Stub = "inference_pb2_grpc.InferenceServiceAsyncStub"
Vectors = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    made = Repository(tmp_path_factory.mktemp("repository"))
    with made.staging() as staged:
        shutil.copytree(minilm(), staged, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        sealed = made.seal(staged, "minilm", minilm_signature(), Origin())
    made.set_channel("minilm", "stable", sealed.version)
    return made


@pytest.fixture(scope="module")
def truth() -> Vectors:
    """Sentences of mixed lengths, each with the vector that the model alone gives it."""
    drawn = sentences(64, seed=11)
    texts = [*drawn[:40], *(" ".join(drawn[start : start + 6]) for start in range(40, 60, 4)), "Yes.", "No."]
    signature, tokenizer = minilm_signature(), read_tokenizer(minilm())
    tokenizer.enable_truncation(256)
    model = backends.load(minilm(), signature, threads=1)

    def vector(text: str) -> np.ndarray:
        ids = np.array(tokenizer.encode(text).ids, np.int64)
        return model.run(pad([ids], signature), ["embedding"])["embedding"][0]

    found = {text: vector(text) for text in texts}
    model.close()
    return found


@pytest.fixture(scope="module")
def long_texts() -> list[str]:
    """Distinct texts of the model's 256 tokens: each takes its time."""
    words = sentences(300, seed=12)
    return [" ".join(words[start : start + 30]) for start in range(0, 240, 5)]


async def _listening(process: Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        record = json.loads(line)
        if record["event"] == "listening":
            return f"127.0.0.1:{record['port']}"
    raise AssertionError("the service ended without listening")


async def _swallow(stream: asyncio.StreamReader | None) -> None:
    """A full pipe would stop the service."""
    while stream is not None and await stream.read(1 << 16):
        pass


async def _ready(channel: grpc.aio.Channel, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=FULL_NAMES[service])
    async for response in health_pb2_grpc.HealthStub(channel).Watch(request):
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return


@asynccontextmanager
async def running(service: str, **settings: object) -> AsyncIterator[tuple[Process, str]]:
    """A service as a process, ready, and its address; killed at the end of the block if it still runs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HONE_")}
    environment |= {f"HONE_{service.upper()}_{name}": str(value) for name, value in {"PORT": 0, **settings}.items()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", f"services.{service}", cwd=ROOT, env=environment, stderr=PIPE)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(process.wait)
        stack.callback(_kill, process)
        address = await _listening(process)
        swallowing = asyncio.create_task(_swallow(process.stderr))
        stack.push_async_callback(asyncio.wait, [swallowing])
        stack.callback(_kill, process)  # before its output is awaited
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.wait_for(_ready(channel, service), 2 * WAIT_S)
        yield process, address


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


@asynccontextmanager
async def serving(repository: Repository, **settings: object) -> AsyncIterator[tuple[Process, Stub]]:
    chosen = {"REPOSITORY": repository.root, "INSTANCES": 1, "THREADS": 1, "ANSWERS_BYTES": 0, **settings}
    async with running("inference", **chosen) as (process, address), grpc.aio.insecure_channel(address) as channel:
        yield process, inference_pb2_grpc.InferenceServiceStub(channel)


def embed(stub: Stub, texts: Sequence[str], timeout: float = WAIT_S) -> "grpc.aio.UnaryUnaryCall[pb.EmbedRequest, pb.EmbedResponse]":
    return stub.Embed(pb.EmbedRequest(model="minilm", texts=texts, options={"truncate": True}), timeout=timeout)


async def outcome(call: "grpc.aio.UnaryUnaryCall[pb.EmbedRequest, pb.EmbedResponse]") -> pb.EmbedResponse | grpc.aio.AioRpcError:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


def check(response: object, texts: Sequence[str], truth: Vectors) -> pb.EmbedResponse:
    """The answer is that of the model alone, for each text in order."""
    assert isinstance(response, pb.EmbedResponse), response
    found = np.frombuffer(response.embeddings.data, np.float32).reshape(tuple(response.embeddings.shape))
    np.testing.assert_allclose(found, np.stack([truth[text] for text in texts]), atol=1e-4)
    return response


async def statistics(stub: Stub) -> pb.ModelStatistics:
    (found,) = (await stub.GetStatistics(pb.GetStatisticsRequest(model="minilm"))).models
    return found


async def taken(stub: Stub, requests: int) -> None:
    """Returns when the service has taken in that many calls."""
    async with asyncio.timeout(WAIT_S):
        while (await statistics(stub)).requests < requests:
            pass


async def test_everyone_of_many_callers_gets_their_own_answer_whoever_cancels(repository: Repository, truth: Vectors) -> None:
    draw = random.Random(5)
    texts = list(truth)
    async with serving(repository, INSTANCES=2) as (_, stub):
        asked = [draw.sample(texts, draw.choice([1, 1, 1, 2, 4])) for _ in range(128)]
        calls = [embed(stub, rows) for rows in asked]
        doomed = draw.sample(range(128), 40)
        stayers = [index for index in range(128) if index not in doomed]
        tasks = {index: asyncio.create_task(outcome(calls[index])) for index in stayers}
        for index in doomed[:10]:
            calls[index].cancel()
        remaining = doomed[10:]
        for done in asyncio.as_completed(tasks.values()):  # an answer, a cancellation: at every stage of the others
            await done
            if remaining:
                calls[remaining.pop()].cancel()
        for index, task in tasks.items():
            check(await task, asked[index], truth)
        async with asyncio.timeout(WAIT_S):
            while (await statistics(stub)).queued_rows:  # nothing of those who left stays behind
                pass


async def test_overload_is_refused_at_once_with_push_back_and_harms_no_accepted_call(
    repository: Repository, long_texts: Sequence[str]
) -> None:
    async with serving(repository, BATCH_ROWS=1, QUEUE_ROWS=4, MAX_ROWS=4) as (_, stub):
        order: list[pb.EmbedResponse | grpc.aio.AioRpcError] = []

        async def ask(text: str) -> None:
            order.append(await outcome(embed(stub, [text])))

        await asyncio.gather(*(ask(text) for text in long_texts))
        counted = await statistics(stub)
    refused = [found for found in order if isinstance(found, grpc.aio.AioRpcError)]
    answered = [found for found in order if isinstance(found, pb.EmbedResponse)]
    assert len(answered) >= 4
    assert len(refused) >= 1
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(int(dict(error.trailing_metadata())[PUSHBACK_KEY]) > 0 for error in refused)
    assert order.index(refused[-1]) < order.index(answered[-1])  # told while others still waited for their turn
    assert (counted.refused_requests, counted.batch_rows) == (len(refused), len(answered))


async def test_a_deadline_that_passes_in_the_queue_is_told_and_its_row_never_runs(
    repository: Repository, long_texts: Sequence[str]
) -> None:
    *before, late = long_texts
    async with serving(repository, BATCH_ROWS=1, BATCHING="first-come") as (_, stub):
        calls = [asyncio.create_task(outcome(embed(stub, [text]))) for text in before]
        await taken(stub, len(before))
        error = await outcome(embed(stub, [late], timeout=0.05))
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert all(isinstance(found, pb.EmbedResponse) for found in await asyncio.gather(*calls))
        counted = await statistics(stub)
    assert (counted.batch_rows, counted.queued_rows) == (len(before), 0)


async def test_a_stop_under_load_answers_every_call_taken_and_hangs_none(repository: Repository, truth: Vectors) -> None:
    texts = list(truth)
    async with serving(repository) as (process, stub), asyncio.timeout(2 * WAIT_S):
        before = [asyncio.create_task(outcome(embed(stub, [text]))) for text in texts * 2]
        await taken(stub, len(before))
        process.send_signal(signal.SIGTERM)
        after = [asyncio.create_task(outcome(embed(stub, [text]))) for text in texts]
        for text, found in zip(texts * 2, await asyncio.gather(*before), strict=True):
            check(found, [text], truth)
        for text, found in zip(texts, await asyncio.gather(*after), strict=True):
            if isinstance(found, grpc.aio.AioRpcError):
                assert found.code() is grpc.StatusCode.UNAVAILABLE, found
            else:
                check(found, [text], truth)
        assert await process.wait() == 0


async def remembered(stub: Stub, text: str, truth: Vectors) -> None:
    """Asks until the cache service knows the answer, which it is told off the caller's path."""
    async with asyncio.timeout(WAIT_S):
        while not check(await embed(stub, [text]), [text], truth).served.cached_rows:
            pass


async def test_a_killed_cache_service_is_a_miss(repository: Repository, truth: Vectors, tmp_path: Path) -> None:
    texts = list(truth)
    async with (
        running("cache", FOLDER=tmp_path) as (cache, address),
        serving(repository, CACHE=address, CACHE_TIMEOUT_S=0.5) as (_, stub),
    ):
        await remembered(stub, texts[0], truth)
        calls = [asyncio.create_task(outcome(embed(stub, [text]))) for text in texts]
        cache.send_signal(signal.SIGKILL)
        calls += [asyncio.create_task(outcome(embed(stub, [text]))) for text in texts]
        for text, found in zip(texts * 2, await asyncio.gather(*calls), strict=True):
            check(found, [text], truth)


async def test_a_hung_cache_service_is_left_alone_and_taken_up_again(repository: Repository, truth: Vectors, tmp_path: Path) -> None:
    texts = list(truth)
    time_out_s = 0.5
    async with (
        running("cache", FOLDER=tmp_path) as (cache, address),
        serving(repository, CACHE=address, CACHE_TIMEOUT_S=time_out_s) as (_, stub),
    ):
        await remembered(stub, texts[0], truth)
        cache.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        for text in texts:
            assert not check(await embed(stub, [text]), [text], truth).served.cached_rows
        # Waiting for it in every call would take this long and the model's time besides.
        assert time.monotonic() - begun < len(texts) * time_out_s
        cache.send_signal(signal.SIGCONT)
        await remembered(stub, texts[1], truth)
