"""The Pareto front of what was tried."""

import math
from collections.abc import Sequence

from services.optimization.advisor.rung import Trial


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Of the accepted, those that no other one beats in speed, size and loss together."""
    accepted = [trial for trial in trials if trial.accepted and trial.speedup is not None]
    return [trial for trial in accepted if not any(_beats(other, trial) for other in accepted)]


def _beats(one: Trial, other: Trial) -> bool:
    ones, others = _merits(one), _merits(other)
    return ones != others and all(mine >= theirs for mine, theirs in zip(ones, others, strict=True))


def _merits(trial: Trial) -> tuple[float, float, float]:
    """Higher is better, each of them."""
    speed = trial.speedup.estimate if trial.speedup is not None else -math.inf
    return speed, trial.size_ratio, -(trial.loss.estimate if trial.loss is not None else math.inf)
