"""One step of a recipe: find its kept result or make it."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.optimization import folder
from services.optimization.environment import cpu_features, cpu_model, library_versions
from services.optimization.examples import Examples
from services.optimization.history import History
from services.optimization.jobs.job import NO_METRICS
from services.optimization.kept import KeptStep, KeptSteps, digest_of
from services.optimization.recipe import Step, parse_parameters
from services.optimization.remembered import NOTHING, Remembered
from services.optimization.techniques import Context, Model, Parameters, Technique, find
from services.optimization.techniques.technique import Tell

DEFAULT_CALIBRATION = 512  # of the training examples, where there is no calibration data


@dataclass(frozen=True)
class Materials:
    """What every step of a job may use."""

    teacher: Model
    calibration: Examples
    training: Examples
    seed: int
    threads: int
    remembered: Remembered = NOTHING  # of the job's source
    teacher_remembered: Remembered = NOTHING

    def calibration_for(self, parameters: Parameters) -> Examples:
        if not parameters.uses_calibration():
            return Examples()
        return self.calibration if len(self.calibration) else self.training.take(range(min(DEFAULT_CALIBRATION, len(self.training))))

    def training_for(self, parameters: Parameters) -> Examples:
        return self.training if parameters.uses_training() else Examples()


class Steps:
    """Carries steps out, each at most once for what shapes it."""

    def __init__(self, materials: Materials, kept: KeptSteps, history: History, scratch: Path) -> None:
        self._materials, self._kept, self._history, self._scratch = materials, kept, history, scratch

    def find(self, source: Model, step: Step) -> tuple[Model, KeptStep] | None:
        """The step's result, if it was made before."""
        technique = find(step.technique)
        digest = self._digest(source, technique, parse_parameters(technique, step, "step"))
        kept = self._kept.find(digest)
        return (Model(self._kept.model(digest), kept.signature), kept) if kept else None

    def make(self, source: Model, step: Step, tell: Tell) -> tuple[Model, KeptStep]:
        """Raises a class of `failures`, and whatever `tell` raises."""
        tell(0.0, "started")
        technique = find(step.technique)
        parameters = parse_parameters(technique, step, "step")
        digest = self._digest(source, technique, parameters)
        kept = self._apply(source, technique, parameters, digest, tell)
        examples = len(self._materials.training_for(parameters))
        megabytes = folder.size_bytes(source.folder) / 1e6
        self._history.add(technique.name, parameters.model_dump(mode="json"), megabytes, examples, kept.seconds)
        return Model(self._kept.model(digest), kept.signature), kept

    def _digest(self, source: Model, technique: Technique, parameters: Parameters) -> str:
        """Of everything that shapes the result; two steps with one digest make the same model."""
        materials = self._materials
        trains = parameters.uses_training()
        return digest_of(
            {
                "source": folder.content_digest(source.folder, source.signature),
                "technique": [technique.name, technique.version],
                "parameters": parameters.model_dump(mode="json"),
                "calibration": materials.calibration_for(parameters).digest if parameters.uses_calibration() else None,
                "training": materials.training.digest if trains else None,
                "teacher": folder.content_digest(materials.teacher.folder, materials.teacher.signature) if trains else None,
                "seed": materials.seed,
                "libraries": dict(library_versions()),
                "cpu": [cpu_model(), *sorted(cpu_features())],  # compiled code may use any instruction of its processor
            }
        )

    def _apply(self, source: Model, technique: Technique, parameters: Parameters, digest: str, tell: Tell) -> KeptStep:
        scratch = Path(tempfile.mkdtemp(dir=self._scratch))
        start = time.monotonic()
        try:
            # The libraries below leave files in the working directory.
            with self._kept.stage() as target, contextlib.chdir(scratch):
                outcome = technique.apply(self._context(source, parameters, target, scratch, self._kept.checkpoints(digest), tell))
                return self._kept.keep(digest, target, outcome.signature, outcome.notes, time.monotonic() - start)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _context(self, source: Model, parameters: Parameters, target: Path, scratch: Path, checkpoints: Path, tell: Tell) -> Context:
        materials = self._materials
        return Context(
            source=source.folder,
            signature=source.signature,
            target=target,
            scratch=scratch,
            checkpoints=checkpoints,
            outputs=self._kept.outputs,
            parameters=parameters,
            calibration=materials.calibration_for(parameters),
            training=materials.training_for(parameters),
            original=materials.teacher,
            seed=materials.seed,
            threads=materials.threads,
            progress=tell,
            remembered=materials.remembered,
            original_remembered=materials.teacher_remembered,
        )


def within(tell: Tell, begin: float, width: float, prefix: str, check: Callable[[], None]) -> Tell:
    """`tell` for a part of the whole; `check` may raise, which ends the part."""

    def told(fraction: float, message: str, *, step: int = 0, metrics: Mapping[str, Any] = NO_METRICS) -> None:
        check()
        line = f"{prefix}: {message}" if message else ""
        tell(begin + width * min(max(fraction, 0.0), 1.0), line, step=step, metrics=metrics)

    return told
