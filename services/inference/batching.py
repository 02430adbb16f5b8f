"""Which rows run together, as a pure decision: no clock, no loop, no tensor.

Rows wait sorted by length. When the engine has room, `poll` picks the window of neighbouring lengths that finishes
the most tokens per predicted second, of the highest priority that waits; a row past the age cap must be in the batch.
First-come order and fixed buckets of lengths are other policies of the same queue, there to be compared with.
"""

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Generic, Protocol

from services.inference.lanes import Line, R, Ranking
from services.inference.windows import Room, compose, first_come

MAX_PRIORITY = 9


class Batching(StrEnum):
    """How rows are put together; all but the first are there to be compared with."""

    LENGTH_AWARE = "length-aware"
    FIRST_COME = "first-come"
    FIXED_BUCKETS = "fixed-buckets"
    OFF = "off"


class QueueFull(Exception):
    """The queue's bound in rows or tokens would be passed."""


class Reason(StrEnum):
    """Why a batch was closed."""

    FULL = "full"  # no further row fits in rows or tokens
    OVERDUE = "overdue"  # a row had reached the age cap
    READY = "ready"  # the engine had room
    SPLIT = "split"  # more fitted, but running them apart wastes less padding


class Forecast(Protocol):
    """What is known about the time that batches take."""

    @property
    def sure_share(self) -> float:
        """Of a predicted time, the share that a batch is sure to take; 0 while too little is known to refuse work by it."""

    def predict(self, rows: int, longest: int) -> float:
        """Seconds for a batch of `rows` padded to `longest` tokens; of more rows, no more for each."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds of a batch and of the queue. Tokens are padded tokens: rows times the longest.

    `length_aware` off is first-come order. With `buckets`, ascending upper bounds of lengths, rows of different buckets
    never share a batch; what is longer than the last shares one more bucket.
    """

    max_rows: int = 32
    max_tokens: int = 4096
    max_age_s: float = 0.25
    queue_rows: int = 1024
    queue_tokens: int = 1 << 17
    length_aware: bool = True
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_tokens", "max_age_s", "queue_rows", "queue_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if any(bound <= 0 for bound in self.buckets) or list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError("buckets must be positive and ascending")

    def fitting_rows(self, longest: int) -> int:
        """Rows of this padded length that fit in a batch; at least one, since a row over the budget must run alone."""
        return max(1, min(self.max_rows, self.max_tokens // longest))


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
    """What to do now. `expired` rows passed their deadline waiting, or would have before their answer; they are out of the queue."""

    batch: Batch[R] | None
    expired: tuple[R, ...] = ()


class Batcher(Generic[R]):
    """Holds what waits.

    Its promises, whatever the order of calls: a row that entered is returned once, by `discard`, in a batch or as expired.
    Rows of different keys never share a batch, and one passes its budget only if it is a single row. Of one key, equal lengths
    and equal priority run in order of arrival. While a row is past the age cap, the oldest is in every batch. Else a batch
    holds rows of the highest priority waiting, and lower ones take no place that those could have used. No row is returned in a
    batch that is sure to end after its deadline.
    """

    def __init__(self, policy: Policy, forecast: Forecast) -> None:
        self.policy = policy
        self._forecast = forecast
        self._lines: dict[tuple[Hashable, int], Line[R]] = {}
        # By arrival. A plain dict looks for its first item past all those that were deleted.
        self._waiting: OrderedDict[R, Line[R]] = OrderedDict()
        self._soonest: Ranking[R] = Ranking(lambda row: row.deadline)
        self._urgent: Ranking[R] = Ranking(lambda row: -row.priority)
        self._orders = count(1)
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def tokens(self) -> int:
        """Real tokens waiting."""
        return self._tokens

    @property
    def soonest_deadline(self) -> float:
        """Of the rows waiting, on the caller's clock; infinite where none has one."""
        row = self._soonest.first(self._waiting)
        return row.deadline if row is not None else math.inf

    def ahead_of(self, priority: int) -> tuple[int, int]:
        """Rows and real tokens waiting that are no less urgent than a newcomer of this priority."""
        lanes = [lane for line in self._lines.values() for known, lane in line.lanes.items() if known >= priority]
        return sum(len(lane.rows) for lane in lanes), sum(lane.tokens for lane in lanes)

    def add(self, row: R, now: float) -> None:
        """Queues a row. Raises QueueFull; the queue is then as before."""
        self.admit(1, row.length)
        self.enter(row, now)

    def enter(self, row: R, now: float) -> None:
        """Queues a row that `admit` has let in already, with the others of its request."""
        row.arrived, row.order = now, next(self._orders)
        line = self._lines.setdefault(self._line_of(row), Line())
        self._waiting[row] = line
        line.add(row)
        self._tokens += row.length
        self._urgent.push(row)
        if row.deadline < math.inf:
            self._soonest.push(row)

    def admit(self, rows: int, tokens: int) -> None:
        """Raises QueueFull where that many more would not fit, so that a request is taken whole or not at all."""
        policy = self.policy
        if len(self) + rows > policy.queue_rows:
            raise QueueFull(f"{len(self)} rows wait, the limit is {policy.queue_rows}")
        if self.tokens + tokens > policy.queue_tokens and self._waiting:
            raise QueueFull(f"{self.tokens} tokens wait, the limit is {policy.queue_tokens}")

    def discard(self, row: R) -> bool:
        """Takes a row out; False when it is not waiting (any more)."""
        line = self._waiting.pop(row, None)
        if line is None:
            return False
        line.remove(row)
        self._tokens -= row.length
        if not len(line):
            del self._lines[self._line_of(row)]
        self._soonest.tidy(self._waiting)
        self._urgent.tidy(self._waiting)
        return True

    def promote(self, row: R, priority: int) -> None:
        """Makes a waiting row as urgent as `priority`, if it is less so; its place in time stays."""
        line = self._waiting.get(row)
        if line is not None and priority > row.priority:
            line.remove(row)
            row.priority = priority
            line.add(row)
            self._urgent.push(row)

    def poll(self, now: float, *, begins: float | None = None, only_full: bool = False, sharers: int = 1) -> Decision[R]:
        """Decides what runs next.

        `begins`: when the batch is predicted to begin, if not now. `only_full`: the engine is still busy and would prepare a
        batch ahead, which is worth it only where waiting cannot make the batch better. `sharers`: how many instances are idle;
        each is left its share of what waits.
        """
        late = self.expire(now)
        while (batch := self._best(now, sharers)) is not None:
            if only_full and batch.reason in (Reason.READY, Reason.SPLIT):
                return Decision(None, tuple(late))
            missed = self._missed(batch, max(now, begins or now))
            for row in missed or batch.rows:
                self.discard(row)
            if not missed:
                break
            late += missed
        return Decision(batch, tuple(late))

    def expire(self, now: float) -> list[R]:
        """Takes the rows out whose deadline has passed."""
        expired: list[R] = []
        while (row := self._soonest.first(self._waiting)) is not None and row.deadline <= now:
            self.discard(row)
            expired.append(row)
        return expired

    def _missed(self, batch: Batch[R], begins: float) -> list[R]:
        """Rows that are sure to be late in this batch. Run all the same, they would make others late as well, and so on."""
        ends = begins + self._forecast.sure_share * self._forecast.predict(len(batch.rows), batch.longest)
        return [row for row in batch.rows if row.deadline < ends]

    def _best(self, now: float, sharers: int) -> Batch[R] | None:
        oldest, urgent = next(iter(self._waiting), None), self._urgent.first(self._waiting)
        if oldest is None or urgent is None:
            return None
        must = oldest if now - oldest.arrived >= self.policy.max_age_s else None
        line = self._waiting[must or urgent]
        share = math.ceil(len(line) / sharers)
        room = Room(lambda longest: min(share, self.policy.fitting_rows(longest)), self._forecast.predict)
        rows = (compose if self.policy.length_aware else first_come)(line, must, room)
        rows.sort(key=lambda row: row.length)
        return Batch(tuple(rows), self._reason(line, rows, overdue=must is not None))

    def _reason(self, line: Line[R], rows: list[R], *, overdue: bool) -> Reason:
        if overdue:
            return Reason.OVERDUE
        if len(rows) >= self.policy.fitting_rows(rows[-1].length):
            return Reason.FULL
        return Reason.READY if len(rows) == len(line) else Reason.SPLIT

    def _line_of(self, row: R) -> tuple[Hashable, int]:
        return row.key, bisect_left(self.policy.buckets, row.length)
