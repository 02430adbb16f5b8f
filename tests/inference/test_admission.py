"""When a call's rows will have run, worked out by hand and held against a simulation of the queue."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.admission import Lateness, Prospect, Work, misses, prospect, run_s
from services.inference.batching import Batcher, Policy
from services.inference.lanes import Row
from services.inference.service_time import ServiceTime

POLICY = Policy(max_rows=4, max_tokens=400)


class PerRow:
    """A batch takes a tenth of a second for each row."""

    def __init__(self, sure_share: float = 1.0) -> None:
        self.sure_share = sure_share

    def predict(self, rows: int, longest: int) -> float:
        return 0.1 * rows


class PerToken(PerRow):
    def predict(self, rows: int, longest: int) -> float:
        return 0.01 + 0.001 * rows * longest


def finish(free_s: Sequence[float], ahead: int, own: int = 1) -> float:
    return prospect(free_s, Work(ahead, 10 * ahead), Work(own, 10 * own), POLICY, PerRow()).finish_s


def test_an_idle_instance_runs_a_call_at_once() -> None:
    assert finish([0.0], 0) == pytest.approx(0.1)


def test_what_runs_is_waited_for() -> None:
    assert finish([0.5], 0) == pytest.approx(0.6)


def test_what_should_have_ended_is_about_to() -> None:
    assert finish([-3.0], 0) == pytest.approx(0.1)


def test_what_waits_runs_first() -> None:
    assert finish([0.5], 9) == pytest.approx(1.5)


def test_instances_share_what_waits() -> None:
    assert finish([0.0, 0.0], 7) == pytest.approx(0.4)


def test_a_busy_instance_joins_in_when_it_is_free() -> None:
    assert finish([0.0, 10.0], 3) == pytest.approx(0.4)  # done before the other is free
    assert finish([0.0, 0.2], 5) == pytest.approx(0.4)


def test_a_call_is_not_over_before_the_first_instance_is_free() -> None:
    assert finish([1.0, 5.0, 5.0], 0) == pytest.approx(1.1)


def test_batches_are_as_large_as_the_policy_lets_them() -> None:
    assert run_s(Work(8, 800), POLICY, PerToken()) == pytest.approx(2 * (0.01 + 0.4))
    assert run_s(Work(2, 20), POLICY, PerToken()) == pytest.approx(0.01 + 0.02)
    assert run_s(Work(2, 1600), POLICY, PerToken()) == pytest.approx(2 * (0.01 + 0.8))  # each over the budget, so alone
    assert run_s(Work(0, 0), POLICY, PerToken()) == 0


def test_a_call_is_refused_only_if_it_is_late_with_the_error_too() -> None:
    assert misses(Prospect(0.1, 1.0), 0.9, PerRow(sure_share=1.0))
    assert not misses(Prospect(0.1, 1.0), 0.9, PerRow(sure_share=0.8))
    assert not misses(Prospect(0.1, 1.0), math.inf, PerRow())


def test_a_call_is_refused_by_how_late_others_are() -> None:
    assert misses(Prospect(0.1, 1.0), 1.5, PerRow(), lateness=2.0)
    assert not misses(Prospect(0.1, 1.0), 2.0, PerRow(), lateness=2.0)


@pytest.mark.parametrize("slowness", [0.7, 1.0, 3.0])
def test_lateness_comes_to_the_quantile_of_the_calls(slowness: float) -> None:
    draw, lateness, expected = np.random.default_rng(1), Lateness(), Prospect(0.05, 0.2)
    found = []
    for took in slowness * 0.2 * draw.exponential(size=6000):
        lateness.ended(expected, took)
        found.append(lateness.factor(expected))
    assert np.mean(found[1000:]) == pytest.approx(slowness * -math.log(0.05), rel=0.25)


def test_calls_that_miss_their_deadline_raise_it_until_such_calls_are_refused() -> None:
    lateness, expected = Lateness(), Prospect(0.05, 0.2)
    for _ in range(100):
        lateness.missed(expected, left_s=1.0)
    assert misses(expected, 1.0, PerRow(), lateness.factor(expected))
    assert lateness.factor(expected) < 1.25 * 5


def test_lateness_is_of_calls_with_about_as_much_to_wait_for() -> None:
    lateness = Lateness()
    for _ in range(100):
        lateness.missed(Prospect(0.05, 0.2), left_s=1.0)
    assert lateness.factor(Prospect(0.05, 3.0)) == 0
    assert lateness.factor(Prospect(0.2, 0.2)) == 0  # nothing waits


def test_nothing_is_refused_by_a_model_that_has_not_learned() -> None:
    fresh = ServiceTime()
    assert not misses(Prospect(1e9, 1e9), 0.001, fresh)
    for _ in range(20):
        fresh.learn(4, 10, 0.1)
    assert misses(Prospect(1e9, 1e9), 0.001, fresh)


busy = st.lists(st.floats(0, 10), min_size=1, max_size=5)
rows = st.integers(0, 200)


@given(busy=busy, ahead=rows, own=st.integers(1, 20))
def test_more_ahead_never_makes_it_earlier_and_an_instance_more_never_later(busy: list[float], ahead: int, own: int) -> None:
    assert finish(busy, ahead, own) <= finish(busy, ahead + 4, own) + 1e-9
    assert finish([*busy, 3.0], ahead, own) <= finish(busy, ahead, own) + 1e-9


@given(busy=busy, ahead=rows, own=st.integers(1, 20))
def test_the_work_fits_exactly_into_the_time_told(busy: list[float], ahead: int, own: int) -> None:
    told = finish(busy, ahead, own)
    done_s = sum(max(0.0, told - free_s) for free_s in busy)
    work_s = run_s(Work(ahead + own, 10 * (ahead + own)), POLICY, PerRow())
    assert done_s >= work_s - 1e-6
    assert told == pytest.approx(min(busy) + 0.1) or done_s == pytest.approx(work_s)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=150))
def test_a_queue_takes_about_as_long_as_predicted(lengths: list[int]) -> None:
    """Held against the real batcher: padding and batches that are not full add to the mean's estimate, never much."""
    policy, forecast = Policy(max_rows=16, max_tokens=512, max_age_s=math.inf), PerToken()
    queue: Batcher[Row] = Batcher(policy, forecast)
    for length in lengths:
        queue.add(Row("m", length), 0.0)
    taken_s = 0.0
    while (batch := queue.poll(0.0).batch) is not None:
        taken_s += forecast.predict(len(batch.rows), batch.longest)
    told_s = run_s(Work(len(lengths), sum(lengths)), policy, forecast)
    assert told_s == pytest.approx(taken_s, rel=0.5, abs=0.05)
