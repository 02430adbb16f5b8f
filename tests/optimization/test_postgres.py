"""What only a database server has: rows locked by one replica while others go on."""

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sql

from services.optimization.jobs.job import Job, Result, State
from services.optimization.jobs.store import JobStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG_S, PAST_S = 3600.0, -1.0


@pytest.fixture
def url(postgres: Any) -> str:
    return str(postgres.database())


def job(name: str) -> Job:
    return Job(id=name, request_id=name, fingerprint="f", spec="{}", source="m@1", created=NOW)


def test_replicas_that_start_at_once_make_one_schema(url: str) -> None:
    start = threading.Barrier(4)
    stores: list[JobStore] = []

    def open_store() -> None:
        start.wait()
        stores.append(JobStore(url))

    threads = [threading.Thread(target=open_store) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    stores[0].create(job("a"))
    assert all(store.get("a") for store in stores)
    for store in stores:
        store.close()


def test_what_is_being_concluded_is_neither_taken_back_nor_waited_for(url: str) -> None:
    """Publishing may take longer than a lease: the row's lock keeps the job, and the replica's other jobs are renewed meanwhile."""
    store, other = JobStore(url), JobStore(url)
    for name in ("long", "beside"):
        store.create(job(name))
        assert store.claim(name, "mine", PAST_S)
    with store.concluding(store.get("long").lease) as conclude:
        other.renew("mine", LONG_S)
        assert other.take_back_expired("other") == []
        done = conclude(State.SUCCEEDED, "published", Result(published="m@2"))
        assert other.get("long").state is State.RUNNING  # not before it is committed
    assert other.get("long") == done
    assert [found.lease.job_id for found in other.held("mine")] == ["beside"]
    store.close()
    other.close()


def test_a_job_locked_by_one_replica_is_passed_over_by_another(url: str) -> None:
    store = JobStore(url)
    store.create(job("wanted"))
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT id FROM jobs WHERE id = 'wanted' FOR UPDATE")
        assert store.claim("wanted", "late", LONG_S) is None
    assert store.claim("wanted", "late", LONG_S) is not None
    engine.dispose()
    store.close()


def test_connections_that_the_server_cut_are_made_anew(url: str) -> None:
    store = JobStore(url)
    store.create(job("a"))
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert store.get("a").state is State.QUEUED
    engine.dispose()
    store.close()
