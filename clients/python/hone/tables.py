"""A dataset on the caller's side: a file, rows or arrays, to and from the wire."""

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

from hone.repository.v1 import datasets_pb2 as pb
from hone.repository.v1 import models_pb2
from hone.transfers import Progress

CHUNK_BYTES = 1 << 20
# A file of one of the four formats, rows as dicts of the same keys, or arrays with the same first dimension.
TableLike: TypeAlias = str | Path | Sequence[Mapping[str, Any]] | Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is being uploaded, and its header."""

    path: Path
    header: pb.DatasetUploadHeader

    def requests(self, received_bytes: int, progress: Progress | None = None) -> Iterator[pb.UploadDatasetRequest]:
        """The header, then what has not been received."""
        yield pb.UploadDatasetRequest(header=self.header)
        total = self.header.file.size_bytes
        with self.path.open("rb") as file:
            offset = file.seek(min(received_bytes, total))
            while data := file.read(CHUNK_BYTES):
                yield pb.UploadDatasetRequest(chunk=pb.DatasetChunk(offset=offset, data=data))
                offset += len(data)
                if progress is not None:
                    progress(offset, total)


@contextmanager
def source(data: TableLike, name: str, format: "pb.DatasetFormat.ValueType") -> Iterator[Source]:  # noqa: A002
    """The data as a file for the length of the block: rows are written as JSON Lines and arrays as NPZ.

    The upload's id follows from name and contents, so pushing the same data again goes on with a broken upload, or answers the
    version that it became.

    Raises:
        FileNotFoundError: no such file.
        TypeError, ValueError: a row that JSON cannot hold, an array of Python objects.
    """
    if isinstance(data, str | Path):
        yield _source(Path(data), name, format)
        return
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(data, Mapping):
            yield _source(_write_arrays(Path(folder, "data.npz"), data), name, pb.DATASET_FORMAT_NPZ)
        else:
            yield _source(_write_rows(Path(folder, "data.jsonl"), data), name, pb.DATASET_FORMAT_JSONL)


def _source(path: Path, name: str, format: "pb.DatasetFormat.ValueType") -> Source:  # noqa: A002
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    file = models_pb2.File(path=path.name, size_bytes=path.stat().st_size, sha256=_sha256(path))
    content = "\n".join([name, str(format), path.suffix, file.sha256])
    upload_id = hashlib.sha256(content.encode()).hexdigest()[:40]
    return Source(path, pb.DatasetUploadHeader(upload_id=upload_id, name=name, format=format, file=file))


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """As numpy.savez does, but for names that it takes as its own arguments, and never with a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)
    return path


class FileWriter:
    """Writes a download beside `path`, and puts it there once its digest is right."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._dataset = pb.DatasetVersion()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._part.write_bytes(b"")

    def request(self, reference: str) -> pb.DownloadDatasetRequest:
        """What is still to come, of the version that the first answer described: `NAME` may be another one by now."""
        known = f"{self._dataset.name}@{self._dataset.version}" if self._dataset.name else reference
        return pb.DownloadDatasetRequest(reference=known, offset=self._part.stat().st_size)

    def take(self, response: pb.DownloadDatasetResponse) -> tuple[int, int]:
        """Bytes so far and in all."""
        if response.WhichOneof("part") == "dataset":
            self._dataset = response.dataset
        else:
            with self._part.open("r+b") as file:
                file.seek(response.chunk.offset)
                file.write(response.chunk.data)
        return self._part.stat().st_size, self._dataset.file.size_bytes

    def finish(self) -> pb.DatasetVersion:
        """Raises ValueError where the bytes are not those that the server described; nothing is at the path then."""
        if _sha256(self._part) != self._dataset.file.sha256:
            raise ValueError(f"{self._path.name}: the digest is not the one in the manifest")
        self._part.replace(self._path)
        return self._dataset

    def discard(self) -> None:
        """Removes what was not finished."""
        self._part.unlink(missing_ok=True)


def preview_rows(response: pb.PreviewDatasetResponse) -> list[dict[str, Any]]:
    """Each row by column, in the file's order; integers are integers again."""
    return [
        {column.name: _plain(column.kind, row[column.name]) for column in response.dataset.columns}
        for row in (json_format.MessageToDict(row) for row in response.rows)
    ]


def _plain(kind: "pb.ColumnKind.ValueType", value: Any) -> Any:
    if kind == pb.COLUMN_KIND_INTEGER:
        return int(value)
    if kind == pb.COLUMN_KIND_INTEGERS:
        return [int(entry) if isinstance(entry, float) else entry for entry in value]
    if kind == pb.COLUMN_KIND_ARRAY:
        return {"dtype": value["dtype"], "shape": [int(size) for size in value["shape"]]}
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
