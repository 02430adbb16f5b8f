"""The runner with real workers on a real model of one layer."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.sentences import sentences
from services.optimization.jobs.job import Event, Job, State
from services.optimization.jobs.publishing import publish
from services.optimization.jobs.runner import Runner
from services.optimization.jobs.scheduling import OverBudget
from services.optimization.jobs.store import JobStore, Queued
from services.optimization.jobs.worker import Outcome
from services.optimization.recipe import Gates, Objective, Recipe, Step
from services.optimization.remembered.departed import Departed
from services.optimization.report import Report, Verdict
from services.optimization.settings import OptimizationSettings
from services.optimization.spec import Budget, DataSource, Publication, Spec
from services.repository.manifest import Manifest
from services.repository.store import Origin, Repository
from tests.models import minilm_signature, shallow_minilm

TEXTS = tuple(sentences(12, seed=3))
OPEN = Gates(min_fidelity=0.5, min_gain=0, min_examples=1)
SHUT = Gates(min_fidelity=0.5, min_gain=1000, min_examples=1)

UNLIMITED = Budget()


@dataclass(frozen=True)
class Bench:
    """A running runner, its store and its repository."""

    runner: Runner
    store: JobStore
    repository: Repository

    def submit(self, name: str, gates: Gates = OPEN, source: str = "m@1", budget: Budget = UNLIMITED) -> Job:
        spec = Spec(
            source=source,
            recipes=(Recipe(name="onnx", steps=(Step(technique="export_onnx"),)),),
            evaluation=DataSource(texts=TEXTS),
            gates=gates,
            objective=Objective.SIZE,
            publish=Publication(name="small", channels=("stable",)),
            budget=budget,
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
    return [child for child in living if "services.optimization.jobs.worker" in child.cmdline()]


@asynccontextmanager
async def bench(folder: Path, database: str = "", departed: Departed | None = None, **changes: Any) -> AsyncIterator[Bench]:
    """A replica on a folder; "sqlite…" as a database is the one in the folder."""
    settings = OptimizationSettings(
        folder=folder / "optimization",
        repository=folder / "repository",
        database="" if database.startswith("sqlite") else database,
        evaluation_s=0.2,
        job_nice=0,
        poll_s=0.1,
        **changes,
    )
    repository, store = Repository(settings.repository), JobStore.open(settings.database, settings.folder)
    if not repository.versions("m"):
        with repository.staging() as staged:
            model = shallow_minilm(staged / "model")
            (model / ".gitattributes").unlink()  # hidden files are no part of a version
            repository.seal(model, "m", minilm_signature(), Origin())
    runner = Runner(store, repository, settings, departed)
    task = asyncio.ensure_future(runner.run())
    try:
        yield Bench(runner, store, repository)
        assert not task.done()
    finally:
        await runner.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        store.close()


async def test_accepted_is_published_once_and_refused_never(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, cancels = asyncio.get_running_loop(), []

    async with bench(tmp_path, database) as running:

        def cancelled_meanwhile(repository: Repository, job: Job, outcome: Outcome) -> Manifest:
            cancels.append(asyncio.run_coroutine_threadsafe(running.runner.cancel(job.id), loop))
            return publish(repository, job, outcome)

        monkeypatch.setattr("services.optimization.jobs.run.publish", cancelled_meanwhile)
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
        assert running.store.waiting() == []


async def test_a_source_that_has_gone_is_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as running:
        failed = await running.until_ended(running.submit("late", source="m@2").id)
        assert (failed.state, failed.failure_class) == (State.FAILED, "BAD_MODEL")
        assert "no version 2 of model 'm'" in failed.failure_message


async def test_a_stopped_runner_leaves_its_job_for_the_next(tmp_path: Path, database: str) -> None:
    async with bench(tmp_path, database) as running:
        running.submit("long")
        await running.until_working("long")
    assert workers() == []
    async with bench(tmp_path, database) as running:
        await running.until("long", lambda _, events: any("interrupted" in event.message for event in events))
        await running.runner.cancel("long")
        assert (await running.until_ended("long")).state is State.CANCELLED


async def test_what_was_sealed_before_a_kill_is_the_jobs_result(tmp_path: Path) -> None:
    """The service died after the version was sealed and before the job was told so."""
    async with bench(tmp_path):
        pass  # makes the source
    store = JobStore.at(tmp_path / "optimization")
    repository = Repository(tmp_path / "repository")
    spec = Spec(source="m@1", evaluation=DataSource(texts=TEXTS), publish=Publication(channels=("canary",)))
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
            await running.until_ended(running.submit("first", source="m@9").id)
            (replica,) = (tmp_path / "optimization" / "work").iterdir()
            (replica / "broken").write_text("in the way")
            failed = await running.until_ended(running.submit("broken").id)
            assert (failed.state, failed.failure_class) == (State.FAILED, "INTERNAL")
            assert "in the service" in failed.failure_message
        else:
            monkeypatch.setattr("services.optimization.jobs.runner.RETRY_S", 0.01)
            failures = iter([OSError("the disk broke")])
            asked = running.store.waiting

            def flaky() -> list[Queued]:
                for failure in failures:
                    raise failure
                return asked()

            monkeypatch.setattr(running.store, "waiting", flaky)
        running.submit("sound", source="m@9")
        assert (await running.until_ended("sound")).failure_class == "BAD_MODEL"


# Budgets


async def test_jobs_run_side_by_side_within_the_budget_and_one_that_grows_past_its_own_is_ended(tmp_path: Path) -> None:
    """Two whose memory cannot do wait for nobody and end alone; the third, whose budget was lowered meanwhile, is refused."""
    async with bench(tmp_path, memory_bytes=4 << 30, cores_per_job=1) as running:
        small = Budget(memory_bytes=32 << 20)
        doomed = [running.submit(f"doomed-{number}", budget=small) for number in range(2)]
        for job in doomed:
            failed = await running.until_ended(job.id)
            assert (failed.state, failed.failure_class) == (State.FAILED, "OUT_OF_MEMORY")
            assert "its budget is 0.03 GB" in failed.failure_message
        running.submit("greedy", budget=Budget(memory_bytes=5 << 30))
        assert (await running.until_ended("greedy")).failure_class == "BUDGET_EXCEEDED"
        with pytest.raises(OverBudget, match=r"^budget\.memory_bytes: "):
            running.runner.check_budget(Budget(memory_bytes=5 << 30))


async def test_two_jobs_work_at_once_on_cores_of_their_own(tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core cannot be shared out")
    async with bench(tmp_path, job_cores=2, cores_per_job=1) as running:
        for name in ("one", "two", "three"):
            running.submit(name)
        for name in ("one", "two"):
            await running.until(name, lambda job, _: job.state is State.RUNNING)
        await running.until("one", lambda _, events: any(event.stage == "optimizing" for event in events))
        await running.until("two", lambda _, events: any(event.stage == "optimizing" for event in events))
        cores = [tuple(worker.cpu_affinity()) for worker in workers()]
        assert sorted(cores) == sorted((core,) for core in running.runner.capacity.cores)
        assert running.store.get("three").state is State.QUEUED
        for name in ("three", "one", "two"):
            await running.runner.cancel(name)
            await running.until_ended(name)
        assert workers() == []


async def test_a_worker_far_past_its_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.optimization.jobs.worker_process.MOST_OVERRUN_S", 0.0)
    async with bench(tmp_path) as running:
        failed = await running.until_ended(running.submit("slow", budget=Budget(seconds=0.01)).id)
        assert (failed.state, failed.failure_class) == (State.FAILED, "BUDGET_EXCEEDED")
        assert "its budget is 0.01 s" in failed.failure_message


async def test_a_kill_for_want_of_memory_is_told_from_one_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([3, 4])
    monkeypatch.setattr("services.optimization.jobs.memory.oom_kills", lambda: next(kills))
    async with bench(tmp_path) as running:
        running.submit("starved")
        (await running.until_working("starved")).send_signal(signal.SIGKILL)
        failed = await running.until_ended("starved")
        assert (failed.state, failed.failure_class) == (State.FAILED, "OUT_OF_MEMORY")
        assert "the system ran out of memory" in failed.failure_message


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of the worker: a process that ignores SIGTERM and whose child left the group, as compilers' servers do."""
    program = Path(__file__).with_name("stubborn_worker.py")

    async def start(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        python, _, _, folder, *rest = arguments
        return await create_subprocess_exec(python, str(program), folder, *rest, **options)

    create_subprocess_exec = asyncio.create_subprocess_exec
    monkeypatch.setattr("asyncio.create_subprocess_exec", start)
    return program


def stubborn_processes(program: Path) -> Sequence[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if str(program) in (process.info["cmdline"] or [])]


async def test_a_cancel_ends_a_worker_that_does_not_listen_with_all_that_it_started(tmp_path: Path, stubborn: Path) -> None:
    async with bench(tmp_path, cancel_grace_s=0.1) as running:
        running.submit("deaf")
        await running.until("deaf", lambda _, events: any(event.message == "deaf" for event in events))
        assert len(stubborn_processes(stubborn)) == 2
        await running.runner.cancel("deaf")
        assert (await running.until_ended("deaf")).state is State.CANCELLED
        assert stubborn_processes(stubborn) == []


# Replicas


async def test_replicas_share_the_work_and_see_each_others(tmp_path: Path, postgres: Any) -> None:
    url = postgres.database()
    async with bench(tmp_path, url) as first, bench(tmp_path, url) as second:
        first.submit("far")
        await second.until("far", lambda _, events: any(event.stage == "optimizing" for event in events))  # whoever runs it
        assert len(workers()) == 1
        assert (await second.runner.cancel("far")).state is State.CANCELLING
        assert (await first.runner.cancel("far")).state in (State.CANCELLING, State.CANCELLED)
        for running in (first, second):
            assert (await running.until_ended("far")).state is State.CANCELLED
        assert workers() == []
        for number in range(4):
            first.submit(f"gone-{number}", source="m@9")
        for number in range(4):
            assert (await second.until_ended(f"gone-{number}")).attempt == 1


async def test_a_replica_that_lost_its_lease_leaves_the_job_to_the_other(
    tmp_path: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not heard of for longer than its lease, as a suspended machine."""
    url = postgres.database()
    async with bench(tmp_path, url) as slow:
        slow.submit("moved")
        await slow.until_working("moved")
        held = slow.store.get("moved").lease
        slow.store.renew(held.owner, -1.0)
        (returned,) = slow.store.take_back_expired("another")
        assert returned.state is State.QUEUED
        assert slow.store.claim("moved", "another", 3600) is not None
        await slow.until_ended(slow.submit("next", source="m@9").id)  # its cores are free, so its worker has ended
        assert workers() == []
        found = slow.store.get("moved")
        assert (found.state, found.owner, found.attempt) == (State.RUNNING, "another", 2)
        assert slow.repository.names() == ["m"]


async def test_a_dead_replicas_job_is_taken_over_when_its_lease_runs_out(tmp_path: Path, postgres: Any) -> None:
    url = postgres.database()
    async with bench(tmp_path, url):
        pass  # makes the source
    store = JobStore(url)
    spec = Spec(source="m@9", evaluation=DataSource(texts=TEXTS))
    for name, lease_s in (("orphan", -1.0), ("held", 3600.0)):
        store.create(Job(name, name, spec.fingerprint, spec.model_dump_json(), "m@9", datetime.now(UTC)))
        store.claim(name, "on another machine", lease_s)
    async with bench(tmp_path, url) as running:
        assert (await running.until_ended("orphan")).failure_class == "BAD_MODEL"
        assert running.store.get("held").owner == "on another machine"
    store.close()
