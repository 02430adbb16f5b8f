"""AdvisorService: a goal instead of recipes; the job itself is JobService's."""

import asyncio

import grpc
from hone.optimization.v1 import advisor_pb2 as pb
from hone.optimization.v1 import advisor_pb2_grpc, jobs_pb2

from services.chassis.faults import InvalidField, WrongState
from services.optimization import goal_wire
from services.optimization.advisor.advice import Advice
from services.optimization.advisor.value import worth
from services.optimization.job_servicer import JobServicer
from services.optimization.jobs.job import Job
from services.optimization.jobs.store import JobStore
from services.optimization.report import Report

NAME = pb.DESCRIPTOR.services_by_name["AdvisorService"].full_name
Context = grpc.aio.ServicerContext[object, object]


class AdvisorServicer(advisor_pb2_grpc.AdvisorServiceServicer):
    """Recommendations are jobs: created through `jobs`, read from `store`."""

    def __init__(self, jobs: JobServicer, store: JobStore) -> None:
        self._jobs, self._store = jobs, store

    async def Recommend(self, request: pb.RecommendRequest, context: Context) -> pb.RecommendResponse:
        _check_goal(request.spec)
        return pb.RecommendResponse(job=await self._jobs.create(request.request_id, request.spec))

    async def PlanRecommendation(self, request: pb.PlanRecommendationRequest, context: Context) -> pb.PlanRecommendationResponse:
        _check_goal(request.spec)
        return goal_wire.outline_message(await self._jobs.outline(request.spec))

    async def GetRecommendation(self, request: pb.GetRecommendationRequest, context: Context) -> pb.GetRecommendationResponse:
        report = _report(await asyncio.to_thread(self._store.get, request.job_id))
        advice = Advice.model_validate(report.advice)
        return pb.GetRecommendationResponse(recommendation=goal_wire.recommendation_message(advice, report.chosen))

    async def EstimateWorth(self, request: pb.EstimateWorthRequest, context: Context) -> pb.EstimateWorthResponse:
        report = _report(await asyncio.to_thread(self._store.get, request.job_id))
        advice = Advice.model_validate(report.advice)
        if advice.measured is None:
            raise WrongState(f"job {request.job_id} chose nothing that was measured through the service")
        economics = goal_wire.economics_from(request.economics, "economics")
        return pb.EstimateWorthResponse(worth=goal_wire.worth_message(await asyncio.to_thread(worth, economics, advice.measured)))

    async def ListScenarios(self, request: pb.ListScenariosRequest, context: Context) -> pb.ListScenariosResponse:
        return goal_wire.scenarios_message()


def _check_goal(spec: jobs_pb2.JobSpec) -> None:
    if not spec.HasField("goal"):
        raise InvalidField("spec.goal", "must be set: a job with recipes is JobService's")


def _report(job: Job) -> Report:
    """Raises WrongState."""
    report = Report.model_validate_json(job.report) if job.report else None
    if report is None or not report.advice:
        raise WrongState(f"job {job.id} is {job.state} and has found no recommendation" if report is None else f"job {job.id} has no goal")
    return report
