"""How the calls of a version ended, by the variant that led to it: a channel, an arm of a split, or "" for NAME@VERSION."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType

from services.chassis.faults import DeadlineMissed, InvalidField, Overloaded, Unavailable
from services.chassis.histogram import Histogram

# Each about half as much again as the one before, so that a quantile is known to a quarter.
LATENCIES_S = (
    *(0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 10.0),
)


class Ending(StrEnum):
    """How a call ended, for those who count; the caller is told more."""

    ANSWERED = "answered"
    OVERLOADED = "overloaded"
    LATE = "late"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"
    INVALID = "invalid"
    FAILED = "failed"  # our own doing


_ENDINGS: dict[type[BaseException], Ending] = {
    Overloaded: Ending.OVERLOADED,
    DeadlineMissed: Ending.LATE,
    TimeoutError: Ending.LATE,
    asyncio.CancelledError: Ending.CANCELLED,
    Unavailable: Ending.UNAVAILABLE,
    InvalidField: Ending.INVALID,
}


def ending(error: BaseException) -> Ending:
    """What a call that raised came to; the nearest class along the error's MRO decides."""
    return next((_ENDINGS[cls] for cls in type(error).__mro__ if cls in _ENDINGS), Ending.FAILED)


@dataclass(slots=True)
class VariantCounts:
    """Calls of one variant. `seconds`, `rows` and `cached_rows` are of those that were answered."""

    calls: dict[Ending, int] = field(default_factory=lambda: dict.fromkeys(Ending, 0))
    rows: int = 0
    cached_rows: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(LATENCIES_S))


class Variants:
    """The variants of one version. Their names come from the repository: a caller cannot make one up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: dict[str, VariantCounts] = {}
        self.running = 0
        self._clock = clock

    def answered(self, variant: str, seconds: float, rows: int, cached_rows: int) -> None:
        counts = self._of(variant)
        counts.calls[Ending.ANSWERED] += 1
        counts.rows += rows
        counts.cached_rows += cached_rows
        counts.seconds.observe(seconds)

    def running_call(self, variant: str, deadline: float) -> "RunningCall":
        """Counts how a `with` block that raises ended; `deadline` tells a caller whose time was up from one that went before."""
        return RunningCall(self, variant, deadline)

    def began(self) -> None:
        self.running += 1

    def ended(self, variant: str, deadline: float, error: BaseException | None) -> None:
        """A running call has ended: with an error, or with what `answered` counts."""
        self.running -= 1
        if error is None:
            return
        found = ending(error)
        if found is Ending.CANCELLED and self._clock() >= deadline:
            found = Ending.LATE
        self._of(variant).calls[found] += 1

    def _of(self, variant: str) -> VariantCounts:
        counts = self.counts.get(variant)
        if counts is None:
            counts = self.counts[variant] = VariantCounts()
        return counts


class RunningCall:
    """See `Variants.running_call`. A class: contextlib's generators cost several times as much, at every call."""

    __slots__ = ("_deadline", "_variant", "_variants")

    def __init__(self, variants: Variants, variant: str, deadline: float) -> None:
        self._variants = variants
        self._variant = variant
        self._deadline = deadline

    def __enter__(self) -> None:
        self._variants.began()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._variants.ended(self._variant, self._deadline, error)
