"""A database of an earlier version opens, with what it held."""

import json
from pathlib import Path

import pytest
import sqlalchemy as sql

from services.optimization.jobs.job import State
from services.optimization.jobs.schema import LATEST, NewerSchema
from services.optimization.jobs.store import JobStore
from services.optimization.spec import Spec

# The first version's tables, which kept no number.
FIRST = """
CREATE TABLE jobs (id VARCHAR(64) NOT NULL PRIMARY KEY, request_id VARCHAR(64) NOT NULL UNIQUE, fingerprint VARCHAR(64) NOT NULL,
    spec TEXT NOT NULL, source VARCHAR(128) NOT NULL, created {moment} NOT NULL, state VARCHAR(16) NOT NULL, started {moment},
    ended {moment}, failure_class VARCHAR(32) NOT NULL, failure_message TEXT NOT NULL, report TEXT NOT NULL,
    published VARCHAR(128) NOT NULL, last_sequence BIGINT NOT NULL);
CREATE INDEX ix_jobs_created ON jobs (created);
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE TABLE events (job_id VARCHAR(64) NOT NULL REFERENCES jobs (id), sequence BIGINT NOT NULL, time {moment} NOT NULL,
    state VARCHAR(16) NOT NULL, stage VARCHAR(128) NOT NULL, fraction FLOAT NOT NULL, message TEXT NOT NULL,
    PRIMARY KEY (job_id, sequence));
INSERT INTO jobs VALUES ('old', 'r', 'f', '{spec}', 'm@1', '2026-01-01 12:30:15.250000{zone}', 'RUNNING',
    '2026-01-01 12:30:16.000000{zone}', NULL, '', '', '', '', 2);
INSERT INTO events VALUES ('old', 1, '2026-01-01 12:30:15.250000{zone}', 'QUEUED', 'queued', 0, 'accepted');
INSERT INTO events VALUES ('old', 2, '2026-01-01 12:30:16.000000{zone}', 'RUNNING', 'optimizing', 0.25, 'started')
"""
SPEC = {"source": "m@1", "recipes": [], "evaluation_texts": ["a", "b"], "calibration_texts": [], "seed": 3}


def columns(url: str) -> dict[str, dict[str, tuple[str, bool]]]:
    engine = sql.create_engine(url)
    there = sql.inspect(engine)
    found = {
        table: {
            column["name"]: (type(column["type"].as_generic()).__name__, bool(column["nullable"])) for column in there.get_columns(table)
        }
        for table in there.get_table_names()
    }
    engine.dispose()
    return found


def run(url: str, *statements: str) -> None:
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture
def first(database: str) -> str:
    """The URL of a database of the first version, with a job that ran."""
    moment, zone = ("DATETIME", "") if database.startswith("sqlite") else ("TIMESTAMP WITH TIME ZONE", "+00")
    script = FIRST.format(moment=moment, zone=zone, spec=json.dumps(SPEC))
    run(database, *script.split(";\n"))
    return database


def test_an_earlier_database_opens_and_its_job_goes_on(first: str) -> None:
    JobStore(first).close()
    store = JobStore(first)  # the second time there is nothing left to change
    old = store.get("old")
    assert (old.state, old.owner, old.attempt, old.created.microsecond) == (State.RUNNING, "", 0, 250_000)
    spec = Spec.model_validate_json(old.spec)
    assert (spec.evaluation.texts, bool(spec.calibration), spec.seed) == (("a", "b"), False, 3)
    assert [(event.message, event.step, dict(event.metrics)) for event in store.events("old", 0)] == [
        ("accepted", 0, {}),
        ("started", 0, {}),
    ]
    assert [found.state for found in store.take_back_expired("somebody")] == [State.QUEUED]
    assert store.claim("old", "somebody", 60) is not None
    store.close()


def test_a_database_brought_forward_is_as_one_made_today(first: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    JobStore(first).close()
    is_sqlite = first.startswith("sqlite")
    fresh = f"sqlite:///{tmp_path / 'fresh.sqlite'}" if is_sqlite else request.getfixturevalue("postgres").database()
    JobStore(fresh).close()
    assert columns(first) == columns(fresh)


def test_a_newer_database_is_refused_untouched(database: str) -> None:
    JobStore(database).close()
    run(database, f"UPDATE schema_version SET version = {LATEST + 1}")  # noqa: S608
    with pytest.raises(NewerSchema, match=f"version {LATEST + 1}; this service knows versions up to {LATEST}"):
        JobStore(database)
