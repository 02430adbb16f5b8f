"""A search carried out: each recipe made, compared and timed in turns with the original, until the goal is met."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from services.optimization.advisor.advice import Advice, Skipped, Tried
from services.optimization.advisor.anatomy import anatomy_of
from services.optimization.advisor.experience import Experience
from services.optimization.advisor.front import front
from services.optimization.advisor.goal import Goal, wanted
from services.optimization.advisor.ladder import Costs, ladder
from services.optimization.advisor.observation import NOWHERE
from services.optimization.advisor.precisions import Finding, Limits, findings, is_worth_trying
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import Search, Stop
from services.optimization.advisor.serving_check import ServingCheck
from services.optimization.environment import cpu_features
from services.optimization.estimating import Estimator
from services.optimization.evaluation import gates as judging
from services.optimization.evaluation.comparison import Compared, Comparison
from services.optimization.evaluation.gates import Evidence, Judgement
from services.optimization.evaluation.metrics import Metric
from services.optimization.evaluation.quality import loss_of
from services.optimization.folder import size_bytes
from services.optimization.making import INFEASIBLE, Made, Maker, raise_when_exhausted
from services.optimization.recipe import Gates, Kinds, Objective, Recipe
from services.optimization.report import Interval, Verdict
from services.optimization.techniques import Model

TRIAL_SHARE = 1 / 6  # of the time that the final run's measurement takes: two models instead of several
QUICK_SHARE = 2 / 3  # of that time, for a run through the service that only tells whether a candidate is fast enough
MOST_FINALISTS = 4  # that are measured together in the end


@dataclass(frozen=True)
class Judge:
    """What a trial's figures are held against: the gates of quality alone, since the search knows what gain it wants."""

    metric: Metric
    gates: Gates
    objective: Objective
    seed: int
    trial_seconds: float

    def loss(self, compared: Compared) -> Interval:
        """Of the metric; of the cosine or the agreement with the original where there are no labels."""
        quality = compared.quality(self.metric)
        if quality is not None:
            return loss_of(quality)
        found = compared.fidelity.interval
        return Interval(estimate=1 - found.estimate, low=1 - found.high, high=1 - found.low)

    def verdict(self, compared: Compared, speedup: Interval, size_ratio: float) -> Judgement:
        fidelity = compared.fidelity
        evidence = Evidence(fidelity.interval, fidelity.examples, speedup, size_ratio, compared.quality(self.metric), compared.is_finite)
        return judging.judge(evidence, self.gates.model_copy(update={"min_gain": 0}).for_metric(self.metric), self.objective)


def search_for(
    goal: Goal,
    metric: Metric,
    gates: Gates,
    kinds: Kinds,
    estimator: Estimator,
    row_seconds: float,
    experience: Experience | None = None,
    evaluation_seconds: float = 0.0,
) -> Search:
    """What this machine may try on the estimator's original, which answers one example in `row_seconds`; `gates` are those `for_metric`."""
    original = estimator.original
    costs = Costs(estimator.planned, row_seconds, estimator.training_rows)
    found = ladder(original.signature, anatomy_of(original.folder), kinds, cpu_features(), costs)
    worth_trying = [rung for rung in found.rungs if is_worth_trying(rung.steps, goal.preset.objective, cpu_features())]
    rungs = [rung for rung in worth_trying if rung.is_precision or not goal.precisions_only]
    sought = wanted(goal, size_bytes(original.folder), gates)
    evidence, here = (experience.evidence(), experience.here) if experience else ([], NOWHERE)
    counted = estimator.examples if metric in (Metric.ACCURACY, Metric.MACRO_F1) else 0
    return Search(
        rungs,
        sought,
        found.priors,
        exhaustive=goal.precisions_only,
        evidence=evidence,
        here=here,
        counted=counted,
        serving_seconds=QUICK_SHARE * evaluation_seconds,
    )


class Seeker:
    """Carries out what a Search asks for. `tell` takes the share of the time that is over and a line for the log.

    `serve` measures a model's speed-up through the service, in a short run; None where that cannot be tried. `keep` takes each trial,
    for later searches.
    """

    def __init__(
        self,
        search: Search,
        maker: Maker,
        comparison: Comparison,
        judge: Judge,
        tell: Callable[[float, str], None],
        serve: Callable[[Model], Interval | None],
        keep: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        self._search, self._maker, self._comparison, self._judge = search, maker, comparison, judge
        self._tell, self._serve, self._keep = tell, serve, keep
        self._tried: list[Tried] = []

    def seek(self, goal: Goal, told: Callable[[Advice], None]) -> Advice:
        """`told` takes what is known after each trial: who cancels the job keeps that. Raises what exhausts the machine."""
        begun, whole = time.monotonic(), self._maker.seconds_left

        def share() -> float:
            return (time.monotonic() - begun) / max(whole, 1e-9)

        def serve(rung: Rung) -> Interval | None:
            try:
                return self._serve(self._made(rung, share()).model)
            except INFEASIBLE as failure:
                raise_when_exhausted(failure)
                return None

        check = ServingCheck(self._search, serve, lambda line: self._tell(share(), line))
        while isinstance(rung := self._search.next(self._maker.seconds_left), Rung):
            outlook = next((found for found in self._search.outlooks() if rung.name in (found.rung.name, found.rung.shape)), None)
            expected = outlook.expected.speedup.median if outlook else 0.0
            likely = f", expected to be {expected:.1f} times as fast" if expected else ""
            self._tell(share(), f"trying {rung.name}{likely}")
            trial = self.attempt(rung, share())
            self._search.learn(trial)
            self._keep(trial)
            self._tried.append(Tried.of(trial, expected))
            told(self._advice(goal, Stop("the search was cut short"), begun))
            check.after(trial)
        return self._advice(goal, rung, begun)

    def finalists(self) -> tuple[Recipe, ...]:
        """What the final run measures: the best of the front; where nothing was accepted, the nearest, so that the report says why."""
        found = front(self._search.trials)
        whole = [trial for trial in self._search.trials if not trial.rung.is_shape and trial.speedup is not None]
        chosen = found or whole
        best = sorted(chosen, key=self._search.wanted.merit, reverse=True)[:MOST_FINALISTS]
        return tuple(Recipe(name=trial.rung.name, steps=trial.rung.steps) for trial in best)

    def precisions(self, goal: Goal, stopped_because: str, speedups: Mapping[str, Interval] = MappingProxyType({})) -> tuple[Finding, ...]:
        """Which qualify; `speedups` by recipe are the final run's, where it measured one again: what it answers is the same."""
        trials = [replace(each, speedup=speedups.get(each.rung.name, each.speedup)) for each in self._search.trials]
        limits = Limits(goal.preset.objective, goal.resolved, self._comparison.original_bytes)
        return findings(trials, self._search.left, limits, cpu_features(), stopped_because)

    def _advice(self, goal: Goal, stop: Stop, begun: float) -> Advice:
        return Advice(
            goal=goal,
            metric=self._judge.metric,
            trials=tuple(self._tried),
            stopped_because=stop.reason,
            is_target_met=stop.is_reached,
            front=tuple(trial.rung.name for trial in front(self._search.trials)),
            skipped=tuple(map(Skipped.of, self._search.skipped())),
            precisions=self.precisions(goal, stop.reason) if goal.precisions_only else (),
            seconds=time.monotonic() - begun,
        )

    def attempt(self, rung: Rung, share: float = 0.0) -> Trial:
        """Makes it and measures it, `share` of the search's time being over. Raises what exhausts the machine."""
        begun = time.monotonic()
        try:
            trial = self._measured(rung, self._made(rung, share))
        except INFEASIBLE as failure:
            raise_when_exhausted(failure)
            trial = Trial(rung, reason=str(failure))
        return replace(trial, seconds=time.monotonic() - begun)

    def _made(self, rung: Rung, share: float) -> Made:
        return self._maker.make(Recipe(name=rung.name, steps=rung.steps), share, 0.0)

    def _measured(self, rung: Rung, made: Made) -> Trial:
        compared = self._comparison.admit(rung.name, made.model)
        try:
            timed = self._comparison.measure_latency(self._judge.trial_seconds)
        finally:
            self._comparison.release(rung.name)
        speedup = timed[rung.name].speedup_over(timed[""], self._judge.seed)
        size_ratio = self._comparison.original_bytes / max(1, size_bytes(made.model.folder))
        if rung.is_shape:
            return Trial(rung, speedup, size_ratio, reason="its speed and size alone were measured")
        judgement = self._judge.verdict(compared, speedup, size_ratio)
        return Trial(rung, speedup, size_ratio, self._judge.loss(compared), judgement.verdict is Verdict.ACCEPT, judgement.reason)
