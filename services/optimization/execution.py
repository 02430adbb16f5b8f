"""One job's work: carry out recipes, measure them beside the original, judge, choose."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.optimization import data as job_data
from services.optimization.advisor.advice import Advice
from services.optimization.advisor.conclusion import Conclusion
from services.optimization.advisor.experience import EXPERIENCE, Experience, context_of
from services.optimization.advisor.finals import final_trials
from services.optimization.advisor.seeking import QUICK_SHARE, TRIAL_SHARE, Judge, Seeker, search_for
from services.optimization.advisor.serving_stage import ServingStage
from services.optimization.environment import describe
from services.optimization.estimating import Estimator
from services.optimization.evaluation import gates
from services.optimization.evaluation.comparison import Compared, Comparison, Timed
from services.optimization.evaluation.gates import Evidence
from services.optimization.evaluation.metrics import Metric, metric_of
from services.optimization.examples import Examples
from services.optimization.failures import BudgetExceeded, NotEnoughData
from services.optimization.history import HISTORY, History
from services.optimization.jobs.job import NO_METRICS
from services.optimization.kept import KeptSteps
from services.optimization.making import INFEASIBLE, Made, Maker, Progress, raise_when_exhausted
from services.optimization.plan import Plan
from services.optimization.recipe import Gates, Recipe, validate_recipes
from services.optimization.remembered import NOTHING, Remembered
from services.optimization.report import Candidate, Interval, Measurement, Report, Verdict
from services.optimization.steps import Materials, Steps
from services.optimization.techniques import Model
from services.repository.manifest import Signature

_OPTIMIZED, _COMPARED, _TIMED = 0.5, 0.6, 0.9  # fractions of the whole at which each stage ends
_SOUGHT = 0.49  # of a job with a goal: making what the search has made already takes no time
_UNSERVED = 0.85  # of a job with a goal: the serving stage comes then
_SERVING_SHARE = 3.0  # of the time for measuring latency, that the serving of the chosen one takes: settings are searched too
_MOST_MEASURING = 0.5  # of a job's time that is kept back for measuring
_LEAST_LATENCY_S = 2.0  # that latency is measured for, however late it is


@dataclass(frozen=True)
class Execution:
    """The report and, when a candidate was accepted, the folder of the chosen one (below kept_steps: copy it, do not move it)."""

    report: Report
    chosen_folder: Path | None
    chosen_signature: Signature | None
    serving: Mapping[str, Any] = field(default_factory=dict)  # settings that the chosen one is to be served with


@dataclass
class _Run:
    """One execution in progress: what was made, what was compared, what proved infeasible."""

    plan: Plan
    maker: Maker
    progress: Progress
    deadline: float | None  # of time.monotonic
    recipes: tuple[Recipe, ...]
    made: dict[str, Made] = field(default_factory=dict)
    compared: dict[str, Compared] = field(default_factory=dict)
    infeasible: dict[str, str] = field(default_factory=dict)

    def make_all(self, start: float = 0.0) -> None:
        """Progress begins at `start`. Raises BudgetExceeded when the time was over before anything of what there is to make was made."""
        for index, recipe in enumerate(self.recipes):
            width = (_OPTIMIZED - start) / len(self.recipes)
            begin = start + width * index
            try:
                self.made[recipe.name] = self.maker.make(recipe, begin, width)
            except INFEASIBLE as failure:
                raise_when_exhausted(failure)
                self.infeasible[recipe.name] = str(failure)
        if self.recipes and not self.made and self.maker.is_late:  # a search that found nothing to make says why itself
            raise BudgetExceeded("the job's time was over before a candidate was made")

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
                raise_when_exhausted(failure)
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
                raise_when_exhausted(failure)
                self.infeasible[name] = str(failure)
        return timed, measured

    def _latency_seconds(self) -> float:
        """At most half of the time that is left, so that a job with little of it is not ended as stuck; load times take the rest."""
        if self.deadline is None:
            return self.plan.evaluation_seconds
        left = self.deadline - time.monotonic()
        return min(self.plan.evaluation_seconds, max(_LEAST_LATENCY_S, left / (3 if self.plan.goal else 2)))

    def serving_seconds(self) -> float:
        """That serving the chosen one may take."""
        seconds = _SERVING_SHARE * self.plan.evaluation_seconds
        return seconds if self.deadline is None else max(0.0, min(seconds, self.deadline - time.monotonic()))

    def conclude(self, metric: Metric, timed: Mapping[str, Timed], measured: Mapping[str, Measurement]) -> tuple[Candidate, ...]:
        held = self.plan.gates.for_metric(metric)
        return tuple(self._candidate(recipe, metric, held, timed, measured) for recipe in self.recipes)

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
    told: Callable[[Advice], None] = lambda advice: None,
) -> Execution:
    """Carries out every recipe, measures all in one interleaved run, judges each and chooses.

    `original` is a model folder described by `signature`; `scratch` exists and is emptied of what this made; `kept_steps`
    holds finished steps across jobs and may be shared by several; `deadline` is of time.monotonic; `remembered` spares
    what earlier jobs found out about the original, `teacher_remembered` about the plan's teacher; `told` takes what a search
    knows after each trial. Blocks for minutes; may be
    killed at any instant. Raises ValueError for recipes or a metric that do not fit the model, BadModel for an original that does
    not run, NotEnoughData without evaluation examples or where examples do not fit the model, BudgetExceeded when time ran out
    before a candidate was made. A recipe that cannot be carried out is a candidate with the verdict INFEASIBLE.
    """
    begun = time.monotonic()
    validate_recipes(plan.recipes, signature, plan.kinds)
    evaluation, calibration, training = (job_data.read(found, signature) for found in (plan.evaluation, plan.calibration, plan.training))
    if not len(evaluation):
        raise NotEnoughData("evaluation: there are no examples, and nothing is published unmeasured")
    job_data.check_disjoint(evaluation, calibration=calibration, training=training)
    metric = metric_of(signature.task, plan.metric, labelled=evaluation.is_labelled)
    source = Model(original.resolve(), signature)
    kept, history = KeptSteps(kept_steps), History(kept_steps.resolve() / HISTORY)
    teacher = Model(plan.teacher.folder, plan.teacher.signature) if plan.teacher else source
    taught = teacher_remembered if plan.teacher else remembered
    materials = Materials(teacher, calibration, training, plan.seed, plan.threads, remembered, taught)
    steps = Steps(materials, kept, history, scratch.resolve())
    estimator = Estimator(source, materials, steps, history, evaluation)
    experience = Experience(kept_steps.resolve() / EXPERIENCE, signature, context_of(estimator, metric, plan.threads))
    if plan.goal is not None:
        progress = _first_part(progress)
    maker = Maker(source, steps, progress, _make_until(plan, deadline))
    run = _Run(plan, maker, progress, deadline, plan.recipes)
    stage = ServingStage(source, evaluation, plan.goal, scratch.resolve(), plan.seed) if plan.goal else None
    if stage is None:
        run.make_all()
    with Comparison(source, evaluation, threads=plan.threads, seed=plan.seed, remembered=remembered) as comparison:
        seeker = _seeker(plan, metric, maker, comparison, estimator, stage, experience) if stage else None
        advice = seeker.seek(stage.goal, told) if seeker and stage else None
        if seeker is not None:
            run.recipes = seeker.finalists()
            run.make_all(start=_SOUGHT)
        run.compare_all(comparison)
        timed, figures = run.measure_all(comparison)
    candidates = run.conclude(metric, timed, figures)
    experience.add_all(final_trials(source, plan.kinds, metric, candidates))
    if stage and seeker and advice:
        ending = Conclusion(seeker, stage, metric, plan.objective, plan.seed, begun)
        advice, chosen = ending.draw(
            advice, candidates, lambda name: run.made[name].model, run.serving_seconds(), lambda line: progress("serving", 1.0, line)
        )
    else:
        chosen = gates.choose(candidates, plan.objective)
    progress("concluding", 1.0, "every candidate was measured")
    report = Report(
        original=figures[""],
        candidates=candidates,
        chosen=chosen,
        environment=describe(plan.threads),
        metric=metric,
        data=_facts(evaluation=evaluation, calibration=calibration, training=training),
        advice=advice.model_dump(mode="json") if advice else {},
    )
    model = run.made[chosen].model if chosen else None
    serving = advice.served.advice.settings if advice and advice.served else {}
    return Execution(report, model.folder if model else None, model.signature if model else None, serving)


def _first_part(progress: Progress) -> Progress:
    """What comes before the serving stage."""

    def told(stage: str, fraction: float, message: str, *, step: int = 0, metrics: Mapping[str, float] = NO_METRICS) -> None:
        part = 1.0 if stage == "concluding" else _UNSERVED
        progress(stage, fraction * part, message, step=step, metrics=metrics)

    return told


def _seeker(
    plan: Plan, metric: Metric, maker: Maker, comparison: Comparison, estimator: Estimator, stage: ServingStage, experience: Experience
) -> Seeker:
    held, seconds = plan.gates.for_metric(metric), plan.evaluation_seconds
    search = search_for(stage.goal, metric, held, plan.kinds, estimator, comparison.row_seconds(), experience, seconds)

    def tell(share: float, message: str) -> None:
        maker.progress("searching", _SOUGHT * min(share, 1.0), message)

    judge = Judge(metric, plan.gates, plan.objective, plan.seed, seconds * TRIAL_SHARE)

    def serve(model: Model) -> Interval | None:
        """None without the time for it."""
        left, wanted = maker.seconds_left, seconds * QUICK_SHARE
        return stage.quick(model, min(left, wanted)) if left > wanted / 2 else None

    return Seeker(search, maker, comparison, judge, tell, serve, experience.add)


def _make_until(plan: Plan, deadline: float | None) -> float:
    """When making candidates ends, so that there is time to measure them."""
    if deadline is None:
        return float("inf")
    left = max(0.0, deadline - time.monotonic())
    later = (2 + (_SERVING_SHARE if plan.goal else 0)) * plan.evaluation_seconds
    return deadline - min(later, _MOST_MEASURING * left)
