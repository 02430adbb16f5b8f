"""Jobs and events in SQLite: every promise held under threads, other processes and restarts."""

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

from services.optimization.jobs import IllegalTransition, Job, Result, State
from services.optimization.store import JobStore, RequestTaken, UnknownJob

NOW = datetime(2026, 1, 1, 12, 30, 15, 250_000, tzinfo=UTC)


def job(number: int = 0, **changes: object) -> Job:
    fresh = Job(id=f"job-{number}", request_id=f"request-{number}", fingerprint="f", spec='{"source": "m"}', source="m@1", created=NOW)
    return replace(fresh, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore.at(tmp_path / "jobs")
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


def test_a_job_survives_the_store(store: JobStore, tmp_path: Path) -> None:
    created = store.create(job())
    assert created == replace(job(), last_sequence=1)
    store.move("job-0", State.RUNNING, "started")
    store.tell("job-0", "optimizing", 0.25, "half of the half")
    done = store.move("job-0", State.FAILED, "no", Result("TOOLCHAIN", "no"))
    assert store.get("job-0") == done
    store.close()
    again = JobStore.at(tmp_path / "jobs")
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
    assert store.oldest_queued() is None
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
    store = JobStore("sqlite://")
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


def test_events_told_at_once_have_no_gaps(store: JobStore, tmp_path: Path) -> None:
    """By threads of two stores, as of two processes, with moves in between."""
    store.create(job())
    store.move("job-0", State.RUNNING, "")
    other = JobStore.at(tmp_path / "jobs")

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
    order = []
    while (found := store.oldest_queued()) is not None:
        order.append(found.id)
        store.move(found.id, State.RUNNING, "")
    assert order == ["job-0", "job-1", "job-2"]


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").mkdir()
    with pytest.raises(OperationalError, match="unable to open"):
        JobStore.at(tmp_path)
