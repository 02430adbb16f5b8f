"""DatasetService: every RPC and every code of its contract."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from hone.repository.v1 import datasets_pb2 as pb
from hone.repository.v1 import datasets_pb2_grpc, models_pb2

from services.chassis.server import Server
from services.chassis.settings import ServerSettings
from services.optimization.dataset_servicer import DatasetServicer
from services.optimization.errors import ERRORS
from services.repository.dataset_manifest import Column, ColumnKind, Contents, DatasetFormat
from services.repository.datasets import Datasets
from services.repository.uploads import UploadLimits, Uploads

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXHAUSTED, OUT_OF_RANGE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE
ROWS = b'{"text": "one", "label": 1}\n{"text": "two", "label": 2}\n'
MAX_UPLOAD_BYTES = 1 << 20
FOREIGN, AFTER_TWO = {"page_token": "foreign"}, {"page_token": "a@2"}
Stub = Any  # datasets_pb2_grpc.DatasetServiceAsyncStub, which exists in the stubs alone


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    return Datasets(tmp_path)


@pytest.fixture
async def stub(tmp_path: Path, datasets: Datasets) -> AsyncIterator[Stub]:
    server = Server(ServerSettings(max_message_bytes=1 << 21), ERRORS)
    uploads = Uploads(tmp_path / "uploads", UploadLimits(MAX_UPLOAD_BYTES), "header.file")
    datasets_pb2_grpc.add_DatasetServiceServicer_to_server(DatasetServicer(datasets, uploads), server.grpc)
    async with server.running([]), grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield datasets_pb2_grpc.DatasetServiceStub(channel)


def header(data: bytes = ROWS, path: str = "rows.jsonl", **changes: Any) -> pb.UploadDatasetRequest:
    file = models_pb2.File(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return pb.UploadDatasetRequest(header=pb.DatasetUploadHeader(**{"upload_id": "u", "name": "d", "file": file, **changes}))


def chunk(offset: int, data: bytes) -> pb.UploadDatasetRequest:
    return pb.UploadDatasetRequest(chunk=pb.DatasetChunk(offset=offset, data=data))


def parts(data: bytes = ROWS, path: str = "rows.jsonl", **changes: Any) -> list[pb.UploadDatasetRequest]:
    """A whole upload's requests, in chunks of 32 bytes."""
    return [header(data, path, **changes), *(chunk(at, data[at : at + 32]) for at in range(0, len(data), 32))]


async def stream(requests: Sequence[pb.UploadDatasetRequest]) -> AsyncIterator[pb.UploadDatasetRequest]:
    for request in requests:
        yield request


async def upload(stub: Stub, data: bytes = ROWS, path: str = "rows.jsonl", **changes: Any) -> pb.DatasetVersion:
    return (await stub.UploadDataset(stream(parts(data, path, **changes)))).dataset


def place(datasets: Datasets, name: str = "d", content: bytes = ROWS) -> None:
    """A version without the upload, whose parsing takes a moment."""
    columns = (Column(name="text", kind=ColumnKind.TEXT), Column(name="label", kind=ColumnKind.INTEGER))
    with datasets.staging() as staged:
        (staged / "data.jsonl").write_bytes(content)
        datasets.seal(staged, name, DatasetFormat.JSONL, Contents(rows=2, columns=columns))


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def received(stub: Stub) -> int:
    return int((await stub.GetUpload(pb.DatasetServiceGetUploadRequest(upload_id="u"))).received_bytes)


def nothing_visible(root: Path) -> bool:
    return Datasets(root).names() == [] and not any((root / "staging").glob("*"))


# Uploading


async def test_an_upload_becomes_a_version(stub: Stub, datasets: Datasets) -> None:
    made = await upload(stub)
    assert (made.name, made.version, made.format, made.rows) == ("d", 1, pb.DATASET_FORMAT_JSONL, 2)
    assert [(column.name, column.kind) for column in made.columns] == [("text", pb.COLUMN_KIND_TEXT), ("label", pb.COLUMN_KIND_INTEGER)]
    assert made.file == models_pb2.File(path="data.jsonl", size_bytes=len(ROWS), sha256=hashlib.sha256(ROWS).hexdigest())
    assert (await stub.GetDataset(pb.GetDatasetRequest(reference="d"))).dataset == made
    datasets.verify("d", 1)


@pytest.mark.parametrize(
    ("path", "form", "expected"),
    [
        ("my rows.NDJSON", pb.DATASET_FORMAT_UNSPECIFIED, pb.DATASET_FORMAT_JSONL),
        ("rows.txt", pb.DATASET_FORMAT_CSV, pb.DATASET_FORMAT_CSV),
        ("../../rows.csv", pb.DATASET_FORMAT_UNSPECIFIED, pb.DATASET_FORMAT_CSV),
        ("arrays.npz", pb.DATASET_FORMAT_UNSPECIFIED, pb.DATASET_FORMAT_NPZ),
    ],
)
async def test_the_format_is_told_or_read_off_the_name(stub: Stub, datasets: Datasets, path: str, form: Any, expected: Any) -> None:
    file = io.BytesIO()
    np.savez(file, x=np.zeros((2, 3, 4), np.float32))
    content = {pb.DATASET_FORMAT_JSONL: ROWS, pb.DATASET_FORMAT_CSV: b"a,b\n1,2\n", pb.DATASET_FORMAT_NPZ: file.getvalue()}
    made = await upload(stub, content[expected], path, format=form)
    assert made.format == expected
    assert [child.name for child in datasets.folder("d", 1).iterdir()] != [path]
    if expected == pb.DATASET_FORMAT_NPZ:
        assert made.columns[0] == pb.Column(name="x", kind=pb.COLUMN_KIND_ARRAY, dtype="float32", shape=[3, 4])


async def test_the_same_upload_makes_one_version(stub: Stub) -> None:
    assert (await upload(stub)).version == 1
    assert (await upload(stub)).version == 1
    assert (await stub.UploadDataset(stream([header()]))).dataset.version == 1
    assert (await upload(stub, upload_id="other")).version == 2


async def test_a_broken_upload_goes_on_where_it_broke(stub: Stub, tmp_path: Path) -> None:
    call = stub.UploadDataset()
    for request in parts()[:2]:
        await call.write(request)
    while True:  # the server says what it has, and takes it a moment to have it
        try:
            if await received(stub) == 32:
                break
        except grpc.aio.AioRpcError:
            continue
    call.cancel()
    assert nothing_visible(tmp_path)
    assert (await stub.UploadDataset(stream([header(), chunk(32, ROWS[32:])]))).dataset.rows == 2
    assert (await refused(received(stub)))[0] is NOT_FOUND


async def test_streams_of_one_upload_at_once_make_one_version(stub: Stub, datasets: Datasets) -> None:
    answers = await asyncio.gather(*(upload(stub) for _ in range(4)))
    assert [answer.version for answer in answers] == [1, 1, 1, 1]
    assert datasets.versions("d") == [1]


async def test_two_uploads_at_once_make_two_versions(stub: Stub, datasets: Datasets) -> None:
    other = ROWS.replace(b"one", b"six")
    answers = await asyncio.gather(upload(stub, upload_id="a"), upload(stub, other, upload_id="b"))
    assert sorted(answer.version for answer in answers) == [1, 2]
    assert {datasets.resolve(f"d@{answer.version}").path.read_bytes() for answer in answers} == {ROWS, other}


@pytest.mark.parametrize(
    ("field", "requests"),
    [
        ("header", []),
        ("header", [chunk(0, b"x")]),
        ("header", [pb.UploadDatasetRequest()]),
        ("header", [*parts()[:1], *parts()]),
        ("header.upload_id", parts(upload_id="")),
        ("header.upload_id", parts(upload_id="../u")),
        ("header.name", parts(name="..")),
        ("header.name", parts(name="")),
        ("header.format", parts(format=9)),
        ("header.file.path", parts(path="rows")),
        ("header.file.path", parts(path="rows.pickle")),
        ("header.file.path", parts(path="")),
        ("header.file.sha256", parts(file=models_pb2.File(path="a.csv", size_bytes=1, sha256="X" * 64))),
        ("header.file.size_bytes", parts(file=models_pb2.File(path="a.csv", size_bytes=-1, sha256="0" * 64))),
        ("header.file", [header(b"abc"), chunk(0, b"abd")]),
        ("chunk.data", [header(b"abc")]),
        ("chunk.data", [header(b"abc"), chunk(0, b"ab")]),
        ("chunk.offset", [header(b"abc"), chunk(2, b"c")]),
        ("chunk.offset", [header(b"abc"), chunk(0, b"abcd")]),
        ("chunk.offset", [header(b"abc"), chunk(-1, b"a")]),
    ],
)
async def test_a_malformed_upload_names_its_field(stub: Stub, tmp_path: Path, field: str, requests: Sequence[Any]) -> None:
    code, details = await refused(stub.UploadDataset(stream(requests)))
    assert code is INVALID, details
    assert details.startswith(f"{field}: "), details
    assert nothing_visible(tmp_path)


async def test_a_wrong_digest_is_sent_again(stub: Stub) -> None:
    code, details = await refused(stub.UploadDataset(stream([header(), chunk(0, ROWS.replace(b"one", b"six"))])))
    assert (code, details.partition("digest is")[0]) == (INVALID, "header.file: data.jsonl: ")
    assert await received(stub) == 0
    assert (await upload(stub)).version == 1


@pytest.mark.parametrize(
    ("path", "content", "told"),
    [
        ("a.jsonl", b'{"a": 1}\n{"b": 1}\n', "line 2: the key 'a' of line 1 is missing"),
        ("a.csv", b"a,b\n1\n", "line 2: 1 fields, the header has 2"),
        ("a.parquet", b"PAR1", "not Parquet, or truncated: "),
        ("a.npz", b"PK\x03\x04", "not NPZ, or truncated: "),
        ("a.csv", b"", "the file is empty"),
    ],
)
async def test_what_is_no_table_is_refused_and_dropped(stub: Stub, tmp_path: Path, path: str, content: bytes, told: str) -> None:
    code, details = await refused(upload(stub, content, path))
    assert code is INVALID
    assert details.startswith(told)
    assert nothing_visible(tmp_path)
    assert (await refused(received(stub)))[0] is NOT_FOUND


async def test_an_upload_over_the_limit_is_refused_before_it_is_sent(stub: Stub) -> None:
    huge = models_pb2.File(path="a.csv", size_bytes=MAX_UPLOAD_BYTES + 1, sha256="0" * 64)
    code, details = await refused(stub.UploadDataset(stream([header(file=huge)])))
    assert (code, details) == (EXHAUSTED, "header.file: 1048577 bytes are over the limit of 1048576")


async def test_one_upload_id_is_one_content(stub: Stub) -> None:
    assert (await refused(stub.UploadDataset(stream(parts()[:-1]))))[0] is INVALID
    code, details = await refused(upload(stub, b"a\n1\n", "a.csv"))
    assert (code, details.partition(": ")[0]) == (INVALID, "header.upload_id")


# Downloading


async def download(stub: Stub, **request: Any) -> tuple[pb.DatasetVersion, bytes]:
    answers = [answer async for answer in stub.DownloadDataset(pb.DownloadDatasetRequest(**request))]
    assert [answer.WhichOneof("part") for answer in answers] == ["dataset", *["chunk"] * (len(answers) - 1)]
    content, at = b"", request.get("offset", 0)
    for piece in (answer.chunk for answer in answers[1:]):
        assert piece.offset == at + len(content)
        content += piece.data
    return answers[0].dataset, content


@pytest.mark.parametrize("offset", [0, 1, len(ROWS) - 1, len(ROWS)])
async def test_a_download_goes_on_from_any_byte(stub: Stub, datasets: Datasets, offset: int) -> None:
    place(datasets)
    described, content = await download(stub, reference="d@1", offset=offset)
    assert described == (await stub.GetDataset(pb.GetDatasetRequest(reference="d"))).dataset
    assert content == ROWS[offset:]


async def test_a_long_download_comes_in_chunks(stub: Stub, datasets: Datasets) -> None:
    content = b'{"text": "' + b"x" * 3_000_000 + b'", "label": 1}\n'
    place(datasets, content=content)
    assert (await download(stub, reference="d"))[1] == content


# Previews


async def test_a_preview_shows_the_first_rows(stub: Stub, datasets: Datasets) -> None:
    place(datasets)
    answer = await stub.PreviewDataset(pb.PreviewDatasetRequest(reference="d", rows=1))
    assert answer.dataset.version == 1
    assert [json_format.MessageToDict(row) for row in answer.rows] == [{"text": "one", "label": 1.0}]
    assert len((await stub.PreviewDataset(pb.PreviewDatasetRequest(reference="d"))).rows) == 2


async def test_a_preview_tells_arrays_by_shape_and_cuts_what_is_long(stub: Stub) -> None:
    file = io.BytesIO()
    np.savez(file, x=np.zeros((3, 4, 5), np.float32), t=np.array(["x" * 1001, "", "é"]))
    await upload(stub, file.getvalue(), "a.npz")
    rows = (await stub.PreviewDataset(pb.PreviewDatasetRequest(reference="d", rows=2))).rows
    shape = {"dtype": "float32", "shape": [4.0, 5.0]}
    assert [json_format.MessageToDict(row) for row in rows] == [{"x": shape, "t": "x" * 1000 + "…"}, {"x": shape, "t": ""}]
    many = b'{"w": [' + b",".join([b'"a"'] * 150) + b"]}\n"
    await upload(stub, many, "a.jsonl", name="words", upload_id="v")
    (row,) = (await stub.PreviewDataset(pb.PreviewDatasetRequest(reference="words"))).rows
    assert json_format.MessageToDict(row) == {"w": ["a"] * 100 + ["…"]}


async def test_a_preview_of_damaged_rows_is_our_fault(stub: Stub, datasets: Datasets, tmp_path: Path) -> None:
    place(datasets)
    datasets.resolve("d").path.write_bytes(b"{")
    code, details = await refused(stub.PreviewDataset(pb.PreviewDatasetRequest(reference="d")))
    assert code is grpc.StatusCode.INTERNAL
    assert str(tmp_path) not in details


# Lists, deleting, refusals


async def test_a_deleted_version_is_gone_and_its_number_too(stub: Stub, datasets: Datasets) -> None:
    place(datasets), place(datasets)
    await stub.DeleteVersion(pb.DatasetServiceDeleteVersionRequest(name="d", version=2))
    assert (await stub.GetDataset(pb.GetDatasetRequest(reference="d"))).dataset.version == 1
    assert (await refused(stub.GetDataset(pb.GetDatasetRequest(reference="d@2"))))[0] is NOT_FOUND
    assert (await upload(stub)).version == 3


@pytest.mark.parametrize(
    ("code", "field", "call"),
    [
        (INVALID, "reference", lambda stub: stub.GetDataset(pb.GetDatasetRequest())),
        (INVALID, "reference", lambda stub: stub.GetDataset(pb.GetDatasetRequest(reference="d@"))),
        (INVALID, "reference", lambda stub: stub.GetDataset(pb.GetDatasetRequest(reference="d:stable"))),
        (NOT_FOUND, "no dataset", lambda stub: stub.GetDataset(pb.GetDatasetRequest(reference="nobody"))),
        (NOT_FOUND, "no version 2", lambda stub: stub.GetDataset(pb.GetDatasetRequest(reference="d@2"))),
        (INVALID, "header.upload_id", lambda stub: stub.GetUpload(pb.DatasetServiceGetUploadRequest(upload_id=".."))),
        (NOT_FOUND, "no unfinished", lambda stub: stub.GetUpload(pb.DatasetServiceGetUploadRequest(upload_id="u"))),
        (INVALID, "reference", lambda stub: download(stub, reference="../d")),
        (NOT_FOUND, "no dataset", lambda stub: download(stub, reference="nobody")),
        (OUT_OF_RANGE, "offset", lambda stub: download(stub, reference="d", offset=len(ROWS) + 1)),
        (OUT_OF_RANGE, "offset", lambda stub: download(stub, reference="d", offset=-1)),
        (INVALID, "reference", lambda stub: stub.PreviewDataset(pb.PreviewDatasetRequest())),
        (INVALID, "rows", lambda stub: stub.PreviewDataset(pb.PreviewDatasetRequest(reference="d", rows=101))),
        (INVALID, "rows", lambda stub: stub.PreviewDataset(pb.PreviewDatasetRequest(reference="d", rows=-1))),
        (NOT_FOUND, "no dataset", lambda stub: stub.PreviewDataset(pb.PreviewDatasetRequest(reference="nobody"))),
        (INVALID, "name", lambda stub: stub.DeleteVersion(pb.DatasetServiceDeleteVersionRequest(version=1))),
        (INVALID, "version", lambda stub: stub.DeleteVersion(pb.DatasetServiceDeleteVersionRequest(name="d"))),
        (NOT_FOUND, "no version 2", lambda stub: stub.DeleteVersion(pb.DatasetServiceDeleteVersionRequest(name="d", version=2))),
        (NOT_FOUND, "no dataset", lambda stub: stub.DeleteVersion(pb.DatasetServiceDeleteVersionRequest(name="e", version=1))),
        (INVALID, "name", lambda stub: stub.ListDatasets(pb.ListDatasetsRequest(name="../d"))),
        (NOT_FOUND, "no dataset", lambda stub: stub.ListDatasets(pb.ListDatasetsRequest(name="nobody"))),
        (INVALID, "page_size", lambda stub: stub.ListDatasets(pb.ListDatasetsRequest(page_size=-1))),
        (INVALID, "page_size", lambda stub: stub.ListDatasets(pb.ListDatasetsRequest(page_size=1001))),
        (INVALID, "page_token", lambda stub: stub.ListDatasets(pb.ListDatasetsRequest(**FOREIGN))),
    ],
)
async def test_a_refusal_has_its_code_and_its_field(
    stub: Stub, datasets: Datasets, code: grpc.StatusCode, field: str, call: Callable[[Stub], Any]
) -> None:
    place(datasets)
    found, details = await refused(call(stub))
    assert (found, details.startswith(field)) == (code, True), details


async def test_pages_hold_every_version_once_by_name_and_number(stub: Stub, datasets: Datasets) -> None:
    for name in ("b", "a", "a", "a"):
        place(datasets, name)
    pages, token = [], ""
    while not pages or token:
        page = await stub.ListDatasets(pb.ListDatasetsRequest(page_size=2, page_token=token))
        pages.append([(dataset.name, dataset.version) for dataset in page.datasets])
        token = page.next_page_token
    assert pages == [[("a", 1), ("a", 2)], [("a", 3), ("b", 1)]]
    of_one = await stub.ListDatasets(pb.ListDatasetsRequest(name="a", **AFTER_TWO))
    assert ([dataset.version for dataset in of_one.datasets], of_one.next_page_token) == ([3], "")


async def test_a_damaged_version_hides_no_other(stub: Stub, datasets: Datasets) -> None:
    for _ in range(3):
        place(datasets)
    (datasets.folder("d", 2) / "manifest.json").write_bytes(b"{")
    assert [dataset.version for dataset in (await stub.ListDatasets(pb.ListDatasetsRequest())).datasets] == [1, 3]
