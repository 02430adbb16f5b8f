"""A job's life as a pure state machine: what may follow what, and what a job is."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """The contract's job states, by the names it gives them."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"


NO_METRICS: Mapping[str, float] = MappingProxyType({})
ENDED = frozenset({State.SUCCEEDED, State.REJECTED, State.FAILED, State.CANCELLED})
HELD = frozenset({State.RUNNING, State.CANCELLING})  # by the replica that runs them

# RUNNING goes back to QUEUED when the service, not the job, was interrupted: finished steps are kept, so it goes on from there.
FOLLOWS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.FAILED}),
        State.RUNNING: frozenset({State.SUCCEEDED, State.REJECTED, State.FAILED, State.CANCELLING, State.QUEUED}),
        # A job may end by itself before the cancel reaches it, but what was cancelled is never published.
        State.CANCELLING: frozenset({State.CANCELLED, State.FAILED}),
        State.SUCCEEDED: frozenset(),
        State.REJECTED: frozenset(),
        State.FAILED: frozenset(),
        State.CANCELLED: frozenset(),
    }
)


class IllegalTransition(Exception):
    """A state that cannot follow another."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. `spec` and `report` are JSON; `fingerprint` tells whether two requests ask for the same."""

    id: str
    request_id: str
    fingerprint: str
    spec: str
    source: str  # NAME@VERSION
    created: datetime
    state: State = State.QUEUED
    started: datetime | None = None
    ended: datetime | None = None
    failure_class: str = ""
    failure_message: str = ""
    report: str = ""
    published: str = ""
    last_sequence: int = 0
    owner: str = ""  # the replica that runs it
    attempt: int = 0  # grows with each start

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def lease(self) -> "Lease":
        return Lease(self.id, self.owner, self.attempt)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run a job, of one replica for one attempt. Who holds an older one changes nothing any more."""

    job_id: str
    owner: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a transition adds to a job."""

    failure_class: str = ""
    failure_message: str = ""
    report: str = ""
    published: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of a job's progress, before it is an event."""

    stage: str
    fraction: float
    message: str
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's story; `sequence` starts at 1 and has no gaps.

    One with `metrics` is a point of each curve that they name, at `step` of the training; its message may be empty.
    """

    sequence: int
    time: datetime
    state: State
    stage: str
    fraction: float
    message: str
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


def advance(job: Job, state: State, now: datetime, result: Result | None = None) -> Job:
    """The job in its next state; in any but HELD it belongs to nobody. Raises IllegalTransition."""
    if state not in FOLLOWS[job.state]:
        raise IllegalTransition(f"job {job.id} is {job.state} and cannot become {state}")
    found = result or Result()
    return replace(
        job,
        state=state,
        started=now if state is State.RUNNING else job.started,
        ended=now if state in ENDED else None,
        failure_class=found.failure_class,
        failure_message=found.failure_message,
        report=found.report or job.report,
        published=found.published,
        owner=job.owner if state in HELD else "",
    )
