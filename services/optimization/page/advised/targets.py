"""What the goal asks for, beside what the final measurements reached."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from services.optimization.advisor.scenarios import Targets
from services.optimization.advisor.serving.served import ServedAdvice, ServedFigures
from services.optimization.page import wording
from services.optimization.page.advised import words
from services.optimization.page.advised.facts import Facts, loss
from services.optimization.report import Candidate

_ROUNDING = 1e-9  # of 1 - fidelity


class Standing(StrEnum):
    MET = "met"
    MISSED = "missed"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Target:
    """One limit of the goal; `reached` is empty where it was not measured."""

    name: str
    asked: str
    reached: str
    standing: Standing


@dataclass(frozen=True)
class _Reached:
    told: str
    is_met: bool


def standings(facts: Facts) -> tuple[Target, ...]:
    """Every limit that was told, with the scenario's where none was; intervals count by their worse bound."""
    targets, best = facts.advice.goal.resolved, facts.best
    asked = {"max_loss": words.allowed(facts.report.metric, facts.max_loss), **dict(_asked(targets))}
    found = dict(_reached(facts, best, targets)) if best is not None else {}
    return tuple(_target(name, told, found.get(name)) for name, told in asked.items())


def _target(name: str, asked: str, found: _Reached | None) -> Target:
    standing = Standing.UNKNOWN if found is None else Standing.MET if found.is_met else Standing.MISSED
    return Target(words.TARGETS[name], asked, found.told if found else "", standing)


def _asked(targets: Targets) -> Iterator[tuple[str, str]]:
    for name in ("min_speedup", "min_served_speedup"):
        ratio: float | None = getattr(targets, name)
        if ratio is not None:
            yield name, f"{wording.plain(ratio)}×"
    if targets.max_p99_ms is not None:
        rate = f" at {wording.plain(targets.at_rows_per_second)} rows a second" if targets.at_rows_per_second else ""
        yield "max_p99_ms", f"{wording.plain(targets.max_p99_ms)} ms{rate}"
    for name in ("max_size_bytes", "max_memory_bytes"):
        most: int | None = getattr(targets, name)
        if most is not None:
            yield name, wording.megabytes(most)


def _reached(facts: Facts, best: Candidate, targets: Targets) -> Iterator[tuple[str, _Reached]]:
    lost, served, measured = loss(best, facts.report.metric), facts.advice.served, best.measurement
    if lost is not None:
        told = f"{words.points(lost.estimate)} ({words.points(lost.low)} to {words.points(lost.high)})"
        yield "max_loss", _Reached(told, lost.high <= facts.max_loss + _ROUNDING)
    if best.speedup is not None:
        yield "min_speedup", _Reached(words.span(best.speedup, wording.times), best.speedup.low >= (targets.min_speedup or 0))
    if served is not None:
        is_met = served.speedup.low >= (targets.min_served_speedup or 0)
        yield "min_served_speedup", _Reached(words.span(served.speedup, wording.times), is_met)
        yield "max_p99_ms", _latency(served, targets.max_p99_ms or 0)
    if measured is not None:
        most_bytes, most_resident = targets.max_size_bytes or 0, targets.max_memory_bytes or 0
        yield "max_size_bytes", _Reached(wording.megabytes(measured.size_bytes), measured.size_bytes <= most_bytes)
        if measured.memory_bytes:
            yield "max_memory_bytes", _Reached(wording.megabytes(measured.memory_bytes), measured.memory_bytes <= most_resident)


def _latency(served: ServedAdvice, wanted_ms: float) -> _Reached:
    """As the goal is judged: at the traffic's own rate, else at the most callers that keep to the target."""
    capacity = served.candidate_capacity
    figures: ServedFigures | None = served.candidate_at_rate or (capacity.figures if capacity else None)
    if figures is None:
        return _Reached("a single caller waits for longer", is_met=False)
    if figures.p99_ms is None:
        return _Reached("more than one in a hundred was not answered", is_met=False)
    return _Reached(f"{wording.number(figures.p99_ms)} ms", figures.p99_ms <= wanted_ms)
