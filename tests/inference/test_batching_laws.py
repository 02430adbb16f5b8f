"""What the batcher promises whatever happens: random interleavings, with a clock that the test moves."""

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from services.inference.batching import Batch, Batcher, Policy, QueueFull, Reason
from services.inference.lanes import Row
from tests.inference.fakes import Linear

MOST_S = Linear().predict(1, 400)  # of any batch below: 300 tokens, or one row of 400


def urgency(row: Row) -> tuple[int, int]:
    return -row.priority, row.order


class Interleaving(RuleBasedStateMachine):
    """Any order of requests, cancellations, promotions, polls and passing time."""

    rows: Bundle[Row] = Bundle("rows")
    length_aware = True
    buckets: tuple[int, ...] = ()

    @initialize(sure_share=st.sampled_from([0.0, 0.7, 1.0]))
    def start(self, sure_share: float) -> None:
        self.forecast = Linear(sure_share)
        self.policy = Policy(6, 300, 2.0, 20, 1500, self.length_aware, self.buckets)
        self.queue: Batcher[Row] = Batcher(self.policy, self.forecast)
        self.now = 0.0
        self.waiting: set[Row] = set()

    @rule(
        target=rows,
        key=st.sampled_from("ab"),
        lengths=st.lists(st.integers(1, 8) | st.integers(1, 400), min_size=1, max_size=5),
        priority=st.integers(0, 2),
        ttl_s=st.just(math.inf) | st.floats(0.001, 5),
    )
    def ask(self, key: str, lengths: list[int], priority: int, ttl_s: float) -> Row:
        """A request of several rows is taken whole or not at all."""
        request = [Row(key, length, priority, self.now + ttl_s) for length in lengths]
        before = len(self.queue), self.queue.tokens
        fits = before[0] + len(request) <= self.policy.queue_rows
        fits &= not before[0] or before[1] + sum(lengths) <= self.policy.queue_tokens
        try:
            self.queue.admit(len(request), sum(lengths))
        except QueueFull:
            assert not fits
            return request[0]  # never entered: discarding and promoting it must do nothing
        assert fits
        for row in request:
            self.queue.enter(row, self.now)
        self.waiting.update(request)
        return request[-1]

    @rule(row=rows)
    def cancel(self, row: Row) -> None:
        assert self.queue.discard(row) == (row in self.waiting)
        self.waiting.discard(row)

    @rule(row=rows, priority=st.integers(0, 3))
    def promote(self, row: Row, priority: int) -> None:
        before = row.priority
        self.queue.promote(row, priority)
        assert row.priority == (max(before, priority) if row in self.waiting else before)

    @rule(row=rows, more_s=st.floats(0, 3))
    def wait_longer(self, row: Row, more_s: float) -> None:
        """As a twin with a later deadline does."""
        row.deadline += more_s

    @rule(seconds=st.floats(0.01, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(only_full=st.booleans(), sharers=st.integers(1, 3), begins_s=st.sampled_from([0.0, 0.05]))
    def poll(self, only_full: bool, sharers: int, begins_s: float) -> None:
        begins = self.now + begins_s
        decision = self.queue.poll(self.now, begins=begins, only_full=only_full, sharers=sharers)
        self.leave(decision.expired)  # first: the batch was chosen without them
        for row in decision.expired:
            late = begins + self.forecast.sure_share * MOST_S
            assert row.deadline <= self.now or row.deadline < late
        assert all(row.deadline > self.now for row in self.waiting)
        if decision.batch is None:
            assert only_full or not self.waiting
            return
        batch = decision.batch
        assert set(batch.rows) <= self.waiting  # none ran twice, was cancelled or expired
        assert len(batch.rows) == len(set(batch.rows))
        assert not only_full or batch.reason in (Reason.FULL, Reason.OVERDUE)
        assert len(batch.rows) <= math.ceil(len(self.waiting) / sharers)
        self.check_budget(batch)
        self.check_strangers(batch)
        self.check_turns(batch)
        self.check_order(batch)
        ends = begins + self.forecast.sure_share * self.forecast.predict(len(batch.rows), batch.longest)
        assert all(row.deadline >= ends for row in batch.rows)
        self.leave(batch.rows)

    def leave(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.waiting.remove(row)  # KeyError: it left before

    def check_budget(self, batch: Batch[Row]) -> None:
        assert batch.longest == max(row.length for row in batch.rows)
        assert len(batch.rows) <= self.policy.max_rows
        assert len(batch.rows) == 1 or len(batch.rows) * batch.longest <= self.policy.max_tokens

    def check_strangers(self, batch: Batch[Row]) -> None:
        assert len({row.key for row in batch.rows}) == 1

    def check_turns(self, batch: Batch[Row]) -> None:
        """The oldest past the age cap is in the batch; while nobody is, the key of the oldest of the highest priority is served."""
        oldest = min(self.waiting, key=lambda row: row.order)
        if self.now - oldest.arrived >= self.policy.max_age_s:
            assert oldest in batch.rows
            assert batch.reason is Reason.OVERDUE
        else:
            first = min(self.waiting, key=urgency)
            assert batch.rows[0].key == first.key
            assert first.priority in {row.priority for row in batch.rows}

    def check_order(self, batch: Batch[Row]) -> None:
        """Of one key, equal lengths and equal priority run in order of arrival."""
        ran = {(row.length, row.priority): row for row in sorted(batch.rows, key=lambda row: row.order)}  # the newest of each
        for row in self.waiting.difference(batch.rows):
            newest = ran.get((row.length, row.priority))
            assert newest is None or row.key != newest.key or row.order > newest.order

    @rule()
    def drain(self) -> None:
        """Everything that waits is in some batch, or too late for any."""
        while self.waiting:
            decision = self.queue.poll(self.now)
            assert decision.batch is not None or decision.expired
            self.leave(decision.expired)
            self.leave(decision.batch.rows if decision.batch is not None else ())

    @invariant()
    def the_counts_are_right(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.tokens == sum(row.length for row in self.waiting)
        urgent = [row for row in self.waiting if row.priority >= 1]
        assert self.queue.ahead_of(1) == (len(urgent), sum(row.length for row in urgent))
        assert self.queue.soonest_deadline == min((row.deadline for row in self.waiting), default=math.inf)


class FirstCome(Interleaving):
    length_aware = False

    def check_order(self, batch: Batch[Row]) -> None:
        """Nobody is passed by a less urgent one, but by the oldest past the age cap."""
        oldest = min(self.waiting, key=lambda row: row.order)
        behind = [row for row in self.waiting.difference(batch.rows) if self.mates(row, batch.rows[0])]
        ran = [row for row in batch.rows if row is not oldest]
        if behind and ran:
            assert max(map(urgency, ran)) < min(map(urgency, behind))

    def mates(self, row: Row, other: Row) -> bool:
        return row.key == other.key


class FixedBuckets(FirstCome):
    buckets = (10, 100)

    def mates(self, row: Row, other: Row) -> bool:
        return row.key == other.key and self.bucket(row) == self.bucket(other)

    def bucket(self, row: Row) -> int:
        return sum(row.length > bound for bound in self.buckets)

    def check_strangers(self, batch: Batch[Row]) -> None:
        super().check_strangers(batch)
        assert len({self.bucket(row) for row in batch.rows}) == 1


TestLengthAware = Interleaving.TestCase
TestFirstCome = FirstCome.TestCase
TestFixedBuckets = FixedBuckets.TestCase
TestLengthAware.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestFirstCome.settings = TestFixedBuckets.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)

waiting = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2)), min_size=1, max_size=60)


def queued(rows: Iterable[tuple[int, int]], policy: Policy) -> Batcher[Row]:
    """A queue of rows (length, priority)."""
    queue: Batcher[Row] = Batcher(policy, Linear())
    for length, priority in rows:
        queue.enter(Row("m", length, priority), 0.0)
    return queue


def ran(batch: Batch[Row] | None) -> list[tuple[int, int]]:
    assert batch is not None
    return [(row.length, row.priority) for row in batch.rows]


@given(waiting, st.integers(1, 8), st.integers(60, 400))
@settings(deadline=None)
def test_the_highest_priority_runs_as_if_nobody_else_waited(rows: list[tuple[int, int]], max_rows: int, max_tokens: int) -> None:
    policy = Policy(max_rows=max_rows, max_tokens=max_tokens)
    highest = max(priority for _, priority in rows)
    alone = queued([row for row in rows if row[1] == highest], policy).poll(0.0).batch
    among = queued(rows, policy).poll(0.0).batch
    assert [row for row in ran(among) if row[1] == highest] == ran(alone)
    assert max(length for length, _ in ran(among)) == max(length for length, _ in ran(alone))


@given(waiting, st.integers(1, 8), st.integers(60, 400))
@settings(deadline=None)
def test_no_window_of_neighbours_would_have_finished_more_tokens_per_second(
    rows: list[tuple[int, int]], max_rows: int, max_tokens: int
) -> None:
    """Held against all windows, within the halves that are compared."""
    policy, forecast = Policy(max_rows=max_rows, max_tokens=max_tokens), Linear()
    lengths = sorted(length for length, _ in rows)
    found = queued([(length, 0) for length in lengths], policy).poll(0.0).batch
    assert found is not None

    def rate(window: list[int]) -> float:
        return sum(window) / (0.001 + forecast.predict(len(window), window[-1]))

    full = [lengths[max(0, stop - policy.fitting_rows(lengths[stop - 1])) : stop] for stop in range(1, len(lengths) + 1)]
    assert rate([row.length for row in found.rows]) >= max(map(rate, full)) - 1e-9


def drained_s(lengths: Iterable[int], *, length_aware: bool) -> float:
    queue = queued([(length, 0) for length in lengths], Policy(max_rows=8, max_tokens=400, length_aware=length_aware))
    taken_s = 0.0
    while (batch := queue.poll(0.0).batch) is not None:
        taken_s += Linear().predict(len(batch.rows), batch.longest)
    return taken_s


@pytest.mark.parametrize("longest", [10, 60, 120])
def test_a_queue_of_mixed_lengths_is_done_sooner_than_in_order_of_arrival(longest: int) -> None:
    draw = random.Random(longest)
    lengths = [draw.randint(1, longest) for _ in range(300)]
    assert drained_s(lengths, length_aware=True) < 0.85 * drained_s(lengths, length_aware=False)


@pytest.mark.parametrize("priority", [0, 5])
def test_nobody_starves_under_a_stream_of_others(priority: int) -> None:
    queue: Batcher[Row] = Batcher(Policy(max_rows=2, max_tokens=64, max_age_s=1.0), Linear())
    outlier = Row("m", 64)
    queue.enter(outlier, 0.0)
    for step in range(1, 100):
        now = step / 50
        for _ in range(2):
            queue.enter(Row("m", 7, priority), now)
        batch = queue.poll(now).batch
        assert batch is not None
        if outlier in batch.rows:
            assert now <= 1.0
            return
    pytest.fail("the outlier never ran")
