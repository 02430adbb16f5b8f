"""`client.advisor`: from a goal to a measured recipe. The search is a job: `client.jobs` watches and cancels it."""

import uuid

import grpc

from hone.optimization.v1 import advisor_pb2 as pb
from hone.optimization.v1 import advisor_pb2_grpc, goals_pb2, jobs_pb2


class Advisor:
    """Recommendations; `spec` has a goal, see `hone.specs.goal`."""

    def __init__(self, connection: grpc.Channel, timeout: float) -> None:
        self._stub = advisor_pb2_grpc.AdvisorServiceStub(connection)
        self._timeout = timeout

    def recommend(self, spec: jobs_pb2.JobSpec, *, request_id: str = "") -> jobs_pb2.Job:
        """Begins a search. Repeating it with the same `request_id` makes one job only. Raises grpc.RpcError."""
        request = pb.RecommendRequest(request_id=request_id or uuid.uuid4().hex, spec=spec)
        return self._stub.Recommend(request, timeout=self._timeout).job

    def plan(self, spec: jobs_pb2.JobSpec) -> pb.PlanRecommendationResponse:
        """What would be tried, in the order that is likely now, and about how long it would take; nothing is created."""
        return self._stub.PlanRecommendation(pb.PlanRecommendationRequest(spec=spec), timeout=self._timeout)

    def get(self, job_id: str) -> pb.Recommendation:
        """What a search found; also of one that was cancelled. Raises grpc.RpcError."""
        return self._stub.GetRecommendation(pb.GetRecommendationRequest(job_id=job_id), timeout=self._timeout).recommendation

    def worth(self, job_id: str, economics: goals_pb2.Economics) -> pb.Worth:
        """What a recommendation is worth with these prices and this traffic; nothing is measured again."""
        return self._stub.EstimateWorth(pb.EstimateWorthRequest(job_id=job_id, economics=economics), timeout=self._timeout).worth

    def scenarios(self) -> list[pb.ScenarioPreset]:
        return list(self._stub.ListScenarios(pb.ListScenariosRequest(), timeout=self._timeout).scenarios)
