"""Between DatasetService's messages and our own values."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType

from hone.repository.v1 import datasets_pb2 as pb
from hone.repository.v1 import models_pb2

from services.chassis.faults import InvalidField
from services.optimization import conversion
from services.repository.dataset_manifest import Column, DatasetFormat, DatasetManifest
from services.repository.manifest import FileEntry

_FORMATS: Mapping["pb.DatasetFormat.ValueType", DatasetFormat] = MappingProxyType(
    {pb.DatasetFormat.Value(f"DATASET_FORMAT_{form.name}"): form for form in DatasetFormat}
)
_SUFFIXES = MappingProxyType({f".{form.value}": form for form in DatasetFormat} | {".ndjson": DatasetFormat.JSONL})


def format_from(header: pb.DatasetUploadHeader) -> DatasetFormat:
    """The header's format, or the one that its file's name tells. Raises InvalidField."""
    if header.format != pb.DATASET_FORMAT_UNSPECIFIED:
        if header.format not in _FORMATS:
            raise InvalidField("header.format", f"{header.format} is not a format")
        return _FORMATS[header.format]
    suffix = PurePosixPath(header.file.path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise InvalidField("header.file.path", f"must end with one of {', '.join(_SUFFIXES)}, or header.format must be set")
    return _SUFFIXES[suffix]


def file_from(header: pb.DatasetUploadHeader, form: DatasetFormat) -> FileEntry:
    """The file under the name that it is kept by. Raises InvalidField."""
    file = header.file
    return conversion.checked("header.file", lambda: FileEntry(path=form.file_name, size_bytes=file.size_bytes, sha256=file.sha256))


def dataset_message(manifest: DatasetManifest) -> pb.DatasetVersion:
    return pb.DatasetVersion(
        name=manifest.name,
        version=manifest.version,
        format=pb.DatasetFormat.Value(f"DATASET_FORMAT_{manifest.format.name}"),
        digest=manifest.digest,
        file=models_pb2.File(path=manifest.file.path, size_bytes=manifest.file.size_bytes, sha256=manifest.file.sha256),
        rows=manifest.rows,
        columns=[_column(column) for column in manifest.columns],
        created=conversion.timestamp(manifest.created),
    )


def _column(column: Column) -> pb.Column:
    kind = pb.ColumnKind.Value(f"COLUMN_KIND_{column.kind.name}")
    return pb.Column(name=column.name, kind=kind, dtype=column.dtype, shape=column.shape)
