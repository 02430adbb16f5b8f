"""Which of the rows of one key run together: the window of neighbouring lengths that finishes the most tokens per second."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic

from services.inference.lanes import Lane, Line, R

# An allowance for what handing a batch over and answering its callers take beside the backend's run, which is all that the
# service time sees: of windows that are about as good the larger one is taken.
AROUND_S = 0.001


@dataclass(frozen=True, slots=True)
class Room:
    """How many rows of a padded length may run together, and how long that takes."""

    fitting_rows: Callable[[int], int]
    seconds: Callable[[int, int], float]


class Composition(Generic[R]):
    """A batch being put together, as many tokens per predicted second as its room allows."""

    def __init__(self, room: Room) -> None:
        self.rows: list[R] = []
        self.longest = 0
        self._tokens = 0
        self._room = room

    def take(self, rows: Iterable[R]) -> None:
        for row in rows:
            self.rows.append(row)
            self.longest = max(self.longest, row.length)
            self._tokens += row.length

    def lead(self, lane: Lane[R], must: R | None = None) -> None:
        """Takes the lane's best window, whatever lengths that brings; with `must` one that holds this row of the lane."""
        sums = list(accumulate(lane.lengths, initial=0))
        forced = lane.index(must) if must is not None else None
        best, score = range(0), self._score(0, 0, self.longest)
        for stop, longest, most in self._ends(lane, forced):
            if not self.rows and _rate(most * longest, self._room.seconds(most, longest)) <= score:
                continue  # not even full of its longest rows would it be better
            before = -math.inf
            for size in _sizes(most, stop - forced if forced is not None else 1):
                reached = self._score(size, sums[stop] - sums[stop - size], longest)
                if reached > score:
                    best, score = range(stop - size, stop), reached
                if reached < before:
                    break  # smaller ones only get worse from here
                before = reached
        self.take(lane.rows[best.start : best.stop])

    def fill(self, lane: Lane[R]) -> None:
        """Takes the lane's longest rows that lengthen nothing, where that finishes more tokens per second."""
        stop = bisect_right(lane.lengths, self.longest)
        most = min(stop, self._room.fitting_rows(self.longest) - len(self.rows))
        best, score = 0, self._score(0, 0, self.longest)
        for size in _sizes(most, 1):
            reached = self._score(size, sum(lane.lengths[stop - size : stop]), self.longest)
            if reached > score:
                best, score = size, reached
        self.take(lane.rows[stop - best : stop])

    def _score(self, more: int, tokens: int, longest: int) -> float:
        """Tokens per second with that many rows and tokens more."""
        rows = len(self.rows) + more
        return _rate(self._tokens + tokens, self._room.seconds(rows, longest)) if rows else -math.inf

    def _ends(self, lane: Lane[R], forced: int | None) -> Iterator[tuple[int, int, int]]:
        """Where a window may end, its padded length and its most rows: after the last row of each length, the longest first.

        A forced row is the oldest of its lane, thus the last of its length.
        """
        stop = len(lane.rows)
        while stop > (forced or 0):
            length = lane.lengths[stop - 1]
            longest = max(length, self.longest)
            most = min(stop, self._room.fitting_rows(longest) - len(self.rows))
            if most > 0 and (forced is None or stop - forced <= most):
                yield stop, longest, most
            stop = bisect_left(lane.lengths, length, 0, stop)


def compose(line: Line[R], must: R | None, room: Room) -> list[R]:
    """The rows to run now; `must`, the oldest of all, is among them.

    The highest priority's window is chosen as if nobody else waited but `must`; lower ones fill what it leaves. A row that
    must run in spite of its priority takes its own place alone: its neighbours in length would displace the more urgent.
    """
    found: Composition[R] = Composition(room)
    highest, *lower = line.descending()
    if must is None or line.lanes[must.priority] is highest:
        found.lead(highest, must)
        for lane in lower:
            found.fill(lane)
        return found.rows
    own = line.lanes[must.priority]
    found.take([must])
    own.remove(must)
    found.lead(highest)
    for lane in lower:
        found.fill(lane)
    own.add(must)
    return found.rows


def first_come(line: Line[R], must: R | None, room: Room) -> list[R]:
    """The oldest rows, the highest priority first, until one does not fit; `must` before all others."""
    found: list[R] = [] if must is None else [must]
    longest = must.length if must is not None else 0
    for lane in line.descending():
        for row in sorted(lane.rows, key=lambda row: row.order):
            longest = max(longest, row.length)
            if row is must:
                continue
            if found and len(found) >= room.fitting_rows(longest):
                return found
            found.append(row)
    return found


def _rate(tokens: float, seconds: float) -> float:
    return tokens / (AROUND_S + seconds)


def _sizes(most: int, least: int) -> Iterator[int]:
    """Window sizes worth comparing: the largest, and halves of it down to the least."""
    size = most
    while size > least:
        yield size
        size = max(least, size // 2)
    if most >= least:
        yield least
