"""Jobs and their events as rows: what a transaction of the store is made of."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sql

from services.optimization.jobs.job import Event, Job, Lease, Result, State, Told, advance
from services.optimization.jobs.schema import EVENTS, JOBS

WRITES = "hone_writes"  # execution option of connections that change something
_LONGEST_STAGE = 128
_BRIEF = tuple(column for column in JOBS.c if column.name not in ("spec", "report"))


class UnknownJob(LookupError):
    """No such job."""


class LeaseLost(Exception):
    """Another replica runs the job now, or it has ended: nothing may be told or concluded under this lease any more."""


def find(connection: sql.Connection, condition: sql.ColumnElement[bool], *, brief: bool = False) -> Job | None:
    """The job of which the condition holds, locked until the end of a writing transaction; `brief` leaves out spec and report."""
    query = sql.select(*(_BRIEF if brief else JOBS.c)).where(condition)
    if connection.get_execution_options().get(WRITES):
        query = query.with_for_update()  # where rows are locked; SQLite has locked the whole file
    row = connection.execute(query).mappings().first()
    return job_of(row) if row is not None else None


def known(connection: sql.Connection, job_id: str, *, brief: bool = False) -> Job:
    """Raises UnknownJob."""
    found = find(connection, JOBS.c.id == plain(job_id), brief=brief)
    if found is None:
        raise UnknownJob(f"no job {job_id[:80]!r}")
    return found


def fenced(connection: sql.Connection, job_id: str, lease: Lease | None, *, brief: bool = False) -> Job:
    """The job, if it is held by the lease where one is given. Raises UnknownJob, LeaseLost."""
    job = known(connection, job_id, brief=brief)
    if lease is not None and job.lease != lease:
        raise LeaseLost(f"job {job_id} is {job.state} in attempt {job.attempt}, not in attempt {lease.attempt} of this replica")
    return job


def move(connection: sql.Connection, job: Job, state: State, message: str, result: Result | None = None) -> Job:
    """The job in its next state, with its event. Raises IllegalTransition."""
    now = datetime.now(UTC)
    moved = advance(job, state, now, result and replace(result, failure_message=plain(result.failure_message)))
    return rewrite(connection, job, moved, Told(state.value.lower(), fraction(connection, moved), message), now)


def rewrite(connection: sql.Connection, before: Job, after: Job, told: Told, now: datetime) -> Job:
    """Writes the columns that differ: a spec or a report may be megabytes and is not written again with every step."""
    old, new = row_of(before), row_of(after)
    changes = {name: value for name, value in new.items() if value != old[name]}
    connection.execute(JOBS.update().where(JOBS.c.id == before.id).values(changes))
    return append(connection, after, told, now)


def append(connection: sql.Connection, job: Job, told: Told, now: datetime) -> Job:
    """Adds an event; the job with its number."""
    sequence = job.last_sequence + 1
    connection.execute(JOBS.update().where(JOBS.c.id == job.id).values(last_sequence=sequence))
    row = {
        "job_id": job.id,
        "sequence": sequence,
        "time": now,
        "state": job.state.value,
        "stage": plain(told.stage)[:_LONGEST_STAGE],
        "fraction": 1.0 if job.has_ended else told.fraction,
        "message": plain(told.message),
        "step": told.step,
        "metrics": json.dumps(dict(told.metrics)),
    }
    connection.execute(EVENTS.insert().values(row))
    return replace(job, last_sequence=sequence)


def fraction(connection: sql.Connection, job: Job) -> float:
    """That the job's last event told."""
    query = sql.select(EVENTS.c.fraction).where(EVENTS.c.job_id == job.id, EVENTS.c.sequence == job.last_sequence)
    return float(connection.execute(query).scalar() or 0.0)


def plain(text: str) -> str:
    """Without what a database refuses in a text: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def row_of(job: Job) -> dict[str, Any]:
    return {**asdict(job), "state": job.state.value}


def job_of(row: sql.RowMapping) -> Job:
    fields = {"spec": "", "report": ""} | {name: value for name, value in row.items() if name != "lease_until"}
    return Job(**{**fields, "state": State(fields["state"]), **{name: aware(fields[name]) for name in ("created", "started", "ended")}})


def event_of(row: sql.RowMapping) -> Event:
    fields = {name: value for name, value in row.items() if name != "job_id"}
    parsed = {"state": State(fields["state"]), "time": aware(fields["time"]), "metrics": json.loads(fields["metrics"])}
    return Event(**{**fields, **parsed})


def aware(moment: datetime | None) -> Any:
    """SQLite forgets the zone; everything was written in UTC. A server may answer in its own zone."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
