"""A dataset's file to its table. Nothing in a file is executed or unpickled; uploads are parsed in a child process with limits."""

from collections.abc import Callable, Mapping
from pathlib import Path

from services.optimization.datasets.table import BadDataset as BadDataset
from services.optimization.datasets.table import Table as Table
from services.optimization.datasets.table import Values as Values
from services.repository.dataset_manifest import Column, DatasetFormat

# What a compressed file may grow to. A file whose zeros compress better than this has to be sent less compressed.
FREE_BYTES = 2 << 30
GROWTH = 4


def read_table(path: Path, format: DatasetFormat) -> Table:  # noqa: A002
    """The whole table. Raises BadDataset whose text names the line, row, column or array; OSError."""
    return _read(path, DatasetFormat(format), None, ())


def read_head(path: Path, format: DatasetFormat, schema: tuple[Column, ...], rows: int) -> Table:  # noqa: A002
    """At most the first `rows` rows of a file whose columns are known. Raises BadDataset, OSError."""
    return _read(path, DatasetFormat(format), rows, schema)


def largest_bytes(path: Path) -> int:
    """What the file may grow to in memory as arrays. Raises OSError."""
    return FREE_BYTES + GROWTH * path.stat().st_size


def _read(path: Path, form: DatasetFormat, first: int | None, schema: tuple[Column, ...]) -> Table:
    readers: Mapping[DatasetFormat, Callable[[], Table]] = {
        DatasetFormat.JSONL: lambda: _jsonl(path, first),
        DatasetFormat.CSV: lambda: _csv(path, first, schema),
        DatasetFormat.PARQUET: lambda: _parquet(path, first),
        DatasetFormat.NPZ: lambda: _npz(path, first),
    }
    if path.stat().st_size == 0:
        raise BadDataset("the file is empty")
    return readers[form]()


# Each reader is imported when a file needs it: Arrow alone costs more than all of the others.


def _jsonl(path: Path, first: int | None) -> Table:
    from services.optimization.datasets.jsonl import read_jsonl

    return read_jsonl(path, first)


def _csv(path: Path, first: int | None, schema: tuple[Column, ...]) -> Table:
    from services.optimization.datasets.csv_text import read_csv

    return read_csv(path, first, {column.name: column.kind for column in schema})


def _parquet(path: Path, first: int | None) -> Table:
    from services.optimization.datasets.parquet import read_parquet

    return read_parquet(path, largest_bytes(path), first)


def _npz(path: Path, first: int | None) -> Table:
    from services.optimization.datasets.npz import read_npz

    return read_npz(path, largest_bytes(path), first)
