"""Whether the final measurements meet explicit targets, and what they are worth."""

from typing import Any

import pytest

from services.optimization.advisor.economics import Capacity, Speedup
from services.optimization.advisor.pricing import measured
from services.optimization.advisor.scenarios import Targets
from services.optimization.advisor.serving.served import ServedAdvice, ServedCapacity, ServedFigures, ServingAdvice
from services.optimization.advisor.targets import fitting, missed
from services.optimization.evaluation.metrics import Metric
from services.optimization.report import Candidate, Interval, Measurement, Quality, Verdict


def around(value: float, by: float = 0.1) -> Interval:
    return Interval(estimate=value, low=value - by, high=value + by)


def figures(rows_per_second: float = 100.0, p99_ms: float | None = 10.0) -> ServedFigures:
    return ServedFigures(
        rows_per_second=around(rows_per_second),
        p50_ms=5.0,
        p90_ms=8.0,
        p99_ms=p99_ms,
        requests=100,
        unanswered=0,
        cpu_ms_per_row=1.0,
        asking_cpu_ms_per_row=0.1,
    )


def served(speedup: Interval | None = None, **changes: Any) -> ServedAdvice:
    return ServedAdvice(
        advice=ServingAdvice(settings={}, kept=(), not_kept=()),
        original=figures(20),
        candidate_default=figures(90),
        candidate=figures(100),
        speedup=speedup or around(5),
        settings_gain=around(1.1),
        cores=2,
        seconds=60.0,
        **changes,
    )


MODEL, FAST = Measurement(size_bytes=1000, memory_bytes=5000), around(4.0)


@pytest.mark.parametrize(
    ("targets", "field"),
    [
        (Targets(max_size_bytes=999), "max_size_bytes"),
        (Targets(max_memory_bytes=4999), "max_memory_bytes"),
        (Targets(min_served_speedup=4.95), "min_served_speedup"),
        (Targets(max_p99_ms=9.0), "max_p99_ms"),
    ],
)
def test_what_is_not_surely_reached_is_missed(targets: Targets, field: str) -> None:
    capacity = ServedCapacity(max_p99_ms=9.0, callers=4, figures=figures(p99_ms=9.5))
    (fault,) = missed(targets, MODEL, FAST, served(candidate_capacity=capacity), "")
    assert fault.startswith(f"{field}: ")


def test_what_is_reached_is_not_missed() -> None:
    capacity = ServedCapacity(max_p99_ms=10.0, callers=4, figures=figures(p99_ms=9.5))
    targets = Targets(max_size_bytes=1000, max_memory_bytes=5000, min_served_speedup=4.9, max_p99_ms=10.0)
    assert missed(targets, MODEL, FAST, served(candidate_capacity=capacity), "") == ()


def test_the_rate_of_the_traffic_decides_where_there_is_one() -> None:
    targets = Targets(max_p99_ms=10.0, at_rows_per_second=50.0)
    assert missed(targets, MODEL, FAST, served(candidate_at_rate=figures(p99_ms=9.0)), "") == ()
    assert missed(targets, MODEL, FAST, served(candidate_at_rate=figures(p99_ms=None)), "")
    assert "single caller" in missed(targets, MODEL, FAST, served(), "")[0]


def test_a_speed_that_the_gates_do_not_hold_is_missed_too() -> None:
    (fault,) = missed(Targets(min_speedup=3.95), MODEL, FAST, served(), "")
    assert fault.startswith("min_speedup: ")
    assert missed(Targets(min_speedup=3.5), MODEL, FAST, served(), "") == ()


def test_what_the_model_itself_misses_does_not_fit() -> None:
    small, large = (
        Candidate(name=name, steps=(), verdict=Verdict.ACCEPT, reason="", measurement=Measurement(size_bytes=size), speedup=FAST)
        for name, size in (("small", 10), ("large", 1000))
    )
    unmade = Candidate(name="unmade", steps=(), verdict=Verdict.INFEASIBLE, reason="")
    assert fitting(Targets(max_size_bytes=100), [small, large, unmade]) == [small]
    assert fitting(Targets(min_speedup=9), [small, large]) == []


def test_what_could_not_be_served_is_missed_with_the_reason() -> None:
    (fault,) = missed(Targets(min_served_speedup=2.0), MODEL, FAST, None, "no room")
    assert "no room" in fault
    assert missed(Targets(), MODEL, FAST, None, "no room") == ()


def candidate(metric: Metric, original: float, difference: float) -> Candidate:
    quality = Quality(
        metric=metric,
        original=around(original, 0),
        candidate=around(original, 0),
        difference=around(difference, 0.001),
        p_value=0.5,
        test="paired bootstrap",
        examples=100,
    )
    return Candidate(name="c", steps=(), verdict=Verdict.ACCEPT, reason="", qualities=(quality,))


def test_a_point_is_a_hundredth_and_better_is_positive() -> None:
    found = measured(served(), candidate(Metric.ACCURACY, 0.8, 0.02), Metric.ACCURACY, 7200)
    assert found.quality_change.estimate == pytest.approx(2.0)
    assert found.quality_change.low == pytest.approx(1.9)
    assert found.job_instance_hours == 2.0
    assert found.after == Speedup(ratio=around(5))


def test_less_perplexity_is_better() -> None:
    found = measured(served(), candidate(Metric.PERPLEXITY, 20.0, 0.05), Metric.PERPLEXITY, 0)
    assert found.quality_change.estimate == pytest.approx(-5.0)
    assert found.quality_change.low < found.quality_change.estimate < found.quality_change.high


def test_with_a_latency_target_capacities_are_those_within_it() -> None:
    both = {name: ServedCapacity(max_p99_ms=10, callers=4, figures=figures(rate)) for name, rate in (("original", 12), ("candidate", 48))}
    changes = {f"{name}_capacity": found for name, found in both.items()}
    found = measured(served(**changes), candidate(Metric.ACCURACY, 0.8, 0.0), Metric.ACCURACY, 0)
    assert found.before == Capacity(rows_per_second=around(12))
    assert found.after == Capacity(rows_per_second=around(48))
