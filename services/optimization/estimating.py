"""How long recipes will take here, step by step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.optimization import folder
from services.optimization.examples import Examples
from services.optimization.history import History
from services.optimization.kept import digest_of
from services.optimization.recipe import Step, parse_parameters
from services.optimization.steps import Materials, Steps
from services.optimization.techniques import Model, find
from services.repository.manifest import Format

_ROW_SECONDS_PER_MB = 1e-4  # assumed, as a technique's cost is before this machine has measured it


@dataclass(frozen=True)
class PlannedStep:
    technique: str
    parameters: Mapping[str, Any]
    source_format: Format
    target_format: Format
    seconds: float
    basis: str


class Estimator:
    """Of recipes of one original, to be judged by some examples; what was made before and kept takes no time."""

    def __init__(self, original: Model, materials: Materials, steps: Steps, history: History, evaluation: Examples) -> None:
        self.original, self.evaluation = original, evaluation
        self._materials, self._steps, self._history = materials, steps, history
        self.megabytes = folder.size_bytes(original.folder) / 1e6

    @property
    def examples(self) -> int:
        """That recipes are judged by."""
        return len(self.evaluation)

    @property
    def data_digest(self) -> str:
        """Of all that recipes are made of and judged by, beside the original: equal where the same recipe comes to the same answers."""
        used, teacher = self._materials, self._materials.teacher
        examples = [found.digest for found in (self.evaluation, used.calibration, used.training)]
        taught_by = folder.content_digest(teacher.folder, teacher.signature)
        return digest_of({"examples": examples, "teacher": taught_by, "seed": used.seed})

    @property
    def training_rows(self) -> int:
        return len(self._materials.training)

    @property
    def assumed_row_seconds(self) -> float:
        """Of the original's answer to one example, before it was run."""
        return _ROW_SECONDS_PER_MB * self.megabytes

    def planned(self, steps: Sequence[Step]) -> Iterator[PlannedStep]:
        model: Model | None = self.original
        current = self.original.signature.format
        for step in steps:
            technique = find(step.technique)
            parameters = parse_parameters(technique, step, "step")
            kept = self._steps.find(model, step) if model else None
            model = kept[0] if kept else None
            examples = len(self._materials.training_for(parameters))
            seconds, basis = (0.0, "kept") if kept else self._history.estimate(technique, parameters, self.megabytes, examples)
            target = technique.target_of(current)
            yield PlannedStep(technique.name, parameters.model_dump(mode="json"), current, target, seconds, basis)
            current = target

    def seconds(self, steps: Sequence[Step]) -> float:
        return sum(step.seconds for step in self.planned(steps))
