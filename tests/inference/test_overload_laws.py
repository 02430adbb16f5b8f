"""Admission and batching together, simulated: what is answered in time when far more is asked than can be."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

import pytest

from services.inference.admission import Lateness, Prospect, Work, misses, prospect
from services.inference.batching import Batch, Batcher, Policy, QueueFull
from services.inference.lanes import Row

DEADLINE_S = 1.0
INSTANCES = 2


class Forecast:
    """A fixed share for each batch, and one for each row and token."""

    sure_share = 0.8

    def predict(self, rows: int, longest: int) -> float:
        return 0.001 + rows * (0.0008 + longest * 0.00022)


@dataclass(eq=False)
class Call:
    arrived: float
    expected: Prospect
    rows: list[Row] = field(default_factory=list)
    left: int = 0
    failed: bool = False


@dataclass
class Server:
    """Two instances, one queue, a clock that jumps from event to event; batches take up to 15 % more or less than predicted."""

    rows_per_call: int
    seed: int = 0
    now: float = 0.0
    answered: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._policy, self._forecast, self._lateness = Policy(), Forecast(), Lateness()
        self._batcher: Batcher[Row] = Batcher(self._policy, self._forecast)
        self._running: dict[int, tuple[Batch[Row], float]] = {}
        self._owner: dict[Row, Call] = {}
        self._events: list[tuple[float, int, int]] = []  # time, order, instance or -1 for a call
        self._order = count()

    @property
    def capacity(self) -> float:
        """Calls per second of both instances with batches of eight rows of a mean length."""
        return INSTANCES * 8 / self._forecast.predict(8, 24) / self.rows_per_call

    def run(self, times: float, seconds: float) -> None:
        for moment in self._arrivals(times * self.capacity, seconds):
            heappush(self._events, (moment, next(self._order), -1))
        while self._events and self._events[0][0] < seconds:
            self.now, _, instance = heappop(self._events)
            if instance < 0:
                self._call()
            else:
                self._end(instance)
            self._start()

    def _arrivals(self, rate: float, seconds: float) -> Iterator[float]:
        moment = 0.0
        while (moment := moment + self._draw.expovariate(rate)) < seconds:
            yield moment

    def _call(self) -> None:
        rows = [
            Row("key", max(4, min(64, int(self._draw.lognormvariate(3, 0.5)))), 0, self.now + DEADLINE_S) for _ in range(self.rows_per_call)
        ]
        own = Work(len(rows), sum(row.length for row in rows))
        free_s = [self._running[i][1] - self.now if i in self._running else 0.0 for i in range(INSTANCES)]
        expected = prospect(free_s, Work(*self._batcher.ahead_of(0)), own, self._policy, self._forecast)
        try:
            self._batcher.admit(own.rows, own.tokens)
        except QueueFull:
            self.refused += 1
            return
        if misses(expected, DEADLINE_S, self._forecast, self._lateness.factor(expected)):
            self.refused += 1
            return
        call = Call(self.now, expected, rows, len(rows))
        for row in rows:
            self._owner[row] = call
            self._batcher.enter(row, self.now)

    def _start(self) -> None:
        for row in self._batcher.expire(self.now):
            self._fail(row)
        idle = [instance for instance in range(INSTANCES) if instance not in self._running]
        for place, instance in enumerate(idle):
            decision = self._batcher.poll(self.now, sharers=len(idle) - place)
            for row in decision.expired:
                self._fail(row)
            if decision.batch is not None:
                predicted = self._forecast.predict(len(decision.batch.rows), decision.batch.longest)
                self._running[instance] = decision.batch, self.now + predicted
                heappush(self._events, (self.now + predicted * self._draw.uniform(0.85, 1.15), next(self._order), instance))

    def _end(self, instance: int) -> None:
        batch, _ = self._running.pop(instance)
        for row in batch.rows:
            call = self._owner[row]
            if call.failed:
                continue
            if row.deadline < self.now:
                self._fail(row)
                continue
            call.left -= 1
            if not call.left:
                self.answered += 1
                self._lateness.ended(call.expected, self.now - call.arrived)

    def _fail(self, row: Row) -> None:
        call = self._owner[row]
        if not call.failed:
            call.failed = True
            self._lateness.missed(call.expected, DEADLINE_S)
            for other in call.rows:
                self._batcher.discard(other)


@pytest.mark.parametrize("times", [1.2, 2, 4])
@pytest.mark.parametrize("rows", [1, 8])
def test_an_overloaded_server_answers_as_many_as_it_can(rows: int, times: float) -> None:
    """Without the lateness of others as a guide, calls of eight rows came to a twentieth of that: all were let in, and all were late."""
    seconds = 20.0 if rows > 1 else 5.0
    server = Server(rows)
    server.run(times, seconds)
    assert server.answered >= 0.9 * server.capacity * seconds


def test_a_server_with_room_refuses_next_to_nobody() -> None:
    server = Server(rows_per_call=8)
    server.run(0.8, 20.0)
    assert server.answered >= 0.95 * 0.8 * server.capacity * 20
    assert server.refused <= 0.02 * server.answered
