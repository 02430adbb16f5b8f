"""AdvisorService: every RPC and every code of its contract."""

from typing import Any

import grpc
import pytest
from hone.optimization.v1 import advisor_pb2 as pb
from hone.optimization.v1 import goals_pb2, jobs_pb2
from hone.specs import goal

from services.optimization.advisor.advice import Advice, Tried
from services.optimization.advisor.economics import Capacity, Measured, Speedup
from services.optimization.advisor.goal import Goal
from services.optimization.jobs.job import Result, State
from services.optimization.recipe import Step
from services.optimization.report import Interval, Measurement, Report
from services.repository.store import Origin
from tests.models import minilm_signature
from tests.optimization.test_job_service import refused

INVALID, NOT_FOUND, NOT_YET = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
WEIGHTS_BYTES = 1_000_000
TRIED = Tried(
    name="onnx",
    steps=(Step(technique="export_onnx"),),
    is_shape=False,
    expected_speedup=1.3,
    speedup=Interval(estimate=1.4, low=1.3, high=1.5),
    size_ratio=1.0,
    loss=Interval(estimate=0.0, low=0.0, high=0.001),
    accepted=True,
    reason="good",
    seconds=9.0,
)


@pytest.fixture(autouse=True)
def _model(doors: Any) -> None:
    with doors.repository.staging() as staged:
        (staged / "config.json").write_text('{"num_hidden_layers": 6, "intermediate_size": 1536}')
        (staged / "model.safetensors").write_bytes(bytes(WEIGHTS_BYTES))
        doors.repository.seal(staged, "m", minilm_signature(), Origin())


def spec(wanted: goals_pb2.Goal | None, **changes: Any) -> jobs_pb2.JobSpec:
    given = {"source": "m@1", "evaluation": jobs_pb2.Data(texts=["a", "b"]), "training": jobs_pb2.Data(texts=["c", "d"]), "goal": wanted}
    return jobs_pb2.JobSpec(**given | changes)


async def recommend(doors: Any, wanted: goals_pb2.Goal | None, **changes: Any) -> jobs_pb2.Job:
    return (await doors.advisor.Recommend(pb.RecommendRequest(spec=spec(wanted, **changes)))).job


async def concluded(doors: Any, advice: Advice | None) -> str:
    """A job whose search found `advice`, and was cancelled then."""
    job = await recommend(doors, goal())
    report = Report(original=Measurement(size_bytes=1), advice=advice.model_dump(mode="json") if advice else {})
    doors.store.move(job.id, State.CANCELLED, "cancelled", Result(report=report.model_dump_json()))
    return job.id


async def test_a_goal_makes_a_job(doors: Any) -> None:
    wanted = goal(
        "latency", max_loss=0.01, economics=goals_pb2.Economics(currency="EUR", instance_hour_price=0.2, peak_rows_per_second=100)
    )
    job = await recommend(doors, wanted)
    assert job.state == jobs_pb2.JOB_STATE_QUEUED
    assert job.spec.goal.scenario == goals_pb2.SCENARIO_LATENCY
    assert job.spec.goal.targets == goals_pb2.Targets(max_loss=0.01)
    assert (job.spec.goal.economics.currency, job.spec.goal.economics.horizon_months) == ("EUR", 12)


async def test_the_same_request_is_one_job(doors: Any) -> None:
    request = pb.RecommendRequest(request_id="r", spec=spec(goal()))
    first, again = await doors.advisor.Recommend(request), await doors.advisor.Recommend(request)
    assert first.job.id == again.job.id


@pytest.mark.parametrize(
    ("field", "wanted", "changes"),
    [
        ("spec.goal", None, {}),
        ("spec.goal.scenario", goals_pb2.Goal(scenario=99), {}),  # type: ignore[arg-type]
        ("spec.goal.targets.min_speedup", goal(min_speedup=0.5), {}),
        ("spec.goal.targets.max_size_bytes", goal(max_size_bytes=10 * WEIGHTS_BYTES), {}),
        ("spec.goal.targets.max_loss", goal(max_loss=-0.1), {}),
        ("spec.goal.targets.at_rows_per_second", goal(at_rows_per_second=10), {}),
        ("spec.goal.economics.instance_hour_price", goal(economics=goals_pb2.Economics(peak_rows_per_second=1)), {}),
        ("spec.recipes", goal(), {"recipes": [jobs_pb2.Recipe(name="r", steps=[jobs_pb2.Step(technique="export_onnx")])]}),
    ],
)
async def test_a_goal_that_cannot_be_is_refused(doors: Any, field: str, wanted: Any, changes: Any) -> None:
    code, details = await refused(recommend(doors, wanted, **changes))
    assert code is INVALID
    assert details.startswith(f"{field}: ")


async def test_every_fault_is_told_at_once_with_the_nearest_goal(doors: Any) -> None:
    _, details = await refused(recommend(doors, goal(min_speedup=0.5, max_loss=-0.1)))
    assert "min_speedup" in details
    assert "nearest feasible: 1" in details
    assert "max_loss" in details
    assert "nearest feasible: 0" in details


async def test_a_plan_is_in_the_order_of_the_search(doors: Any) -> None:
    found = await doors.advisor.PlanRecommendation(pb.PlanRecommendationRequest(spec=spec(goal(min_speedup=2.0), budget={"seconds": 60})))
    ranks = [trial.chance / trial.estimated_seconds for trial in found.trials]
    assert ranks == sorted(ranks, reverse=True)
    assert {"onnx", "onnx-int8", "student-3-taught-2-onnx-int8"} <= {trial.name for trial in found.trials}
    assert found.budget_seconds == 60
    assert found.longest_seconds > max(trial.estimated_seconds for trial in found.trials)


async def test_what_was_found_is_told_also_of_a_cancelled_search(doors: Any) -> None:
    advice = Advice(goal=Goal(), trials=(TRIED,), stopped_because="it goes on", front=("onnx",), seconds=9.0)
    found = (await doors.advisor.GetRecommendation(pb.GetRecommendationRequest(job_id=await concluded(doors, advice)))).recommendation
    assert [trial.name for trial in found.trials] == ["onnx"]
    assert found.trials[0].speedup.estimate == pytest.approx(1.4)
    assert list(found.front) == ["onnx"]
    assert not found.is_target_met


async def test_what_was_not_found_is_not_told(doors: Any) -> None:
    job = await recommend(doors, goal())
    assert (await refused(doors.advisor.GetRecommendation(pb.GetRecommendationRequest(job_id=job.id))))[0] is NOT_YET
    assert (await refused(doors.advisor.GetRecommendation(pb.GetRecommendationRequest(job_id="nobody"))))[0] is NOT_FOUND


async def test_worth_is_computed_anew_with_other_prices(doors: Any) -> None:
    before = Capacity(rows_per_second=Interval(estimate=50, low=48, high=52))
    measured = Measured(before=before, after=Speedup(ratio=Interval(estimate=5, low=4.8, high=5.2)))
    job_id = await concluded(doors, Advice(goal=Goal(), measured=measured))
    economics = goals_pb2.Economics(instance_hour_price=1.0, peak_rows_per_second=700, utilization=1.0)
    cheap = (await doors.advisor.EstimateWorth(pb.EstimateWorthRequest(job_id=job_id, economics=economics))).worth
    economics.instance_hour_price = 2.0
    dear = (await doors.advisor.EstimateWorth(pb.EstimateWorthRequest(job_id=job_id, economics=economics))).worth
    assert cheap.months[0].instances_before.estimate == 14
    assert cheap.months[0].instances_after.estimate == 3
    assert cheap.months[0].saving.estimate == pytest.approx(11 * 730)
    assert dear.total_benefit.estimate == pytest.approx(2 * cheap.total_benefit.estimate)


async def test_worth_needs_measurements_and_prices(doors: Any) -> None:
    job_id = await concluded(doors, Advice(goal=Goal()))
    priced = goals_pb2.Economics(instance_hour_price=1.0, peak_rows_per_second=700)
    assert (await refused(doors.advisor.EstimateWorth(pb.EstimateWorthRequest(job_id=job_id, economics=priced))))[0] is NOT_YET


async def test_scenarios_are_listed(doors: Any) -> None:
    found = (await doors.advisor.ListScenarios(pb.ListScenariosRequest())).scenarios
    assert [scenario.targets.max_loss for scenario in found] == [0.02, 0.05, 0.10]
    assert all(scenario.summary for scenario in found)
