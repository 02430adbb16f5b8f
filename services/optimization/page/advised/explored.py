"""Every recipe that was tried as a point: what it brought and what it cost, on paper before on a plot."""

import math
from dataclasses import dataclass
from enum import StrEnum

from services.optimization.advisor.advice import Tried
from services.optimization.page.advised import words
from services.optimization.page.advised.facts import Facts, loss
from services.optimization.page.tradeoff import Point, exact, front_of
from services.optimization.report import Interval, Verdict


class Kind(StrEnum):
    ORIGINAL = "original"
    ACCEPTED = "accepted"
    NOT_ACCEPTED = "not accepted"


@dataclass(frozen=True)
class Mark:
    """A recipe by its speed-up and its loss, in hundredths of the metric. `size_share` is of the original's bytes."""

    kind: Kind
    point: Point
    size_share: float


@dataclass(frozen=True)
class Explored:
    """`front` holds accepted ones that no other beats in speed and loss, by rising speed; `shapes` the speed-ups of those not judged.

    `max_loss` is in hundredths of the metric, `min_speedup` None where none is asked for. `served` is the best one as it was served
    in the end, by the final run's loss; None where it was not.
    """

    unit: str
    marks: tuple[Mark, ...]
    front: tuple[Point, ...]
    shapes: tuple[tuple[str, float], ...]
    max_loss: float
    min_speedup: float | None
    served: Point | None = None


def explored(facts: Facts) -> Explored:
    """The original is the first mark."""
    chosen = facts.best.name if facts.best and facts.is_published else ""
    marks = [Mark(Kind.ORIGINAL, Point("original", None, exact(1.0), exact(0.0)), 1.0)]
    marks += [mark for trial in facts.advice.trials if (mark := _mark(trial, chosen)) is not None]
    targets = facts.advice.goal.resolved
    asked = [ratio for ratio in (targets.min_speedup, targets.min_served_speedup) if ratio]
    return Explored(
        unit=words.UNITS[facts.report.metric],
        marks=tuple(marks),
        front=front_of([mark.point for mark in marks if mark.kind is not Kind.NOT_ACCEPTED], lower_is_better=True),
        shapes=tuple((trial.name, trial.speedup.estimate) for trial in facts.advice.trials if trial.is_shape and trial.speedup),
        max_loss=100 * facts.max_loss,
        min_speedup=max(asked, default=None),
        served=_served(facts),
    )


def _mark(trial: Tried, chosen: str) -> Mark | None:
    """None for what was not judged: without a loss it has no place."""
    if trial.speedup is None or trial.loss is None:
        return None
    kind, verdict = (Kind.ACCEPTED, Verdict.ACCEPT) if trial.accepted else (Kind.NOT_ACCEPTED, Verdict.REJECT_ACCURACY)
    point = Point(trial.name, verdict, trial.speedup, _hundredths(trial.loss), trial.name == chosen)
    return Mark(kind, point, 1 / trial.size_ratio if trial.size_ratio > 0 else math.inf)


def _served(facts: Facts) -> Point | None:
    served, lost = facts.advice.served, loss(facts.best, facts.report.metric) if facts.best else None
    if served is None or lost is None:
        return None
    return Point("served", Verdict.ACCEPT, served.speedup, _hundredths(lost))


def _hundredths(found: Interval) -> Interval:
    return Interval(estimate=100 * found.estimate, low=100 * found.low, high=100 * found.high)
