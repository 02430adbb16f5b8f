"""When an arm is taken out: for sure worse, not on three calls, and seldom by chance."""

import math
from random import Random

import pytest

from services.inference.traffic.guardrails import ALPHA, Bounds, breach
from services.inference.traffic.tallies import ArmTally, Latencies, Moments

NONE = Moments()


def arm(calls: int, errors: int = 0, seconds: float = 0.01) -> ArmTally:
    """Calls with latencies that spread a little, without chance."""
    tally = ArmTally(calls=calls, errors=errors)
    for index in range(calls - errors):
        tally.latencies.add(seconds * (1 + index % 10 / 10))
    return tally


ERRORS = Bounds(max_error_rate=0.05, min_calls=50)
SLOW = Bounds(max_p99_ratio=2, min_calls=50)
AGREE = Bounds(min_agreement=0.95, min_calls=50)


def test_an_arm_that_fails_more_than_its_control_is_out() -> None:
    found = breach(ERRORS, arm(400, 4), arm(60, 30), NONE)
    assert found == "error rate 50.00% over 60 calls is above 5.00%; the control's is 1.00% over 400"


@pytest.mark.parametrize(
    ("control", "judged", "why"),
    [
        (arm(400), arm(49, 49), "too few calls"),
        (arm(400), arm(60, 4), "above the bound, and not for sure"),
        (arm(400, 200), arm(60, 30), "the control fails as often"),
        (arm(0), arm(60, 30), "nothing is known of the control"),
        (arm(400), arm(6000, 240), "below the bound, though above the control"),
    ],
)
def test_an_arm_that_is_not_surely_worse_stays(control: ArmTally, judged: ArmTally, why: str) -> None:
    assert breach(ERRORS, control, judged, NONE) == "", why


def test_what_is_not_guarded_is_not_judged() -> None:
    assert breach(Bounds(min_calls=1), arm(1000), arm(1000, 900, seconds=9), Moments(1000, 0.1, 0)) == ""


def test_an_arm_that_is_slower_is_out() -> None:
    found = breach(SLOW, arm(3000), arm(60, seconds=0.1), NONE)
    assert found.startswith("p99 ")
    assert "above 2 times the control's" in found


@pytest.mark.parametrize(
    ("control", "judged", "why"),
    [
        (arm(3000), arm(3000, seconds=0.012), "within the ratio"),
        (arm(100), arm(60, seconds=0.1), "a hundred calls do not tell a 99th percentile"),
        (arm(3000), arm(0), "none was answered"),
    ],
)
def test_an_arm_that_is_not_surely_slower_stays(control: ArmTally, judged: ArmTally, why: str) -> None:
    assert breach(SLOW, control, judged, NONE) == "", why


def test_a_slow_call_now_and_then_is_no_breach() -> None:
    judged = arm(1000)
    for _ in range(5):
        judged.latencies.add(9.0)
    assert breach(SLOW, arm(3000), judged, NONE) == ""


def test_answers_that_disagree_are_a_breach() -> None:
    found = breach(AGREE, arm(1), arm(0), Moments(200, 0.8, 1.0))
    assert found == "agreement 0.8000 over 200 copied calls is below 0.95"
    for agreement in (Moments(49, 0.1, 1.0), Moments(200, 0.96, 1.0), Moments(60, 0.93, 1.0)):
        assert breach(AGREE, arm(1), arm(0), agreement) == ""


def test_a_sound_arm_judged_after_every_call_is_seldom_taken_out() -> None:
    random, runs, out = Random(3), 60, 0
    bounds = Bounds(max_error_rate=0.02, max_p99_ratio=1, min_calls=20)

    def call(tally: ArmTally) -> None:
        tally.calls += 1
        if random.random() < 0.02:
            tally.errors += 1
        else:
            tally.latencies.add(random.lognormvariate(-4, 0.3))

    for _ in range(runs):
        control, judged = ArmTally(latencies=Latencies()), ArmTally(latencies=Latencies())
        for _ in range(1500):
            call(control)
        for _ in range(100):
            call(judged)
            if breach(bounds, control, judged, NONE):
                out += 1
                break
    assert out <= 2 * ALPHA * runs + 3 * math.sqrt(runs * 2 * ALPHA), out
