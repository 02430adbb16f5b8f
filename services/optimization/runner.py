"""Runs queued jobs, one at a time, each in a worker process that can crash without taking anything along."""

import asyncio
import errno
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog

from services.optimization.execution import Plan
from services.optimization.failures import FailureClass
from services.optimization.jobs import IllegalTransition, Job, Result, State
from services.optimization.kept import KeptSteps
from services.optimization.publishing import publish, published
from services.optimization.recipe import default_recipes
from services.optimization.settings import OptimizationSettings
from services.optimization.spec import Spec
from services.optimization.store import JobStore
from services.optimization.worker import RESULT, TASK, Outcome, Task
from services.repository.store import Damaged, Repository, UnknownModel

log = structlog.get_logger("hone.jobs")

RETRY_S = 5.0
_LINE_LIMIT = 1 << 20
_LOG_TAIL_BYTES = 4096


class Runner:
    """Owns every state change of a job after it was accepted. Tells watchers through `next_change`."""

    def __init__(self, store: JobStore, repository: Repository, settings: OptimizationSettings) -> None:
        self._store = store
        self._repository = repository
        self._settings = settings
        self._work = asyncio.Event()
        self._deciding = asyncio.Lock()  # between a job's end and a cancel: what was cancelled is never published
        self._changed: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()  # each lives as long as somebody waits for it
        self._process: asyncio.subprocess.Process | None = None
        self._running_id = ""
        self._stopping = False
        self._kept_steps = settings.folder.resolve() / "steps"

    def wake(self) -> None:
        """A job was queued."""
        self._work.set()

    async def next_change(self, job_id: str) -> None:
        """Returns at the job's next event."""
        event = self._changed.setdefault(job_id, asyncio.Event())
        await event.wait()

    def release(self) -> None:
        """Lets every `next_change` return."""
        for event in list(self._changed.values()):
            event.set()

    async def run(self) -> None:
        """Runs jobs until stopped; first puts back in the queue what a stopped service left running."""
        while not self._stopping:
            try:
                await asyncio.to_thread(self._recover)
                await self._run_queue()
            except Exception as error:  # a job's own faults end that job; these are the database's
                log.error("jobs wait", retry_s=RETRY_S, exc_info=error)
                await asyncio.sleep(RETRY_S)

    async def _run_queue(self) -> None:
        while not self._stopping:
            self._work.clear()
            job = await asyncio.to_thread(self._store.oldest_queued)
            if job is None:
                await self._work.wait()
                continue
            await self._run_job(job)

    async def cancel(self, job_id: str) -> Job:
        """Asks a job to end: a waiting one has then ended, a running one is told to. Raises UnknownJob."""
        job = await asyncio.to_thread(self._store.get, job_id)
        if job.state is State.QUEUED:
            with suppress(IllegalTransition):  # it has just begun to run
                return await self._move(job_id, State.CANCELLED, "cancelled before it ran")
        if job.state in (State.QUEUED, State.RUNNING):
            async with self._deciding:
                with suppress(IllegalTransition):  # it has just ended by itself
                    job = await self._move(job_id, State.CANCELLING, "cancelling")
                    self._kill_later(job_id)
                    return job
        return await asyncio.to_thread(self._store.get, job_id)

    async def stop(self) -> None:
        """Ends the worker; its job goes on from its last finished step when the service is back."""
        self._stopping = True
        if self._process is not None:
            _signal(self._process, signal.SIGKILL)
            await self._process.wait()

    # One job

    async def _run_job(self, job: Job) -> None:
        folder = self._settings.folder.resolve() / "work" / job.id
        try:
            await self._move(job.id, State.RUNNING, "started")
        except IllegalTransition:  # cancelled in between
            return
        try:
            if job.started is not None and await self._was_published(job):
                return
            await asyncio.to_thread(self._prepare, job, folder)
            status = await self._run_worker(job, folder)
            async with self._deciding:
                await self._conclude(job, folder, status)
        except (UnknownModel, Damaged) as error:
            await self._fail(job.id, FailureClass.BAD_MODEL, f"source: {error}")
        except Exception as error:
            log.error("job broke", job=job.id, exc_info=error)
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            message = "no space is left on the disk" if full else f"{type(error).__name__} in the service"
            await self._fail(job.id, FailureClass.INTERNAL, message)
        finally:
            await asyncio.to_thread(self._tidy, folder)

    async def _was_published(self, job: Job) -> bool:
        """Ends a job whose version was sealed just before the service was killed: another run might choose differently."""
        async with self._deciding:
            found = await asyncio.to_thread(published, self._repository, job)
            if found is None:
                return False
            result = Result(report=json.dumps(dict(found.report)), published=found.reference)
            await self._move(job.id, State.SUCCEEDED, f"published {found.reference}", result)
            return True

    def _tidy(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # a disk that fails is told by the next job
            KeptSteps(self._kept_steps).shrink(self._settings.kept_steps_bytes)

    def _prepare(self, job: Job, folder: Path) -> None:
        source = self._repository.resolve(job.source)
        spec = Spec.model_validate_json(job.spec)
        cores = self._settings.share_of_cores
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "scratch").mkdir(parents=True)
        signature = source.manifest.signature
        plan = Plan(
            recipes=spec.recipes or default_recipes(signature, calibrated=bool(spec.calibration_texts)),
            evaluation_texts=spec.evaluation_texts,
            calibration_texts=spec.calibration_texts,
            gates=spec.gates,
            objective=spec.objective,
            seed=spec.seed,
            threads=len(cores),
            evaluation_seconds=self._settings.evaluation_s,
        )
        task = Task(
            plan=plan,
            original=source.folder,
            signature=signature,
            scratch=folder / "scratch",
            kept_steps=self._kept_steps,
            cores=cores,
            nice=self._settings.job_nice,
        )
        (folder / TASK).write_text(task.model_dump_json())

    async def _run_worker(self, job: Job, folder: Path) -> int:
        """The worker's exit status, negative for the signal that ended it."""
        threads = str(len(self._settings.share_of_cores))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with (folder / "log.txt").open("wb") as log_file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.optimization.worker",
                str(folder),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log_file,
                env=environment,
                start_new_session=True,  # so that a signal reaches the worker's own children too
                limit=_LINE_LIMIT,
            )
        self._process, self._running_id = process, job.id
        try:
            if (await asyncio.to_thread(self._store.get, job.id)).state is State.CANCELLING:
                self._kill_later(job.id)
            assert process.stdout is not None  # noqa: S101 (it was asked for)
            async for line in process.stdout:
                await self._tell(job.id, line)
            return await process.wait()
        finally:
            with suppress(ProcessLookupError):  # after its end too: one that was killed alone leaves children, which keep the group's id
                os.killpg(process.pid, signal.SIGKILL)
            self._process, self._running_id = None, ""

    async def _tell(self, job_id: str, line: bytes) -> None:
        event: dict[str, Any] = json.loads(line)
        await asyncio.to_thread(self._store.tell, job_id, event["stage"], event["fraction"], event["message"])
        self._announce(job_id)

    async def _conclude(self, job: Job, folder: Path, status: int) -> None:
        current = await asyncio.to_thread(self._store.get, job.id)
        if current.state is State.CANCELLING:
            await self._move(job.id, State.CANCELLED, "cancelled")
        elif self._stopping:
            return  # stays RUNNING: `_recover` queues it again
        elif status != 0:
            await self._fail(job.id, *_why_ended(status), log_tail=_tail(folder / "log.txt"))
        else:
            await self._accept(job, Outcome.model_validate_json((folder / RESULT).read_bytes()))

    async def _accept(self, job: Job, outcome: Outcome) -> None:
        if outcome.failure_class is not None or outcome.report is None:
            await self._fail(job.id, outcome.failure_class or FailureClass.INTERNAL, outcome.failure_message)
            return
        report = outcome.report.model_dump_json()
        if outcome.chosen_folder is None:
            await self._move(job.id, State.REJECTED, "no candidate passed its gates", Result(report=report))
            return
        manifest = await asyncio.to_thread(publish, self._repository, job, outcome)
        await self._move(job.id, State.SUCCEEDED, f"published {manifest.reference}", Result(report=report, published=manifest.reference))

    async def _fail(self, job_id: str, failure: FailureClass, message: str, log_tail: str = "") -> None:
        log.warning("job failed", job=job_id, failure_class=failure.value, message=message, worker_log=log_tail)
        with suppress(IllegalTransition):  # cancelled in between: that is its end then
            await self._move(job_id, State.FAILED, message, Result(failure.value, message))

    async def _move(self, job_id: str, state: State, message: str, result: Result | None = None) -> Job:
        job = await asyncio.to_thread(self._store.move, job_id, state, message, result)
        log.info("job", job=job_id, state=state.value, message=message)
        self._announce(job_id)
        return job

    def _announce(self, job_id: str) -> None:
        event = self._changed.pop(job_id, None)
        if event is not None:
            event.set()

    def _kill_later(self, job_id: str) -> None:
        """Politely first, then hard, if the job is still the one that runs."""
        process = self._process
        if process is None or self._running_id != job_id:
            return
        _signal(process, signal.SIGTERM)
        asyncio.get_running_loop().call_later(self._settings.cancel_grace_s, _signal, process, signal.SIGKILL)

    def _recover(self) -> None:
        page = self._store.page(1000, states=[State.RUNNING, State.CANCELLING])
        for job in page.jobs:
            if job.state is State.CANCELLING:
                self._store.move(job.id, State.CANCELLED, "cancelled while the service was away")
            else:
                self._store.move(job.id, State.QUEUED, "queued again after the service was interrupted")
        shutil.rmtree(self._settings.folder / "work", ignore_errors=True)


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    """To the worker's whole process group; nothing when it has ended."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _why_ended(status: int) -> tuple[FailureClass, str]:
    if status == -signal.SIGKILL:
        return FailureClass.INTERNAL, "the worker was killed (SIGKILL): by hand, or by the system for want of memory"
    if status < 0:
        return FailureClass.INTERNAL, f"the worker was ended by {signal.Signals(-status).name}"
    return FailureClass.INTERNAL, f"the worker ended with status {status}; its log is in the service's log"


def _tail(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""
