"""One served version: a batcher, instances that run batches, and the one loop that joins them.

Everything but the backend's run happens on the event loop's thread. Each instance holds at most one batch running and one
prepared, so that it goes on while the loop is busy answering.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from services.backends import Backend
from services.chassis.faults import DeadlineMissed, Unavailable
from services.inference.admission import Prospect, Work
from services.inference.batching import Batch, Batcher, Policy
from services.inference.gate import Gate
from services.inference.instance import Instance, Loss, Ran
from services.inference.instances import Care, Instances
from services.inference.layout import Layout
from services.inference.metrics import Metrics, VersionMetrics
from services.inference.service_time import ServiceTime
from services.inference.spans import trace_batch
from services.inference.statistics import CallTimes, Statistics
from services.inference.tickets import Item, QueuedRow, RowAnswer, Ticket
from services.inference.variants import Variants


class Engine:
    """Runs one version. Made and used on one event loop."""

    def __init__(
        self,
        backends: Sequence[Backend],
        layout: Layout,
        policy: Policy,
        *,
        name: str,
        version: int,
        metrics: Metrics,
        service_time: ServiceTime | None = None,
        clock: Callable[[], float] = time.monotonic,
        care: Care | None = None,
    ) -> None:
        """A backend for each instance; closing one must harm no other."""
        self.statistics = Statistics()
        self.times = CallTimes()
        self.variants = Variants()
        self.service_time = service_time or ServiceTime()
        self._layout = layout
        self._batcher: Batcher[QueuedRow] = Batcher(policy, self.service_time)
        self._flights: dict[bytes, QueuedRow] = {}
        self._clock = clock
        self._instances = Instances(
            backends,
            layout,
            care or Care(),
            name=f"{name}@{version}",
            clock=clock,
            ended=self._finished,
            lost=self._lost,
            back=self._schedule_poll,
        )
        self._gate = Gate(
            self._batcher, self.service_time, self.statistics, lambda: [instance.free_at for instance in self._instances.live]
        )
        self._returned: deque[Batch[QueuedRow]] = deque()  # prepared for an instance that was lost before it ran them
        self._loop = asyncio.get_running_loop()
        self._poll_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._metrics = metrics.of(name, version, self)  # last: it may be read at once, from another thread

    @property
    def queued_rows(self) -> int:
        return len(self._batcher)

    @property
    def queued_tokens(self) -> int:
        """Padding not counted."""
        return self._batcher.tokens

    @property
    def metrics(self) -> VersionMetrics:
        """For what is measured of a version outside of its engine."""
        return self._metrics

    def check(self, rows: int, priority: int, deadline: float) -> None:
        """Refuses a call that `submit` would refuse however short its rows are, before anything is spent on them.

        Raises:
            Overloaded: the queue is full.
            DeadlineMissed: it would be answered too late.
        """
        if self._instances.live:
            self._gate.let_in(Work(rows, rows), priority, deadline, self._clock())

    def submit(self, items: Sequence[Item], priority: int, deadline: float) -> Ticket:
        """Queues a call's rows, all or none; `deadline` is on the engine's clock.

        Raises:
            Overloaded: the queue is full.
            DeadlineMissed: it would be answered too late.
            Unavailable: the version is draining, or has no instance at the moment.
        """
        if self._draining:
            raise Unavailable("the version is draining")
        if not self._instances.live:
            raise self._no_instance()
        rows = [self._row(item, priority, deadline) for item in items]
        now = self._clock()
        ticket = Ticket(len(rows), self._abandon, self._admit(rows, now), now, deadline)
        for index, row in enumerate(rows):
            self._enter(row, ticket, index, now)
        self._schedule_poll()
        return ticket

    async def drain(self) -> None:
        """Takes no more rows and returns when those taken are answered."""
        self._draining = True
        self._check_idle()
        await self._idle.wait()

    async def close(self) -> None:
        """Fails what still waits, lets running batches end unless they hang, and frees the weights."""
        self._draining = True
        self._metrics.forget()
        if self._timer is not None:
            self._timer.cancel()
        for row in self._take_everything():
            self._fail(row, Unavailable("the version was unloaded"))
        for handed in await self._instances.close():
            for row in handed.batch.rows:
                self._fail(row, Unavailable("the version was unloaded"))

    # Taking rows in and out

    def _row(self, item: Item, priority: int, deadline: float) -> QueuedRow:
        key = (item.outputs, self._layout.shape_key(item.values))
        return QueuedRow(item, key, self._layout.length(item.values), priority, deadline)

    def _admit(self, rows: Sequence[QueuedRow], now: float) -> Prospect | None:
        """What the call has to expect; None where it has no deadline, or computes nothing of its own."""
        fresh = [row for row in rows if row.flight is None or row.flight not in self._flights]
        own = Work(len(fresh), sum(row.length for row in fresh))
        return self._gate.let_in(own, fresh[0].priority, fresh[0].deadline, now) if fresh else None

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
        if row.answer is not None:
            ticket.give(index, row.answer)

    def _abandon(self, ticket: Ticket) -> None:
        self._gate.judge(ticket, self._clock())
        for row in ticket.rows:
            row.waiters = [waiter for waiter in row.waiters if waiter[0] is not ticket]
            if row.waiters:
                continue
            if row.answer is not None:
                self._forget(row)
            elif self._batcher.discard(row):
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
        taken += [row for batch in self._returned for row in batch.rows]
        self._returned.clear()
        return taken

    # The loop

    def _schedule_poll(self) -> None:
        """Polls once the loop has taken in everything that has arrived by now, so that it may share a batch."""
        if not self._poll_scheduled:
            self._poll_scheduled = True
            self._loop.call_soon(self._poll)

    def _poll(self) -> None:
        self._poll_scheduled = False
        now = self._clock()
        self._expire(self._batcher.expire(now), now)  # at once, also while every instance has its hands full
        idle = [instance for instance in self._instances.live if not instance.pending]
        for number, instance in enumerate(idle):
            self._offer(instance, now, sharers=len(idle) - number)
        for instance in sorted(self._preparing(now), key=lambda i: i.free_at):
            self._offer(instance, now)
        self._set_timer(now)
        self._check_idle()

    def _preparing(self, now: float) -> list[Instance]:
        """Instances for which a batch may be prepared while another one runs."""
        return [instance for instance in self._instances.live if instance.pending == 1 and not instance.is_late(now)]

    def _offer(self, instance: Instance, now: float, sharers: int = 1) -> None:
        """Hands the instance a batch, if there is one worth starting."""
        if self._returned:
            self._hand(instance, self._returned.popleft(), now)
            return
        only_full = instance.pending > 0 and now < instance.prepare_at
        begins = instance.free_at if instance.pending else now
        decision = self._batcher.poll(now, begins=begins, only_full=only_full, sharers=sharers)
        self._expire(decision.expired, now)
        if decision.batch is not None:
            self._count_batch(decision.batch)
            self._hand(instance, decision.batch, now)

    def _expire(self, rows: Iterable[QueuedRow], now: float) -> None:
        for row in rows:
            self.statistics.dropped_rows += 1
            passed = "passed in the queue" if row.deadline <= now else "would pass before the answer"
            self._fail(row, DeadlineMissed(f"the deadline {passed}"))

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = [instance.prepare_at for instance in self._preparing(now)]
        moment = min([*waiting, self._batcher.soonest_deadline])
        if len(self._batcher) and moment < math.inf:
            self._timer = self._loop.call_later(max(0.0005, moment - now), self._schedule_poll)

    def _hand(self, instance: Instance, batch: Batch[QueuedRow], now: float) -> None:
        instance.hand(batch, self.service_time.predict(len(batch.rows), batch.longest), now)

    def _finished(self, instance: Instance, ran: Ran) -> None:
        """The first of the batches that the instance holds has run."""
        self._schedule_poll()
        if ran.answers:
            self._learn(ran)
            trace_batch(instance.handed[0].batch, ran)
        for row in instance.handed[0].batch.rows:
            self._conclude(row, ran)
        self._check_idle()

    def _conclude(self, row: QueuedRow, ran: Ran) -> None:
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
        # A flight lasts until its callers have taken the answer, and remembered it: one that asks in between computes nothing either.
        row.answer = answer
        if not row.waiters:
            self._forget(row)
        for ticket, index in row.waiters:
            ticket.give(index, answer)

    def _fail(self, row: QueuedRow, error: Exception) -> None:
        self._forget(row)
        for ticket, _ in row.waiters:
            ticket.fail(error)

    def _check_idle(self) -> None:
        """A batch that nobody waits for any more, since its callers left, keeps no version from ending."""
        if self._draining and not len(self._batcher) and not any(row.waiters for row in self._in_batches()):
            self._idle.set()

    def _in_batches(self) -> Iterator[QueuedRow]:
        for batch in (*self._returned, *(handed.batch for instance in self._instances.live for handed in instance.handed)):
            yield from batch.rows

    # Losing instances

    @property
    def live_instances(self) -> int:
        """Instances that run batches now; 0 while every one of them is being replaced."""
        return len(self._instances.live)

    @property
    def trouble(self) -> str:
        """Why instances are missing; empty when none is."""
        return self._instances.trouble

    def _no_instance(self) -> Unavailable:
        return Unavailable(f"the version is being restarted: {self.trouble}", self._instances.retry_after_s)

    def _lost(self, instance: Instance, loss: Loss, error: Exception) -> None:
        """What it was running fails; what it had only prepared runs elsewhere."""
        self._metrics.lost[loss].inc()
        handed = list(instance.handed)
        if loss is Loss.HUNG:
            for row in handed.pop(0).batch.rows:
                self._fail(row, error)
        self._returned.extend(each.batch for each in handed)
        if not self._instances.live:
            for row in self._take_everything():
                self._fail(row, self._no_instance())
        self._schedule_poll()
        self._check_idle()

    # Counting

    def count_cached(self, rows: int) -> None:
        """Rows that were answered from memory, and so never came here."""
        self.statistics.cached_rows += rows

    def _count_batch(self, batch: Batch[QueuedRow]) -> None:
        real, padded = sum(row.length for row in batch.rows), len(batch.rows) * batch.longest
        counted, metrics = self.statistics, self._metrics
        counted.batches += 1
        counted.batch_rows += len(batch.rows)
        counted.real_tokens += real
        counted.padded_tokens += padded
        metrics.batch_rows.observe(len(batch.rows))
        metrics.batch_tokens.observe(padded)
        metrics.closed[batch.reason].inc()

    def _learn(self, ran: Ran) -> None:
        seconds = ran.ended - ran.begun
        if not any(isinstance(answer, Exception) for answer in ran.answers.values()):  # a failure is quick, or runs rows twice
            self.service_time.learn(len(ran.answers), max(row.length for row in ran.answers), seconds)
        self.statistics.compute_ns += ran.compute_ns
        self.times.ran(len(ran.answers), ran.compute_ns)
        self._metrics.compute_seconds.observe(seconds)
        if seconds > 0:
            self._metrics.predicted_ratio.observe(ran.predicted_s / seconds)
