"""Laws of a job's life, over every path that there is."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.jobs.job import ENDED, FOLLOWS, HELD, IllegalTransition, Job, Lease, Result, State, advance

NOW = datetime(2026, 1, 1, tzinfo=UTC)
paths = st.lists(st.sampled_from(State), max_size=12)


def queued() -> Job:
    return Job(id="j", request_id="r", fingerprint="f", spec="{}", source="m@1", created=NOW)


def walk(path: list[State]) -> list[Job]:
    """The job after each step of the path that may be taken; the others are refused and change nothing."""
    jobs = [queued()]
    for step, state in enumerate(path, start=1):
        try:
            jobs.append(advance(jobs[-1], state, NOW + timedelta(seconds=step)))
        except IllegalTransition:
            assert state not in FOLLOWS[jobs[-1].state]
    return jobs


def test_every_state_has_its_row() -> None:
    assert set(FOLLOWS) == set(State)
    assert {state for state, after in FOLLOWS.items() if not after} == ENDED


def test_every_state_is_reached_and_every_end_from_every_state() -> None:
    reached = {state: {state} for state in State}
    for _ in State:
        for state in State:
            reached[state] |= {later for middle in reached[state] for later in FOLLOWS[middle]}
    assert reached[State.QUEUED] == set(State)
    assert all(reached[state] & ENDED for state in State)


@given(paths)
def test_no_path_leaves_an_ended_state(path: list[State]) -> None:
    jobs = walk(path)
    assert all(not job.has_ended for job in jobs[:-1])


@given(paths)
def test_what_was_cancelled_is_never_published(path: list[State]) -> None:
    states = [job.state for job in walk(path)]
    if State.CANCELLING in states:
        assert State.SUCCEEDED not in states
        assert State.QUEUED not in states[states.index(State.CANCELLING) :]


@given(paths)
def test_only_running_leads_to_a_result(path: list[State]) -> None:
    states = [job.state for job in walk(path)]
    for before, after in pairwise(states):
        assert after not in (State.SUCCEEDED, State.REJECTED, State.CANCELLING) or before is State.RUNNING


@given(paths)
def test_times_tell_the_story(path: list[State]) -> None:
    for job in walk(path):
        assert (job.ended is not None) == job.has_ended
        assert job.created == NOW
        if job.state in (State.RUNNING, State.SUCCEEDED, State.REJECTED, State.CANCELLING):
            assert job.started is not None
        if job.started is not None and job.ended is not None:
            assert job.started <= job.ended


def test_a_result_comes_with_its_state() -> None:
    running = advance(queued(), State.RUNNING, NOW)
    done = advance(running, State.SUCCEEDED, NOW, Result(report="{}", published="m@2"))
    assert (done.report, done.published, done.failure_class) == ("{}", "m@2", "")
    failed = advance(running, State.FAILED, NOW, Result("INTERNAL", "broke"))
    assert (failed.failure_class, failed.failure_message, failed.published) == ("INTERNAL", "broke", "")


def test_a_refusal_names_both_states() -> None:
    with pytest.raises(IllegalTransition, match="job j is QUEUED and cannot become SUCCEEDED"):
        advance(queued(), State.SUCCEEDED, NOW)


def test_a_job_belongs_to_its_replica_while_that_runs_it_and_to_nobody_else() -> None:
    held = replace(advance(queued(), State.RUNNING, NOW), owner="replica", attempt=3)
    assert held.lease == advance(held, State.CANCELLING, NOW).lease == Lease("j", "replica", 3)
    for state in FOLLOWS[State.RUNNING] - HELD:
        assert (advance(held, state, NOW).owner, advance(held, state, NOW).attempt) == ("", 3)
