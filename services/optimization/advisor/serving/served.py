"""What serving measured, as a report holds it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from pydantic import Field

from services.optimization.advisor.serving.capacity import AtTarget
from services.optimization.advisor.serving.played import Played
from services.optimization.advisor.serving.settings import Change
from services.optimization.evaluation import latency
from services.optimization.report import Interval
from services.repository.manifest import Frozen

_RESAMPLES = 2000
_TAILS = (2.5, 97.5)
_MOST_RATIO = 1e6  # told of what was not answered at all before


class ServedFigures(Frozen):
    """One version under one traffic. A latency that so many requests did not even reach, because they failed, is absent."""

    rows_per_second: Interval
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    requests: int = Field(ge=0, description="answered")
    unanswered: int = Field(ge=0, description="refused or failed")
    cpu_ms_per_row: float = Field(ge=0, description="processor time of the service's processes")
    asking_cpu_ms_per_row: float = Field(ge=0, description="processor time of whoever asked, on the same cores")

    @classmethod
    def of(cls, played: Played, seed: int) -> Self:
        return cls(
            rows_per_second=_median([turn.rows_per_second for turn in played.turns], seed),
            p50_ms=_ms(played.latency_s(0.5)),
            p90_ms=_ms(played.latency_s(0.9)),
            p99_ms=_ms(played.latency_s(0.99)),
            requests=played.requests,
            unanswered=played.unanswered,
            cpu_ms_per_row=1e3 * played.cpu_s_per_row,
            asking_cpu_ms_per_row=1e3 * played.asking_cpu_s_per_row,
        )


class ServedCapacity(Frozen):
    """Most rows per second within a latency target, and the callers at once that it was reached with."""

    max_p99_ms: float
    callers: int
    figures: ServedFigures

    @classmethod
    def of(cls, found: AtTarget, max_p99_ms: float, seed: int) -> Self:
        return cls(max_p99_ms=max_p99_ms, callers=found.callers, figures=ServedFigures.of(found.played, seed))


class TriedSettings(Frozen):
    """`gain` is the ratio to the settings kept until then, of what was to be improved; `noise` the ratio below which it says nothing."""

    knob: str
    settings: Mapping[str, Any]
    gain: float
    noise: float

    @classmethod
    def of(cls, change: Change) -> Self:
        gain, noise = (min(each, _MOST_RATIO) for each in (change.difference.gain, change.difference.noise))
        return cls(knob=change.knob, settings=change.settings, gain=gain, noise=noise)


class ServingAdvice(Frozen):
    """`settings` is what a version's recipe holds under `serving`; empty where nothing is better than the defaults."""

    settings: Mapping[str, Any]
    kept: tuple[TriedSettings, ...]
    not_kept: tuple[TriedSettings, ...]
    left: tuple[str, ...] = Field((), description="what the time did not allow to be tried")
    failed: Mapping[str, str] = Field({}, description="what could not be tried, and why")


class ServedAdvice(Frozen):
    """Original and candidate through the service, measured together in turns. Ratios are of rows per second."""

    advice: ServingAdvice
    original: ServedFigures  # as the service serves it by itself
    candidate_default: ServedFigures
    candidate: ServedFigures  # with the advice
    speedup: Interval  # candidate, with the advice, over original
    settings_gain: Interval  # candidate with the advice over without
    original_at_rate: ServedFigures | None = None  # under the traffic's own rate, where it has one
    candidate_at_rate: ServedFigures | None = None
    original_capacity: ServedCapacity | None = None  # None: not asked for, or a single caller waits for longer
    candidate_capacity: ServedCapacity | None = None
    cores: int = Field(ge=1, description="that the service had, and whoever asked it")
    seconds: float


def ratio(before: Played, after: Played, seed: int) -> Interval:
    """Of rows per second, after over before, paired by turn."""
    before_s, after_s = ([1 / turn.rows_per_second for turn in played.turns] for played in (before, after))
    return latency.speedup([before_s], [after_s], seed)


def _median(values: Sequence[float], seed: int) -> Interval:
    """With its bootstrap interval over turns."""
    known = np.array(values)
    drawn = np.median(known[np.random.default_rng(seed).integers(0, len(known), (_RESAMPLES, len(known)))], axis=1)
    low, high = np.percentile(drawn, _TAILS)
    return Interval(estimate=float(np.median(known)), low=float(low), high=float(high))


def _ms(seconds: float) -> float | None:
    return 1e3 * seconds if math.isfinite(seconds) else None
