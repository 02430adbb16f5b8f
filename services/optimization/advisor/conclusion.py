"""What a search comes to once its finalists were measured: which is served and published, what it reaches, and what it is worth."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.optimization.advisor.advice import Advice
from services.optimization.advisor.pricing import measured
from services.optimization.advisor.seeking import Seeker
from services.optimization.advisor.serving_stage import ServingStage
from services.optimization.advisor.targets import fitting, missed
from services.optimization.advisor.value import worth
from services.optimization.evaluation import gates
from services.optimization.evaluation.metrics import Metric
from services.optimization.recipe import Objective
from services.optimization.report import Candidate
from services.optimization.techniques import Model


@dataclass(frozen=True)
class Conclusion:
    """Of one job; `begun` is when it was, of time.monotonic."""

    seeker: Seeker
    stage: ServingStage
    metric: Metric
    objective: Objective
    seed: int
    begun: float

    def draw(
        self, advice: Advice, candidates: Sequence[Candidate], model_of: Callable[[str], Model], seconds: float, say: Callable[[str], None]
    ) -> tuple[Advice, str]:
        """The whole advice, and the name of what is published; "" for nothing. Serving takes about so many seconds, and blocks."""
        if advice.precisions:
            speedups = {found.name: found.speedup for found in candidates if found.speedup is not None}
            advice = advice.model_copy(update={"precisions": self.seeker.precisions(advice.goal, advice.stopped_because, speedups)})
        fit = fitting(self.stage.goal.resolved, candidates)
        chosen = gates.choose(fit, self.objective) or gates.choose(candidates, self.objective)
        if chosen:
            candidate = next(found for found in candidates if found.name == chosen)
            advice = self._served(advice, candidate, model_of(chosen), seconds, say)
        chosen = "" if advice.missed else chosen
        return advice.model_copy(update={"is_target_met": bool(chosen)}), chosen

    def _served(self, advice: Advice, candidate: Candidate, model: Model, seconds: float, say: Callable[[str], None]) -> Advice:
        """With what serving measured, whether that meets the targets, and what it is worth."""
        if candidate.measurement is None:
            raise ValueError(f"{candidate.name} is accepted and unmeasured")
        served = self.stage.whole(model, seconds, say)
        priced = measured(served, candidate, self.metric, time.monotonic() - self.begun) if served else None
        economics = self.stage.goal.economics
        return advice.model_copy(
            update={
                "served": served,
                "serving_note": "" if served else self.stage.note,
                "missed": missed(self.stage.goal.resolved, candidate.measurement, candidate.speedup, served, self.stage.note),
                "measured": priced,
                "worth": worth(economics, priced, seed=self.seed) if economics and priced else None,
            }
        )
