"""JobService: every RPC and every code of its contract."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hone.optimization.v1 import jobs_pb2 as pb

from services.optimization.jobs.job import State
from services.repository.manifest import Format, Signature, Task, TensorSpec
from services.repository.store import Origin, Repository
from tests.models import minilm_signature

TEXTS = [f"text {number}" for number in range(4)]
FOREIGN = {"page_token": "nobody"}  # not one that the server gave
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def spec(**changes: Any) -> pb.JobSpec:
    return pb.JobSpec(**{"source": "m@1", "evaluation": pb.Data(texts=TEXTS[:2]), "calibration": pb.Data(texts=TEXTS[2:]), **changes})


def texts(*several: str) -> pb.Data:
    return pb.Data(texts=several)


def recipe(*techniques: str, name: str = "r", **parameters: Any) -> pb.Recipe:
    """The parameters are the last step's."""
    made = pb.Recipe(name=name, steps=[pb.Step(technique=technique) for technique in techniques])
    for step in made.steps:
        step.parameters.SetInParent()
    if parameters:
        made.steps[-1].parameters.update(parameters)
    return made


def seal(repository: Repository, name: str = "m", signature: Signature | None = None) -> None:
    with repository.staging() as staged:
        (staged / "config.json").write_text("{}")
        repository.seal(staged, name, signature or minilm_signature(), Origin())


@pytest.fixture(autouse=True)
def _models(doors: Any) -> None:
    """`m`, a text model, and `t`, a tensor model."""
    wire = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
    seal(doors.repository)
    seal(doors.repository, "t", Signature(task=Task.TENSOR, format=Format.ONNX, inputs=(wire,), outputs=(wire,)))


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def create(doors: Any, **changes: Any) -> pb.Job:
    return (await doors.jobs.CreateJob(pb.CreateJobRequest(spec=spec(**changes)))).job


async def test_a_job_is_accepted_at_once(doors: Any) -> None:
    doors.repository.set_channel("m", "stable", 1)
    wanted = spec(
        source="m",
        recipes=[recipe("export_onnx", "dynamic_int8", target_fidelity=0.5)],
        gates=pb.Gates(min_fidelity=0.5, min_gain=0, min_examples=1),
        objective=pb.OBJECTIVE_SIZE,
        publish=pb.Publication(name="other", channels=["stable"]),
        budget=pb.Budget(seconds=60, cores=1, memory_bytes=1 << 20),
        seed=7,
    )
    job = (await doors.jobs.CreateJob(pb.CreateJobRequest(request_id="r", spec=wanted))).job
    assert job.state == pb.JOB_STATE_QUEUED
    assert job.last_sequence == 1
    assert job.HasField("created")
    assert not job.HasField("started")
    assert job.spec == wanted
    assert (await doors.jobs.GetJob(pb.GetJobRequest(id=job.id))).job == job


async def test_what_is_left_out_takes_its_default(doors: Any) -> None:
    job = await create(doors)
    assert not job.spec.gates.HasField("min_fidelity")  # by the metric
    assert (job.spec.gates.min_gain, job.spec.gates.min_examples) == (1.05, 100)
    assert job.spec.objective == pb.OBJECTIVE_THROUGHPUT


async def test_a_gate_of_zero_is_not_a_gate_left_out(doors: Any) -> None:
    assert (await create(doors, gates=pb.Gates(min_gain=0))).spec.gates.min_gain == 0


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("spec.source", {"source": ""}),
        ("spec.source", {"source": "../m"}),
        ("spec.source", {"source": "m@0"}),
        ("spec.source", {"source": "m:Stable"}),
        ("spec.objective", {"objective": 99}),
        ("spec.seed", {"seed": -1}),
        ("spec.evaluation", {"evaluation": texts()}),
        ("spec.evaluation.texts[1]", {"evaluation": texts("a", "a")}),
        ("spec.evaluation.texts[1]", {"evaluation": texts("a", " \n")}),
        ("spec.evaluation.texts[0]", {"evaluation": texts("a"), "calibration": texts("a")}),
        ("spec.evaluation.texts[0]", {"evaluation": texts("a"), "training": texts("a")}),
        ("spec.calibration.texts[2]", {"calibration": texts("a", "b", "a")}),
        ("spec.calibration.texts[0]", {"calibration": texts("")}),
        ("spec.evaluation", {"evaluation": pb.Data(texts=["a", "b"], labels=["x"])}),
        ("spec.budget.seconds", {"budget": pb.Budget(seconds=-1)}),
        ("spec.budget.seconds", {"budget": pb.Budget(seconds=float("nan"))}),
        ("spec.budget.cores", {"budget": pb.Budget(cores=-1)}),
        ("spec.budget.cores", {"budget": pb.Budget(cores=4096)}),
        ("spec.budget.memory_bytes", {"budget": pb.Budget(memory_bytes=1 << 60)}),
        ("spec.gates.min_fidelity", {"gates": pb.Gates(min_fidelity=0)}),
        ("spec.gates.min_fidelity", {"gates": pb.Gates(min_fidelity=1.01)}),
        ("spec.gates.min_fidelity", {"gates": pb.Gates(min_fidelity=float("nan"))}),
        ("spec.gates.min_gain", {"gates": pb.Gates(min_gain=-1)}),
        ("spec.gates.min_gain", {"gates": pb.Gates(min_gain=float("inf"))}),
        ("spec.gates.min_examples", {"gates": pb.Gates(min_examples=0)}),
        ("spec.publish.name", {"publish": pb.Publication(name="..")}),
        ("spec.publish.channels[1]", {"publish": pb.Publication(channels=["stable", "Stable"])}),
        ("spec.recipes", {"recipes": [recipe("bf16", name=str(n)) for n in range(65)]}),
        ("spec.recipes[0].name", {"recipes": [recipe("bf16", name="")]}),
        ("spec.recipes[0].name", {"recipes": [recipe("bf16", name="a b")]}),
        ("spec.recipes[1].name", {"recipes": [recipe("bf16"), recipe("export_onnx")]}),
        ("spec.recipes[0].steps", {"recipes": [recipe()]}),
        ("spec.recipes[0].steps[0].technique", {"recipes": [recipe("magic")]}),
        ("spec.recipes[0].steps[0].technique", {"recipes": [recipe("")]}),
        ("spec.recipes[1].steps[1].technique", {"recipes": [recipe("bf16", name="a"), recipe("export_onnx", "export_onnx")]}),
        ("spec.recipes[0].steps[0].technique", {"recipes": [recipe("dynamic_int8")]}),
        ("spec.recipes[0].steps[0].parameters.nonsense", {"recipes": [recipe("export_onnx", nonsense=1)]}),
        ("spec.recipes[0].steps[1].parameters.target_fidelity", {"recipes": [recipe("export_onnx", "dynamic_int8", target_fidelity="a")]}),
        ("spec.recipes[0].steps[1].parameters", {"recipes": [recipe("bf16", "export_onnx", opset=float("nan"))]}),
        ("spec.recipes[0].steps[1].technique", {"recipes": [recipe("export_onnx", "dynamic_int8")], "calibration": texts()}),
        ("spec.evaluation", {"source": "t", "source_channel": True, "evaluation": texts(), "calibration": texts()}),
    ],
)
async def test_a_field_at_fault_is_named(doors: Any, field: str, changes: dict[str, Any]) -> None:
    if changes.pop("source_channel", False):
        doors.repository.set_channel("t", "stable", 1)
    code, details = await refused(create(doors, **changes))
    assert code is INVALID
    assert details.startswith(f"{field}: "), details
    assert doors.store.page(10).jobs == ()


async def test_a_long_request_id_is_refused(doors: Any) -> None:
    code, details = await refused(doors.jobs.CreateJob(pb.CreateJobRequest(request_id="r" * 65, spec=spec())))
    assert (code, details.startswith("request_id: ")) == (INVALID, True)


@pytest.mark.parametrize("source", ["nobody", "m", "m@2", "m:canary"])
async def test_a_source_that_is_not_there(doors: Any, source: str) -> None:
    code, details = await refused(create(doors, source=source))
    assert code is NOT_FOUND
    assert "no " in details


async def test_the_same_request_answers_the_job_made_before(doors: Any) -> None:
    request = pb.CreateJobRequest(request_id="once", spec=spec())
    answers = await asyncio.gather(*(doors.jobs.CreateJob(request) for _ in range(6)))
    assert len({answer.job.id for answer in answers}) == 1
    doors.repository.delete("m", 1)
    assert (await doors.jobs.CreateJob(request)).job.id == answers[0].job.id
    code, details = await refused(doors.jobs.CreateJob(pb.CreateJobRequest(request_id="once", spec=spec(seed=1))))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert details.startswith("request_id: ")


async def test_a_full_queue_says_when_to_come_back_but_knows_its_own(doors: Any) -> None:
    first = pb.CreateJobRequest(request_id="first", spec=spec())
    job = (await doors.jobs.CreateJob(first)).job
    await create(doors), await create(doors)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(doors)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    assert (await doors.jobs.CreateJob(first)).job.id == job.id
    await doors.jobs.CancelJob(pb.CancelJobRequest(id=job.id))
    assert (await create(doors)).state == pb.JOB_STATE_QUEUED


@pytest.mark.parametrize(
    "call",
    [
        lambda jobs: jobs.GetJob(pb.GetJobRequest(id="nobody")),
        lambda jobs: jobs.CancelJob(pb.CancelJobRequest(id="nobody")),
        lambda jobs: anext(aiter(jobs.WatchJob(pb.WatchJobRequest(id="nobody")))),
        lambda jobs: jobs.GetJob(pb.GetJobRequest()),
    ],
)
async def test_a_job_that_is_not_there(doors: Any, call: Callable[[Any], Any]) -> None:
    assert (await refused(call(doors.jobs)))[0] is NOT_FOUND


# Lists


async def test_pages(doors: Any) -> None:
    made = [(await create(doors, seed=number)).id for number in range(3)]
    await doors.jobs.CancelJob(pb.CancelJobRequest(id=made[1]))
    first = await doors.jobs.ListJobs(pb.ListJobsRequest(page_size=2))
    second = await doors.jobs.ListJobs(pb.ListJobsRequest(page_size=2, page_token=first.next_page_token))
    assert [job.id for job in (*first.jobs, *second.jobs)] == made[::-1]
    assert second.next_page_token == ""
    assert not any(job.spec.evaluation.texts or job.spec.calibration.texts for job in first.jobs)
    queued = await doors.jobs.ListJobs(pb.ListJobsRequest(states=[pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING]))
    assert [job.id for job in queued.jobs] == [made[2], made[0]]


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("page_size", pb.ListJobsRequest(page_size=-1)),
        ("page_size", pb.ListJobsRequest(page_size=1001)),
        ("page_token", pb.ListJobsRequest(**FOREIGN)),
        ("states[1]", pb.ListJobsRequest(states=[pb.JOB_STATE_QUEUED, pb.JOB_STATE_UNSPECIFIED])),
        ("states[0]", pb.ListJobsRequest(states=[77])),  # type: ignore[list-item]
    ],
)
async def test_a_bad_page_is_refused(doors: Any, field: str, request_: pb.ListJobsRequest) -> None:
    code, details = await refused(doors.jobs.ListJobs(request_))
    assert code is INVALID
    assert details.startswith(f"{field}: ")


async def test_techniques_tell_what_they_take(doors: Any) -> None:
    techniques = {found.name: found for found in (await doors.jobs.ListTechniques(pb.ListTechniquesRequest())).techniques}
    assert {"export_onnx", "dynamic_int8", "bf16"} <= set(techniques)
    for technique in techniques.values():
        assert technique.summary
        assert technique.source_formats
        assert technique.parameters_schema["type"] == "object"
    assert techniques["dynamic_int8"].needs_calibration
    assert techniques["dynamic_int8"].source_formats == ["onnx"]


# Cancelling and watching


async def test_a_queued_job_is_cancelled_at_once_and_stays_so(doors: Any) -> None:
    job = await create(doors)
    cancelled = (await doors.jobs.CancelJob(pb.CancelJobRequest(id=job.id))).job
    assert cancelled.state == pb.JOB_STATE_CANCELLED
    assert cancelled.HasField("ended")
    assert (await doors.jobs.CancelJob(pb.CancelJobRequest(id=job.id))).job == cancelled


async def test_many_watchers_see_every_event_from_where_they_ask(doors: Any) -> None:
    job = await create(doors)
    doors.store.tell(job.id, "optimizing", 0.5, "a line")
    begun = [asyncio.Event() for _ in range(6)]

    async def watch(watcher: int) -> list[int]:
        seen = []
        async for answer in doors.jobs.WatchJob(pb.WatchJobRequest(id=job.id, after_sequence=watcher % 2)):
            seen.append(answer.event.sequence)
            begun[watcher].set()
        return seen

    watchers = [asyncio.ensure_future(watch(watcher)) for watcher in range(6)]
    await asyncio.gather(*(event.wait() for event in begun))
    await doors.jobs.CancelJob(pb.CancelJobRequest(id=job.id))
    assert await asyncio.gather(*watchers) == [[1, 2, 3], [2, 3]] * 3
    last = [answer.event async for answer in doors.jobs.WatchJob(pb.WatchJobRequest(id=job.id, after_sequence=2))]
    assert [(event.state, event.fraction) for event in last] == [(pb.JOB_STATE_CANCELLED, 1.0)]
    assert [answer async for answer in doors.jobs.WatchJob(pb.WatchJobRequest(id=job.id, after_sequence=3))] == []


async def test_a_watcher_that_goes_away_takes_nobody_along(doors: Any) -> None:
    job = await create(doors)
    gone = doors.jobs.WatchJob(pb.WatchJobRequest(id=job.id))
    stays = doors.jobs.WatchJob(pb.WatchJobRequest(id=job.id))
    assert (await gone.read()).event.sequence == (await stays.read()).event.sequence == 1
    gone.cancel()
    await doors.jobs.CancelJob(pb.CancelJobRequest(id=job.id))
    assert (await stays.read()).event.sequence == 2
    assert await stays.read() is grpc.aio.EOF


async def test_watching_ends_when_the_service_stops(doors: Any) -> None:
    job = await create(doors)
    watch = doors.jobs.WatchJob(pb.WatchJobRequest(id=job.id))
    await watch.read()
    doors.job_servicer.close()
    code, _ = await refused(watch.read())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert doors.store.get(job.id).state is State.QUEUED


async def test_a_negative_sequence_is_refused(doors: Any) -> None:
    job = await create(doors)
    code, details = await refused(doors.jobs.WatchJob(pb.WatchJobRequest(id=job.id, after_sequence=-1)).read())
    assert (code, details.startswith("after_sequence: ")) == (INVALID, True)
