"""A report with advice, and what every part of the page asks of it."""

from dataclasses import dataclass, replace

from services.optimization.advisor.advice import Advice, Tried
from services.optimization.advisor.goal import gates_for
from services.optimization.evaluation import gates
from services.optimization.evaluation.metrics import Metric
from services.optimization.evaluation.quality import loss_of
from services.optimization.page import wording
from services.optimization.page.story import Story
from services.optimization.recipe import Objective
from services.optimization.report import Candidate, Interval, Report


@dataclass(frozen=True)
class Facts:
    """`story` with the goal's own objective and gates.

    `best` is the candidate that was held to the targets: the chosen one, or the one that would be if it missed none; None where no
    candidate passed its gates, and of a job that did not come to its end.
    """

    story: Story
    report: Report
    advice: Advice
    best: Candidate | None

    @property
    def is_published(self) -> bool:
        return bool(self.report.chosen and self.story.published)

    @property
    def max_loss(self) -> float:
        """In units of the metric: 0.01 is one point, or 1 % of a perplexity."""
        held = self.story.gates.for_metric(self.report.metric)
        return held.max_loss if held.max_loss is not None else 1 - (held.min_fidelity or 0)

    @property
    def best_trial(self) -> Tried | None:
        """Of the accepted, by the goal's objective; None where none was."""
        accepted = [trial for trial in self.advice.trials if trial.accepted and trial.speedup is not None]
        return max(accepted, key=self._gain, default=None)

    @property
    def nearest_trial(self) -> Tried | None:
        """Where none was accepted: of those that were judged, the one that lost least."""
        judged = [trial for trial in self.advice.trials if trial.loss is not None]
        return min(judged, key=lambda trial: trial.loss.estimate if trial.loss else 0.0, default=None)

    def _gain(self, trial: Tried) -> float:
        if self.story.objective is Objective.SIZE:
            return trial.size_ratio
        return trial.speedup.estimate if trial.speedup else 0.0


def facts_of(story: Story, report: Report) -> Facts | None:
    """None of a job that had no goal."""
    if not report.advice:
        return None
    advice = Advice.model_validate(report.advice)
    goal = advice.goal
    story = replace(story, objective=goal.preset.objective, gates=gates_for(goal, story.gates, report.metric))
    # What misses a target is not chosen, but was: only one candidate is held to the targets.
    measured = [found for found in report.candidates if found.speedup and found.measurement and found.measurement.workloads]
    name = report.chosen or gates.choose(measured, story.objective)
    return Facts(story, report, advice, next((found for found in report.candidates if name and found.name == name), None))


def loss(candidate: Candidate, metric: Metric) -> Interval | None:
    """In units of the metric, positive is worse: of the fidelity where there are no labels; None where it was not measured."""
    quality = wording.quality_of(candidate, metric)
    if quality is not None:
        return loss_of(quality)
    found = candidate.fidelity if metric is Metric.FIDELITY else None
    return Interval(estimate=1 - found.estimate, low=1 - found.high, high=1 - found.low) if found else None
