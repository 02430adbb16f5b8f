"""The serving of a search: a candidate beside the original, through a service of their own, or the reason why not."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from services.optimization.advisor.goal import Goal
from services.optimization.advisor.serving.served import ServedAdvice
from services.optimization.advisor.serving.trial import TrialFailed
from services.optimization.advisor.serving.tune import ServedPair, Wanted
from services.optimization.examples import Examples
from services.optimization.failures import NotEnoughData
from services.optimization.report import Interval
from services.optimization.techniques import Model

log = structlog.get_logger("hone.jobs")

_Found = TypeVar("_Found")


class ServingStage:
    """For one original and one goal. What keeps a service from starting ends no job."""

    def __init__(self, original: Model, examples: Examples, goal: Goal, scratch: Path, seed: int) -> None:
        self._original, self._examples, self.goal = original, examples, goal
        self._scratch, self._seed = scratch, seed
        self.note = ""

    def quick(self, candidate: Model, seconds: float) -> Interval | None:
        """The speed-up through the service with the default settings; None where that cannot be tried."""
        return self._tried(ServedPair.compare, candidate, seconds)

    def whole(self, candidate: Model, seconds: float, say: Callable[[str], None]) -> ServedAdvice | None:
        """With the settings searched; None where it cannot be tried, which `note` explains."""
        return self._tried(lambda pair: pair.tune(say), candidate, seconds)

    def _tried(self, serve: Callable[[ServedPair], _Found], candidate: Model, seconds: float) -> _Found | None:
        wanted = Wanted(self.goal.preset.objective, seconds, self.goal.resolved.max_p99_ms, self._seed)
        try:
            return serve(ServedPair(self._original, candidate, self._examples, self.goal.served_traffic, wanted, self._scratch))
        except (TrialFailed, NotEnoughData) as error:
            self.note = f"serving could not be tried: {error}"
            log.warning("serving could not be tried", reason=str(error))
            return None
