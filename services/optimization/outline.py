"""What a search would try, before it is begun."""

from dataclasses import dataclass
from pathlib import Path

from services.optimization import planning
from services.optimization.advisor.goal import gates_for
from services.optimization.advisor.search import Outlook
from services.optimization.advisor.seeking import search_for
from services.optimization.environment import cpu_features, has_bf16, has_int8_dot
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


def outline(spec: Spec, original: Model, repository: Repository, kept_steps: Path, budget_seconds: float) -> Outline:
    """`spec` has a goal and is as `planning.resolve` answered it; the data are read. Raises Refused."""
    if spec.goal is None:
        raise ValueError("a specification without a goal has nothing to search for")
    estimator = planning.estimator(spec, original, repository, kept_steps)
    metric = planning.metric(spec, original.signature, repository)
    gates, kinds = gates_for(spec.goal, spec.gates, metric).for_metric(metric), planning.kinds_of(spec)
    search = search_for(spec.goal, gates, kinds, estimator, estimator.assumed_row_seconds)
    outlooks = tuple(search.outlooks())
    return Outline(outlooks, sum(rung.seconds for rung in search.left), budget_seconds, tuple(_notes()))


def _notes() -> list[str]:
    features = cpu_features()
    told = []
    if not has_bf16(features):
        told.append("this processor has no bfloat16 products: BF16 would be emulated and is not tried")
    if not has_int8_dot(features):
        told.append(
            "this processor sums 8-bit products without VNNI, AMX or dot-product instructions: INT8 gains less than its rule of thumb"
        )
    return told
