"""ModelService: every RPC and every code of its contract."""

import asyncio
import hashlib
import io
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from hone.repository.v1 import models_pb2 as pb
from onnx import TensorProto, helper

from services.optimization.uploads.inspection import inspect_folder
from services.repository.manifest import Format, Signature, Task, TensorSpec
from services.repository.store import Origin, Repository
from services.repository.uploads import Upload

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION, EXHAUSTED = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED


@cache
def doubling(width: int = 3) -> bytes:
    """An ONNX model that answers y = x + x for x FP32 [rows, width]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    file = io.BytesIO()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file.getvalue()


def header(files: Mapping[str, bytes], **changes: Any) -> pb.UploadHeader:
    entries = [pb.File(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for path, data in files.items()]
    return pb.UploadHeader(**{"upload_id": "u", "name": "m", "task": pb.TASK_TENSOR, "files": entries, **changes})


def described(files: Sequence[pb.File]) -> pb.UploadHeader:
    return pb.UploadHeader(upload_id="u", name="m", files=files)


def chunk(path: str, offset: int, data: bytes) -> pb.UploadModelRequest:
    return pb.UploadModelRequest(chunk=pb.FileChunk(path=path, offset=offset, data=data))


def parts(files: Mapping[str, bytes], size: int = 64, **changes: Any) -> list[pb.UploadModelRequest]:
    """A whole upload's requests, in chunks of `size` bytes."""
    chunks = [chunk(path, at, data[at : at + size]) for path, data in files.items() for at in range(0, len(data), size)]
    return [pb.UploadModelRequest(header=header(files, **changes)), *chunks]


async def stream(requests: Sequence[pb.UploadModelRequest]) -> AsyncIterator[pb.UploadModelRequest]:
    for request in requests:
        yield request


async def upload(doors: Any, files: Mapping[str, bytes] | None = None, **changes: Any) -> pb.ModelVersion:
    files = {"model.onnx": doubling()} if files is None else files
    return (await doors.models.UploadModel(stream(parts(files, **changes)))).model


def place(doors: Any, files: Mapping[str, bytes] | None = None, name: str = "m") -> None:
    """A version without the upload, whose parsing takes a second."""
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
    with doors.repository.staging() as staged:
        for path, data in (files or {"model.onnx": doubling()}).items():
            (staged / path).write_bytes(data)
        doors.repository.seal(staged, name, Signature(task=Task.TENSOR, format=Format.ONNX, inputs=(spec,), outputs=(spec,)), Origin())


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def nothing_visible(repository: Repository) -> bool:
    return repository.names() == [] and nothing_staged(repository)


def nothing_staged(repository: Repository) -> bool:
    return not any((repository.root / "staging").glob("*"))


# Uploading


async def test_an_upload_becomes_a_version(doors: Any) -> None:
    files = {"model.onnx": doubling(), "README.md": b"", "LICENSE": b"free"}
    model = await upload(doors, files, channels=["stable", "canary"])
    assert (model.name, model.version, model.task, model.format) == ("m", 1, pb.TASK_TENSOR, pb.FORMAT_ONNX)
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in (*model.inputs, *model.outputs)] == [
        ("x", "FP32", [-1, 3]),
        ("y", "FP32", [-1, 3]),
    ]
    assert sorted(model.channels) == ["canary", "stable"]
    assert model.size_bytes == len(doubling()) + 4
    assert (await doors.models.GetModel(pb.GetModelRequest(reference="m"))).model == model
    doors.repository.verify("m", 1)


async def test_the_same_upload_makes_one_version(doors: Any) -> None:
    first = await upload(doors)
    again = await upload(doors, channels=["stable"])
    assert again.version == first.version == 1
    assert list(again.channels) == ["stable"]
    header_alone = [pb.UploadModelRequest(header=header({"model.onnx": doubling()}))]
    assert (await doors.models.UploadModel(stream(header_alone))).model.version == 1
    assert (await upload(doors, upload_id="other")).version == 2


async def test_a_broken_upload_goes_on_where_it_broke(doors: Any) -> None:
    files = {"LICENSE": b"free", "model.onnx": doubling()}
    requests = parts(files)
    call = doors.models.UploadModel()
    for request in requests[:3]:
        await call.write(request)
    while True:  # the server says what it has, and takes it a moment to have it
        try:
            received = (await doors.models.GetUpload(pb.GetUploadRequest(upload_id="u"))).received_bytes
        except grpc.aio.AioRpcError:
            continue
        if received == {"LICENSE": 4, "model.onnx": 64}:
            break
    call.cancel()
    assert nothing_visible(doors.repository)
    rest = [requests[0], chunk("model.onnx", 64, doubling()[64:])]
    assert (await doors.models.UploadModel(stream(rest))).model.version == 1
    assert (await refused(doors.models.GetUpload(pb.GetUploadRequest(upload_id="u"))))[0] is NOT_FOUND


async def test_a_caller_that_comes_back_during_sealing_gets_its_version(doors: Any) -> None:
    requests = parts({"model.onnx": doubling()})
    answers = await asyncio.gather(*(doors.models.UploadModel(stream(requests)) for _ in range(3)))
    assert [answer.model.version for answer in answers] == [1, 1, 1]
    assert doors.repository.versions("m") == [1]


async def test_a_stream_that_still_writes_changes_no_byte_of_what_is_inspected(doors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inspecting, answered = threading.Event(), threading.Event()
    write = Upload.write

    def slow_inspection(folder: Path, task: Task | None) -> Signature:
        signature = inspect_folder(folder, task)
        inspecting.set()
        assert answered.wait(60)
        return signature

    def observed_write(upload: Upload, path: str, offset: int, data: bytes) -> None:
        try:
            write(upload, path, offset, data)
        finally:
            if data == b"paid":
                answered.set()

    monkeypatch.setattr("services.optimization.model_servicer.inspect_folder", slow_inspection)
    monkeypatch.setattr(Upload, "write", observed_write)
    files = {"LICENSE": b"free", "model.onnx": doubling()}
    late = doors.models.UploadModel()
    for request in parts(files)[:2]:
        await late.write(request)
    while not await arrived(doors):
        pass
    whole = asyncio.ensure_future(upload(doors, files))
    assert await asyncio.to_thread(inspecting.wait, 60)
    assert (await doors.models.GetUpload(pb.GetUploadRequest(upload_id="u"))).received_bytes["LICENSE"] == 4
    await late.write(chunk("LICENSE", 0, b"paid"))
    await late.done_writing()
    assert (await late).model == await whole  # it is told what the upload became
    assert (doors.repository.folder("m", 1) / "LICENSE").read_bytes() == b"free"
    assert doors.repository.versions("m") == [1]
    assert nothing_staged(doors.repository)


async def arrived(doors: Any) -> bool:
    """Whether the server has seen the upload's first chunk."""
    try:
        return bool((await doors.models.GetUpload(pb.GetUploadRequest(upload_id="u"))).received_bytes)
    except grpc.aio.AioRpcError:
        return False


@pytest.mark.parametrize(
    ("field", "requests"),
    [
        ("header", []),
        ("header", [chunk("model.onnx", 0, b"x")]),
        ("header", [pb.UploadModelRequest()]),
        ("header", [*parts({"model.onnx": b"x"})[:1], *parts({"model.onnx": b"x"})]),
        ("header.upload_id", parts({"model.onnx": b"x"}, upload_id="")),
        ("header.upload_id", parts({"model.onnx": b"x"}, upload_id="../u")),
        ("header.name", parts({"model.onnx": b"x"}, name="..")),
        ("header.name", parts({"model.onnx": b"x"}, name="")),
        ("header.channels[1]", parts({"model.onnx": b"x"}, channels=["stable", "Stable"])),
        ("header.task", parts({"model.onnx": b"x"}, task=9)),
        ("header.files", parts({})),
        ("header.files", parts({f"{number}.txt": b"" for number in range(65)})),
        ("header.files[0].path", parts({"../model.onnx": b"x"})),
        ("header.files[1].path", parts({"model.onnx": b"x", "/etc/passwd": b"x"})),
        ("header.files[0].path", parts({".hidden": b"x"})),
        ("header.files[0].path", parts({"manifest.json": b"{}"})),
        ("header.files[0].sha256", [pb.UploadModelRequest(header=described([pb.File(path="a", size_bytes=1, sha256="X" * 64)]))]),
        (
            "header.files[0].size_bytes",
            [pb.UploadModelRequest(header=described([pb.File(path="a", size_bytes=-1, sha256="0" * 64)]))],
        ),
        ("header.files[0].path", [pb.UploadModelRequest(header=described([pb.File(path="a", sha256="0" * 64)] * 2))]),
        ("header.files", [parts({"model.onnx": b"abc"})[0], chunk("model.onnx", 0, b"abd")]),
        ("chunk.data", parts({"model.onnx": b"abc"})[:1]),
        ("chunk.path", [parts({"model.onnx": b"abc"})[0], chunk("../../x", 0, b"abc")]),
        ("chunk.offset", [parts({"model.onnx": b"abc"})[0], chunk("model.onnx", 2, b"c")]),
        ("chunk.offset", [parts({"model.onnx": b"abc"})[0], chunk("model.onnx", 0, b"abcd")]),
        ("chunk.offset", [parts({"model.onnx": b"abc"})[0], chunk("model.onnx", -1, b"a")]),
    ],
)
async def test_a_malformed_upload_names_its_field(doors: Any, field: str, requests: Sequence[pb.UploadModelRequest]) -> None:
    code, details = await refused(doors.models.UploadModel(stream(requests)))
    assert code is INVALID, details
    assert details.startswith((f"{field}: ", f"{field}[")), details
    assert nothing_visible(doors.repository)


FOREIGN = {"page_token": "m"}  # not one that the server gave
SAFETENSORS = (2).to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize(
    ("file", "files"),
    [
        ("model.safetensors", {"config.json": b"{}", "model.safetensors": pickle.dumps({"weights": [1, 2]})}),
        ("model.safetensors", {"config.json": b'{"a": 1}', "tokenizer.json": b"{}", "model.safetensors": SAFETENSORS[:7]}),
        ("model.safetensors", {"config.json": b'{"a": 1}', "tokenizer.json": b"{}", "model.safetensors": b"\xff" * 40}),
        ("model.onnx", {"model.onnx": b"not a model"}),
        ("model.onnx", {"model.onnx": doubling()[:-20]}),
        ("model.onnx", {"model.onnx": b""}),
        ("pytorch_model.bin", {"pytorch_model.bin": pickle.dumps(3)}),
        ("run.py", {"model.onnx": doubling(), "run.py": b"print()"}),
        ("model", {"README.md": b"no model"}),
    ],
)
async def test_what_is_no_model_is_refused_and_dropped(doors: Any, file: str, files: Mapping[str, bytes]) -> None:
    code, details = await refused(upload(doors, files, task=pb.TASK_UNSPECIFIED))
    assert code is INVALID, details
    assert details.startswith(file), details
    assert nothing_visible(doors.repository)
    assert (await refused(doors.models.GetUpload(pb.GetUploadRequest(upload_id="u"))))[0] is NOT_FOUND


async def test_an_upload_over_the_limit_is_refused_before_it_is_sent(doors: Any) -> None:
    huge = pb.UploadHeader(upload_id="u", name="m", files=[pb.File(path="model.onnx", size_bytes=(1 << 20) + 1, sha256="0" * 64)])
    code, details = await refused(doors.models.UploadModel(stream([pb.UploadModelRequest(header=huge)])))
    assert code is EXHAUSTED
    assert "limit of 1048576" in details


async def test_a_message_over_the_limit_is_refused(doors: Any) -> None:
    requests = [parts({"model.onnx": b"x" * (1 << 20)})[0], chunk("model.onnx", 0, b"x" * ((2 << 20) + 1))]
    assert (await refused(doors.models.UploadModel(stream(requests))))[0] is EXHAUSTED


async def test_one_upload_id_is_one_content(doors: Any) -> None:
    call = doors.models.UploadModel(stream(parts({"model.onnx": doubling()})[:-1]))
    assert (await refused(call))[0] is INVALID
    code, details = await refused(upload(doors, {"model.onnx": doubling(4)}))
    assert code is INVALID
    assert details.startswith("header.upload_id: ")


# Downloading


async def download(doors: Any, **request: Any) -> tuple[pb.ModelVersion, list[pb.FileChunk]]:
    answers = [answer async for answer in doors.models.DownloadModel(pb.DownloadModelRequest(**request))]
    assert [answer.WhichOneof("part") for answer in answers] == ["model", *["chunk"] * (len(answers) - 1)]
    return answers[0].model, [answer.chunk for answer in answers[1:]]


async def test_a_download_is_the_upload(doors: Any) -> None:
    files = {"LICENSE": b"free", "README.md": b"", "model.onnx": doubling()}
    model = await upload(doors, files)
    described, chunks = await download(doors, reference="m@1")
    assert described == model
    found = {entry.path: b"" for entry in described.files}
    for piece in chunks:
        assert piece.offset == len(found[piece.path])
        found[piece.path] += piece.data
    assert found == files


@pytest.mark.parametrize("offset", [0, 1, 50, len(doubling()) - 1, len(doubling())])
async def test_a_download_goes_on_from_any_byte(doors: Any, offset: int) -> None:
    place(doors, {"LICENSE": b"free", "model.onnx": doubling()})
    _, chunks = await download(doors, reference="m@1", path="model.onnx", offset=offset)
    assert b"".join(piece.data for piece in chunks) == doubling()[offset:]
    assert all(piece.path == "model.onnx" for piece in chunks)


@pytest.mark.parametrize(
    ("code", "request_"),
    [
        (grpc.StatusCode.OUT_OF_RANGE, {"path": "model.onnx", "offset": len(doubling()) + 1}),
        (grpc.StatusCode.OUT_OF_RANGE, {"path": "model.onnx", "offset": -1}),
        (grpc.StatusCode.OUT_OF_RANGE, {"offset": 1}),
        (NOT_FOUND, {"path": "manifest.json"}),
        (NOT_FOUND, {"path": "../1/model.onnx"}),
        (NOT_FOUND, {"reference": "m@2"}),
        (NOT_FOUND, {"reference": "m"}),
        (INVALID, {"reference": "../m"}),
    ],
)
async def test_a_download_of_what_is_not_there(doors: Any, code: grpc.StatusCode, request_: dict[str, Any]) -> None:
    place(doors)
    assert (await refused(download(doors, **{"reference": "m@1", **request_})))[0] is code


# Channels, lists, deleting


async def test_promotion_and_back(doors: Any) -> None:
    place(doors), place(doors)
    await doors.models.SetChannel(pb.SetChannelRequest(name="m", channel="stable", version=1))
    promoted = (await doors.models.SetChannel(pb.SetChannelRequest(name="m", channel="stable", version=2))).model
    assert (promoted.version, list(promoted.channels)) == (2, ["stable"])
    code, details = await refused(doors.models.DeleteVersion(pb.DeleteVersionRequest(name="m", version=2)))
    assert (code, "stable" in details) == (PRECONDITION, True)
    back = (await doors.models.RollBack(pb.RollBackRequest(name="m", channel="stable"))).model
    assert (back.version, list(back.channels)) == (1, ["stable"])
    assert (await refused(doors.models.RollBack(pb.RollBackRequest(name="m", channel="stable"))))[0] is PRECONDITION
    await doors.models.DeleteVersion(pb.DeleteVersionRequest(name="m", version=2))
    assert (await refused(doors.models.GetModel(pb.GetModelRequest(reference="m@2"))))[0] is NOT_FOUND
    assert (await upload(doors)).version == 3


@pytest.mark.parametrize(
    ("code", "field", "call"),
    [
        (INVALID, "reference", lambda models: models.GetModel(pb.GetModelRequest(reference="m@"))),
        (INVALID, "reference", lambda models: models.GetModel(pb.GetModelRequest())),
        (NOT_FOUND, "no model", lambda models: models.GetModel(pb.GetModelRequest(reference="m"))),
        (INVALID, "upload_id", lambda models: models.GetUpload(pb.GetUploadRequest(upload_id=".."))),
        (NOT_FOUND, "no unfinished", lambda models: models.GetUpload(pb.GetUploadRequest(upload_id="u"))),
        (INVALID, "name", lambda models: models.SetChannel(pb.SetChannelRequest(name="..", channel="stable", version=1))),
        (INVALID, "channel", lambda models: models.SetChannel(pb.SetChannelRequest(name="m", channel="", version=1))),
        (INVALID, "version", lambda models: models.SetChannel(pb.SetChannelRequest(name="m", channel="stable"))),
        (NOT_FOUND, "no model", lambda models: models.SetChannel(pb.SetChannelRequest(name="m", channel="stable", version=1))),
        (INVALID, "name", lambda models: models.RollBack(pb.RollBackRequest(name="a/b", channel="stable"))),
        (INVALID, "channel", lambda models: models.RollBack(pb.RollBackRequest(name="m", channel="A"))),
        (NOT_FOUND, "no model", lambda models: models.RollBack(pb.RollBackRequest(name="m", channel="stable"))),
        (INVALID, "name", lambda models: models.DeleteVersion(pb.DeleteVersionRequest(version=1))),
        (INVALID, "version", lambda models: models.DeleteVersion(pb.DeleteVersionRequest(name="m", version=-1))),
        (NOT_FOUND, "no model", lambda models: models.DeleteVersion(pb.DeleteVersionRequest(name="m", version=1))),
        (INVALID, "name", lambda models: models.ListModels(pb.ListModelsRequest(name="../m"))),
        (NOT_FOUND, "no model", lambda models: models.ListModels(pb.ListModelsRequest(name="m"))),
        (INVALID, "page_size", lambda models: models.ListModels(pb.ListModelsRequest(page_size=-1))),
        (INVALID, "page_size", lambda models: models.ListModels(pb.ListModelsRequest(page_size=1001))),
        (INVALID, "page_token", lambda models: models.ListModels(pb.ListModelsRequest(**FOREIGN))),
        (INVALID, "page_token", lambda models: models.ListModels(pb.ListModelsRequest(**{**FOREIGN, "page_token": "m@²"}))),
    ],
)
async def test_a_refusal_has_its_code_and_its_field(doors: Any, code: grpc.StatusCode, field: str, call: Callable[[Any], Any]) -> None:
    found, details = await refused(call(doors.models))
    assert found is code
    assert details.removeprefix("header.").startswith(field), details


async def test_pages_hold_every_version_once_by_name_and_number(doors: Any) -> None:
    for name in ("b", "a", "a", "a"):
        place(doors, name=name)
    pages, token = [], ""
    while True:
        page = await doors.models.ListModels(pb.ListModelsRequest(page_size=2, page_token=token))
        pages.append([(model.name, model.version) for model in page.models])
        token = page.next_page_token
        if not token:
            break
    assert pages == [[("a", 1), ("a", 2)], [("a", 3), ("b", 1)]]
    of_one = await doors.models.ListModels(pb.ListModelsRequest(name="a", page_size=2))
    assert [model.version for model in of_one.models] == [1, 2]
    rest = await doors.models.ListModels(pb.ListModelsRequest(name="a", page_size=2, page_token=of_one.next_page_token))
    assert [model.version for model in rest.models] == [3]
    assert rest.next_page_token == ""


async def test_a_damaged_version_hides_no_other(doors: Any) -> None:
    for _ in range(3):
        place(doors)
    (doors.repository.folder("m", 2) / "manifest.json").write_bytes(b"{")
    page = await doors.models.ListModels(pb.ListModelsRequest())
    assert [model.version for model in page.models] == [1, 3]
