"""Between the contract's messages and a split's counts."""

import math

from hone.inference.v1 import inference_pb2 as pb

from services.chassis.faults import InvalidField, WrongState
from services.inference.traffic import experiment
from services.inference.traffic.live import LiveSplit, Observation
from services.inference.traffic.rates import Estimate, interval
from services.inference.traffic.splits import Splits
from services.inference.traffic.tallies import ArmTally, Outcomes, ShadowTally
from services.repository.references import DEFAULT_CHANNEL, check_channel, check_name
from services.repository.traffic import Arm

ALPHA, LEAST_ALPHA, MOST_ALPHA = 0.05, 0.0001, 0.5
POWER, LEAST_POWER, MOST_POWER = 0.8, 0.5, 0.9999
MAX_KEY_CHARS = 128


def live_split(splits: Splits, model: str, channel: str) -> LiveSplit:
    """Raises BadName, NotFound."""
    return splits.get(check_name(model), check_channel(channel or DEFAULT_CHANNEL))


def record(live: LiveSplit, request: pb.RecordOutcomeRequest) -> bool:
    """Whether it was counted. Raises InvalidField, NotFound, WrongState."""
    kind = request.WhichOneof("observation")
    if kind is None:
        raise InvalidField("observation", "must be a value or a success")
    if request.revision not in (0, live.split.revision):
        raise WrongState(f"revision: {request.revision} is not the one that runs, which is {live.split.revision}")
    if len(request.idempotency_key) > MAX_KEY_CHARS:
        raise InvalidField("idempotency_key", f"has {len(request.idempotency_key)} characters, at most {MAX_KEY_CHARS} are allowed")
    value = float(request.success) if kind == "success" else request.value
    return live.record(request.variant, Observation(request.name, value, kind == "success", request.count or 1), request.idempotency_key)


def served_arms(splits: Splits, model: str, version: int) -> list[pb.ServedArm]:
    """The arms that a version answers."""
    return [
        pb.ServedArm(
            channel=live.split.channel,
            arm=arm.name,
            revision=live.split.revision,
            share=live.shares()[arm.name],
            taken_out=live.taken_out.get(arm.name, ""),
        )
        for live in splits.live()
        for arm in live.plan.arms
        if (live.split.model, arm.version) == (model, version)
    ]


def experiment_message(splits: Splits, request: pb.GetExperimentRequest) -> pb.GetExperimentResponse:
    """Raises BadName, InvalidField, NotFound."""
    request = _checked(request)
    live = live_split(splits, request.model, request.channel)
    total, split, shares = live.total(), live.split, live.shares()
    control = total.arm(live.plan.control.name)
    pending = splits.pending(split.model, split.channel)
    return pb.GetExperimentResponse(
        model=split.model,
        channel=split.channel,
        experiment=live.plan.experiment,
        revision=split.revision,
        arms=[
            _arm(arm, total.arm(arm.name), None if arm is live.plan.control else control, shares[arm.name], live, request)
            for arm in live.plan.arms
        ],
        shadow=_shadow(live, total.shadow, request.alpha),
        replicas=live.replicas + 1,
        pending_revision=pending.revision if pending is not None else 0,
        pending_reason=pending.reason if pending is not None else "",
    )


def _checked(request: pb.GetExperimentRequest) -> pb.GetExperimentRequest:
    """With the defaults put in. Raises InvalidField."""
    checked = pb.GetExperimentRequest()
    checked.CopyFrom(request)
    checked.alpha, checked.power = request.alpha or ALPHA, request.power or POWER
    if not LEAST_ALPHA <= checked.alpha <= MOST_ALPHA:
        raise InvalidField("alpha", f"must be {LEAST_ALPHA} to {MOST_ALPHA}, not {request.alpha}")
    if not LEAST_POWER <= checked.power <= MOST_POWER:
        raise InvalidField("power", f"must be {LEAST_POWER} to {MOST_POWER}, not {request.power}")
    if request.HasField("minimum_effect") and not 0 < request.minimum_effect < math.inf:
        raise InvalidField("minimum_effect", f"must be a number above 0, not {request.minimum_effect}")
    return checked


def _arm(
    arm: Arm, tally: ArmTally, control: ArmTally | None, share: float, live: LiveSplit, request: pb.GetExperimentRequest
) -> pb.ArmReport:
    """`control` is None for the control itself."""
    # Each arm but the control is compared: a false alarm by any of them has the chance asked for (Bonferroni).
    alpha = request.alpha / max(1, len(live.plan.arms) - 1)
    return pb.ArmReport(
        name=arm.name,
        version=arm.version,
        weight=arm.weight,
        share=share,
        taken_out=live.taken_out.get(arm.name, ""),
        calls=tally.calls,
        errors=tally.errors,
        error_rate=_estimate(interval(tally.errors, tally.calls, request.alpha)),
        p50_seconds=tally.latencies.quantile(0.5),
        p99_seconds=tally.latencies.quantile(0.99),
        outcomes=[
            _outcome(name, outcomes, control.outcomes.get(name) if control is not None else None, alpha, request)
            for name, outcomes in sorted(tally.outcomes.items())
        ],
    )


def _outcome(name: str, outcomes: Outcomes, control: Outcomes | None, alpha: float, request: pb.GetExperimentRequest) -> pb.OutcomeReport:
    return pb.OutcomeReport(
        name=name,
        is_rate=outcomes.is_rate,
        count=outcomes.moments.count,
        mean=_estimate(experiment.mean(outcomes, request.alpha)),
        comparison=_comparison(control, outcomes, alpha, request),
    )


def _comparison(control: Outcomes | None, arm: Outcomes, alpha: float, request: pb.GetExperimentRequest) -> pb.Comparison | None:
    if control is None or (found := experiment.compare(control, arm, alpha)) is None:
        return None
    horizon = None
    if request.HasField("minimum_effect"):
        horizon = experiment.fixed_horizon(control, arm, alpha, request.minimum_effect, request.power)
    return pb.Comparison(
        difference=_estimate(found.difference),
        p_value=found.p_value,
        verdict=found.verdict,
        fixed_horizon=None
        if horizon is None
        else pb.FixedHorizon(needed_per_arm=horizon.needed_per_arm, reached=horizon.reached, p_value=horizon.p_value),
    )


def _shadow(live: LiveSplit, tally: ShadowTally, alpha: float) -> pb.ShadowReport | None:
    if live.plan.shadow is None:
        return None
    return pb.ShadowReport(
        version=live.plan.shadow.version,
        share=live.plan.shadow.share,
        compared=tally.agreement.count,
        dropped=tally.dropped,
        failed=tally.failed,
        rows=tally.rows,
        agreement=_estimate(interval(tally.agreement.total, tally.agreement.count, alpha)),
        flipped_rows=tally.flipped_rows,
        total_variation=tally.total_variation.mean,
        max_abs_difference=tally.max_abs_difference,
    )


def _estimate(found: Estimate) -> pb.Estimate:
    return pb.Estimate(estimate=found.estimate, low=found.low, high=found.high)
