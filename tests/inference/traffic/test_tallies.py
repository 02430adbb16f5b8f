"""Numbers that add up in any order."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.traffic.tallies import ArmTally, Latencies, Moments, Outcomes, Tally

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60)


def moments(numbers: list[float]) -> Moments:
    made = Moments()
    for number in numbers:
        made.add(number)
    return made


@given(NUMBERS, NUMBERS)
def test_two_parts_merged_are_the_whole(left: list[float], right: list[float]) -> None:
    merged = moments(left)
    merged.merge(moments(right))
    whole = left + right
    assert merged.count == len(whole)
    assert merged.mean == pytest.approx(statistics.fmean(whole), rel=1e-9, abs=1e-6)
    assert merged.variance == pytest.approx(statistics.variance(whole), rel=1e-6, abs=1e-3)


def test_many_equal_ones_at_once_are_as_many_one_by_one() -> None:
    one, many = moments([1, 1, 1, 0, 0]), Moments()
    many.add(1, 3)
    many.add(0, 2)
    assert (many.count, many.mean, many.squares) == pytest.approx((one.count, one.mean, one.squares))


def test_a_large_mean_does_not_drown_the_spread() -> None:
    assert moments([1e9 + 1, 1e9 + 2, 1e9 + 3]).variance == pytest.approx(1)


@given(st.lists(st.floats(1e-5, 50), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_a_percentile_is_right_within_its_bucket(seconds: list[float], share: float) -> None:
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    exact = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
    assert latencies.quantile(share) == pytest.approx(exact, rel=0.05)


@given(st.lists(st.floats(1e-6, 50), min_size=1, max_size=100), st.floats(1e-6, 60))
def test_no_call_is_counted_above_what_it_took(seconds: list[float], bound: float) -> None:
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    assert latencies.above(bound) <= sum(each >= bound * 0.999 for each in seconds)
    assert latencies.count == len(seconds)
    ends = latencies.ends()
    assert ends == sorted(ends)
    assert ends[-1][1] == 0
    for end_s, above in ends:
        assert above <= sum(each >= end_s * 0.999 for each in seconds)


def test_replicas_add_up_and_stay_as_they_were() -> None:
    replicas = [Tally(), Tally()]
    for index, tally in enumerate(replicas):
        arm = tally.arm("new")
        arm.calls, arm.errors = 10, index
        arm.latencies.add(0.1)
        arm.outcomes["click"] = Outcomes(True, Moments(4, 0.5, 1.0))
        tally.shadow.agreement.add(0.5 + index / 2)
    both = Tally.sum(replicas)
    assert (both.arm("new").calls, both.arm("new").errors, both.arm("new").latencies.count) == (20, 1, 2)
    assert both.arm("new").outcomes["click"].moments.count == 8
    assert both.shadow.agreement.mean == 0.75
    assert [tally.arm("new").calls for tally in replicas] == [10, 10]
    assert both.arm("old") == ArmTally()
