"""Whether a call can be answered before its deadline, predicted when it arrives: a refusal at once costs less than a late answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.inference.batching import Forecast, Policy

_QUANTILE = 0.95
_STEP = 0.2
_LEAST_LATENESS, _MOST_LATENESS = 0.5, 20.0


@dataclass(frozen=True, slots=True)
class Work:
    """Rows that wait or want to, and their real tokens."""

    rows: int
    tokens: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.rows + other.rows, self.tokens + other.tokens)


def run_s(work: Work, policy: Policy, forecast: Forecast) -> float:
    """Seconds that one instance takes for the work in full batches of its mean length, as neighbours in length nearly are."""
    if not work.rows:
        return 0.0
    length = max(1, round(work.tokens / work.rows))
    batch = min(work.rows, policy.fitting_rows(length))
    return forecast.predict(batch, length) * work.rows / batch


@dataclass(frozen=True, slots=True)
class Prospect:
    """When a call's rows will have run, in seconds from its arrival: if nothing waited, and on average behind what waits."""

    soonest_s: float
    finish_s: float

    @property
    def wait_s(self) -> float:
        """What the queue adds."""
        return self.finish_s - self.soonest_s


def prospect(free_s: Sequence[float], ahead: Work, own: Work, policy: Policy, forecast: Forecast) -> Prospect:
    """What a call has to expect after the rows ahead of it.

    `free_s`: for each instance, seconds until what it was handed has run. The waiting rows are shared among the instances so
    that all end together, but a call's own batch begins no earlier than the first instance is free. Rows do not run in order of
    arrival, but in a queue that neither grows nor shrinks this is what they wait on average (Little's law).
    """
    busy_s = sorted(max(0.0, seconds) for seconds in free_s)
    least_s = busy_s[0] + run_s(Work(1, max(1, own.tokens // max(1, own.rows))), policy, forecast)
    return Prospect(least_s, max(least_s, _shared_s(busy_s, run_s(ahead + own, policy, forecast))))


def _shared_s(busy_s: Sequence[float], work_s: float) -> float:
    """When instances that become free at `busy_s`, ascending, have done work that any number of them share."""
    for sharers in range(1, len(busy_s)):
        next_s = busy_s[sharers]
        done_s = sum(next_s - free_s for free_s in busy_s[:sharers])
        if done_s >= work_s:
            return next_s - (done_s - work_s) / sharers
    return (sum(busy_s) + work_s) / len(busy_s)


class Lateness:
    """How many times as long as predicted calls take: a high quantile, since a call ends with the last of its rows.

    It follows the quantile step by step (Robbins and Monro, 1951), from the calls that came through and those that did not;
    apart for each doubling of the time predicted, since who has little to wait for is overtaken the most.
    """

    def __init__(self) -> None:
        self._factors: dict[int, float] = {}

    def factor(self, expected: Prospect) -> float:
        """0 where nothing waits: whatever others met with, such a call comes in."""
        return self._factors.get(_band(expected), 0.0) if expected.wait_s > 0 else 0.0

    def ended(self, expected: Prospect, took_s: float) -> None:
        """A call's answers were complete after `took_s`."""
        factor = self._factors.get(_band(expected), _LEAST_LATENESS)
        self._step(expected, later=took_s > factor * expected.finish_s)

    def missed(self, expected: Prospect, left_s: float) -> None:
        """A call was not complete `left_s` after it came, its deadline. How late it would have been nobody knows."""
        if self._factors.get(_band(expected), _LEAST_LATENESS) * expected.finish_s <= left_s:  # else others have told already
            self._step(expected, later=True)

    def _step(self, expected: Prospect, *, later: bool) -> None:
        change = _STEP * _QUANTILE if later else -_STEP * (1 - _QUANTILE)
        band = _band(expected)
        self._factors[band] = min(_MOST_LATENESS, max(_LEAST_LATENESS, self._factors.get(band, _LEAST_LATENESS) * (1 + change)))


def _band(expected: Prospect) -> int:
    return math.frexp(expected.finish_s)[1]


def misses(expected: Prospect, left_s: float, forecast: Forecast, lateness: float = 0.0) -> bool:
    """Whether a call would end after `left_s`: for sure by how far off predictions of batches were, or by how late others are."""
    sure = forecast.sure_share
    return sure > 0 and max(sure, lateness) * expected.finish_s > left_s
