"""The chance that a loss is small enough, where a part of it was measured and a part was not."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.advisor.guess import Loss

SAMPLES = 20_000
points = st.floats(-0.2, 0.2, allow_subnormal=False)
sizes = st.floats(0, 0.2, allow_subnormal=False)


@pytest.mark.parametrize(
    ("mean", "measured", "spread"),
    [(0.02, 0.0, 0.0), (0.02, 0.01, 0.005), (0.005, -0.01, 0.02), (0.001, 0.01, 0.005), (0.02, 0.0, 0.0005), (0.0002, 0.0, 0.01)],
)
@pytest.mark.parametrize("bound", [0.0, 0.01, 0.05])
def test_the_chance_is_that_of_a_normal_and_an_exponential_loss_together(mean: float, measured: float, spread: float, bound: float) -> None:
    draw = random.Random(0)
    drawn = (draw.gauss(measured, spread) + draw.expovariate(1 / mean) for _ in range(SAMPLES))
    share = sum(loss <= bound for loss in drawn) / SAMPLES
    assert Loss(mean, measured, spread).chance_within(bound) == pytest.approx(share, abs=0.02)


def test_what_was_measured_exactly_and_alone_is_certain() -> None:
    assert Loss(0.0, 0.01).chance_within(0.01) == 1
    assert Loss(0.0, 0.01).chance_within(0.0099) == 0


@given(sizes, points, sizes, points, sizes)
def test_a_chance_is_one_and_rises_with_what_is_allowed(mean: float, measured: float, spread: float, bound: float, more: float) -> None:
    loss = Loss(mean, measured, spread)
    assert -1e-9 <= loss.chance_within(bound) <= loss.chance_within(bound + more) + 1e-9 <= 1 + 2e-9
