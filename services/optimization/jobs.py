"""A job's life as a pure state machine: what may follow what, and what a job is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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


ENDED = frozenset({State.SUCCEEDED, State.REJECTED, State.FAILED, State.CANCELLED})

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

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class Result:
    """What a transition adds to a job."""

    failure_class: str = ""
    failure_message: str = ""
    report: str = ""
    published: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's story; `sequence` starts at 1 and has no gaps."""

    sequence: int
    time: datetime
    state: State
    stage: str
    fraction: float
    message: str


def advance(job: Job, state: State, now: datetime, result: Result | None = None) -> Job:
    """The job in its next state. Raises IllegalTransition."""
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
    )
