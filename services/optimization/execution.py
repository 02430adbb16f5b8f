"""One job's work: carry out recipes, measure them beside the original, judge, choose."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from services.optimization import data as job_data
from services.optimization.data import Data
from services.optimization.environment import describe
from services.optimization.evaluation import gates
from services.optimization.evaluation.comparison import Compared, Comparison, Timed
from services.optimization.evaluation.gates import Evidence
from services.optimization.evaluation.metrics import Metric, metric_of
from services.optimization.examples import Examples
from services.optimization.failures import BudgetExceeded, NotEnoughData, Toolchain, UnsupportedOperator
from services.optimization.history import History
from services.optimization.jobs.exhaustion import disk_is_full, memory_is_full
from services.optimization.jobs.job import NO_METRICS
from services.optimization.kept import KeptSteps
from services.optimization.recipe import Gates, Kinds, Objective, Recipe, validate_recipes
from services.optimization.remembered import NOTHING, Remembered
from services.optimization.report import Candidate, Measurement, Report, Verdict
from services.optimization.steps import Materials, Steps, within
from services.optimization.techniques import Model
from services.repository.manifest import Frozen, Signature

# Failures that end one recipe and leave the others their chance.
INFEASIBLE = (UnsupportedOperator, Toolchain, NotEnoughData, BudgetExceeded)
HISTORY = "history.jsonl"

_OPTIMIZED, _COMPARED, _TIMED = 0.5, 0.6, 0.9  # fractions of the whole at which each stage ends
_MOST_MEASURING = 0.5  # of a job's time that is kept back for measuring
_LEAST_LATENCY_S = 2.0  # that latency is measured for, however late it is


class Progress(Protocol):
    def __call__(self, stage: str, fraction: float, message: str, *, step: int = 0, metrics: Mapping[str, float] = NO_METRICS) -> None:
        """`fraction` of the whole, which never falls; `message` is a line for the log, `metrics` points of curves at `step`."""


class Teacher(Frozen):
    """The model that training learns from, where it is not the source."""

    folder: Path
    signature: Signature


class Plan(Frozen):
    """What to try, on what data, and what to hold."""

    recipes: tuple[Recipe, ...] = Field(min_length=1)
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
    model: Model
    notes: Mapping[str, Any]
    seconds: float


@dataclass
class _Run:
    """One execution in progress: what was made, what was compared, what proved infeasible."""

    plan: Plan
    original: Model
    steps: Steps
    progress: Progress
    make_until: float  # of time.monotonic, as is `deadline`
    deadline: float | None
    made: dict[str, _Made] = field(default_factory=dict)
    compared: dict[str, Compared] = field(default_factory=dict)
    infeasible: dict[str, str] = field(default_factory=dict)

    def make_all(self) -> None:
        """Raises BudgetExceeded when the time was over before anything was made."""
        for index, recipe in enumerate(self.plan.recipes):
            begin, width = _OPTIMIZED * index / len(self.plan.recipes), _OPTIMIZED / len(self.plan.recipes)
            try:
                self.made[recipe.name] = self._make(recipe, begin, width)
            except INFEASIBLE as failure:
                _raise_when_exhausted(failure)
                self.infeasible[recipe.name] = str(failure)
        if not self.made and time.monotonic() > self.make_until:
            raise BudgetExceeded("the job's time was over before a candidate was made")

    def _make(self, recipe: Recipe, begin: float, width: float) -> _Made:
        model, notes, seconds = self.original, [], 0.0
        for index, step in enumerate(recipe.steps):
            at, share = begin + width * index / len(recipe.steps), width / len(recipe.steps)
            name = f"{recipe.name}: {step.technique}"
            found = self.steps.find(model, step)
            if found is None:
                found = self.steps.make(model, step, within(self._tell, at, share, name, self._check_time))
            else:
                self._tell(at, f"{name}: reusing the kept result")
            model, kept = found
            notes.append({"technique": step.technique, **kept.notes})
            seconds += kept.seconds
        return _Made(recipe, model, {"steps": notes}, seconds)

    def _tell(self, fraction: float, message: str, *, step: int = 0, metrics: Mapping[str, float] = NO_METRICS) -> None:
        self.progress("optimizing", fraction, message, step=step, metrics=metrics)

    def _check_time(self) -> None:
        if time.monotonic() > self.make_until:
            raise BudgetExceeded("the job's time was over; what was made until then was measured")

    def compare_all(self, comparison: Comparison) -> None:
        for index, (name, made) in enumerate(list(self.made.items())):
            part = index / len(self.made)
            self.progress("comparing answers", _OPTIMIZED + (_COMPARED - _OPTIMIZED) * part, name)
            if self.compared and self.deadline is not None and time.monotonic() > self.deadline:  # one at least is told
                self.infeasible[name] = "the job's time was over before it could be compared"
                continue
            try:
                self.compared[name] = comparison.admit(name, made.model)
            except INFEASIBLE as failure:
                _raise_when_exhausted(failure)
                self.infeasible[name] = str(failure)

    def measure_all(self, comparison: Comparison) -> tuple[dict[str, Timed], dict[str, Measurement]]:
        """By name, the original under ""."""
        self.progress("measuring latency", _COMPARED, f"{len(self.compared)} candidates in turns with the original")
        timed = comparison.measure_latency(self._latency_seconds())
        measured = {}
        for index, (name, times) in enumerate(timed.items()):
            self.progress("measuring memory", _TIMED + (1 - _TIMED) * index / len(timed), name or "original")
            try:
                measured[name] = comparison.measure_footprint(name, times)
            except INFEASIBLE as failure:
                if not name:
                    raise
                _raise_when_exhausted(failure)
                self.infeasible[name] = str(failure)
        return timed, measured

    def _latency_seconds(self) -> float:
        """At most half of the time that is left, so that a job with little of it is not ended as stuck; load times take the rest."""
        if self.deadline is None:
            return self.plan.evaluation_seconds
        left = self.deadline - time.monotonic()
        return min(self.plan.evaluation_seconds, max(_LEAST_LATENCY_S, left / 2))

    def conclude(self, metric: Metric, timed: Mapping[str, Timed], measured: Mapping[str, Measurement]) -> tuple[Candidate, ...]:
        held = self.plan.gates.for_metric(metric)
        return tuple(self._candidate(recipe, metric, held, timed, measured) for recipe in self.plan.recipes)

    def _candidate(
        self, recipe: Recipe, metric: Metric, held: Gates, timed: Mapping[str, Timed], measured: Mapping[str, Measurement]
    ) -> Candidate:
        if recipe.name in self.infeasible:
            return Candidate(name=recipe.name, steps=recipe.steps, verdict=Verdict.INFEASIBLE, reason=self.infeasible[recipe.name])
        made, compared, measurement = self.made[recipe.name], self.compared[recipe.name], measured[recipe.name]
        speedup = timed[recipe.name].speedup_over(timed[""], self.plan.seed)
        ratio = measured[""].size_bytes / max(1, measurement.size_bytes)
        fidelity = compared.fidelity
        evidence = Evidence(fidelity.interval, fidelity.examples, speedup, ratio, compared.quality(metric), compared.is_finite)
        judgement = gates.judge(evidence, held, self.plan.objective)
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
            qualities=compared.qualities,
        )


def _raise_when_exhausted(failure: BaseException) -> None:
    """A full disk or memory is no fault of the recipe, however a library has wrapped it: the next one would end likewise."""
    if disk_is_full(failure) or memory_is_full(failure):
        raise failure


def _facts(**kinds: Examples) -> dict[str, Any]:
    """What the report tells of the data."""
    return {
        name: {"examples": len(found), "labelled": found.is_labelled, "sha256": found.digest} for name, found in kinds.items() if len(found)
    }


def execute(
    plan: Plan,
    original: Path,
    signature: Signature,
    scratch: Path,
    kept_steps: Path,
    progress: Progress,
    deadline: float | None = None,
    remembered: Remembered = NOTHING,
    teacher_remembered: Remembered = NOTHING,
) -> Execution:
    """Carries out every recipe, measures all in one interleaved run, judges each and chooses.

    `original` is a model folder described by `signature`; `scratch` exists and is emptied of what this made; `kept_steps`
    holds finished steps across jobs and may be shared by several; `deadline` is of time.monotonic; `remembered` spares
    what earlier jobs found out about the original, `teacher_remembered` about the plan's teacher. Blocks for minutes; may be
    killed at any instant. Raises ValueError for recipes or a metric that do not fit the model, BadModel for an original that does
    not run, NotEnoughData without evaluation examples or where examples do not fit the model, BudgetExceeded when time ran out
    before a candidate was made. A recipe that cannot be carried out is a candidate with the verdict INFEASIBLE.
    """
    validate_recipes(plan.recipes, signature, plan.kinds)
    evaluation, calibration, training = (job_data.read(found, signature) for found in (plan.evaluation, plan.calibration, plan.training))
    if not len(evaluation):
        raise NotEnoughData("evaluation: there are no examples, and nothing is published unmeasured")
    job_data.check_disjoint(evaluation, calibration=calibration, training=training)
    metric = metric_of(signature.task, plan.metric, labelled=evaluation.is_labelled)
    source = Model(original.resolve(), signature)
    kept = KeptSteps(kept_steps)
    teacher = Model(plan.teacher.folder, plan.teacher.signature) if plan.teacher else source
    taught = teacher_remembered if plan.teacher else remembered
    materials = Materials(teacher, calibration, training, plan.seed, plan.threads, remembered, taught)
    steps = Steps(materials, kept, History(kept_steps.resolve() / HISTORY), scratch.resolve())
    run = _Run(plan, source, steps, progress, _make_until(plan, deadline), deadline)
    run.make_all()
    with Comparison(source, evaluation, threads=plan.threads, seed=plan.seed, remembered=remembered) as comparison:
        run.compare_all(comparison)
        timed, measured = run.measure_all(comparison)
    progress("concluding", 1.0, "every candidate was measured")
    candidates = run.conclude(metric, timed, measured)
    chosen = gates.choose(candidates, plan.objective)
    report = Report(
        original=measured[""],
        candidates=candidates,
        chosen=chosen,
        environment=describe(plan.threads),
        metric=metric,
        data=_facts(evaluation=evaluation, calibration=calibration, training=training),
    )
    model = run.made[chosen].model if chosen else None
    return Execution(report, model.folder if model else None, model.signature if model else None)


def _make_until(plan: Plan, deadline: float | None) -> float:
    """When making candidates ends, so that there is time to measure them."""
    if deadline is None:
        return float("inf")
    left = max(0.0, deadline - time.monotonic())
    return deadline - min(2 * plan.evaluation_seconds, _MOST_MEASURING * left)
