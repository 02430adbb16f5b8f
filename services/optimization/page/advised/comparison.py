"""Predicted beside live: what the replay measured of a version, and what it does for users."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.optimization.advisor.serving.served import ServedFigures
from services.optimization.page import wording
from services.optimization.page.advised.facts import Facts
from services.optimization.page.live import Live, LiveArm

CLOSE = 0.15  # by which the ratio of a live figure to its prediction may differ from 1


@dataclass(frozen=True)
class Compared:
    """One figure; None of what is not known. `unit` "%" is of a share."""

    arm: str
    name: str
    predicted: float | None
    live: float | None
    unit: str

    @property
    def ratio(self) -> float | None:
        return self.live / self.predicted if self.live is not None and self.predicted else None

    @property
    def is_close(self) -> bool | None:
        return None if self.ratio is None else abs(self.ratio - 1) <= CLOSE

    def told(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{wording.plain(round(100 * value, 2))} %" if self.unit == "%" else f"{wording.number(value)}{self.unit}"


def compared(facts: Facts, live: Live) -> tuple[Compared, ...]:
    """The speed-ups first: both arms have one load, whatever it is, where a latency by itself moves with the load."""
    original, chosen = _of_version(facts.story.source, live), _of_version(facts.story.published, live)
    before, after = _predicted(facts, of_chosen=False), _predicted(facts, of_chosen=True)
    rows = [*_speedups(before, after, original, chosen)] if original and chosen else []
    for arm in live.arms:
        predicted = after if arm is chosen else before if arm is original else None
        rows += _of_arm(arm, predicted)
    return tuple(rows)


def _of_version(reference: str, live: Live) -> LiveArm | None:
    """Versions are of one model: calls are split among those alone."""
    version = reference.rpartition("@")[2]
    return next((arm for arm in live.arms if version and str(arm.version) == version), None)


def _predicted(facts: Facts, *, of_chosen: bool) -> ServedFigures | None:
    """Under the traffic's own rate where it has one: that is nearest to what users do."""
    served = facts.advice.served
    if served is None:
        return None
    if of_chosen:
        return served.candidate_at_rate or served.candidate
    return served.original_at_rate or served.original


def _speedups(before: ServedFigures | None, after: ServedFigures | None, original: LiveArm, chosen: LiveArm) -> Iterator[Compared]:
    for quantile in ("p50", "p99"):
        name = f"{quantile}_ms"
        predicted = _quotient(getattr(before, name), getattr(after, name)) if before and after else None
        live = _quotient(getattr(original, name), getattr(chosen, name))
        yield Compared(chosen.arm, f"{quantile}, times as fast as {original.arm}", predicted, live, "×")


def _quotient(over: float | None, under: float | None) -> float | None:
    return over / under if over and under else None


def _of_arm(arm: LiveArm, predicted: ServedFigures | None) -> Iterator[Compared]:
    rows = predicted.rows_per_second.estimate if predicted else None
    asked = predicted.requests + predicted.unanswered if predicted else 0
    yield Compared(arm.arm, "p50", predicted.p50_ms if predicted else None, arm.p50_ms or None, " ms")
    yield Compared(arm.arm, "p99", predicted.p99_ms if predicted else None, arm.p99_ms or None, " ms")
    if arm.rows_per_second:
        yield Compared(arm.arm, "rows a second", rows, arm.rows_per_second, "")
    failed = predicted.unanswered / asked if predicted and asked else None
    yield Compared(arm.arm, "calls that failed", failed, arm.error_rate if arm.calls else None, "%")
