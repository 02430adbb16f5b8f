"""Apache Parquet, by its C++ library; columns of strings, integers, floats, booleans and lists of strings or integers."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.optimization.datasets.table import MAX_ROWS, BadDataset, Table, Values, check_names, first_not_finite, table
from services.repository.dataset_manifest import Column, ColumnKind


def read_parquet(path: Path, max_bytes: int, first: int | None = None) -> Table:
    """The table, or its first rows. Raises BadDataset, also where the file says that it grows beyond `max_bytes`."""
    try:
        with path.open("rb") as source, pq.ParquetFile(source) as file:
            _check_size(file.metadata, max_bytes)
            kinds = _kinds(file.schema_arrow)
            read = _head(file, first) if first is not None else file.read(use_threads=False)
            return table([_column(name, kind, read.column(index)) for index, (name, kind) in enumerate(kinds.items())])
    except BadDataset:
        raise
    except MemoryError:  # Arrow's own is a pa.ArrowException too
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadDataset(f"not Parquet, or truncated: {str(error).partition(chr(10))[0]}") from error


def _check_size(metadata: pq.FileMetaData, max_bytes: int) -> None:
    if metadata.num_rows == 0:
        raise BadDataset("no rows")
    if metadata.num_rows > MAX_ROWS:
        raise BadDataset(f"{metadata.num_rows} rows; at most {MAX_ROWS} are read")
    declared = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    if declared > max_bytes:
        raise BadDataset(f"it would grow to {declared} bytes; a file of its size may to {max_bytes}")


def _kinds(schema: pa.Schema) -> dict[str, ColumnKind]:
    check_names(schema.names)
    return {field.name: _kind(field) for field in schema}


def _kind(field: pa.Field) -> ColumnKind:
    kind = _scalar_kind(field.type)
    if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type):
        entry = _scalar_kind(field.type.value_type)
        if not pa.types.is_boolean(field.type.value_type):
            kind = {ColumnKind.TEXT: ColumnKind.TOKENS, ColumnKind.INTEGER: ColumnKind.INTEGERS}.get(entry) if entry else None
    if kind is None:
        raise BadDataset(
            f"column {field.name!r}: type {field.type} is not among strings, integers, floats, booleans and lists of the first two"
        )
    return kind


def _scalar_kind(kind: pa.DataType) -> ColumnKind | None:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return ColumnKind.TEXT
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return ColumnKind.INTEGER
    return ColumnKind.NUMBER if pa.types.is_floating(kind) else None


def _head(file: pq.ParquetFile, first: int) -> pa.Table:
    return pa.Table.from_batches([next(file.iter_batches(batch_size=first, use_threads=False))])


def _column(name: str, kind: ColumnKind, values: pa.ChunkedArray) -> tuple[Column, Values]:
    column = Column(name=name, kind=kind)
    _check_nulls(name, values)
    try:
        if kind is ColumnKind.INTEGER:
            return column, values.cast(pa.int64()).to_numpy()
        if kind is ColumnKind.NUMBER:
            numbers = values.cast(pa.float64()).to_numpy()
            _check_finite(name, numbers)
            return column, numbers
        if kind is ColumnKind.INTEGERS:
            values = values.cast(pa.list_(pa.int64()))
        return column, values.to_pylist()
    except UnicodeDecodeError as error:
        raise BadDataset(f"column {name!r}: holds text that is not UTF-8") from error
    except pa.ArrowInvalid as error:
        raise BadDataset(f"column {name!r}: {error}") from error


def _check_nulls(name: str, values: pa.ChunkedArray) -> None:
    if values.null_count:
        raise BadDataset(f"row {_first_null(values)}: column {name!r} is null; every row has a value")
    if pa.types.is_nested(values.type) and any(chunk.flatten().null_count for chunk in values.chunks):
        row = next(row for row, entries in enumerate(values, 1) if entries.values.null_count)
        raise BadDataset(f"row {row}: column {name!r} holds a null in its list")


def _first_null(values: pa.ChunkedArray) -> int:
    return next(row for row, value in enumerate(values, 1) if not value.is_valid)


def _check_finite(name: str, numbers: NDArray[Any]) -> None:
    row = first_not_finite(numbers)
    if row is not None:
        raise BadDataset(f"row {row + 1}: column {name!r} is NaN or infinity")
