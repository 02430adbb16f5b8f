"""Rows that wait, kept so that neighbours in length, the most urgent and the next to expire are found at once."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar


@dataclass(slots=True, eq=False)
class Row:
    """One row waiting. Rows of different `key` never share a batch. `deadline` is on the caller's clock."""

    key: Hashable
    length: int
    priority: int = 0
    deadline: float = math.inf
    arrived: float = 0.0
    order: int = field(default=0, repr=False)  # set by the batcher; ties are broken by arrival


R = TypeVar("R", bound=Row)


class Lane(Generic[R]):
    """Rows of one key and priority, shortest first.

    Of equal lengths the newest come first: a window that cuts through them on its left then holds the oldest.
    """

    def __init__(self) -> None:
        self.rows: list[R] = []
        self.lengths: list[int] = []  # of the rows, apart from them so that searching and summing run at C's speed
        self.tokens = 0

    def add(self, row: R) -> None:
        at = self.index(row)
        self.rows.insert(at, row)
        self.lengths.insert(at, row.length)
        self.tokens += row.length

    def remove(self, row: R) -> None:
        at = self.index(row)
        del self.rows[at], self.lengths[at]
        self.tokens -= row.length

    def index(self, row: R) -> int:
        """Where the row is, or would be."""
        first = bisect_left(self.lengths, row.length)
        last = bisect_right(self.lengths, row.length, first)
        return bisect_left(self.rows, -row.order, first, last, key=_newest_first)


class Line(Generic[R]):
    """The rows of one key, a lane for each priority."""

    def __init__(self) -> None:
        self.lanes: dict[int, Lane[R]] = {}
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def descending(self) -> list[Lane[R]]:
        """Its lanes, the highest priority first."""
        return [self.lanes[priority] for priority in sorted(self.lanes, reverse=True)]

    def add(self, row: R) -> None:
        self.lanes.setdefault(row.priority, Lane()).add(row)
        self._rows += 1

    def remove(self, row: R) -> None:
        lane = self.lanes[row.priority]
        lane.remove(row)
        self._rows -= 1
        if not lane.rows:
            del self.lanes[row.priority]


class Ranking(Generic[R]):
    """Which waiting row ranks lowest, ties by arrival. What left or rose in rank since is noticed when its entry comes up.

    A row whose rank has fallen must be pushed again.
    """

    def __init__(self, rank: Callable[[R], float]) -> None:
        self._rank = rank
        self._entries: list[tuple[float, int, R]] = []

    def push(self, row: R) -> None:
        heappush(self._entries, (self._rank(row), row.order, row))

    def first(self, waiting: Collection[R]) -> R | None:
        while self._entries:
            rank, _, row = self._entries[0]
            if row not in waiting:
                heappop(self._entries)
            elif (now := self._rank(row)) > rank:
                heapreplace(self._entries, (now, row.order, row))
            else:
                return row
        return None

    def tidy(self, waiting: Collection[R]) -> None:
        """Forgets the entries of rows that have left, when they have become the most."""
        if len(self._entries) > 2 * len(waiting) + 64:
            self._entries = [(self._rank(row), row.order, row) for row in waiting if self._rank(row) < math.inf]
            heapify(self._entries)


def _newest_first(row: Row) -> int:
    return -row.order
