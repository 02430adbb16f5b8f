"""Searches that are cut short: cancelled, killed with their worker or their service, out of disk, time or a service to serve with."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import hone
import pytest
from hone.optimization.v1 import advisor_pb2, goals_pb2
from hone.optimization.v1 import jobs_pb2 as pb
from hone.repository.v1 import models_pb2
from hone.specs import goal, job_spec

from benchmarks.sentences import sentences
from services.optimization.advisor.advice import Advice
from services.optimization.advisor.goal import Goal
from services.optimization.execution import Execution
from services.optimization.folder import size_bytes
from services.optimization.jobs.worker import Task, perform
from services.optimization.plan import Plan
from services.optimization.remembered.link import Link
from services.optimization.report import Measurement, Report
from tests.faults.test_optimization_faults import Service, serving
from tests.models import minilm_signature, shallow_minilm
from tests.optimization.advisor.test_advisor_service import TRIED

NOT_YET = grpc.StatusCode.FAILED_PRECONDITION
ENDLESS = goal("resource", precisions_only=True)  # tries all there is


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shallow_minilm(tmp_path / "model")


@pytest.fixture
def service(tmp_path: Path, model: Path) -> Iterator[Service]:
    with serving(tmp_path) as running:
        running.client.models.push(model, "m", task=models_pb2.TASK_EMBEDDING)
        yield running


def spec(wanted: goals_pb2.Goal = ENDLESS, **changes: Any) -> pb.JobSpec:
    told: dict[str, Any] = {"evaluation": sentences(8, seed=5), "min_fidelity": 0.5, "min_gain": 0, "min_examples": 1, "goal": wanted}
    return job_spec("m@1", **told | changes)


def trying(client: hone.Client, job: pb.Job, count: int, after: int = 0) -> pb.JobEvent:
    """Watches until so many recipes were begun: all before the last were tried."""
    begun = (event for event in client.jobs.watch(job.id, after_sequence=after) if event.message.startswith("trying "))
    return next(event for number, event in enumerate(begun, 1) if number == count)


def not_yet(client: hone.Client, job: pb.Job) -> str:
    """Why nothing is recommended."""
    with pytest.raises(grpc.RpcError) as caught:
        client.advisor.get(job.id)
    assert caught.value.code() is NOT_YET
    return caught.value.details() or ""


def check_cut_short(found: advisor_pb2.Recommendation) -> None:
    assert found.trials
    assert found.trials[0].HasField("speedup")
    assert not found.is_target_met
    assert (found.chosen, found.HasField("serving")) == ("", False)
    assert "cut short" in found.stopped_because
    assert len(found.precisions) == 5


def messages(client: hone.Client, job: pb.Job, after: int = 0) -> list[str]:
    return [event.message for event in client.jobs.watch(job.id, after_sequence=after)]


def test_a_search_that_is_cut_short_tells_what_it_found(service: Service) -> None:
    """Cancelled, then killed with its worker: what either had made is not made again."""
    client = service.client
    cancelled = client.advisor.recommend(spec(), request_id="one")
    assert "no recommendation" in not_yet(client, cancelled)
    assert client.advisor.recommend(spec(), request_id="one").id == cancelled.id
    trying(client, cancelled, 2)
    assert "no recommendation" in not_yet(client, cancelled)
    client.jobs.cancel(cancelled.id)
    assert client.jobs.wait(cancelled.id).state == pb.JOB_STATE_CANCELLED
    check_cut_short(client.advisor.get(cancelled.id))

    killed = client.advisor.recommend(spec())
    trying(client, killed, 2)
    service.worker().send_signal(signal.SIGKILL)
    ended = client.jobs.wait(killed.id)
    assert (ended.state, ended.failure.failure_class) == (pb.JOB_STATE_FAILED, pb.FAILURE_CLASS_INTERNAL)
    check_cut_short(client.advisor.get(killed.id))
    first = client.advisor.get(killed.id).trials[0]
    told = messages(client, killed)
    for step in first.steps:
        assert f"{first.name}: {step.technique}: reusing the kept result" in told
        assert f"{first.name}: {step.technique}: started" not in told
    assert [found.version for found in client.models.list("m")] == [1]

    short = client.jobs.wait(client.advisor.recommend(spec(budget_seconds=0.5)).id)
    assert short.state in (pb.JOB_STATE_FAILED, pb.JOB_STATE_REJECTED)
    told_short = short.failure.message or client.advisor.get(short.id).stopped_because
    assert "time" in told_short


def test_a_search_goes_on_after_its_service_was_killed(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without a service to serve with: the settings that it inherits are none that inference takes."""
    wanted = goal("resource", max_size_bytes=size_bytes(model) // 2, min_served_speedup=0.01)
    with serving(tmp_path) as service:
        service.client.models.push(model, "m", task=models_pb2.TASK_EMBEDDING)
        job = service.client.advisor.recommend(spec(wanted))
        before = trying(service.client, job, 1)
        worker = service.worker()
        service.process.send_signal(signal.SIGKILL)
        service.process.wait(30)
        worker.wait(30)
    monkeypatch.setenv("HONE_INFERENCE_WORKERS_THAT_NOBODY_KNOWS", "1")
    with serving(tmp_path) as service:
        ended = service.client.jobs.wait(job.id)
        told = messages(service.client, job, before.sequence)
        found = service.client.advisor.get(job.id)
        assert [version.version for version in service.client.models.list("m")] == [1]
    assert any("interrupted" in message for message in told)
    assert ended.state == pb.JOB_STATE_REJECTED, ended.failure
    assert found.serving_note.startswith("serving could not be tried: ")
    assert not found.is_target_met
    assert (found.chosen, found.HasField("serving")) == ("", False)
    assert [line.partition(":")[0] for line in found.missed] == ["min_served_speedup"]


def test_a_note_that_the_disk_does_not_take_ends_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one, which it takes again, is noted."""
    noted = tmp_path / "so_far.json"
    noted.with_suffix(".part").symlink_to("/dev/full")  # every write finds the disk full
    seen = []

    def search(*arguments: Any) -> Execution:
        for count in (1, 2):
            arguments[-1](Advice(goal=Goal(), trials=(TRIED,) * count))
            seen.append(noted.exists())
        return Execution(Report(original=Measurement(size_bytes=1)), None, None)

    monkeypatch.setattr("services.optimization.jobs.worker.execute", search)
    (tmp_path / "original").mkdir()
    folders = {"original": tmp_path / "original", "scratch": tmp_path, "kept_steps": tmp_path, "chosen": tmp_path / "chosen"}
    task = Task(plan=Plan(goal=Goal()), signature=minilm_signature(), so_far=noted, cores=(0,), nice=0, **folders)
    outcome = perform(task, lambda *_, **__: None, Link(None))
    assert (outcome.failure_class, seen) == (None, [False, True])
    assert len(Advice.model_validate(Report.model_validate_json(noted.read_text()).advice).trials) == 2
