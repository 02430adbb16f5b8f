"""Carrying a recipe out: every step at most once, and with what it told."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.optimization.failures import BudgetExceeded, NotEnoughData, Toolchain, UnsupportedOperator
from services.optimization.jobs.exhaustion import disk_is_full, memory_is_full
from services.optimization.jobs.job import NO_METRICS
from services.optimization.recipe import Recipe
from services.optimization.steps import Steps, within
from services.optimization.techniques import Model

# Failures that end one recipe and leave the others their chance.
INFEASIBLE = (UnsupportedOperator, Toolchain, NotEnoughData, BudgetExceeded)


class Progress(Protocol):
    def __call__(self, stage: str, fraction: float, message: str, *, step: int = 0, metrics: Mapping[str, float] = NO_METRICS) -> None:
        """`fraction` of the whole, which never falls; `message` is a line for the log, `metrics` points of curves at `step`."""


@dataclass(frozen=True)
class Made:
    """A recipe's result before it is measured."""

    recipe: Recipe
    model: Model
    notes: Mapping[str, Any]
    seconds: float


class Maker:
    """Makes candidates of one original, until a moment of time.monotonic."""

    def __init__(self, original: Model, steps: Steps, progress: Progress, until: float) -> None:
        self._original, self._steps, self._until = original, steps, until
        self.progress = progress

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self._until

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def make(self, recipe: Recipe, begin: float, width: float) -> Made:
        """Progress goes from `begin` on by `width`. Raises a class of `failures`: those of INFEASIBLE are the recipe's own."""
        model, notes, seconds = self._original, [], 0.0
        for index, step in enumerate(recipe.steps):
            at, share = begin + width * index / len(recipe.steps), width / len(recipe.steps)
            name = f"{recipe.name}: {step.technique}"
            found = self._steps.find(model, step)
            if found is None:
                found = self._steps.make(model, step, within(self._tell, at, share, name, self._check_time))
            else:
                self._tell(at, f"{name}: reusing the kept result")
            model, kept = found
            notes.append({"technique": step.technique, **kept.notes})
            seconds += kept.seconds
        return Made(recipe, model, {"steps": notes}, seconds)

    def _tell(self, fraction: float, message: str, *, step: int = 0, metrics: Mapping[str, float] = NO_METRICS) -> None:
        self.progress("optimizing", fraction, message, step=step, metrics=metrics)

    def _check_time(self) -> None:
        if self.is_late:
            raise BudgetExceeded("the job's time was over; what was made until then was measured")


def raise_when_exhausted(failure: BaseException) -> None:
    """A full disk or memory is no fault of the recipe, however a library has wrapped it: the next one would end likewise."""
    if disk_is_full(failure) or memory_is_full(failure):
        raise failure
