"""What a job is to carry out, with everything that it needs named."""

from pathlib import Path

from pydantic import Field

from services.optimization.advisor.goal import Goal
from services.optimization.data import Data
from services.optimization.evaluation.metrics import Metric
from services.optimization.recipe import Gates, Kinds, Objective, Recipe
from services.repository.manifest import Frozen, Signature


class Teacher(Frozen):
    """The model that training learns from, where it is not the source."""

    folder: Path
    signature: Signature


class Plan(Frozen):
    """What to try, on what data, and what to hold."""

    recipes: tuple[Recipe, ...] = Field((), description="none where a goal is to find them")
    goal: Goal | None = None
    evaluation: Data = Data()
    calibration: Data = Data()
    training: Data = Data()
    teacher: Teacher | None = None
    metric: Metric | None = None
    gates: Gates = Gates()
    objective: Objective = Objective.THROUGHPUT
    seed: int = Field(0, ge=0)
    threads: int = Field(1, ge=1)
    evaluation_seconds: float = Field(60.0, gt=0, description="time for the interleaved latency measurement of all models")

    @property
    def kinds(self) -> Kinds:
        return Kinds(calibration=bool(self.calibration), training=bool(self.training))
