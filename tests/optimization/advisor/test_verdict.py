"""What an optimization is worth, in words: whether it pays, from where it saves, and what was left out."""

import math

import pytest

from services.optimization.advisor import returns
from services.optimization.advisor.economics import Payoff
from services.optimization.advisor.fleet import HOURS_PER_MONTH
from services.optimization.advisor.value import worth
from services.optimization.report import Interval
from tests.optimization.advisor.priced import certain, economics, measured


def test_what_may_never_be_earned_has_no_upper_bound() -> None:
    found = worth(economics(hours=1, hourly_rate=1), measured(speedup=Interval(estimate=1.5, low=0.8, high=2.8)))
    assert found.payback_months is not None
    assert found.payback_months.high is None
    assert found.break_even_rows is not None
    assert found.break_even_rows.high is None
    assert "to never)" in found.verdict
    assert found.payoff is Payoff.OPEN
    assert found.verdict.startswith("Open whether it pays")


def test_traffic_that_dwindles_may_never_serve_enough() -> None:
    assert returns.months_to_serve(1000, 10, -0.1) == math.inf  # 100 in all
    found = worth(economics(hours=1000, hourly_rate=100, rows_per_month=10, monthly_growth=-0.1), measured())
    assert found.break_even_rows is not None
    assert found.break_even_months is None
    assert found.left_out == ("break-even in months: the traffic never adds up to so many rows",)


def test_what_was_not_told_is_left_out_and_said() -> None:
    found = worth(economics(), measured(speedup=0.9))
    assert (found.roi, found.payback_months, found.break_even_rows, found.break_even_months) == (None, None, None, None)
    assert found.left_out == ("ROI: nothing is spent", "payback: nothing is earned", "break-even: a row costs no less than before")
    found = worth(economics(hours=1, hourly_rate=1), measured())
    assert found.left_out == ("break-even in months: rows_per_month is not told",)


def test_one_instance_that_serves_the_load_saves_nothing_and_says_from_where() -> None:
    found = worth(economics(peak_rows_per_second=20, utilization=0.7, hours=1, hourly_rate=90), measured())
    assert found.monthly_saving == certain(0)
    assert found.saves_from_rows_per_second == certain(35)
    assert found.verdict == (
        "Does not pay: over 12 months the benefit is 0 USD and the cost 90 USD. 1 instance already serves 20 rows/s: no instance is saved "
        "now. Saving starts above 35 rows/s, more than the horizon brings. It hangs most on hours: at 0.8 the net benefit is -72 USD, at "
        "1.2 it is -108 USD."
    )
    grown = worth(economics(peak_rows_per_second=20, utilization=0.7, monthly_growth=0.1), measured())
    assert "reached in month 7" in grown.verdict  # 20 x 1.1^6 is 35.4
    assert grown.payoff is Payoff.PAYS


def test_redundancy_is_kept_and_named() -> None:
    found = worth(economics(peak_rows_per_second=120, min_instances=3), measured())
    assert (found.now.instances_before, found.now.instances_after) == (certain(3), certain(3))
    assert "3 instances already serve 120 rows/s" in found.verdict
    assert found.saves_from_rows_per_second == certain(150)


def test_a_slower_model_is_told_to_cost_more() -> None:
    found = worth(economics(), measured(speedup=0.5))
    assert found.monthly_saving == certain(-10 * HOURS_PER_MONTH)
    assert "10 instances become 20, a bill 7,300 USD a month higher" in found.verdict
    assert worth(economics(peak_rows_per_second=5), measured(speedup=0.5)).verdict.count("none is saved at any load") == 1


def test_what_pays_past_the_horizon_does_not_pay() -> None:
    found = worth(economics(one_off_cost=100_000), measured(quality=-1.0))
    assert found.payoff is Payoff.DOES_NOT_PAY
    assert "earned back in 17.1 months, past the horizon; ROI -0.299" in found.verdict


def test_quality_is_told_apart() -> None:
    found = worth(economics(quality_value=100), measured(quality=Interval(estimate=1, low=0, high=2)))
    assert found.quality_benefit.estimate == 1200
    assert (found.quality_benefit.low, found.quality_benefit.high) == pytest.approx((0, 2400), abs=10)
    assert ", 1,200 (" in found.verdict


def test_nothing_hangs_on_what_changes_nothing() -> None:
    found = worth(economics(peak_rows_per_second=1, utilization=0.5), measured(speedup=1.0))
    assert found.hangs_on == ""
    assert "hangs" not in found.verdict
