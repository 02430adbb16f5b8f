"""Laws of the batcher, over random interleavings with a clock that the test moves."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from services.inference.batching import Batcher, Policy, QueueFull, Reason, Row


def linear(rows: int, longest: int) -> float:
    return 1e-3 + 1e-4 * rows * longest


def batcher(**bounds: object) -> Batcher[Row]:
    return Batcher(Policy(**bounds), linear)  # type: ignore[arg-type]


def filled(lengths: list[int], **bounds: object) -> tuple[Batcher[Row], list[Row]]:
    queue = batcher(**bounds)
    rows = [Row("model", length) for length in lengths]
    for row in rows:
        queue.add(row, 0.0)
    return queue, rows


def test_an_idle_engine_gets_a_lone_row_at_once() -> None:
    queue, rows = filled([7])
    decision = queue.poll(0.0)
    assert decision.batch is not None
    assert decision.batch.rows == tuple(rows)
    assert decision.batch.reason is Reason.READY
    assert len(queue) == 0


def test_an_empty_queue_gives_nothing() -> None:
    assert batcher().poll(0.0).batch is None


def test_short_rows_are_not_padded_to_a_long_stranger() -> None:
    queue, _ = filled([5] * 8 + [400])
    first, second = queue.poll(0.0).batch, queue.poll(0.0).batch
    assert first is not None
    assert second is not None
    assert {first.longest, second.longest} == {5, 400}


def test_neighbouring_lengths_share_a_batch() -> None:
    queue, rows = filled([20, 21, 22, 23])
    batch = queue.poll(0.0).batch
    assert batch is not None
    assert set(batch.rows) == set(rows)


def test_preparing_ahead_takes_full_batches_only() -> None:
    queue, _ = filled([4, 4, 4], max_rows=4)
    assert queue.poll(0.0, only_full=True).batch is None
    queue.add(Row("model", 4), 0.0)
    batch = queue.poll(0.0, only_full=True).batch
    assert batch is not None
    assert batch.reason is Reason.FULL


def test_a_row_past_the_age_cap_is_in_the_next_batch_whatever_it_costs() -> None:
    queue = batcher(max_age_s=1.0, max_rows=4)
    outlier = Row("model", 500)
    queue.add(outlier, 0.0)
    for _ in range(8):
        queue.add(Row("model", 3), 0.99)
    batch = queue.poll(1.0).batch
    assert batch is not None
    assert outlier in batch.rows
    assert batch.reason is Reason.OVERDUE


def test_among_equal_lengths_the_oldest_run_first() -> None:
    queue, rows = filled([9] * 10, max_rows=4)
    batch = queue.poll(0.0).batch
    assert batch is not None
    assert set(batch.rows) == set(rows[:4])


def test_keys_never_mix() -> None:
    queue = batcher()
    for index in range(10):
        queue.add(Row(index % 2, 8), 0.0)
    while (batch := queue.poll(0.0).batch) is not None:
        assert len({row.key for row in batch.rows}) == 1


def test_higher_priority_runs_first() -> None:
    queue = batcher(max_rows=1)
    low, high = Row("model", 5, priority=0), Row("model", 200, priority=3)
    queue.add(low, 0.0)
    queue.add(high, 0.0)
    batch = queue.poll(0.0).batch
    assert batch is not None
    assert batch.rows == (high,)


def test_low_priority_does_not_starve() -> None:
    queue = batcher(max_rows=1, max_age_s=1.0)
    low = Row("model", 5)
    queue.add(low, 0.0)
    for step in range(1, 12):
        queue.add(Row("model", 5, priority=9), step / 10)
        batch = queue.poll(step / 10).batch
        assert batch is not None
        if low in batch.rows:
            return
    pytest.fail("the row of low priority never ran")


def test_an_expired_row_never_runs() -> None:
    queue = batcher()
    late, live = Row("model", 5, deadline=1.0), Row("model", 5, deadline=3.0)
    queue.add(late, 0.0)
    queue.add(live, 0.0)
    decision = queue.poll(2.0)
    assert decision.expired == (late,)
    assert decision.batch is not None
    assert decision.batch.rows == (live,)


def test_a_deadline_that_moved_later_holds() -> None:
    queue = batcher()
    row = Row("model", 5, deadline=1.0)
    queue.add(row, 0.0)
    row.deadline = 5.0
    decision = queue.poll(2.0)
    assert decision.expired == ()
    assert decision.batch is not None


def test_a_full_queue_refuses_and_stays_as_it_was() -> None:
    queue, _ = filled([5, 5], queue_rows=2)
    with pytest.raises(QueueFull):
        queue.add(Row("model", 5), 0.0)
    assert len(queue) == 2
    queue, _ = filled([50], queue_tokens=60)
    with pytest.raises(QueueFull):
        queue.add(Row("model", 50), 0.0)
    assert queue.tokens == 50


def test_a_row_over_the_token_bound_of_an_empty_queue_still_gets_in() -> None:
    queue, _ = filled([500], queue_tokens=100, max_tokens=100)
    batch = queue.poll(0.0).batch
    assert batch is not None
    assert len(batch.rows) == 1


@pytest.mark.parametrize("field", ["max_rows", "max_tokens", "max_age_s", "queue_rows", "queue_tokens"])
def test_a_policy_without_room_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Policy(**{field: 0})


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=120),
    max_rows=st.integers(1, 40),
    max_tokens=st.integers(1, 5000),
    aware=st.booleans(),
)
@settings(deadline=None)
def test_draining_runs_every_row_once_within_the_budget(lengths: list[int], max_rows: int, max_tokens: int, aware: bool) -> None:
    queue, rows = filled(lengths, max_rows=max_rows, max_tokens=max_tokens, length_aware=aware)
    ran: list[Row] = []
    while (batch := queue.poll(0.0).batch) is not None:
        assert len(batch.rows) <= max_rows
        assert len(batch.rows) == 1 or len(batch.rows) * batch.longest <= max_tokens
        assert batch.longest == max(row.length for row in batch.rows)
        ran.extend(batch.rows)
    assert sorted(map(id, ran)) == sorted(map(id, rows))
    assert queue.tokens == 0


@given(lengths=st.lists(st.integers(1, 300), min_size=2, max_size=100))
@settings(deadline=None)
def test_first_come_is_first_come(lengths: list[int]) -> None:
    queue, _ = filled(lengths, length_aware=False, max_rows=8)
    last = 0
    while (batch := queue.poll(0.0).batch) is not None:
        orders = sorted(row.order for row in batch.rows)
        assert orders[0] > last
        last = orders[-1]


class Interleaving(RuleBasedStateMachine):
    """Any order of add, discard, poll and passing time."""

    rows = Bundle("rows")

    def __init__(self) -> None:
        super().__init__()
        self.policy = Policy(max_rows=6, max_tokens=300, max_age_s=2.0, queue_rows=20, queue_tokens=1500)
        self.queue: Batcher[Row] = Batcher(self.policy, linear)
        self.now = 0.0
        self.waiting: set[Row] = set()
        self.gone: set[Row] = set()

    @rule(
        target=rows,
        key=st.sampled_from("ab"),
        length=st.integers(1, 400),
        priority=st.integers(0, 2),
        ttl=st.one_of(st.none(), st.floats(0.1, 5)),
    )
    def add(self, key: str, length: int, priority: int, ttl: float | None) -> object:
        row = Row(key, length, priority, math.inf if ttl is None else self.now + ttl)
        before = len(self.queue), self.queue.tokens
        try:
            self.queue.add(row, self.now)
        except QueueFull:
            assert (len(self.queue), self.queue.tokens) == before
            assert before[0] >= self.policy.queue_rows or before[1] + length > self.policy.queue_tokens
            return multiple()
        self.waiting.add(row)
        return row

    @rule(row=consumes(rows))
    def discard(self, row: Row) -> None:
        assert self.queue.discard(row) == (row in self.waiting)
        self.waiting.discard(row)
        self.gone.add(row)

    @rule(seconds=st.floats(0.01, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(only_full=st.booleans())
    def poll(self, only_full: bool) -> None:
        oldest = min(self.waiting, key=lambda row: row.order, default=None)
        decision = self.queue.poll(self.now, only_full=only_full)
        for row in decision.expired:
            assert row.deadline <= self.now
            self.waiting.remove(row)
            self.gone.add(row)
        assert all(row.deadline > self.now for row in self.waiting)
        if decision.batch is None:
            assert only_full or not self.waiting
            return
        batch = decision.batch
        assert len({row.key for row in batch.rows}) == 1
        assert len(batch.rows) <= self.policy.max_rows
        assert len(batch.rows) == 1 or len(batch.rows) * batch.longest <= self.policy.max_tokens
        overdue = [row for row in self.waiting if self.now - row.arrived >= self.policy.max_age_s]
        if overdue and oldest in self.waiting:
            assert min(overdue, key=lambda row: row.order) in batch.rows
        elif not overdue:
            assert max(row.priority for row in self.waiting) in {row.priority for row in batch.rows}
        for row in batch.rows:
            self.waiting.remove(row)  # KeyError: it ran twice, or was discarded or expired before
            self.gone.add(row)

    @invariant()
    def the_count_is_right(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.tokens == sum(row.length for row in self.waiting)


Interleaving.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestInterleaving = Interleaving.TestCase
