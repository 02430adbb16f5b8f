import numpy as np
import pytest

from services.optimization.evaluation.latency import MAX_ROUNDS, MIN_ROUNDS, Workload, speedup, summarize, take_turns


class Machine:
    """A clock that only runs advance, and the order in which they did."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def run(self, name: str, seconds: float) -> None:
        self.order.append(name)
        self.now += seconds

    def clock(self) -> float:
        return self.now


def turns(costs: dict[str, float], budget_seconds: float) -> tuple[list[list[float]], Machine]:
    machine = Machine()
    runs = [lambda name=name, cost=cost: machine.run(name, cost) for name, cost in costs.items()]
    return take_turns(runs, budget_seconds, machine.clock), machine


def test_models_alternate_and_the_order_rotates() -> None:
    _, machine = turns({"a": 1.0, "b": 1.0}, budget_seconds=20)
    assert machine.order[2:10] == list("abbaabba")


def test_a_slow_candidate_stops_at_its_share_and_the_others_go_on() -> None:
    (original, slow), machine = turns({"original": 0.1, "slow": 2.0}, budget_seconds=20)
    assert len(slow) == MIN_ROUNDS
    assert len(original) >= 90
    assert machine.now <= 20 + 2 * 2.1 + 0.1


def test_time_is_bounded_by_rounds_however_large_the_budget() -> None:
    (original, fast), _ = turns({"original": 0.001, "fast": 0.0005}, budget_seconds=1e9)
    assert len(original) == len(fast) == MAX_ROUNDS


def test_short_runs_are_led_in_and_the_lead_is_not_counted() -> None:
    (seconds, _), machine = turns({"a": 0.01, "b": 1.0}, budget_seconds=0)
    assert seconds == pytest.approx([0.01] * MIN_ROUNDS)
    assert machine.order.count("a") == 2 + 2 * MIN_ROUNDS


def test_summary() -> None:
    found = summarize(Workload(8, 16), [0.1] * 99 + [1.0])
    assert (found.p50_ms, found.rows_per_second, found.samples) == pytest.approx((100, 80, 100))
    assert found.p90_ms == pytest.approx(100)
    assert found.p99_ms > 100


def test_speedup_is_the_geometric_mean_over_workloads() -> None:
    found = speedup([[1.0] * 9, [1.0] * 9], [[0.25] * 9, [1.0] * 9], seed=0)
    assert (found.low, found.estimate, found.high) == pytest.approx((2, 2, 2))


def test_pairing_cancels_what_disturbs_both_and_the_interval_covers_the_truth() -> None:
    random = np.random.default_rng(3)
    weather = random.uniform(1, 5, 60)
    noise = random.normal(1, 0.05, (2, 60))
    found = speedup([(weather * noise[0]).tolist()], [(weather * noise[1] / 1.5).tolist()], seed=0)
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 0.15


def test_a_candidate_with_fewer_rounds_is_paired_with_the_first() -> None:
    found = speedup([[2.0] * 5 + [100.0] * 5], [[1.0] * 5], seed=0)
    assert found.estimate == pytest.approx(2)
