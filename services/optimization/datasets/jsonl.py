"""JSON Lines (jsonlines.org): one object a line, all with the same keys."""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from services.optimization.datasets.lines import lines
from services.optimization.datasets.table import INT64, BadDataset, Table, Values, check_names, is_unicode, table
from services.repository.dataset_manifest import Column, ColumnKind


class _Kind(StrEnum):
    """What a value is, finer than a column: an empty list goes with either kind of list, an integer with numbers."""

    TEXT = "text"
    BOOLEAN = "true or false"
    INTEGER = "an integer"
    NUMBER = "a number"
    EMPTY = "an empty list"
    TOKENS = "a list of strings"
    INTEGERS = "a list of integers"


_COLUMN_KINDS = {
    _Kind.TEXT: ColumnKind.TEXT,
    _Kind.BOOLEAN: ColumnKind.INTEGER,
    _Kind.INTEGER: ColumnKind.INTEGER,
    _Kind.NUMBER: ColumnKind.NUMBER,
    _Kind.EMPTY: ColumnKind.TOKENS,
    _Kind.TOKENS: ColumnKind.TOKENS,
    _Kind.INTEGERS: ColumnKind.INTEGERS,
}
_WIDER = {
    frozenset({_Kind.INTEGER, _Kind.NUMBER}): _Kind.NUMBER,
    frozenset({_Kind.EMPTY, _Kind.TOKENS}): _Kind.TOKENS,
    frozenset({_Kind.EMPTY, _Kind.INTEGERS}): _Kind.INTEGERS,
}


def read_jsonl(path: Path, first: int | None = None) -> Table:
    """The table, or its first rows. Raises BadDataset naming the line."""
    columns: dict[str, _Cells] = {}
    blank = 0
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            blank = blank or number
            continue
        if blank:  # at the end of the file an empty line is harmless, in between a row may be lost
            raise BadDataset(f"line {blank}: empty")
        row = _object(line, number)
        if not columns:
            check_names(list(row))
            columns = {key: _Cells(key) for key in row}
        _check_keys(row, columns, number)
        for key, cells in columns.items():
            cells.add(row[key], number)
        if number == first:
            break
    if not columns:
        raise BadDataset("no rows" if blank else "the file is empty")
    return table([cells.column() for cells in columns.values()])


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except BadDataset as error:
        raise BadDataset(f"line {number}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadDataset(f"line {number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadDataset(f"line {number}: not a JSON object")
    return row


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadDataset(f"the key {key[:80]!r} occurs twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise BadDataset(f"{name} is neither JSON nor a finite number")


def _check_keys(row: dict[str, Any], columns: dict[str, "_Cells"], number: int) -> None:
    if row.keys() == columns.keys():
        return
    for key in columns:
        if key not in row:
            raise BadDataset(f"line {number}: the key {key!r} of line 1 is missing")
    extra = next(key for key in row if key not in columns)
    raise BadDataset(f"line {number}: the key {extra[:80]!r} is not in line 1")


class _Cells:
    """A column while its rows arrive."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kind: _Kind | None = None
        self._values: list[Any] = []

    def add(self, value: Any, line: int) -> None:
        try:
            kind = _kind(value)
            if kind is not self._kind:
                self._kind = self._joined(kind)
        except BadDataset as error:
            raise BadDataset(f"line {line}: column {self._name!r}: {error}") from error
        self._values.append(value)

    def _joined(self, kind: _Kind) -> _Kind:
        if self._kind is None:
            return kind
        pair = frozenset({self._kind, kind})
        if pair in _WIDER:
            return _WIDER[pair]
        raise BadDataset(f"{kind} here, {self._kind} in the lines before")

    def column(self) -> tuple[Column, Values]:
        assert self._kind is not None  # noqa: S101 (a column is made with its first row)
        kind = _COLUMN_KINDS[self._kind]
        column = Column(name=self._name, kind=kind)
        if kind is ColumnKind.INTEGER:
            return column, np.array(self._values, np.int64)
        return column, np.array(self._values, np.float64) if kind is ColumnKind.NUMBER else self._values


def _kind(value: Any) -> _Kind:
    """Raises BadDataset for what no column holds."""
    match value:
        case str():
            _check_text(value)
            return _Kind.TEXT
        case bool():
            return _Kind.BOOLEAN
        case int():
            _check_integer(value)
            return _Kind.INTEGER
        case float():
            if not math.isfinite(value):
                raise BadDataset("a number too large for 64 bits")
            return _Kind.NUMBER
        case list():
            return _list_kind(value)
    raise BadDataset("null; every row has a value" if value is None else "an object; write its values as columns of their own")


def _list_kind(values: list[Any]) -> _Kind:
    if not values:
        return _Kind.EMPTY
    kinds = {type(value) for value in values}
    if kinds == {str}:
        for value in values:
            _check_text(value)
        return _Kind.TOKENS
    if kinds == {int}:
        for value in values:
            _check_integer(value)
        return _Kind.INTEGERS
    raise BadDataset("a list must be of strings alone or of integers alone; write arrays as NPZ")


def _check_text(text: str) -> None:
    if not is_unicode(text):
        raise BadDataset("half of a surrogate pair is no text")


def _check_integer(value: int) -> None:
    if value not in INT64:
        raise BadDataset("an integer too large for 64 bits")
