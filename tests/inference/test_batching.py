"""The batcher, case by case; what holds in every case is in test_batching_laws.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.batching import Batcher, Policy, QueueFull, Reason
from services.inference.lanes import Row
from tests.inference.fakes import Linear


def batcher(**bounds: object) -> Batcher[Row]:
    return Batcher(Policy(**bounds), Linear())  # type: ignore[arg-type]


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


def test_a_batch_is_cut_where_shorter_rows_would_be_padding() -> None:
    queue, rows = filled([5] * 4 + [100] * 4, max_rows=8)
    batch = queue.poll(0.0).batch
    assert batch is not None
    assert set(batch.rows) == set(rows[4:])
    assert batch.reason is Reason.SPLIT


def test_rows_of_other_buckets_wait_for_their_own_batch() -> None:
    queue, rows = filled([5, 9, 10, 11, 60, 101], buckets=(10, 100), length_aware=False)
    batches = [queue.poll(0.0).batch for _ in range(3)]
    assert [set(batch.rows) for batch in batches if batch is not None] == [set(rows[:3]), set(rows[3:5]), {rows[5]}]


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


def test_places_left_go_to_the_longest_and_oldest_of_lower_priority_that_lengthen_nothing() -> None:
    queue = batcher(max_rows=4)
    rows = [Row("model", length, priority) for length, priority in ((9, 0), (20, 0), (3, 0), (9, 0), (9, 0), (9, 0), (10, 1))]
    for row in rows:
        queue.add(row, 0.0)
    batch = queue.poll(0.0).batch
    assert batch is not None
    assert set(batch.rows) == {rows[6], rows[0], rows[3], rows[4]}


def test_an_overdue_row_of_low_priority_takes_one_place_and_not_its_neighbours_too() -> None:
    queue = batcher(max_rows=4, max_age_s=1.0)
    low = [Row("model", 8) for _ in range(4)]
    for row in low:
        queue.add(row, 0.0)
    high = [Row("model", 8, priority=1) for _ in range(3)]
    for row in high:
        queue.add(row, 0.5)
    batch = queue.poll(1.0).batch
    assert batch is not None
    assert set(batch.rows) == {low[0], *high}


def test_a_row_that_would_be_answered_too_late_is_dropped_before_it_runs() -> None:
    queue = batcher()
    late, live = Row("model", 100, deadline=0.010), Row("model", 100, deadline=1.0)
    for row in (late, live):
        queue.add(row, 0.0)
    decision = queue.poll(0.0)  # together they take 21 ms
    assert decision.expired == (late,)
    assert decision.batch is not None
    assert decision.batch.rows == (live,)


def test_a_batch_prepared_ahead_is_judged_by_when_it_begins() -> None:
    queue, rows = batcher(max_rows=1), [Row("model", 10, deadline=0.005) for _ in range(2)]
    for row in rows:
        queue.add(row, 0.0)
    assert queue.poll(0.0).batch is not None
    decision = queue.poll(0.0, begins=0.004, only_full=True)
    assert decision.batch is None
    assert decision.expired == (rows[1],)


def test_nothing_is_dropped_by_a_prediction_that_cannot_be_trusted() -> None:
    queue: Batcher[Row] = Batcher(Policy(), Linear(sure_share=0.0))
    queue.add(Row("model", 100, deadline=0.001), 0.0)
    assert queue.poll(0.0).batch is not None


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
