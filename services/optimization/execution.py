"""One job's work: carry out recipes, measure them beside the original, judge, choose."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from services.optimization import folder, gates
from services.optimization.environment import cpu_features, describe, library_versions
from services.optimization.evaluation import Comparison, Subject, Timed
from services.optimization.failures import NotEnoughData, Toolchain, UnsupportedOperator
from services.optimization.fidelity import Fidelity
from services.optimization.kept import KeptStep, KeptSteps, digest_of
from services.optimization.recipe import Gates, Objective, Recipe, Step, parse_parameters, validate_recipes
from services.optimization.report import Candidate, Measurement, Report, Verdict
from services.optimization.techniques import Context, Parameters, Technique, find
from services.repository.manifest import Frozen, Signature, Task

# stage, fraction of the whole (never falls), a line for the log
Progress = Callable[[str, float, str], None]

# Failures that end one recipe and leave the others their chance.
INFEASIBLE = (UnsupportedOperator, Toolchain, NotEnoughData)

_OPTIMIZED, _COMPARED, _TIMED = 0.5, 0.6, 0.9  # fractions of the whole at which each stage ends


class Plan(Frozen):
    """What to try, on what data, and what to hold. The two sets of texts are distinct and disjoint."""

    recipes: tuple[Recipe, ...] = Field(min_length=1)
    evaluation_texts: tuple[str, ...] = ()
    calibration_texts: tuple[str, ...] = ()
    gates: Gates = Gates()
    objective: Objective = Objective.THROUGHPUT
    seed: int = Field(0, ge=0)
    threads: int = Field(1, ge=1)
    evaluation_seconds: float = Field(60.0, gt=0, description="time for the interleaved latency measurement of all models")

    @model_validator(mode="after")
    def _texts_are_disjoint(self) -> Self:
        """A text seen twice is one example, and one that was calibrated on proves nothing."""
        seen: dict[str, str] = {}
        for name, texts in (("calibration_texts", self.calibration_texts), ("evaluation_texts", self.evaluation_texts)):
            for index, text in enumerate(texts):
                if text in seen:
                    raise ValueError(f"{name}[{index}]: the same text as {seen[text]}")
                seen[text] = f"{name}[{index}]"
        return self


@dataclass(frozen=True)
class Execution:
    """The report and, when a candidate was accepted, the folder of the chosen one (below kept_steps: copy it, do not move it)."""

    report: Report
    chosen_folder: Path | None
    chosen_signature: Signature | None


@dataclass(frozen=True)
class _Made:
    """A recipe's result before it is measured."""

    recipe: Recipe
    subject: Subject
    notes: Mapping[str, Any]
    seconds: float


@dataclass
class _Run:
    """One execution in progress: what was made, what was compared, what proved infeasible."""

    plan: Plan
    original: Subject
    scratch: Path
    kept: KeptSteps
    progress: Progress
    made: dict[str, _Made] = field(default_factory=dict)
    fidelities: dict[str, Fidelity] = field(default_factory=dict)
    infeasible: dict[str, str] = field(default_factory=dict)

    def make_all(self) -> None:
        for index, recipe in enumerate(self.plan.recipes):
            begin, width = _OPTIMIZED * index / len(self.plan.recipes), _OPTIMIZED / len(self.plan.recipes)
            try:
                self.made[recipe.name] = self._make(recipe, begin, width)
            except INFEASIBLE as failure:
                self.infeasible[recipe.name] = str(failure)

    def _make(self, recipe: Recipe, begin: float, width: float) -> _Made:
        subject, notes, seconds = self.original, [], 0.0
        for index, step in enumerate(recipe.steps):
            at, share = begin + width * index / len(recipe.steps), width / len(recipe.steps)
            name = f"{recipe.name}: {step.technique}"

            def tell(fraction: float, message: str, at: float = at, share: float = share, name: str = name) -> None:
                self.progress("optimizing", at + share * min(fraction, 1.0), f"{name}: {message}")

            subject, kept = self._step(subject, step, tell)
            notes.append({"technique": step.technique, **kept.notes})
            seconds += kept.seconds
        return _Made(recipe, subject, {"steps": notes}, seconds)

    def _step(self, source: Subject, step: Step, tell: Callable[[float, str], None]) -> tuple[Subject, KeptStep]:
        technique = find(step.technique)
        parameters = parse_parameters(technique, step, "step")
        digest = digest_of(self._key(source, technique, parameters))
        kept = self.kept.find(digest)
        tell(0.0, "reusing the kept result" if kept else "started")
        if kept is None:
            kept = self._apply(source, technique, parameters, digest, tell)
        return Subject(self.kept.model(digest), kept.signature), kept

    def _key(self, source: Subject, technique: Technique, parameters: Parameters) -> dict[str, Any]:
        """Everything that shapes the result; two steps with one key make the same model."""
        return {
            "source": folder.content_digest(source.folder, source.signature),
            "technique": [technique.name, technique.version],
            "parameters": parameters.model_dump(mode="json"),
            "calibration": list(self.plan.calibration_texts) if parameters.uses_calibration() else None,
            "seed": self.plan.seed,
            "libraries": dict(library_versions()),
            "cpu_features": sorted(cpu_features()),
        }

    def _apply(
        self, source: Subject, technique: Technique, parameters: Parameters, digest: str, tell: Callable[[float, str], None]
    ) -> KeptStep:
        scratch = Path(tempfile.mkdtemp(dir=self.scratch))
        start = time.monotonic()
        try:
            # The libraries below leave files in the working directory.
            with self.kept.stage() as target, contextlib.chdir(scratch):
                texts = self.plan.calibration_texts if parameters.uses_calibration() else ()
                outcome = technique.apply(
                    Context(
                        source=source.folder,
                        signature=source.signature,
                        target=target,
                        scratch=scratch,
                        parameters=parameters,
                        calibration_texts=texts,
                        seed=self.plan.seed,
                        threads=self.plan.threads,
                        progress=tell,
                    )
                )
                return self.kept.keep(digest, target, outcome.signature, outcome.notes, time.monotonic() - start)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def compare_all(self, comparison: Comparison) -> None:
        for index, (name, made) in enumerate(list(self.made.items())):
            part = index / len(self.made)
            self.progress("comparing answers", _OPTIMIZED + (_COMPARED - _OPTIMIZED) * part, name)
            try:
                self.fidelities[name] = comparison.admit(name, made.subject)
            except INFEASIBLE as failure:
                self.infeasible[name] = str(failure)

    def measure_all(self, comparison: Comparison) -> tuple[dict[str, Timed], dict[str, Measurement]]:
        """By name, the original under ""."""
        self.progress("measuring latency", _COMPARED, f"{len(self.fidelities)} candidates in turns with the original")
        timed = comparison.measure_latency(self.plan.evaluation_seconds)
        measured = {}
        for index, (name, times) in enumerate(timed.items()):
            self.progress("measuring memory", _TIMED + (1 - _TIMED) * index / len(timed), name or "original")
            measured[name] = comparison.measure_footprint(name, times)
        return timed, measured

    def candidate(self, recipe: Recipe, timed: Mapping[str, Timed], measured: Mapping[str, Measurement]) -> Candidate:
        if recipe.name in self.infeasible:
            return Candidate(name=recipe.name, steps=recipe.steps, verdict=Verdict.INFEASIBLE, reason=self.infeasible[recipe.name])
        made, fidelity, measurement = self.made[recipe.name], self.fidelities[recipe.name], measured[recipe.name]
        speedup = timed[recipe.name].speedup_over(timed[""], self.plan.seed)
        ratio = measured[""].size_bytes / max(1, measurement.size_bytes)
        judgement = gates.judge(fidelity.interval, fidelity.examples, speedup, ratio, self.plan.gates, self.plan.objective)
        return Candidate(
            name=recipe.name,
            steps=recipe.steps,
            verdict=judgement.verdict,
            reason=judgement.reason,
            measurement=measurement,
            fidelity=fidelity.interval,
            min_fidelity=fidelity.worst,
            speedup=speedup,
            size_ratio=ratio,
            notes={**made.notes, "fidelity": dict(fidelity.notes)},
            optimization_seconds=made.seconds,
        )


def _all_infeasible(plan: Plan, original: Path, reason: str) -> Execution:
    candidates = tuple(Candidate(name=r.name, steps=r.steps, verdict=Verdict.INFEASIBLE, reason=reason) for r in plan.recipes)
    size = Measurement(size_bytes=folder.size_bytes(original))
    return Execution(Report(original=size, candidates=candidates, environment=describe(plan.threads)), None, None)


def _concluded(run: _Run, timed: Mapping[str, Timed], measured: Mapping[str, Measurement]) -> Execution:
    candidates = tuple(run.candidate(recipe, timed, measured) for recipe in run.plan.recipes)
    chosen = gates.choose(candidates, run.plan.objective)
    report = Report(original=measured[""], candidates=candidates, chosen=chosen, environment=describe(run.plan.threads))
    subject = run.made[chosen].subject if chosen else None
    return Execution(report, subject.folder if subject else None, subject.signature if subject else None)


def execute(plan: Plan, original: Path, signature: Signature, scratch: Path, kept_steps: Path, progress: Progress) -> Execution:
    """Carries out every recipe, measures all in one interleaved run, judges each and chooses.

    `original` is a model folder described by `signature`; `scratch` exists and is emptied of what this made; `kept_steps`
    holds finished steps across jobs and may be shared by several. Blocks for minutes; may be killed at any instant.
    Raises ValueError for recipes that do not fit the model, BadModel for an original that does not run, NotEnoughData
    without evaluation texts. A recipe that cannot be carried out is a candidate with the verdict INFEASIBLE.
    """
    validate_recipes(plan.recipes, signature, calibrated=bool(plan.calibration_texts))
    if signature.task is Task.TENSOR:
        return _all_infeasible(plan, original, "a tensor model cannot be evaluated: a job brings texts, which make no named tensors")
    if not plan.evaluation_texts:
        raise NotEnoughData("evaluation_texts: there are none, and nothing is published unmeasured")
    run = _Run(plan, Subject(original.resolve(), signature), scratch.resolve(), KeptSteps(kept_steps), progress)
    run.make_all()
    with Comparison(run.original, plan.evaluation_texts, threads=plan.threads, seed=plan.seed) as comparison:
        run.compare_all(comparison)
        timed, measured = run.measure_all(comparison)
    progress("concluding", 1.0, "every candidate was measured")
    return _concluded(run, timed, measured)
