"""Traffic as a log of requests recorded it.

One JSON object a line for each request, in the order of their arrival, with any of

    text    the request's text, or a list of them, one for each row
    tokens  instead of text, where texts are not to be kept: the number of tokens of its row, or a list, one for each row
    rows    where neither is told: how many rows it had
    at      when it came: seconds on any clock, or a time as ISO 8601 has it

and the same of them in every line: {"at": "2026-05-04T09:30:00.250Z", "text": "where is my parcel?"}.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from hone.optimization.v1 import goals_pb2

KEYS = ("text", "tokens", "rows", "at")
MOST_ROWS = 100_000


def traffic(path: Path) -> goals_pb2.Traffic:
    """What the file recorded. Raises ValueError, which names the line at fault."""
    lines = list(_lines(path))
    if not lines:
        raise ValueError(f"{path}: holds no request")
    asked = [_rows(line, place) for place, line in lines]
    counts = [len(rows) if isinstance(rows, Sequence) else rows for rows in asked]
    if sum(counts) > MOST_ROWS:
        raise ValueError(f"{path}: {sum(counts)} rows are more than {MOST_ROWS}: keep the busiest hour")
    rows = [row for rows in asked if isinstance(rows, Sequence) for row in rows]
    return goals_pb2.Traffic(
        texts=rows if "text" in lines[0][1] else (),
        token_lengths=rows if "tokens" in lines[0][1] else (),
        request_rows=counts,
        gaps_s=list(_gaps(path, lines)) if "at" in lines[0][1] else (),
    )


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each with its place."""
    keys: set[str] | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        found = _object(line, place)
        if unknown := sorted(found.keys() - set(KEYS)):
            raise ValueError(f"{place}: {', '.join(unknown)}: not one of {', '.join(KEYS)}")
        if keys is not None and found.keys() != keys:
            raise ValueError(f"{place}: has {_told(found)} where the first line has {_told(keys)}")
        keys = set(found)
        yield place, found


def _object(line: str, place: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: is no JSON: {error}") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{place}: must be an object of {', '.join(KEYS)}")
    return found


def _told(keys: Iterator[str] | Mapping[str, Any] | set[str]) -> str:
    return ", ".join(sorted(keys))


def _rows(line: Mapping[str, Any], place: str) -> Sequence[Any] | int:
    """Of one request: what each row holds, or how many there were."""
    told = [name for name in ("text", "tokens", "rows") if name in line]
    if len(told) > 1:
        raise ValueError(f"{place}: {' and '.join(told)}: tell one of them")
    if not told:
        return 1
    (name,), kind = told, str if told == ["text"] else int
    value = line[name]
    values = value if isinstance(value, list) and name != "rows" else [value]
    if not values or not all(type(each) is kind and _is_something(each) for each in values):
        raise ValueError(f"{place}: {name}: {json.dumps(value)} is no {'text' if kind is str else 'count'} of one row or more")
    return int(value) if name == "rows" else values


def _is_something(value: str | int) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value >= 1


def _gaps(path: Path, lines: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[float]:
    """Seconds between requests."""
    if len(lines) < 2:
        raise ValueError(f"{path}: at: one request alone has no rate")
    moments = [(place, _seconds(line["at"], place)) for place, line in lines]
    for (_, before), (place, after) in pairwise(moments):
        if after < before:
            raise ValueError(f"{place}: at: is before the line above: sort the requests by their time")
        yield after - before


def _seconds(at: object, place: str) -> float:
    if isinstance(at, str):
        try:
            moment = datetime.fromisoformat(at)
        except ValueError:
            raise ValueError(f"{place}: at: {at!r} is no time as ISO 8601 has it") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
        raise ValueError(f"{place}: at: must be seconds, or a time as ISO 8601 has it")
    return float(at)
