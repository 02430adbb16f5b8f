"""Jobs and their events in a database: SQLite by default."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from services.optimization.jobs import Event, Job, Result, State, advance

_META = sql.MetaData()
_JOBS = sql.Table(
    "jobs",
    _META,
    sql.Column("id", sql.String(64), primary_key=True),
    sql.Column("request_id", sql.String(64), unique=True, nullable=False),
    sql.Column("fingerprint", sql.String(64), nullable=False),
    sql.Column("spec", sql.Text, nullable=False),
    sql.Column("source", sql.String(128), nullable=False),
    sql.Column("created", sql.DateTime(timezone=True), nullable=False, index=True),
    sql.Column("state", sql.String(16), nullable=False, index=True),
    sql.Column("started", sql.DateTime(timezone=True)),
    sql.Column("ended", sql.DateTime(timezone=True)),
    sql.Column("failure_class", sql.String(32), nullable=False),
    sql.Column("failure_message", sql.Text, nullable=False),
    sql.Column("report", sql.Text, nullable=False),
    sql.Column("published", sql.String(128), nullable=False),
    sql.Column("last_sequence", sql.BigInteger, nullable=False),
)
_EVENTS = sql.Table(
    "events",
    _META,
    sql.Column("job_id", sql.String(64), sql.ForeignKey("jobs.id"), primary_key=True),
    sql.Column("sequence", sql.BigInteger, primary_key=True),
    sql.Column("time", sql.DateTime(timezone=True), nullable=False),
    sql.Column("state", sql.String(16), nullable=False),
    sql.Column("stage", sql.String(128), nullable=False),
    sql.Column("fraction", sql.Float, nullable=False),
    sql.Column("message", sql.Text, nullable=False),
)


_WRITES = "hone_writes"  # execution option of connections that change something


class UnknownJob(LookupError):
    """No such job."""


class RequestTaken(Exception):
    """The request id belongs to a job that asks for something else."""


@dataclass(frozen=True, slots=True)
class Page:
    """`token` is empty on the last page."""

    jobs: tuple[Job, ...]
    token: str


class JobStore:
    """Every call is one transaction and blocks: call it off the event loop. Threads and processes may write at once."""

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy reads it. Raises sqlalchemy.exc.SQLAlchemyError where the database cannot be opened."""
        self._engine = sql.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sql.event.listen(self._engine, "connect", _prepare_sqlite)
            sql.event.listen(self._engine, "begin", _begin_sqlite)
        self._writes = self._engine.execution_options(**{_WRITES: True})
        _META.create_all(self._writes)

    @classmethod
    def at(cls, folder: Path) -> "JobStore":
        """The embedded default: `folder/jobs.sqlite`."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{folder / 'jobs.sqlite'}")

    def close(self) -> None:
        self._engine.dispose()

    def create(self, job: Job) -> Job:
        """Keeps a new job, or returns the one that the request made before. Raises RequestTaken."""
        try:
            with self._writes.begin() as connection:
                connection.execute(_JOBS.insert().values(_row(job)))
                return self._append(connection, job, job.state.value.lower(), 0.0, "accepted", datetime.now(UTC))
        except IntegrityError:
            found = self.find_request(job.request_id, job.fingerprint)
            if found is None:
                raise  # not the request but the job's id was there
            return found

    def find_request(self, request_id: str, fingerprint: str) -> Job | None:
        """The job that a request made before. Raises RequestTaken where it asked for something else then."""
        with self._engine.connect() as connection:
            found = self._one(connection, _JOBS.c.request_id == request_id)
        if found is not None and found.fingerprint != fingerprint:
            raise RequestTaken(f"request_id: {request_id!r} was used for a different job")
        return found

    def get(self, job_id: str) -> Job:
        """Raises UnknownJob."""
        with self._engine.connect() as connection:
            return self._known(connection, job_id)

    def page(self, size: int, token: str = "", states: Sequence[State] = ()) -> Page:
        """Newest first. `token` is the id that the page before ended with. Raises UnknownJob for a token that is none."""
        query = _JOBS.select().order_by(_JOBS.c.created.desc(), _JOBS.c.id.desc()).limit(size + 1)
        with self._engine.connect() as connection:
            if states:
                query = query.where(_JOBS.c.state.in_([state.value for state in states]))
            if token:
                last = self._known(connection, token)
                query = query.where(sql.tuple_(_JOBS.c.created, _JOBS.c.id) < sql.tuple_(sql.literal(last.created), sql.literal(last.id)))
            found = [_job(row) for row in connection.execute(query).mappings()]
        return Page(tuple(found[:size]), found[size - 1].id if len(found) > size else "")

    def oldest_queued(self) -> Job | None:
        with self._engine.connect() as connection:
            query = _JOBS.select().where(_JOBS.c.state == State.QUEUED.value).order_by(_JOBS.c.created, _JOBS.c.id).limit(1)
            row = connection.execute(query).mappings().first()
        return _job(row) if row is not None else None

    def count(self, state: State) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(sql.select(sql.func.count()).where(_JOBS.c.state == state.value)).scalar_one())

    def move(self, job_id: str, state: State, message: str, result: Result | None = None) -> Job:
        """Takes a job to its next state and tells so in an event. Raises UnknownJob, IllegalTransition."""
        now = datetime.now(UTC)
        with self._writes.begin() as connection:
            moved = advance(self._known(connection, job_id), state, now, result)
            return self._append(connection, moved, state.value.lower(), self._fraction(connection, moved), message, now)

    def tell(self, job_id: str, stage: str, fraction: float, message: str) -> Job:
        """Adds an event; `fraction` never falls below an earlier one. Raises UnknownJob."""
        with self._writes.begin() as connection:
            job = self._known(connection, job_id)
            reached = max(fraction, self._fraction(connection, job))
            return self._append(connection, job, stage, reached, message, datetime.now(UTC))

    def events(self, job_id: str, after: int) -> list[Event]:
        """Events after a sequence number, in order."""
        query = _EVENTS.select().where(_EVENTS.c.job_id == job_id, _EVENTS.c.sequence > after).order_by(_EVENTS.c.sequence)
        with self._engine.connect() as connection:
            return [_event(row) for row in connection.execute(query).mappings()]

    def _append(self, connection: sql.Connection, job: Job, stage: str, fraction: float, message: str, now: datetime) -> Job:
        told = replace(job, last_sequence=job.last_sequence + 1)
        connection.execute(_JOBS.update().where(_JOBS.c.id == job.id).values(_row(told)))
        event = Event(told.last_sequence, now, told.state, stage[:128], 1.0 if told.has_ended else fraction, message)
        connection.execute(_EVENTS.insert().values({**asdict(event), "job_id": job.id, "state": event.state.value}))
        return told

    def _fraction(self, connection: sql.Connection, job: Job) -> float:
        query = sql.select(_EVENTS.c.fraction).where(_EVENTS.c.job_id == job.id, _EVENTS.c.sequence == job.last_sequence)
        return float(connection.execute(query).scalar() or 0.0)

    def _known(self, connection: sql.Connection, job_id: str) -> Job:
        found = self._one(connection, _JOBS.c.id == job_id)
        if found is None:
            raise UnknownJob(f"no job {job_id[:80]!r}")
        return found

    def _one(self, connection: sql.Connection, condition: sql.ColumnElement[bool]) -> Job | None:
        query = _JOBS.select().where(condition)
        if connection.get_execution_options().get(_WRITES):
            query = query.with_for_update()  # where rows are locked; SQLite has locked the whole file
        row = connection.execute(query).mappings().first()
        return _job(row) if row is not None else None


def _begin_sqlite(connection: sql.Connection) -> None:
    """A writer locks before it reads: two that read the same row and then wrote would overwrite one another."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Readers do not wait for the writer; a commit survives a crash of the process and of the machine."""
    connection.isolation_level = None  # or the driver begins transactions by itself, and only at the first write
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")


def _row(job: Job) -> dict[str, Any]:
    return {**asdict(job), "state": job.state.value}


def _job(row: sql.RowMapping) -> Job:
    fields = dict(row)
    return Job(**{**fields, "state": State(fields["state"]), **{name: _aware(fields[name]) for name in ("created", "started", "ended")}})


def _event(row: sql.RowMapping) -> Event:
    fields = {name: value for name, value in row.items() if name != "job_id"}
    return Event(**{**fields, "state": State(fields["state"]), "time": _aware(fields["time"])})


def _aware(moment: datetime | None) -> Any:
    """SQLite forgets the zone; everything was written in UTC."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
