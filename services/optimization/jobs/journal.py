"""Writing a job's story, and telling those who watch it that it went on, wherever it is written."""

import asyncio
from collections.abc import Collection
from weakref import WeakValueDictionary

import structlog

from services.optimization.jobs.job import Job, Lease, Result, State, Told
from services.optimization.jobs.store import JobStore

log = structlog.get_logger("hone.jobs")


class Journal:
    """Of one event loop. Watchers wait in `next_change`; of jobs that another replica runs they learn through `follow`."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._changed: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()  # each lives as long as somebody waits for it
        self._known: dict[str, int] = {}  # sequence numbers that `follow` saw last

    async def move(self, job_id: str, state: State, message: str, result: Result | None = None, lease: Lease | None = None) -> Job:
        """Raises what JobStore.move raises."""
        return self.moved(await asyncio.to_thread(self._store.move, job_id, state, message, result, lease), message)

    def moved(self, job: Job, message: str) -> Job:
        """Logs and announces a move that the store made."""
        log.info("job", job=job.id, state=job.state.value, message=message)
        self._announce(job.id)
        return job

    async def tell(self, lease: Lease, told: Told) -> None:
        """Raises LeaseLost."""
        await asyncio.to_thread(
            self._store.tell, lease.job_id, told.stage, told.fraction, told.message, step=told.step, metrics=told.metrics, lease=lease
        )
        self._announce(lease.job_id)

    async def next_change(self, job_id: str) -> None:
        """Returns at the job's next event, now and then without one."""
        event = self._changed.setdefault(job_id, asyncio.Event())
        await event.wait()

    async def follow(self, here: Collection[str]) -> None:
        """Announces what others wrote since the last call: one query, however many watch. Jobs that run `here` announce themselves."""
        watched = [job_id for job_id in self._changed if job_id not in here]
        found = await asyncio.to_thread(self._store.sequences, watched) if watched else {}
        for job_id, sequence in found.items():
            if self._known.get(job_id) != sequence:  # one not seen before too: it may have gone on since its watcher looked
                self._announce(job_id)
        self._known = found

    def release(self) -> None:
        """Lets every `next_change` return."""
        for event in list(self._changed.values()):
            event.set()

    def _announce(self, job_id: str) -> None:
        event = self._changed.pop(job_id, None)
        if event is not None:
            event.set()
