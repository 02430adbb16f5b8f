"""Jobs and events in each database: every promise held under threads, other processes and restarts."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from services.optimization.jobs.job import IllegalTransition, Job, Result, State
from services.optimization.jobs.store import JobStore, LeaseLost, RequestTaken, UnknownJob

NOW = datetime(2026, 1, 1, 12, 30, 15, 250_000, tzinfo=UTC)


def job(number: int = 0, **changes: object) -> Job:
    fresh = Job(id=f"job-{number}", request_id=f"request-{number}", fingerprint="f", spec='{"source": "m"}', source="m@1", created=NOW)
    return replace(fresh, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(database: str) -> Iterator[JobStore]:
    store = JobStore(database)
    yield store
    store.close()


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Runs `work(0..count-1)` in threads that start together; what each returned or raised."""
    start = threading.Barrier(count)

    def run(number: int) -> object:
        start.wait()
        try:
            return work(number)
        except (IllegalTransition, RequestTaken) as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_a_job_survives_the_store(store: JobStore, database: str) -> None:
    created = store.create(job())
    assert created == replace(job(), last_sequence=1)
    store.move("job-0", State.RUNNING, "started")
    store.tell("job-0", "optimizing", 0.25, "half of the half")
    done = store.move("job-0", State.FAILED, "no", Result("TOOLCHAIN", "no"))
    assert store.get("job-0") == done
    store.close()
    again = JobStore(database)
    assert again.get("job-0") == done
    assert [(e.sequence, e.state, e.stage, e.fraction, e.message) for e in again.events("job-0", 0)] == [
        (1, State.QUEUED, "queued", 0.0, "accepted"),
        (2, State.RUNNING, "running", 0.0, "started"),
        (3, State.RUNNING, "optimizing", 0.25, "half of the half"),
        (4, State.FAILED, "failed", 1.0, "no"),
    ]
    assert [event.sequence for event in again.events("job-0", 2)] == [3, 4]
    assert all(event.time.tzinfo is UTC for event in again.events("job-0", 0))
    again.close()


def test_what_is_not_there_is_unknown(store: JobStore) -> None:
    for ask in (store.get, lambda name: store.tell(name, "", 0, ""), lambda name: store.move(name, State.RUNNING, "")):
        with pytest.raises(UnknownJob, match="no job 'job-9'"):
            ask("job-9")
    assert store.events("job-9", 0) == []
    assert store.waiting() == []
    assert store.find_request("request-9", "f") is None


def test_a_refused_move_changes_nothing(store: JobStore) -> None:
    created = store.create(job())
    with pytest.raises(IllegalTransition):
        store.move("job-0", State.SUCCEEDED, "no")
    assert store.get("job-0") == created
    assert len(store.events("job-0", 0)) == 1


@settings(deadline=None, max_examples=25)
@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([State.RUNNING, State.QUEUED])), max_size=12))
def test_events_have_no_gaps_and_fractions_never_fall(steps: list[float | State]) -> None:
    store = JobStore("sqlite://")  # in memory: the law is the same code for every database
    store.create(job())
    for step in steps:
        if isinstance(step, State):
            try:
                store.move("job-0", step, "")
            except IllegalTransition:
                continue
        else:
            store.tell("job-0", "stage", step, "")
    events = store.events("job-0", 0)
    store.close()
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.fraction for event in events] == sorted(event.fraction for event in events)


# At once


def test_one_request_makes_one_job(store: JobStore) -> None:
    made = at_once(8, lambda number: store.create(job(number, request_id="same")))
    assert len({found.id for found in made if isinstance(found, Job)}) == 1
    assert all(isinstance(found, Job) and found.last_sequence == 1 for found in made)
    assert len(store.page(10).jobs) == 1


def test_a_request_id_is_taken_by_whoever_was_first(store: JobStore) -> None:
    made = at_once(6, lambda number: store.create(job(number, request_id="same", fingerprint=str(number))))
    assert [type(found) for found in made].count(Job) == 1
    assert [type(found) for found in made].count(RequestTaken) == 5
    with pytest.raises(RequestTaken, match="request_id: 'same'"):
        store.find_request("same", "other")


def test_events_told_at_once_have_no_gaps(store: JobStore, database: str) -> None:
    """By threads of two stores, as of two processes, with moves in between."""
    store.create(job())
    store.move("job-0", State.RUNNING, "")
    other = JobStore(database)

    def work(number: int) -> None:
        for step in range(10):
            (store, other)[number % 2].tell("job-0", f"{number}", step / 10, "")
            if number == 0 and step == 5:
                store.move("job-0", State.CANCELLING, "")

    assert at_once(6, work) == [None] * 6
    events = other.events("job-0", 0)
    other.close()
    assert [event.sequence for event in events] == list(range(1, 64))
    states = [event.state for event in events]
    assert states == sorted(states, key=[State.QUEUED, State.RUNNING, State.CANCELLING].index)
    assert store.get("job-0").state is State.CANCELLING
    assert store.get("job-0").last_sequence == 63


def test_only_one_of_two_ends_a_job(store: JobStore) -> None:
    store.create(job())
    store.move("job-0", State.RUNNING, "")
    ends = (State.SUCCEEDED, State.REJECTED, State.FAILED, State.CANCELLING)
    found = at_once(4, lambda number: store.move("job-0", ends[number], ""))
    assert [type(each) for each in found].count(IllegalTransition) >= 2
    last = [event.state for event in store.events("job-0", 0)][-1]
    assert store.get("job-0").state is last


# Pages and the queue


def test_pages_hold_every_job_once_newest_first(store: JobStore) -> None:
    for number in range(10):  # threes of one moment
        store.create(job(number, created=NOW + timedelta(microseconds=number // 3)))
    seen, token = [], ""
    while True:
        page = store.page(4, token)
        seen += [found.id for found in page.jobs]
        token = page.token
        if not token:
            break
        store.create(job(100 + len(seen), created=NOW + timedelta(days=1)))  # newer ones do not shift the pages
    assert seen == [f"job-{number}" for number in (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]


def test_pages_of_states(store: JobStore) -> None:
    for number in range(6):
        store.create(job(number, created=NOW + timedelta(seconds=number)))
    for number in (1, 3, 5):
        store.move(f"job-{number}", State.RUNNING, "")
    first = store.page(2, states=[State.RUNNING])
    assert [found.id for found in first.jobs] == ["job-5", "job-3"]
    assert [found.id for found in store.page(2, first.token, [State.RUNNING]).jobs] == ["job-1"]
    assert len(store.page(10, states=[State.RUNNING, State.QUEUED]).jobs) == 6
    assert store.page(10, states=[State.FAILED]).jobs == ()
    assert store.count(State.QUEUED) == 3
    with pytest.raises(UnknownJob):
        store.page(2, "nobody")


def test_a_page_that_just_fits_is_the_last(store: JobStore) -> None:
    for number in range(3):
        store.create(job(number))
    assert store.page(3).token == ""
    assert store.page(2).token != ""


def test_the_oldest_runs_first(store: JobStore) -> None:
    for number in (2, 0, 1):
        store.create(job(number, created=NOW + timedelta(seconds=number)))
    assert [(found.id, found.created) for found in store.waiting(2)] == [("job-0", NOW), ("job-1", NOW + timedelta(seconds=1))]
    store.move("job-0", State.RUNNING, "")
    assert [found.id for found in store.waiting()] == ["job-1", "job-2"]


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").mkdir()
    with pytest.raises(OperationalError, match="unable to open"):
        JobStore.at(tmp_path)


# Curves


def test_points_of_curves_come_back_as_told(store: JobStore) -> None:
    store.create(job())
    store.tell("job-0", "training", 0.5, "", step=7, metrics={"loss": 0.25, "accuracy": float("nan")})
    (_, point) = store.events("job-0", 0)
    assert (point.message, point.step, point.metrics["loss"]) == ("", 7, 0.25)
    assert point.metrics["accuracy"] != point.metrics["accuracy"]


def test_what_no_database_takes_in_a_text_is_replaced(store: JobStore) -> None:
    store.create(job())
    store.tell("job-0", "a\0b", 0, "half of a pair: \ud800, nothing: \0")
    assert "nothing: \ufffd" in store.events("job-0", 1)[0].message
    with pytest.raises(UnknownJob):
        store.get("job\0")


# Replicas

LONG_S, PAST_S = 3600.0, -1.0


def claimed(store: JobStore, owner: str, lease_s: float = LONG_S) -> Job:
    found = store.claim("job-0", owner, lease_s)
    assert found is not None
    return found


def test_one_of_many_replicas_gets_a_job(store: JobStore, database: str) -> None:
    store.create(job())
    other = JobStore(database)
    found = at_once(8, lambda number: (store, other)[number % 2].claim("job-0", f"replica-{number}", LONG_S))
    other.close()
    (winner,) = [each for each in found if isinstance(each, Job)]
    assert store.get("job-0") == winner
    assert (winner.state, winner.attempt) == (State.RUNNING, 1)
    assert [held.lease for held in store.held(winner.owner)] == [winner.lease]
    assert store.waiting() == []


def test_a_lease_that_ran_out_is_anybodys_and_its_holder_changes_nothing_any_more(store: JobStore) -> None:
    store.create(job())
    old = claimed(store, "slow", PAST_S)
    assert store.take_back_expired(spare="slow") == []
    (returned,) = store.take_back_expired(spare="quick")
    assert (returned.state, returned.owner) == (State.QUEUED, "")
    new = claimed(store, "quick")
    assert (new.attempt, store.held("slow")) == (2, [])
    before = store.events("job-0", 0)
    for late in (
        lambda: store.tell("job-0", "", 0, "", lease=old.lease),
        lambda: store.move("job-0", State.SUCCEEDED, "", lease=old.lease),
        lambda: store.concluding(old.lease).__enter__(),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert store.events("job-0", 0) == before
    assert store.move("job-0", State.SUCCEEDED, "", lease=new.lease).owner == ""


def test_the_same_replica_in_another_attempt_is_another_holder(store: JobStore) -> None:
    store.create(job())
    first = claimed(store, "one")
    store.take_back("one")
    second = claimed(store, "one")
    with pytest.raises(LeaseLost):
        store.tell("job-0", "", 0, "", lease=first.lease)
    store.tell("job-0", "", 0, "", lease=second.lease)


def test_a_renewed_lease_stays(store: JobStore) -> None:
    store.create(job())
    claimed(store, "mine", PAST_S)
    store.renew("mine", LONG_S)
    assert store.take_back_expired() == []
    store.renew("mine", PAST_S)
    assert [found.id for found in store.take_back_expired()] == ["job-0"]


def test_taking_back_ends_what_was_being_cancelled_and_spares_what_runs(store: JobStore) -> None:
    for number in range(3):
        store.create(job(number))
        store.claim(f"job-{number}", "mine", LONG_S)
    store.move("job-1", State.CANCELLING, "")
    assert {held.lease.job_id: held.state for held in store.held("mine")}["job-1"] is State.CANCELLING
    returned = {found.id: found.state for found in store.take_back("mine", ["job-2"])}
    assert returned == {"job-0": State.QUEUED, "job-1": State.CANCELLED}
    assert [held.lease.job_id for held in store.held("mine")] == ["job-2"]


def test_nothing_is_concluded_that_is_being_cancelled(store: JobStore) -> None:
    store.create(job())
    lease = claimed(store, "mine").lease
    with store.concluding(lease) as conclude:
        done = conclude(State.SUCCEEDED, "published", Result(published="m@2"))
    assert store.get("job-0") == done
    store.create(job(1))
    other = store.claim("job-1", "mine", LONG_S)
    assert other is not None
    store.move("job-1", State.CANCELLING, "")
    with pytest.raises(IllegalTransition), store.concluding(other.lease):
        pass
    assert store.sequences(["job-0", "job-1", "job-9"]) == {"job-0": 3, "job-1": 3}


def test_a_failure_while_concluding_leaves_the_job_running(store: JobStore) -> None:
    store.create(job())
    lease = claimed(store, "mine").lease
    with pytest.raises(OSError, match="full"), store.concluding(lease):
        raise OSError("the disk is full")
    assert store.get("job-0").state is State.RUNNING
