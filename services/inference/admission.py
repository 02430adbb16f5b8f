"""Whether a call can be answered before its deadline, predicted when it arrives: a refusal at once costs less than a late answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.inference.batching import Forecast, Policy


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


def finish_s(free_s: Sequence[float], ahead: Work, own: Work, policy: Policy, forecast: Forecast) -> float:
    """Seconds until a call's rows have run, after those ahead of them.

    `free_s`: for each instance, seconds until what it was handed has run. The waiting rows are shared among the instances so
    that all end together, but a call's own batch begins no earlier than the first instance is free. Rows do not run in order of
    arrival, but in a queue that neither grows nor shrinks this is what they wait on average (Little's law).
    """
    busy_s = sorted(max(0.0, seconds) for seconds in free_s)
    least_s = busy_s[0] + run_s(Work(1, max(1, own.tokens // max(1, own.rows))), policy, forecast)
    return max(least_s, _shared_s(busy_s, run_s(ahead + own, policy, forecast)))


def _shared_s(busy_s: Sequence[float], work_s: float) -> float:
    """When instances that become free at `busy_s`, ascending, have done work that any number of them share."""
    for sharers in range(1, len(busy_s)):
        next_s = busy_s[sharers]
        done_s = sum(next_s - free_s for free_s in busy_s[:sharers])
        if done_s >= work_s:
            return next_s - (done_s - work_s) / sharers
    return (sum(busy_s) + work_s) / len(busy_s)


def misses(finish: float, left_s: float, forecast: Forecast) -> bool:
    """Whether work predicted to end in `finish` seconds is sure to end after `left_s`, given how far off predictions were."""
    return finish * forecast.sure_share > left_s
