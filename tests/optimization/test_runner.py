"""The runner with real workers on a real model of one layer."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from benchmarks.sentences import sentences
from services.optimization.jobs import Event, Job, State
from services.optimization.publishing import publish
from services.optimization.recipe import Gates, Objective, Recipe, Step
from services.optimization.report import Report, Verdict
from services.optimization.runner import Runner
from services.optimization.settings import OptimizationSettings
from services.optimization.spec import Publication, Spec
from services.optimization.store import JobStore
from services.optimization.worker import Outcome
from services.repository.manifest import Manifest
from services.repository.store import Origin, Repository
from tests.models import minilm_signature, shallow_minilm

TEXTS = tuple(sentences(12, seed=3))
OPEN = Gates(min_fidelity=0.5, min_gain=0, min_examples=1)
SHUT = Gates(min_fidelity=0.5, min_gain=1000, min_examples=1)


@dataclass(frozen=True)
class Bench:
    """A running runner, its store and its repository."""

    runner: Runner
    store: JobStore
    repository: Repository

    def submit(self, name: str, gates: Gates = OPEN, source: str = "m@1") -> Job:
        spec = Spec(
            source=source,
            recipes=(Recipe(name="onnx", steps=(Step(technique="export_onnx"),)),),
            evaluation_texts=TEXTS,
            gates=gates,
            objective=Objective.SIZE,
            publish=Publication(name="small", channels=("stable",)),
        )
        job = self.store.create(Job(name, name, spec.fingerprint, spec.model_dump_json(), source, datetime.now(UTC)))
        self.runner.wake()
        return job

    async def until(self, job_id: str, holds: Callable[[Job, list[Event]], bool]) -> Job:
        """Returns the job as soon as it and its events are so."""
        async with asyncio.timeout(120):
            while True:
                change = asyncio.ensure_future(self.runner.next_change(job_id))
                job = await asyncio.to_thread(self.store.get, job_id)
                if holds(job, await asyncio.to_thread(self.store.events, job_id, 0)):
                    change.cancel()
                    return job
                assert not job.has_ended, job
                await change

    async def until_ended(self, job_id: str) -> Job:
        return await self.until(job_id, lambda job, _: job.has_ended)

    async def until_working(self, job_id: str) -> psutil.Process:
        """The worker, once it has told something."""
        await self.until(job_id, lambda _, events: any(event.stage == "optimizing" for event in events))
        (worker,) = workers()
        return worker


def workers() -> list[psutil.Process]:
    """Of this process, those that live."""
    living = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if "services.optimization.worker" in child.cmdline()]


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    settings = OptimizationSettings(folder=folder / "optimization", repository=folder / "repository", evaluation_s=0.2, job_nice=0)
    repository, store = Repository(settings.repository), JobStore.at(settings.folder)
    if not repository.versions("m"):
        with repository.staging() as staged:
            model = shallow_minilm(staged / "model")
            (model / ".gitattributes").unlink()  # hidden files are no part of a version
            repository.seal(model, "m", minilm_signature(), Origin())
    runner = Runner(store, repository, settings)
    task = asyncio.ensure_future(runner.run())
    try:
        yield Bench(runner, store, repository)
        assert not task.done()
    finally:
        await runner.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        store.close()


async def test_accepted_is_published_once_and_refused_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, cancels = asyncio.get_running_loop(), []

    async with bench(tmp_path) as running:

        def cancelled_meanwhile(repository: Repository, job: Job, outcome: Outcome) -> Manifest:
            cancels.append(asyncio.run_coroutine_threadsafe(running.runner.cancel(job.id), loop))
            return publish(repository, job, outcome)

        monkeypatch.setattr("services.optimization.runner.publish", cancelled_meanwhile)
        first, second = running.submit("first"), running.submit("second", SHUT)
        done = await running.until_ended(first.id)
        assert (done.state, done.published) == (State.SUCCEEDED, "small@1"), done
        assert await asyncio.wrap_future(cancels[0]) == done  # a cancel that comes too late changes nothing
        made = running.repository.resolve("small").manifest
        assert (made.version, made.parent, made.job, made.recipe["name"]) == (1, "m@1", "first", "onnx")
        assert Report.model_validate_json(done.report) == Report.model_validate(made.report)
        running.repository.verify("small", 1)

        refused = await running.until_ended(second.id)
        assert (refused.state, refused.published) == (State.REJECTED, "")
        (candidate,) = Report.model_validate_json(refused.report).candidates
        assert candidate.verdict is Verdict.REJECT_NO_GAIN
        assert running.repository.versions("small") == [1]
        assert any("reusing the kept result" in event.message for event in running.store.events(second.id, 0))

        for job in (first, second):
            events = running.store.events(job.id, 0)
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert [event.fraction for event in events] == sorted(event.fraction for event in events)
            ended = running.store.get(job.id)
            assert await running.runner.cancel(job.id) == ended
        assert list((tmp_path / "optimization" / "work").iterdir()) == []


async def test_a_killed_worker_fails_its_job_alone(tmp_path: Path) -> None:
    async with bench(tmp_path) as running:
        doomed, following = running.submit("doomed"), running.submit("following")
        worker = await running.until_working(doomed.id)
        worker.send_signal(signal.SIGKILL)
        failed = await running.until_ended(doomed.id)
        assert (failed.state, failed.failure_class) == (State.FAILED, "INTERNAL")
        assert "SIGKILL" in failed.failure_message

        next_worker = await running.until_working(following.id)
        assert next_worker.pid != worker.pid
        assert (await running.runner.cancel(following.id)).state is State.CANCELLING
        cancelled = await running.until_ended(following.id)
        assert cancelled.state is State.CANCELLED
        assert workers() == []
        assert running.repository.names() == ["m"]


async def test_cancelling_while_starting_and_while_queued(tmp_path: Path) -> None:
    async with bench(tmp_path) as running:
        starting, queued = running.submit("starting"), running.submit("queued")
        await running.until(starting.id, lambda job, _: job.state is State.RUNNING)
        assert (await running.runner.cancel(queued.id)).state is State.CANCELLED
        await running.runner.cancel(starting.id)
        assert (await running.until_ended(starting.id)).state is State.CANCELLED
        assert [event.state for event in running.store.events(queued.id, 0)] == [State.QUEUED, State.CANCELLED]
        assert running.store.oldest_queued() is None


async def test_a_source_that_has_gone_is_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as running:
        failed = await running.until_ended(running.submit("late", source="m@2").id)
        assert (failed.state, failed.failure_class) == (State.FAILED, "BAD_MODEL")
        assert "no version 2 of model 'm'" in failed.failure_message


async def test_a_stopped_runner_leaves_its_job_for_the_next(tmp_path: Path) -> None:
    async with bench(tmp_path) as running:
        running.submit("long")
        await running.until_working("long")
    assert workers() == []
    async with bench(tmp_path) as running:
        await running.until("long", lambda _, events: any("interrupted" in event.message for event in events))
        await running.runner.cancel("long")
        assert (await running.until_ended("long")).state is State.CANCELLED


async def test_what_was_sealed_before_a_kill_is_the_jobs_result(tmp_path: Path) -> None:
    """The service died after the version was sealed and before the job was told so."""
    async with bench(tmp_path):
        pass  # makes the source
    store = JobStore.at(tmp_path / "optimization")
    repository = Repository(tmp_path / "repository")
    spec = Spec(source="m@1", evaluation_texts=TEXTS, publish=Publication(channels=("canary",)))
    store.create(Job("sealed", "sealed", spec.fingerprint, spec.model_dump_json(), "m@1", datetime.now(UTC)))
    store.move("sealed", State.RUNNING, "started")
    report = {"original": {"size_bytes": 1}, "chosen": "onnx"}
    with repository.staging() as staged:
        (staged / "model.onnx").write_bytes(b"made")
        repository.seal(staged, "m", minilm_signature(), Origin(parent="m@1", job="sealed", report=report))
    store.close()
    async with bench(tmp_path) as running:
        done = await running.until_ended("sealed")
        assert (done.state, done.published) == (State.SUCCEEDED, "m@2")
        assert Report.model_validate_json(done.report).chosen == "onnx"
        assert running.repository.channels("m") == {"canary": 2}
        assert workers() == []


@pytest.mark.parametrize("fault", ["prepare", "database"])
async def test_a_fault_of_the_disk_ends_no_runner(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(tmp_path) as running:
        if fault == "prepare":
            (tmp_path / "optimization" / "work").write_text("in the way")
            failed = await running.until_ended(running.submit("broken").id)
            assert (failed.state, failed.failure_class) == (State.FAILED, "INTERNAL")
            assert "in the service" in failed.failure_message
            (tmp_path / "optimization" / "work").unlink()
        else:
            monkeypatch.setattr("services.optimization.runner.RETRY_S", 0.01)
            failures = iter([OSError("the disk broke")])
            asked = running.store.oldest_queued

            def flaky() -> Job | None:
                for failure in failures:
                    raise failure
                return asked()

            monkeypatch.setattr(running.store, "oldest_queued", flaky)
        running.submit("sound", source="m@9")
        assert (await running.until_ended("sound")).failure_class == "BAD_MODEL"
