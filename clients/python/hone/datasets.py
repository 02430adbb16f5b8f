"""`client.datasets`: datasets in the repository."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from hone import tables
from hone.repository.v1 import datasets_pb2 as pb
from hone.repository.v1 import datasets_pb2_grpc
from hone.transfers import UPLOAD_TIMEOUT_S, Progress, refuse_all_but_unknown, resuming


class Datasets:
    """Versions of datasets."""

    def __init__(self, connection: grpc.Channel, timeout: float) -> None:
        self._stub = datasets_pb2_grpc.DatasetServiceStub(connection)
        self._timeout = timeout

    def push(
        self,
        data: tables.TableLike,
        name: str,
        *,
        format: "pb.DatasetFormat.ValueType" = pb.DATASET_FORMAT_UNSPECIFIED,  # noqa: A002
        progress: Progress | None = None,
        timeout: float = UPLOAD_TIMEOUT_S,
    ) -> pb.DatasetVersion:
        """Uploads data as a version; a broken upload goes on where it broke.

        Args:
            data: the path of a JSONL, CSV, Parquet or NPZ file, rows as dicts (sent as JSONL), or arrays by name (sent as NPZ).
            name: the dataset's.
            format: a file's, where its name does not tell it.

        Raises grpc.RpcError, FileNotFoundError, and TypeError or ValueError for rows or arrays that cannot be written.
        """
        with tables.source(data, name, format) as source:

            def attempt() -> pb.DatasetVersion:
                requests = source.requests(self._received_bytes(source.header.upload_id), progress)
                return self._stub.UploadDataset(requests, timeout=timeout).dataset

            return resuming(attempt)

    def _received_bytes(self, upload_id: str) -> int:
        try:
            request = pb.DatasetServiceGetUploadRequest(upload_id=upload_id)
            return self._stub.GetUpload(request, timeout=self._timeout).received_bytes
        except grpc.RpcError as error:
            refuse_all_but_unknown(error)
            return 0

    def pull(
        self, reference: str, path: str | Path, *, progress: Progress | None = None, timeout: float = UPLOAD_TIMEOUT_S
    ) -> pb.DatasetVersion:
        """Downloads a version's file to `path` and checks its digest; a broken download goes on where it broke.

        Raises grpc.RpcError, OSError, and ValueError for a wrong digest; `path` is then as it was.
        """
        writer = tables.FileWriter(Path(path))

        def attempt() -> pb.DatasetVersion:
            for response in self._stub.DownloadDataset(writer.request(reference), timeout=timeout):
                done, total = writer.take(response)
                if progress is not None:
                    progress(done, total)
            return writer.finish()

        try:
            return resuming(attempt)
        finally:
            writer.discard()

    def get(self, reference: str) -> pb.DatasetVersion:
        """`NAME@VERSION`, or the newest of `NAME`."""
        return self._stub.GetDataset(pb.GetDatasetRequest(reference=reference), timeout=self._timeout).dataset

    def preview(self, reference: str, rows: int = 10) -> list[dict[str, Any]]:
        """The first rows by column; long texts and lists are cut short, an array is told by its `dtype` and `shape`."""
        request = pb.PreviewDatasetRequest(reference=reference, rows=rows)
        return tables.preview_rows(self._stub.PreviewDataset(request, timeout=self._timeout))

    def delete(self, name: str, version: int) -> None:
        """Its number is never given again."""
        self._stub.DeleteVersion(pb.DatasetServiceDeleteVersionRequest(name=name, version=version), timeout=self._timeout)

    def list(self, name: str = "") -> Iterator[pb.DatasetVersion]:
        """Every version, by name and number; page by page as it is read."""
        token = ""
        while True:
            page = self._stub.ListDatasets(pb.ListDatasetsRequest(name=name, page_token=token), timeout=self._timeout)
            yield from page.datasets
            token = page.next_page_token
            if not token:
                return
