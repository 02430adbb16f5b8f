"""Latency of several models measured in turns, so that what disturbs the machine disturbs them alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.optimization.report import Interval, WorkloadResult

Run = Callable[[], object]
Clock = Callable[[], float]

MIN_ROUNDS = 5
MAX_ROUNDS = 200
RESAMPLES = 2000
# One warm-up is enough for a run this long, and a second one costs more than it steadies.
_LONG_RUN_SECONDS = 0.5
# Below this a run still feels its predecessor: cold caches, worker threads of another engine that have not gone to sleep.
_LEAD_IN_BELOW_SECONDS = 0.05
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Workload:
    """One batch's shape; `tokens` is 0 where rows are no texts."""

    batch_rows: int
    tokens: int


TEXT_WORKLOADS = tuple(Workload(rows, tokens) for rows, tokens in ((1, 16), (8, 16), (32, 16), (1, 128), (8, 128)))
ARRAY_WORKLOADS = tuple(Workload(rows, 0) for rows in (1, 8, 32))


class _Subject:
    """One model's turns on one workload."""

    def __init__(self, run: Run, clock: Clock) -> None:
        self.run, self.clock = run, clock
        self.seconds: list[float] = []
        self.spent_seconds = 0.0
        first_seconds = self._timed()
        self.expected_seconds = first_seconds if first_seconds > _LONG_RUN_SECONDS else self._timed()

    def _timed(self) -> float:
        start = self.clock()
        self.run()
        return self.clock() - start

    def turn(self) -> None:
        start = self.clock()
        if self.expected_seconds < _LEAD_IN_BELOW_SECONDS:
            self.run()
        self.seconds.append(self._timed())
        self.spent_seconds += self.clock() - start

    def due(self, share_seconds: float) -> bool:
        rounds = len(self.seconds)
        return rounds < MIN_ROUNDS or (self.spent_seconds < share_seconds and rounds < MAX_ROUNDS)


def take_turns(runs: Sequence[Run], budget_seconds: float, clock: Clock = time.perf_counter) -> list[list[float]]:
    """Seconds of each run in each round; the first is the original, which takes part in every round.

    The budget is shared equally: a model that has spent its share sits out, after MIN_ROUNDS, so one slow candidate
    costs neither the time nor the precision of the others. The order rotates from round to round.
    """
    subjects = [_Subject(run, clock) for run in runs]
    share_seconds = budget_seconds / len(subjects)
    for round_number in range(MAX_ROUNDS):
        due = [subject for subject in subjects if subject.due(share_seconds)]
        if not due or (not subjects[0].due(share_seconds) and all(len(subject.seconds) >= MIN_ROUNDS for subject in due)):
            break
        playing = due if subjects[0] in due else [subjects[0], *due]
        first = round_number % len(playing)
        for subject in playing[first:] + playing[:first]:
            subject.turn()
    return [subject.seconds for subject in subjects]


def summarize(workload: Workload, seconds: Sequence[float]) -> WorkloadResult:
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99)))
    return WorkloadResult(
        batch_rows=workload.batch_rows,
        tokens=workload.tokens,
        p50_ms=p50 * 1e3,
        p90_ms=p90 * 1e3,
        p99_ms=p99 * 1e3,
        rows_per_second=workload.batch_rows / p50,
        samples=len(seconds),
    )


def _log_ratios(original: Sequence[float], candidate: Sequence[float]) -> NDArray[np.float64]:
    """Paired by round: both took part in each of the rounds that the shorter one has."""
    rounds = min(len(original), len(candidate))
    ratios: NDArray[np.float64] = np.log(np.array(original[:rounds]) / np.array(candidate[:rounds]))
    return ratios


def speedup(original: Sequence[Sequence[float]], candidate: Sequence[Sequence[float]], seed: int) -> Interval:
    """Geometric mean over workloads of the median paired ratio of times, original over candidate, with its bootstrap interval.

    Arguments hold the seconds of each round for each workload. Rounds are resampled within each workload.
    """
    random = np.random.default_rng(seed)
    logs = [_log_ratios(before, after) for before, after in zip(original, candidate, strict=True)]
    drawn = [np.median(values[random.integers(0, len(values), (RESAMPLES, len(values)))], axis=1) for values in logs]
    low, high = np.exp(np.percentile(np.mean(drawn, axis=0), _TAILS))
    return Interval(estimate=float(np.exp(np.mean([np.median(values) for values in logs]))), low=float(low), high=float(high))
