"""One attempt at a job: from its claim to its end, or to the moment that it is taken away."""

import asyncio
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.optimization import planning
from services.optimization.failures import FailureClass
from services.optimization.jobs.exhaustion import disk_is_full
from services.optimization.jobs.job import IllegalTransition, Job, Result, State
from services.optimization.jobs.journal import Journal
from services.optimization.jobs.publishing import publish, published
from services.optimization.jobs.scheduling import Share
from services.optimization.jobs.store import JobStore, LeaseLost
from services.optimization.jobs.worker import CHOSEN, RESULT, SO_FAR, TASK, Outcome, Task
from services.optimization.jobs.worker_process import Failure, Limits, WorkerProcess
from services.optimization.kept import KeptSteps
from services.optimization.remembered import namespace_of
from services.optimization.remembered.departed import Departed
from services.optimization.settings import OptimizationSettings
from services.optimization.spec import Spec
from services.repository.datasets import UnknownDataset
from services.repository.manifest import Manifest
from services.repository.programs import ForeignProgram, verified_folder
from services.repository.store import Damaged, Repository, UnknownModel

log = structlog.get_logger("hone.jobs")


@dataclass(frozen=True)
class Room:
    """What all jobs of a replica work with."""

    store: JobStore
    journal: Journal
    repository: Repository
    settings: OptimizationSettings
    kept_steps: Path
    departed: Departed | None


class JobRun:
    """Owns every state change of the job while it holds its lease."""

    def __init__(self, job: Job, share: Share, folder: Path, room: Room) -> None:
        self.job, self.share = job, share
        self._lease = job.lease
        self._folder, self._room = folder, room
        self._deciding = asyncio.Lock()  # between the job's end and a cancel: what was cancelled is never published
        self._worker: WorkerProcess | None = None
        self._is_cancelled = False
        self._is_abandoned = False
        self._known: list[str] = []  # versions that the worker may remember something of

    async def cancel(self) -> Job:
        """Takes the job to CANCELLING and tells its worker to end. Raises IllegalTransition where it has just ended by itself."""
        async with self._deciding:
            job = await self._room.journal.move(self.job.id, State.CANCELLING, "cancelling")
            self.end()
            return job

    def end(self) -> None:
        """Tells the worker to end, once; the job is being cancelled."""
        if not self._is_cancelled:
            self._is_cancelled = True
            if self._worker is not None:
                self._worker.end()

    def abandon(self) -> None:
        """Ends the worker at once and leaves the job as it is, for whoever takes it up."""
        self._is_abandoned = True
        if self._worker is not None:
            self._worker.kill()

    async def run(self) -> None:
        """Returns when the job has ended or was abandoned. Raises what the database raises when it fails."""
        try:
            if not await self._conclude_published():
                await self._attempt()
        except LeaseLost as error:
            log.warning("job left to another replica", job=self.job.id, reason=str(error))
        except IllegalTransition:  # cancelled, here or by another replica
            await self._settle_cancelled()
        except (UnknownModel, Damaged, ForeignProgram) as error:
            await self._fail(Failure(FailureClass.BAD_MODEL, f"source: {error}"))
        except UnknownDataset as error:
            await self._fail(Failure(FailureClass.NOT_ENOUGH_DATA, str(error)))
        except Exception as error:
            log.error("job broke", job=self.job.id, exc_info=error)
            message = "no space is left on the disk" if disk_is_full(error) else f"{type(error).__name__} in the service"
            await self._fail(Failure(FailureClass.INTERNAL, message))
        finally:
            await self._leave()

    async def _attempt(self) -> None:
        await asyncio.to_thread(self._prepare)
        failure = await self._work()
        async with self._deciding:
            await self._conclude(failure)

    async def _conclude_published(self) -> bool:
        """Ends a job whose version was sealed just before its service was killed: another run might choose differently."""
        async with self._deciding:
            found = await asyncio.to_thread(published, self._room.repository, self.job)
            if found is not None:
                await self._room.journal.move(self.job.id, State.SUCCEEDED, _told(found), _result(found), self._lease)
            return found is not None

    def _prepare(self) -> None:
        room, folder = self._room, self._folder
        source = room.repository.resolve(self.job.source)
        signature = source.manifest.signature
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "scratch").mkdir(parents=True)
        spec = Spec.model_validate_json(self.job.spec)
        plan = planning.plan(
            spec,
            signature,
            room.repository,
            threads=len(self.share.cores),
            evaluation_seconds=room.settings.evaluation_s,
        )
        self._known = [reference for reference in (source.manifest.reference, spec.teacher) if reference]
        task = Task(
            plan=plan,
            original=verified_folder(room.repository, source.manifest),
            signature=signature,
            scratch=folder / "scratch",
            kept_steps=room.kept_steps,
            chosen=folder / CHOSEN,
            so_far=folder / SO_FAR,
            cores=self.share.cores,
            nice=room.settings.job_nice,
            deadline_seconds=self._seconds(spec),
            cache=room.settings.cache,
            cache_ttl_s=room.settings.cache_ttl_s,
            cache_namespace=namespace_of(source.manifest.reference),
            teacher_namespace=namespace_of(spec.teacher) if spec.teacher else "",
        )
        (folder / TASK).write_text(task.model_dump_json())

    def _seconds(self, spec: Spec) -> float:
        return planning.seconds(spec, self._room.settings)

    async def _work(self) -> Failure | None:
        """Why the worker failed, None where it left a result or was told to end."""
        spec = Spec.model_validate_json(self.job.spec)
        limits = Limits(self.share.memory_bytes, self._seconds(spec), self._room.settings.cancel_grace_s)
        worker = await WorkerProcess.start(self._folder, len(self.share.cores), limits)
        self._worker = worker
        try:
            if self._is_cancelled or self._is_abandoned:  # while it was being prepared
                worker.kill()
            async for told in worker.told():
                await self._room.journal.tell(self._lease, told)
            failure = await worker.ended()
            if failure is not None and not (self._is_cancelled or self._is_abandoned):
                log.warning("worker failed", job=self.job.id, message=failure.message, worker_log=worker.log_tail())
            return failure
        finally:
            self._worker = None
            await worker.close()

    async def _conclude(self, failure: Failure | None) -> None:
        current = await asyncio.to_thread(self._room.store.get, self.job.id)
        if current.lease != self._lease:
            raise LeaseLost(f"job {self.job.id} is {current.state}")
        if current.state is State.CANCELLING:
            raise IllegalTransition("it is being cancelled")
        if self._is_abandoned:
            return
        if failure is not None:
            await self._fail(failure)
        else:
            await self._accept(Outcome.model_validate_json((self._folder / RESULT).read_bytes()))

    async def _accept(self, outcome: Outcome) -> None:
        if outcome.failure_class is not None or outcome.report is None:
            await self._fail(Failure(outcome.failure_class or FailureClass.INTERNAL, outcome.failure_message))
        elif outcome.chosen_folder is None:
            result = Result(report=outcome.report.model_dump_json())
            await self._room.journal.move(self.job.id, State.REJECTED, "no candidate passed its gates", result, self._lease)
        else:
            job = await asyncio.to_thread(self._publish, outcome)
            self._room.journal.moved(job, f"published {job.published}")

    def _publish(self, outcome: Outcome) -> Job:
        """While no other replica can take the job: what two had published would be two versions."""
        with self._room.store.concluding(self._lease) as conclude:
            manifest = publish(self._room.repository, self.job, outcome)
            return conclude(State.SUCCEEDED, _told(manifest), _result(manifest))

    async def _fail(self, failure: Failure) -> None:
        log.warning("job failed", job=self.job.id, failure_class=failure.failure_class.value, message=failure.message)
        result = Result(failure.failure_class.value, failure.message, await asyncio.to_thread(self._so_far))
        try:
            await self._room.journal.move(self.job.id, State.FAILED, failure.message, result, self._lease)
        except LeaseLost as error:
            log.warning("job left to another replica", job=self.job.id, reason=str(error))

    async def _settle_cancelled(self) -> None:
        with suppress(LeaseLost, IllegalTransition):
            result = Result(report=await asyncio.to_thread(self._so_far))
            await self._room.journal.move(self.job.id, State.CANCELLED, "cancelled", result, self._lease)

    def _so_far(self) -> str:
        """What a search had found when the job was cut short; empty where there is nothing."""
        path = self._folder / SO_FAR
        return path.read_text() if path.exists() else ""

    async def _leave(self) -> None:
        await asyncio.to_thread(self._tidy)
        if self._room.departed is not None:
            self._room.departed.ran(self._known)

    def _tidy(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # a disk that fails is told by the next job
            KeptSteps(self._room.kept_steps).shrink(self._room.settings.kept_steps_bytes)


def _told(manifest: Manifest) -> str:
    return f"published {manifest.reference}"


def _result(manifest: Manifest) -> Result:
    return Result(report=json.dumps(dict(manifest.report)), published=manifest.reference)
