"""The optimization service as a process: killed and stopped while a job runs, and started again on what it left."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import hone
import psutil
import pytest
from hone.optimization.v1 import jobs_pb2 as pb
from hone.repository.v1 import models_pb2
from hone.specs import job_spec

from benchmarks.sentences import sentences
from services.optimization.kept import KeptSteps
from services.repository.store import Repository
from tests.models import shallow_minilm
from tests.optimization.databases import postgres

__all__ = ["postgres"]  # a fixture

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Service:
    process: subprocess.Popen[str]
    client: hone.Client

    def worker(self) -> psutil.Process:
        (found,) = psutil.Process(self.process.pid).children()
        return found


@contextmanager
def serving(folder: Path, **changes: str) -> Iterator[Service]:
    """The service on a free port; killed at the end of the block if it still runs."""
    settings = {"FOLDER": str(folder / "jobs"), "REPOSITORY": str(folder / "repository"), "PORT": "0", "EVALUATION_S": "1", "JOB_NICE": "0"}
    settings |= changes
    environment = {**os.environ, **{f"HONE_OPTIMIZATION_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "services.optimization"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = (json.loads(line) for line in process.stderr)
            port = next(line["port"] for line in lines if line["event"] == "listening")
            with hone.Client(f"127.0.0.1:{port}") as client:
                yield Service(process, client)
        finally:
            process.kill()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shallow_minilm(tmp_path / "model")


def submit(client: hone.Client) -> pb.Job:
    spec = job_spec(
        "m@1",
        recipes={"int8": ["export_onnx", ("dynamic_int8", {"target_fidelity": None})]},
        evaluation=sentences(8, seed=5),
        min_fidelity=0.5,
        min_gain=0,
        min_examples=1,
        objective="size",
        channels=["stable"],
    )
    return client.jobs.create(spec)


def until(client: hone.Client, job: pb.Job, stage: str, after: int = 0) -> pb.JobEvent:
    """Watches until the job tells the stage, after a sequence number."""
    return next(event for event in client.jobs.watch(job.id, after_sequence=after) if event.stage == stage)


def test_a_killed_service_goes_on_where_it_was(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path) as service:
        service.client.models.push(model, "m", task=models_pb2.TASK_EMBEDDING)
        job = submit(service.client)
        before = until(service.client, job, "measuring latency")  # both steps are kept by then
        worker = service.worker()
        service.process.send_signal(signal.SIGKILL)
        service.process.wait(30)
        worker.wait(30)  # dies with its service
    with serving(tmp_path) as service:
        done = service.client.jobs.wait(job.id)
        assert done.state == pb.JOB_STATE_SUCCEEDED, done.failure
        assert done.published == "m@2"
        assert [found.version for found in service.client.models.list("m")] == [1, 2]
        assert service.client.models.get("m").version == 2
        events = list(service.client.jobs.watch(job.id))
        later = list(service.client.jobs.watch(job.id, after_sequence=before.sequence))
        assert later == events[before.sequence :]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.fraction for event in events] == sorted(event.fraction for event in events)
    for step in ("int8: export_onnx", "int8: dynamic_int8"):
        told = [event.message for event in events]
        assert told.count(f"{step}: started") == 1
        assert told.count(f"{step}: reusing the kept result") == 1
    states = [event.state for event in events]
    assert states.count(pb.JOB_STATE_SUCCEEDED) == 1
    assert any("interrupted" in event.message for event in events)


def test_a_training_that_was_killed_goes_on_from_its_checkpoint(tmp_path: Path, model: Path) -> None:
    training = {"epochs": 12, "batch_rows": 8, "max_tokens": 8, "patience": 0, "validation_share": 0.25, "freeze_embeddings": True}
    texts = sentences(40, seed=6)
    spec = job_spec(
        "m@1",
        recipes={"taught": [("distill", {"training": training})]},
        evaluation=texts[:8],
        training=texts[8:],
        min_fidelity=0.5,
        min_gain=0,
        min_examples=1,
    )
    with serving(tmp_path) as service:
        service.client.models.push(model, "m", task=models_pb2.TASK_EMBEDDING)
        job = service.client.jobs.create(spec)
        # The third validation: the end of each epoch before it left a checkpoint.
        validations = (event for event in service.client.jobs.watch(job.id) if "validation loss" in event.message)
        reached = next(event for index, event in enumerate(validations) if index == 3)
        service.process.send_signal(signal.SIGKILL)
        service.process.wait(30)
    with serving(tmp_path) as service:
        done = service.client.jobs.wait(job.id)
        assert done.state == pb.JOB_STATE_SUCCEEDED, done.failure
        told = [event.message for event in service.client.jobs.watch(job.id, after_sequence=reached.sequence)]
    [resumed] = [message for message in told if "going on from the checkpoint" in message]
    assert int(resumed.split("step ")[1].split()[0]) > 0
    assert not any("step 0 of" in message for message in told)
    taught = done.report.candidates[0].notes["steps"][0]
    assert taught["steps"] == taught["curves"]["validation_loss"][-1][0]  # the whole run, of which each part was done once
    assert not list((tmp_path / "jobs" / "steps" / "checkpoints").glob("*/*"))


def test_a_stopped_service_ends_soon_with_a_job_and_a_watcher_and_goes_on(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path) as service:
        service.client.models.push(model, "m", task=models_pb2.TASK_EMBEDDING)
        job = submit(service.client)
        waiting = submit(service.client)
        watch = service.client.jobs.watch(waiting.id)
        assert next(watch).state == pb.JOB_STATE_QUEUED
        before = until(service.client, job, "optimizing")
        worker = service.worker()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(15) == 0  # well before the grace period of 20 s
        worker.wait(5)
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with serving(tmp_path) as service:
        until(service.client, job, "optimizing", after=before.sequence)
        assert service.client.jobs.get(job.id).state == pb.JOB_STATE_RUNNING
        assert service.client.jobs.cancel(waiting.id).state == pb.JOB_STATE_CANCELLED
        service.client.jobs.cancel(job.id)
        assert service.client.jobs.wait(job.id).state == pb.JOB_STATE_CANCELLED
        assert [found.version for found in service.client.models.list("m")] == [1]


def test_a_killed_replicas_job_goes_on_at_another(tmp_path: Path, model: Path, postgres: Any) -> None:
    """Cancelled, watched and listed at either; what the dead one had finished is not done twice."""
    database = {"DATABASE": postgres.database(), "LEASE_S": "2", "POLL_S": "0.2"}
    with serving(tmp_path, **database) as one, serving(tmp_path, **database) as other:
        one.client.models.push(model, "m", task=models_pb2.TASK_EMBEDDING)
        job = submit(one.client)
        before = until(other.client, job, "measuring latency")
        running, spare = (one, other) if psutil.Process(one.process.pid).children() else (other, one)
        worker = running.worker()
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(30)
        worker.wait(30)
        until(spare.client, job, "comparing answers", after=before.sequence)
        told = [event.message for event in spare.client.jobs.watch(job.id, after_sequence=before.sequence) if event.message]
        done = spare.client.jobs.wait(job.id)
        assert (done.state, done.published) == (pb.JOB_STATE_SUCCEEDED, "m@2"), done.failure
        assert any("interrupted" in message for message in told)
        for step in ("int8: export_onnx", "int8: dynamic_int8"):
            assert told.count(f"{step}: reusing the kept result") == 1
            assert f"{step}: started" not in told


@pytest.mark.parametrize("stage", ["queued", "measuring latency"])
def test_a_disk_that_fills_up_fails_the_job_and_leaves_nothing_half_visible(tmp_path: Path, model: Path, stage: str) -> None:
    """While the first step writes its model, and while the version is published. Files may not grow past 1 MiB from then on."""
    with serving(tmp_path) as service:
        service.client.models.push(model, "m", task=models_pb2.TASK_EMBEDDING)
        job = submit(service.client)
        until(service.client, job, stage)
        for process in [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children()]:
            process.rlimit(psutil.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        done = service.client.jobs.wait(job.id)
        assert (done.state, done.failure.failure_class) == (pb.JOB_STATE_FAILED, pb.FAILURE_CLASS_INTERNAL), done
        assert "no space is left on the disk" in done.failure.message
        assert [found.version for found in service.client.models.list("m")] == [1]
    repository = Repository(tmp_path / "repository")
    assert list((repository.root / "staging").iterdir()) == []
    for record in (tmp_path / "jobs" / "steps").glob("*/step.json"):
        assert KeptSteps(tmp_path / "jobs" / "steps").find(record.parent.name) is not None  # whole, or not there


def test_a_worker_whose_service_has_ended_does_not_begin(tmp_path: Path) -> None:
    """Killed before its worker could ask to die with it."""
    (tmp_path / "task.json").write_text("{}")
    command = [sys.executable, "-m", "services.optimization.jobs.worker", str(tmp_path), str(os.getpid() + 1)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the service ended before its worker began" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task.json"]
