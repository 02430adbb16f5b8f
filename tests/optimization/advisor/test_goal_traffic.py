"""The rate at which a latency target holds is the rate that is played."""

import pytest

from services.optimization.advisor.goal import Goal
from services.optimization.advisor.scenarios import Targets
from services.optimization.advisor.serving.traffic import Traffic

AT_60 = Targets(max_p99_ms=20, at_rows_per_second=60)


def test_without_a_rate_of_its_own_the_traffic_is_played_as_told() -> None:
    traffic = Traffic(callers=4)
    assert Goal(traffic=traffic, targets=Targets(max_p99_ms=20)).served_traffic == traffic


@pytest.mark.parametrize(
    ("traffic", "requests_per_second"),
    [(Traffic(), 60), (Traffic(request_rows=(2, 4)), 20), (Traffic(gaps_s=(1.0, 3.0)), 60)],
)
def test_a_targets_rate_is_played(traffic: Traffic, requests_per_second: float) -> None:
    goal = Goal(targets=AT_60, traffic=traffic)
    assert goal.served_traffic == traffic.model_copy(update={"rate": requests_per_second})
    assert goal.served_traffic.is_open_loop
    assert list(goal.contradictions()) == []


def test_two_rates_that_differ_are_a_contradiction() -> None:
    assert list(Goal(targets=AT_60, traffic=Traffic(rate=20, request_rows=(3,))).contradictions()) == []
    (fault,) = Goal(targets=AT_60, traffic=Traffic(rate=20)).contradictions()
    assert (fault.field, fault.nearest) == ("at_rows_per_second", 20)
