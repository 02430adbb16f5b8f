"""JobService: converts, checks at the door, hands over."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import grpc
from hone.optimization.v1 import jobs_pb2 as pb
from hone.optimization.v1 import jobs_pb2_grpc

from services.chassis.faults import InvalidField, Overloaded, Unavailable, WrongState
from services.optimization import conversion, page, page_wire, planning, wire
from services.optimization.jobs.job import Job, State
from services.optimization.jobs.runner import Runner
from services.optimization.jobs.scheduling import OverBudget
from services.optimization.jobs.store import JobStore, UnknownJob
from services.optimization.outline import Outline, outline
from services.optimization.report import Report
from services.optimization.settings import OptimizationSettings
from services.optimization.spec import Spec
from services.optimization.techniques import TECHNIQUES, Model
from services.repository.references import parse
from services.repository.store import Repository, Resolved

NAME = pb.DESCRIPTOR.services_by_name["JobService"].full_name
Context = grpc.aio.ServicerContext[object, object]
RETRY_QUEUE_S = 30.0


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """Everything that can be known without running is checked when a job is created."""

    def __init__(self, store: JobStore, runner: Runner, repository: Repository, settings: OptimizationSettings) -> None:
        self._store = store
        self._runner = runner
        self._repository = repository
        self._settings = settings
        self._closed = False

    def close(self) -> None:
        """Ends every watch: one watcher would otherwise make the server's stop take its whole grace period."""
        self._closed = True
        self._runner.release()

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        return pb.CreateJobResponse(job=await self.create(request.request_id, request.spec))

    async def create(self, request_id: str, asked: pb.JobSpec) -> pb.Job:
        """As CreateJob; for every door that jobs come through."""
        if len(request_id) > 64 or not request_id.isprintable():
            raise InvalidField("request_id", "must be at most 64 printable characters")
        spec = wire.spec_from(asked)
        # Before the source is looked at: repeating a call finds its job also when the model has gone.
        known = await asyncio.to_thread(self._store.find_request, request_id, spec.fingerprint)
        if known is not None:
            return wire.job_message(known)
        source, resolved = await asyncio.to_thread(self._resolve, spec)
        job = Job(
            id=uuid.uuid4().hex,
            request_id=request_id or uuid.uuid4().hex,
            fingerprint=spec.fingerprint,
            spec=resolved.model_dump_json(),
            source=source.manifest.reference,
            created=datetime.now(UTC),
        )
        created = await asyncio.to_thread(self._create, job)
        self._runner.wake()
        return wire.job_message(created)

    def _resolve(self, spec: Spec) -> tuple[Resolved, Spec]:
        """The source, and the specification with every reference by version. Raises InvalidField, UnknownModel, UnknownDataset."""
        if not spec.source:
            raise InvalidField("spec.source", "must name a model")
        source = self._repository.resolve(conversion.named("spec.source", parse, spec.source))
        try:
            self._runner.check_budget(spec.budget)
            planning.check_goal(spec, source.manifest.size_bytes)
            return source, planning.resolve(spec, source.manifest.signature, self._repository)
        except planning.Refused as error:
            raise InvalidField(f"spec.{error.field}", error.reason) from error
        except OverBudget as error:
            field, _, reason = str(error).partition(": ")
            raise InvalidField(f"spec.{field}", reason) from error

    async def outline(self, asked: pb.JobSpec) -> Outline:
        """What a search would try; checked as CreateJob checks."""
        source, spec = await asyncio.to_thread(self._resolve, wire.spec_from(asked))
        return await asyncio.to_thread(self._outline, source, spec)

    def _outline(self, source: Resolved, spec: Spec) -> Outline:
        original = Model(source.folder, source.manifest.signature)
        try:
            return outline(
                spec,
                original,
                self._repository,
                self._runner.kept_steps,
                budget_seconds=planning.seconds(spec, self._settings),
                evaluation_seconds=self._settings.evaluation_s,
                threads=self._runner.cores_of(spec.budget),
            )
        except planning.Refused as error:
            raise InvalidField(f"spec.{error.field}", error.reason) from error

    async def PlanJob(self, request: pb.PlanJobRequest, context: Context) -> pb.PlanJobResponse:
        source, spec = await asyncio.to_thread(self._resolve, wire.spec_from(request.spec))
        return wire.plan_message(await asyncio.to_thread(self._estimate, source, spec))

    def _estimate(self, source: Resolved, spec: Spec) -> planning.Estimate:
        original = Model(source.folder, source.manifest.signature)
        try:
            return planning.estimate(spec, original, self._repository, self._runner.kept_steps, self._settings.evaluation_s)
        except planning.Refused as error:
            raise InvalidField(f"spec.{error.field}", error.reason) from error

    async def GetReportPage(self, request: pb.GetReportPageRequest, context: Context) -> pb.GetReportPageResponse:
        live = page_wire.live_from(request)
        job = await asyncio.to_thread(self._store.get, request.id)
        if not job.report:
            raise WrongState(f"job {job.id} is {job.state} and has no report")
        return pb.GetReportPageResponse(html=await asyncio.to_thread(_page, job, live))

    def _create(self, job: Job) -> Job:
        if self._store.count(State.QUEUED) >= self._settings.max_queued_jobs:
            raise Overloaded(f"{self._settings.max_queued_jobs} jobs are waiting", RETRY_QUEUE_S)
        return self._store.create(job)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=wire.job_message(await asyncio.to_thread(self._store.get, request.id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        if not 0 <= request.page_size <= 1000:
            raise InvalidField("page_size", f"must be 1 to 1000, not {request.page_size}")
        states = [_state(index, value) for index, value in enumerate(request.states)]
        try:
            page = await asyncio.to_thread(self._store.page, request.page_size or 50, request.page_token, states)
        except UnknownJob as error:
            raise InvalidField("page_token", "is not one that this server gave") from error
        return pb.ListJobsResponse(jobs=[wire.job_message(job, brief=True) for job in page.jobs], next_page_token=page.token)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        return pb.CancelJobResponse(job=wire.job_message(await self._runner.cancel(request.id)))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.WatchJobResponse]:
        if request.after_sequence < 0:
            raise InvalidField("after_sequence", "must be 0 or more")
        after = request.after_sequence
        while not self._closed:
            change = asyncio.ensure_future(self._runner.next_change(request.id))
            try:
                job = await asyncio.to_thread(self._store.get, request.id, brief=True)
                for event in await asyncio.to_thread(self._store.events, request.id, after):
                    after = event.sequence
                    yield pb.WatchJobResponse(event=wire.event_message(event))
                if job.has_ended and after >= job.last_sequence:
                    return
                if not self._closed:
                    await change
            finally:
                change.cancel()
        raise Unavailable("the server is stopping")

    async def ListTechniques(self, request: pb.ListTechniquesRequest, context: Context) -> pb.ListTechniquesResponse:
        return pb.ListTechniquesResponse(techniques=[wire.technique_message(technique) for technique in TECHNIQUES])


def _page(job: Job, live: page.Live) -> str:
    story = page.Story.of(job, Spec.model_validate_json(job.spec))
    return page.render(story, Report.model_validate_json(job.report), live)


def _state(index: int, value: "pb.JobState.ValueType") -> State:
    try:
        return State(pb.JobState.Name(value).removeprefix("JOB_STATE_"))
    except ValueError:
        raise InvalidField(f"states[{index}]", f"{value} is not a state") from None
