"""How a rollout stands and what to do next. Pure: messages in, a decision with its reason out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hone import rollout, rollout_figures
from hone.inference.v1 import inference_pb2 as pb
from hone.repository.v1 import models_pb2
from hone.rollout import Prediction
from hone.rollout_figures import Figure

ENOUGH_CALLS = 1000  # of each arm: ten of them are beyond the 99th percentile


class Decision(StrEnum):
    """What to do next."""

    WAIT = "wait"
    SPLIT = "start a split"  # copies alone have told all that they can
    PROMOTE = "promote"
    ROLL_BACK = "roll back"
    DONE = "done"  # the channel points at the version


@dataclass(frozen=True)
class Status:
    """A rollout as it stands. `found` is what was counted; None where no replica routes by the split yet, or where it has ended."""

    decision: Decision
    reason: str
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    found: pb.GetExperimentResponse | None = None


@dataclass(frozen=True, slots=True)
class _Rules:
    """`limits` are the split's guardrails; `least_agreement` is None where agreement is not judged."""

    limits: models_pb2.Guardrails
    least_agreement: float | None
    enough_calls: int
    lower_is_better: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Arms:
    """`advised` is None where it answers copies alone; `shadow` is empty where there is none."""

    control: pb.ArmReport
    advised: pb.ArmReport | None
    shadow: pb.ShadowReport


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one of the figures says: something to roll back for, something to wait for, or, as PROMOTE, nothing against the version."""

    decision: Decision
    reason: str


def status(
    wanted: Prediction,
    control: models_pb2.ModelVersion,
    traffic: models_pb2.Traffic,
    found: pb.GetExperimentResponse,
    *,
    enough_calls: int = ENOUGH_CALLS,
    lower_is_better: Sequence[str] = (),
) -> Status:
    """Where a rollout stands.

    Args:
        control: the version that the channel points at.
        traffic: the channel's split as it is wanted.
        found: what was counted of it; of another revision, or without arms, where no replica routes by it yet.
        enough_calls: of each arm, before the advised version is said to be no worse.
        lower_is_better: names of outcomes of which less is better, such as complaints.

    Raises ValueError where no split tries the version.
    """
    if not traffic.arms and control.version == wanted.version:
        return Status(Decision.DONE, f"{wanted.model}:{found.channel} is version {wanted.version} now")
    rollout.check_tried(wanted, found.channel, traffic)
    if not found.arms or found.revision != traffic.revision:
        why = found.pending_reason or "it was just set"
        return Status(Decision.WAIT, f"revision {traffic.revision} of the split is not routed by yet: {why}")
    arms = _Arms(found.arms[0], next((arm for arm in found.arms[1:] if arm.version == wanted.version), None), found.shadow)
    limits = traffic.guardrails
    floor = limits.min_agreement if limits.HasField("min_agreement") else rollout.least_agreement(wanted, control.task)
    findings = list(_findings(wanted, arms, _Rules(limits, floor, enough_calls, lower_is_better)))
    return Status(
        *_conclusion(findings, Decision.PROMOTE if arms.advised is not None else Decision.SPLIT),
        tuple(rollout_figures.figures(wanted, arms.control, arms.advised, arms.shadow)),
        tuple(rollout_figures.notes(wanted, arms.control)),
        found,
    )


def _conclusion(findings: Sequence[_Finding], nothing_against: Decision) -> tuple[Decision, str]:
    """The worst finding decides."""
    for decision in (Decision.ROLL_BACK, Decision.WAIT):
        reasons = [finding.reason for finding in findings if finding.decision is decision]
        if reasons:
            return decision, "; ".join(reasons)
    return nothing_against, "; ".join(finding.reason for finding in findings)


def _findings(wanted: Prediction, arms: _Arms, rules: _Rules) -> Iterator[_Finding]:
    if arms.advised is not None:
        yield from _of_arm(arms.control, arms.advised, rules)
    if arms.shadow.version == wanted.version:
        yield from _of_copies(arms.control, arms.shadow, rules)


def _of_arm(control: pb.ArmReport, advised: pb.ArmReport, rules: _Rules) -> Iterator[_Finding]:
    if advised.taken_out:
        yield _Finding(Decision.ROLL_BACK, f"a guardrail took it out: {advised.taken_out}")
        return
    yield _calls(control, advised, rules.enough_calls)
    yield _errors(control, advised, rules.limits)
    if min(control.calls, advised.calls) >= rules.enough_calls:
        yield _slowness(control, advised, rules.limits)
    for outcome in advised.outcomes:
        yield _outcome(outcome, is_less_better=outcome.name in rules.lower_is_better)


def _calls(control: pb.ArmReport, advised: pb.ArmReport, enough: int) -> _Finding:
    told = f"it has answered {advised.calls} calls and the control {control.calls}"
    if min(control.calls, advised.calls) >= enough:
        return _Finding(Decision.PROMOTE, told)
    more = max((math.ceil((enough - arm.calls) / arm.share) for arm in (control, advised) if arm.share), default=0)
    return _Finding(Decision.WAIT, f"{told}; {enough} each are enough, after about {more} more calls of the channel")


def _errors(control: pb.ArmReport, advised: pb.ArmReport, limits: models_pb2.Guardrails) -> _Finding:
    """The intervals hold at every look: where they lie apart, one is surely worse."""
    ours, theirs = advised.error_rate, control.error_rate
    told = f"{ours.estimate:.2%} of its calls failed ({ours.low:.2%} to {ours.high:.2%}), of the control's {theirs.estimate:.2%}"
    if ours.low > theirs.high:
        return _Finding(Decision.ROLL_BACK, f"{told}: it is surely worse")
    is_within = limits.HasField("max_error_rate") and ours.high <= limits.max_error_rate
    if ours.estimate <= theirs.estimate or is_within:
        return _Finding(Decision.PROMOTE, told)
    return _Finding(Decision.WAIT, f"{told}: more calls must tell whether it is worse")


def _slowness(control: pb.ArmReport, advised: pb.ArmReport, limits: models_pb2.Guardrails) -> _Finding:
    """A percentile is told without an interval: that it is surely worse, the guardrail alone can say."""
    limit = limits.max_p99_ratio if limits.HasField("max_p99_ratio") else rollout.P99_MARGIN
    if not control.p99_seconds or not advised.p99_seconds:
        return _Finding(Decision.WAIT, "one of the two has not answered a single call: there is no p99 to compare")
    ratio = advised.p99_seconds / control.p99_seconds
    told = f"its p99 is {ratio:.2f} times the control's"
    if ratio <= limit:
        return _Finding(Decision.PROMOTE, told)
    return _Finding(Decision.WAIT, f"{told}, which is more than {limit:.2f}, and not surely so yet")


def _outcome(outcome: pb.OutcomeReport, *, is_less_better: bool) -> _Finding:
    if not outcome.HasField("comparison"):
        return _Finding(Decision.WAIT, f"{outcome.name}: there are too few outcomes to compare with the control's ({outcome.count} here)")
    difference = outcome.comparison.difference
    is_worse = difference.low > 0 if is_less_better else difference.high < 0
    return _Finding(Decision.ROLL_BACK if is_worse else Decision.PROMOTE, f"{outcome.name}: {outcome.comparison.verdict}")


def _of_copies(control: pb.ArmReport, shadow: pb.ShadowReport, rules: _Rules) -> Iterator[_Finding]:
    copies = shadow.compared + shadow.failed
    if copies < rules.enough_calls:
        copied = control.share * shadow.share
        more = math.ceil((rules.enough_calls - copies) / copied) if copied else 0
        told = f"{copies} calls were copied to it; {rules.enough_calls} are enough, after about {more} more calls of the channel"
        yield _Finding(Decision.WAIT, told)
    else:
        limit = rules.limits.max_error_rate if rules.limits.HasField("max_error_rate") else rollout.MAX_ERROR_RATE
        failed = shadow.failed / copies
        yield _Finding(Decision.ROLL_BACK if failed > limit else Decision.PROMOTE, f"{failed:.2%} of {copies} calls copied to it failed")
    if rules.least_agreement is not None and shadow.compared:
        yield _agreement(shadow.agreement, rules.least_agreement)


def _agreement(found: pb.Estimate, least: float) -> _Finding:
    told = f"its answers agree with the control's to {found.estimate:.4f} ({found.low:.4f} to {found.high:.4f})"
    if found.high < least:
        return _Finding(Decision.ROLL_BACK, f"{told}, surely less than {least:.4f}")
    if found.estimate < least:
        return _Finding(Decision.WAIT, f"{told}, less than {least:.4f}, and not surely so yet")
    return _Finding(Decision.PROMOTE, told)
