"""The engine with a backend that the test holds: who gets what, and who is harmed by whom."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.backends import RunError
from services.chassis.faults import DeadlineMissed, Overloaded, Unavailable
from services.inference.batching import Policy
from services.inference.engine import Engine
from services.inference.layout import TextLayout
from services.inference.metrics import Metrics
from services.inference.tickets import Item, Ticket
from tests.inference.fakes import OUTPUT, WAIT_S, FakeClock, HeldBackend, Unhurried, checksum
from tests.models import minilm_signature

Ids = list[int]
BLOCKER: Ids = [1]
Start = Callable[..., Engine]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend() -> HeldBackend:
    return HeldBackend()


@pytest.fixture
async def start(clock: FakeClock) -> AsyncIterator[Start]:
    """`start(backend, max_rows=4, instances=1)`: an engine that is closed at the end."""
    running: list[tuple[Engine, HeldBackend]] = []

    def make(backend: HeldBackend, *, instances: int = 1, **policy: int) -> Engine:
        engine = Engine(
            [backend] * instances,
            TextLayout(minilm_signature()),
            Policy(**policy),
            name="m",
            version=1,
            metrics=Metrics(CollectorRegistry()),
            service_time=Unhurried(),
            clock=clock,
        )
        running.append((engine, backend))
        return engine

    yield make
    for engine, held in running:
        held.gate.set()
        await engine.close()


def submit(engine: Engine, *rows: Ids, flights: Sequence[bytes | None] = (), priority: int = 0, deadline: float = math.inf) -> Ticket:
    keys = flights or [None] * len(rows)
    items = [Item({"input_ids": np.array(row, np.int64)}, (OUTPUT,), key) for row, key in zip(rows, keys, strict=True)]
    return engine.submit(items, priority, deadline)


async def answers(ticket: Ticket) -> list[int]:
    return [int(answer.outputs[OUTPUT][0]) for answer in await ticket.answers()]


def ask(engine: Engine, *rows: Ids, **options: object) -> "asyncio.Task[list[int]]":
    """A caller: its rows are queued now, its task waits for their answers."""
    return asyncio.create_task(answers(submit(engine, *rows, **options)))  # type: ignore[arg-type]


async def begun(backend: HeldBackend) -> None:
    """Returns when one more batch is in the backend."""
    assert await asyncio.to_thread(backend.begun.acquire, timeout=WAIT_S)


async def occupied(engine: Engine, backend: HeldBackend) -> "asyncio.Task[list[int]]":
    """A batch runs and will not end before the gate opens: what is asked from now on waits in the queue."""
    task = ask(engine, BLOCKER)
    await begun(backend)
    return task


async def gone(task: "asyncio.Task[list[int]]") -> None:
    """Cancels a caller and returns when it is gone."""
    await asyncio.sleep(0)  # it must be waiting already: a task that never began holds nothing
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_every_caller_gets_its_own_answers_in_order(start: Start, backend: HeldBackend) -> None:
    engine = start(backend, instances=2, max_rows=8)
    backend.gate.set()
    draw = np.random.default_rng(7)
    calls = [[draw.integers(1, 999, draw.integers(1, 40)).tolist() for _ in range(draw.integers(1, 6))] for _ in range(60)]
    found = await asyncio.gather(*(ask(engine, *rows) for rows in calls))
    assert found == [[checksum(row) for row in rows] for rows in calls]


async def test_rows_of_different_callers_share_a_batch(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    blocker = await occupied(engine, backend)
    callers = [ask(engine, [2, number]) for number in range(5)]
    backend.gate.set()
    await asyncio.gather(blocker, *callers)
    assert [len(batch) for batch in backend.batches] == [1, 5]


async def test_a_cancelled_caller_in_the_queue_never_runs_and_harms_nobody(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    blocker = await occupied(engine, backend)
    leaver, stayer = ask(engine, [2, 2], [2, 3]), ask(engine, [3, 3])
    await gone(leaver)
    assert engine.queued_rows == 1
    backend.gate.set()
    assert await stayer == [checksum([3, 3])]
    await blocker
    assert backend.ran == [BLOCKER, [3, 3]]
    assert engine.statistics.dropped_rows == 2


async def test_a_caller_cancelled_while_its_batch_runs_harms_nobody(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    leaver, stayer = ask(engine, [2, 2]), ask(engine, [3, 3])
    await begun(backend)
    await gone(leaver)
    backend.gate.set()
    assert await stayer == [checksum([3, 3])]
    assert len(backend.batches) == 1
    assert engine.statistics.dropped_rows == 0


async def test_a_call_that_cannot_fit_is_refused_before_its_rows_are_made(start: Start, backend: HeldBackend) -> None:
    engine = start(backend, queue_rows=3)
    blocker = await occupied(engine, backend)
    waiting = [ask(engine, [2, number]) for number in range(2)]
    engine.check(1, 0, math.inf)
    with pytest.raises(Overloaded, match="2 rows wait, the limit is 3"):
        engine.check(2, 0, math.inf)
    assert (engine.queued_rows, engine.statistics.refused_requests) == (2, 1)
    backend.gate.set()
    await asyncio.gather(blocker, *waiting)


async def test_equal_questions_are_computed_once(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    blocker = await occupied(engine, backend)
    callers = [ask(engine, [5, 6], flights=[b"same"]) for _ in range(10)]
    assert engine.queued_rows == 1
    backend.gate.set()
    assert await asyncio.gather(*callers) == [[checksum([5, 6])]] * 10
    await blocker
    assert backend.ran == [BLOCKER, [5, 6]]


async def test_a_question_asked_again_after_its_answer_is_computed_again(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    backend.gate.set()
    for _ in range(2):
        assert await ask(engine, [5, 6], flights=[b"same"]) == [checksum([5, 6])]
    assert len(backend.ran) == 2


async def test_a_question_twice_in_one_call_is_answered_twice(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    backend.gate.set()
    found = await ask(engine, [5], [6], [5], flights=[b"five", b"six", b"five"])
    assert found == [checksum([5]), checksum([6]), checksum([5])]
    assert sorted(backend.ran) == [[5], [6]]


async def test_a_flight_lasts_until_its_answer_is_taken(start: Start, backend: HeldBackend) -> None:
    """Only who has taken it can remember it: whoever asks before that would compute it once more."""
    backend.gate.set()
    engine = start(backend, max_rows=1)
    first = submit(engine, [5], flights=[b"same"])
    await ask(engine, [6])  # runs after it
    assert await ask(engine, [5], [7], flights=[b"same", b"other"]) == [checksum([5]), checksum([7])]
    assert (await answers(first), engine.statistics.batch_rows) == ([checksum([5])], 3)
    await ask(engine, [5], flights=[b"same"])
    assert engine.statistics.batch_rows == 4


async def test_an_abandoned_flight_runs_for_the_one_who_still_waits(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    blocker = await occupied(engine, backend)
    first, second = (ask(engine, [5, 6], flights=[b"same"]) for _ in range(2))
    await gone(first)
    assert engine.queued_rows == 1
    backend.gate.set()
    assert await second == [checksum([5, 6])]
    await blocker


async def test_a_flight_that_all_abandoned_is_dropped_and_can_be_asked_again(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    blocker = await occupied(engine, backend)
    callers = [ask(engine, [5, 6], flights=[b"same"]) for _ in range(2)]
    for caller in callers:
        await gone(caller)
    assert engine.queued_rows == 0
    again = ask(engine, [5, 6], flights=[b"same"])
    backend.gate.set()
    assert await again == [checksum([5, 6])]
    await blocker
    assert engine.statistics.dropped_rows == 1


async def test_a_running_flight_can_be_joined_after_its_first_caller_left(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    first = ask(engine, [5, 6], flights=[b"same"])
    await begun(backend)
    await gone(first)
    second = ask(engine, [5, 6], flights=[b"same"])
    assert engine.queued_rows == 0
    backend.gate.set()
    assert await second == [checksum([5, 6])]
    assert len(backend.ran) == 1


async def test_a_flight_waits_as_long_as_its_most_patient_caller(start: Start, backend: HeldBackend, clock: FakeClock) -> None:
    engine = start(backend)
    blocker = await occupied(engine, backend)
    ask(engine, [5, 6], flights=[b"same"], deadline=clock.now_s + 1)
    patient = ask(engine, [5, 6], flights=[b"same"], deadline=clock.now_s + 10_000)
    clock.now_s += 50
    backend.gate.set()
    assert await patient == [checksum([5, 6])]
    await blocker


async def test_higher_priority_runs_first(start: Start, backend: HeldBackend) -> None:
    engine = start(backend, max_rows=1)
    callers = [await occupied(engine, backend), ask(engine, [2])]
    await asyncio.sleep(0)  # [2] may be prepared ahead
    callers += [ask(engine, [3, 3, 3]), ask(engine, [4], priority=5)]  # the longer row would run first
    backend.gate.set()
    await asyncio.gather(*callers)
    assert backend.ran.index([4]) < backend.ran.index([3, 3, 3])


async def test_a_flight_is_as_urgent_as_its_most_urgent_caller(start: Start, backend: HeldBackend) -> None:
    engine = start(backend, max_rows=1)
    callers = [await occupied(engine, backend), ask(engine, [2])]
    await asyncio.sleep(0)
    callers += [ask(engine, [3, 3, 3]), ask(engine, [5], flights=[b"same"])]  # the longer row would run first
    callers.append(ask(engine, [5], flights=[b"same"], priority=5))
    backend.gate.set()
    await asyncio.gather(*callers)
    assert backend.ran.index([5]) < backend.ran.index([3, 3, 3])


def refuse_13(rows: list[Ids]) -> None:
    if any(13 in row for row in rows):
        raise RunError("13 is not taken")


async def test_a_poison_row_fails_alone(start: Start) -> None:
    backend = HeldBackend(refuse_13)
    engine = start(backend)
    poison, *healthy = [ask(engine, [1, number]) for number in (13, 14, 15, 16)]
    backend.gate.set()
    assert await asyncio.gather(*healthy) == [[checksum([1, number])] for number in (14, 15, 16)]
    with pytest.raises(RunError, match="13 is not taken"):
        await poison


async def test_a_call_with_a_poison_row_fails_and_its_neighbours_do_not(start: Start) -> None:
    backend = HeldBackend(refuse_13)
    engine = start(backend)
    mixed, healthy = ask(engine, [2], [13], [3]), ask(engine, [4])
    backend.gate.set()
    assert await healthy == [checksum([4])]
    with pytest.raises(RunError):
        await mixed


def crash_at_13(rows: list[Ids]) -> None:
    if any(13 in row for row in rows):
        raise ZeroDivisionError("a bug")


async def test_a_crashing_batch_fails_and_the_next_one_runs(start: Start) -> None:
    backend = HeldBackend(crash_at_13)
    engine = start(backend)
    batch = [ask(engine, [13]), ask(engine, [14])]
    await begun(backend)
    after = ask(engine, [15])
    backend.gate.set()
    for found in await asyncio.gather(*batch, return_exceptions=True):
        assert isinstance(found, RunError)
    assert await after == [checksum([15])]


class Miscounting(HeldBackend):
    """Answers one row too few."""

    def run(self, inputs, outputs):  # type: ignore[no-untyped-def]
        return {name: values[:-1] for name, values in super().run(inputs, outputs).items()}


async def test_an_answer_of_another_length_than_the_batch_fails_it(start: Start) -> None:
    backend = Miscounting()
    engine = start(backend)
    callers = [ask(engine, [2]), ask(engine, [3])]
    backend.gate.set()
    for found in await asyncio.gather(*callers, return_exceptions=True):
        assert isinstance(found, RunError)


async def test_a_full_queue_refuses_at_once_and_loses_nothing(start: Start, backend: HeldBackend) -> None:
    engine = start(backend, queue_rows=3)
    callers = [await occupied(engine, backend), ask(engine, [2]), ask(engine, [3])]
    with pytest.raises(Overloaded) as refused:
        submit(engine, [4], [5])  # one would fit: taken whole or not at all
    assert refused.value.retry_after_s > 0
    assert engine.queued_rows == 2
    backend.gate.set()
    assert await asyncio.gather(*callers) == [[checksum(row)] for row in (BLOCKER, [2], [3])]
    assert engine.statistics.refused_requests == 1


async def test_what_joins_a_waiting_row_needs_no_room(start: Start, backend: HeldBackend) -> None:
    engine = start(backend, queue_rows=1)
    blocker = await occupied(engine, backend)
    callers = [ask(engine, [2], flights=[b"two"]) for _ in range(3)]
    backend.gate.set()
    assert await asyncio.gather(*callers) == [[checksum([2])]] * 3
    await blocker


async def test_a_request_over_the_token_bound_enters_an_empty_queue_whole(start: Start, backend: HeldBackend) -> None:
    engine = start(backend, queue_tokens=10)
    backend.gate.set()
    rows = [[number] * 6 for number in range(1, 4)]
    assert await ask(engine, *rows) == [checksum(row) for row in rows]
    assert engine.queued_rows == 0


async def test_a_deadline_that_passes_in_the_queue_is_missed_and_the_row_never_runs(
    start: Start, backend: HeldBackend, clock: FakeClock
) -> None:
    engine = start(backend)
    blocker = await occupied(engine, backend)
    late, patient = ask(engine, [2], deadline=clock.now_s + 1), ask(engine, [3], deadline=clock.now_s + 10_000)
    clock.now_s += 2
    backend.gate.set()
    with pytest.raises(DeadlineMissed):
        await late
    assert await patient == [checksum([3])]
    await blocker
    assert [2] not in backend.ran
    assert engine.statistics.dropped_rows == 1


async def test_draining_answers_everything_accepted_and_takes_nothing_new(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    callers = [await occupied(engine, backend), *(ask(engine, [2, number]) for number in range(5))]
    drained = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    with pytest.raises(Unavailable):
        submit(engine, [9])
    backend.gate.set()
    await drained
    assert await asyncio.gather(*callers) == [[checksum(BLOCKER)], *([checksum([2, number])] for number in range(5))]


async def test_an_idle_engine_drains_at_once(start: Start, backend: HeldBackend) -> None:
    await start(backend).drain()


async def test_draining_ends_when_the_last_caller_leaves(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    blocker = await occupied(engine, backend)
    leaver = ask(engine, [2])
    drained = asyncio.create_task(engine.drain())
    await gone(leaver)
    backend.gate.set()
    await asyncio.gather(drained, blocker)
    assert [2] not in backend.ran


async def test_closing_fails_what_waits_and_answers_what_runs(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    running = await occupied(engine, backend)
    waiting = ask(engine, [2])
    closing = asyncio.create_task(engine.close())
    with pytest.raises(Unavailable):
        await waiting  # at once, while the backend still works
    assert not backend.closed
    backend.gate.set()
    await closing
    assert backend.closed
    assert await running == [checksum(BLOCKER)]
    with pytest.raises(Unavailable):
        submit(engine, [3])


async def test_instances_run_at_the_same_time(start: Start, backend: HeldBackend) -> None:
    engine = start(backend, instances=2)
    first = await occupied(engine, backend)
    second = ask(engine, [2])
    await begun(backend)  # while the first has not ended
    backend.gate.set()
    await asyncio.gather(first, second)


async def test_outputs_are_computed_apart_where_callers_ask_for_others(start: Start, backend: HeldBackend) -> None:
    engine = start(backend)
    blocker = await occupied(engine, backend)
    ids = {"input_ids": np.array([4, 4], np.int64)}
    tickets = [engine.submit([Item(ids, (name,))], 0, math.inf) for name in ("a", "b")]
    backend.gate.set()
    for name, ticket in zip("ab", tickets, strict=True):
        (answer,) = await ticket.answers()
        assert list(answer.outputs) == [name]
        assert answer.batch_rows == 1
    await blocker


async def test_statistics_add_up(start: Start, clock: FakeClock) -> None:
    backend = HeldBackend(refuse_13)
    engine = start(backend, queue_rows=8)
    blocker = await occupied(engine, backend)
    answered = [ask(engine, [2, 2]), ask(engine, [3, 3, 3], [4])]
    failed, late, leaver = ask(engine, [13]), ask(engine, [6], deadline=clock.now_s + 1), ask(engine, [7], [8])
    await gone(leaver)
    with pytest.raises(Overloaded):
        submit(engine, *([9] for _ in range(8)))
    clock.now_s += 2
    backend.gate.set()
    await asyncio.gather(blocker, *answered, failed, late, return_exceptions=True)
    counted = engine.statistics
    assert counted.batch_rows == 5  # the blocker, three answered and one failed
    assert counted.dropped_rows == 3
    assert counted.refused_requests == 1
    assert counted.real_tokens == 1 + 2 + 3 + 1 + 1
    assert counted.padded_tokens >= counted.real_tokens
    assert counted.queue_ns == 3 * 2_000_000_000  # of the three answered after the wait
    assert engine.queued_rows == 0
