"""Verdicts from figures: no model, no clock, no file."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.optimization.evaluation.metrics import Metric
from services.optimization.evaluation.quality import loss_of
from services.optimization.recipe import Gates, Objective
from services.optimization.report import Candidate, Interval, Quality, Verdict, WorkloadResult


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What was measured of a candidate. `quality` is of the metric that gates look at; None where that is the fidelity."""

    fidelity: Interval
    examples: int
    speedup: Interval
    size_ratio: float
    quality: Quality | None = None
    is_finite: bool = True


def _show(interval: Interval, digits: int) -> str:
    return f"{interval.estimate:.{digits}f} (95 % interval {interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _judge_fidelity(evidence: Evidence, gates: Gates) -> Judgement | None:
    """None when the rule holds or is off."""
    fidelity = evidence.fidelity
    if gates.min_fidelity is None:
        return None
    told = f"fidelity {_show(fidelity, 4)} over {evidence.examples} examples"
    if fidelity.high < gates.min_fidelity:
        return Judgement(Verdict.REJECT_ACCURACY, f"{told} is below {gates.min_fidelity:g}")
    if fidelity.low < gates.min_fidelity:
        return Judgement(Verdict.INCONCLUSIVE, f"{told} leaves open whether it reaches {gates.min_fidelity:g}: more examples would tell")
    return None


def _judge_loss(evidence: Evidence, gates: Gates) -> Judgement | None:
    """None when the rule holds or is off."""
    if gates.max_loss is None or evidence.quality is None:
        return None
    loss = loss_of(evidence.quality)
    told = f"{_name(evidence.quality)} {_change(evidence.quality)}, a loss of {_show(loss, 4)} over {evidence.quality.examples} examples"
    if loss.low > gates.max_loss:
        return Judgement(Verdict.REJECT_ACCURACY, f"{told}: {gates.max_loss:g} is allowed")
    if loss.high > gates.max_loss:
        return Judgement(
            Verdict.INCONCLUSIVE, f"{told} leaves open whether it is more than the {gates.max_loss:g} allowed: more examples would tell"
        )
    return None


def _name(quality: Quality) -> str:
    return {Metric.MACRO_F1: "macro F1"}.get(quality.metric, quality.metric.lower())


def _change(quality: Quality) -> str:
    return f"{quality.original.estimate:.4g} -> {quality.candidate.estimate:.4g}"


def _judge_evidence(evidence: Evidence, gates: Gates) -> Judgement | None:
    """None when there is enough of it."""
    if evidence.examples < gates.min_examples:
        told = f"fidelity {_show(evidence.fidelity, 4)} over {evidence.examples} examples"
        return Judgement(Verdict.INCONCLUSIVE, f"{told}: at least {gates.min_examples} examples are needed to tell")
    return None


def _judge_gain(gain: Interval, what: str, gates: Gates) -> Judgement | None:
    """None when the rule holds or is off."""
    if gates.min_gain == 0 or gain.low >= gates.min_gain:
        return None
    told = f"{what} {_show(gain, 2)}"
    if gain.high < gates.min_gain:
        return Judgement(Verdict.REJECT_NO_GAIN, f"{told} is below {gates.min_gain:g}")
    return Judgement(Verdict.INCONCLUSIVE, f"{told} leaves open whether it reaches {gates.min_gain:g}")


def judge(evidence: Evidence, gates: Gates, objective: Objective) -> Judgement:
    """Accuracy before gain. A candidate is accepted when the better bounds reach the gates; it is rejected when the worse ones do not.

    `gates` are those `for_metric`.
    """
    if not evidence.is_finite:
        return Judgement(Verdict.REJECT_ACCURACY, "its answers hold NaN or infinity")
    exact = Interval(estimate=evidence.size_ratio, low=evidence.size_ratio, high=evidence.size_ratio)
    gain, what = (exact, "size ratio") if objective is Objective.SIZE else (evidence.speedup, "speed-up")
    accuracy = (_judge_fidelity(evidence, gates), _judge_loss(evidence, gates))
    # What is surely too bad is told before what too few examples leave open.
    rejected = next((found for found in accuracy if found is not None and found.verdict is Verdict.REJECT_ACCURACY), None)
    open_ = next((found for found in accuracy if found is not None), None)
    fault = rejected or _judge_evidence(evidence, gates) or open_ or _judge_gain(gain, what, gates)
    if fault is not None:
        return fault
    quality = f"{_name(evidence.quality)} {_change(evidence.quality)}, " if evidence.quality is not None else ""
    told = f"{quality}fidelity {_show(evidence.fidelity, 4)} over {evidence.examples} examples, speed-up {_show(evidence.speedup, 2)}"
    return Judgement(Verdict.ACCEPT, f"{told}, {evidence.size_ratio:.2f} times smaller")


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
