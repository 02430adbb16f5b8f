"""AdvisorService: every RPC and every code of its contract."""

import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from hone.optimization.v1 import advisor_pb2 as pb
from hone.optimization.v1 import goals_pb2, jobs_pb2
from hone.specs import goal

from services.optimization.advisor.advice import Advice, Skipped, Tried
from services.optimization.advisor.economics import Capacity, Measured, Speedup
from services.optimization.advisor.experience import EXPERIENCE, Experience
from services.optimization.advisor.goal import Goal
from services.optimization.advisor.observation import Context
from services.optimization.advisor.precisions import Finding, Precision
from services.optimization.advisor.rung import Rung, Trial
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
    untrained = [trial for trial in found.trials if "taught" not in trial.name and "healed" not in trial.name]
    ranks = [trial.chance / trial.estimated_seconds for trial in untrained]
    assert ranks == sorted(ranks, reverse=True)
    assert {"onnx", "onnx-int8", "student-3-taught-2-onnx-int8"} <= {trial.name for trial in found.trials}
    assert found.budget_seconds == 60
    assert found.longest_seconds > max(trial.estimated_seconds for trial in found.trials)


async def test_a_plan_expects_what_earlier_jobs_measured(doors: Any, tmp_path: Path) -> None:
    request = pb.PlanRecommendationRequest(spec=spec(goal(min_speedup=2.0)))
    before = {trial.name: trial for trial in (await doors.advisor.PlanRecommendation(request)).trials}
    slow = Interval(estimate=0.7, low=0.6, high=0.8)
    here = Context(megabytes=WEIGHTS_BYTES / 1e6, layers=6, day=time.time() / 86_400)
    experience = Experience(tmp_path / "optimization" / "steps" / EXPERIENCE, minilm_signature(), here)
    experience.add(Trial(Rung("onnx", TRIED.steps, ("onnx",), 9.0), slow, 1.0))
    after = {trial.name: trial for trial in (await doors.advisor.PlanRecommendation(request)).trials}
    assert (before["onnx"].basis, after["onnx"].basis) == ("rule of thumb", "1 trial on this machine")
    assert before["onnx"].expected_speedup == pytest.approx(1.3)
    assert 0.7 < after["onnx"].expected_speedup < 1.0
    assert after["onnx-int4"].expected_speedup < before["onnx-int4"].expected_speedup


async def test_what_was_found_is_told_also_of_a_cancelled_search(doors: Any) -> None:
    advice = Advice(goal=Goal(), trials=(TRIED,), stopped_because="it goes on", front=("onnx",), seconds=9.0)
    found = (await doors.advisor.GetRecommendation(pb.GetRecommendationRequest(job_id=await concluded(doors, advice)))).recommendation
    assert [trial.name for trial in found.trials] == ["onnx"]
    assert found.trials[0].speedup.estimate == pytest.approx(1.4)
    assert list(found.front) == ["onnx"]
    assert not found.is_target_met


async def test_what_was_skipped_is_told_with_its_reason(doors: Any) -> None:
    skipped = Skipped(name="onnx-int4", expected_speedup=0.9, chance=0.001, basis="4 trials on this machine")
    advice = Advice(goal=Goal(), trials=(TRIED,), skipped=(skipped,))
    found = (await doors.advisor.GetRecommendation(pb.GetRecommendationRequest(job_id=await concluded(doors, advice)))).recommendation
    [told] = found.skipped
    assert (told.name, told.basis) == ("onnx-int4", "4 trials on this machine")
    assert (told.expected_speedup, told.chance) == (pytest.approx(0.9), pytest.approx(0.001))


async def test_what_was_not_found_is_not_told(doors: Any) -> None:
    job = await recommend(doors, goal())
    assert (await refused(doors.advisor.GetRecommendation(pb.GetRecommendationRequest(job_id=job.id))))[0] is NOT_YET
    assert (await refused(doors.advisor.GetRecommendation(pb.GetRecommendationRequest(job_id="nobody"))))[0] is NOT_FOUND


async def test_a_job_of_recipes_has_no_recommendation(doors: Any) -> None:
    code, details = await refused(doors.advisor.GetRecommendation(pb.GetRecommendationRequest(job_id=await concluded(doors, None))))
    assert code is NOT_YET
    assert "has no goal" in details


async def test_every_precision_is_told_with_what_it_misses(doors: Any) -> None:
    found = Finding(precision=Precision.INT8, recipe="onnx-int8", speedup=TRIED.speedup, size_ratio=4.0, reason="speed-up: too low")
    emulated = Finding(precision=Precision.BF16, reason="this processor emulates BF16")
    job_id = await concluded(doors, Advice(goal=Goal(precisions_only=True), precisions=(found, emulated)))
    int8, bf16 = (await doors.advisor.GetRecommendation(pb.GetRecommendationRequest(job_id=job_id))).recommendation.precisions
    assert (int8.precision, int8.recipe, int8.speedup.low, int8.qualifies) == (pb.PRECISION_INT8, "onnx-int8", 1.3, False)
    assert (bf16.precision, bf16.HasField("speedup"), bf16.reason) == (pb.PRECISION_BF16, False, "this processor emulates BF16")


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
