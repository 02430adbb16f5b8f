"""When an arm is worse than its control for sure: the pure judgement behind a rollback."""

from dataclasses import dataclass

from services.inference.traffic.rates import interval, surely_above, surely_below
from services.inference.traffic.tallies import ArmTally, Latencies, Moments

# A sound arm is taken out by one of its guardrails with at most this chance, over the whole life of the split.
ALPHA = 0.01
SLOWEST = 0.01  # the share of calls above the 99th percentile


@dataclass(frozen=True, slots=True)
class Bounds:
    """See the repository's guardrails; None: not guarded."""

    max_error_rate: float | None = None
    max_p99_ratio: float | None = None
    min_agreement: float | None = None
    min_calls: int = 100


def breach(bounds: Bounds, control: ArmTally, arm: ArmTally, agreement: Moments) -> str:
    """The guardrail that the arm has breached, in words; empty where none has been, or where too little is known.

    `agreement` is over copied calls, each 0 to 1, of a shadow of the arm's version. The judgement may be made after every call: each
    guardrail errs with a chance of at most ALPHA at all looks together. Calls are taken to be independent of one another.
    """
    reason = ""
    if arm.calls >= bounds.min_calls:
        reason = _errors(bounds, control, arm) or _slowness(bounds, control.latencies, arm.latencies)
    if not reason and agreement.count >= bounds.min_calls:
        reason = _disagreement(bounds, agreement)
    return reason


def _errors(bounds: Bounds, control: ArmTally, arm: ArmTally) -> str:
    """Above the bound, and above the control too: what fails on both is not the arm's fault."""
    if bounds.max_error_rate is None or not surely_above(arm.errors, arm.calls, bounds.max_error_rate, ALPHA / 2):
        return ""
    ceiling = interval(control.errors, control.calls, ALPHA / 4).high
    if not surely_above(arm.errors, arm.calls, ceiling, ALPHA / 4):
        return ""
    return (
        f"error rate {arm.errors / arm.calls:.2%} over {arm.calls} calls is above {bounds.max_error_rate:.2%}; "
        f"the control's is {control.errors / max(1, control.calls):.2%} over {control.calls}"
    )


def _slowness(bounds: Bounds, control: Latencies, arm: Latencies) -> str:
    """More of the arm's calls than a hundredth take longer than the ratio times what the control's 99th percentile can be at most."""
    ceiling_s = _p99_at_most(control)
    if bounds.max_p99_ratio is None or ceiling_s is None:
        return ""
    slow, calls = arm.above(bounds.max_p99_ratio * ceiling_s), arm.count
    if not surely_above(slow, calls, SLOWEST, ALPHA / 2):
        return ""
    return (
        f"p99 {arm.quantile(0.99) * 1e3:.3g} ms over {calls} calls is above {bounds.max_p99_ratio:g} times the control's, "
        f"{control.quantile(0.99) * 1e3:.3g} ms over {control.count}"
    )


def _p99_at_most(latencies: Latencies) -> float | None:
    """Seconds that surely fewer than a hundredth of the calls exceed; None while there are too few to say so."""
    count = latencies.count
    return next((end_s for end_s, above in latencies.ends() if surely_below(above, count, SLOWEST, ALPHA / 2)), None)


def _disagreement(bounds: Bounds, agreement: Moments) -> str:
    if bounds.min_agreement is None or not surely_below(agreement.total, agreement.count, bounds.min_agreement, ALPHA):
        return ""
    return f"agreement {agreement.mean:.4f} over {agreement.count} copied calls is below {bounds.min_agreement:g}"
