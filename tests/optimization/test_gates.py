import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.evaluation.gates import Evidence, Judgement, choose, judge
from services.optimization.evaluation.metrics import Metric
from services.optimization.recipe import Gates, Objective, Step
from services.optimization.report import Candidate, Interval, Measurement, Quality, Verdict, WorkloadResult

GATES = Gates(min_fidelity=0.99, min_gain=1.05, min_examples=100)


def interval(low: float, high: float) -> Interval:
    return Interval(estimate=(low + high) / 2, low=low, high=high)


GOOD, FAST = interval(0.995, 0.997), interval(1.4, 1.6)
SHARE = interval(0.8, 0.9)


def judged(
    fidelity: Interval = GOOD,
    examples: int = 200,
    speedup: Interval = FAST,
    size_ratio: float = 2.0,
    gates: Gates = GATES,
    objective: Objective = Objective.THROUGHPUT,
    **more: object,
) -> Judgement:
    evidence = {"fidelity": fidelity, "examples": examples, "speedup": speedup, "size_ratio": size_ratio} | more
    return judge(Evidence(**evidence), gates, objective)  # type: ignore[arg-type]


def quality(low: float, high: float, metric: Metric = Metric.ACCURACY) -> Quality:
    """One whose difference lies between `low` and `high`."""
    difference = interval(low, high)
    return Quality(metric=metric, original=SHARE, candidate=SHARE, difference=difference, p_value=0.5, test="t", examples=200)


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
    assert judged(fidelity, examples, speedup).verdict is verdict


def test_reason_tells_the_figures_that_decided() -> None:
    reason = judged(speedup=interval(0.6, 0.8)).reason
    assert "0.70" in reason
    assert "0.60 to 0.80" in reason
    assert "1.05" in reason


def test_size_objective_gains_by_size() -> None:
    assert judged(speedup=interval(0.2, 0.3), objective=Objective.SIZE).verdict is Verdict.ACCEPT
    assert judged(size_ratio=1.0, objective=Objective.SIZE).verdict is Verdict.REJECT_NO_GAIN


def test_gain_rule_off() -> None:
    assert judged(speedup=interval(0.1, 0.2), size_ratio=0.5, gates=Gates(min_gain=0)).verdict is Verdict.ACCEPT


BY_ACCURACY = Gates().for_metric(Metric.ACCURACY)


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [
        (Metric.ACCURACY, -0.009, 0.02, Verdict.ACCEPT),
        (Metric.ACCURACY, -0.05, -0.011, Verdict.REJECT_ACCURACY),
        (Metric.ACCURACY, -0.02, 0.01, Verdict.INCONCLUSIVE),
        (Metric.MACRO_F1, -0.02, 0.01, Verdict.INCONCLUSIVE),
        (Metric.PERPLEXITY, -0.1, 0.04, Verdict.ACCEPT),
        (Metric.PERPLEXITY, 0.06, 0.09, Verdict.REJECT_ACCURACY),
        (Metric.PERPLEXITY, 0.04, 0.09, Verdict.INCONCLUSIVE),
    ],
)
def test_a_loss_is_judged_by_its_worse_bound(metric: Metric, low: float, high: float, verdict: Verdict) -> None:
    gates = Gates().for_metric(metric)
    found = judged(fidelity=interval(0.5, 0.6), gates=gates, quality=quality(low, high, metric))
    assert found.verdict is verdict


def test_fidelity_is_a_gate_beside_the_metric_when_asked() -> None:
    both = Gates(min_fidelity=0.99).for_metric(Metric.ACCURACY)
    assert judged(gates=both, quality=quality(0, 0.01)).verdict is Verdict.ACCEPT
    assert judged(fidelity=interval(0.5, 0.6), gates=both, quality=quality(0, 0.01)).verdict is Verdict.REJECT_ACCURACY


def test_what_is_surely_worse_is_rejected_though_another_rule_is_open() -> None:
    both = Gates(min_fidelity=0.99).for_metric(Metric.ACCURACY)
    assert judged(fidelity=interval(0.9, 1), gates=both, quality=quality(-0.2, -0.1)).verdict is Verdict.REJECT_ACCURACY


def test_no_number_is_never_accepted() -> None:
    assert judged(gates=BY_ACCURACY, is_finite=False).verdict is Verdict.REJECT_ACCURACY
    assert "NaN" in judged(fidelity=interval(0, 0), is_finite=False).reason


@given(st.floats(0.5, 1), st.floats(0, 0.5), st.integers(1, 500), st.floats(0.1, 4), st.floats(0, 2))
def test_nothing_below_a_gate_is_ever_accepted(low: float, width: float, examples: int, gain: float, gain_width: float) -> None:
    found = judged(interval(low, min(1, low + width)), examples, interval(gain, gain + gain_width), 1.0)
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
