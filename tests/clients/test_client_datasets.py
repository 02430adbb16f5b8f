"""Both clients' datasets, and `hone data`, against the real servicer and against one that breaks as it is told."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import hone
import hone.aio
import numpy as np
import pytest
from hone.cli import app
from hone.repository.v1 import datasets_pb2 as pb
from hone.repository.v1 import datasets_pb2_grpc, models_pb2
from typer.testing import CliRunner

from services.chassis.server import Server
from services.chassis.settings import ServerSettings
from services.optimization.dataset_servicer import DatasetServicer
from services.optimization.errors import ERRORS
from services.repository.datasets import Datasets
from services.repository.uploads import UploadLimits, Uploads

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ROWS = [{"text": "ein Wort", "label": 1, "words": ["ein", "Wort"]}, {"text": "é[bold]", "label": 0, "words": []}]
CONTENT = b"text\n" + b"x" * 3_000_000 + b"\n"


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    server = Server(ServerSettings(), ERRORS)
    uploads = Uploads(tmp_path / "uploads", UploadLimits(1 << 24), "header.file")
    datasets_pb2_grpc.add_DatasetServiceServicer_to_server(DatasetServicer(Datasets(tmp_path), uploads), server.grpc)
    async with server.running([]):
        yield f"127.0.0.1:{server.port}"


class Threaded:
    """The synchronous client's datasets, each call in a thread and awaited: the server is on this loop."""

    def __init__(self, datasets: Any) -> None:
        self._datasets = datasets

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            return await asyncio.to_thread(getattr(self._datasets, name), *args, **options)

        return call

    async def list(self, name: str = "") -> AsyncIterator[Any]:
        for found in await asyncio.to_thread(lambda: [*self._datasets.list(name)]):
            yield found


@pytest.fixture(params=["sync", "aio"])
async def datasets(request: pytest.FixtureRequest, address: str) -> AsyncIterator[Any]:
    if request.param == "sync":
        with hone.Client(address) as client:
            yield Threaded(client.datasets)
    else:
        async with hone.aio.Client(address) as aio_client:
            yield aio_client.datasets


async def test_rows_are_pushed_listed_previewed_pulled_and_deleted(datasets: Any, tmp_path: Path) -> None:
    made = await datasets.push(ROWS, "words")
    assert (made.version, made.format, made.rows) == (1, pb.DATASET_FORMAT_JSONL, 2)
    assert (await datasets.push(ROWS, "words")).version == 1  # the same rows are the same version
    assert (await datasets.push(ROWS[:1], "words")).version == 2
    assert (await datasets.get("words")).version == 2
    assert (await datasets.get("words@1")) == made
    assert [found.version async for found in datasets.list("words")] == [1, 2]
    assert [found.name async for found in datasets.list()] == ["words", "words"]
    assert await datasets.preview("words@1") == ROWS
    assert await datasets.preview("words@1", rows=1) == ROWS[:1]
    assert (await datasets.pull("words@1", tmp_path / "new" / "copy.jsonl")) == made
    copy = tmp_path / "new" / "copy.jsonl"
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == made.file.sha256
    assert (await datasets.push(copy, "copy")).digest == made.digest
    assert [path.name for path in copy.parent.iterdir()] == ["copy.jsonl"]
    await datasets.delete("words", 2)
    assert (await datasets.get("words")).version == 1


async def test_arrays_are_pushed(datasets: Any, tmp_path: Path) -> None:
    arrays = {
        "file": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "allow_pickle": np.array([True, False]),
        "text": np.array(["a", "b"]),
    }
    made = await datasets.push(arrays, "arrays")
    assert [column.name for column in made.columns] == ["file", "allow_pickle", "text"]
    assert (await datasets.push(arrays, "arrays")).version == 1
    assert await datasets.preview("arrays", 1) == [{"file": {"dtype": "float32", "shape": [3, 4]}, "allow_pickle": 1, "text": "a"}]
    await datasets.pull("arrays", tmp_path / "copy.npz")
    with np.load(tmp_path / "copy.npz", allow_pickle=False) as found:
        for name, values in arrays.items():
            np.testing.assert_array_equal(found[name], values)


async def test_files_are_pushed_by_name_or_by_format(datasets: Any, tmp_path: Path) -> None:
    path = tmp_path / "some words.txt"
    path.write_text("text,label\none,1\n")
    told: list[tuple[int, int]] = []
    made = await datasets.push(path, "words", format=pb.DATASET_FORMAT_CSV, progress=lambda *at: told.append(at))
    assert (made.format, made.rows) == (pb.DATASET_FORMAT_CSV, 1)
    assert told[-1] == (17, 17)
    with pytest.raises(grpc.RpcError) as caught:
        await datasets.push(str(path), "words")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "header.file.path" in str(caught.value.details())


async def test_what_cannot_be_written_is_refused_before_it_is_sent(datasets: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a file"):
        await datasets.push(tmp_path / "nowhere", "words")
    with pytest.raises(TypeError, match="not JSON serializable"):
        await datasets.push([{"a": object()}], "words")
    with pytest.raises(ValueError, match="not JSON compliant"):
        await datasets.push([{"a": float("nan")}], "words")
    with pytest.raises(ValueError, match="Object arrays"):
        await datasets.push({"a": np.array([object()])}, "words")
    assert [found async for found in datasets.list()] == []


async def test_a_malformed_file_is_told(datasets: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await datasets.push([{"a": 1}, {"a": "x"}], "words")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(caught.value.details()).startswith("line 2: column 'a': text here")


# What breaks goes on


class Breaking:
    """Breaks each stream after the next of `breaks` bytes, and remembers what it took and where each stream began."""

    def __init__(self, breaks: Sequence[int], content: bytes = CONTENT) -> None:
        self.breaks = list(breaks)
        self.taken = b""
        self.starts: list[int] = []
        self.asked: list[str] = []
        self.dataset = pb.DatasetVersion(name="d", version=7)
        self.dataset.file.CopyFrom(models_pb2.File(size_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()))
        self.content = content

    def get_upload(self, _: Any, context: grpc.ServicerContext) -> pb.DatasetServiceGetUploadResponse:
        if not self.taken:
            context.abort(grpc.StatusCode.NOT_FOUND, "nothing yet")
        return pb.DatasetServiceGetUploadResponse(received_bytes=len(self.taken))

    def upload(self, requests: Iterator[pb.UploadDatasetRequest], context: grpc.ServicerContext) -> pb.UploadDatasetResponse:
        left = self.breaks.pop(0) if self.breaks else len(CONTENT) + 1
        assert next(requests).WhichOneof("part") == "header"
        self.starts.append(len(self.taken))
        for request in requests:
            assert request.chunk.offset == len(self.taken)
            self.taken += request.chunk.data
            left -= len(request.chunk.data)
            if left <= 0:
                context.abort(UNAVAILABLE, "broken")
        return pb.UploadDatasetResponse(dataset=self.dataset)

    def download(self, request: pb.DownloadDatasetRequest, context: grpc.ServicerContext) -> Iterator[pb.DownloadDatasetResponse]:
        self.starts.append(request.offset)
        self.asked.append(request.reference)
        left = self.breaks.pop(0) if self.breaks else len(CONTENT)
        yield pb.DownloadDatasetResponse(dataset=self.dataset)
        piece = self.content[request.offset : request.offset + left]
        for at in range(0, len(piece), 1 << 20):
            yield pb.DownloadDatasetResponse(chunk=pb.DatasetChunk(offset=request.offset + at, data=piece[at : at + (1 << 20)]))
        if request.offset + left < len(self.content):
            context.abort(UNAVAILABLE, "broken")

    @contextmanager
    def serving(self) -> Iterator[str]:
        server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        datasets_pb2_grpc.add_DatasetServiceServicer_to_server(self._servicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()

    def _servicer(self) -> Any:
        methods = {"GetUpload": self.get_upload, "UploadDataset": self.upload, "DownloadDataset": self.download}
        bound = {name: staticmethod(method) for name, method in methods.items()}
        return type("Servicer", (datasets_pb2_grpc.DatasetServiceServicer,), bound)()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def push(kind: str, address: str, path: Path) -> pb.DatasetVersion:
    if kind == "aio":
        async with hone.aio.Client(address) as aio_client:
            return await aio_client.datasets.push(path, "d")
    with hone.Client(address) as client:
        return client.datasets.push(path, "d")


async def pull(kind: str, address: str, path: Path) -> pb.DatasetVersion:
    if kind == "aio":
        async with hone.aio.Client(address) as aio_client:
            return await aio_client.datasets.pull("d", path)
    with hone.Client(address) as client:
        return client.datasets.pull("d", path)


@pytest.mark.parametrize("kind", ["sync", "aio"])
async def test_a_push_goes_on_where_it_broke(kind: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(CONTENT)
    breaking = Breaking([1, 1])
    with breaking.serving() as address:
        assert (await push(kind, address, tmp_path / "d.csv")).version == 7
    assert breaking.taken == CONTENT
    assert breaking.starts == [0, 1 << 20, 2 << 20]


@pytest.mark.parametrize("kind", ["sync", "aio"])
async def test_a_pull_goes_on_where_it_broke_with_the_version_it_began(kind: str, tmp_path: Path) -> None:
    breaking = Breaking([1000, 2_000_000])
    with breaking.serving() as address:
        assert (await pull(kind, address, tmp_path / "d.csv")).version == 7
    assert (tmp_path / "d.csv").read_bytes() == CONTENT
    assert breaking.asked == ["d", "d@7", "d@7"]
    assert breaking.starts == [0, 1000, 2_001_000]


@pytest.mark.parametrize("kind", ["sync", "aio"])
async def test_a_pull_of_other_bytes_leaves_what_was_there(kind: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"before")
    with Breaking([], CONTENT.replace(b"x", b"y")).serving() as address, pytest.raises(ValueError, match=r"d\.csv: the digest is not"):
        await pull(kind, address, tmp_path / "d.csv")
    assert contents(tmp_path) == {"d.csv": b"before"}


# The command


async def test_the_command(address: str, tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text('{"text": "[red]é[/red]", "n": 1}\n{"text": "two", "n": 2}\n')

    async def data(*arguments: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, app, ["--optimization", address, "data", *arguments], env={"COLUMNS": "120"})
        assert result.exit_code == 0, result.exception
        return result.output

    assert "words@1" in await data("push", str(tmp_path / "words.jsonl"), "words")
    assert "words@1" in await data("ls")
    shown = await data("show", "words", "--rows", "1")
    for text in ("words@1", "jsonl", "integer", "[red]é[/red]"):
        assert text in shown
    assert "two" not in shown
    assert "words@1 is in" in await data("pull", "words", str(tmp_path / "copy.jsonl"))
    assert (tmp_path / "copy.jsonl").read_bytes() == (tmp_path / "words.jsonl").read_bytes()
    assert "words@1 is deleted" in await data("delete", "words", "1")
    assert "words@1" not in await data("ls")
