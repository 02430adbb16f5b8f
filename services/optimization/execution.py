"""One job's work: carry out recipes, measure them beside the original, judge, choose."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from services.optimization.recipe import Gates, Objective, Recipe
from services.optimization.report import Report
from services.repository.manifest import Frozen, Signature

# stage, fraction of the whole (never falls), a line for the log
Progress = Callable[[str, float, str], None]


class Plan(Frozen):
    """What to try, on what data, and what to hold. Texts are real and the two sets are disjoint."""

    recipes: tuple[Recipe, ...] = Field(min_length=1)
    evaluation_texts: tuple[str, ...] = ()
    calibration_texts: tuple[str, ...] = ()
    gates: Gates = Gates()
    objective: Objective = Objective.THROUGHPUT
    seed: int = 0
    threads: int = Field(1, ge=1)
    evaluation_seconds: float = Field(75.0, gt=0, description="time for the interleaved latency measurement of all models")


@dataclass(frozen=True)
class Execution:
    """The report and, when a candidate was accepted, the folder of the chosen one (below kept_steps: copy it, do not move it)."""

    report: Report
    chosen_folder: Path | None
    chosen_signature: Signature | None


def execute(plan: Plan, original: Path, signature: Signature, scratch: Path, kept_steps: Path, progress: Progress) -> Execution:
    """Raises a class of `failures` when the job as a whole cannot go on."""
    raise NotImplementedError
