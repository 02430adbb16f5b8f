"""What techniques note, sorted into what a page can show: curves, bars, tables, definitions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from services.optimization.page.wording import number

MAX_BARS = 20
MAX_TABLE_ROWS = 100
MAX_LISTED = 40
_MAX_DEPTH = 4


@dataclass(frozen=True)
class Series:
    """A curve's finite points (step, value), not empty, in the order told."""

    name: str
    points: tuple[tuple[float, float], ...]
    left_out: int = 0  # points that are no numbers

    @property
    def low(self) -> float:
        return min(value for _, value in self.points)

    @property
    def high(self) -> float:
        return max(value for _, value in self.points)


@dataclass(frozen=True)
class Curves:
    title: str
    series: tuple[Series, ...]
    kind: str = "curves"


@dataclass(frozen=True)
class Bar:
    """`share` of the longest, 0 to 1."""

    name: str
    value: float
    share: float
    excluded: bool


@dataclass(frozen=True)
class Bars:
    title: str
    bars: tuple[Bar, ...]
    total: int
    kind: str = "bars"


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: int
    kind: str = "table"


@dataclass(frozen=True)
class Facts:
    pairs: tuple[tuple[str, str], ...]
    kind: str = "facts"


@dataclass(frozen=True)
class Group:
    title: str
    blocks: tuple["Block", ...]
    kind: str = "group"


Block = Curves | Bars | Table | Facts | Group


def heading(key: str) -> str:
    return key.replace("_", " ")


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def scalar(value: object) -> str:
    """A cell's text; what is neither number nor word is JSON."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 4)
    if isinstance(value, int | str):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _listed(values: Sequence[Any]) -> str:
    told = ", ".join(scalar(value) for value in values[:MAX_LISTED])
    return f"{told}, and {len(values) - MAX_LISTED} more" if len(values) > MAX_LISTED else told or "none"


def _pair(item: object) -> tuple[float, float] | None:
    if _is_list(item) and len(item) == 2 and all(is_number(v) and abs(v) < 1e12 for v in item):
        return float(item[0]), float(item[1])
    return None


def series_of(curves: object) -> tuple[Series, ...]:
    """Those of a mapping of names to lists of pairs that have at least one finite point."""
    found = []
    for name, items in curves.items() if isinstance(curves, Mapping) else ():
        pairs = [_pair(item) for item in items] if _is_list(items) else []
        points = tuple(pair for pair in pairs if pair is not None)
        if points:
            found.append(Series(str(name), points, len(pairs) - len(points)))
    return tuple(found)


def _bars(title: str, errors: Mapping[str, float], excluded: frozenset[str]) -> Bars:
    worst = sorted(((str(name), float(value)) for name, value in errors.items()), key=lambda item: -item[1])
    longest = max((abs(value) for _, value in worst), default=0.0) or 1.0
    bars = tuple(Bar(name, value, abs(value) / longest, name in excluded) for name, value in worst[:MAX_BARS])
    return Bars(title, bars, len(worst))


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Columns in the order in which rows first name them."""
    columns = tuple(dict.fromkeys(str(key) for row in rows for key in row))
    cells = tuple(tuple(scalar(row[c]) if c in row else "" for c in columns) for row in rows[:MAX_TABLE_ROWS])
    return Table(title, tuple(heading(column) for column in columns), cells, len(rows))


def _is_sensitivity(key: str, value: object) -> bool:
    return (
        key == "sensitivity" and isinstance(value, Mapping) and bool(value) and all(is_number(v) and abs(v) < 1e12 for v in value.values())
    )


def _excluded(notes: Mapping[str, Any]) -> frozenset[str]:
    found = notes.get("excluded")
    return frozenset(str(name) for name in found) if _is_list(found) else frozenset()


def _larger(notes: Mapping[str, Any], depth: int) -> Iterator[Block]:
    """Of what is more than one line."""
    for key, value in notes.items():
        title = heading(str(key))
        if key == "curves" and series_of(value):
            yield Curves(title, series_of(value))
        elif _is_sensitivity(str(key), value):
            yield _bars(title, value, _excluded(notes))
        elif isinstance(value, Mapping) and value:
            yield Group(title, blocks(value, depth + 1))
        elif _is_list(value) and value and all(isinstance(item, Mapping) for item in value):
            yield _table(title, value)


def _lines(notes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in notes.items():
        if isinstance(value, Mapping) and not value:
            yield heading(str(key)), "none"
        elif _is_list(value) and (not value or not all(isinstance(item, Mapping) for item in value)):
            yield heading(str(key)), _listed(value)
        elif not isinstance(value, Mapping) and not _is_list(value):
            yield heading(str(key)), scalar(value)


def blocks(notes: Mapping[str, Any], depth: int = 0) -> tuple[Block, ...]:
    """One-line notes first, the larger ones after them, each in the order noted. What nests deeper than any table is JSON."""
    if depth >= _MAX_DEPTH:
        return (Facts(tuple((heading(str(key)), scalar(value)) for key, value in notes.items())),)
    lines = tuple(_lines(notes))
    return ((Facts(lines),) if lines else ()) + tuple(_larger(notes, depth))
