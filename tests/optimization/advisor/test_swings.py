"""Which input the net benefit hangs on."""

import pytest

from services.optimization.advisor.economics import Capacity, Measured
from services.optimization.advisor.value import worth
from services.optimization.report import Interval
from tests.optimization.advisor.priced import around, economics, measured


def test_sensitivity_moves_each_input_alone() -> None:
    told = economics(hours=10, hourly_rate=100, horizon_months=10)
    found = worth(told, measured(speedup=Interval(estimate=5, low=2, high=10), job_hours=5))
    by_name = {swing.name: swing for swing in found.sensitivity}
    assert found.hangs_on == found.sensitivity[0].name == "speedup"
    speedup, hours, horizon = by_name["speedup"], by_name["hours"], by_name["horizon_months"]
    assert (speedup.less, speedup.more) == (2, 10)
    assert speedup.net_at_less == worth(told, measured(speedup=2.0, job_hours=5)).net_benefit.estimate
    assert (hours.less, hours.more) == (8, 12)
    assert hours.net_at_less - hours.net_at_more == pytest.approx(400)
    assert (horizon.less, horizon.more) == (8, 12)
    assert by_name["job_instance_hours"].width == pytest.approx(2)
    assert (by_name["min_instances"].less, by_name["min_instances"].more) == (1, 2)
    assert by_name["utilization"].more == 1
    assert "monthly_growth" not in by_name
    assert "rows_per_second_before" not in by_name


def test_separate_measurements_swing_by_their_own_names() -> None:
    apart = Measured(
        before=Capacity(rows_per_second=around(50, 1.5)),
        after=Capacity(rows_per_second=around(100, 1.5)),
        quality_change=Interval(estimate=0, low=-1, high=1),
    )
    names = {swing.name for swing in worth(economics(quality_value=1), apart).sensitivity if swing.width}
    assert {"rows_per_second_before", "rows_per_second_after", "quality_change"} <= names
    assert "speedup" not in names
