"""What surrounds a report: the job that it tells of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from services.optimization.jobs.job import Job
from services.optimization.recipe import Gates, Objective
from services.optimization.spec import Spec

Points = Sequence[tuple[float, float]]  # (step, value)


@dataclass(frozen=True)
class Story:
    """`source` and `published` are references NAME@VERSION, the latter "" when nothing was published; `state` as `jobs.State` names it.

    `curves` are those of the job's events that belong to no candidate.
    """

    job_id: str
    source: str
    created: datetime
    published: str = ""
    state: str = ""
    failure: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    objective: Objective = Objective.THROUGHPUT
    gates: Gates = field(default_factory=Gates)
    seed: int = 0
    curves: Mapping[str, Points] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, spec: Spec) -> Self:
        return cls(
            job_id=job.id,
            source=job.source,
            created=job.created,
            published=job.published,
            state=job.state,
            failure=job.failure_message,
            started=job.started,
            ended=job.ended,
            objective=spec.objective,
            gates=spec.gates,
            seed=spec.seed,
        )
