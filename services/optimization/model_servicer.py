"""ModelService: versions in and out of the repository."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
from hone.repository.v1 import models_pb2 as pb
from hone.repository.v1 import models_pb2_grpc

from services.chassis.faults import InvalidField, OutOfRange
from services.optimization import conversion, model_wire, pages, traffic_wire
from services.optimization.remembered.departed import Departed
from services.optimization.uploads.disk_work import chunks, on_disk
from services.optimization.uploads.inspection import inspect_folder
from services.optimization.uploads.sealings import Announced, Sealings
from services.repository.manifest import Manifest, Task
from services.repository.references import check_channel, check_name, parse
from services.repository.store import Origin, Repository, Resolved, UnknownModel
from services.repository.traffic import BadTraffic
from services.repository.uploads import Upload, Uploads

NAME = pb.DESCRIPTOR.services_by_name["ModelService"].full_name
Context = grpc.aio.ServicerContext[object, object]


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """File work runs off the event loop; what strangers wrote is parsed in child processes."""

    def __init__(self, repository: Repository, uploads: Uploads, departed: Departed | None = None) -> None:
        self._repository = repository
        self._departed = departed
        self._uploads = uploads
        self._sealings: Sealings[Manifest] = Sealings(uploads, lambda name, upload_id: repository.find(name, upload_id=upload_id))

    async def UploadModel(self, request_iterator: AsyncIterator[pb.UploadModelRequest], context: Context) -> pb.UploadModelResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidField("header", "must come first")
        head = first.header
        task = model_wire.task_from(head.task)
        channels = [conversion.named(f"header.channels[{index}]", check_channel, channel) for index, channel in enumerate(head.channels)]
        conversion.named("header.name", check_name, head.name)
        announced = Announced(head.upload_id, head.name, model_wire.files_from(head.files))
        seal = partial(self._seal, announced, task)
        made = await self._sealings.version(announced, partial(_receive, request_iterator), seal)
        for channel in channels:
            await on_disk(self._repository.set_channel, made.name, channel, made.version)
        return pb.UploadModelResponse(model=self._message(made))

    def _seal(self, announced: Announced, task: Task | None, folder: Path) -> Manifest:
        """Parses in a child process, then seals."""
        signature = inspect_folder(folder, task)
        with self._repository.staging() as staged:
            version = folder.rename(staged / "version")
            return self._repository.seal(version, announced.name, signature, Origin(upload_id=announced.upload_id))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        return pb.GetUploadResponse(received_bytes=await on_disk(self._uploads.received_bytes, request.upload_id))

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
                async for offset, data in chunks(resolved.folder / path, request.offset):
                    yield pb.DownloadModelResponse(chunk=pb.FileChunk(path=path, offset=offset, data=data))
            except FileNotFoundError:
                raise UnknownModel(f"{resolved.manifest.reference} was deleted meanwhile") from None

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=self._message((await self._resolved(request.reference)).manifest))

    async def _resolved(self, reference: str) -> Resolved:
        return await asyncio.to_thread(self._repository.resolve, conversion.named("reference", parse, reference))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        if request.name:
            conversion.named("name", check_name, request.name)
        size, after = pages.page_size(request.page_size), pages.page_start(request.page_token)
        return await on_disk(self._list, request.name, size, after)

    def _list(self, name: str, size: int, after: pages.Key) -> pb.ListModelsResponse:
        if name and not self._repository.versions(name):
            raise UnknownModel(f"no model {name!r}")
        found, token = pages.page(self._repository, name, size, after)
        return pb.ListModelsResponse(models=map(self._message, found), next_page_token=token)

    async def SetChannel(self, request: pb.SetChannelRequest, context: Context) -> pb.SetChannelResponse:
        name, channel = conversion.named("name", check_name, request.name), conversion.named("channel", check_channel, request.channel)
        manifest = await on_disk(self._repository.set_channel, name, channel, _version(request.version))
        return pb.SetChannelResponse(model=self._message(manifest))

    async def RollBack(self, request: pb.RollBackRequest, context: Context) -> pb.RollBackResponse:
        name, channel = conversion.named("name", check_name, request.name), conversion.named("channel", check_channel, request.channel)
        manifest = await on_disk(self._repository.roll_back, name, channel)
        return pb.RollBackResponse(model=self._message(manifest))

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> pb.SetTrafficResponse:
        at, plan = traffic_wire.reference_from(request.name, request.channel), traffic_wire.plan_from(request.traffic)
        try:
            made = await on_disk(self._repository.set_traffic, at.name, at.channel, plan, expected=request.traffic.revision)
        except BadTraffic as error:
            raise BadTraffic(f"traffic.{error}") from error
        return pb.SetTrafficResponse(traffic=traffic_wire.traffic_message(made))

    async def GetTraffic(self, request: pb.GetTrafficRequest, context: Context) -> pb.GetTrafficResponse:
        at = traffic_wire.reference_from(request.name, request.channel)
        await asyncio.to_thread(self._repository.resolve, at)
        found = await asyncio.to_thread(self._repository.traffic, at.name)
        return pb.GetTrafficResponse(traffic=traffic_wire.traffic_message(found.get(at.channel)))

    async def ClearTraffic(self, request: pb.ClearTrafficRequest, context: Context) -> pb.ClearTrafficResponse:
        at = traffic_wire.reference_from(request.name, request.channel)
        await on_disk(self._repository.clear_traffic, at.name, at.channel)
        return pb.ClearTrafficResponse()

    async def PromoteArm(self, request: pb.PromoteArmRequest, context: Context) -> pb.PromoteArmResponse:
        at = traffic_wire.reference_from(request.name, request.channel)
        return pb.PromoteArmResponse(model=self._message(await on_disk(self._repository.promote_arm, at.name, at.channel, request.arm)))

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Context) -> pb.DeleteVersionResponse:
        name, version = conversion.named("name", check_name, request.name), _version(request.version)
        await on_disk(self._repository.delete, name, version)
        if self._departed is not None:
            self._departed.deleted(f"{name}@{version}")
        return pb.DeleteVersionResponse()

    def _message(self, manifest: Manifest) -> pb.ModelVersion:
        return model_wire.model_message(manifest, self._repository.channels(manifest.name))


async def _receive(requests: AsyncIterator[pb.UploadModelRequest], upload: Upload) -> None:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidField("header", "must come once")
        await on_disk(upload.write, request.chunk.path, request.chunk.offset, request.chunk.data)


def _version(number: int) -> int:
    if number < 1:
        raise InvalidField("version", f"must be a whole number from 1, not {number}")
    return number
