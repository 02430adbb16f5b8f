"""What outcomes say: intervals that hold at every look, and a difference that is found where there is one."""

import math
from collections.abc import Callable
from random import Random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.traffic.experiment import LEAST, compare, fixed_horizon, mean
from services.inference.traffic.tallies import Moments, Outcomes

ALPHA = 0.05
RUNS = 400
# What promises at most ALPHA may show by chance, three standard deviations up.
MOST = ALPHA * RUNS + 3 * math.sqrt(RUNS * ALPHA * (1 - ALPHA))
Draw = Callable[[Random, bool], float]


def rate(control: float, arm: float) -> Draw:
    return lambda random, is_arm: float(random.random() < (arm if is_arm else control))


def skewed(random: Random, is_arm: bool) -> float:
    """Values as money is spent: most of them little."""
    return random.expovariate(0.1)


def finds(draw: Draw, is_rate: bool, seed: int, looks: int, found: Callable[[Outcomes, Outcomes], bool], arm_share: float = 0.5) -> bool:
    """Whether a look after any outcome finds a difference."""
    random, control, arm = Random(seed), Outcomes(is_rate), Outcomes(is_rate)
    for _ in range(looks):
        is_arm = random.random() < arm_share
        (arm if is_arm else control).moments.add(draw(random, is_arm))
        if found(control, arm):
            return True
    return False


def always_valid(control: Outcomes, arm: Outcomes) -> bool:
    compared = compare(control, arm, ALPHA)
    return compared is not None and compared.p_value <= ALPHA


def naive(control: Outcomes, arm: Outcomes) -> bool:
    """An ordinary two-sample t-test at its large-sample limit, made again at every look."""
    a, b = control.moments, arm.moments
    error = math.sqrt(a.variance / max(1, a.count) + b.variance / max(1, b.count))
    return min(a.count, b.count) >= LEAST and error > 0 and abs(a.mean - b.mean) / error > NormalDist().inv_cdf(1 - ALPHA / 2)


@pytest.mark.parametrize(
    ("draw", "is_rate", "arm_share"), [(rate(0.1, 0.1), True, 0.5), (rate(0.05, 0.05), True, 0.1), (skewed, False, 0.5)]
)
def test_looking_after_every_outcome_finds_nothing_where_nothing_is(draw: Draw, is_rate: bool, arm_share: float) -> None:
    wrong = sum(finds(draw, is_rate, seed, 300, always_valid, arm_share) for seed in range(RUNS))
    assert wrong <= MOST, wrong


def test_an_ordinary_test_looked_at_as_often_finds_what_is_not_there() -> None:
    """Without this the test above could pass by never finding anything, or by looking too seldom."""
    wrong = sum(finds(rate(0.1, 0.1), True, seed, 300, naive) for seed in range(RUNS))
    assert wrong > 2 * MOST, wrong


def test_a_difference_is_found_soon() -> None:
    found = sum(finds(rate(0.1, 0.2), True, seed, 2000, always_valid) for seed in range(20))
    assert found >= 18, found


def test_an_experiment_between_equals_holds_the_truth_in_its_interval() -> None:
    random, wrong = Random(8), 0
    for _ in range(RUNS):
        outcomes = Outcomes(False)
        for count in range(1, 200):
            outcomes.moments.add(random.gauss(3, 2))
            found = mean(outcomes, ALPHA)
            if count >= LEAST and not found.low <= 3 <= found.high:
                wrong += 1
                break
    assert wrong <= MOST, wrong


MOMENTS = st.builds(
    lambda count, middle, spread: Moments(count, middle, spread * spread * (count - 1)),
    st.integers(LEAST, 100_000),
    st.floats(-100, 100),
    st.floats(0.01, 100),
)


@given(MOMENTS, MOMENTS, st.floats(0.001, 0.2))
def test_the_p_value_and_the_interval_say_the_same(control: Moments, arm: Moments, alpha: float) -> None:
    found = compare(Outcomes(False, control), Outcomes(False, arm), alpha)
    assert found is not None
    low, high = found.difference.low, found.difference.high
    assert low <= found.difference.estimate == arm.mean - control.mean <= high
    if abs(found.p_value - alpha) > 1e-9:
        assert (found.p_value < alpha) == (low > 0 or high < 0)
    swapped = compare(Outcomes(False, arm), Outcomes(False, control), alpha)
    assert swapped is not None
    assert (swapped.p_value, -swapped.difference.high) == pytest.approx((found.p_value, low))


@pytest.mark.parametrize(
    ("clicks", "verdict"), [(100, "no difference found so far: +0 points"), (200, "higher than the control: +10 points"), (20, "lower")]
)
def test_the_verdict_is_told_in_words(clicks: int, verdict: str) -> None:
    control, arm = Outcomes(True), Outcomes(True)
    for outcomes, count in ((control, 100), (arm, clicks)):
        outcomes.moments.add(1, count)
        outcomes.moments.add(0, 1000 - count)
    found = compare(control, arm, ALPHA)
    assert found is not None
    assert found.verdict.startswith(verdict)
    assert "(0.95 interval " in found.verdict


def test_few_outcomes_say_nothing_and_equal_ones_prove_nothing() -> None:
    few, enough = Outcomes(True, Moments(LEAST - 1, 1.0, 0.0)), Outcomes(True, Moments(LEAST, 0.0, 0.0))
    assert compare(few, enough, ALPHA) is None
    assert fixed_horizon(few, enough, ALPHA, 0.1, 0.8) is None
    alike = compare(Outcomes(False, Moments(50, 1.0, 0.0)), Outcomes(False, Moments(50, 2.0, 0.0)), ALPHA)
    assert alike is not None
    assert alike.p_value == 1
    assert (alike.difference.low, alike.difference.high) == (-math.inf, math.inf)


def test_the_fixed_horizon_is_the_textbooks_and_keeps_its_p_value_until_then() -> None:
    """Comparing 10 % with 12 % at 80 % power takes about 3,840 each."""
    control, arm = Outcomes(True), Outcomes(True)
    for outcomes, clicks in ((control, 300), (arm, 360)):
        outcomes.moments.add(1, clicks)
        outcomes.moments.add(0, 3000 - clicks)
    before = fixed_horizon(control, arm, ALPHA, 0.02, 0.8)
    assert before is not None
    assert 3800 < before.needed_per_arm < 3900
    assert (before.reached, before.p_value) == (False, None)
    for outcomes in (control, arm):
        outcomes.moments.add(0, 1000)
    after = fixed_horizon(control, arm, ALPHA, 0.02, 0.8)
    assert after is not None
    assert after.reached
    assert after.p_value == pytest.approx(0.0146, abs=0.002)
