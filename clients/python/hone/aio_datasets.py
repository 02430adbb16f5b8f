"""`client.datasets` for asyncio: the same calls, awaited."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from hone import tables
from hone.repository.v1 import datasets_pb2 as pb
from hone.repository.v1 import datasets_pb2_grpc
from hone.transfers import UPLOAD_TIMEOUT_S, Progress, off_loop, refuse_all_but_unknown, resuming_async


class Datasets:
    """Versions of datasets; see `hone.datasets.Datasets` for the arguments."""

    def __init__(self, connection: grpc.aio.Channel, timeout: float) -> None:
        self._stub = datasets_pb2_grpc.DatasetServiceStub(connection)
        self._timeout = timeout

    async def push(
        self,
        data: tables.TableLike,
        name: str,
        *,
        format: "pb.DatasetFormat.ValueType" = pb.DATASET_FORMAT_UNSPECIFIED,  # noqa: A002
        progress: Progress | None = None,
        timeout: float = UPLOAD_TIMEOUT_S,
    ) -> pb.DatasetVersion:
        """Uploads data as a version. Raises grpc.RpcError, FileNotFoundError, TypeError, ValueError."""
        prepared = tables.source(data, name, format)
        source = await asyncio.to_thread(prepared.__enter__)  # reads the data for its digest

        async def attempt() -> pb.DatasetVersion:
            requests = source.requests(await self._received_bytes(source.header.upload_id), progress)
            return (await self._stub.UploadDataset(off_loop(requests), timeout=timeout)).dataset

        try:
            return await resuming_async(attempt)
        finally:
            prepared.__exit__(None, None, None)

    async def _received_bytes(self, upload_id: str) -> int:
        try:
            request = pb.DatasetServiceGetUploadRequest(upload_id=upload_id)
            return (await self._stub.GetUpload(request, timeout=self._timeout)).received_bytes
        except grpc.RpcError as error:
            refuse_all_but_unknown(error)
            return 0

    async def pull(
        self, reference: str, path: str | Path, *, progress: Progress | None = None, timeout: float = UPLOAD_TIMEOUT_S
    ) -> pb.DatasetVersion:
        """Downloads a version's file to `path` and checks its digest. Raises grpc.RpcError, OSError, ValueError."""
        writer = await asyncio.to_thread(tables.FileWriter, Path(path))

        async def attempt() -> pb.DatasetVersion:
            async for response in self._stub.DownloadDataset(writer.request(reference), timeout=timeout):
                done, total = await asyncio.to_thread(writer.take, response)
                if progress is not None:
                    progress(done, total)
            return await asyncio.to_thread(writer.finish)

        try:
            return await resuming_async(attempt)
        finally:
            writer.discard()

    async def get(self, reference: str) -> pb.DatasetVersion:
        return (await self._stub.GetDataset(pb.GetDatasetRequest(reference=reference), timeout=self._timeout)).dataset

    async def preview(self, reference: str, rows: int = 10) -> "list[dict[str, Any]]":
        """The first rows by column."""
        request = pb.PreviewDatasetRequest(reference=reference, rows=rows)
        return tables.preview_rows(await self._stub.PreviewDataset(request, timeout=self._timeout))

    async def delete(self, name: str, version: int) -> None:
        await self._stub.DeleteVersion(pb.DatasetServiceDeleteVersionRequest(name=name, version=version), timeout=self._timeout)

    async def list(self, name: str = "") -> AsyncIterator[pb.DatasetVersion]:
        """Every version, by name and number; page by page as it is read."""
        token = ""
        while True:
            page = await self._stub.ListDatasets(pb.ListDatasetsRequest(name=name, page_token=token), timeout=self._timeout)
            for dataset in page.datasets:
                yield dataset
            token = page.next_page_token
            if not token:
                return
