"""What a search would try, before it is begun."""

from dataclasses import dataclass
from pathlib import Path

from services.optimization import planning
from services.optimization.advisor.experience import EXPERIENCE, Experience, context_of
from services.optimization.advisor.goal import gates_for
from services.optimization.advisor.precisions import notes
from services.optimization.advisor.search import Outlook
from services.optimization.advisor.seeking import search_for
from services.optimization.environment import cpu_features, gpus
from services.optimization.spec import Spec
from services.optimization.techniques import Model
from services.repository.store import Repository


@dataclass(frozen=True)
class Outline:
    """In the order that is likely now; `longest_seconds` if everything were tried."""

    trials: tuple[Outlook, ...]
    longest_seconds: float
    budget_seconds: float
    notes: tuple[str, ...]


def outline(
    spec: Spec,
    original: Model,
    repository: Repository,
    kept_steps: Path,
    *,
    budget_seconds: float,
    evaluation_seconds: float,
    threads: int,
) -> Outline:
    """`spec` has a goal and is as `planning.resolve` answered it; the data are read. Seconds and threads are the job's. Raises Refused."""
    if spec.goal is None:
        raise ValueError("a specification without a goal has nothing to search for")
    estimator = planning.estimator(spec, original, repository, kept_steps)
    metric = planning.metric(spec, original.signature, repository)
    gates, kinds = gates_for(spec.goal, spec.gates, metric).for_metric(metric), planning.kinds_of(spec)
    experience = Experience(kept_steps / EXPERIENCE, original.signature, context_of(estimator, metric, threads))
    search = search_for(spec.goal, metric, gates, kinds, estimator, estimator.assumed_row_seconds, experience, evaluation_seconds)
    outlooks = tuple(search.outlooks())
    told = notes(spec.goal.preset.objective, cpu_features(), gpus())
    return Outline(outlooks, sum(rung.seconds for rung in search.left), budget_seconds, told)
