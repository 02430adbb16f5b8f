import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.gates import choose, judge
from services.optimization.recipe import Gates, Objective, Step
from services.optimization.report import Candidate, Interval, Measurement, Verdict, WorkloadResult

GATES = Gates(min_fidelity=0.99, min_gain=1.05, min_examples=100)


def interval(low: float, high: float) -> Interval:
    return Interval(estimate=(low + high) / 2, low=low, high=high)


GOOD, FAST = interval(0.995, 0.997), interval(1.4, 1.6)


@pytest.mark.parametrize(
    ("fidelity", "examples", "speedup", "verdict"),
    [
        (GOOD, 200, FAST, Verdict.ACCEPT),
        (interval(0.990, 0.991), 100, interval(1.05, 1.06), Verdict.ACCEPT),
        (interval(0.97, 0.989), 200, FAST, Verdict.REJECT_ACCURACY),
        (interval(0.97, 0.989), 3, FAST, Verdict.REJECT_ACCURACY),
        (interval(0.985, 0.995), 200, FAST, Verdict.INCONCLUSIVE),
        (GOOD, 99, FAST, Verdict.INCONCLUSIVE),
        (GOOD, 200, interval(0.6, 0.9), Verdict.REJECT_NO_GAIN),
        (GOOD, 200, interval(0.9, 1.2), Verdict.INCONCLUSIVE),
    ],
)
def test_verdict(fidelity: Interval, examples: int, speedup: Interval, verdict: Verdict) -> None:
    assert judge(fidelity, examples, speedup, 2.0, GATES, Objective.THROUGHPUT).verdict is verdict


def test_reason_tells_the_figures_that_decided() -> None:
    reason = judge(GOOD, 200, interval(0.6, 0.8), 2.0, GATES, Objective.THROUGHPUT).reason
    assert "0.70" in reason
    assert "0.60 to 0.80" in reason
    assert "1.05" in reason


def test_size_objective_gains_by_size() -> None:
    assert judge(GOOD, 200, interval(0.2, 0.3), 2.0, GATES, Objective.SIZE).verdict is Verdict.ACCEPT
    assert judge(GOOD, 200, FAST, 1.0, GATES, Objective.SIZE).verdict is Verdict.REJECT_NO_GAIN


def test_gain_rule_off() -> None:
    off = Gates(min_gain=0)
    assert judge(GOOD, 200, interval(0.1, 0.2), 0.5, off, Objective.THROUGHPUT).verdict is Verdict.ACCEPT


@given(st.floats(0.5, 1), st.floats(0, 0.5), st.integers(1, 500), st.floats(0.1, 4), st.floats(0, 2))
def test_nothing_below_a_gate_is_ever_accepted(low: float, width: float, examples: int, gain: float, gain_width: float) -> None:
    found = judge(interval(low, min(1, low + width)), examples, interval(gain, gain + gain_width), 1.0, GATES, Objective.THROUGHPUT)
    assert (found.verdict is Verdict.ACCEPT) == (low >= 0.99 and examples >= 100 and gain >= 1.05)


def candidate(name: str, verdict: Verdict, speed: float, p50_ms: float, size: int) -> Candidate:
    short = WorkloadResult(batch_rows=1, tokens=16, p50_ms=p50_ms, p90_ms=9, p99_ms=9, rows_per_second=1, samples=5)
    long = short.model_copy(update={"batch_rows": 8, "p50_ms": 100 - p50_ms})
    measurement = Measurement(size_bytes=size, workloads=(long, short))
    return Candidate(
        name=name, steps=(Step(technique="bf16"),), verdict=verdict, reason="", measurement=measurement, speedup=interval(speed, speed)
    )


@pytest.mark.parametrize(
    ("objective", "chosen"), [(Objective.THROUGHPUT, "fast"), (Objective.LATENCY, "prompt"), (Objective.SIZE, "small")]
)
def test_objective_chooses_among_the_accepted(objective: Objective, chosen: str) -> None:
    candidates = [
        candidate("rejected", Verdict.REJECT_ACCURACY, 9, 0.1, 1),
        candidate("fast", Verdict.ACCEPT, 3, 5, 300),
        candidate("prompt", Verdict.ACCEPT, 2, 1, 300),
        candidate("small", Verdict.ACCEPT, 2, 5, 100),
    ]
    assert choose(candidates, objective) == chosen


def test_nothing_accepted_nothing_chosen() -> None:
    assert choose([candidate("a", Verdict.INCONCLUSIVE, 3, 1, 1)], Objective.THROUGHPUT) == ""
