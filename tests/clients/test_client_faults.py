"""Both clients against a server of ten lines that fails as it is told."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import hone
import hone.aio
import pytest
from grpc.aio import Metadata
from hone import transfers
from hone.channel import SAFE
from hone.inference.v1 import inference_pb2
from hone.optimization.v1 import advisor_pb2, jobs_pb2
from hone.repository.v1 import datasets_pb2, models_pb2

UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
Behaviour = Callable[[Any, grpc.ServicerContext], Any]
FILES = {"a": b"x" * 3_000_000, "b/c": b"", "d": b"last"}


def failing(code: grpc.StatusCode, times: int, answer: Any, pushback_ms: str = "", calls: list[float] | None = None) -> Behaviour:
    """Fails the first `times` calls, then answers. `calls` gets the time of each."""
    seen = calls if calls is not None else []

    def behave(_: Any, context: grpc.ServicerContext) -> Any:
        seen.append(time.monotonic())
        if len(seen) <= times:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback_ms),) if pushback_ms else ())
            context.abort(code, "as told")
        return answer

    return behave


@contextmanager
def serving(service: str, **methods: grpc.RpcMethodHandler) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def unary(behave: Behaviour, request: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(behave, request.FromString, lambda answer: answer.SerializeToString())


STATISTICS = inference_pb2.GetStatisticsResponse(replica="r")
INFERENCE, MODELS, JOBS = "hone.inference.v1.InferenceService", "hone.repository.v1.ModelService", "hone.optimization.v1.JobService"


@pytest.mark.parametrize("code", [UNAVAILABLE, EXHAUSTED])
def test_a_safe_call_is_repeated_at_the_servers_pace(code: grpc.StatusCode) -> None:
    calls: list[float] = []
    behave = failing(code, 2, STATISTICS, "300", calls)
    with serving(INFERENCE, GetStatistics=unary(behave, inference_pb2.GetStatisticsRequest)) as address, hone.Client(address) as client:
        assert client.statistics().replica == "r"
    assert len(calls) == 3
    assert all(later - earlier >= 0.29 for earlier, later in pairwise(calls))


async def test_the_asyncio_client_repeats_too() -> None:
    calls: list[float] = []
    behave = failing(UNAVAILABLE, 2, STATISTICS, "50", calls)
    with serving(INFERENCE, GetStatistics=unary(behave, inference_pb2.GetStatisticsRequest)) as address:
        async with hone.aio.Client(address) as client:
            assert (await client.statistics()).replica == "r"
    assert len(calls) == 3


@pytest.mark.parametrize("pushback_ms", ["-1", "soon"])
def test_a_server_that_wants_no_repetition_gets_none(pushback_ms: str) -> None:
    calls: list[float] = []
    behave = failing(UNAVAILABLE, 2, STATISTICS, pushback_ms, calls)
    with (
        serving(INFERENCE, GetStatistics=unary(behave, inference_pb2.GetStatisticsRequest)) as address,
        hone.Client(address) as client,
        pytest.raises(grpc.RpcError),
    ):
        client.statistics()
    assert len(calls) == 1


def test_repetition_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    behave = failing(UNAVAILABLE, 99, STATISTICS, "1", calls)
    with serving(INFERENCE, GetStatistics=unary(behave, inference_pb2.GetStatisticsRequest)) as address:
        with hone.Client(address) as client, pytest.raises(grpc.RpcError) as caught:
            client.statistics()
        assert caught.value.code() is UNAVAILABLE
        assert len(calls) == 5
        with hone.Client(address, retries=False) as client, pytest.raises(grpc.RpcError):
            client.statistics()
        assert len(calls) == 6


def test_what_is_not_safe_is_made_once() -> None:
    calls: list[float] = []
    rolled, deleted = models_pb2.RollBackResponse(), models_pb2.DeleteVersionResponse()
    handlers = {
        "RollBack": unary(failing(UNAVAILABLE, 9, rolled, "1", calls), models_pb2.RollBackRequest),
        "DeleteVersion": unary(failing(UNAVAILABLE, 9, deleted, "1", calls), models_pb2.DeleteVersionRequest),
    }
    with serving(MODELS, **handlers) as address, hone.Client(address) as client:
        for call in (lambda: client.models.roll_back("m"), lambda: client.models.delete("m", 1)):
            with pytest.raises(grpc.RpcError):
                call()
    assert len(calls) == 2


def test_a_full_job_queue_is_told_at_once() -> None:
    calls: list[float] = []
    behave = failing(EXHAUSTED, 9, jobs_pb2.CreateJobResponse(), "30000", calls)
    with (
        serving(JOBS, CreateJob=unary(behave, jobs_pb2.CreateJobRequest)) as address,
        hone.Client(address) as client,
        pytest.raises(grpc.RpcError) as caught,
    ):
        client.jobs.create(jobs_pb2.JobSpec())
    assert caught.value.code() is EXHAUSTED
    assert len(calls) == 1


def test_safe_methods_exist() -> None:
    from hone.cache.v1 import cache_pb2

    found = {
        service.full_name: {method.name for method in service.methods}
        for module in (advisor_pb2, cache_pb2, datasets_pb2, inference_pb2, jobs_pb2, models_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    assert all(set(methods) <= found[service] for service, methods in SAFE.items())
    assert not {"RollBack", "DeleteVersion", "UnloadModel", "UploadModel"} & {name for names in SAFE.values() for name in names}


class Recorder(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor):
    """Notes each call's deadline and lets it go on."""

    def __init__(self) -> None:
        self.timeouts: dict[str, float | None] = {}

    def _note(self, go_on: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        self.timeouts[details.method.rpartition("/")[2]] = details.timeout
        return go_on(details, request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _note


def test_every_call_has_a_deadline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder, connect = Recorder(), grpc.insecure_channel
    monkeypatch.setattr(grpc, "insecure_channel", lambda *args: grpc.intercept_channel(connect(*args), recorder))
    (tmp_path / "a").write_bytes(b"")
    monkeypatch.setattr("hone.client.ATTEMPTS", 1)
    with hone.Client("127.0.0.1:9", timeout=7, retries=False) as client:
        models, jobs, cache = client.models, client.jobs, client.cache
        monkeypatch.setattr(models, "_received", lambda _: {})
        for call in (
            lambda: client.embed("m", ["a"]),
            lambda: client.classify("m", ["a"]),
            lambda: client.predict("m", {}),
            client.serving,
            client.statistics,
            lambda: client.load("m"),
            lambda: client.unload("m@1"),
            lambda: models.push(tmp_path, "m"),
            lambda: models.pull("m", tmp_path / "copy"),
            lambda: models.get("m"),
            lambda: list(models.list()),
            lambda: models.promote("m", 1),
            lambda: models.roll_back("m"),
            lambda: models.delete("m", 1),
            lambda: jobs.create(jobs_pb2.JobSpec()),
            lambda: jobs.get("j"),
            lambda: list(jobs.list()),
            lambda: jobs.cancel("j"),
            lambda: list(jobs.watch("j")),
            jobs.techniques,
            lambda: cache.get("n", []),
            lambda: cache.get_or_lease("n", [], lease=1),
            lambda: cache.put("n", {}),
            lambda: cache.release("n", {}),
            lambda: cache.configure("n", ttl=1),
            lambda: cache.delete("n", []),
            lambda: cache.clear("n"),
            cache.stats,
        ):
            with pytest.raises(grpc.RpcError):
                call()
    assert len(recorder.timeouts) == 26  # ListModels is asked for at two services
    assert all(recorder.timeouts.values())
    assert recorder.timeouts["Embed"] == 7


# Uploads and downloads


class Receiver:
    """Breaks the first uploads after `breaks[i]` bytes each, and remembers what has arrived."""

    def __init__(self, breaks: Sequence[int]) -> None:
        self.breaks = list(breaks)
        self.files: dict[str, bytes] = {}
        self.starts: list[int] = []

    def get_upload(self, _: Any, context: grpc.ServicerContext) -> models_pb2.GetUploadResponse:
        return models_pb2.GetUploadResponse(received_bytes={path: len(data) for path, data in self.files.items()})

    def upload(self, requests: Iterator[models_pb2.UploadModelRequest], context: grpc.ServicerContext) -> models_pb2.UploadModelResponse:
        left = self.breaks.pop(0) if self.breaks else 1 << 30
        assert next(requests).WhichOneof("part") == "header"
        self.starts.append(sum(map(len, self.files.values())))
        for request in requests:
            part = request.chunk
            known = self.files.get(part.path, b"")
            assert part.offset == len(known)
            self.files[part.path] = known + part.data
            left -= len(part.data)
            if left <= 0:
                context.abort(UNAVAILABLE, "broken")
        return models_pb2.UploadModelResponse(model=models_pb2.ModelVersion(name="m", version=1))

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        upload = grpc.stream_unary_rpc_method_handler(
            self.upload, models_pb2.UploadModelRequest.FromString, models_pb2.UploadModelResponse.SerializeToString
        )
        return {"UploadModel": upload, "GetUpload": unary(self.get_upload, models_pb2.GetUploadRequest)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, data in {**FILES, ".git/config": b"hidden"}.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(data)
    return tmp_path / "model"


def test_a_push_goes_on_where_it_broke(folder: Path) -> None:
    receiver, told = Receiver([1, 1_500_000]), []
    with serving(MODELS, **receiver.handlers()) as address, hone.Client(address) as client:
        assert client.models.push(folder, "m", progress=lambda done, total: told.append((done, total))).version == 1
    assert receiver.files == {path: data for path, data in FILES.items() if data}
    assert receiver.starts == sorted(receiver.starts)
    assert len(set(receiver.starts)) == 3
    assert told[-1] == (3_000_004, 3_000_004)


async def test_an_asyncio_push_goes_on_too(folder: Path) -> None:
    receiver = Receiver([1])
    with serving(MODELS, **receiver.handlers()) as address:
        async with hone.aio.Client(address) as client:
            assert (await client.models.push(folder, "m")).version == 1
    assert receiver.files == {path: data for path, data in FILES.items() if data}
    assert len(receiver.starts) == 2


async def test_a_connection_broken_under_a_message_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What grpc.aio reports then is made by itself, and is not UNAVAILABLE."""
    broken = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), Metadata(), "Internal error from Core")
    refused = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), Metadata(), "the server's own fault")
    faults = [broken, refused]

    async def attempt() -> None:
        raise faults.pop(0)

    monkeypatch.setattr(transfers, "_pause_s", lambda number: 0.0)
    with pytest.raises(grpc.aio.AioRpcError, match="own fault"):
        await transfers.resuming_async(attempt)
    assert not faults


def downloading(files: dict[str, bytes], chunks: Sequence[models_pb2.FileChunk] | None = None) -> dict[str, grpc.RpcMethodHandler]:
    """Describes `files` and sends them, or `chunks` in their place."""
    entries = [models_pb2.File(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for path, data in files.items()]

    def download(_: Any, context: grpc.ServicerContext) -> Iterator[models_pb2.DownloadModelResponse]:
        yield models_pb2.DownloadModelResponse(model=models_pb2.ModelVersion(name="m", version=1, files=entries))
        sent = [models_pb2.FileChunk(path=path, data=data) for path, data in files.items() if data] if chunks is None else chunks
        for chunk in sent:
            yield models_pb2.DownloadModelResponse(chunk=chunk)

    serialize = models_pb2.DownloadModelResponse.SerializeToString
    return {"DownloadModel": grpc.unary_stream_rpc_method_handler(download, models_pb2.DownloadModelRequest.FromString, serialize)}


def test_a_pull_is_what_was_described(tmp_path: Path) -> None:
    with serving(MODELS, **downloading(FILES)) as address, hone.Client(address) as client:
        client.models.pull("m", tmp_path)
        assert {path: (tmp_path / path).read_bytes() for path in FILES} == FILES
        (tmp_path / "a").write_bytes(b"longer than before" * 1_000_000)
        client.models.pull("m", tmp_path)
        assert (tmp_path / "a").read_bytes() == FILES["a"]


@pytest.mark.parametrize(
    ("files", "chunks", "fault"),
    [
        ({"a": b"good"}, [models_pb2.FileChunk(path="a", data=b"gooD")], "a: the digest"),
        ({"a": b"good"}, [models_pb2.FileChunk(path="a", data=b"goo")], "a: the digest"),
        ({"a": b"good"}, [], "a: the digest"),
        ({"../a": b"good"}, None, "leaves the folder"),
        ({"/etc/a": b"good"}, None, "leaves the folder"),
        ({"a": b"good"}, [models_pb2.FileChunk(path="../a", data=b"good")], "leaves the folder"),
    ],
)
def test_a_pull_that_is_not_is_refused(tmp_path: Path, files: dict[str, bytes], chunks: Sequence[Any] | None, fault: str) -> None:
    with (
        serving(MODELS, **downloading(files, chunks)) as address,
        hone.Client(address) as client,
        pytest.raises(ValueError, match=fault),
    ):
        client.models.pull("m", tmp_path / "copy")
    assert not (tmp_path / "a").exists()


# Watching


def watching(breaks: int, code: grpc.StatusCode, asked: list[int]) -> dict[str, grpc.RpcMethodHandler]:
    """Events 1 to 6, two per stream; the first `breaks` streams then break with the code."""
    served = threading.Semaphore(breaks)

    def watch(request: jobs_pb2.WatchJobRequest, context: grpc.ServicerContext) -> Iterator[jobs_pb2.WatchJobResponse]:
        asked.append(request.after_sequence)
        breaking = served.acquire(blocking=False)
        for sequence in range(request.after_sequence + 1, min(request.after_sequence + 3, 7) if breaking else 7):
            yield jobs_pb2.WatchJobResponse(event=jobs_pb2.JobEvent(sequence=sequence))
        if breaking:
            context.abort(code, "broken")

    serialize = jobs_pb2.WatchJobResponse.SerializeToString
    return {"WatchJob": grpc.unary_stream_rpc_method_handler(watch, jobs_pb2.WatchJobRequest.FromString, serialize)}


@pytest.mark.parametrize("code", [UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_a_watch_goes_on_after_a_broken_stream(code: grpc.StatusCode) -> None:
    for kind in (hone.Client, hone.aio.Client):
        asked: list[int] = []
        with serving(JOBS, **watching(2, code, asked)) as address:
            if kind is hone.Client:
                with hone.Client(address) as client:
                    seen = [event.sequence for event in client.jobs.watch("j")]
            else:
                async with hone.aio.Client(address) as aio_client:
                    seen = [event.sequence async for event in aio_client.jobs.watch("j")]
        assert seen == [1, 2, 3, 4, 5, 6]
        assert asked == [0, 2, 4]


def test_a_watch_that_is_refused_ends() -> None:
    asked: list[int] = []
    with (
        serving(JOBS, **watching(1, grpc.StatusCode.NOT_FOUND, asked)) as address,
        hone.Client(address) as client,
        pytest.raises(grpc.RpcError) as caught,
    ):
        list(client.jobs.watch("j"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert asked == [0]
