"""Who is let into a version's queue: bounded in rows and tokens, and only calls that can be answered in time."""

import math
from collections.abc import Callable, Sequence

from services.chassis.faults import DeadlineMissed, Overloaded
from services.inference.admission import Lateness, Prospect, Work, misses, prospect, run_s
from services.inference.batching import Batcher, Forecast, QueueFull
from services.inference.statistics import Statistics
from services.inference.tickets import QueuedRow, Ticket

LEAST_BACKLOG_S = 0.001


class Gate:
    """Lets calls in, and learns from what became of them. `free_at` tells when each live instance will have run what it has."""

    def __init__(
        self, batcher: Batcher[QueuedRow], forecast: Forecast, statistics: Statistics, free_at: Callable[[], Sequence[float]]
    ) -> None:
        self._batcher = batcher
        self._forecast = forecast
        self._statistics = statistics
        self._free_at = free_at
        self._lateness = Lateness()

    def let_in(self, own: Work, priority: int, deadline: float, now: float) -> Prospect | None:
        """What a call with that much work of its own has to expect; None where it has no deadline.

        Raises:
            Overloaded: the queue is full.
            DeadlineMissed: it would be answered too late.
        """
        try:
            self._batcher.admit(own.rows, own.tokens)
            return self._expect(own, priority, deadline - now, now) if deadline < math.inf else None
        except QueueFull as error:
            self._statistics.refused_requests += 1
            raise Overloaded(f"the queue is full: {error}", self._backlog_s()) from None
        except DeadlineMissed:
            self._statistics.refused_requests += 1
            raise

    def judge(self, ticket: Ticket, now: float) -> None:
        """Holds what became of a call against what it had to expect."""
        if ticket.expected is None:
            return
        if ticket.complete:
            self._lateness.ended(ticket.expected, now - ticket.asked)
        elif ticket.late or now >= ticket.deadline:  # its caller may have given up first
            self._lateness.missed(ticket.expected, ticket.deadline - ticket.asked)

    def _expect(self, own: Work, priority: int, left_s: float, now: float) -> Prospect:
        free_s = [moment - now for moment in self._free_at()]
        ahead = Work(*self._batcher.ahead_of(priority))
        expected = prospect(free_s, ahead, own, self._batcher.policy, self._forecast)
        if misses(expected, left_s, self._forecast, self._lateness.factor(expected)):
            raise DeadlineMissed(f"would finish in about {expected.finish_s * 1e3:.0f} ms, the deadline is in {left_s * 1e3:.0f} ms")
        return expected

    def _backlog_s(self) -> float:
        """When the rows waiting now will about have run."""
        seconds = run_s(Work(len(self._batcher), self._batcher.tokens), self._batcher.policy, self._forecast)
        return max(LEAST_BACKLOG_S, seconds / max(1, len(self._free_at())))
