"""A dataset in memory: named columns of equal length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.repository.dataset_manifest import Column, ColumnKind, Contents

Values: TypeAlias = list[str] | list[list[str]] | list[list[int]] | NDArray[Any]

MAX_COLUMNS = 1000
MAX_NAME_CHARACTERS = 128
MAX_ROWS = 100_000_000  # of formats that can name a number of rows without holding them
INT64 = range(-(1 << 63), 1 << 63)


class BadDataset(ValueError):
    """The file does not hold a table; the text names the line, row, column or array, and the fault."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns in the file's order.

    By kind: TEXT list[str]; INTEGER int64 [rows]; NUMBER float64 [rows]; TOKENS list[list[str]]; INTEGERS list[list[int]];
    ARRAY [rows, …] in the dtype that its column tells. At least one row.
    """

    schema: tuple[Column, ...]
    columns: Mapping[str, Values]

    def __getitem__(self, name: str) -> Values:
        """A column's values. Raises KeyError."""
        return self.columns[name]

    @property
    def rows(self) -> int:
        return len(self.columns[self.schema[0].name])

    @property
    def contents(self) -> Contents:
        return Contents(rows=self.rows, columns=self.schema)


def table(columns: Sequence[tuple[Column, Values]]) -> Table:
    """Raises BadDataset for bad names, no column or no rows."""
    check_names([column.name for column, _ in columns])
    if not len(columns[0][1]):
        raise BadDataset("no rows")
    return Table(tuple(column for column, _ in columns), {column.name: values for column, values in columns})


def check_names(names: Sequence[str]) -> None:
    """Raises BadDataset."""
    if not 0 < len(names) <= MAX_COLUMNS:
        raise BadDataset(f"must have 1 to {MAX_COLUMNS} columns, not {len(names)}")
    for index, name in enumerate(names, 1):
        if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
            raise BadDataset(f"the name of column {index}, {name[:40]!r}, must be 1 to {MAX_NAME_CHARACTERS} printable characters")
        if name in names[: index - 1]:
            raise BadDataset(f"column {name!r} occurs twice")


def scalar_kind(values: NDArray[Any]) -> ColumnKind:
    """INTEGER for integers and booleans, else NUMBER."""
    return ColumnKind.NUMBER if values.dtype.kind == "f" else ColumnKind.INTEGER


def is_unicode(text: str) -> bool:
    """Whether the text can be written again: half of a surrogate pair, which JSON's escapes can spell, cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_not_finite(values: NDArray[Any]) -> int | None:
    """The first row with NaN or infinity, None without one. `values` is [rows, …] of floating point."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))
