"""Laws of the decision which job starts, over every queue and machine; and of the door's check."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.optimization.jobs.scheduling import (
    Capacity,
    Defaults,
    Need,
    OverBudget,
    Share,
    Start,
    Waiting,
    check_budget,
    need_of,
    next_start,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = timedelta(seconds=60)

capacities = st.builds(
    Capacity,
    cores=st.sets(st.integers(0, 63), min_size=1, max_size=8).map(lambda cores: tuple(sorted(cores))),
    memory_bytes=st.integers(1, 100),
    max_running=st.integers(1, 5),
)
needs = st.builds(Need, cores=st.integers(1, 9), memory_bytes=st.integers(1, 110))
queues = st.lists(st.tuples(needs, st.integers(0, 200)), max_size=12).map(
    lambda asked: [Waiting(f"job-{number}", T0 + timedelta(seconds=age), need) for number, (need, age) in enumerate(asked)]
)


@dataclass
class Machine:
    """What runs where, as the runner keeps it."""

    capacity: Capacity
    running: dict[str, Share] = field(default_factory=dict)

    def start_all(self, queue: list[Waiting], now: datetime) -> list[Start]:
        started = []
        while (start := next_start(queue, self.running.values(), self.capacity, now, PATIENCE)) is not None:
            queue[:] = [waiting for waiting in queue if waiting.id != start.id]
            self.running[start.id] = start.share
            started.append(start)
        return started


@given(capacities, queues, st.integers(0, 400))
def test_no_core_is_given_twice_and_no_budget_exceeded(capacity: Capacity, queue: list[Waiting], now_s: int) -> None:
    asked = {waiting.id: waiting.need for waiting in queue}
    machine = Machine(capacity)
    machine.start_all(queue, T0 + timedelta(seconds=now_s))
    cores = [core for share in machine.running.values() for core in share.cores]
    assert len(cores) == len(set(cores))
    assert set(cores) <= set(capacity.cores)
    assert sum(share.memory_bytes for share in machine.running.values()) <= capacity.memory_bytes
    assert len(machine.running) <= capacity.max_running
    for name, share in machine.running.items():
        assert (len(share.cores), share.memory_bytes) == (asked[name].cores, asked[name].memory_bytes)


@given(capacities, queues, st.integers(0, 400))
def test_nothing_waits_that_could_run_unless_for_one_that_has_waited_long(capacity: Capacity, queue: list[Waiting], now_s: int) -> None:
    now = T0 + timedelta(seconds=now_s)
    machine = Machine(capacity)
    machine.start_all(queue, now)
    patient = [waiting for waiting in queue if capacity.holds(waiting.need) and now - waiting.created >= PATIENCE]
    for waiting in queue:
        alone = next_start([waiting], machine.running.values(), capacity, now, PATIENCE)
        assert alone is None or any((older.created, older.id) < (waiting.created, waiting.id) for older in patient)


@given(capacities, queues, st.data())
def test_every_job_that_fits_starts_in_the_end_whatever_comes_after_it(
    capacity: Capacity, queue: list[Waiting], data: st.DataObject
) -> None:
    """Ends come in any order, and with each comes a small young job that would fit at once."""
    wanted = {waiting.id for waiting in queue if capacity.holds(waiting.need)}
    machine, now, started = Machine(capacity), T0 + timedelta(seconds=200), set[str]()
    for young in range(200):
        started |= {start.id for start in machine.start_all(queue, now)}
        if wanted <= started:
            return
        ended = data.draw(st.sampled_from(sorted(machine.running)))
        del machine.running[ended]
        now += timedelta(seconds=30)
        queue.append(Waiting(f"young-{young}", now, Need(1, 1)))
    raise AssertionError(f"never started: {wanted - started}")


@given(queues, st.integers(0, 400))
def test_equals_start_in_their_order(queue: list[Waiting], now_s: int) -> None:
    """Where every job takes the whole machine, as by default, it is a plain queue."""
    capacity = Capacity((0, 1), 10, 5)
    same = [Waiting(waiting.id, waiting.created, Need(2, 10)) for waiting in queue]
    order = []
    while same:
        start = next_start(same, [], capacity, T0 + timedelta(seconds=now_s), PATIENCE)
        assert start is not None
        order.append(start.id)
        same = [waiting for waiting in same if waiting.id != start.id]
    assert order == [waiting.id for waiting in sorted(queue, key=lambda waiting: (waiting.created, waiting.id))]


def test_a_big_job_is_overtaken_until_its_patience_ends() -> None:
    capacity = Capacity((4, 5, 6, 7), 100, 8)
    running = [Share((7,), 10)]
    big, small = Waiting("big", T0, Need(4, 50)), Waiting("small", T0 + timedelta(seconds=1), Need(1, 10))
    early, late = T0 + timedelta(seconds=59), T0 + timedelta(seconds=60)
    assert next_start([small, big], running, capacity, early, PATIENCE) == Start("small", Share((6,), 10))
    assert next_start([small, big], running, capacity, late, PATIENCE) is None
    assert next_start([small, big], [], capacity, late, PATIENCE) == Start("big", Share((4, 5, 6, 7), 50))


def test_what_could_never_run_here_holds_nobody_up() -> None:
    capacity = Capacity((0,), 100, 8)
    queue = [Waiting("huge", T0, Need(2, 1)), Waiting("small", T0, Need(1, 1))]
    start = next_start(queue, [], capacity, T0 + timedelta(days=1), PATIENCE)
    assert start is not None
    assert start.id == "small"


@given(capacities, st.integers(0, 70), st.integers(0, 110), st.integers(0, 70), st.integers(0, 110))
def test_what_the_door_lets_in_can_run(capacity: Capacity, cores: int, memory: int, default_cores: int, default_memory: int) -> None:
    need = need_of(cores, memory, Defaults(default_cores, default_memory), capacity)
    try:
        check_budget(cores, memory, capacity)
    except OverBudget:
        assert not capacity.holds(need)
    else:
        assert capacity.holds(need)


@pytest.mark.parametrize(
    ("cores", "memory", "text"), [(3, 0, "budget.cores: 3 are more than the 2"), (0, 11, "budget.memory_bytes: 11 are")]
)
def test_a_budget_that_is_not_there_is_named(cores: int, memory: int, text: str) -> None:
    with pytest.raises(OverBudget, match=f"^{text}"):
        check_budget(cores, memory, Capacity((0, 1), 10, 1))


def test_a_part_of_the_cores_comes_with_as_much_of_the_memory() -> None:
    assert need_of(1, 0, Defaults(), Capacity((0, 1, 2, 3), 100, 1)) == Need(1, 25)
    assert need_of(0, 0, Defaults(cores=2), Capacity((0, 1, 2, 3), 100, 1)) == Need(2, 50)
    assert need_of(0, 0, Defaults(memory_bytes=7), Capacity((0, 1, 2, 3), 100, 1)) == Need(4, 7)
