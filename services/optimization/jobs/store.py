"""Jobs and their events in a database: SQLite by default, PostgreSQL where several replicas share one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from services.optimization.jobs import ledger, schema
from services.optimization.jobs.job import (
    HELD,
    NO_METRICS,
    Event,
    IllegalTransition,
    Job,
    Lease,
    Result,
    State,
    Told,
    advance,
)
from services.optimization.jobs.ledger import WRITES
from services.optimization.jobs.ledger import LeaseLost as LeaseLost
from services.optimization.jobs.ledger import UnknownJob as UnknownJob
from services.optimization.jobs.schema import EVENTS, JOBS


class RequestTaken(Exception):
    """The request id belongs to a job that asks for something else."""


@dataclass(frozen=True, slots=True)
class Page:
    """`token` is empty on the last page."""

    jobs: tuple[Job, ...]
    token: str


@dataclass(frozen=True, slots=True)
class Queued:
    """A waiting job without what it is about, which may be megabytes."""

    id: str
    created: datetime


@dataclass(frozen=True, slots=True)
class Held:
    """A job that a replica runs."""

    lease: Lease
    state: State


Conclude = Callable[[State, str, Result], Job]


class JobStore:
    """Every call is one transaction and blocks: call it off the event loop. Threads, processes and machines may write at once."""

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy reads it.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database cannot be opened.
            NewerSchema: a later version of the service has changed it.
        """
        self._engine = sql.create_engine(url, pool_pre_ping=True)  # a server may have been restarted since
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        if self._is_sqlite:
            sql.event.listen(self._engine, "connect", _prepare_sqlite)
            sql.event.listen(self._engine, "begin", _begin_sqlite)
        self._writes = self._engine.execution_options(**{WRITES: True})
        try:
            with self._writes.begin() as connection:
                schema.prepare(connection)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, url: str, folder: Path) -> "JobStore":
        """The database at `url`, or the embedded one in `folder` where that is empty."""
        return cls(url) if url else cls.at(folder)

    @classmethod
    def at(cls, folder: Path) -> "JobStore":
        """The embedded default: `folder/jobs.sqlite`."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{folder / 'jobs.sqlite'}")

    @property
    def is_shared(self) -> bool:
        """Whether replicas on other machines may use the same database."""
        return not self._is_sqlite

    def close(self) -> None:
        self._engine.dispose()

    # Asking for jobs

    def create(self, job: Job) -> Job:
        """Keeps a new job, or returns the one that the request made before. Raises RequestTaken."""
        try:
            with self._writes.begin() as connection:
                connection.execute(JOBS.insert().values(ledger.row_of(job)))
                return ledger.append(connection, job, Told(job.state.value.lower(), 0.0, "accepted"), datetime.now(UTC))
        except IntegrityError:
            found = self.find_request(job.request_id, job.fingerprint)
            if found is None:
                raise  # not the request but the job's id was there
            return found

    def find_request(self, request_id: str, fingerprint: str) -> Job | None:
        """The job that a request made before. Raises RequestTaken where it asked for something else then."""
        with self._engine.connect() as connection:
            found = ledger.find(connection, JOBS.c.request_id == ledger.plain(request_id))
        if found is not None and found.fingerprint != fingerprint:
            raise RequestTaken(f"request_id: {request_id!r} was used for a different job")
        return found

    def get(self, job_id: str, *, brief: bool = False) -> Job:
        """`brief` leaves out spec and report, which may be megabytes. Raises UnknownJob."""
        with self._engine.connect() as connection:
            return ledger.known(connection, job_id, brief=brief)

    def page(self, size: int, token: str = "", states: Sequence[State] = ()) -> Page:
        """Newest first. `token` is the id that the page before ended with. Raises UnknownJob for a token that is none."""
        query = JOBS.select().order_by(JOBS.c.created.desc(), JOBS.c.id.desc()).limit(size + 1)
        with self._engine.connect() as connection:
            if states:
                query = query.where(JOBS.c.state.in_([state.value for state in states]))
            if token:
                last = ledger.known(connection, token)
                query = query.where(sql.tuple_(JOBS.c.created, JOBS.c.id) < sql.tuple_(sql.literal(last.created), sql.literal(last.id)))
            found = [ledger.job_of(row) for row in connection.execute(query).mappings()]
        return Page(tuple(found[:size]), found[size - 1].id if len(found) > size else "")

    def count(self, state: State) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(sql.select(sql.func.count()).where(JOBS.c.state == state.value)).scalar_one())

    # A job's story

    def move(self, job_id: str, state: State, message: str, result: Result | None = None, lease: Lease | None = None) -> Job:
        """Takes a job to its next state and tells so in an event.

        Raises:
            UnknownJob, IllegalTransition.
            LeaseLost: it is not held by the lease that is given.
        """
        with self._writes.begin() as connection:
            return ledger.move(connection, ledger.fenced(connection, job_id, lease), state, message, result)

    @contextmanager
    def concluding(self, lease: Lease) -> Iterator[Conclude]:
        """Keeps every other replica from the job until the block ends, which is given a function that moves the job.

        For what must not be done twice, such as publishing. A database server locks the one row. SQLite would stop every
        other writer, so there the lease is checked before the block and again by the move.

        Raises:
            UnknownJob, LeaseLost.
            IllegalTransition: it does not run any more, but is being cancelled.
        """
        if self._is_sqlite:
            with self._engine.connect() as connection:
                self._running(connection, lease)
            yield lambda state, message, result: self.move(lease.job_id, state, message, result, lease)
        else:
            with self._writes.begin() as connection:
                job = self._running(connection, lease)
                yield lambda state, message, result: ledger.move(connection, job, state, message, result)

    def _running(self, connection: sql.Connection, lease: Lease) -> Job:
        job = ledger.fenced(connection, lease.job_id, lease)
        if job.state is not State.RUNNING:
            raise IllegalTransition(f"job {job.id} is {job.state}")
        return job

    def tell(
        self,
        job_id: str,
        stage: str,
        fraction: float,
        message: str,
        step: int = 0,
        metrics: Mapping[str, float] = NO_METRICS,
        lease: Lease | None = None,
    ) -> None:
        """Adds an event; `fraction` never falls below an earlier one. Raises UnknownJob, LeaseLost."""
        with self._writes.begin() as connection:
            job = ledger.fenced(connection, job_id, lease, brief=True)
            reached = max(fraction, ledger.fraction(connection, job))
            ledger.append(connection, job, Told(stage, reached, message, step, metrics), datetime.now(UTC))

    def events(self, job_id: str, after: int) -> list[Event]:
        """Events after a sequence number, in order."""
        query = EVENTS.select().where(EVENTS.c.job_id == ledger.plain(job_id), EVENTS.c.sequence > after).order_by(EVENTS.c.sequence)
        with self._engine.connect() as connection:
            return [ledger.event_of(row) for row in connection.execute(query).mappings()]

    def sequences(self, job_ids: Sequence[str]) -> dict[str, int]:
        """The last event's number of each job that there is."""
        query = sql.select(JOBS.c.id, JOBS.c.last_sequence).where(JOBS.c.id.in_([ledger.plain(job_id) for job_id in job_ids]))
        with self._engine.connect() as connection:
            return {row.id: row.last_sequence for row in connection.execute(query)}

    # Running jobs, by replicas

    def waiting(self, limit: int = 1000) -> list[Queued]:
        """The oldest queued jobs, oldest first."""
        query = sql.select(JOBS.c.id, JOBS.c.created).where(JOBS.c.state == State.QUEUED.value)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(JOBS.c.created, JOBS.c.id).limit(limit))
            return [Queued(row.id, ledger.aware(row.created)) for row in rows]

    def claim(self, job_id: str, owner: str, lease_s: float) -> Job | None:
        """The job, running and held by `owner` now; None where it does not wait any more or another replica is claiming it."""
        now = datetime.now(UTC)
        query = JOBS.select().where(JOBS.c.id == job_id, JOBS.c.state == State.QUEUED.value).with_for_update(skip_locked=True)
        with self._writes.begin() as connection:
            row = connection.execute(query).mappings().first()
            if row is None:
                return None
            found = ledger.job_of(row)
            held = replace(advance(found, State.RUNNING, now), owner=owner, attempt=found.attempt + 1)
            connection.execute(JOBS.update().where(JOBS.c.id == job_id).values(lease_until=self._clock() + lease_s))
            told = Told("running", ledger.fraction(connection, found), "started")
            return ledger.rewrite(connection, found, held, told, now)

    def held(self, owner: str) -> list[Held]:
        """The jobs that a replica holds."""
        columns = (JOBS.c.id, JOBS.c.attempt, JOBS.c.state)
        query = sql.select(*columns).where(JOBS.c.owner == owner, JOBS.c.state.in_([state.value for state in HELD]))
        with self._engine.connect() as connection:
            return [Held(Lease(row.id, owner, row.attempt), State(row.state)) for row in connection.execute(query)]

    def renew(self, owner: str, lease_s: float) -> None:
        """Lengthens the leases of all jobs that a replica holds; what `concluding` locks needs none."""
        mine = sql.select(JOBS.c.id).where(JOBS.c.owner == owner, JOBS.c.state.in_([state.value for state in HELD]))
        with self._writes.begin() as connection:
            ids = connection.execute(mine.with_for_update(skip_locked=True)).scalars().all()
            connection.execute(JOBS.update().where(JOBS.c.id.in_(ids)).values(lease_until=self._clock() + lease_s))

    def take_back_expired(self, spare: str = "") -> list[Job]:
        """Takes back what no replica renewed in time, except from `spare`, the replica that asks: it knows that it lives."""
        return self._take_back((JOBS.c.lease_until < self._clock()) & (JOBS.c.owner != sql.literal(spare) if spare else sql.true()))

    def take_back(self, owner: str, spare: Sequence[str] = ()) -> list[Job]:
        """Takes back what a replica holds but for the jobs of these ids."""
        return self._take_back((JOBS.c.owner == owner) & JOBS.c.id.not_in(spare))

    def _take_back(self, condition: sql.ColumnElement[bool]) -> list[Job]:
        """Running jobs wait again, with their finished steps kept; those being cancelled are."""
        query = JOBS.select().where(JOBS.c.state.in_([state.value for state in HELD]), condition).with_for_update(skip_locked=True)
        with self._writes.begin() as connection:
            jobs = [ledger.job_of(row) for row in connection.execute(query).mappings()]
            return [self._returned(connection, job) for job in jobs]

    def _returned(self, connection: sql.Connection, job: Job) -> Job:
        if job.state is State.CANCELLING:
            return ledger.move(connection, job, State.CANCELLED, "cancelled while the service was away")
        return ledger.move(connection, job, State.QUEUED, "queued again after the service was interrupted")

    def _clock(self) -> sql.ColumnElement[float]:
        """The database's own, in seconds since 1970: one clock for all replicas."""
        if self._is_sqlite:
            return (sql.func.julianday("now") - 2440587.5) * 86400.0
        return sql.cast(sql.extract("epoch", sql.func.clock_timestamp()), sql.Float(53))


def _begin_sqlite(connection: sql.Connection) -> None:
    """A writer locks before it reads: two that read the same row and then wrote would overwrite one another."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITES) else "BEGIN")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Readers do not wait for the writer; a commit survives a crash of the process and of the machine."""
    connection.isolation_level = None  # or the driver begins transactions by itself, and only at the first write
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
