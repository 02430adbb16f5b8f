"""Instances for a load, months for a number of rows, and samples: laws and corners."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.advisor import draws, returns
from services.optimization.advisor.fleet import instances, loads


@pytest.mark.parametrize(
    ("load", "capacity", "least", "needed"),
    [
        (100, 50 * 1.0, 1, 2),
        (100.001, 50, 1, 3),
        (21, 0.7 * 3, 1, 10),  # 0.7 * 3 is a little less than 2.1
        (0.3, 0.1, 1, 3),
        (1e-9, 50, 1, 1),
        (100, 50, 5, 5),
        (1e9, 1, 1, 10**9),
    ],
)
def test_instances(load: float, capacity: float, least: int, needed: int) -> None:
    assert instances(load, capacity, least) == needed


@given(st.integers(1, 10_000), st.floats(0.01, 1e4), st.floats(0.1, 1))
def test_a_load_that_so_many_serve_exactly_needs_no_more(count: int, rows: float, utilization: float) -> None:
    assert instances(count * rows * utilization, rows * utilization, 1) == count


@given(st.floats(0.1, 1e6), st.floats(-0.5, 0.5), st.integers(1, 24))
def test_rows_served_over_the_months_are_the_rows_asked_for(rows_per_month: float, growth: float, months: int) -> None:
    rows = math.fsum(loads(rows_per_month, growth, months))
    assert returns.months_to_serve(rows, rows_per_month, growth) == pytest.approx(months, rel=1e-4)


@given(st.integers(0, 2**32))
def test_samples_are_spread_over_all_strata(seed: int) -> None:
    columns = list(zip(*draws.scores(2, seed), strict=True))
    assert sorted(columns[0]) == sorted(columns[1])
    assert len(set(columns[0])) == draws.COUNT
    assert columns[0] != columns[1]


def test_returns_of_figures_too_small_to_divide_by() -> None:
    assert returns.payback_months(5e-324, 1, 12) == math.inf
    assert returns.payback_months(5e-324, 0, 12) == 0
    assert returns.break_even_rows(1, 5e-324) == math.inf
    assert returns.months_to_serve(1, 5e-324, -0.1) == math.inf


def test_samples_of_two_measurements_are_independent() -> None:
    product = math.fsum(one * other for one, other in draws.scores(2, seed=0)) / draws.COUNT
    assert abs(product) < 4 / math.sqrt(draws.COUNT)
