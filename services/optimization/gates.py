"""Verdicts from figures: no model, no clock, no file."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.optimization.recipe import Gates, Objective
from services.optimization.report import Candidate, Interval, Verdict, WorkloadResult


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    reason: str


def _show(interval: Interval, digits: int) -> str:
    return f"{interval.estimate:.{digits}f} (95 % interval {interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _judge_fidelity(fidelity: Interval, examples: int, gates: Gates) -> Judgement | None:
    """None when the rule holds."""
    told = f"fidelity {_show(fidelity, 4)} over {examples} examples"
    if fidelity.high < gates.min_fidelity:
        return Judgement(Verdict.REJECT_ACCURACY, f"{told} is below {gates.min_fidelity:g}")
    if examples < gates.min_examples:
        return Judgement(Verdict.INCONCLUSIVE, f"{told}: at least {gates.min_examples} examples are needed to tell")
    if fidelity.low < gates.min_fidelity:
        return Judgement(Verdict.INCONCLUSIVE, f"{told} leaves open whether it reaches {gates.min_fidelity:g}: more examples would tell")
    return None


def _judge_gain(gain: Interval, what: str, gates: Gates) -> Judgement | None:
    """None when the rule holds or is off."""
    if gates.min_gain == 0 or gain.low >= gates.min_gain:
        return None
    told = f"{what} {_show(gain, 2)}"
    if gain.high < gates.min_gain:
        return Judgement(Verdict.REJECT_NO_GAIN, f"{told} is below {gates.min_gain:g}")
    return Judgement(Verdict.INCONCLUSIVE, f"{told} leaves open whether it reaches {gates.min_gain:g}")


def judge(fidelity: Interval, examples: int, speedup: Interval, size_ratio: float, gates: Gates, objective: Objective) -> Judgement:
    """Accuracy before gain. A candidate is accepted when the lower bounds reach the gates; it is rejected when the upper ones do not."""
    exact = Interval(estimate=size_ratio, low=size_ratio, high=size_ratio)
    gain, what = (exact, "size ratio") if objective is Objective.SIZE else (speedup, "speed-up")
    fault = _judge_fidelity(fidelity, examples, gates) or _judge_gain(gain, what, gates)
    if fault is not None:
        return fault
    told = f"fidelity {_show(fidelity, 4)} over {examples} examples, speed-up {_show(speedup, 2)}, {size_ratio:.2f} times smaller"
    return Judgement(Verdict.ACCEPT, told)


def _shortest(workloads: Sequence[WorkloadResult]) -> WorkloadResult:
    return min(workloads, key=lambda workload: (workload.batch_rows, workload.tokens))


def _merit(candidate: Candidate, objective: Objective) -> float:
    """Higher is better."""
    if candidate.measurement is None or candidate.speedup is None:
        raise ValueError(f"{candidate.name} is accepted and unmeasured")
    match objective:
        case Objective.THROUGHPUT:
            return candidate.speedup.estimate
        case Objective.LATENCY:
            return -_shortest(candidate.measurement.workloads).p50_ms
        case Objective.SIZE:
            return -float(candidate.measurement.size_bytes)


def choose(candidates: Sequence[Candidate], objective: Objective) -> str:
    """Name of the best accepted candidate, "" when none was accepted. Ties go to the one asked for first."""
    accepted = [candidate for candidate in candidates if candidate.verdict is Verdict.ACCEPT]
    return max(accepted, key=lambda candidate: _merit(candidate, objective)).name if accepted else ""
