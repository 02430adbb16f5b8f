"""What an optimization is worth: laws over any prices and measurements, and examples worked by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.optimization.advisor.economics import Capacity, Economics, Measured, Payoff, Speedup, Until, Worth
from services.optimization.advisor.fleet import HOURS_PER_MONTH
from services.optimization.advisor.value import worth
from services.optimization.report import Interval
from tests.optimization.advisor.priced import around, certain, economics, measured

few = settings(max_examples=12, deadline=None)  # each draws thousands of samples


def nothing_or(most: float) -> st.SearchStrategy[float]:
    return st.just(0.0) | st.floats(0.01, most)


CASES = st.builds(
    Economics,
    instance_hour_price=st.floats(0.01, 100),
    peak_rows_per_second=st.floats(0.1, 1e4),
    rows_per_month=nothing_or(1e9),
    monthly_growth=st.floats(-0.2, 0.2),
    horizon_months=st.integers(1, 4),
    utilization=st.floats(0.1, 1),
    min_instances=st.integers(1, 4),
    hours=nothing_or(100),
    hourly_rate=nothing_or(200),
    one_off_cost=nothing_or(1e4),
    monthly_cost=nothing_or(1e3),
    quality_value=nothing_or(1e3),
)
CAPACITIES = st.floats(1, 1000)
FACTORS = st.floats(1, 1.5)
SPEEDUPS = st.builds(around, st.floats(0.5, 10), FACTORS)
QUALITIES = st.builds(
    lambda points, half: Interval(estimate=points, low=points - half, high=points + half), st.floats(-3, 3), st.floats(0, 3)
)
MEASURED = st.builds(measured, st.builds(around, CAPACITIES, FACTORS), SPEEDUPS, QUALITIES, nothing_or(10))


def intervals(found: Worth) -> list[Interval]:
    by_month = [
        each for month in found.months for each in (month.instances_before, month.instances_after, month.saving, month.cumulative_net)
    ]
    totals = [
        found.total_benefit,
        found.quality_benefit,
        found.net_benefit,
        found.cost_per_million_rows_before,
        found.cost_per_million_rows_after,
    ]
    return [*by_month, *totals, found.capacity_before, found.capacity_after, *filter(None, [found.roi, found.saves_from_rows_per_second])]


def untils(found: Worth) -> list[Until]:
    return [each for each in (found.payback_months, found.break_even_rows, found.break_even_months) if each is not None]


def test_an_example_worked_by_hand() -> None:
    """10 instances become 2, 8 x 730 a month; 100 hours at 50 and 10 at 1 for the job, 40 a month."""
    told = economics(hours=100, hourly_rate=50, monthly_cost=40, rows_per_month=1e6, quality_value=10)
    found = worth(told, measured(job_hours=10, quality=-2.0))
    assert (found.now.instances_before, found.now.instances_after) == (certain(10), certain(2))
    assert found.monthly_saving == certain(5840)
    assert (found.one_time_cost, found.total_cost) == (5010, 5010 + 480)
    assert found.total_benefit == certain(12 * (5840 - 20))
    assert found.quality_benefit == certain(-240)
    assert found.roi is not None
    assert found.roi.estimate == pytest.approx((69840 - 5490) / 5490)
    assert found.payback_months is not None
    assert found.payback_months.estimate == pytest.approx(5490 / 69840 * 12)
    assert found.cost_per_million_rows_before.estimate == pytest.approx(1e6 / (3600 * 50))
    assert found.cost_per_million_rows_after.estimate == pytest.approx(1e6 / (3600 * 250))
    assert found.break_even_rows is not None
    assert found.break_even_rows.estimate == pytest.approx(5010 * 3600 * 50 / 0.8)
    assert found.break_even_months is not None
    assert found.break_even_months.estimate == pytest.approx(5010 * 3600 * 50 / 0.8 / 1e6)
    assert found.payoff is Payoff.PAYS
    assert found.left_out == ()


def test_growth_is_compound_and_the_first_month_is_now() -> None:
    found = worth(economics(monthly_growth=0.1, horizon_months=3), measured())
    assert [month.rows_per_second for month in found.months] == pytest.approx([500, 550, 605])
    assert [month.instances_before.estimate for month in found.months] == [10, 11, 13]
    assert [month.instances_after.estimate for month in found.months] == [2, 3, 3]
    assert found.end.month == 3
    assert found.total_benefit.estimate == pytest.approx((8 + 8 + 10) * HOURS_PER_MONTH)


def test_separate_measurements_are_drawn_apart_and_a_paired_one_is_narrower() -> None:
    before = Capacity(rows_per_second=around(50, 1.2))
    apart = worth(economics(), Measured(before=before, after=Capacity(rows_per_second=around(100, 1.2))))
    paired = worth(economics(), Measured(before=before, after=Speedup(ratio=certain(2))))
    assert apart.now.instances_after.estimate == paired.now.instances_after.estimate == 5
    assert width(apart.capacity_after) == pytest.approx(width(paired.capacity_after))  # both 100 within 1.2 times
    assert width(apart.net_benefit) > width(paired.net_benefit)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_the_same_seed_draws_the_same() -> None:
    told, noisy = economics(), measured(around(50, 1.3), around(3, 1.3))
    assert worth(told, noisy, seed=3) == worth(told, noisy, seed=3)
    assert worth(told, noisy, seed=3) != worth(told, noisy, seed=4)


@few
@given(CASES, CAPACITIES, SPEEDUPS, QUALITIES, st.floats(1, 3))
def test_more_speedup_never_lowers_the_benefit(told: Economics, before: float, speedup: Interval, quality: Interval, factor: float) -> None:
    faster = Interval(estimate=speedup.estimate * factor, low=speedup.low * factor, high=speedup.high * factor)
    less, more = (worth(told, measured(around(before, 1.1), gain, quality)) for gain in (speedup, faster))
    for name in ("estimate", "low", "high"):
        assert getattr(more.total_benefit, name) >= getattr(less.total_benefit, name) - 1e-9 * (1 + abs(getattr(less.total_benefit, name)))


@few
@given(CASES, CAPACITIES, FACTORS, st.floats(0.3, 1), QUALITIES)
def test_without_speedup_and_quality_value_there_is_no_benefit(
    told: Economics, before: float, factor: float, speedup: float, quality: Interval
) -> None:
    found = worth(told.model_copy(update={"quality_value": 0.0}), measured(around(before, factor), speedup, quality))
    assert found.total_benefit.high <= 0
    assert found.payoff is Payoff.DOES_NOT_PAY
    assert found.payback_months is None
    assert found.saves_from_rows_per_second is None


@few
@given(CASES, MEASURED, st.sampled_from([0.25, 2.0, 16.0]))  # powers of two: money scales without rounding
def test_scaling_all_prices_scales_money_and_nothing_else(told: Economics, noisy: Measured, factor: float) -> None:
    prices = ("instance_hour_price", "hourly_rate", "one_off_cost", "monthly_cost", "quality_value")
    before, after = worth(told, noisy), worth(told.model_copy(update={name: factor * getattr(told, name) for name in prices}), noisy)
    for name in ("total_benefit", "net_benefit", "cost_per_million_rows_before"):
        old, new = getattr(before, name), getattr(after, name)
        assert new == Interval(estimate=factor * old.estimate, low=factor * old.low, high=factor * old.high)
    assert after.total_cost == factor * before.total_cost
    assert (after.roi, after.payback_months, after.break_even_rows) == (before.roi, before.payback_months, before.break_even_rows)
    assert after.payoff is before.payoff
    assert {swing.name for swing in after.sensitivity} == {swing.name for swing in before.sensitivity}


@few
@given(CASES, MEASURED)
def test_every_interval_holds_its_estimate_and_the_months_add_up(told: Economics, noisy: Measured) -> None:
    found = worth(told, noisy)
    assert all(each.low <= each.estimate <= each.high for each in intervals(found))
    assert all(each.low <= each.estimate and (each.high is None or each.estimate <= each.high) for each in untils(found))
    assert found.end.cumulative_net.estimate == pytest.approx(found.net_benefit.estimate, abs=1e-6)
    assert found.net_benefit.estimate == pytest.approx(found.total_benefit.estimate - found.total_cost, abs=1e-6)
    assert [swing.width for swing in found.sensitivity] == sorted((swing.width for swing in found.sensitivity), reverse=True)
    assert Worth.model_validate_json(found.model_dump_json()) == found


@few
@given(CASES, CAPACITIES, st.floats(1.1, 10), FACTORS, FACTORS)
def test_a_wider_measurement_widens_what_follows_from_it(
    told: Economics, before: float, speedup: float, factor: float, more: float
) -> None:
    """One at a time: of several, whole instances let no law hold."""
    narrow, wide = (worth(told, measured(before, around(speedup, by))) for by in (factor, factor * more))
    for inner, outer in zip(intervals(narrow), intervals(wide), strict=True):
        slack = 1e-9 * (1 + abs(inner.estimate))
        assert outer.low <= inner.low + slack
        assert outer.high >= inner.high - slack


@few
@given(CASES, CAPACITIES, FACTORS, FACTORS, SPEEDUPS)
def test_a_row_costs_within_wider_bounds_when_any_measurement_is_wider(
    told: Economics, before: float, factor: float, more: float, speedup: Interval
) -> None:
    narrow, wide = (worth(told, measured(around(before, by), speedup)) for by in (factor, factor * more))
    assert width(wide.cost_per_million_rows_before) >= width(narrow.cost_per_million_rows_before) * (1 - 1e-9)
    after = width(wide.cost_per_million_rows_after), width(narrow.cost_per_million_rows_after)
    assert after[0] >= 0.99 * after[1]  # of two measurements, so that sampling has its error


def test_a_cost_next_to_nothing_has_no_return_on_it() -> None:
    found = worth(economics(hours=1e-300, hourly_rate=1), measured(job_hours=1e-307))
    assert found.roi is None
    assert found.left_out[0] == "ROI: nothing is spent"


def test_what_is_certain_has_no_width() -> None:
    assert all(each.low == each.high for each in intervals(worth(economics(quality_value=10), measured(quality=1.0))))


def test_a_measurements_own_bounds_come_out_again() -> None:
    found = worth(economics(), measured(Interval(estimate=50, low=40, high=55), certain(2)))
    assert (found.capacity_before.low, found.capacity_before.high) == pytest.approx((40, 55), rel=1e-3)
    assert (found.capacity_after.low, found.capacity_after.high) == pytest.approx((80, 110), rel=1e-3)


def test_bounds_reach_out_to_an_estimate_outside_of_its_own() -> None:
    """As a bootstrap's may be."""
    found = worth(economics(), measured(speedup=Interval(estimate=1, low=2, high=4)))
    assert found.total_benefit.low == found.total_benefit.estimate == 0 < found.total_benefit.high


@few
@given(CASES, MEASURED)
def test_without_growth_all_months_are_equal(told: Economics, noisy: Measured) -> None:
    found = worth(told.model_copy(update={"monthly_growth": 0.0}), noisy)
    assert len({(month.rows_per_second, str(month.instances_before), str(month.saving)) for month in found.months}) == 1


@few
@given(CASES, CAPACITIES, st.floats(1.01, 10))
def test_saving_starts_where_it_is_said_to(told: Economics, before: float, speedup: float) -> None:
    found = worth(told, measured(before, speedup))
    assert (found.monthly_saving.estimate == 0) == (found.saves_from_rows_per_second is not None)
    if found.saves_from_rows_per_second is not None:
        start = found.saves_from_rows_per_second.estimate
        assert start >= told.peak_rows_per_second * (1 - 1e-6)
        for factor, saves in ((1 - 1e-6, False), (1 + 1e-6, True)):
            there = worth(
                told.model_copy(update={"peak_rows_per_second": max(told.peak_rows_per_second, start * factor)}), measured(before, speedup)
            )
            assert (there.monthly_saving.estimate > 0) is saves


@pytest.mark.parametrize(
    "wrong",
    [
        {"instance_hour_price": 0},
        {"peak_rows_per_second": 0},
        {"utilization": 0},
        {"utilization": 1.1},
        {"min_instances": 0},
        {"horizon_months": 0},
        {"horizon_months": 121},
        {"hours": -1},
        {"monthly_growth": math.nan},
        {"currency": "dollars"},
        {"unknown": 1},
    ],
)
def test_wrong_economics_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        economics(**wrong)


@pytest.mark.parametrize(("estimate", "low", "high"), [(1, 0, 2), (1, -1, 2), (1, 2, 0.5), (0, 1, 2)])
def test_wrong_measurements_are_refused(estimate: float, low: float, high: float) -> None:
    wrong = Interval(estimate=estimate, low=low, high=high)
    with pytest.raises(ValidationError):
        Capacity(rows_per_second=wrong)
    with pytest.raises(ValidationError):
        Speedup(ratio=wrong)


def test_every_input_says_what_it_is() -> None:
    assert all(field.description for field in Economics.model_fields.values())
