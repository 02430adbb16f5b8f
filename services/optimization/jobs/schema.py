"""The job database's tables, and how a database that an earlier version made becomes today's."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sql

META = sql.MetaData()
JOBS = sql.Table(
    "jobs",
    META,
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
    sql.Column("owner", sql.String(64), nullable=False, server_default=""),
    sql.Column("attempt", sql.BigInteger, nullable=False, server_default="0"),
    # Seconds since 1970 by the database's clock: the replicas' own may differ.
    sql.Column("lease_until", sql.Float(53), nullable=False, server_default="0"),
)
EVENTS = sql.Table(
    "events",
    META,
    sql.Column("job_id", sql.String(64), sql.ForeignKey("jobs.id"), primary_key=True),
    sql.Column("sequence", sql.BigInteger, primary_key=True),
    sql.Column("time", sql.DateTime(timezone=True), nullable=False),
    sql.Column("state", sql.String(16), nullable=False),
    sql.Column("stage", sql.String(128), nullable=False),
    sql.Column("fraction", sql.Float, nullable=False),
    sql.Column("message", sql.Text, nullable=False),
    sql.Column("step", sql.BigInteger, nullable=False, server_default="0"),
    sql.Column("metrics", sql.Text, nullable=False, server_default="{}"),
)
_VERSION = sql.Table("schema_version", META, sql.Column("version", sql.Integer, primary_key=True))

_LOCK = 0x686F6E65  # of this schema among a server's advisory locks; any number that nobody else takes


class NewerSchema(Exception):
    """A later version of the service has changed the database."""


def prepare(connection: sql.Connection) -> None:
    """Makes the tables, or brings those of an earlier version forward, within the caller's transaction. Raises NewerSchema."""
    if connection.dialect.name == "postgresql":  # several replicas may start at once; SQLite has locked the whole file
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    found = _version(connection)
    if found > LATEST:
        raise NewerSchema(f"the job database has version {found}; this service knows versions up to {LATEST}")
    if found == 0:
        META.create_all(connection)
    else:
        _VERSION.create(connection, checkfirst=True)
        for version in range(found + 1, LATEST + 1):
            _MIGRATIONS[version](connection)
    if found < LATEST:
        connection.execute(_VERSION.delete())
        connection.execute(_VERSION.insert().values(version=LATEST))


def _version(connection: sql.Connection) -> int:
    """0 where there is nothing; the first version kept no number."""
    there = sql.inspect(connection)
    if there.has_table(_VERSION.name):
        return int(connection.execute(sql.select(_VERSION.c.version)).scalar_one())
    return 1 if there.has_table(JOBS.name) else 0


# Migrations, by the version that they lead to. They are history: none refers to the tables above, which go on changing.


def _leases_and_curves(connection: sql.Connection) -> None:
    """Leases of running jobs, curve points in events, and data as sources in place of lists of texts."""
    for column in (
        "jobs ADD COLUMN owner VARCHAR(64) DEFAULT '' NOT NULL",
        "jobs ADD COLUMN attempt BIGINT DEFAULT 0 NOT NULL",
        "jobs ADD COLUMN lease_until DOUBLE PRECISION DEFAULT 0 NOT NULL",
        "events ADD COLUMN step BIGINT DEFAULT 0 NOT NULL",
        "events ADD COLUMN metrics TEXT DEFAULT '{}' NOT NULL",
    ):
        connection.exec_driver_sql(f"ALTER TABLE {column}")
    jobs = sql.table("jobs", sql.column("id"), sql.column("spec"))
    ids = connection.execute(sql.select(jobs.c.id)).scalars().all()
    for job_id in ids:  # one at a time: a spec may hold a hundred thousand texts
        spec = json.loads(connection.execute(sql.select(jobs.c.spec).where(jobs.c.id == job_id)).scalar_one())
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(spec=json.dumps(_with_sources(spec))))


def _with_sources(spec: dict[str, Any]) -> dict[str, Any]:
    for kind in ("evaluation", "calibration"):
        texts = spec.pop(f"{kind}_texts", None)
        if texts:
            spec[kind] = {"texts": texts}
    return spec


_MIGRATIONS: Mapping[int, Callable[[sql.Connection], None]] = {2: _leases_and_curves}
LATEST = max(_MIGRATIONS)
