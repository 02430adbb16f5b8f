"""A job's final measurements as trials of the ladder: they were longer than a search's, also of recipes that a user named."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from services.optimization.advisor.anatomy import anatomy_of
from services.optimization.advisor.ladder import Costs, ladder
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.environment import cpu_features
from services.optimization.estimating import PlannedStep
from services.optimization.evaluation.metrics import Metric
from services.optimization.evaluation.quality import loss_of
from services.optimization.recipe import Kinds, Step, parse_parameters
from services.optimization.report import Candidate, Interval, Verdict
from services.optimization.techniques import Model, find


def final_trials(original: Model, kinds: Kinds, metric: Metric, candidates: Iterable[Candidate]) -> Iterator[Trial]:
    """Of the candidates whose steps are those of a rung: what another recipe is made of nobody knows."""
    known = _by_steps(original, kinds)
    for candidate in candidates:
        rung = known.get(_key(candidate.steps))
        if rung is not None and candidate.speedup is not None:
            yield Trial(
                rung,
                candidate.speedup,
                candidate.size_ratio,
                _loss(candidate, metric),
                candidate.verdict is Verdict.ACCEPT,
                candidate.reason,
                candidate.optimization_seconds,
            )


def _by_steps(original: Model, kinds: Kinds) -> dict[str, Rung]:
    found = ladder(original.signature, anatomy_of(original.folder), kinds, cpu_features(), Costs(_unpriced, 0.0, 0))
    return {_key(rung.steps): rung for rung in found.rungs if not rung.is_shape}


def _key(steps: Sequence[Step]) -> str:
    """Equal for what is carried out equally, whichever parameters were left to their defaults."""
    return repr([(step.technique, _parameters(step)) for step in steps])


def _parameters(step: Step) -> dict[str, Any]:
    return parse_parameters(find(step.technique), step, "step").model_dump(mode="json")


def _unpriced(steps: Sequence[Step]) -> Iterator[PlannedStep]:
    """Nothing is planned, so that no kept step is looked for: that would hold it for this job."""
    for step in steps:
        technique = find(step.technique)
        source = next(iter(technique.source_formats))
        yield PlannedStep(step.technique, step.parameters, source, technique.target_of(source), 0.0, "unpriced")


def _loss(candidate: Candidate, metric: Metric) -> Interval | None:
    """As a search's trial has it: of the metric, or of the fidelity where that is the metric."""
    quality = next((found for found in candidate.qualities if found.metric is metric), None)
    if quality is not None:
        return loss_of(quality)
    found = candidate.fidelity
    return Interval(estimate=1 - found.estimate, low=1 - found.high, high=1 - found.low) if found is not None else None
