"""DatasetService: datasets in and out of the repository."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
from hone.repository.v1 import datasets_pb2 as pb
from hone.repository.v1 import datasets_pb2_grpc

from services.chassis.faults import InvalidField, OutOfRange
from services.optimization import conversion, dataset_wire, pages
from services.optimization.datasets.table import BadDataset
from services.optimization.uploads.dataset_inspection import head, inspect_file
from services.optimization.uploads.disk_work import chunks, on_disk
from services.optimization.uploads.sealings import Announced, Sealings
from services.repository.dataset_manifest import DatasetFormat, DatasetManifest
from services.repository.datasets import NOUN, Datasets, ResolvedDataset, UnknownDataset, parse_reference
from services.repository.references import check_name
from services.repository.uploads import Upload, Uploads
from services.repository.versions import Damaged

NAME = pb.DESCRIPTOR.services_by_name["DatasetService"].full_name
Context = grpc.aio.ServicerContext[object, object]
PREVIEW_ROWS, MAX_PREVIEW_ROWS = 10, 100


class DatasetServicer(datasets_pb2_grpc.DatasetServiceServicer):
    """File work runs off the event loop; what strangers wrote is parsed in child processes."""

    def __init__(self, datasets: Datasets, uploads: Uploads) -> None:
        self._datasets = datasets
        self._uploads = uploads
        self._sealings: Sealings[DatasetManifest] = Sealings(uploads, datasets.find)

    async def UploadDataset(self, request_iterator: AsyncIterator[pb.UploadDatasetRequest], context: Context) -> pb.UploadDatasetResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidField("header", "must come first")
        header = first.header
        form = dataset_wire.format_from(header)
        _name("header.name", header.name)
        announced = Announced(header.upload_id, header.name, [dataset_wire.file_from(header, form)])
        receive = partial(_receive, request_iterator, form.file_name)
        made = await self._sealings.version(announced, receive, partial(self._seal, announced, form))
        return pb.UploadDatasetResponse(dataset=dataset_wire.dataset_message(made))

    def _seal(self, announced: Announced, form: DatasetFormat, folder: Path) -> DatasetManifest:
        """Parses in a child process, then seals."""
        contents = inspect_file(folder / form.file_name, form)
        with self._datasets.staging() as staged:
            version = folder.rename(staged / "version")
            return self._datasets.seal(version, announced.name, form, contents, announced.upload_id)

    async def GetUpload(self, request: pb.DatasetServiceGetUploadRequest, context: Context) -> pb.DatasetServiceGetUploadResponse:
        received = await on_disk(self._uploads.received_bytes, request.upload_id)
        return pb.DatasetServiceGetUploadResponse(received_bytes=sum(received.values()))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.GetDatasetResponse:
        resolved = await self._resolved(request.reference)
        return pb.GetDatasetResponse(dataset=dataset_wire.dataset_message(resolved.manifest))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Context) -> pb.ListDatasetsResponse:
        if request.name:
            _name("name", request.name)
        size, after = pages.page_size(request.page_size), pages.page_start(request.page_token)
        return await on_disk(self._list, request.name, size, after)

    def _list(self, name: str, size: int, after: pages.Key) -> pb.ListDatasetsResponse:
        if name and not self._datasets.versions(name):
            raise UnknownDataset(f"no dataset {name!r}")
        found, token = pages.page(self._datasets, name, size, after)
        return pb.ListDatasetsResponse(datasets=map(dataset_wire.dataset_message, found), next_page_token=token)

    async def DownloadDataset(self, request: pb.DownloadDatasetRequest, context: Context) -> AsyncIterator[pb.DownloadDatasetResponse]:
        resolved = await self._resolved(request.reference)
        size_bytes = resolved.manifest.file.size_bytes
        if not 0 <= request.offset <= size_bytes:
            raise OutOfRange(f"offset: {request.offset} lies outside of the file's {size_bytes} bytes")
        yield pb.DownloadDatasetResponse(dataset=dataset_wire.dataset_message(resolved.manifest))
        try:
            async for offset, data in chunks(resolved.path, request.offset):
                yield pb.DownloadDatasetResponse(chunk=pb.DatasetChunk(offset=offset, data=data))
        except FileNotFoundError:
            raise UnknownDataset(f"{resolved.manifest.reference} was deleted meanwhile") from None

    async def PreviewDataset(self, request: pb.PreviewDatasetRequest, context: Context) -> pb.PreviewDatasetResponse:
        if not 0 <= request.rows <= MAX_PREVIEW_ROWS:
            raise InvalidField("rows", f"must be 1 to {MAX_PREVIEW_ROWS}, not {request.rows}")
        resolved = await self._resolved(request.reference)
        try:
            rows = await asyncio.to_thread(head, resolved.path.parent, request.rows or PREVIEW_ROWS)
        except BadDataset as error:  # it did parse when it came
            await self._resolved(resolved.manifest.reference)  # or it was deleted meanwhile
            raise Damaged(f"{resolved.manifest.reference}: {error}") from error
        return pb.PreviewDatasetResponse(dataset=dataset_wire.dataset_message(resolved.manifest), rows=map(conversion.struct, rows))

    async def DeleteVersion(
        self, request: pb.DatasetServiceDeleteVersionRequest, context: Context
    ) -> pb.DatasetServiceDeleteVersionResponse:
        if request.version < 1:
            raise InvalidField("version", f"must be a whole number from 1, not {request.version}")
        await on_disk(self._datasets.delete, _name("name", request.name), request.version)
        return pb.DatasetServiceDeleteVersionResponse()

    async def _resolved(self, reference: str) -> ResolvedDataset:
        conversion.named("reference", parse_reference, reference)
        return await asyncio.to_thread(self._datasets.resolve, reference)


async def _receive(requests: AsyncIterator[pb.UploadDatasetRequest], file_name: str, upload: Upload) -> None:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidField("header", "must come once")
        await on_disk(upload.write, file_name, request.chunk.offset, request.chunk.data)


def _name(field: str, name: str) -> str:
    return conversion.named(field, partial(check_name, noun=NOUN), name)
