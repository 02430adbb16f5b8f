"""What a short run through the service says of the final one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.advisor.guess import Guess
from services.optimization.advisor.served_run import ServedRun
from services.optimization.report import Interval


def run(low: float, estimate: float, own: float = 10.0) -> ServedRun:
    return ServedRun(own, Interval(estimate=estimate, low=low, high=2 * estimate))


@pytest.mark.parametrize(
    ("low", "estimate", "is_sure"),
    [
        (6.5, 7.0, True),
        (6.2, 7.0, False),  # by its own lower bound alone
        (5.7, 6.35, False),
        (7.4, 11.9, False),  # a run that tells little
        (3.0, 3.1, False),
        (6.1, 6.11, True),
    ],
)
def test_a_target_is_sure_when_a_second_run_is_likely_to_reach_it(low: float, estimate: float, is_sure: bool) -> None:
    assert run(low, estimate).is_sure_of(6.0, 10.0) is is_sure


@given(st.floats(1.5, 12), st.floats(0.01, 0.5), st.floats(1, 15))
def test_the_chance_is_that_of_a_second_run(estimate: float, doubt: float, target: float) -> None:
    """Against runs drawn at random: the second varies around the true figure as the first did, and its bound lies as far below."""
    draws = np.random.default_rng(1).normal(size=(2, 20_000)) * doubt / 1.96
    bounds = estimate * np.exp(draws[0] + draws[1] - doubt)
    found = run(estimate * math.exp(-doubt), estimate)
    assert (Guess(10.0, 0.0) * found.share).chance_of(target) == pytest.approx(np.mean(bounds >= target), abs=0.02)


@pytest.mark.parametrize(
    ("low", "estimate", "more"),
    [
        (5.7, 6.35, 6 / 5.7),  # short by its bound alone
        (4.6, 10.7, 1.25),  # a run that tells little
        (5.99, 6.0, 1.02),
        (2.9, 3.0, 2.0),  # half of what is wanted
        (0.0, 7.0, 1.25),
    ],
)
def test_what_is_to_do_better_has_to_be_so_much_faster(low: float, estimate: float, more: float) -> None:
    assert run(low, estimate).enough(6.0) == pytest.approx(10.0 * more)


def test_what_is_slower_by_itself_is_less_sure() -> None:
    assert run(6.5, 7.0).is_sure_of(6.0, 10.0)
    assert not run(6.5, 7.0).is_sure_of(6.0, 9.0)
