"""Runs queued jobs, as many at once as cores and memory allow, each in a worker process that can crash without taking anything along."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from services.optimization.failures import FailureClass
from services.optimization.jobs import scheduling
from services.optimization.jobs.job import IllegalTransition, Job, Result, State
from services.optimization.jobs.journal import Journal
from services.optimization.jobs.replica import Replica
from services.optimization.jobs.run import JobRun, Room
from services.optimization.jobs.scheduling import Need, Start, Waiting
from services.optimization.jobs.store import JobStore, Queued
from services.optimization.remembered.departed import Departed
from services.optimization.settings import OptimizationSettings
from services.optimization.spec import Budget, Spec
from services.repository.store import Repository

log = structlog.get_logger("hone.jobs")

RETRY_S = 5.0
STOP_S = 5.0
RENEWALS_PER_LEASE = 3  # one may be late, or lost with the database's restart


class Runner:
    """One replica: it claims jobs, keeps its leases on them, and sees what others ask of them through the database."""

    def __init__(self, store: JobStore, repository: Repository, settings: OptimizationSettings, departed: Departed | None = None) -> None:
        self._store = store
        self._settings = settings
        self.kept_steps = settings.folder.resolve() / "steps"
        self.capacity = settings.capacity
        self._journal = Journal(store)
        self._room = Room(store, self._journal, repository, settings, self.kept_steps, departed)
        self._work = asyncio.Event()
        self._replica: Replica | None = None
        self._runs: dict[str, tuple[JobRun, asyncio.Task[None]]] = {}
        self._needs: dict[str, Need] = {}
        self._renew_at = 0.0
        self._stopping = False
        self._loop: asyncio.Task[None] | None = None

    def check_budget(self, budget: Budget) -> None:
        """Whether a job with that budget could ever run here. Raises scheduling.OverBudget, whose text begins with the field's path."""
        scheduling.check_budget(budget.cores, budget.memory_bytes, self.capacity)

    def cores_of(self, budget: Budget) -> int:
        """That a job with that budget is given."""
        return self._need_of(budget).cores

    def wake(self) -> None:
        """A job was queued."""
        self._work.set()

    async def next_change(self, job_id: str) -> None:
        """Returns at the job's next event, now and then without one."""
        await self._journal.next_change(job_id)

    def release(self) -> None:
        """Lets every `next_change` return."""
        self._journal.release()

    async def cancel(self, job_id: str) -> Job:
        """Asks a job to end: a waiting one has then ended, a running one is told to, wherever it runs. Raises UnknownJob."""
        job = await asyncio.to_thread(self._store.get, job_id)
        if job.state is State.QUEUED:
            with suppress(IllegalTransition):  # it has just begun to run
                return await self._journal.move(job_id, State.CANCELLED, "cancelled before it ran")
        if job.state in (State.QUEUED, State.RUNNING):
            with suppress(IllegalTransition):  # it has just ended by itself
                if job_id in self._runs:
                    return await self._runs[job_id][0].cancel()
                return await self._journal.move(job_id, State.CANCELLING, "cancelling")  # who runs it sees that soon
        return await asyncio.to_thread(self._store.get, job_id)

    async def run(self) -> None:
        """Runs jobs until stopped; first puts back in the queue what a stopped service left running."""
        self._loop = asyncio.current_task()
        while not self._stopping:
            try:
                await self._turn(self._replica or await self._begin())
                wait_s = self._settings.poll_s
            except Exception as error:  # a job's own faults end that job; these are the database's and the disk's
                log.error("jobs wait", retry_s=RETRY_S, exc_info=error)
                wait_s = RETRY_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._work.wait(), wait_s)

    async def stop(self) -> None:
        """Ends the workers; their jobs wait again and go on from their last finished steps, here or elsewhere."""
        self._stopping = True
        self._work.set()
        if self._loop is not None and self._loop is not asyncio.current_task():
            await asyncio.wait([self._loop], timeout=STOP_S)  # a job that it is just claiming would be forgotten
        tasks = [task for _, task in self._runs.values()]
        for run, _ in list(self._runs.values()):
            run.abandon()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._replica is not None:
            replica, self._replica = self._replica, None
            with suppress(Exception):  # without the database they are taken back by the next life, or when their leases run out
                await asyncio.to_thread(self._store.take_back, replica.id)
            await asyncio.to_thread(replica.close)

    async def _begin(self) -> Replica:
        self._replica = await asyncio.to_thread(Replica, self._settings.folder.resolve() / "work")
        for dead in self._replica.predecessors:
            await asyncio.to_thread(self._store.take_back, dead)
        return self._replica

    async def _turn(self, replica: Replica) -> None:
        """Everything that there is to do now."""
        self._work.clear()
        await self._keep_leases(replica)
        await self._look_after(replica)
        await self._journal.follow(self._runs.keys())
        await self._start_jobs(replica)

    async def _keep_leases(self, replica: Replica) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._renew_at:
            return
        if self._runs:
            await asyncio.to_thread(self._store.renew, replica.id, self._settings.lease_s)
        for job in await asyncio.to_thread(self._store.take_back_expired, replica.id):
            self._journal.moved(job, "its replica was not heard of")
        self._renew_at = now + self._settings.lease_s / RENEWALS_PER_LEASE

    async def _look_after(self, replica: Replica) -> None:
        """Brings what runs here and what the database says into line."""
        held = {found.lease.job_id: found for found in await asyncio.to_thread(self._store.held, replica.id)}
        for job_id, (run, _) in list(self._runs.items()):
            found = held.get(job_id)
            if found is None or found.lease != run.job.lease:
                if not (await asyncio.to_thread(self._store.get, job_id)).has_ended:  # it may just have ended by itself
                    run.abandon()
            elif found.state is State.CANCELLING:
                run.end()
        if held.keys() - self._runs.keys():  # its run broke off with the database
            await asyncio.to_thread(self._store.take_back, replica.id, list(self._runs))

    async def _start_jobs(self, replica: Replica) -> None:
        passed: set[str] = set()  # claimed by another replica meanwhile
        while not self._stopping:
            queue = [found for found in await asyncio.to_thread(self._queue) if found.id not in passed]
            await self._refuse_hopeless(queue, replica)
            shares = [run.share for run, _ in self._runs.values()]
            start = scheduling.next_start(queue, shares, self.capacity, datetime.now(UTC), self._settings.patience)
            if start is None:
                return
            if not await self._start(start, replica):
                passed.add(start.id)

    async def _start(self, start: Start, replica: Replica) -> bool:
        job = await asyncio.to_thread(self._store.claim, start.id, replica.id, self._settings.lease_s)
        if job is None:
            return False
        self._journal.moved(job, "started")
        run = JobRun(job, start.share, replica.folder / job.id, self._room)
        task = asyncio.get_running_loop().create_task(run.run())
        self._runs[job.id] = (run, task)
        task.add_done_callback(lambda done: self._ended(job.id, done))
        return True

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        self._runs.pop(job_id)
        self._work.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("job's run broke off", job=job_id, exc_info=error)

    def _queue(self) -> list[Waiting]:
        queued = self._store.waiting()
        self._needs = {found.id: self._needs.get(found.id) or self._need(found) for found in queued}
        return [Waiting(found.id, found.created, self._needs[found.id]) for found in queued]

    def _need(self, queued: Queued) -> Need:
        """A specification that does not parse takes the defaults here; its run tells the fault."""
        budget = Budget()
        with suppress(ValueError):
            budget = Spec.model_validate_json(self._store.get(queued.id).spec).budget
        return self._need_of(budget)

    def _need_of(self, budget: Budget) -> Need:
        return scheduling.need_of(budget.cores, budget.memory_bytes, self._settings.job_defaults, self.capacity)

    async def _refuse_hopeless(self, queue: list[Waiting], replica: Replica) -> None:
        """Fails what was accepted when this server gave more. Where others share the database, one of them may still give it."""
        hopeless = [] if self._store.is_shared else [found for found in queue if not self.capacity.holds(found.need)]
        for waiting in hopeless:
            queue.remove(waiting)
            job = await asyncio.to_thread(self._store.claim, waiting.id, replica.id, self._settings.lease_s)
            if job is not None:
                message = (
                    f"budget: {waiting.need.cores} cores and {waiting.need.memory_bytes} bytes are more than this server gives jobs now"
                )
                result = Result(FailureClass.BUDGET_EXCEEDED.value, message)
                await self._journal.move(job.id, State.FAILED, message, result, job.lease)
