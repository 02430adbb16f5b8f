"""Waits between tries grow, are bounded, and are forgotten after a calm time."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.inference.backoff import Backoff


def test_the_first_try_is_at_once_and_the_next_ones_wait_twice_as_long_each() -> None:
    backoff, now = Backoff(first_s=0.5, most_s=4.0, calm_s=100.0), 1000.0
    delays = []
    for _ in range(6):
        delays.append(backoff.delay_s(now))
        now += delays[-1]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 4.0]


def test_after_a_calm_time_it_starts_anew() -> None:
    backoff = Backoff(calm_s=100.0)
    assert [backoff.delay_s(0.0), backoff.delay_s(1.0)] == [0.0, 0.5]
    assert backoff.delay_s(102.0) == 0.0


@given(st.lists(st.floats(0, 50), min_size=2, max_size=50))
def test_tries_of_a_restless_time_are_bounded_in_number_and_in_delay(pauses_s: list[float]) -> None:
    backoff, now, tries = Backoff(first_s=1.0, most_s=8.0, calm_s=100.0), 0.0, []
    for pause_s in pauses_s:
        delay = backoff.delay_s(now)
        assert 0 <= delay <= 8.0
        tries.append(now + delay)
        now += delay + pause_s
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(tries))
