"""Between the advisor's messages and our own values."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from hone.optimization.v1 import advisor_pb2, goals_pb2
from hone.optimization.v1 import jobs_pb2 as pb
from pydantic import BaseModel, ValidationError

from services.chassis.faults import InvalidField
from services.optimization import conversion
from services.optimization.advisor.advice import Advice, Tried
from services.optimization.advisor.economics import Economics, Month, Swing, Until, Worth
from services.optimization.advisor.goal import Goal
from services.optimization.advisor.precisions import Finding
from services.optimization.advisor.scenarios import PRESETS, Scenario, Targets, impossible, resolve
from services.optimization.advisor.search import Outlook
from services.optimization.advisor.serving.traffic import Traffic
from services.optimization.interval_wire import interval_message
from services.optimization.outline import Outline
from services.optimization.recipe import Step
from services.optimization.serving_wire import serving_message

_T = TypeVar("_T", bound=BaseModel)
_SCENARIOS = {goals_pb2.SCENARIO_UNSPECIFIED: Scenario.THROUGHPUT} | {
    goals_pb2.Scenario.Value(f"SCENARIO_{scenario}"): scenario for scenario in Scenario
}


def goal_from(message: goals_pb2.Goal, field: str = "spec.goal") -> Goal:
    """Raises InvalidField, which tells every field that breaks its rule; a target that no original could meet is told with them."""
    faults: list[tuple[str, str]] = []
    if message.scenario not in _SCENARIOS:
        faults.append((f"{field}.scenario", f"{message.scenario} is not a scenario"))
    scenario = _SCENARIOS.get(message.scenario, Scenario.THROUGHPUT)
    targets = _parsed(Targets, _targets(message.targets), f"{field}.targets", faults)
    traffic = _parsed(Traffic, _traffic(message.traffic), f"{field}.traffic", faults)
    told = _economics(message.economics) if message.HasField("economics") else None
    economics = _parsed(Economics, told, f"{field}.economics", faults) if told is not None else None
    if faults and targets is not None:
        faults += [(f"{field}.targets.{fault.field}", fault.advice) for fault in impossible(resolve(PRESETS[scenario], targets), scenario)]
    if targets is None or traffic is None or faults:
        raise _invalid(faults)
    return Goal(scenario=scenario, targets=targets, traffic=traffic, economics=economics, precisions_only=message.precisions_only)


def _parsed(kind: type[_T], told: Mapping[str, Any], field: str, faults: list[tuple[str, str]]) -> _T | None:
    """None where there are faults, which are added."""
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        faults += conversion.faults_of(field, error)
        return None


def _targets(message: goals_pb2.Targets) -> Mapping[str, Any]:
    return {name: getattr(message, name) for name in Targets.model_fields if message.HasField(name)}  # type: ignore[arg-type]


def _traffic(message: goals_pb2.Traffic) -> Mapping[str, Any]:
    """What is 0 or empty takes its default."""
    lists = {name: tuple(getattr(message, name)) for name in ("texts", "token_lengths", "request_rows", "gaps_s")}
    numbers = {name: getattr(message, name) for name in ("callers", "rate", "gamma_shape", "repeat_share")}
    return {name: value for name, value in (lists | numbers).items() if value}


def economics_from(message: goals_pb2.Economics, field: str) -> Economics:
    """What is 0 takes its default. Raises InvalidField, which tells every field that breaks its rule."""
    faults: list[tuple[str, str]] = []
    economics = _parsed(Economics, _economics(message), field, faults)
    if economics is None:
        raise _invalid(faults)
    return economics


def _economics(message: goals_pb2.Economics) -> Mapping[str, Any]:
    told = {name: value for name in Economics.model_fields if (value := getattr(message, name))}
    required = {name: getattr(message, name) for name, info in Economics.model_fields.items() if info.is_required()}
    return required | told


def _invalid(faults: Sequence[tuple[str, str]]) -> InvalidField:
    (field, reason), *others = faults
    return InvalidField(field, "; ".join([reason, *(f"{path}: {fault}" for path, fault in others)]))


def goal_message(goal: Goal) -> goals_pb2.Goal:
    return goals_pb2.Goal(
        scenario=goals_pb2.Scenario.Value(f"SCENARIO_{goal.scenario}"),
        targets=targets_message(goal.targets),
        traffic=goals_pb2.Traffic(**goal.traffic.model_dump()) if goal.traffic != Traffic() else None,
        economics=goals_pb2.Economics(**goal.economics.model_dump()) if goal.economics else None,
        precisions_only=goal.precisions_only,
    )


def targets_message(targets: Targets) -> goals_pb2.Targets:
    return goals_pb2.Targets(**targets.model_dump(exclude_none=True))


def scenarios_message() -> advisor_pb2.ListScenariosResponse:
    return advisor_pb2.ListScenariosResponse(
        scenarios=[
            advisor_pb2.ScenarioPreset(
                scenario=goals_pb2.Scenario.Value(f"SCENARIO_{scenario}"),
                summary=preset.summary,
                targets=targets_message(preset.targets),
                objective=pb.Objective.Value(f"OBJECTIVE_{preset.objective}"),
            )
            for scenario, preset in PRESETS.items()
        ]
    )


def recommendation_message(advice: Advice, chosen: str) -> advisor_pb2.Recommendation:
    return advisor_pb2.Recommendation(
        goal=goal_message(advice.goal),
        trials=[_trial(trial) for trial in advice.trials],
        stopped_because=advice.stopped_because,
        is_target_met=advice.is_target_met,
        chosen=chosen,
        front=advice.front,
        skipped=[advisor_pb2.SkippedTrial(**skipped.model_dump()) for skipped in advice.skipped],
        precisions=[_precision(found) for found in advice.precisions],
        serving=serving_message(advice.served) if advice.served else None,
        serving_note=advice.serving_note,
        missed=advice.missed,
        worth=worth_message(advice.worth) if advice.worth else None,
        seconds=advice.seconds,
    )


def outline_message(outline: Outline) -> advisor_pb2.PlanRecommendationResponse:
    return advisor_pb2.PlanRecommendationResponse(
        trials=[_planned(outlook) for outlook in outline.trials],
        longest_seconds=outline.longest_seconds,
        budget_seconds=outline.budget_seconds,
        notes=outline.notes,
    )


def _planned(outlook: Outlook) -> advisor_pb2.PlannedTrial:
    return advisor_pb2.PlannedTrial(
        name=outlook.rung.name,
        steps=_steps(outlook.rung.steps),
        expected_speedup=outlook.expected.speedup.median,
        expected_size_ratio=outlook.expected.size_ratio.median,
        chance=outlook.chance,
        estimated_seconds=outlook.seconds,
        basis=outlook.expected.basis,
    )


def worth_message(worth: Worth) -> advisor_pb2.Worth:
    return advisor_pb2.Worth(
        currency=worth.currency,
        capacity_before=interval_message(worth.capacity_before),
        capacity_after=interval_message(worth.capacity_after),
        months=[_month(month) for month in worth.months],
        one_time_cost=worth.one_time_cost,
        total_cost=worth.total_cost,
        total_benefit=interval_message(worth.total_benefit),
        quality_benefit=interval_message(worth.quality_benefit),
        net_benefit=interval_message(worth.net_benefit),
        roi=interval_message(worth.roi),
        payback_months=_until(worth.payback_months),
        break_even_rows=_until(worth.break_even_rows),
        break_even_months=_until(worth.break_even_months),
        cost_per_million_rows_before=interval_message(worth.cost_per_million_rows_before),
        cost_per_million_rows_after=interval_message(worth.cost_per_million_rows_after),
        saves_from_rows_per_second=interval_message(worth.saves_from_rows_per_second),
        sensitivity=[_swing(swing) for swing in worth.sensitivity],
        payoff=advisor_pb2.Payoff.Value(f"PAYOFF_{worth.payoff}"),
        verdict=worth.verdict,
        left_out=worth.left_out,
    )


def _precision(found: Finding) -> advisor_pb2.PrecisionFinding:
    return advisor_pb2.PrecisionFinding(
        precision=advisor_pb2.Precision.Value(f"PRECISION_{found.precision}"),
        recipe=found.recipe,
        speedup=interval_message(found.speedup),
        size_ratio=found.size_ratio,
        loss=interval_message(found.loss),
        qualifies=found.qualifies,
        reason=found.reason,
        note=found.note,
    )


def _trial(trial: Tried) -> advisor_pb2.Trial:
    return advisor_pb2.Trial(
        name=trial.name,
        steps=_steps(trial.steps),
        is_shape=trial.is_shape,
        speedup=interval_message(trial.speedup),
        size_ratio=trial.size_ratio,
        loss=interval_message(trial.loss),
        accepted=trial.accepted,
        reason=trial.reason,
        seconds=trial.seconds,
        expected_speedup=trial.expected_speedup,
    )


def _steps(steps: Sequence[Step]) -> list[pb.Step]:
    return [pb.Step(technique=step.technique, parameters=conversion.struct(step.parameters)) for step in steps]


def _until(until: Until | None) -> advisor_pb2.Until | None:
    return advisor_pb2.Until(estimate=until.estimate, low=until.low, high=until.high) if until else None


def _month(month: Month) -> advisor_pb2.Month:
    return advisor_pb2.Month(
        month=month.month,
        rows_per_second=month.rows_per_second,
        instances_before=interval_message(month.instances_before),
        instances_after=interval_message(month.instances_after),
        saving=interval_message(month.saving),
        cumulative_net=interval_message(month.cumulative_net),
    )


def _swing(swing: Swing) -> advisor_pb2.Swing:
    return advisor_pb2.Swing(**swing.model_dump())
