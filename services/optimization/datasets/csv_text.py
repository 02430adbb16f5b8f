"""Comma-separated values with a header, quoted as in RFC 4180."""

import csv
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from services.optimization.datasets.lines import lines
from services.optimization.datasets.table import INT64, BadDataset, Table, Values, check_names, table
from services.repository.dataset_manifest import Column, ColumnKind

MAX_FIELD_CHARACTERS = 1 << 26

# As JSON writes them. A wider rule would read the texts "007" and "+1" as numbers and lose how they were written.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MISSING = frozenset({"", "na", "n/a", "null", "none"})
_NOT_FINITE = frozenset(f"{sign}{name}" for sign in ("", "+", "-") for name in ("nan", "inf", "infinity"))


def read_csv(path: Path, first: int | None = None, kinds: Mapping[str, ColumnKind] | None = None) -> Table:
    """The table, or its first rows.

    Whether a column is text or numbers is known when the last row is read: `kinds` tells it for the first ones.
    Raises BadDataset naming the line.
    """
    records = _records(path)
    header = next(records, None)
    if header is None:
        raise BadDataset("the file is empty")
    names = header[1]
    check_names(names)
    numbers: list[int] = []  # the line that each row begins in
    fields: list[list[str]] = [[] for _ in names]
    for number, record in records:
        if len(record) != len(names):
            raise BadDataset(f"line {number}: {len(record)} fields, the header has {len(names)}")
        numbers.append(number)
        for values, value in zip(fields, record, strict=True):
            values.append(value)
        if len(numbers) == first:
            break
    return table([_column(name, values, numbers, (kinds or {}).get(name)) for name, values in zip(names, fields, strict=True)])


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line that it begins in; empty lines at the end of the file are none."""
    reader = csv.reader(lines(path), strict=True)
    blank = 0
    with _field_limit():
        while True:
            number = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise BadDataset(f"line {number}: not CSV: {error}") from error
            if not record:
                blank = blank or number
                continue
            if blank:
                raise BadDataset(f"line {blank}: empty")
            yield number, record


@contextmanager
def _field_limit() -> Iterator[None]:
    """The csv module's own limit of 128 Ki characters is less than a long document has; it can be set for the process alone."""
    before = csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _column(name: str, values: list[str], numbers: list[int], kind: ColumnKind | None) -> tuple[Column, Values]:
    kind = kind or _kind(name, values, numbers)
    column = Column(name=name, kind=kind)
    if kind is ColumnKind.INTEGER:
        return column, np.array([int(value) for value in values], np.int64)
    return column, np.array([float(value) for value in values]) if kind is ColumnKind.NUMBER else values


def _kind(name: str, values: list[str], numbers: list[int]) -> ColumnKind:
    """INTEGER or NUMBER where every field is one. Raises BadDataset where all are but those that are missing or not finite."""
    others = [index for index, value in enumerate(values) if not _NUMBER.fullmatch(value)]
    if len(others) == len(values):
        return ColumnKind.TEXT
    for index in others:
        if values[index].strip().lower() not in _MISSING | _NOT_FINITE:
            return ColumnKind.TEXT
    if others:
        fault = "NaN or infinity" if values[others[0]].strip().lower() in _NOT_FINITE else "no value"
        raise BadDataset(f"line {numbers[others[0]]}: column {name!r}: {fault} among numbers")
    if all(_INTEGER.fullmatch(value) for value in values):
        # Longer ones are names of something: as numbers their last digits would be lost.
        return ColumnKind.INTEGER if all(len(value) <= 20 and int(value) in INT64 for value in values) else ColumnKind.TEXT
    _check_finite(name, values, numbers)
    return ColumnKind.NUMBER


def _check_finite(name: str, values: list[str], numbers: list[int]) -> None:
    for number, value in zip(numbers, values, strict=True):
        if not math.isfinite(float(value)):
            raise BadDataset(f"line {number}: column {name!r}: a number too large for 64 bits")
