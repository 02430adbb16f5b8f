"""Which rows run together, as a pure decision: no clock, no loop, no tensor.

Rows wait sorted by length. When the engine has room, `poll` picks the window of neighbouring lengths that finishes
the most tokens per predicted second; a row past the age cap, or of a higher priority than others, must be in the
batch. First-come order is the same code with every window but the oldest rows' taken away.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heappush
from itertools import accumulate, count
from typing import Generic, TypeVar

MAX_PRIORITY = 9

# An allowance for what handing a batch over and answering its callers take beside the backend's run, which is all that the
# service time sees: of windows that are about as good the larger one is taken.
AROUND_S = 0.001


class QueueFull(Exception):
    """The queue's bound in rows or tokens would be passed."""


class Reason(StrEnum):
    """Why a batch was closed."""

    FULL = "full"  # no further row fits in rows or tokens
    OVERDUE = "overdue"  # a row had reached the age cap
    READY = "ready"  # the engine had room
    SPLIT = "split"  # more fitted, but running them apart wastes less padding


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds of a batch and of the queue. Tokens are padded tokens: rows times the longest."""

    max_rows: int = 32
    max_tokens: int = 4096
    max_age_s: float = 0.25
    queue_rows: int = 1024
    queue_tokens: int = 1 << 17
    length_aware: bool = True

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_tokens", "max_age_s", "queue_rows", "queue_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")

    def fitting_rows(self, longest: int) -> int:
        """Rows of this padded length that fit in a batch; at least one, since a row over the budget must run alone."""
        return max(1, min(self.max_rows, self.max_tokens // longest))


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


@dataclass(frozen=True, slots=True)
class Batch(Generic[R]):
    """Rows to run now, shortest first."""

    rows: tuple[R, ...]
    reason: Reason

    @property
    def longest(self) -> int:
        return self.rows[-1].length


@dataclass(frozen=True, slots=True)
class Decision(Generic[R]):
    """What to do now. `expired` rows passed their deadline waiting and are out of the queue."""

    batch: Batch[R] | None
    expired: tuple[R, ...] = ()


class Batcher(Generic[R]):
    """Holds what waits. `seconds(rows, longest)` predicts a batch's duration."""

    def __init__(self, policy: Policy, seconds: Callable[[int, int], float]) -> None:
        self.policy = policy
        self._seconds = seconds
        self._lines: dict[Hashable, _Line[R]] = {}
        self._where: dict[R, _Line[R]] = {}
        self._deadlines: list[tuple[float, int, R]] = []
        self._orders = count(1)
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._where)

    @property
    def tokens(self) -> int:
        """Real tokens waiting."""
        return self._tokens

    def add(self, row: R, now: float) -> None:
        """Queues a row. Raises QueueFull; the queue is then as before."""
        self.admit(1, row.length)
        self.enter(row, now)

    def enter(self, row: R, now: float) -> None:
        """Queues a row that `admit` has let in already, with the others of its request."""
        row.arrived, row.order = now, next(self._orders)
        line = self._lines.setdefault(row.key, _Line())
        line.add(row)
        self._where[row] = line
        self._tokens += row.length
        if row.deadline < math.inf:
            heappush(self._deadlines, (row.deadline, row.order, row))

    def admit(self, rows: int, tokens: int) -> None:
        """Raises QueueFull where that many more would not fit, so that a request is taken whole or not at all."""
        policy = self.policy
        if len(self._where) + rows > policy.queue_rows:
            raise QueueFull(f"{len(self._where)} rows wait, the limit is {policy.queue_rows}")
        if self._tokens + tokens > policy.queue_tokens and self._where:
            raise QueueFull(f"{self._tokens} tokens wait, the limit is {policy.queue_tokens}")

    def discard(self, row: R) -> bool:
        """Takes a row out; False when it is not waiting (any more)."""
        line = self._where.pop(row, None)
        if line is None:
            return False
        line.remove(row)
        self._tokens -= row.length
        if not line.rows:
            del self._lines[row.key]
        if len(self._deadlines) > 2 * len(self._where) + 64:  # rows that ran long before their deadline
            self._deadlines = [(waiting.deadline, waiting.order, waiting) for waiting in self._where if waiting.deadline < math.inf]
            heapify(self._deadlines)
        return True

    def promote(self, row: R, priority: int) -> None:
        """Makes a waiting row as urgent as `priority`, if it is less so; its place in time stays."""
        line = self._where.get(row)
        if line is not None and priority > row.priority:
            line.remove(row)
            row.priority = priority
            line.add(row)

    def poll(self, now: float, *, only_full: bool = False, sharers: int = 1) -> Decision[R]:
        """Decides what runs next.

        `only_full`: the engine is still busy and would prepare a batch ahead, which is worth it only where waiting
        cannot make the batch better. `sharers`: how many instances are idle; each is left its share of what waits.
        """
        expired = tuple(self._expire(now))
        line, lead, forced = self._most_urgent(now)
        if line is None or lead is None:
            return Decision(None, expired)
        share = math.ceil(len(line.rows) / sharers)
        start, stop, reason = self._window(line, lead, forced, now, share)
        if only_full and reason in (Reason.READY, Reason.SPLIT):
            return Decision(None, expired)
        rows = tuple(line.rows[start:stop])
        for row in rows:
            self.discard(row)
        return Decision(Batch(rows, reason), expired)

    def _expire(self, now: float) -> Iterator[R]:
        while self._deadlines and self._deadlines[0][0] <= now:
            row = heappop(self._deadlines)[2]
            if row in self._where:
                if row.deadline > now:  # a later caller joined it and waits longer
                    heappush(self._deadlines, (row.deadline, row.order, row))
                    continue
                self.discard(row)
                yield row

    def _most_urgent(self, now: float) -> tuple["_Line[R] | None", R | None, bool]:
        """The line to serve, the row that leads it, and whether that row must be in the batch."""
        oldest = [line.oldest for line in self._lines.values()]
        if not oldest:
            return None, None, False
        first = min(oldest, key=lambda row: row.order)
        if now - first.arrived >= self.policy.max_age_s:
            return self._lines[first.key], first, True
        urgent = min((line.most_urgent for line in self._lines.values()), key=_urgency)
        line = self._lines[urgent.key]
        return line, urgent, line.has_several_priorities

    def _window(self, line: "_Line[R]", lead: R, forced: bool, now: float, share: int) -> tuple[int, int, Reason]:
        if not self.policy.length_aware:
            return self._first_come(line, lead, share)
        rows, policy = line.rows, self.policy
        must = line.index(lead) if forced else None
        weights = [0.0, *accumulate(float(row.length) for row in rows)]
        best, best_score = (0, 1), -1.0
        for stop in self._ends(line, must, share):
            longest = rows[stop - 1].length
            most = min(stop, share, policy.fitting_rows(longest))
            for size in _sizes(most, stop - must if must is not None else 1):
                score = (weights[stop] - weights[stop - size]) / (AROUND_S + self._seconds(size, longest))
                if score > best_score:
                    best, best_score = (stop - size, stop), score
        start, stop = best
        overdue = now - lead.arrived >= policy.max_age_s
        return start, stop, self._reason(len(rows), start, stop, rows[stop - 1].length, overdue=overdue)

    def _ends(self, line: "_Line[R]", must: int | None, share: int) -> Iterator[int]:
        """Where a window may end: after the last row of each length, from the forced row on while it still fits."""
        rows = line.rows
        stop = len(rows)
        while stop > 0 and (must is None or stop > must):
            longest = rows[stop - 1].length
            most = min(share, self.policy.fitting_rows(longest))
            if must is None or stop - must <= most:
                yield stop
            elif rows[must].length == longest:  # more rows of one length than fit: end where the forced row is the first
                yield must + most
                return
            stop = bisect_left(rows, longest, 0, stop, key=lambda row: row.length)

    def _reason(self, waiting: int, start: int, stop: int, longest: int, *, overdue: bool) -> Reason:
        if overdue:
            return Reason.OVERDUE
        if stop - start >= self.policy.fitting_rows(longest):
            return Reason.FULL
        return Reason.READY if stop - start == waiting else Reason.SPLIT

    def _first_come(self, line: "_Line[R]", lead: R, share: int) -> tuple[int, int, Reason]:
        """The oldest rows, as many as fit; they are moved to the front of the line so that they are one window."""
        chosen: list[R] = []
        longest = 0
        for row in sorted(line.rows, key=lambda row: (row is not lead, *_urgency(row))):
            longest = max(longest, row.length)
            if chosen and len(chosen) >= min(share, self.policy.fitting_rows(longest)):
                break
            chosen.append(row)
        waiting = len(line.rows)
        line.front(chosen)
        full = len(chosen) < waiting or len(chosen) >= self.policy.max_rows
        return 0, len(chosen), Reason.FULL if full else Reason.READY


class _Line(Generic[R]):
    """The rows of one key, shortest first."""

    def __init__(self) -> None:
        self.rows: list[R] = []
        self._priorities: dict[int, int] = {}

    @property
    def oldest(self) -> R:
        return min(self.rows, key=lambda row: row.order)

    @property
    def most_urgent(self) -> R:
        return min(self.rows, key=_urgency)

    @property
    def has_several_priorities(self) -> bool:
        return len(self._priorities) > 1

    def add(self, row: R) -> None:
        insort(self.rows, row, key=_by_length)
        self._priorities[row.priority] = self._priorities.get(row.priority, 0) + 1

    def remove(self, row: R) -> None:
        del self.rows[self.index(row)]
        self._priorities[row.priority] -= 1
        if not self._priorities[row.priority]:
            del self._priorities[row.priority]

    def index(self, row: R) -> int:
        at = bisect_right(self.rows, _by_length(row), key=_by_length) - 1
        return at if at >= 0 and self.rows[at] is row else self.rows.index(row)

    def front(self, chosen: list[R]) -> None:
        taken = set(chosen)
        self.rows = sorted(chosen, key=_by_length) + [row for row in self.rows if row not in taken]


def _sizes(most: int, least: int) -> Iterator[int]:
    """Window sizes worth comparing: the largest, and halves of it down to the least."""
    size = most
    while size > least:
        yield size
        size = max(least, size // 2)
    if most >= least:
        yield least


def _by_length(row: Row) -> tuple[int, int]:
    """Of equal lengths the newest first: a window that cuts through them on its left then holds the oldest."""
    return row.length, -row.order


def _urgency(row: Row) -> tuple[int, int]:
    return -row.priority, row.order
