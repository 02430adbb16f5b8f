"""One served version: a batcher, instances that run batches, and the one loop that joins them.

Everything but the backend's run happens on the event loop's thread. Each instance is one thread; it holds at most one
batch running and one prepared, so that it goes on while the loop is busy answering.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from services.backends import Backend, BackendError, RunError
from services.chassis.faults import DeadlineMissed, Overloaded, Unavailable
from services.inference.batching import Batch, Batcher, Policy, QueueFull
from services.inference.layout import Layout, Values
from services.inference.metrics import Metrics
from services.inference.service_time import ServiceTime
from services.inference.statistics import Statistics
from services.inference.tickets import Item, QueuedRow, RowAnswer, Ticket

log = structlog.get_logger("hone.engine")

PREPARE_SHARE = 0.25  # of a batch's predicted time before its end, the next one is prepared
PREPARE_LEAST_S = 0.002


@dataclass(frozen=True, slots=True)
class _Ran:
    """A batch that has run: its rows' answers, those dropped before left out."""

    answers: Mapping[QueuedRow, Values | Exception]
    begun: float
    ended: float
    predicted_s: float

    @property
    def compute_ns(self) -> int:
        return round((self.ended - self.begun) * 1e9)


@dataclass(slots=True)
class _Instance:
    thread: ThreadPoolExecutor
    pending: int = 0
    free_at: float = 0.0  # predicted end of what it was handed
    prepare_at: float = 0.0  # from then on a batch that is not full is worth preparing


class Engine:
    """Runs one version. Made and used on one event loop."""

    def __init__(
        self,
        backend: Backend,
        layout: Layout,
        policy: Policy,
        *,
        instances: int,
        name: str,
        version: int,
        metrics: Metrics,
        service_time: ServiceTime | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.statistics = Statistics()
        self.service_time = service_time or ServiceTime()
        self._backend = backend
        self._layout = layout
        self._batcher: Batcher[QueuedRow] = Batcher(policy, self.service_time.predict)
        self._flights: dict[bytes, QueuedRow] = {}
        self._instances = [_Instance(ThreadPoolExecutor(1, f"{name}@{version}-{i}")) for i in range(instances)]
        self._metrics = metrics.of(name, version)
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._poll_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def queued_rows(self) -> int:
        return len(self._batcher)

    def submit(self, items: Sequence[Item], priority: int, deadline: float) -> Ticket:
        """Queues a call's rows, all or none; `deadline` is on the engine's clock.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the version is draining.
        """
        if self._draining:
            raise Unavailable("the version is draining")
        rows = [self._row(item, priority, deadline) for item in items]
        self._admit(rows)
        ticket = Ticket(len(rows), self._abandon)
        now = self._clock()
        for index, row in enumerate(rows):
            self._enter(row, ticket, index, now)
        self._idle.clear()
        self._schedule_poll()
        return ticket

    async def drain(self) -> None:
        """Takes no more rows and returns when those taken are answered."""
        self._draining = True
        await self._idle.wait()

    async def close(self) -> None:
        """Fails what still waits, lets running batches end, and frees the weights."""
        self._draining = True
        if self._timer is not None:
            self._timer.cancel()
        for row in self._take_everything():
            self._fail(row, Unavailable("the version was unloaded"))
        await asyncio.to_thread(self._end_threads)

    def _end_threads(self) -> None:
        for instance in self._instances:
            instance.thread.shutdown(wait=True)
        self._backend.close()

    # Taking rows in and out

    def _row(self, item: Item, priority: int, deadline: float) -> QueuedRow:
        key = (item.outputs, self._layout.shape_key(item.values))
        return QueuedRow(item, key, self._layout.length(item.values), priority, deadline)

    def _admit(self, rows: Iterable[QueuedRow]) -> None:
        fresh = [row for row in rows if row.flight is None or row.flight not in self._flights]
        try:
            self._batcher.admit(len(fresh), sum(row.length for row in fresh))
        except QueueFull as error:
            self.statistics.refused_requests += 1
            raise Overloaded(f"the queue is full: {error}", self._backlog_s()) from None

    def _enter(self, row: QueuedRow, ticket: Ticket, index: int, now: float) -> None:
        twin = self._flights.get(row.flight) if row.flight is not None else None
        if twin is not None:
            twin.deadline = max(twin.deadline, row.deadline)
            self._batcher.promote(twin, row.priority)
            row = twin
        else:
            self._batcher.enter(row, now)
            if row.flight is not None:
                self._flights[row.flight] = row
        row.waiters.append((ticket, index))
        ticket.rows.append(row)

    def _abandon(self, ticket: Ticket) -> None:
        for row in ticket.rows:
            row.waiters = [waiter for waiter in row.waiters if waiter[0] is not ticket]
            if not row.waiters and self._batcher.discard(row):
                self.statistics.dropped_rows += 1
                self._forget(row)
        ticket.rows = []
        self._check_idle()

    def _forget(self, row: QueuedRow) -> None:
        if row.flight is not None and self._flights.get(row.flight) is row:
            del self._flights[row.flight]

    def _take_everything(self) -> list[QueuedRow]:
        taken: list[QueuedRow] = []
        while (decision := self._batcher.poll(self._clock())).batch is not None or decision.expired:
            taken += decision.expired
            taken += decision.batch.rows if decision.batch is not None else ()
        return taken

    def _backlog_s(self) -> float:
        """When the rows waiting now will about have run."""
        rows = max(1, len(self._batcher))
        batch = self._batcher.policy.fitting_rows(max(1, self._batcher.tokens // rows))
        seconds = self.service_time.predict(batch, self._batcher.tokens // rows) * rows / batch
        return max(0.001, seconds / len(self._instances))

    # The loop

    def _schedule_poll(self) -> None:
        """Polls once the loop has taken in everything that has arrived by now, so that it may share a batch."""
        if not self._poll_scheduled:
            self._poll_scheduled = True
            self._loop.call_soon(self._poll)

    def _poll(self) -> None:
        self._poll_scheduled = False
        now = self._clock()
        idle = [instance for instance in self._instances if not instance.pending]
        for number, instance in enumerate(idle):
            self._offer(instance, now, sharers=len(idle) - number)
        for instance in sorted(self._instances, key=lambda i: i.free_at):
            if instance.pending == 1:
                self._offer(instance, now)
        self._metrics.queued_rows.set(len(self._batcher))
        self._set_timer(now)
        self._check_idle()

    def _offer(self, instance: _Instance, now: float, sharers: int = 1) -> None:
        """Hands the instance a batch, if there is one worth starting."""
        only_full = instance.pending > 0 and now < instance.prepare_at
        decision = self._batcher.poll(now, only_full=only_full, sharers=sharers)
        for row in decision.expired:
            self.statistics.dropped_rows += 1
            self._fail(row, DeadlineMissed("the deadline passed in the queue"))
        if decision.batch is not None:
            self._run(instance, decision.batch, now)

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = [instance.prepare_at for instance in self._instances if instance.pending == 1]
        if len(self._batcher) and waiting:
            self._timer = self._loop.call_later(max(0.0005, min(waiting) - now), self._schedule_poll)

    def _run(self, instance: _Instance, batch: Batch[QueuedRow], now: float) -> None:
        predicted = self.service_time.predict(len(batch.rows), batch.longest)
        begin = max(now, instance.free_at) if instance.pending else now
        instance.free_at = begin + predicted
        instance.prepare_at = instance.free_at - max(PREPARE_LEAST_S, PREPARE_SHARE * predicted)
        instance.pending += 1
        self._count_batch(batch)
        instance.thread.submit(self._execute, instance, batch, predicted)

    def _execute(self, instance: _Instance, batch: Batch[QueuedRow], predicted: float) -> None:
        """In the instance's thread."""
        begun = self._clock()
        # A batch prepared ahead may have lost callers since; what nobody waits for is not run.
        live = [row for row in batch.rows if row.waiters and row.deadline > begun]
        answers = dict(zip(live, self._answer(live), strict=True)) if live else {}
        ran = _Ran(answers, begun, self._clock(), predicted)
        self._loop.call_soon_threadsafe(self._finished, instance, batch, ran)

    def _answer(self, rows: Sequence[QueuedRow]) -> list[Values | Exception]:
        try:
            outputs = self._backend.run(self._layout.merge([row.values for row in rows]), rows[0].outputs)
            return list(self._layout.split(outputs, [row.values for row in rows]))
        except BackendError as error:
            if len(rows) == 1:
                return [error]
            # One stranger's row may have failed them all: alone, each fails or succeeds by itself.
            return [answer for row in rows for answer in self._answer([row])]
        except Exception as error:  # whatever a backend raises fails its batch, not the loop
            return [RunError(f"{type(error).__name__}: {error}")] * len(rows)

    def _finished(self, instance: _Instance, batch: Batch[QueuedRow], ran: _Ran) -> None:
        instance.pending -= 1
        self._schedule_poll()
        if ran.answers:
            self._learn(ran)
        for row in batch.rows:
            self._conclude(row, ran)
        self._check_idle()

    def _conclude(self, row: QueuedRow, ran: _Ran) -> None:
        answer = ran.answers.get(row)
        if answer is None:
            self.statistics.dropped_rows += 1
            self._fail(row, DeadlineMissed("the deadline passed in the queue"))
        elif isinstance(answer, Exception):
            self._fail(row, answer)
        else:
            waited_s = ran.begun - row.arrived
            self._metrics.queue_seconds.observe(waited_s)
            self._give(row, RowAnswer(answer, round(waited_s * 1e9), ran.compute_ns, len(ran.answers)))

    def _give(self, row: QueuedRow, answer: RowAnswer) -> None:
        self.statistics.queue_ns += answer.queue_ns
        self._forget(row)
        for ticket, index in row.waiters:
            ticket.give(index, answer)

    def _fail(self, row: QueuedRow, error: Exception) -> None:
        self._forget(row)
        for ticket, _ in row.waiters:
            ticket.fail(error)

    def _check_idle(self) -> None:
        if not len(self._batcher) and not any(instance.pending for instance in self._instances):
            self._idle.set()

    # Counting

    def count_cached(self, rows: int) -> None:
        """Rows that were answered from memory, and so never came here."""
        self.statistics.cached_rows += rows
        self._metrics.cached_rows.inc(rows)

    def _count_batch(self, batch: Batch[QueuedRow]) -> None:
        real, padded = sum(row.length for row in batch.rows), len(batch.rows) * batch.longest
        counted, metrics = self.statistics, self._metrics
        counted.batches += 1
        counted.batch_rows += len(batch.rows)
        counted.real_tokens += real
        counted.padded_tokens += padded
        metrics.batch_rows.observe(len(batch.rows))
        metrics.batch_tokens.observe(padded)
        metrics.real_tokens.inc(real)
        metrics.padded_tokens.inc(padded)
        metrics.closed[batch.reason].inc()

    def _learn(self, ran: _Ran) -> None:
        seconds = ran.ended - ran.begun
        self.service_time.learn(len(ran.answers), max(row.length for row in ran.answers), seconds)
        self.statistics.compute_ns += ran.compute_ns
        self._metrics.compute_seconds.observe(seconds)
        if seconds > 0:
            self._metrics.predicted_ratio.observe(ran.predicted_s / seconds)
