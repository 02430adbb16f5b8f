"""`client.advisor` for asyncio: the same calls, awaited."""

import uuid

import grpc

from hone.optimization.v1 import advisor_pb2 as pb
from hone.optimization.v1 import advisor_pb2_grpc, goals_pb2, jobs_pb2


class Advisor:
    """Recommendations; see `hone.advisor.Advisor` for the arguments."""

    def __init__(self, connection: grpc.aio.Channel, timeout: float) -> None:
        self._stub = advisor_pb2_grpc.AdvisorServiceStub(connection)
        self._timeout = timeout

    async def recommend(self, spec: jobs_pb2.JobSpec, *, request_id: str = "") -> jobs_pb2.Job:
        request = pb.RecommendRequest(request_id=request_id or uuid.uuid4().hex, spec=spec)
        return (await self._stub.Recommend(request, timeout=self._timeout)).job

    async def plan(self, spec: jobs_pb2.JobSpec) -> pb.PlanRecommendationResponse:
        return await self._stub.PlanRecommendation(pb.PlanRecommendationRequest(spec=spec), timeout=self._timeout)

    async def get(self, job_id: str) -> pb.Recommendation:
        request = pb.GetRecommendationRequest(job_id=job_id)
        return (await self._stub.GetRecommendation(request, timeout=self._timeout)).recommendation

    async def worth(self, job_id: str, economics: goals_pb2.Economics) -> pb.Worth:
        return (await self._stub.EstimateWorth(pb.EstimateWorthRequest(job_id=job_id, economics=economics), timeout=self._timeout)).worth

    async def scenarios(self) -> list[pb.ScenarioPreset]:
        return list((await self._stub.ListScenarios(pb.ListScenariosRequest(), timeout=self._timeout)).scenarios)
