"""ModelService: versions in and out of the repository."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import grpc
import structlog
from hone.repository.v1 import models_pb2 as pb
from hone.repository.v1 import models_pb2_grpc

from services.chassis.faults import InvalidField, OutOfRange, Overloaded
from services.optimization import wire
from services.optimization.uploads.inspection import inspect_folder
from services.repository.manifest import Manifest, Task
from services.repository.references import check_channel, check_name, parse
from services.repository.store import CHUNK_BYTES, Damaged, Origin, Repository, Resolved, UnknownModel
from services.repository.uploads import Upload, Uploads

log = structlog.get_logger("hone.models")

NAME = pb.DESCRIPTOR.services_by_name["ModelService"].full_name
Context = grpc.aio.ServicerContext[object, object]
RETRY_DISK_S = 60.0
P = ParamSpec("P")
T = TypeVar("T")


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """File work runs off the event loop, one chunk at a time."""

    def __init__(self, repository: Repository, uploads: Uploads) -> None:
        self._repository = repository
        self._uploads = uploads
        self._sealing: dict[str, asyncio.Task[Manifest]] = {}  # by upload id

    async def UploadModel(self, request_iterator: AsyncIterator[pb.UploadModelRequest], context: Context) -> pb.UploadModelResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidField("header", "must come first")
        head = first.header
        task = wire.task_from(head.task)
        channels = [wire.named(f"header.channels[{index}]", check_channel, channel) for index, channel in enumerate(head.channels)]
        wire.named("header.name", check_name, head.name)
        made = await self._made(head)
        if made is None:
            upload = await _disk(self._uploads.begin, head.upload_id, head.name, wire.files_from(head.files))
            await _receive(request_iterator, upload)
            # A stream whose caller has gone ends like a finished one: it must not be sealed, nor its fault told to who comes back.
            await _disk(upload.check_complete)
            made = await self._sealed(upload, head, task)
        for channel in channels:
            await _disk(self._repository.set_channel, made.name, channel, made.version)
        return pb.UploadModelResponse(model=self._message(made))

    async def _made(self, head: pb.UploadHeader) -> Manifest | None:
        """The version that the upload became, or is becoming, if it was finished before."""
        if head.upload_id in self._sealing:
            return await asyncio.shield(self._sealing[head.upload_id])
        return await asyncio.to_thread(self._repository.find, head.name, upload_id=head.upload_id) if head.upload_id else None

    async def _sealed(self, upload: Upload, head: pb.UploadHeader, task: Task | None) -> Manifest:
        """Goes on when the caller's connection breaks, once for all streams of the upload: who comes back gets the result."""
        if head.upload_id not in self._sealing:
            sealing = asyncio.ensure_future(_disk(self._seal, upload, head.upload_id, head.name, task))
            self._sealing[head.upload_id] = sealing
            sealing.add_done_callback(lambda _: self._sealing.pop(head.upload_id))
        return await asyncio.shield(self._sealing[head.upload_id])

    def _seal(self, upload: Upload, upload_id: str, name: str, task: Task | None) -> Manifest:
        """Parses in a child process, then seals; what does not parse is dropped, since resuming could not mend it."""
        folder = upload.finish()
        try:
            signature = inspect_folder(folder, task)
            with self._repository.staging() as staged:
                return self._repository.seal(folder.rename(staged / "version"), name, signature, Origin(upload_id=upload_id))
        finally:
            self._uploads.forget(upload_id)

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        return pb.GetUploadResponse(received_bytes=await asyncio.to_thread(self._uploads.received_bytes, request.upload_id))

    async def DownloadModel(self, request: pb.DownloadModelRequest, context: Context) -> AsyncIterator[pb.DownloadModelResponse]:
        resolved = await self._resolved(request.reference)
        sizes = {entry.path: entry.size_bytes for entry in resolved.manifest.files}
        if request.path and request.path not in sizes:
            raise UnknownModel(f"{resolved.manifest.reference} has no file {request.path[:200]!r}")
        if not 0 <= request.offset <= (sizes[request.path] if request.path else 0):
            raise OutOfRange(f"offset: {request.offset} lies outside of {request.path or 'the version; name a path'}")
        yield pb.DownloadModelResponse(model=self._message(resolved.manifest))
        for path in [request.path] if request.path else sizes:
            try:
                async for chunk in _chunks(resolved.folder, path, request.offset):
                    yield pb.DownloadModelResponse(chunk=chunk)
            except FileNotFoundError:
                raise UnknownModel(f"{resolved.manifest.reference} was deleted meanwhile") from None

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=self._message((await self._resolved(request.reference)).manifest))

    async def _resolved(self, reference: str) -> Resolved:
        return await asyncio.to_thread(self._repository.resolve, wire.named("reference", parse, reference))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        if not 0 <= request.page_size <= 1000:
            raise InvalidField("page_size", f"must be 1 to 1000, not {request.page_size}")
        if request.name:
            wire.named("name", check_name, request.name)
        after = _page_start(request.page_token)
        return await asyncio.to_thread(self._list, request.name, request.page_size or 100, after)

    def _list(self, name: str, size: int, after: tuple[str, int]) -> pb.ListModelsResponse:
        if name and not self._repository.versions(name):
            raise UnknownModel(f"no model {name!r}")
        names = [name] if name else [known for known in self._repository.names() if known >= after[0]]
        keys = [(known, version) for known in names for version in self._repository.versions(known) if (known, version) > after]
        page = [self._message(manifest) for key in keys[:size] if (manifest := self._readable(*key)) is not None]
        token = "{}@{}".format(*keys[size - 1]) if len(keys) > size else ""
        return pb.ListModelsResponse(models=page, next_page_token=token)

    def _readable(self, name: str, version: int) -> Manifest | None:
        """One damaged version must not hide all others; GetModel still tells of it."""
        try:
            return self._repository.manifest(name, version)
        except (Damaged, UnknownModel) as error:  # or deleted since it was listed
            log.error("a version cannot be listed", model=f"{name}@{version}", error=str(error))
            return None

    async def SetChannel(self, request: pb.SetChannelRequest, context: Context) -> pb.SetChannelResponse:
        name, channel = wire.named("name", check_name, request.name), wire.named("channel", check_channel, request.channel)
        manifest = await _disk(self._repository.set_channel, name, channel, _version(request.version))
        return pb.SetChannelResponse(model=self._message(manifest))

    async def RollBack(self, request: pb.RollBackRequest, context: Context) -> pb.RollBackResponse:
        name, channel = wire.named("name", check_name, request.name), wire.named("channel", check_channel, request.channel)
        manifest = await _disk(self._repository.roll_back, name, channel)
        return pb.RollBackResponse(model=self._message(manifest))

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Context) -> pb.DeleteVersionResponse:
        await _disk(self._repository.delete, wire.named("name", check_name, request.name), _version(request.version))
        return pb.DeleteVersionResponse()

    def _message(self, manifest: Manifest) -> pb.ModelVersion:
        return wire.model_message(manifest, self._repository.channels(manifest.name))


async def _receive(requests: AsyncIterator[pb.UploadModelRequest], upload: Upload) -> None:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidField("header", "must come once")
        await _disk(upload.write, request.chunk.path, request.chunk.offset, request.chunk.data)


async def _chunks(folder: Path, path: str, offset: int) -> AsyncIterator[pb.FileChunk]:
    with (folder / path).open("rb") as file:
        file.seek(offset)
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield pb.FileChunk(path=path, offset=offset, data=data)
            offset += len(data)


async def _disk(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs file work off the event loop; a full disk is the caller's to know."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Overloaded("no space is left for models", RETRY_DISK_S) from error
        raise


def _version(number: int) -> int:
    if number < 1:
        raise InvalidField("version", f"must be a whole number from 1, not {number}")
    return number


def _page_start(token: str) -> tuple[str, int]:
    name, _, version = token.partition("@")
    if token and not version.isdecimal():
        raise InvalidField("page_token", "is not one that this server gave")
    return name, int(version or 0)
