"""Bounds on rates: exact enough to be useful, and right at every look."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.traffic.rates import interval, log_evidence, surely_above, surely_below

ALPHA = 0.05
RUNS = 400
# Three standard deviations above what the bound allows: a right bound passes 998 times in 1,000.
MOST = ALPHA * RUNS + 3 * math.sqrt(RUNS * ALPHA * (1 - ALPHA))
COUNTS = st.integers(1, 10_000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count)))


@given(COUNTS, st.floats(0.001, 0.5))
def test_the_interval_holds_what_the_evidence_does_not_exclude(counted: tuple[int, int], alpha: float) -> None:
    total, count = counted
    found = interval(total, count, alpha)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.estimate == pytest.approx(total / count)
    for rate in (0.01, 0.1, 0.5, 0.9):
        if found.low + 1e-9 < rate < found.high - 1e-9:
            assert not surely_above(total, count, rate, alpha)
            assert not surely_below(total, count, rate, alpha)
        if rate < found.low - 1e-9:
            assert surely_above(total, count, rate, alpha)
        if rate > found.high + 1e-9:
            assert surely_below(total, count, rate, alpha)


def test_nothing_is_known_before_the_first() -> None:
    found = interval(0, 0, ALPHA)
    assert (found.low, found.high) == (0, 1)
    assert log_evidence(0, 0, 0.3) == pytest.approx(0)


def test_more_calls_tighten_it() -> None:
    widths = [interval(count / 10, count, ALPHA).high - interval(count / 10, count, ALPHA).low for count in (10, 100, 1000, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.03


def test_one_failure_is_no_proof_and_many_are() -> None:
    assert not surely_above(1, 3, 0.01, 0.001)
    assert surely_above(20, 50, 0.01, 0.001)
    assert surely_above(1, 1, 0, ALPHA)  # what has happened can happen
    assert surely_below(0, 2000, 0.01, ALPHA)
    assert not surely_below(0, 100, 0.01, ALPHA)


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_looking_after_every_call_errs_no_more_often_than_promised(rate: float) -> None:
    random, wrong = Random(5), 0
    for _ in range(RUNS):
        total = 0
        for count in range(1, 200):
            total += random.random() < rate
            if surely_above(total, count, rate, ALPHA) or surely_below(total, count, rate, ALPHA):
                wrong += 1
                break
    assert wrong <= MOST, wrong


def test_numbers_between_0_and_1_are_bounded_too() -> None:
    random, wrong = Random(6), 0
    for _ in range(RUNS):
        total = 0.0
        for count in range(1, 200):
            total += random.betavariate(8, 2)
            if surely_above(total, count, 0.8, ALPHA) or surely_below(total, count, 0.8, ALPHA):
                wrong += 1
                break
    assert wrong <= MOST, wrong
